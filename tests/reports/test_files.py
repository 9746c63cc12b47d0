"""Scorecard file, Markdown, JUnit and console say the same as the scorecard."""

from __future__ import annotations

import io
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pyarrow as pa
import pytest
from fake_bundles import fake_bundle, fake_pair
from rich.console import Console

from reports import write_all
from reports.console import error_table
from reports.scorecard_file import read_scorecard, to_data, write_scorecard
from reports.tables import escape
from traces.bundle import Manifest, write_bundle
from traces.errors import TraceError
from validation.bars import Bars
from validation.comparison import compared
from validation.scorecard import Scorecard, build


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Scorecard:
    path = tmp_path_factory.mktemp("bundles")
    return build(*fake_pair(path), [fake_bundle(path / "r", seed=30, warmups=4)])


def test_the_file_has_the_designs_keys(card: Scorecard) -> None:
    data = to_data(card)
    assert list(data) == ["schema", "metrics", "coverage", "provenance"]
    assert data["schema"] == 1
    ttft = data["metrics"]["ttft"]
    assert {"mean", "p50", "p90", "p95", "p99", "ks", "wasserstein_s", "paired_mape"} <= set(ttft)
    assert {"measured", "simulated", "error", "ci", "noise"} <= set(ttft["mean"])
    assert "wasserstein_requests" in data["metrics"]["batch_size"]
    assert data["provenance"]["holdout"] is True


def test_written_and_read_back_it_is_the_same(card: Scorecard, tmp_path: Path) -> None:
    file = tmp_path / "scorecard.json"
    write_scorecard(card, file)
    again = read_scorecard(tmp_path)
    assert json.loads(json.dumps(to_data(again))) == json.loads(file.read_text())
    assert again.metrics["e2e"].statistics == card.metrics["e2e"].statistics


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema=2), "schema is 2, this version reads 1"),
        (lambda d: d.pop("coverage"), "coverage is missing"),
        (lambda d: d["metrics"].update(tftt={}), "unknown metric 'tftt'; did you mean 'ttft'"),
        (lambda d: d["metrics"]["ttft"]["mean"].pop("measured"), "metrics.ttft: 'measured'"),
        (lambda d: d["metrics"]["ttft"].update(mean=3), "metrics.ttft"),
    ],
)
def test_a_bad_file_is_one_clear_line(card, tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    data = json.loads(json.dumps(to_data(card)))
    change(data)
    file = tmp_path / "s.json"
    file.write_text(json.dumps(data))
    with pytest.raises(TraceError) as caught:
        read_scorecard(file)
    assert message in str(caught.value)
    assert str(file) in str(caught.value)


def test_no_json_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("{")
    with pytest.raises(TraceError, match="not JSON"):
        read_scorecard(tmp_path / "x")
    with pytest.raises(TraceError, match="No such file"):
        read_scorecard(tmp_path / "y")


def test_junit_has_a_case_a_bar(tmp_path: Path) -> None:
    bundles = fake_pair(tmp_path)
    bars = Bars({("ttft", "mean"): 0.001, ("e2e", "p50"): 0.9, ("transfer", "mean"): 0.1})
    judgements = write_all(build(*bundles), compared(*bundles), tmp_path / "out", bars)
    assert [j.passed for j in judgements] == [False, True, False]
    suite = ET.parse(tmp_path / "out" / "junit.xml").getroot()[0]
    assert suite.attrib["tests"] == "3"
    assert suite.attrib["failures"] == "2"
    cases = {
        (c.attrib["classname"], c.attrib["name"]): c.find("failure") is not None
        for c in suite.iter("testcase")
    }
    assert cases == {
        ("frontier.ttft", "mean"): True,
        ("frontier.e2e", "p50"): False,
        ("frontier.transfer", "mean"): True,
    }


def test_without_bars_there_are_all_four_files_and_no_case(tmp_path: Path) -> None:
    bundles = fake_pair(tmp_path)
    assert write_all(build(*bundles), compared(*bundles), tmp_path / "deep" / "out") == []
    names = {f.name for f in (tmp_path / "deep" / "out").iterdir()}
    assert names == {"scorecard.json", "report.html", "report.md", "junit.xml"}
    assert ET.parse(tmp_path / "deep" / "out" / "junit.xml").getroot().attrib["tests"] == "0"


def test_markdown_is_a_table_of_equal_rows(tmp_path: Path) -> None:
    bundles = fake_pair(tmp_path)
    write_all(
        build(*bundles), compared(*bundles), tmp_path / "out", Bars({("ttft", "mean"): 0.001})
    )
    text = (tmp_path / "out" / "report.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1
    assert text.startswith("### simulated against measured")
    assert "Bars exceeded:\n\n- TTFT mean: " in text
    assert escape("a|b\n<c>") == "a\\|b \\<c\\>"


def test_the_console_table_has_a_row_a_statistic(card: Scorecard) -> None:
    table = error_table(card)
    assert table.row_count == 4 * 8 + 1
    out = io.StringIO()
    Console(file=out, width=140).print(table)
    assert "TTFT" in out.getvalue()
    assert "…" not in out.getvalue()


def test_three_requests_seen_by_a_client_make_a_report_too(tmp_path: Path) -> None:
    bundles = []
    for name, late in (("m", 0.0), ("s", 0.5)):
        requests = {
            "request_id": ["a", "b", "c"], "arrival_s": [0.0, 1.0, 2.0],
            "prompt_tokens": [5, 5, 5], "output_tokens": [1, 1, 1],
            "first_token_s": [0.5 + late, 1.5, 2.5], "finished_s": [0.5 + late, 1.5, 2.5],
        }  # fmt: skip
        manifest = Manifest(kind="measured", vantage="client")
        bundles.append(write_bundle(tmp_path / name, manifest, {"requests": pa.table(requests)}))
    card = build(*bundles)
    write_all(card, compared(*bundles), tmp_path / "out")
    assert list(card.metrics) == ["ttft", "e2e", "throughput"]
    assert card.coverage["metrics_missing"]["tpot"] == "recorded in neither"
    assert card.metrics["ttft"].statistics["mean"].error == pytest.approx(1 / 3)
    assert card.metrics["ttft"].statistics["mean"].ci is None
    html = (tmp_path / "out" / "report.html").read_text()
    assert "none: fewer than 20 values" in html
    assert "A/A: two captures of the real system, no simulation." in html
