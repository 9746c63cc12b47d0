"""What the comparison does not cover: requests left out, features ignored, extrapolation."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from typing import Any

from traces.bundle import Bundle
from traces.metrics import HANDOVER
from validation.compared import COMPARED, family_of, in_order
from validation.comparison import Comparison
from validation.pairing import Pairing, Side

# Keys that say where a thing lies or what was simulated of it, not what it is.
_NOT_COMPARED = ("model", "operators", "launch")


def request_coverage(pairing: Pairing) -> dict[str, Any]:
    """Counts of requests: compared, matched, and what became of the others on each side."""

    def side(counts: Side) -> dict[str, Any]:
        return {
            "requests": counts.requests,
            "warmups": counts.warmups,
            "unmatched": counts.unmatched,
            "failed": counts.failed,
        }

    measured, simulated = pairing.sides
    return {
        "compared": len(pairing.ids),
        "matched": pairing.matched,
        "token_counts_differ": pairing.tokens_differ,
        "measured": side(measured),
        "simulated": side(simulated),
    }


def repeat_coverage(repeats: Sequence[Bundle], compared: Sequence[int], pairs: int) -> list[Any]:
    """For each repeat how many of the compared requests finished in it."""
    return [
        {"name": b.path.name, "requests": len(b.requests), "compared": n, "missing": pairs - n}
        for b, n in zip(repeats, compared, strict=True)
    ]


def metric_coverage(
    measured: Collection[str], simulated: Collection[str], compared: Container[str]
) -> dict[str, str]:
    """Why a metric is not compared, for each that is not: ``{metric: reason}``.

    What no co-located run has is told only where one side has it.
    """
    reasons = {}
    known = {*measured, *simulated}
    families = {family_of(name) for name in known}
    for name in in_order({*known, *(n for n in COMPARED if n not in families | HANDOVER.keys())}):
        here, there = name in measured, name in simulated
        if here != there:
            reasons[name] = f"only in {'measured' if here else 'simulated'}"
        elif not here and name not in HANDOVER:
            reasons[name] = "recorded in neither"
        elif here and name not in compared:
            reasons[name] = "no compared request has it in both"
    return reasons


def predictions(notes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Counters the simulator left, ``{what: {"predictions", "extrapolated", "share"}}``.

    They are the notes that hold ``extrapolated`` and a total beside it. ``outside`` has the
    predictions by what they lay outside of, where the simulator told.
    """
    found = {}
    for name, note in notes.items():
        if not isinstance(note, Mapping) or not isinstance(note.get("extrapolated"), int):
            continue
        totals = [v for k, v in note.items() if k != "extrapolated" and isinstance(v, int)]
        total = max(totals, default=0)
        found[str(name)] = {
            "predictions": total,
            "extrapolated": note["extrapolated"],
            "share": note["extrapolated"] / total if total else None,
            **({"outside": note["outside"]} if isinstance(note.get("outside"), Mapping) else {}),
        }
    return found


def deployment_differences(measured: Bundle, simulated: Bundle) -> list[str]:
    """Settings that both deployments give, and give differently: ``key: measured -> simulated``."""
    here = dict(_flat(measured.manifest.deployment))
    there = dict(_flat(simulated.manifest.deployment))
    models = [m for b in (measured, simulated) if (m := b.model_config()) is not None]
    model = ["model: another config"] if len(models) == 2 and models[0] != models[1] else []
    return model + [
        f"{key}: {value} -> {there[key]}"
        for key, value in here.items()
        if key in there and there[key] != value and key.split(".")[0] not in _NOT_COMPARED
    ]


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and any(isinstance(v, Mapping) for v in value):
        for i, inner in enumerate(value):
            name = inner.get("name", i) if isinstance(inner, Mapping) else i
            yield from _flat(inner, f"{prefix}[{name}]")
    else:
        yield prefix, value


def coverage(comparison: Comparison) -> dict[str, Any]:
    """The scorecard's coverage, less what only the samples know."""
    measured, simulated = comparison.measured, comparison.simulated
    notes = simulated.manifest.notes
    capacity = notes.get("kv_capacity")
    return {
        "requests": request_coverage(comparison.pairing),
        "ignored": {
            "measured": [str(i) for i in measured.manifest.ignored],
            "simulated": [str(i) for i in simulated.manifest.ignored],
        },
        "predictions": predictions(notes),
        "kv_capacity": str(capacity) if capacity is not None else None,
        "deployment_differs": deployment_differences(measured, simulated),
    }
