"""The report in a real browser: charts drawn, no console message, no request to any host."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_bundles import fake_bundle, fake_pair

from reports import words, write_all
from reports.whatif import report_whatif
from validation.scorecard import build

BROWSER = next(
    (b for b in ("chromium", "chromium-browser", "google-chrome") if shutil.which(b)), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium here")

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>"


def test_the_report_draws_itself_and_asks_nobody(tmp_path: Path) -> None:
    measured, simulated = fake_pair(tmp_path, ignored=[HOSTILE])
    repeat = fake_bundle(tmp_path / "r", seed=5, warmups=4)
    card = build(measured, simulated, [repeat])
    write_all(card, [measured, simulated, repeat], tmp_path / "out")
    done, asked = browse(tmp_path / "out" / "report.html", tmp_path)
    assert "CONSOLE" not in done.stderr, [x for x in done.stderr.splitlines() if "CONSOLE" in x]
    dom = done.stdout
    drawn = re.findall(r'<div class="chart js-plotly-plot" id="chart-(\w+)"', dom)
    assert len(drawn) == 10, drawn
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


def browse(page: Path, scratch: Path) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """Open a page: the browser's output, and what the page asked any host for."""
    log = scratch / "net.json"
    done = subprocess.run(
        [
            str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--virtual-time-budget=20000", "--disable-background-networking",
            f"--user-data-dir={scratch / 'profile'}", "--enable-logging=stderr",
            f"--log-net-log={log}", "--dump-dom", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    parameters = [e.get("params", {}) for e in json.loads(log.read_text())["events"]]
    # The browser's own errands (time, update) have no origin.
    urls = {p["url"] for p in parameters if p.get("initiator", "not an origin") != "not an origin"}
    return done, {u for u in urls if not u.startswith(("file:", "data:", "chrome"))}
