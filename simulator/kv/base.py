"""What a scheduler asks of KV memory; ``Hit`` is the implementation's own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from simulator.scheduling.request import Request


class KV(Protocol):
    """KV memory of one engine."""

    @property
    def free_blocks(self) -> int:
        """Blocks that can be handed out, cached ones included."""

    @property
    def blocks(self) -> int:
        """Blocks of the pool, the null block included."""

    @property
    def evictions(self) -> int:
        """Cached blocks that were handed out anew."""

    def longest_hit(self, request: Request) -> tuple[Any, int, int]:
        """The longest cached prefix: the hit, its tokens, and the partly cached boundary."""

    def admit(
        self,
        request: Request,
        new: int,
        hit: Any,
        hit_tokens: int,
        *,
        reserve_full: bool,
        others_running: bool,
        spare: int = 0,
        delayed: bool = False,
    ) -> bool:
        """Give a waiting request its hit and blocks for ``new`` tokens, or refuse.

        ``spare`` blocks must be left over; ``delayed`` keeps the new ones out of the prefix
        cache, as their KV has yet to come.
        """

    def missing(self, request: Request) -> int:
        """Blocks that a request of which some tokens run still needs for all of them."""

    def resume(self, request: Request, new: int, *, others_running: bool) -> bool:
        """Give a waiting request that holds blocks those for ``new`` more tokens, or refuse."""

    def extend(self, request: Request, new: int) -> bool:
        """Give a running request blocks for ``new`` more tokens, or refuse."""

    def cache(self, request: Request, tokens: int) -> None:
        """Offer the full blocks among the first ``tokens`` to the prefix cache."""

    def free(self, request: Request) -> None:
        """Take all blocks back."""

    def check(self, requests: Iterable[Request]) -> None:
        """Raise InvariantError if blocks leaked."""
