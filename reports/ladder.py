"""The attribution ladder for readers: sentences, a table and a waterfall of each metric."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reports import words
from reports.figures import Chart
from validation.compared import COMPARED
from validation.ladder import LADDER_METRICS
from validation.scorecard import Scorecard

TITLES = {
    "measured": "Measured",
    "record": "Recording",
    "scheduling": "Scheduling",
    "arrivals": "Arrivals",
    "handover": "Handover",
    "routing": "Routing",
    "kv_capacity": "KV capacity",
    "settings": "Settings",
    "host_overhead": "Host overhead",
    "operators": "Operators",
    "expert_loads": "Expert loads",
    "links": "Links",
    "rest": "Rest",
    "simulated": "Simulated",
}
LABELS = [COMPARED[m].label for m in LADDER_METRICS]


def sentences(ladder: Mapping[str, Any]) -> list[str]:
    """What the ladder found, most important first."""
    return [_largest(ladder), _schedule(ladder["schedule"]), _steps(ladder["steps"])]


def _largest(ladder: Mapping[str, Any]) -> str:
    rungs, terms = ladder["rungs"], {t["name"]: t for t in ladder["terms"]}
    parts = []
    for metric in LADDER_METRICS:
        name = ladder["largest"][metric]
        spec = COMPARED[metric]
        term, error = (
            words.value(v, spec, sign=True)
            for v in (terms[name][metric], rungs[-1][metric] - rungs[0][metric])
        )
        parts.append(f"{spec.label} {TITLES[name].lower()} {term} (error in all {error})")
    return f"Largest term of the mean error: {', '.join(parts)}."


def _schedule(schedule: Mapping[str, Any]) -> str:
    share = f"{schedule['equal']:,} of {schedule['steps']:,}"
    text = f"Under recorded times the simulator decides {share} batches as the engine did"
    if (first := schedule["first"]) is None:
        return f"{text}."
    return (
        f"{text}; first otherwise in step {first['step']} of replica {first['replica']} of "
        f"{first['cluster']} at {first['time_s']:.3f} s: {first['request_id']} got "
        f"{first['engine_tokens']} tokens from the engine, "
        f"{first['simulator_tokens']} from the simulator ({first['why']})."
    )


def _steps(steps: Mapping[str, Any]) -> str:
    kinds = steps["kinds"]
    if "all" not in kinds:
        return "No step to predict."
    names = {"decode": "decode only", "prefill": "with prefill"}
    apart = ", ".join(
        f"{names[k]} {words.percent(kinds[k]['error'], sign=True)}" for k in names if k in kinds
    )
    effect = ", ".join(
        f"{COMPARED[m].label} {words.value(steps['effect'][m], COMPARED[m], sign=True)}"
        for m in LADDER_METRICS
    )
    error, mape = (
        words.percent(kinds["all"]["error"], sign=True),
        words.percent(kinds["all"]["mape"]),
    )
    return (
        f"Step times predicted for the recorded batches: {error} in all ({apart}), a step {mape} "
        f"off on average; by themselves, without feedback through the queue, {effect}."
    )


def rows(card: Scorecard) -> list[tuple[str, ...]]:
    """The table: title, a cell for each of ``LADDER_METRICS``, and what the row is."""
    rungs = card.ladder["rungs"]

    def row(name: str, values: Mapping[str, float], what: str, *, sign: bool) -> tuple[str, ...]:
        cells = (_cell(values[m], m, sign=sign) for m in LADDER_METRICS)
        return (TITLES[name], *cells, what)

    table = [row("measured", rungs[0], "mean of the measured run", sign=False)]
    table += [row(t["name"], t, t["what"], sign=True) for t in card.ladder["terms"]]
    table.append(row("simulated", rungs[-1], "mean of the simulated run", sign=False))
    if noise := _noise(card):
        table.append(("Noise", *noise, "standard deviation between runs of the real system"))
    return table


def _cell(value: float, metric: str, *, sign: bool) -> str:
    tiny = sign and abs(value) < 1e-9  # rounding to float seconds
    return "0" if tiny else words.value(value, COMPARED[metric], sign=sign)


def _noise(card: Scorecard) -> tuple[str, ...]:
    """Noise of the mean of each metric in its unit; nothing without repeats."""
    means = [card.metrics[m].statistics["mean"] if m in card.metrics else None
             for m in LADDER_METRICS]  # fmt: skip
    if not any(s is not None and s.noise is not None for s in means):
        return ()
    return tuple(
        words.NONE if s is None or s.noise is None else words.value(s.noise * s.measured, spec)
        for s, spec in zip(means, (COMPARED[m] for m in LADDER_METRICS), strict=True)
    )


def waterfalls(ladder: Mapping[str, Any]) -> list[Chart]:
    """For each metric how the terms add up to the error, in ms from the measured mean."""
    return [_waterfall(ladder, metric) for metric in LADDER_METRICS]


def _waterfall(ladder: Mapping[str, Any], metric: str) -> Chart:
    spec, terms = COMPARED[metric], ladder["terms"]
    total = ladder["rungs"][-1][metric] - ladder["rungs"][0][metric]
    base, bases = 0.0, []
    for term in terms:
        bases.append(base)
        base += term[metric]
    size = [t[metric] for t in terms]
    line = {
        "role": "waterfall",
        "x": [v * 1e3 for v in (*size, total)],
        "base": [v * 1e3 for v in (*bases, 0.0)],
        "y": [*(TITLES[t["name"]] for t in terms), "Error"],
        "fill": [*("more" if v >= 0 else "less" for v in size), "simulated"],
    }
    parts = ", ".join(f"{TITLES[t['name']]} {t[metric] * 1e3:.4g}" for t in terms if t[metric])
    return Chart(
        f"waterfall_{metric}",
        spec.label,
        f"mean, {words.value(ladder['rungs'][0][metric], spec)} measured",
        "ms above measured",
        "",
        f"What explains the error of mean {spec.label}, in ms: {parts or 'nothing'}; in all "
        f"{total * 1e3:.4g}",
        [line],
    )
