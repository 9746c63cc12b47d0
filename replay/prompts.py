"""Prompts of exact length as token ids, equal where the workload's block hashes are equal.

A block of the prompt is drawn from (seed, its chained hash), so that two prompts share
exactly the leading blocks whose hashes they share; the rest of a prompt is drawn from
(seed, request id) and shared with nobody. Only blake2b decides, so the ids are the same in
every process. Blocks that an earlier turn of the session *generated* cannot be drawn: they
are what the server answered, once it has.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

FIRST_ID = 16  # below it models keep their special tokens
DIGEST_BYTES = 64

Ids = npt.NDArray[np.int64]


def draw_ids(seed: int, name: str, count: int, vocab_size: int) -> Ids:
    """``count`` token ids in [16, vocab_size) that depend on (seed, name) only; prefix-stable."""
    root = f"{seed}/{name}/".encode()
    digests = -(-count * 4 // DIGEST_BYTES)
    data = b"".join(blake2b(root + str(i).encode()).digest() for i in range(digests))
    words = np.frombuffer(data, np.uint32)[:count].astype(np.int64)
    return FIRST_ID + words % (vocab_size - FIRST_ID)


class PromptMaker:
    """Makes the prompt of each request of a workload.

    ``answered`` must be told the generated ids of finished requests where ``wants_answer``;
    ``unanswered`` counts the prompt blocks whose answer was not there yet when needed: they
    were drawn, so they share with later prompts but not with the server's own output.
    """

    def __init__(
        self, requests: pa.Table, block_tokens: int | None, seed: int, vocab_size: int
    ) -> None:
        self._ids: list[str] = requests.column("request_id").to_pylist()
        self._lengths = requests.column("prompt_tokens").to_numpy()
        hashed = block_tokens is not None and "block_hashes" in requests.column_names
        self._hashes = requests.column("block_hashes").combine_chunks() if hashed else None
        self._block = block_tokens or 1
        self._seed, self._vocab_size = seed, vocab_size
        self._generated = self._generated_and_used()
        self._known: dict[int, Ids] = {}
        self._drawn: set[int] = set()
        self.unanswered = 0

    def prompt(self, row: int) -> list[int]:
        """The prompt of request ``row`` of the workload, of exactly its length."""
        length = int(self._lengths[row])
        parts = [self._block_ids(h) for h in self._row_hashes(row)[: length // self._block]]
        rest = length - len(parts) * self._block
        name = f"request {self._ids[row]}"
        parts.append(draw_ids(self._seed, name, rest, self._vocab_size))
        ids: list[int] = np.concatenate(parts).tolist()
        return ids

    def alone(self, name: str, length: int) -> list[int]:
        """A prompt that shares nothing with any other."""
        ids: list[int] = draw_ids(self._seed, f"alone {name}", length, self._vocab_size).tolist()
        return ids

    def wants_answer(self, row: int) -> bool:
        """Whether a later prompt contains what request ``row`` generates."""
        first = int(self._lengths[row]) // self._block
        return any(h in self._generated for h in self._row_hashes(row)[first:])

    def answered(self, row: int, prompt: list[int], output: list[int]) -> None:
        """Remember what request ``row`` generated, for the prompts that go on from it."""
        ids = np.array(prompt + output, np.int64)
        hashes = self._row_hashes(row)
        for i in range(len(prompt) // self._block, min(len(hashes), len(ids) // self._block)):
            h = hashes[i]
            if h in self._generated and h not in self._drawn:
                self._known.setdefault(h, ids[i * self._block : (i + 1) * self._block])

    def _block_ids(self, block_hash: int) -> Ids:
        if block_hash in self._known:
            return self._known[block_hash]
        if block_hash in self._generated:
            self.unanswered += block_hash not in self._drawn
            self._drawn.add(block_hash)
        return draw_ids(self._seed, f"block {block_hash}", self._block, self._vocab_size)

    def _row_hashes(self, row: int) -> list[int]:
        if self._hashes is None:
            return []
        hashes: list[int] | None = self._hashes[row].as_py()
        return hashes or []

    def _generated_and_used(self) -> set[int]:
        """Hashes of blocks that one request generates and another has in its prompt."""
        if self._hashes is None:
            return set()
        flat = pc.list_flatten(self._hashes).to_numpy()
        owner = pc.list_parent_indices(self._hashes).to_numpy()
        start = np.searchsorted(owner, owner)  # first entry of the same request
        in_prompt = np.arange(len(flat)) - start < self._lengths[owner] // self._block
        return set(np.intersect1d(flat[in_prompt], flat[~in_prompt]).tolist())
