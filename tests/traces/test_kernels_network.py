"""Vidur's collectives and logs of nccl-tests: bytes, ranks, nodes and what ran."""

from __future__ import annotations

from pathlib import Path

import pytest

from traces.check import table_faults
from traces.errors import TraceError
from traces.kernels.base import Selection
from traces.kernels.network import Network
from traces.schema import KERNELS

HEADER = (
    ",time_stats.all_reduce.min,time_stats.all_reduce.max,time_stats.all_reduce.mean,"
    "time_stats.all_reduce.median,time_stats.all_reduce.std,rank,num_workers,size,collective,"
    "devices_per_node,max_devices_per_node"
)
RANKS = "".join(
    f"#  Rank  {rank} Group  0 Pid 7 on   {host} device  {rank} [0000:8d:00] NVIDIA H200\n"
    for rank, host in enumerate(["worker-1", "worker-1", "worker-0", "worker-0"])
)
RUN = f"""Run a single-node all_reduce_perf on worker-0 ({{transport}}):
# nccl-tests version 2.17.9 nccl-headers=22807 nccl-library=22907
# Collective test starting: all_reduce_perf
# Using devices
{RANKS}#
#       size         count      type   redop    root     time   algbw   busbw  #wrong     time
        1024           256     float     sum      -1  {{time}}  227.05  425.73   0  9.5  1  2  0
# Out of bounds values : 0 OK
# Collective test concluded: all_reduce_perf
"""


def table(node: Path, *rows: str, name: str = "all_reduce") -> Path:
    node.mkdir(parents=True, exist_ok=True)
    (node / f"{name}.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    return node


def test_milliseconds_and_the_nodes_that_ranks_span(tmp_path: Path) -> None:
    table(
        tmp_path / "a100_dgx",
        "0,0.03,0.08,0.05,0.043,0.02,0,16,2048,all_reduce,8,8",
        "1,0.03,0.08,0.05,0.044,0.02,0,4,2048,all_reduce,4,8",
    )
    found = Network().read(tmp_path, Selection()).table
    assert table_faults(KERNELS, found, "here") == []
    first, second = found.to_pylist()
    assert first == {
        "operator": "all_reduce", "bytes": 2048, "ranks": 16, "nodes": 2,
        "duration_s": pytest.approx(43e-6), "std_s": pytest.approx(20e-6),
        "timing": "with_launch", "device": "a100_sxm_80gb", "node": "a100_dgx", "engine": "nccl",
        "engine_version": "unrecorded", "dtype": "float16",
    }  # fmt: skip
    assert second["nodes"] == 1


def test_the_same_gpu_in_another_node_is_kept_apart(tmp_path: Path) -> None:
    table(tmp_path / "h100_dgx", "0,1,1,1,0.1,0,0,2,2048,all_reduce,2,8")
    table(tmp_path / "h100_pairwise_nvlink", "0,1,1,1,0.2,0,0,2,2048,all_reduce,2,4")
    found = Network().read(tmp_path, Selection()).table
    assert found["node"].to_pylist() == ["h100_dgx", "h100_pairwise_nvlink"]
    assert found["device"].to_pylist() == ["h100_sxm", "h100_pcie"]


def test_a_table_that_is_another_nodes_is_left_out_and_named(tmp_path: Path) -> None:
    row = "0,1,1,1,0.1,0,0,2,2048,all_reduce,2,4"
    for node in ("a100_pairwise_nvlink", "h100_pairwise_nvlink"):
        table(tmp_path / node, row)
    reading = Network().read(tmp_path, Selection())
    assert len(reading.table) == 1
    assert reading.left_out == [
        "h100_pairwise_nvlink/all_reduce.csv: byte for byte a100_pairwise_nvlink/all_reduce.csv"
    ]


def test_a_log_says_itself_what_ran(tmp_path: Path) -> None:
    runs = [("NVLink", "8.25"), ("Infiniband", " 155")]
    text = "".join(RUN.format(transport=name, time=time) for name, time in runs)
    (tmp_path / "nccl.out").write_text(text)
    found = Network().read(tmp_path, Selection()).table
    assert table_faults(KERNELS, found, "here") == []
    rows = found.to_pylist()
    assert rows[0] == {
        "operator": "all_reduce", "bytes": 1024, "ranks": 4, "nodes": 2,
        "duration_s": pytest.approx(8.25e-6),
        "timing": "with_launch", "device": "h200_sxm", "node": "worker-0+worker-1",
        "engine": "nccl", "engine_version": "2.29.7", "backend": "nccl-tests NVLink",
        "dtype": "float32",
    }  # fmt: skip
    times = [(r["backend"], r["duration_s"]) for r in rows]
    assert times == [
        ("nccl-tests NVLink", pytest.approx(8.25e-6)),
        ("nccl-tests NVLink", pytest.approx(9.5e-6)),  # in place
        ("nccl-tests Infiniband", pytest.approx(155e-6)),
        ("nccl-tests Infiniband", pytest.approx(9.5e-6)),
    ]


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("NVIDIA H200", "NVIDIA H20", "GPUs are NVIDIA H20; did you mean 'NVIDIA H200'?"),
        ("starting: all_reduce", "starting: all_reduc", "'all_reduc' is unknown; did you mean"),
        ("nccl-library", "library", "no version line"),
        ("float     sum", "float", "without its test, ranks or times"),
    ],
)
def test_a_log_that_does_not_say_is_refused(tmp_path: Path, old: str, new: str, fault: str) -> None:
    (tmp_path / "nccl.out").write_text(
        RUN.format(transport="NVLink", time="8.25").replace(old, new)
    )
    with pytest.raises(TraceError) as error:
        Network().read(tmp_path, Selection())
    assert fault in str(error.value)


def test_a_node_it_does_not_know(tmp_path: Path) -> None:
    table(tmp_path / "h100_dgxx", "0,1,1,1,0.1,0,0,2,2048,all_reduce,2,8")
    with pytest.raises(TraceError, match="node 'h100_dgxx' is unknown; did you mean 'h100_dgx'"):
        Network().read(tmp_path, Selection())
