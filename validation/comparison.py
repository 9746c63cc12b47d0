"""Bundles that are compared, cut down to the requests they have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from traces.bundle import Bundle, bundle_hash
from traces.errors import TraceError
from validation.pairing import Pairing, pair, refuse_same_run, rows_with_ids
from validation.samples import View


@dataclass(frozen=True, slots=True)
class Comparison:
    """Measured, simulated, and ``repeats`` of measured; ``digests`` are the measured runs'.

    ``views`` are the compared requests of measured, simulated and the repeats, in that order.
    """

    measured: Bundle
    simulated: Bundle
    repeats: tuple[Bundle, ...]
    pairing: Pairing
    digests: list[str]
    views: list[View]

    @property
    def runs(self) -> list[Bundle]:
        """Measured and its repeats."""
        return [self.measured, *self.repeats]

    @property
    def real(self) -> list[View]:
        """The views of ``runs``."""
        return [self.views[0], *self.views[2:]]


def compared(
    measured: Bundle,
    simulated: Bundle,
    repeats: Sequence[Bundle] = (),
    *,
    allow_vantage_mix: bool = False,
) -> Comparison:
    """Pair the requests of bundles by id.

    Raises TraceError if they cannot be compared: no request in common, different vantages
    (unless allowed), or a repeat that is one of the other runs.
    """
    if not allow_vantage_mix:
        _check_vantage(measured, [simulated, *repeats])
    runs = [measured, *repeats]
    digests = [bundle_hash(b) for b in runs]
    refuse_same_run([(str(b.path), d) for b, d in zip(runs, digests, strict=True)])
    pairing = pair(measured, simulated)
    rows = [rows_with_ids(b, pairing.ids) for b in repeats]
    for bundle, found in zip(repeats, rows, strict=True):
        if not len(found):
            raise TraceError(f"--repeats {bundle.path}: no request in common with {measured.path}")
    views = [
        View(measured, pairing.measured),
        View(simulated, pairing.simulated),
        *(View(b, r) for b, r in zip(repeats, rows, strict=True)),
    ]
    return Comparison(measured, simulated, tuple(repeats), pairing, digests, views)


def _check_vantage(first: Bundle, others: Sequence[Bundle]) -> None:
    for other in others:
        if other.manifest.vantage != first.manifest.vantage:
            raise TraceError(
                f"{other.path}: seen by the {other.manifest.vantage}, {first.path} by the "
                f"{first.manifest.vantage}: their times differ by the network and the front "
                "end; --allow-vantage-mix compares them all the same"
            )
