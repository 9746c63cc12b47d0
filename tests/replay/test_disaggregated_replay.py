"""``frontier replay`` of a prefill and a decode cluster: the bundle, and bad input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

from simulator.deployment import Engine
from simulator.step_time.fitted import LAYOUT, StepProfile, save_profile
from traces.bundle import read_bundle

DEPLOYMENT = """
model: traces/models/llama-2-7b.json
engine_version: 0.32.0
clusters:
  - {name: p, role: prefill, replicas: 2, hardware: a100_sxm_80gb, engine: &e {
      max_num_batched_tokens: 512, max_num_seqs: 32, num_gpu_blocks: 300, max_model_len: 2048}}
  - {name: d, role: decode, replicas: 3, hardware: a100_sxm_80gb, routing: least_loaded, engine: *e}
links: [{from: p, to: d, bandwidth_gb_s: 25, latency_us: 5, setup_us: 100}]
routing: {policy: round_robin, proxy_us: 500}
"""


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A folder with an operator profile, a workload of 60 requests and a deployment."""
    engine = Engine()
    profile = StepProfile(
        model={"layers": 32, "hidden": 4096}, engine="vllm", engine_version="0.32.0",
        hardware="a100_sxm_80gb", layout={name: getattr(engine, name) for name in LAYOUT},
        forward={"step": 8e-3, "tokens": 5e-5}, host={"step": 1e-4}, gap={"step": 5e-5},
        frontend_s=1e-3,
        ranges={n: [0, 10**6] for n in ("tokens", "rows", "decode_context", "prefill_pairs")},
        fitted_on=[],
    )  # fmt: skip
    save_profile(profile, tmp_path / "profile")
    rng = np.random.default_rng(0)
    lines = ["arrived_at,num_prefill_tokens,num_decode_tokens"]
    for at in np.cumsum(rng.exponential(0.05, 60)):
        lines.append(f"{at:.3f},{rng.integers(10, 900)},{rng.integers(1, 120)}")
    (tmp_path / "workload.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.fixture
def replay(world: Path, frontier: Callable[..., Result]) -> Callable[..., Result]:
    """Replay with a part of the deployment replaced."""

    def run(old: str = "", new: str = "") -> Result:
        assert old in DEPLOYMENT
        (world / "d.yaml").write_text(DEPLOYMENT.replace(old, new) if old else DEPLOYMENT)
        return frontier(
            "replay", world / "workload.csv", "--deployment", world / "d.yaml", "--operators",
            world / "profile", "--out", world / "out", "--record", "steps,step_requests",
        )  # fmt: skip

    return run


def test_bundle(world: Path, replay: Callable[..., Result]) -> None:
    done = replay()
    assert done.exit_code == 0, done.output
    bundle = read_bundle(world / "out")
    requests = bundle.requests.to_pandas()
    assert (requests["status"] == "finished").all()
    chain = ["arrival_s", "queued_s", "scheduled_s", "prefill_finished_s", "decode_queued_s",
             "transfer_start_s", "transfer_end_s", "decode_scheduled_s", "first_token_s",
             "finished_s"]  # fmt: skip
    times = requests[chain].to_numpy()
    assert (np.diff(times, axis=1)[:, :8] > -1e-12).all()
    assert ((requests["decode_queued_s"] - requests["prefill_finished_s"]) >= 0.0015 - 1e-9).all()
    assert set(requests["replica"]) == {0, 1}
    assert set(requests["decode_replica"]) == {0, 1, 2}
    transfers = bundle.table("transfers").to_pandas().set_index("request_id")
    blocks = -(-requests.set_index("request_id")["prompt_tokens"] // 16)
    assert (transfers["bytes"].sort_index() == blocks.sort_index() * 16 * 2 * 4096 * 2 * 32).all()
    assert set(transfers["destination"]) == {"d/0", "d/1", "d/2"}
    assert set(bundle.table("steps")["cluster"].to_pylist()) == {"p", "d"}
    assert bundle.manifest.notes["lost_leases"] == 0
    assert bundle.manifest.notes["operators"]["fitted_on"] == []
    assert set(bundle.manifest.notes["operators"]["clusters"]) == {"p", "d"}
    assert not bundle.manifest.ignored


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("links: [{from: p, to: d", "links: [{from: d, to: p", "one from p to d is needed, got 0"),
        ("role: decode", "role: prefill", "one prefill and one decode cluster"),
        ("replicas: 2", "kind: 2", "unknown key clusters[0].kind"),
        ("engine: *e", "engine: {num_gpu_blocks: 20, max_model_len: 2048}", "clusters[d]: request"),
        ("engine: *e", "engine: {kv_cache_dtype: fp8, num_gpu_blocks: 300}", "kv_cache_dtype"),
        ("setup_us: 100", "layerwise: true", "only a push can be layerwise"),
        ("latency_us: 5", "latency_us: -5", "links[0].latency_us"),
        ("least_loaded", "least_load", "unknown 'least_load'"),
    ],
)
def test_bad_input(replay: Callable[..., Result], old: str, new: str, said: str) -> None:
    done = replay(old, new)
    assert done.exit_code == 2
    assert said in done.output
    assert len(done.output.strip().splitlines()) == 1


def test_lost_leases_are_said(world: Path, replay: Callable[..., Result]) -> None:
    done = replay("setup_us: 100", "lease_s: 0.001, lease_renewal: false")
    assert done.exit_code == 0, done.output
    assert "60 requests lost their lease" in done.output
    assert set(read_bundle(world / "out").requests["status"].to_pylist()) == {"failed"}
