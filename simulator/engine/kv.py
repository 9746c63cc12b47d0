"""KV memory by counting: the same decisions as ``kv.manager`` without naming each block.

Only a block whose content another request shares can ever be hit by another request. All
other blocks are alike: a request's own full blocks can be hit by itself alone, after a
preemption, and as the tail is evicted first what is left of them is always a prefix. So
the free queue,

    [ blank, blank, ...            | cached, in the order of eviction ]

is a number of blanks and a ring of places, each holding a shared block, or ``~request`` for
the blocks that request left behind, or ``GONE``. Full attention only (one group).

A producer may preempt a request whose last known token is just being computed; the block
that it fills is then cached, but no hit may reach to the last token. It stays as ``ORPHAN``.
"""

from __future__ import annotations

from simulator.engine.build import compiled
from simulator.engine.layout import (
    CORRUPT,
    NO_BLOCK,
    Replica,
    Request,
    World,
    block_of,
    holder_of,
    place_of,
    request_of,
    shared_of,
)  # fmt: skip

GONE = -(1 << 31)
ORPHAN = GONE + 1


@compiled
def longest_hit(w: World, s: Replica, r: Request) -> int:
    """Cached blocks that begin the request: shared ones, then its own."""
    if not w.caching:
        return 0
    limit = (r.prompt + r.output - 1) // w.block_size
    shared = 0
    while (
        shared < limit
        and shared < r.shared
        and holder_of(s, shared_of(r, shared).code).value != NO_BLOCK
    ):
        shared += 1
    if shared < r.shared:
        return shared
    return shared + r.left if shared + r.left < limit else limit


@compiled
def admit(w: World, s: Replica, i: int, new: int, hit: int, spare: int) -> bool:
    """Give a waiting request its ``hit`` blocks and blocks for ``new`` tokens, or refuse.

    ``spare`` blocks must be left over.
    """
    r = request_of(w, i)
    tokens = r.prompt + r.output
    slots = -(-(hit * w.block_size + new) // w.block_size)
    whole = -(-tokens // w.block_size) if w.reserve_full else slots
    shared = hit if hit < r.shared else r.shared
    own = hit - shared
    idle = own  # blocks of the hit that lie in the free queue
    for j in range(shared):
        block = holder_of(s, shared_of(r, j).code).value
        idle += block_of(s, block).references == 0
    besides = idle - hit
    if s.running > 0:
        besides += w.watermark_blocks
    if max(whole, slots + spare) + besides > s.free_blocks:
        return False
    for j in range(shared):
        block = holder_of(s, shared_of(r, j).code).value
        if block_of(s, block).references == 0:
            place_of(s, block_of(s, block).place).value = GONE
        block_of(s, block).references += 1
        shared_of(r, j).block = block
    if own:
        if r.left != own and not (w.drops_stale and r.left == own + 1):
            w.error = CORRUPT
        place_of(s, r.left_at).value = GONE if r.left == own else ORPHAN
        r.left = 0
    s.free_blocks -= idle
    r.hit = shared
    r.cached = hit
    take(w, s, slots - hit)
    r.held = slots
    return True


@compiled
def missing(w: World, r: Request) -> int:
    """Blocks that a request of which some tokens run still needs for all of them."""
    tokens = min(r.prompt + r.output, w.max_model_len)
    return max(0, -(-tokens // w.block_size) - r.held)


@compiled
def extend(w: World, s: Replica, r: Request, new: int) -> bool:
    """Give a running request blocks for ``new`` more tokens, or refuse."""
    tokens = r.computed + new
    missing = -(-tokens // w.block_size) - r.held
    if missing > s.free_blocks:
        return False
    if missing > 0:
        take(w, s, missing)
        r.held += missing
    known = r.prompt + r.output
    cache(w, s, r, tokens if tokens < known else known)
    return True


@compiled
def cache(w: World, s: Replica, r: Request, tokens: int) -> None:
    """Offer the full blocks among the first ``tokens`` to the prefix cache."""
    full = tokens // w.block_size
    if full <= r.cached or not w.caching:
        return
    for j in range(r.cached, full if full < r.shared else r.shared):
        shared_of(r, j).block = _remember(s, shared_of(r, j).code)
        r.hit += 1
    r.cached = full


@compiled
def free(w: World, s: Replica, i: int) -> None:
    """Take all blocks back: what others cannot hit first, shared ones from the tail."""
    r = request_of(w, i)
    own = r.cached - r.hit
    s.blanks += r.held - r.cached
    s.free_blocks += r.held - r.hit
    if own:
        r.left = own
        r.left_at = _queue(w, s, ~i)
    for j in range(r.hit - 1, -1, -1):
        block = shared_of(r, j).block
        b = block_of(s, block)
        b.references -= 1
        if b.references == 0:
            b.place = _queue(w, s, block)
            s.free_blocks += 1
    r.held = r.cached = r.hit = 0


@compiled
def take(w: World, s: Replica, count: int) -> None:
    """Hand out free blocks, blanks first, evicting what is cached in order."""
    s.free_blocks -= count
    blanks = count if count < s.blanks else s.blanks
    s.blanks -= blanks
    count -= blanks
    s.evictions += count
    while count > 0 and s.queue_first < s.queue_end:
        key = place_of(s, s.queue_first % w.queue_places).value
        if key >= 0:
            _forget(s, key)
            count -= 1
        elif key == ORPHAN:
            count -= 1
        elif key != GONE:
            r = request_of(w, ~key)
            if r.left > count:
                r.left -= count
                return
            count -= r.left
            r.left = 0
        s.queue_first += 1
    if count > 0:
        w.error = CORRUPT


@compiled
def _queue(w: World, s: Replica, key: int) -> int:
    """Put a shared block, or ``~request``, at the end of the free queue; returns its place."""
    if s.queue_end - s.queue_first == w.queue_places:
        _close_ranks(w, s)
    place = s.queue_end % w.queue_places
    place_of(s, place).value = key
    s.queue_end += 1
    return place


@compiled
def _close_ranks(w: World, s: Replica) -> None:
    """Drop the ``GONE``: half of the places, for there are twice as many as blocks."""
    end = s.queue_first
    for position in range(s.queue_first, s.queue_end):
        key = place_of(s, position % w.queue_places).value
        if key == GONE:
            continue
        place = end % w.queue_places
        place_of(s, place).value = key
        if key >= 0:
            block_of(s, key).place = place
        elif key != ORPHAN:
            request_of(w, ~key).left_at = place
        end += 1
    s.queue_end = end


@compiled
def _remember(s: Replica, code: int) -> int:
    """Enter a block of shared content into the prefix cache; returns it."""
    s.blocked = 0  # what waits may hit it
    block = s.spare_block
    if block == NO_BLOCK:
        block = s.blocks_used
        s.blocks_used += 1
    else:
        s.spare_block = block_of(s, block).next
    b = block_of(s, block)
    b.references = 1
    b.code = code
    b.next = NO_BLOCK
    last = holder_of(s, code).value
    if last == NO_BLOCK:
        holder_of(s, code).value = block
        return block
    while block_of(s, last).next != NO_BLOCK:  # the same content was computed twice at once
        last = block_of(s, last).next
    block_of(s, last).next = block
    return block


@compiled
def _forget(s: Replica, block: int) -> None:
    """Take a block out of the prefix cache."""
    b = block_of(s, block)
    before = holder_of(s, b.code).value
    if before == block:
        holder_of(s, b.code).value = b.next
    else:
        while block_of(s, before).next != block:
            before = block_of(s, before).next
        block_of(s, before).next = b.next
    b.next = s.spare_block
    s.spare_block = block
