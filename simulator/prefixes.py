"""Which leading blocks of a request another request may have too: all that a prefix cache
can share. Blocks are known by their content's number, from 0 by first appearance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from traces.errors import ConfigError

Ints = npt.NDArray[np.int64]


class Prefixes:
    """Contents of the shared blocks, at the engine's block size ``wanted``.

    Row r of ``requests`` shares the blocks ``codes[offsets[r] : offsets[r + 1]]``. Hashes of
    ``given`` tokens are chained: a prefix once left is never met again, so the shared blocks
    are the leading ones, up to the last whose hash another request has. Raises ConfigError
    if neither block size divides the other.
    """

    def __init__(self, requests: pa.Table, given: int | None, wanted: int, blocks: Ints) -> None:
        self.contents = 0
        self.codes: Ints = np.empty(0, np.int64)
        self.offsets: Ints = np.zeros(len(requests) + 1, np.int64)
        if not given or "block_hashes" not in requests.column_names:
            return
        if max(given, wanted) % min(given, wanted):
            raise ConfigError(
                f"engine.block_size: {wanted} and the workload's hash blocks of {given} tokens do "
                "not divide one another"
            )
        column = requests.column("block_hashes").combine_chunks()
        sizes = column.value_lengths().fill_null(0).to_numpy()
        hashes = column.flatten().to_numpy()
        _, kind, counts = np.unique(hashes, return_inverse=True, return_counts=True)
        owner, place = np.repeat(np.arange(len(sizes)), sizes), _within(sizes)
        shared = np.zeros(len(sizes), np.int64)
        again = counts[kind] > 1
        np.maximum.at(shared, owner[again], place[again] + 1)
        if wanted < given:  # each stands for several of the engine's blocks
            ratio = given // wanted
            codes, self.contents = _numbered(kind[place < shared[owner]])
            codes = (codes[:, None] * ratio + np.arange(ratio)).ravel()
            self.contents *= ratio
            shared *= ratio
        else:  # the last of those in an engine's block stands for it
            ratio = wanted // given
            shared //= ratio
            last = (place % ratio == ratio - 1) & (place // ratio < shared[owner])
            codes, self.contents = _numbered(kind[last])
        whole = np.minimum(shared, blocks)
        self.codes = codes[_within(shared) < np.repeat(whole, shared)]
        np.cumsum(whole, out=self.offsets[1:])

    def of(self, row: int) -> Sequence[int]:
        """Contents of the shared blocks of a row."""
        codes: list[int] = self.codes[self.offsets[row] : self.offsets[row + 1]].tolist()
        return codes


def _numbered(kinds: Ints) -> tuple[Ints, int]:
    """Kinds numbered by first appearance, and how many there are."""
    _, first, codes = np.unique(kinds, return_index=True, return_inverse=True)
    number = np.empty(len(first), np.int64)
    number[np.argsort(first)] = np.arange(len(first))
    return number[codes], len(first)


def _within(sizes: Ints) -> Ints:
    """0 .. size - 1 for each of the sizes, in a row.

    >>> _within(np.array([2, 0, 3])).tolist()
    [0, 1, 0, 1, 2]
    """
    starts = np.append(0, np.cumsum(sizes)[:-1])
    places: Ints = np.arange(int(sizes.sum())) - np.repeat(starts, sizes)
    return places
