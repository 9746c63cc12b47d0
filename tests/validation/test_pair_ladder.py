"""The ladder of a prefill/decode pair puts the blame where a fault was seeded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from small_world import profile, run_pair, workload

from reports.scorecard_file import read_scorecard
from traces.bundle import read_bundle, write_table
from validation.ladder import LADDER_METRICS

TINY_S = 1e-9
FULL = {"num_gpu_blocks": 45}  # blocks of decode: transfers wait for room

Ladder = dict[str, Any]


@pytest.fixture
def climb(tmp_path: Path, frontier: Callable[..., Result]) -> Callable[..., Ladder]:
    def climb(measured: Path, simulated: Path, operators: Path) -> Ladder:
        done = frontier("validate", measured, simulated, "--ladder", "--operators", operators,
                        "--out", tmp_path / "report")  # fmt: skip
        assert done.exit_code == 0, done.output
        assert "Handover" in (tmp_path / "report" / "report.html").read_text()
        ladder: Ladder = read_scorecard(tmp_path / "report").ladder
        for metric in LADDER_METRICS:
            found = terms(ladder, metric)
            first, last = ladder["rungs"][0][metric], ladder["rungs"][-1][metric]
            assert sum(found.values()) == pytest.approx(last - first, abs=TINY_S)
        return ladder

    return climb


def terms(ladder: Ladder, metric: str) -> dict[str, float]:
    return {t["name"]: t[metric] for t in ladder["terms"]}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return workload(tmp_path_factory.mktemp("work") / "workload")


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"engine": {"async_scheduling": True}},
        {"decode": FULL},
        {"link": {"transfer": "push"}, "proxy_us": 0},
        {"replicas": (2, 3), "router": "least_loaded"},
    ],
    ids=["pull", "async", "full decode side", "push", "replicas"],
)
def test_without_a_fault_every_rung_is_the_measured_run(
    work: Path, tmp_path: Path, climb: Callable[..., Ladder], layout: dict[str, Any]
) -> None:
    fine = profile(tmp_path / "p")
    paths = [run_pair(tmp_path, name, work, fine, **layout) for name in ("m", "s")]
    ladder = climb(*paths, fine)
    for metric in LADDER_METRICS:
        found = terms(ladder, metric)
        if "engine" in layout:  # asynchronous: host time of a last batch is no part of its own
            found["operators"] += found.pop("host_overhead") + found.pop("scheduling")
        if "link" in layout:  # pushed: decode has a request before prefill's front end is done
            found["arrivals"] += found.pop("scheduling")
        assert max(abs(v) for v in found.values()) < TINY_S, str(found)
    assert ladder["schedule"]["share"] == 1.0, ladder["schedule"]
    if "engine" not in layout:
        assert ladder["steps"]["kinds"]["all"]["mape"] < 1e-9
        assert ladder["steps"]["effect"]["ttft"] == pytest.approx(0, abs=TINY_S)


@pytest.mark.parametrize(
    ("changes", "options", "metric", "blamed"),
    [
        ({"slower": 1.1}, {}, "tpot", "operators"),
        ({"host": 0.0}, {}, "tpot", "host_overhead"),
        ({}, {"rate_scale": 1.2}, "ttft", "arrivals"),
        ({}, {"link": {"bandwidth_gb_s": 0.5}}, "ttft", "handover"),
        ({}, {"proxy_us": 9000}, "ttft", "handover"),
        ({}, {"decode": FULL}, "e2e", "kv_capacity"),
        ({}, {"decode": {"max_num_seqs": 3}}, "e2e", "settings"),
    ],
    ids=["slow operators", "no host", "arrivals", "slow link", "slow proxy", "blocks", "seats"],
)
def test_a_seeded_fault_is_the_largest_term(
    work: Path,
    tmp_path: Path,
    climb: Callable[..., Ladder],
    changes: dict[str, Any],
    options: dict[str, Any],
    metric: str,
    blamed: str,
) -> None:
    measured = run_pair(tmp_path, "m", work, profile(tmp_path / "p"))
    faulty = profile(tmp_path / "q", **changes)
    ladder = climb(measured, run_pair(tmp_path, "s", work, faulty, **options), faulty)
    assert ladder["largest"][metric] == blamed, ladder["terms"]
    assert abs(terms(ladder, metric)["scheduling"]) < TINY_S
    assert abs(terms(ladder, metric)["rest"]) < TINY_S


def test_what_cannot_be_climbed_is_refused(
    work: Path, tmp_path: Path, frontier: Callable[..., Result]
) -> None:
    fine = profile(tmp_path / "p")
    measured, simulated = (run_pair(tmp_path, name, work, fine) for name in ("m", "s"))
    requests = read_bundle(measured).requests.drop_columns(["decode_queued_s"])
    write_table(measured, "requests", requests)
    done = frontier("validate", measured, simulated, "--ladder", "--operators", fine,
                    "--out", tmp_path / "report")  # fmt: skip
    assert done.exit_code == 2
    assert "requests without decode_queued_s: --ladder needs it" in done.output
