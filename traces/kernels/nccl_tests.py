"""Logs of nccl-tests: which collective ran on which hosts and GPUs, and its time by size."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa

from traces.errors import TraceError, nearest
from traces.kernels.base import kernel_rows

US = 1e-6
DEVICES = {
    "NVIDIA A100-SXM4-80GB": "a100_sxm_80gb",
    "NVIDIA B200": "b200_sxm",
    "NVIDIA H100 80GB HBM3": "h100_sxm",
    "NVIDIA H200": "h200_sxm",
}
OPERATORS = {
    "all_gather": "all_gather",
    "all_reduce": "all_reduce",
    "alltoall": "all_to_all",
    "reduce_scatter": "reduce_scatter",
    "sendrecv": "send_recv",
}
DTYPES = {"float": "float32", "half": "float16"}

_HEADER = re.compile(r"^# nccl-tests version .* nccl-library=(\d+)$", re.MULTILINE)
_TEST = re.compile(r"^# Collective test starting: ([a-z_]+?)_perf", re.MULTILINE)
_RANK = re.compile(r"^#\s+Rank\s+\d+ .* on\s+(\S+) device\s+\d+ \[\S+\] (.+)$", re.MULTILINE)
_TRANSPORT = re.compile(r"\((?!rank)([^)]+)\):?\s*$")  # of the line that announced the run
_ROW = re.compile(
    r"^\s*(\d+)\s+\d+\s+(\w+)\s+\w+\s+-?\d+"  # size, count, type, operation, root
    r"\s+([\d.]+)\s+[\d.]+\s+[\d.]+\s+\S+"  # out of place: time, two bandwidths, wrong
    r"\s+([\d.]+)\s+[\d.]+\s+[\d.]+\s+\S+\s*$",  # in place
    re.MULTILINE,
)


def read_log(file: Path) -> list[pa.Table]:
    """The rows of each run in a log; a size gives its out-of-place and its in-place time.

    A run announced with a transport in brackets, as ``all_reduce_perf on host (NVLink):``,
    has it in ``backend``. Raises TraceError.
    """
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError):
        raise TraceError(f"{file}: not a text file") from None
    starts = [match.start() for match in _HEADER.finditer(text)]
    if not starts:
        raise TraceError(f"{file}: not a log of nccl-tests (no version line)")
    before = [text[a:b] for a, b in zip([0, *starts[:-1]], starts, strict=True)]
    runs = [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]
    return [_run(file, run, above) for run, above in zip(runs, before, strict=True)]


def _run(file: Path, run: str, above: str) -> pa.Table:
    version, test = _HEADER.search(run), _TEST.search(run)
    ranks, rows = _RANK.findall(run), _ROW.findall(run)
    if version is None or test is None or not ranks or not rows:
        raise TraceError(f"{file}: a run of nccl-tests without its test, ranks or times")
    if test[1] not in OPERATORS:
        raise TraceError(f"{file}: test {test[1]!r} is unknown{nearest(test[1], OPERATORS)}")
    devices = sorted({gpu for _, gpu in ranks})
    if len(devices) > 1 or devices[0] not in DEVICES:
        found = ", ".join(devices)
        raise TraceError(f"{file}: GPUs are {found}{nearest(devices[0], DEVICES)}")
    hosts = sorted({host for host, _ in ranks})
    transport = _TRANSPORT.search(above.rstrip())
    number = int(version[1])
    columns: dict[str, Any] = {
        "operator": OPERATORS[test[1]],
        "bytes": [int(size) for size, *_ in rows for _ in range(2)],
        "ranks": len(ranks),
        "nodes": len(hosts),
        "duration_s": [float(time) * US for *_, out, into in rows for time in (out, into)],
        "timing": "with_launch",
        "device": DEVICES[devices[0]],
        "node": "+".join(hosts),
        "engine": "nccl",
        "engine_version": f"{number // 10000}.{number // 100 % 100}.{number % 100}",
        "backend": f"nccl-tests {transport[1]}" if transport else "nccl-tests",
        "dtype": [DTYPES.get(kind, kind) for _, kind, *_ in rows for _ in range(2)],
    }
    return kernel_rows(columns, 2 * len(rows))
