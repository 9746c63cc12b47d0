"""A sweep's outcome in words and rows, the same in HTML, Markdown and on the console."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from reports import words
from validation.compared import COMPARED
from validation.whatif import FAILS, MEETS, UNDECIDED, Found

SHOWN = 12  # points in the tables, beside those on the front
COLUMNS = ("point", "settings", "GPUs", "SLOs", "objective", "against best", "statistics", "")
MARKS = {MEETS: "meets", FAILS: "fails", UNDECIDED: "undecided"}
REASONS = 40  # lines, before the rest is counted


def number(value: float | None) -> str:
    """A number to four significant digits."""
    if value is None:
        return words.NONE
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return words.signed(text)


def setting(value: Any) -> str:
    """A value of an axis."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def settings(found: Found, point: int) -> str:
    """What distinguishes a point: its value on each axis."""
    row = found.rows[point]
    labels = short(found.summary["axes"])
    parts = [f"{labels[a]}={setting(row[a])}" for a in labels if row.get(a) is not None]
    return ", ".join(parts) or "the only one"


def short(axes: Sequence[str]) -> dict[str, str]:
    """The axes by labels as short as they can be told apart.

    >>> short(["engine.max_num_seqs", "clusters[prefill].replicas", "clusters[decode].replicas"])
    ... # doctest: +NORMALIZE_WHITESPACE
    {'engine.max_num_seqs': 'max_num_seqs', 'clusters[prefill].replicas': 'prefill.replicas',
     'clusters[decode].replicas': 'decode.replicas'}
    """
    labels = {}
    for axis in axes:
        cluster = re.match(r"clusters\[(.+?)\]\.", axis)
        label = axis.rpartition(".")[2]
        labels[axis] = f"{cluster[1]}.{label}" if cluster else label
    taken = list(labels.values())
    return {axis: label if taken.count(label) == 1 else axis for axis, label in labels.items()}


def objective(found: Found, value: float | None) -> str:
    """A value of the objective with its unit."""
    unit = found.summary["objective"]["unit"]
    if unit == "s" and value is not None:
        return words.value(value, COMPARED["e2e"])
    return f"{number(value)} {unit}".strip()


def shown(found: Found) -> list[int]:
    """Points for the tables: the best, what cannot be told from it, the front, the next best."""
    more = found.summary["objective"]["more_is_better"]
    meeting = [i for i in found.feasible if found.slo_states[i] != FAILS] or found.feasible
    ranked = sorted(
        (i for i in meeting if found.rows[i].get("objective") is not None),
        key=lambda i: (found.rows[i]["objective"] * (-1 if more else 1), i),
    )
    first = [] if found.best is None else [found.best]
    chosen = dict.fromkeys([*first, *found.like_best[: SHOWN - 1], *ranked])
    return list(chosen)[:SHOWN]


def point_rows(found: Found, points: Sequence[int]) -> list[tuple[str, ...]]:
    """One row a point, a text for each of ``COLUMNS``."""
    return [_point_row(found, i) for i in points]


def _point_row(found: Found, i: int) -> tuple[str, ...]:
    row = found.rows[i]
    against, note = words.NONE, ""
    if i == found.best:
        note = "best"
    elif found.best is not None and row.get("objective") is not None:
        top = found.rows[found.best]["objective"]
        against = words.percent(row["objective"] / top - 1, sign=True) if top else words.NONE
        note = UNDECIDED if i in found.like_best else ""
    if i in found.front:
        note = f"{note}, front" if note else "front"
    state = MARKS[found.slo_states[i]] if found.summary["slos"] else words.NONE
    return (
        str(row["point"]), settings(found, i), number(row["gpus"]), state,
        objective(found, row.get("objective")), against, statistics(found, row), note,
    )  # fmt: skip


def statistics(found: Found, row: Mapping[str, Any]) -> str:
    """What the SLOs limit, else mean TTFT and TPOT; and the capacity, where looked for."""
    names = list(found.summary["slos"]) or ["ttft.mean", "tpot.mean"]
    parts = []
    for name in names:
        metric, _, statistic = name.partition(".")
        value = row.get(f"{name.replace('.', '_')}_s")
        text = words.NONE if value is None else words.value(value, COMPARED[metric])
        parts.append(f"{COMPARED[metric].label} {statistic} {text}")
    if found.summary["capacity"]:
        parts.append(f"capacity {capacity(row)}")
    return ", ".join(parts)


def capacity(row: Mapping[str, Any]) -> str:
    """The interval the highest rate lies in."""
    low, high = row.get("capacity"), row.get("capacity_below")
    if not low:
        return f"below {number(high)}/s"
    return f"at least {number(low)}/s" if high is None else f"{number(low)} to {number(high)}/s"


def answer(found: Found) -> str:
    """One sentence: the best point, or why there is none."""
    total = len(found.rows)
    if not found.feasible:
        return f"None of {total:,} points is feasible."
    label = found.summary["objective"]["label"]
    if found.best is None:
        return f"None of {len(found.feasible):,} feasible points meets the SLOs; {_nearest(found)}"
    row = found.rows[found.best]
    text = (
        f"Best of {total:,} points: {settings(found, found.best)} "
        f"({label} {objective(found, row['objective'])}, {_gpus(row)})"
    )
    if found.slo_states[found.best] == UNDECIDED:
        text += "; whether it meets the SLOs is undecided"
        if found.certain is not None:
            certain = found.rows[found.certain]
            text += (
                f", the best that surely does is {settings(found, found.certain)} "
                f"({objective(found, certain['objective'])}, {_gpus(certain)})"
            )
    if found.like_best:
        others = len(found.like_best)
        text += f"; undecided against {others} other{'s' if others > 1 else ''}"
    return f"{text}."


def _gpus(row: Mapping[str, Any]) -> str:
    return f"{row['gpus']} GPU{'s' if row['gpus'] > 1 else ''}"


def _nearest(found: Found) -> str:
    """The point that misses the SLOs by least, and by how much."""
    slos = found.summary["slos"]

    def misses(i: int) -> dict[str, float]:
        row = found.rows[i]
        values = {n: row.get(f"{n.replace('.', '_')}_s") for n in slos}
        return {n: float("inf") if v is None else v / slos[n] - 1 for n, v in values.items()}

    nearest = min(found.feasible, key=lambda i: (max(misses(i).values()), i))
    name, over = max(misses(nearest).items(), key=lambda m: m[1])
    metric, _, statistic = name.partition(".")
    return (
        f"nearest is point {nearest} ({settings(found, nearest)}), whose "
        f"{COMPARED[metric].label} {statistic} is {words.percent(over)} over."
    )


def headline(found: Found) -> list[str]:
    """The sentences below the answer."""
    summary, rows = found.summary, found.rows
    left_out = len(rows) - len(found.feasible)
    lines = [
        f"{len(found.feasible):,} points simulated"
        + (f", {left_out:,} left out with a reason" if left_out else "")
        + f"; {len(found.front):,} on the Pareto front of {', '.join(found.front_columns)}.",
        f"Workload: {summary['workload']['source']}, {summary['workload']['requests']:,} requests "
        f"over {summary['workload']['duration_s']:,.1f} s"
        + (f", the first {words.percent(summary['warmup'])} not judged." if summary["warmup"]
           else "."),
        _trust(found),
    ]  # fmt: skip
    if summary["capacity"]:
        lines.append(
            f"Capacity: the highest rate that meets the SLOs, within "
            f"{words.percent(summary['capacity']['tolerance'])}, the first "
            f"{words.percent(summary['capacity']['warmup'])} of the requests not judged."
        )
    outside = [r["extrapolated"] for r in rows if r.get("extrapolated")]
    if outside:
        lines.append(
            f"Extrapolated: steps outside the fitted range in {len(outside):,} points, at most "
            f"{words.percent(max(outside))} of a point's"
            + ("." if found.best is None
               else f", {words.percent(rows[found.best]['extrapolated'])} of the best one's.")
        )  # fmt: skip
    for name in ("ignored", "notes"):
        texts = sorted({r[name] for r in rows if r.get(name)})
        lines += [f"{name.capitalize()}: {text}." for text in texts]
    return lines


def _trust(found: Found) -> str:
    if found.known is None:
        return "No scorecard of the base given (--error): how far to trust differences is unknown."
    error = found.objective_error
    label = found.summary["objective"]["label"]
    if error is None:
        return f"The known error of the base ({found.known.source}) says nothing of {label}."
    return (
        f"Known error of {label} at the base: {words.percent(error)} ({found.known.source}); "
        "smaller differences are undecided."
    )


def effect_rows(found: Found) -> list[tuple[str, ...]]:
    """One row an axis: what it does to the objective."""
    rows: list[tuple[str, ...]] = []
    labels = short(found.summary["axes"])
    for e in sorted(found.effects, key=lambda e: -(e.alone if e.alone is not None else e.share)):
        levels = ", ".join(f"{name}: {number(mean)}" for name, _, mean in e.levels)
        alone = words.NONE if e.alone is None else words.percent(e.alone)
        rows.append(
            (
                labels[e.axis],
                alone,
                words.percent(e.share),
                levels,
                UNDECIDED if e.undecided else "",
            )
        )
    return rows


def measured_rows(found: Found) -> list[tuple[str, ...]]:
    """The base deployment's known errors on what the sweep judges, beside its simulation."""
    base, known = found.summary["base"], found.known
    if known is None or not base or base["status"] != "ok":
        return []
    names = list(found.summary["slos"]) or ["ttft.mean", "tpot.mean", "e2e.mean"]
    rows: list[tuple[str, ...]] = []
    for name in names:
        metric, _, statistic = name.partition(".")
        value = base.get(f"{name.replace('.', '_')}_s")
        measured = known.measured.get(name)
        if value is None or metric not in COMPARED:
            continue
        error = value / measured - 1 if measured else None
        rows.append(
            (
                f"{COMPARED[metric].label} {statistic}",
                words.NONE if measured is None else words.value(measured, COMPARED[metric]),
                words.value(value, COMPARED[metric]),
                words.percent(error, sign=True),
                words.percent(known.by_statistic.get(name)),
            )
        )
    return rows


def reason_lines(found: Found) -> list[str]:
    """Why points were left out, each reason with its points."""
    lines = []
    for reason, points in found.reasons.items():
        which = [f"{p} ({settings(found, p)})" for p in points[:3]]
        more = f" and {len(points) - 3} more" if len(points) > 3 else ""
        lines.append(f"point{'s' * (len(points) > 1)} {', '.join(which)}{more}: {reason}")
    if len(lines) > REASONS:
        lines = [*lines[:REASONS], f"and {len(lines) - REASONS} more reasons, in results.parquet"]
    return lines
