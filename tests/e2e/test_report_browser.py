"""The report in a real browser: charts drawn, no console message, no request to any host."""

from __future__ import annotations

import json
import re
import subprocess
from html import unescape
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_world
from chrome import BROWSER, FLAGS, Chrome
from click.testing import CliRunner
from fake_bundles import fake_bundle, fake_pair
from sample_reports import KINDS, shipped

from replay.cli import main
from reports import ladder, words, write_all
from reports.scorecard_file import read_scorecard
from reports.whatif import report_whatif
from validation.comparison import compared
from validation.scorecard import build

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium here")

LIKE_OTHERS = ("dense", "moe", "dp-ep")  # in the long tests: their reports have the same sections

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>"


def test_the_report_draws_itself_and_asks_nobody(tmp_path: Path) -> None:
    measured, simulated = fake_pair(tmp_path, ignored=[HOSTILE])
    repeat = fake_bundle(tmp_path / "r", seed=5, warmups=4)
    card = build(measured, simulated, [repeat])
    write_all(card, compared(measured, simulated, [repeat]), tmp_path / "out")
    done, asked = browse(tmp_path / "out" / "report.html", tmp_path)
    assert "CONSOLE" not in done.stderr, [x for x in done.stderr.splitlines() if "CONSOLE" in x]
    dom = done.stdout
    drawn = re.findall(r'<div class="chart js-plotly-plot" id="chart-(\w+)"', dom)
    assert len(drawn) == 11, drawn
    assert "owned" not in re.findall(r"<title>(.*?)</title>", dom, re.DOTALL)[0]
    ttft = card.metrics["ttft"]
    for cell in words.cells(ttft.statistics["p99"], ttft.metric):
        assert cell in unescape(dom)
    assert not asked


def test_a_sweep_s_report_draws_itself_and_asks_nobody(tmp_path: Path) -> None:
    rows = [
        {"point": i, "status": "ok", "reason": None, "replicas": i % 3, "name": HOSTILE,
         "gpus": 1 + i % 3, "objective": 10.0 - i, "meets_slos": True, "e2e_mean_s": 1.0 / (i + 1)}
        for i in range(9)
    ]  # fmt: skip
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    pq.write_table(pa.table(columns), tmp_path / "results.parquet")
    objective = {"name": "gpus", "label": "GPUs", "unit": "", "more_is_better": False}
    workload = {"source": HOSTILE, "requests": 10, "duration_s": 1.0}
    summary = {"axes": ["replicas", "name"], "slos": {}, "objective": objective, "prices": {},
               "workload": workload, "warmup": 0, "capacity": None, "base": None}  # fmt: skip
    (tmp_path / "sweep.json").write_text(json.dumps(summary))
    report_whatif(tmp_path, None)
    done, asked = browse(tmp_path / "report.html", tmp_path)
    assert "CONSOLE" not in done.stderr, [x for x in done.stderr.splitlines() if "CONSOLE" in x]
    drawn = re.findall(r'<div class="chart js-plotly-plot" id="chart-([\w-]+)"', done.stdout)
    assert drawn == ["front", "axis-replicas"]
    assert not asked


def test_the_test_above_would_notice(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<img src='http://127.0.0.1:9/x.png'><script>console.error('y')</script>")
    done, asked = browse(page, tmp_path)
    assert "CONSOLE" in done.stderr
    assert asked == {"http://127.0.0.1:9/x.png"}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that a report can hold: repeats, a ladder, bars that hold and bars that do not."""
    home = tmp_path_factory.mktemp("report")
    work, fine = small_world.workload(home / "w"), small_world.profile(home / "p")
    slow = small_world.profile(home / "q", slower=1.08)
    measured = small_world.run(home, "measured", work, fine)
    simulated = small_world.run(home, "simulated", work, slow)
    again = small_world.profile(home / "again", slower=1.01)
    repeat = small_world.run(home, "repeat", work, again)
    (home / "bars.yaml").write_text("ttft: {mean: 0.001}\ntpot: {mean: 0.5}\n")
    done = CliRunner().invoke(
        main,
        ["validate", str(measured), str(simulated), "--out", str(home / "out"), "--ladder",
         "--repeats", str(repeat), "--bars", str(home / "bars.yaml")],
    )  # fmt: skip
    assert done.exit_code == 1, done.output  # a bar is exceeded
    return home / "out"


SECTIONS = [
    "verdict", "errors", "attribution", "distributions", "over-time", "by-percentile",
    "coverage", "provenance", "method",
]  # fmt: skip


def test_every_section_can_be_reached_and_says_what_the_scorecard_says(
    report: Path, tmp_path: Path
) -> None:
    assert read_through(report, tmp_path) == SECTIONS


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[pytest.mark.long] * (k in LIKE_OTHERS)) for k in shipped()]
)
def test_so_it_does_on_the_captures_of_each_kind(kind: str, tmp_path: Path) -> None:
    report = KINDS[kind][1](tmp_path)
    card = read_scorecard(report)
    assert {"ttft", "tpot", "e2e"} & set(card.metrics)
    assert card.provenance["repeats"]
    sections = read_through(report, tmp_path / "browser")
    assert sections == [s for s in SECTIONS if card.ladder or s != "attribution"]


def read_through(report: Path, scratch: Path) -> list[str]:
    """Click through a report, check its numbers and that it asks nobody; its sections."""
    card = read_scorecard(report)
    with Chrome(scratch) as chrome:
        chrome.open(report / "report.html")
        charts = chrome.evaluate("document.querySelectorAll('.chart').length")
        chrome.wait(f"document.querySelectorAll('.js-plotly-plot').length === {charts}", "charts")
        assert charts > 5
        sections = click_through(chrome)
        for metric, errors in card.metrics.items():
            for name, statistic in errors.statistics.items():
                shown = chrome.evaluate(
                    f'[...document.querySelectorAll(\'tbody[data-metric="{metric}"] '
                    f"tr[data-statistic={name}] td')].map(c => c.textContent)"
                )
                cells = [text.replace(" ✓", "").strip() for text in shown[:7]]
                assert cells == list(words.cells(statistic, errors.metric)), (metric, name)
        if card.ladder:
            check_ladder(chrome, card.ladder, [list(row) for row in ladder.rows(card)])
        page = (report / "report.html").as_uri()
        asked = [u.split("#")[0] for u in chrome.requests if not u.startswith("data:")]
        assert set(asked) == {page}
        assert chrome.complaints == []
    return sections


def click_through(chrome: Chrome) -> list[str]:
    """Click every link of the navigation and every fold; returns the sections reached."""
    folds = chrome.evaluate("document.querySelectorAll('details').length")
    for i in range(folds):
        chrome.click("details > summary", i)
        chrome.wait(f"document.querySelectorAll('details')[{i}].open", f"fold {i}")
    reached = []
    for i in range(chrome.evaluate("document.querySelectorAll('nav a').length")):
        chrome.click("nav a", i)
        name = chrome.evaluate(f"document.querySelectorAll('nav a')[{i}].hash.slice(1)")
        chrome.wait(f"location.hash === '#{name}'", f"#{name}")
        place = f"document.getElementById('{name}').getBoundingClientRect()"
        chrome.wait(f"{place}.top < innerHeight && {place}.bottom > 0", f"#{name} in view")
        reached.append(name)
    return reached


def check_ladder(chrome: Chrome, found: dict, rows: list[list[str]]) -> None:  # type: ignore[type-arg]
    """The table and the waterfalls show the ladder's terms."""
    shown = chrome.evaluate(
        "[...document.querySelectorAll('table.ladder tbody tr')]"
        ".map(r => [...r.children].map(c => c.textContent))"
    )
    assert shown == rows
    for metric in ("ttft", "tpot", "e2e"):
        terms = [t[metric] * 1e3 for t in found["terms"]]
        total = (found["rungs"][-1][metric] - found["rungs"][0][metric]) * 1e3
        chart = f"document.getElementById('chart-waterfall_{metric}')"
        assert chrome.evaluate(f"[...{chart}.data[0].x]") == pytest.approx([*terms, total])
        bars = f"#chart-waterfall_{metric} .bars .point"
        assert chrome.evaluate(f"document.querySelectorAll('{bars}').length") == len(terms) + 1
        texts = chrome.evaluate(
            f"[...document.querySelectorAll('{bars} text')].map(t => t.textContent)"
        )
        assert texts[-1].startswith("+" if total > 0 else "\N{MINUS SIGN}")
        assert float(texts[-1][1:]) == pytest.approx(abs(total), rel=0.01)
        layer = f"document.querySelector('#chart-waterfall_{metric} .hoverlayer')"

        def labelled(bar: str = f"{bars} path", last: int = len(terms), layer: str = layer) -> bool:
            chrome.hover(bar, last)  # again while the page still scrolls
            return "Error" in str(chrome.evaluate(f"{layer}.textContent"))

        chrome.wait(labelled, "the label of the last bar")


def test_a_phone_has_no_sideways_scroll(report: Path, tmp_path: Path) -> None:
    with Chrome(tmp_path, width=390, height=844) as chrome:
        chrome.open(report / "report.html")
        chrome.wait("document.querySelectorAll('.js-plotly-plot').length > 10", "the charts")
        assert chrome.evaluate("document.documentElement.scrollWidth") <= 390
        assert chrome.complaints == []


def test_paper_shows_everything_and_cuts_nothing_off(report: Path, tmp_path: Path) -> None:
    """A4 between its margins is 718 pixels wide; folds are open, charts drawn to fit."""
    with Chrome(tmp_path, width=1280, height=900) as chrome:
        chrome.open(report / "report.html")
        chrome.wait("document.querySelectorAll('.js-plotly-plot').length > 10", "the charts")
        chrome.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        chrome.send("Emulation.setEmulatedMedia", media="print")
        ends = "[...document.querySelectorAll('main *, main svg')]"
        ends += ".map(e => e.getBoundingClientRect().right)"
        left = "document.querySelector('main').getBoundingClientRect().left"
        chrome.wait(f"Math.max(...{ends}) - {left} <= 718", "all to fit")
        assert chrome.evaluate("document.querySelectorAll('details:not([open])').length") == 0
        chrome.evaluate("window.dispatchEvent(new Event('afterprint'))")
        assert chrome.evaluate("document.querySelectorAll('details:not([open])').length") > 0
        assert chrome.complaints == []


def test_the_driver_notices_complaints_and_requests(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<img src='http://127.0.0.1:9/x.png'><script>console.error('y'); x.y</script>")
    with Chrome(tmp_path) as chrome:
        chrome.open(page)
        chrome.wait(lambda: len(chrome.complaints) >= 2, "two complaints")
        assert "http://127.0.0.1:9/x.png" in chrome.requests


def browse(page: Path, scratch: Path) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """Open a page: the browser's output, and what the page asked any host for."""
    log = scratch / "net.json"
    done = subprocess.run(
        [
            str(BROWSER), *FLAGS, "--virtual-time-budget=20000",
            f"--user-data-dir={scratch / 'profile'}", "--enable-logging=stderr",
            f"--log-net-log={log}", "--dump-dom", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    parameters = [e.get("params", {}) for e in json.loads(log.read_text())["events"]]
    # The browser's own errands (time, update) have no origin.
    urls = {p["url"] for p in parameters if p.get("initiator", "not an origin") != "not an origin"}
    return done, {u for u in urls if not u.startswith(("file:", "data:", "chrome"))}
