"""An FFN process: it holds a share of the experts and works off what attention sends."""

from __future__ import annotations

import time
from collections.abc import Sequence
from mmap import mmap

from replay.af_testbed import model
from replay.af_testbed.disturbance import Meter
from replay.af_testbed.shape import Launch, Run, turns
from replay.af_testbed.stamps import ROW_BYTES, Record, Stamp
from replay.af_testbed.wire import Link, mailboxes


class FFNRank:
    """Runs the experts of one rank, micro-batch after micro-batch in the step's order."""

    def __init__(self, launch: Launch, memory: mmap, core: int, rank: int) -> None:
        self.launch = launch
        self.inbox, self.outbox = mailboxes(memory, launch, rank)
        self.link = Link(launch.wire)
        self.experts = model.local_experts(launch.model, rank, launch.ffn_ranks)
        layers = range(launch.model.layers)
        weights = [model.expert_weights(launch.model, i, self.experts) for i in layers]
        self.weights = [weights] + [[w.copy() for w in weights] for _ in range(launch.copies - 1)]
        self.meter = Meter(core)
        self.sequence = self.turn = 0

    def run(self, runs: Sequence[Run]) -> list[Record]:
        """The steps of all runs, in the order in which attention makes them."""
        records = [Record() for _ in runs]
        for step, i in turns(runs):
            self.meter.start()
            start_ns = time.perf_counter_ns()
            self._step(step, len(runs[i].cut()), records[i])
            records[i].steps.append((start_ns, time.perf_counter_ns()))
            records[i].disturbances.append(self.meter.stop())
        return records

    def _step(self, step: int, micro_batches: int, record: Record) -> None:
        now, sequence = time.perf_counter_ns, self.sequence
        row_bytes = self.launch.model.hidden * ROW_BYTES
        for layer in range(self.launch.model.layers):
            sequence += 1
            for b in range(micro_batches):
                box, back = self.inbox[b], self.outbox[b]
                rows = box.wait(sequence)
                start_ns = now()
                weights = self.weights[(self.turn + b) % self.launch.copies][layer]
                back.x[:rows] = model.run_experts(
                    weights, box.x[:rows], box.chosen[:rows].long(), box.shares[:rows],
                    self.experts.start,
                )  # fmt: skip
                sent = self.link.send(back, sequence, rows, row_bytes)
                record.stamps.append(Stamp(step, layer, b, "ffn", start_ns, now()))
                record.stamps.append(sent.stamp(step, layer, b, "f2a"))
        self.turn += micro_batches
        self.sequence = sequence + 1  # attention closes the step in one more turn
