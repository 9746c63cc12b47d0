"""Small pictures as SVG text: line charts, and bars in lanes on one clock."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#555555")
STAGE_COLORS = {"attention": "#0072b2", "a2f": "#e69f00", "ffn": "#009e73", "f2a": "#cc79a7"}
FONT = 'font-family="sans-serif" font-size="12"'
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 640, 340, 60, 34, 150, 46

Points = Sequence[tuple[float, float]]


def line_chart(
    title: str,
    x_label: str,
    y_label: str,
    series: Mapping[str, Points],
    *,
    log_x: bool = False,
    marks: Sequence[tuple[str, float, float]] = (),
) -> str:
    """Lines with their points, and ``marks``: rings with a name at x and y; y from 0."""
    xs = sorted({x for points in series.values() for x, _ in points})
    most = max(y for points in series.values() for _, y in points) * 1.05
    scale = math.log if log_x else float
    low, high = scale(xs[0]), scale(xs[-1])

    def at(x: float, y: float) -> tuple[float, float]:
        across = (scale(x) - low) / (high - low) * (WIDTH - LEFT - RIGHT)
        return LEFT + across, HEIGHT - BOTTOM - y / most * (HEIGHT - TOP - BOTTOM)

    parts = [_text(LEFT, 18, title, weight="bold")]
    for y in _ticks(most):
        _, at_y = at(xs[0], y)
        parts.append(_line(LEFT, at_y, WIDTH - RIGHT, at_y, "#dddddd"))
        parts.append(_text(LEFT - 6, at_y + 4, f"{y:g}", anchor="end"))
    for x in xs:
        at_x, _ = at(x, 0)
        parts.append(_text(at_x, HEIGHT - BOTTOM + 16, f"{x:g}", anchor="middle"))
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(_text(middle, HEIGHT - 8, x_label, anchor="middle"))
    parts.append(
        f'<text {FONT} text-anchor="middle" transform="translate(16 {HEIGHT / 2}) rotate(-90)">'
        f"{escape(y_label)}</text>"
    )
    for i, (name, points) in enumerate(series.items()):
        color = COLORS[i % len(COLORS)]
        places = [at(x, y) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline fill="none" stroke="{color}" stroke-width="2" points="{path}"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in places]
        beside = TOP + 8 + 18 * i
        parts.append(_line(WIDTH - RIGHT + 8, beside, WIDTH - RIGHT + 24, beside, color, 2))
        parts.append(_text(WIDTH - RIGHT + 28, beside + 4, name))
    for name, *place in marks:
        x, y = at(*place)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="7" fill="none" stroke="black"/>')
        parts.append(_text(x + 9, y - 8, name))
    return _svg(WIDTH, HEIGHT, parts)


def lanes_chart(title: str, lanes: Mapping[str, Sequence[tuple[float, float, str]]]) -> str:
    """Bars (begin and end in ms, stage) in a lane each, all on one clock."""
    width, row, left = 960, 22, 190
    begin = min(b for bars in lanes.values() for b, _, _ in bars)
    end = max(e for bars in lanes.values() for _, e, _ in bars)
    per_ms = (width - left - 12) / (end - begin)
    height = 62 + row * len(lanes)
    parts = [_text(12, 18, title, weight="bold")]
    for i, (name, bars) in enumerate(lanes.items()):
        y = 30 + row * i
        parts.append(_text(left - 8, y + 14, name, anchor="end"))
        for b, e, stage in bars:
            color = STAGE_COLORS.get(stage, "#999999")
            parts.append(
                f'<rect x="{left + (b - begin) * per_ms:.2f}" y="{y}" '
                f'width="{max((e - b) * per_ms, 0.3):.2f}" height="{row - 6}" fill="{color}"/>'
            )
    y = 30 + row * len(lanes) + 18
    for i, (stage, color) in enumerate(STAGE_COLORS.items()):
        parts.append(
            f'<rect x="{left + 90 * i}" y="{y - 10}" width="12" height="12" fill="{color}"/>'
        )
        parts.append(_text(left + 90 * i + 16, y, stage))
    parts.append(_text(width - 12, y, f"{end - begin:.1f} ms", anchor="end"))
    return _svg(width, height, parts)


def _ticks(most: float) -> list[float]:
    step = 10.0 ** math.floor(math.log10(most))
    step = next(s for s in (step / 5, step / 2, step, 2 * step) if most / s <= 8)
    return [i * step for i in range(int(most / step) + 1)]


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">\n'
        f'<rect width="{width}" height="{height}" fill="white"/>\n{body}\n</svg>\n'
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f'<text {FONT} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">'
        f"{escape(text)}</text>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, color: str, width: int = 1) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" '
        f'stroke-width="{width}"/>'
    )
