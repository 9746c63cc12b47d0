"""Keyed, chained hashes of token blocks: they tell equal prefixes, and nothing else."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

DIGEST_BYTES = 8


def root(key: bytes, *extra: str) -> bytes:
    """Where a chain starts; ``extra`` keeps apart what vLLM keeps apart (salt, adapter)."""
    return blake2b("\0".join(extra).encode(), key=key, digest_size=DIGEST_BYTES).digest()


def chain(
    tokens: Sequence[int], block_tokens: int, parent: bytes, key: bytes
) -> tuple[list[int], bytes]:
    """Hash every full block of ``tokens``, each together with the hash before it.

    Returns signed 64-bit integers, one per full block, and the digest to go on from. Equal
    hashes mean equal prefixes; without the key they cannot be traced back to tokens.
    """
    data = array("q", tokens).tobytes()
    stride = 8 * block_tokens
    hashes: list[int] = []
    for end in range(stride, len(data) + 1, stride):
        block = parent + data[end - stride : end]
        parent = blake2b(block, key=key, digest_size=DIGEST_BYTES).digest()
        hashes.append(int.from_bytes(parent, "little", signed=True))
    return hashes, parent
