"""Others' real tables: whole imports hold against physics; skipped where they are not at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from replay.import_kernels import import_kernels
from replay.kernel_rates import rates
from traces.kernels.base import Selection
from traces.schema import KERNELS

SHARED = Path(__file__).parents[3] / "shared" / "data"
pytestmark = [
    pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared beside the project"),
    pytest.mark.slow,
]

PLACES = {
    "rtx-vllm0.19": "kernels/rtx-vllm0.19",
    "frontier": "kernels/h800-a800-frontier",
    "network": "kernels/network-vidur",
    "nccl-tests": "serving/h200-deepseek-r1-tp8-sglang-steps",
}


class Imported(dict[str, Path]):
    """Profiles by name, each imported when it is first asked for."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def __missing__(self, name: str) -> Path:
        source = "network" if name == "nccl-tests" else name
        import_kernels(source, SHARED / PLACES[name], self._home / name, Selection())
        self[name] = self._home / name
        return self[name]


@pytest.fixture(scope="module")
def profiles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return Imported(tmp_path_factory.mktemp("profiles"))


def frame(profile: Path) -> pd.DataFrame:
    plain = [c.name for c in KERNELS.columns if not c.type.startswith("list")]
    table = pq.read_table(profile / KERNELS.file)
    return table.select([n for n in plain if n in table.column_names]).to_pandas()


def entry(profile: Path) -> dict[str, Any]:
    (found,) = yaml.safe_load((profile / "kernels.yaml").read_text())["sources"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    ("name", "least"),
    [
        (
            "rtx-vllm0.19",
            {"linear": 2600, "attention_prefill": 1000, "attention_decode": 5600,
             "attention_mixed": 270_000, "grouped_gemm": 50, "elementwise": 3000, "sampling": 120},
        ),
        (
            "frontier",
            {"linear": 18_000, "attention_prefill": 14_000, "attention_decode": 21_000,
             "grouped_gemm": 10_000, "router": 14_000, "elementwise": 45_000},
        ),
        ("network", {"all_reduce": 16_000, "send_recv": 7900}),
        ("nccl-tests", {"all_reduce": 130}),
    ],
)  # fmt: skip
def test_rows_of_each_family(profiles: dict[str, Path], name: str, least: dict[str, int]) -> None:
    counts = frame(profiles[name])["operator"].value_counts().to_dict()
    assert set(counts) == set(least)
    assert all(counts[operator] >= rows for operator, rows in least.items())


@pytest.mark.parametrize("name", sorted(PLACES))
def test_durations_are_seconds_of_kernels(profiles: dict[str, Path], name: str) -> None:
    duration_s = frame(profiles[name])["duration_s"]
    assert duration_s.min() > 0.5e-6
    assert duration_s.median() < 5e-3 if name != "nccl-tests" else 0.1
    assert duration_s.max() < 0.5


def test_nothing_exceeds_a_peak_and_the_best_come_close(profiles: dict[str, Path]) -> None:
    for name in ("rtx-vllm0.19", "frontier", "network", "nccl-tests"):
        table = pq.read_table(profiles[name] / KERNELS.file)
        found = rates(table)
        assert not found.beyond().any()
        assert found.best(np.arange(len(table))) > 0.5  # a unit too slow would show here


def test_impossible_decodes_of_the_h800_are_refused(profiles: dict[str, Path]) -> None:
    said = entry(profiles["frontier"])
    assert 500 < said["refused_above_peak"] < 1000
    assert all("attention_decode" in text and "of memory" in text for text in said["refused"])


def test_heterogeneous_batches_keep_their_lengths(profiles: dict[str, Path]) -> None:
    table = pq.read_table(
        profiles["frontier"] / KERNELS.file,
        filters=[("operator", "=", "attention_prefill"), ("device", "=", "a800_sxm")],
    )
    rows = [r for r in table.to_pylist() if r["query_lens"] is not None]
    assert len(rows) > 150
    assert all(sum(r["query_lens"]) == r["query_sum"] for r in rows)
    assert all(len(r["context_lens"]) == r["batch"] for r in rows)


def test_skewed_and_plain_attention_agree_where_they_timed_the_same(
    profiles: dict[str, Path],
) -> None:
    rows = frame(profiles["rtx-vllm0.19"])
    shape = ["device", "heads", "kv_heads", "batch", "query_sum", "context_sum", "context_sq_sum"]
    of = rows[rows["operator"] == "attention_decode"].dropna(subset=["query_tokens"])
    plain = of[of["layer"].isna()].groupby(shape)["duration_s"].median()
    skewed = of[of["layer"] == "skew"].groupby(shape)["duration_s"].median()
    ratio = (skewed / plain).dropna()
    assert len(ratio) > 100
    assert abs(ratio.median() - 1) < 0.03


def test_links_differ_by_node_not_by_gpu(profiles: dict[str, Path]) -> None:
    rows = frame(profiles["network"])
    largest = rows[(rows["bytes"] == 1 << 26) & (rows["ranks"] == 2)]
    seconds = largest.groupby(["node", "operator", "nodes"])["duration_s"].median()
    assert seconds["a100_dgx", "send_recv", 2] > 10 * seconds["a100_dgx", "send_recv", 1]
    assert any("byte for byte" in text for text in entry(profiles["network"])["tables_left_out"])


def test_frontier_timings_of_both_kinds_stay_apart(profiles: dict[str, Path]) -> None:
    rows = frame(profiles["frontier"])
    small = rows[(rows["operator"] == "elementwise") & (rows["tokens"] <= 8)]
    fastest = small.groupby("timing")["duration_s"].min()
    assert fastest["kernel"] < 3e-6
    assert fastest["with_launch"] > 6e-6
