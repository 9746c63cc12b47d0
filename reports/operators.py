"""Operator models told: scores as JSON and table; families, ranges, errors to expect; plots."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.operators.library import Library
from simulator.operators.model import FittedOperator
from traces.errors import ConfigError
from validation.operators import Score

Floats = npt.NDArray[np.float64]

PLOTS = "operators.html"
IDENTITY = ("device", "engine", "engine_version", "backend", "dtype", "timing", "layer")


def write_scores(scores: Mapping[str, Score], out: Path) -> str:
    """Write ``{family: {n, mape, ...}}``, fractions; returns the same as a table, in percent.

    Where all rows were refused there is no error: null.
    """
    plain = {
        name: {k: None if np.isnan(v) else v for k, v in asdict(score).items()}
        for name, score in scores.items()
    }
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(plain, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror}") from None
    lines: list[tuple[str, ...]] = [
        ("family", "n", "MAPE", "p50", "p95", "within 6", "within 10", "extrapolated", "refused")
    ]
    for name, s in scores.items():
        shares = (s.mape, s.p50, s.p95, s.within_6, s.within_10, s.extrapolated)
        percent = ("-" if np.isnan(x) else f"{100 * x:.1f} %" for x in shares)
        lines.append((name, f"{s.n:,}", *percent, f"{s.refused:,}"))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    )


def operators_table(library: Library) -> str:
    """Each fitted operator: key, rows, error to expect on a line never measured, ranges."""
    lines = []
    for operator in library.operators:
        key = " ".join(operator.key[n] for n in IDENTITY if operator.key.get(n))
        lines.append(f"{operator.family}  {key}  {operator.rows} rows")
        lines.append(f"  ranges  {_ranges(operator)}")
        lines.append(f"  errors  {_errors(operator)}")
    lines += [f"left out, too few rows: {name}" for name in library.left_out]
    return "\n".join(lines)


def _ranges(operator: FittedOperator) -> str:
    numbers = [
        f"{name} {low:g}"
        if low == operator.highs[name]
        else f"{name} {low:g}..{operator.highs[name]:g}"
        for name, low in operator.lows.items()
    ]
    names = [
        f"{name} {', '.join(v or '-' for v in known)}" for name, known in operator.names.items()
    ]
    return "; ".join([*numbers, *names])


def _errors(operator: FittedOperator) -> str:
    """Mean error where a line along each axis is hidden: between its points, and past the end."""
    shown = [
        f"{c.axis.name} {100 * np.expm1(c.error['both']):.1f} % "
        f"(past the end {100 * np.expm1(c.error['one']):.1f} %)"
        for c in operator.corrections
    ]
    return "hidden lines of " + ", ".join(shown) if shown else "no grid lines to hide"


def hidden_points(operator: FittedOperator) -> tuple[Floats, Floats]:
    """Measured and predicted seconds of points that were hidden while the models were judged."""
    point = [c.hidden for c in operator.corrections]
    error = [c.hidden_error for c in operator.corrections]
    if not point:
        return np.empty(0), np.empty(0)
    measured = operator.seconds[np.concatenate(point)]
    return measured, measured * np.exp(np.concatenate(error))


def write_plots(library: Library, out: Path) -> Path:
    """Write ``operators.html``, self-contained: prediction against measurement, by family."""
    import plotly.io as pio
    from jinja2 import Environment

    figures = [
        (name, [o for o in library.operators if o.family == name])
        for name in sorted({o.family for o in library.operators})
    ]
    drawn = [
        (name, pio.to_html(_figure(name, own), include_plotlyjs=not i, full_html=False))
        for i, (name, own) in enumerate(figures)
    ]
    page = Environment(autoescape=True).from_string(_PAGE)
    out.mkdir(parents=True, exist_ok=True)
    file = out / PLOTS
    file.write_text(page.render(figures=drawn, table=operators_table(library)), encoding="utf-8")
    return file


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Operator models</title>
<style>body{font:15px system-ui;margin:2em;max-width:70em}pre{overflow:auto}</style></head>
<body><h1>Operator models</h1>
<p>Each point is a measured kernel on a grid line that was hidden from the model that predicts
it. The band is 10 % either way.</p>
{% for name, figure in figures %}<h2>{{ name }}</h2>{{ figure | safe }}{% endfor %}
<h2>Ranges and errors</h2><pre>{{ table }}</pre></body></html>
"""


def _figure(name: str, operators: list[FittedOperator]) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure()
    ends = []
    for operator in operators:
        measured, predicted = hidden_points(operator)
        if not len(measured):
            continue
        ends += [measured.min(), measured.max()]
        label = " ".join(
            operator.key[n] for n in ("backend", "dtype", "layer") if operator.key.get(n)
        )
        figure.add_scattergl(
            x=measured * 1e6, y=predicted * 1e6, mode="markers", name=label, marker={"size": 4},
            text=[f"{100 * (p / m - 1):+.1f} %" for p, m in zip(predicted, measured, strict=True)],
        )  # fmt: skip
    if ends:
        line = np.array([min(ends), max(ends)]) * 1e6
        for factor, dash in ((1.0, "solid"), (1.1, "dot"), (0.9, "dot")):
            figure.add_scatter(
                x=line, y=line * factor, mode="lines", showlegend=False, hoverinfo="skip",
                line={"color": "grey", "width": 1, "dash": dash},
            )  # fmt: skip
    figure.update_xaxes(type="log", title="measured, us")
    figure.update_yaxes(type="log", title="predicted while hidden, us")
    figure.update_layout(height=520, title=name, template="plotly_white")
    return figure
