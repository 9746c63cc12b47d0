"""A prefill and a decode cluster in one simulation.

A request goes to a prefill replica, which makes one token of it and keeps its KV blocks. The
proxy throws that token away, as vLLM's does, and sends the request to a decode replica,
which reserves blocks for the prompt and takes over its KV. There it starts with the last
token of the prompt, which it computes again: what the client gets, its first token too,
comes from the decode side, so TTFT holds the way to there.

Pulling, a decode replica asks for the KV when it has reserved the blocks; pushing, the
request is sent to both sides at once and the KV goes when prefill has finished and blocks
are reserved. Either way the prefill side's blocks are free when the KV has been taken, so a
decode side that is full stops transfers, and in the end the prefill side's admission. If
the lease of a request ends first, its blocks are freed all the same: vLLM then hands over
what lies there. It takes the same time here, and the request counts as failed.

Events at one time happen in this order: what leaves a link, what has come over it, arrivals
at the prefill side, arrivals at the decode side, what enters a link, ends of leases, then
the events of the prefill and of the decode replicas.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from simulator.arrivals import Arrivals
from simulator.clock import NEVER
from simulator.disaggregation.connection import Connection
from simulator.disaggregation.handover import Handovers
from simulator.fleet.base import Finish, Load
from simulator.scheduling.request import Remote
from simulator.simulation import PROGRESS_EVERY
from simulator.stage import Stage
from traces.errors import ConfigError, InvariantError

LEAVES, LANDS, ARRIVES, HANDED_OVER, ENTERS, LAPSES = range(6)

Event = tuple[int, int, int, tuple[int, int]]  # ps, kind, request, channel


class PrefillDecode:
    """Runs one demand, as both stages have it, through two clusters.

    ``progress(finished)`` is called now and then.
    """

    def __init__(
        self,
        prefill: Stage,
        decode: Stage,
        connection: Connection,
        *,
        proxy_ps: int = 0,
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.prefill, self.decode = prefill, decode
        self.connection = connection
        self.handovers = Handovers(len(decode.demand))
        self.finished = 0
        self.stopped = False
        self._pushes = connection.link.transfer == "push"
        self._proxy_ps = 0 if self._pushes else proxy_ps
        self._events: list[Event] = []
        self._progress, self._report_at = progress, 0
        self.needs_decode = (prefill.demand.records["remote"] == Remote.TO_KEEP).tolist()

    def stop(self) -> None:
        """Let ``run`` return soon, with requests unfinished."""
        self.stopped = True

    def run(self, arrivals: Arrivals) -> None:
        """Run until every request is done; raises InvariantError on a deadlock."""
        prefill, decode, events = self.prefill, self.decode, self._events
        while not self.stopped:
            outside = arrivals.next_ps
            if events and (events[0][0], events[0][1]) < (outside, ARRIVES):
                outside = events[0][0]
                if prefill.fleet.next_ps >= outside <= decode.fleet.next_ps:
                    self._happen(*heapq.heappop(events))
                    continue
            elif prefill.fleet.next_ps >= outside <= decode.fleet.next_ps:
                if outside == NEVER:
                    break
                self._arrive(arrivals.pop(), outside)
                continue
            if prefill.fleet.next_ps <= decode.fleet.next_ps:
                limit = min(outside, decode.fleet.next_ps + 1)
                for finish in prefill.run(limit, in_order=True):
                    self._prefilled(finish, arrivals)
            else:
                limit = min(outside, prefill.fleet.next_ps)
                finished = decode.run(limit, in_order=True)
                for load in decode.fleet.begun:
                    self._reserved(load)
                for finish in finished:
                    self._done(finish, arrivals)
        prefill.fleet.close()
        decode.fleet.close()
        total = len(self.needs_decode)
        if self.finished < total and not self.stopped and self._pushes:
            raise ConfigError(
                f"links: {total - self.finished} requests wait for ever: prefill holds the KV of "
                "some that decode has no room for, as it has reserved its blocks for others that "
                "prefill has no room for; pushing needs more KV blocks on one side"
            )
        if self.finished < total and not self.stopped:
            raise InvariantError(
                f"deadlock: {total - self.finished} requests left and no event; prefill: "
                f"{prefill.fleet.describe()}; decode: {decode.fleet.describe()}"
            )

    def check(self) -> None:
        """Raise InvariantError unless all KV blocks have come back."""
        self.prefill.fleet.check()
        self.decode.fleet.check()

    def _happen(self, at_ps: int, kind: int, request: int, key: tuple[int, int]) -> None:
        if kind == LEAVES:
            self._leave(at_ps, key)
        elif kind == LANDS:
            self._land(request, at_ps)
        elif kind == HANDED_OVER:
            self._hand_over(request, at_ps)
        elif kind == ENTERS:
            self._enter(request, at_ps)
        else:
            self._lapse(request, at_ps)

    def _push(self, at_ps: int, kind: int, request: int, key: tuple[int, int] = (0, 0)) -> None:
        heapq.heappush(self._events, (at_ps, kind, request, key))

    def _arrive(self, request: int, at_ps: int) -> None:
        self.handovers.prefill_replica[request] = self.prefill.arrive(request, at_ps)
        if self._pushes and self.needs_decode[request]:
            self._hand_over(request, at_ps)

    def _prefilled(self, finish: Finish, arrivals: Arrivals) -> None:
        request, _, at_ps = finish
        handovers = self.handovers
        handovers.finished_ps[request] = at_ps
        if not self.needs_decode[request]:
            self._count(at_ps, arrivals)
            return
        handovers.kept[request] = True
        received_ps = at_ps + self._proxied_ps(request)
        lease_ps = at_ps + self.connection.lease_ps
        if received_ps >= lease_ps or not self.connection.link.lease_renewal:
            self._push(lease_ps, LAPSES, request)
        if not self._pushes:
            self._push(received_ps, HANDED_OVER, request)
        elif handovers.asked_ps[request] >= 0:
            self._start(request)

    def _proxied_ps(self, request: int) -> int:
        """From prefill's answer to the decode side."""
        return self._proxy_ps

    def _hand_over(self, request: int, at_ps: int) -> None:
        self.decode.demand.records["arrival_ps"][request] = at_ps
        self.handovers.decode_replica[request] = self.decode.arrive(request, at_ps)

    def _reserved(self, load: Load) -> None:
        request, _, at_ps, blocks = load
        self.handovers.asked_ps[request] = at_ps
        self.handovers.blocks[request] = blocks
        if self.handovers.finished_ps[request] >= 0:
            self._start(request)

    def _start(self, request: int) -> None:
        """Both sides are ready."""
        handovers = self.handovers
        start_ps = max(handovers.asked_ps[request], handovers.finished_ps[request])
        handovers.start_ps[request] = start_ps
        self._push(start_ps + self.connection.setup_ps, ENTERS, request)

    def _enter(self, request: int, at_ps: int) -> None:
        handovers, connection = self.handovers, self.connection
        work_ps = connection.work_ps(handovers.blocks[request])
        if connection.link.layerwise:
            scheduled = int(self.prefill.demand.records["first_scheduled_ps"][request])
            since = max(scheduled, handovers.asked_ps[request])
            early_ps = connection.sent_early_ps(work_ps, handovers.finished_ps[request] - since)
            if early_ps:
                handovers.start_ps[request] = since
            work_ps -= early_ps
        key = connection.key(handovers.prefill_replica[request], handovers.decode_replica[request])
        channel = connection.channel(key)
        channel.send(request, work_ps, at_ps)
        self._push(channel.next_ps, LEAVES, -1, key)

    def _leave(self, at_ps: int, key: tuple[int, int]) -> None:
        channel = self.connection.channel(key)
        if channel.next_ps != at_ps:
            return  # another began since, and this one takes longer
        self._push(at_ps + self.connection.latency_ps, LANDS, channel.pop())
        if channel.next_ps != NEVER:
            self._push(channel.next_ps, LEAVES, -1, key)

    def _land(self, request: int, at_ps: int) -> None:
        handovers = self.handovers
        handovers.end_ps[request] = at_ps
        self._release(request, at_ps)
        self.decode.fleet.notify(request, handovers.decode_replica[request], at_ps)

    def _lapse(self, request: int, at_ps: int) -> None:
        if self.handovers.kept[request]:
            self.handovers.lost[request] = True
            self._release(request, at_ps)

    def _release(self, request: int, at_ps: int) -> None:
        handovers = self.handovers
        if handovers.kept[request]:
            handovers.kept[request] = False
            self.prefill.fleet.notify(request, handovers.prefill_replica[request], at_ps)

    def _done(self, finish: Finish, arrivals: Arrivals) -> None:
        self._count(finish[2], arrivals)

    def _count(self, at_ps: int, arrivals: Arrivals) -> None:
        arrivals.finished(at_ps)
        self.finished += 1
        if self.finished >= self._report_at:
            self._progress(self.finished)
            self._report_at = self.finished + PROGRESS_EVERY
