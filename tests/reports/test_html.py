"""The report is one file that shows the scorecard's numbers and trusts no bundle's text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fake_bundles import fake_bundle, fake_pair

from reports import words, write_all
from reports.html import embedded, html, strip, strip_limit
from traces.bundle import Bundle
from validation.bars import Bars
from validation.comparison import compared
from validation.scorecard import Scorecard, Statistic, build

HOSTILE = "</script><img src=x onerror=alert(1)>'\"&\u2028{{7*7}}"


@dataclass
class Page(HTMLParser):
    """The parts of a page that tests look at."""

    text: str
    scripts: list[tuple[dict[str, str | None], str]] = field(default_factory=list)
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    cells: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    words: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self._open = ""
        self._metric = self._row = ""
        self._cell: list[str] | None = None
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append((tag, given))
        self._open = tag
        if tag == "script":
            self.scripts.append((given, ""))
        self._metric = given.get("data-metric") or self._metric
        if tag == "tr":
            self._row = given.get("data-statistic") or ""
        if tag == "td" and self._row:
            self.cells.setdefault((self._metric, self._row), []).append("")

    def handle_data(self, data: str) -> None:
        if self._open == "script":
            given, text = self.scripts[-1]
            self.scripts[-1] = (given, text + data)
        elif self._open != "style":
            self.words += data
            if self._row and self.cells.get((self._metric, self._row)):
                self.cells[(self._metric, self._row)][-1] += data

    def handle_endtag(self, tag: str) -> None:
        self._open = ""


def render(bundles: list[Bundle], bars: dict[tuple[str, str], float] | None = None) -> Any:
    card = build(bundles[0], bundles[1], bundles[2:])
    from validation.bars import judge

    return card, Page(
        html(
            card, compared(*bundles[:2], bundles[2:]).views, judge(card, Bars(bars)) if bars else []
        )
    )


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scorecard, Page]:
    path = tmp_path_factory.mktemp("bundles")
    bundles = list(fake_pair(path))
    bundles += [fake_bundle(path / f"r{i}", seed=30 + i, warmups=4) for i in range(2)]
    return render(bundles, {("ttft", "mean"): 0.01, ("e2e", "p50"): 0.5})


def test_the_table_shows_the_scorecards_numbers(rendered: tuple[Scorecard, Page]) -> None:
    card, page = rendered
    rows = {(m, s) for m, errors in card.metrics.items() for s in errors.statistics}
    assert set(page.cells) == rows
    for (metric, name), cells in page.cells.items():
        errors = card.metrics[metric]
        shown = [c.replace(" ✓", "").strip() for c in cells[:7]]
        assert shown == list(words.cells(errors.statistics[name], errors.metric))


def test_the_verdict_stands_on_top(rendered: tuple[Scorecard, Page]) -> None:
    _, page = rendered
    head = page.words.split("Error is simulated")[0]
    assert "Failed: 1 of 2 bars exceeded, worst TTFT mean" in head
    assert "Hold-out: the operator profile was not fitted on this run." in head
    assert "1.2 % of 1,000 step_time predictions" in head
    assert "Ignored: LoRA." in head
    assert re.search(r"TTFT mean: [\d.]+ % high, ", head)
    assert "E2EL p50: " not in head  # that bar holds


def test_every_formula_hash_and_chart_is_there(rendered: tuple[Scorecard, Page]) -> None:
    card, page = rendered
    for errors in card.metrics.values():
        assert errors.metric.formula in page.words
    for side in ("measured", "simulated"):
        assert card.provenance[side]["hash"] in page.words
    charts = json.loads(next(t for a, t in page.scripts if a.get("id") == "charts"))
    ids = {a.get("id") for _, a in page.tags}
    assert {f"chart-{c['key']}" for c in charts} <= ids
    assert {"ttft", "tpot", "e2e", "queue", "itl", "step_time", "in_flight_over_time",
            "throughput_over_time", "batch_size_over_time", "kv_use_over_time",
            "by_percentile"} == {
        c["key"] for c in charts}  # fmt: skip
    for chart in charts[:-1]:
        roles = [line["role"] for line in chart["lines"]]
        assert roles == ["repeat", "repeat", "measured", "simulated"]


def test_nothing_is_loaded_from_elsewhere(rendered: tuple[Scorecard, Page]) -> None:
    _, page = rendered
    for tag, given in page.tags:
        for name in ("src", "href", "data", "action", "srcset", "poster"):
            target = given.get(name)
            assert target is None or target.startswith("#"), (tag, name, target)
        assert not any(name.startswith("on") for name in given)
        assert tag not in ("link", "iframe", "object", "img")
    assert "@import" not in page.text
    assert "url(" not in page.text.split("<style>")[1].split("</style>")[0]


def test_the_policy_names_exactly_the_scripts_of_the_page(
    rendered: tuple[Scorecard, Page],
) -> None:
    _, page = rendered
    policy = next(
        a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy
    assert "default-src 'none'" in policy
    run = [t for a, t in page.scripts if a.get("type") != "application/json"]
    hashes = [base64.b64encode(hashlib.sha256(t.encode()).digest()).decode() for t in run]
    assert re.findall(r"'sha256-([^']+)'", policy) == hashes
    assert len(hashes) == 2


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    measured = fake_bundle(
        tmp_path / "m", engine=HOSTILE, engine_version=HOSTILE, command=[HOSTILE],
        ignored=[HOSTILE], prefix=HOSTILE,
    )  # fmt: skip
    notes = {
        "operators": {"profile": HOSTILE, "fitted_on": [HOSTILE]},
        HOSTILE: {"steps": 5, "extrapolated": 1},
        "kv_capacity": HOSTILE,
    }
    folder = tmp_path / "<img src=y onerror=alert(2)>"
    simulated = fake_bundle(
        folder, seed=1, kind="simulated", notes=notes, ignored=[HOSTILE], prefix=HOSTILE,
        deployment={"clusters": [{"name": HOSTILE, "engine": {"num_gpu_blocks": 401}}]},
    )  # fmt: skip
    card, page = render([measured, simulated])
    assert HOSTILE in page.words
    assert "{{7*7}}" in page.words
    assert "img" not in {tag for tag, _ in page.tags}
    assert len(page.scripts) == 3
    write_all(card, compared(measured, simulated), tmp_path / "out")
    for file in ("report.md", "junit.xml"):
        assert "<img" not in (tmp_path / "out" / file).read_text().replace("\\<img", "")


def test_embedded_json_survives_and_holds_no_markup() -> None:
    text = embedded({"a": HOSTILE})
    assert json.loads(text) == {"a": HOSTILE}
    assert not set("<>&\u2028") & set(text)


def test_the_same_bundles_make_the_same_bytes(tmp_path: Path) -> None:
    bundles = fake_pair(tmp_path)
    pages = [html(build(*bundles), compared(*bundles).views, []) for _ in range(2)]
    assert pages[0] == pages[1]


def test_the_small_plot_keeps_to_its_width() -> None:
    beyond = Statistic(1.0, 4.0, 3.0, ci=(2.0, None), noise=0.01)
    drawn = strip(beyond, 0.5)
    assert drawn
    assert (drawn.at, drawn.high, drawn.beyond) == (98.0, 98.0, True)
    centre = strip(Statistic(1.0, 1.0, 0.0, ci=(-0.25, 0.25)), 0.5)
    assert centre
    assert (centre.at, centre.low, centre.high) == (50.0, 26.0, 74.0)
    assert strip(Statistic(0.0, 1.0, None), 0.5) is None
    assert strip_limit([]) == 0.05
