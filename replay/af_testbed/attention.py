"""The attention process: KV cache, router, sampling, and the order of a step's work."""

from __future__ import annotations

import time
from collections.abc import Sequence
from mmap import mmap

import torch
from torch import Tensor
from torch.nn.functional import rms_norm

from replay.af_testbed import model
from replay.af_testbed.disturbance import Meter
from replay.af_testbed.part import Part, prompts_of
from replay.af_testbed.shape import Launch, Run, turns
from replay.af_testbed.stamps import ROW_BYTES, Record, Stamp
from replay.af_testbed.wire import Link, mailboxes


class AttentionRank:
    """Runs steps; every micro-batch has its own requests and mailboxes."""

    def __init__(self, launch: Launch, memory: mmap, core: int) -> None:
        shape = self.shape = launch.model
        self.launch = launch
        self.boxes = [mailboxes(memory, launch, r) for r in range(launch.ffn_ranks)]
        self.links = [Link(launch.wire) for _ in range(launch.ffn_ranks)]
        self.local = [
            model.local_experts(shape, r, launch.ffn_ranks) for r in range(launch.ffn_ranks)
        ]
        weights = [model.attention_weights(shape, i) for i in range(shape.layers)]
        self.weights = [weights] + [[w.copy() for w in weights] for _ in range(launch.copies - 1)]
        self.embedding, self.head = model.embedding(shape), model.head(shape)
        self.cos, self.sin = model.rope_table(shape, launch.max_len)
        self.meter = Meter(core)
        self.sequence = 0  # of the messages in each mailbox, the same for all
        self.turn = 0  # micro-batches so far, of whole steps

    def run(self, runs: Sequence[Run]) -> list[Record]:
        """Each run: a step for the prompts, then one for each further token; runs in turn."""
        records, parts = [], []
        for run in runs:
            prompts = prompts_of(run, self.shape.vocab)
            records.append(Record(tokens=[[] for _ in prompts], prompts=prompts))
            parts.append([Part(self.launch, prompts[a:b], a) for a, b in run.cut()])
        for step, i in turns(runs):
            record = records[i]
            self.meter.start()
            start_ns = time.perf_counter_ns()
            self._step(step, parts[i], record)
            record.steps.append((start_ns, time.perf_counter_ns()))
            record.disturbances.append(self.meter.stop())
            for part in parts[i]:
                for k, token in enumerate(part.next_tokens.tolist()):
                    record.tokens[part.low + k].append(token)
                part.advance()
        return records

    def _step(self, step: int, parts: list[Part], record: Record) -> None:
        now, layers, sequence = time.perf_counter_ns, self.shape.layers, self.sequence
        row_bytes = (self.shape.hidden + 2 * self.shape.top_k) * ROW_BYTES
        for layer in range(layers + 1):
            sequence += 1
            for b, part in enumerate(parts):
                if layer:
                    self._await(b, sequence - 1)
                start_ns = now()
                copy = (self.turn + b) % self.launch.copies
                if layer:
                    self._combine(b, part)
                if layer == layers:
                    self._close(part)
                    record.stamps.append(Stamp(step, -1, b, "attention", start_ns, now()))
                    continue
                if not layer:
                    part.x = self.embedding[part.tokens]
                chosen, shares, normed = self._attention(layer, copy, part)
                self._fill(b, part, chosen, shares, normed)
                experts = chosen.flatten().bincount(minlength=self.shape.experts).tolist()
                sent = [
                    self.links[rank].send(self.boxes[rank][0][b], sequence, len(rows), row_bytes)
                    for rank, rows in enumerate(part.sent)
                ]
                end_ns = now()
                record.stamps.append(Stamp(step, layer, b, "attention", start_ns, end_ns))
                for transfer in sent:
                    record.stamps.append(transfer.stamp(step, layer, b, "a2f"))
                record.experts.append((step, b, layer, experts))
        self.sequence, self.turn = sequence, self.turn + len(parts)

    def _await(self, b: int, sequence: int) -> None:
        for rank in range(self.launch.ffn_ranks):
            self.boxes[rank][1][b].wait(sequence)

    def _combine(self, b: int, part: Part) -> None:
        """Add what the experts sent back to the residual."""
        flat = part.x
        for rank, rows in enumerate(part.sent):
            back = self.boxes[rank][1][b].x[: len(rows)]
            if len(rows) == len(flat):
                flat.add_(back)
            else:
                flat.index_add_(0, rows, back)

    def _attention(self, layer: int, copy: int, part: Part) -> tuple[Tensor, Tensor, Tensor]:
        """Attention of a layer; the experts each token goes to, their shares, the normed tokens."""
        shape, weights = self.shape, self.weights[copy][layer]
        cos, sin = self.cos[part.positions, None], self.sin[part.positions, None]
        q, k, v = model.project(shape, weights, part.x, cos, sin)
        keys, values = part.keys[layer], part.values[layer]
        keys[part.request, :, part.positions] = k
        values[part.request, :, part.positions] = v
        n, queries, longest = len(keys), part.queries, part.longest
        if queries == 1:
            mixed = model.attend(
                shape, q[:, None], keys[:, :, :longest], values[:, :, :longest],
                part.positions[:, None] + 1,
            )[:, 0]  # fmt: skip
        else:
            padded = torch.zeros(n, queries, shape.heads, shape.head_dim)
            padded[part.request, part.positions] = q
            sees = (torch.arange(queries) + 1).expand(n, queries)
            mixed = model.attend(shape, padded, keys[:, :, :longest], values[:, :, :longest], sees)
            mixed = mixed[part.request, part.positions]
        part.x = part.x + mixed @ weights.out.T
        normed = rms_norm(part.x, (shape.hidden,), eps=model.EPSILON)
        chosen, shares = model.route(shape, weights, normed)
        return chosen, shares, normed

    def _fill(self, b: int, part: Part, chosen: Tensor, shares: Tensor, normed: Tensor) -> None:
        """Copy each token to the ranks that hold one of its experts."""
        part.sent = []
        for rank, local in enumerate(self.local):
            if self.launch.ffn_ranks == 1:
                rows = part.all_rows
            else:
                mine = (chosen >= local.start) & (chosen < local.stop)
                rows = mine.any(-1).nonzero().flatten()
            part.sent.append(rows)
            box, count = self.boxes[rank][0][b], len(rows)
            whole = count == len(normed)
            box.x[:count] = normed if whole else normed[rows]
            box.shares[:count] = shares if whole else shares[rows]
            box.chosen[:count] = chosen if whole else chosen[rows]

    def _close(self, part: Part) -> None:
        last = part.x if part.queries == 1 else part.x[part.last_rows]
        normed = rms_norm(last, (self.shape.hidden,), eps=model.EPSILON)
        part.next_tokens = (normed @ self.head.T).argmax(-1)
