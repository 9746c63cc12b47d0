"""A sweep's ``report.html``: one file that needs nothing else, its charts to be looked into."""

from __future__ import annotations

from typing import Any

from plotly.offline import get_plotlyjs

from reports import whatif_words
from reports.html import TEMPLATES, embedded, script_hash, template
from validation.whatif import FAILS, Effect, Found, objective_column

POINTS = 5000  # drawn at most beside the front: a browser's patience


def html(found: Found) -> str:
    """The report as one HTML page."""
    labels = whatif_words.short(found.summary["axes"])
    effects = [_effect(e, labels[e.axis]) for e in found.effects]
    charts = [c for c in (_front(found), *effects) if c["lines"]]
    scripts = {"plotly": get_plotlyjs(), "whatif": (TEMPLATES / "whatif.js").read_text()}
    return template("whatif.html.j2").render(
        found=found,
        words=whatif_words,
        answer=whatif_words.answer(found),
        lines=whatif_words.headline(found),
        points=whatif_words.point_rows(found, whatif_words.shown(found)),
        front=whatif_words.point_rows(found, found.front),
        effects=whatif_words.effect_rows(found),
        measured=whatif_words.measured_rows(found),
        reasons=whatif_words.reason_lines(found),
        charts=charts,
        data=embedded(charts),
        scripts=scripts,
        style=(TEMPLATES / "report.css").read_text(),
        hashes=[script_hash(text) for text in scripts.values()],
    )


def _front(found: Found) -> dict[str, Any]:
    """Every point by the first two columns of the front, its settings to hover over."""
    columns = found.front_columns
    more = found.summary["objective"]["more_is_better"]
    x, y = columns[0], columns[1] if len(columns) > 1 else columns[0]
    kinds: dict[str, list[int]] = {"front": found.front, "meets": [], "fails": []}
    for i in found.feasible[:POINTS]:
        if i not in found.front:
            kinds["fails" if found.slo_states[i] == FAILS else "meets"].append(i)
    known = {k: [i for i in p if None not in (found.rows[i].get(x), found.rows[i].get(y))]
             for k, p in kinds.items()}  # fmt: skip
    lines = [
        {
            "role": kind,
            "x": [found.rows[i][x] for i in points],
            "y": [found.rows[i][y] for i in points],
            "text": [_hover(found, i) for i in points],
        }
        for kind, points in known.items()
        if points
    ]
    better = "more is better" if y == objective_column(found.summary) and more else "less is better"
    return {
        "key": "front", "kind": "front", "title": "Pareto front", "x": x, "y": y,
        "note": f"of {', '.join(columns)}; drawn: {y} ({better}) against {x}", "lines": lines,
        "summary": f"{len(found.front)} of {len(found.feasible)} points are on the front",
    }  # fmt: skip


def _hover(found: Found, i: int) -> str:
    row = found.rows[i]
    parts = whatif_words.settings(found, i).split(", ")
    return "<br>".join([f"point {row['point']}", *parts, whatif_words.statistics(found, row)])


def _effect(effect: Effect, label: str) -> dict[str, Any]:
    note = "mean of the objective by value"
    if effect.undecided:
        note += "; differences below the known error"
    return {
        "key": f"axis-{effect.axis}", "kind": "axis",
        "title": label, "x": "", "y": "", "note": note,
        "lines": [
            {"role": "axis", "x": [name for name, _, _ in effect.levels],
             "y": [mean for _, _, mean in effect.levels],
             "text": [f"{n} points" for _, n, _ in effect.levels]}
        ] if effect.levels else [],
        "summary": ", ".join(f"{name}: {mean:.4g}" for name, _, mean in effect.levels),
    }  # fmt: skip
