"""The step-time model of attention and FFN clusters from profiles of measured kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from simulator.deployment import Cluster, Deployment
from simulator.hardware import Hardware
from simulator.model import ModelSpec
from simulator.pipeline.roles import attention_ffn
from simulator.step_time.attention_ffn import attention_ffn_step_time, split_of
from simulator.step_time.baking import attention_grids
from simulator.step_time.deployed import KERNELS
from simulator.step_time.experts import ExpertLoads
from simulator.step_time.overhead import load_overhead
from simulator.step_time.pipelined import PipelinedStepTime
from simulator.step_time.prices import Prices
from simulator.step_time.profile_prices import profile_prices
from simulator.step_time.split import AttentionSide, FFNSide, Split
from traces.bundle import content_hash
from traces.digest import text_digest
from traces.errors import ConfigError


@contextmanager
def deployed_split(
    deployment: Deployment,
    model: ModelSpec,
    profile_of: Callable[[Cluster], Path],
    hardware_of: Callable[[Cluster], Hardware],
    engine_version: str | None,
    loads: ExpertLoads | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[tuple[Split, dict[str, Any]]]:
    """The deployment with its prices, and what to note of the profiles in the manifest.

    ``loads`` are drawn expert loads; None: every expert gets the same. Operators fitted
    meanwhile are kept in the profiles. Raises ConfigError for what cannot be or cannot be
    priced, TraceError for a damaged profile.
    """
    clusters = attention_ffn(deployment, model)
    hashes: dict[str, str] = {}
    notes: dict[str, Any] = {"fitted_on": [], "kernels_of": {}, "fitted": {}}
    with ExitStack() as stack:

        def prices(cluster: Cluster) -> Prices:
            profile, hardware = profile_of(cluster), hardware_of(cluster)
            hashed = content_hash(profile / KERNELS)
            found, kernels_of = stack.enter_context(
                profile_prices(
                    profile, hashed, model, cluster.engine, hardware, engine_version, progress
                )
            )
            hashes[cluster.name] = hashed
            notes["kernels_of"][cluster.name] = kernels_of
            return found

        own = prices(clusters.attention)
        side = AttentionSide(
            clusters.attention, own, *attention_grids(own, model, clusters.attention.engine)
        )
        ffn = [prices(cluster) for cluster in clusters.ffn]
        same = len(set(hashes.values())) == 1
        notes["profile"] = hashes[clusters.attention.name] if same else text_digest(hashes)
        yield split_of(clusters, model, side, ffn, loads, deployment.moe.replica_choice), notes


def split_step_time(
    split: Split,
    notes: dict[str, Any],
    profile: Path,
    hardware: Hardware,
    engine_version: str | None,
) -> tuple[PipelinedStepTime, dict[str, Any]]:
    """The model of the attention cluster's schedulers, and ``notes`` with what it rests on.

    ``profile`` and ``hardware`` are the attention cluster's. Raises ConfigError.
    """
    constants = _overhead(profile, hardware, engine_version, notes)
    step_time, priced = attention_ffn_step_time(split, **constants)
    sides: list[AttentionSide | FFNSide] = [split.attention, *split.ffn]
    for side in sides:
        notes["fitted"][side.cluster.name] = dict(side.prices.unmeasured.used)
    return step_time, notes | priced


def _overhead(
    profile: Path, hardware: Hardware, engine_version: str | None, notes: dict[str, Any]
) -> dict[str, float]:
    """The constants fitted for the attention ranks' profile, if any, and a note of them."""
    overhead = load_overhead(profile)
    if overhead is None:
        return {}
    overhead.check(engine_version, hardware.name, str(profile))
    constants = overhead.constants()
    for name in ("prompt_step_s", "slowdown"):
        if name in constants:
            raise ConfigError(f"{profile}: {name} is not known of attention ranks; fit step_s")
    notes |= constants | {"fitted_on": [bundle["hash"] for bundle in overhead.fitted_on]}
    return constants
