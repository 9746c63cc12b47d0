"""The step-time model of a plan's attention and FFN clusters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from replay.plan import Plan, loads_of, with_own_link
from simulator.deployment import Cluster, find_file
from simulator.hardware import Hardware, load_hardware
from simulator.moe.laws import Uniform
from simulator.step_time.deployed import KERNELS
from simulator.step_time.deployed_attention_ffn import deployed_split, split_step_time
from simulator.step_time.experts import ExpertLoads
from simulator.step_time.pipelined import PipelinedStepTime
from simulator.step_time.split import Split
from traces.errors import ConfigError


class Inputs(NamedTuple):
    """What prices a split needs of a plan: profiles and devices by cluster, expert loads."""

    profile_of: Callable[[Cluster], Path]
    hardware_of: Callable[[Cluster], Hardware]
    engine_version: str
    loads: ExpertLoads | None


def inputs_of(plan: Plan) -> Inputs:
    """Raises ConfigError for a cluster without a profile of kernels, or unknown loads."""
    profile_of = partial(_profile, plan)
    loads: ExpertLoads | None = None
    if plan.model.moe is not None:
        ffn = next(c for c in plan.deployment.clusters if c.role == "ffn")
        loads = loads_of(plan, ffn.engine, profile_of(ffn))
        loads = None if isinstance(loads.law, Uniform) else loads
    return Inputs(profile_of, partial(_hardware, plan), plan.engine_version, loads)


def pipelined_step_time(
    plan: Plan, progress: Callable[[str], None]
) -> tuple[PipelinedStepTime, dict[str, Any]]:
    """The model of the attention cluster's schedulers, and what to note of it."""
    inputs = inputs_of(plan)
    with priced_split(plan, progress) as (split, notes):
        cluster = split.attention.cluster
        return split_step_time(
            split, notes, inputs.profile_of(cluster), inputs.hardware_of(cluster),
            plan.engine_version,
        )  # fmt: skip


@contextmanager
def priced_split(
    plan: Plan, progress: Callable[[str], None]
) -> Iterator[tuple[Split, dict[str, Any]]]:
    """The clusters with their prices, for whoever wants to change a link or a strategy."""
    with deployed_split(
        plan.deployment, plan.model, *inputs_of(plan), progress=progress
    ) as found:  # fmt: skip
        yield found


def _profile(plan: Plan, cluster: Cluster) -> Path:
    name = cluster.operators or plan.deployment.operators
    if name is None:
        raise ConfigError(f"operators: no profile given for cluster {cluster.name}; pass one "
                          "of measured kernels with --operators")  # fmt: skip
    path = find_file(name, plan.home)
    if not (path / KERNELS).is_file():
        raise ConfigError(f"{path}: cluster {cluster.name} needs a profile with {KERNELS}")
    return path


def _hardware(plan: Plan, cluster: Cluster) -> Hardware:
    return with_own_link(load_hardware(cluster.hardware, plan.home), plan, cluster)
