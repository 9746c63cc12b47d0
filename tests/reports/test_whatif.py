"""A sweep's reports: the same facts in each, nothing that a browser would run or fetch."""

from __future__ import annotations

import json
from html import unescape
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reports.whatif import report_whatif
from reports.whatif_words import answer, short
from traces.errors import TraceError
from validation.whatif import KnownError

HOSTILE = "</script><script>alert(1)</script>"


def sweep_folder(folder: Path, **changes: Any) -> Path:
    """A finished sweep of four points, one of them infeasible."""
    folder.mkdir()
    rows = [
        {"point": i, "status": "ok", "reason": None, "clusters[a].replicas": i + 1, "gpus": i + 1,
         "cost_per_hour": 2.0 * (i + 1), "meets_slos": i > 0, "objective": 2.0 * (i + 1),
         "ttft_p99_s": 1.2 - 0.4 * i, "extrapolated": 0.25 * i, "ignored": HOSTILE}
        for i in range(3)
    ]  # fmt: skip
    rows.append({"point": 3, "status": "infeasible", "reason": HOSTILE, "clusters[a].replicas": 9})
    names = list(rows[0])
    pq.write_table(
        pa.table({n: [r.get(n) for r in rows] for n in names}), folder / "results.parquet"
    )
    base = {"status": "ok", "ttft_p99_s": 1.2}
    summary = {
        "schema": 1, "axes": ["clusters[a].replicas"], "fixed": {}, "slos": {"ttft.p99": 1.0},
        "objective": {"name": "cost_per_hour", "label": "cost per hour", "unit": "",
                      "more_is_better": False},
        "workload": {"source": HOSTILE, "requests": 1000, "duration_s": 60.0},
        "constraints": {}, "prices": {"x": 2.0}, "warmup": 0.1, "capacity": None, "base": base,
    }  # fmt: skip
    (folder / "sweep.json").write_text(json.dumps(summary | changes))
    return folder


def test_every_report_says_the_same(tmp_path: Path) -> None:
    folder = sweep_folder(tmp_path / "s")
    known = KnownError("card.json", {"ttft.p99": 0.1}, {"ttft.p99": 1.1})
    found = report_whatif(folder, known)
    said = answer(found)
    assert said == "Best of 4 points: a.replicas=2 (cost per hour 4, 2 GPUs)."
    page, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    for fact in (said, "infeasible: ", "the first 10.0 % not judged", "9.1 %"):
        assert fact in unescape(page)
        assert fact in text.replace("\\", "")
    first = page
    report_whatif(folder, known)
    assert (folder / "report.html").read_text() == first


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    report_whatif(sweep_folder(tmp_path / "s"), None)
    page = (tmp_path / "s" / "report.html").read_text()
    assert HOSTILE not in page
    assert HOSTILE in unescape(page)
    assert "default-src 'none'" in page


def test_when_nothing_meets_the_slos_the_nearest_is_named(tmp_path: Path) -> None:
    folder = sweep_folder(tmp_path / "s", slos={"ttft.p99": 0.1})
    table = pq.read_table(folder / "results.parquet").to_pydict()
    table["meets_slos"] = [False, False, False, None]
    pq.write_table(pa.table(table), folder / "results.parquet")
    found = report_whatif(folder, None)
    assert answer(found) == (
        "None of 3 feasible points meets the SLOs; nearest is point 2 (a.replicas=3), whose TTFT "
        "p99 is 300 % over."
    )


def test_a_folder_without_a_sweep(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r": no finished sweep: "):
        report_whatif(tmp_path, None)


def test_labels_are_as_short_as_they_can_be_told_apart() -> None:
    axes = [
        "clusters[p].replicas",
        "clusters[d].replicas",
        "links[0].latency_us",
        "engine.a.x",
        "x",
    ]
    assert list(short(axes).values()) == [
        "p.replicas", "d.replicas", "latency_us", "engine.a.x", "x",
    ]  # fmt: skip
