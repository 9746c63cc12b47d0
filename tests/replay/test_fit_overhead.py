"""`frontier fit --operators`: constants that kernels leave open are found again from requests."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
import yaml
from click.testing import Result

from simulator.step_time.overhead import Overhead, load_overhead, save_overhead
from traces.bundle import read_bundle

Frontier = Callable[..., Result]
KEY = {"timing": "kernel", "device": "h100_sxm", "engine": "vllm", "engine_version": "0.24.0",
       "backend": "one", "dtype": "bfloat16"}  # fmt: skip
DEPLOYMENT = {
    "model": "traces/models/llama-3.1-8b.json",
    "engine_version": "0.32.0",
    "clusters": [
        {"hardware": "h100_sxm", "engine": {"max_num_seqs": 16, "max_num_batched_tokens": 512,
                                            "max_model_len": 2048, "num_gpu_blocks": 4000}},
    ],
}  # fmt: skip


def kernels() -> pd.DataFrame:
    head = {"heads": 32, "kv_heads": 8, "head_dim": 128, "window": 0, "kv_dtype": "bfloat16"}
    gemm = pd.DataFrame(
        product((1, 16, 512), (4096, 16384, 131072), (4096, 16384)), columns=[*"mnk"]
    )
    gemm = gemm.assign(
        operator="linear", duration_s=4e-6 + 2 * gemm.n * gemm.k * (gemm.m / 6e14 + 1 / 2.5e12)
    )
    prefill = pd.DataFrame({"query_tokens": [16, 32, 64, 128, 256, 384, 512, 1024]})
    prefill = prefill.assign(
        operator="attention_prefill", batch=1, context_tokens=0, **head,
        duration_s=5e-6 + prefill.query_tokens**2 * 2e-11,
    )  # fmt: skip
    decode = pd.DataFrame(product((1, 4, 16), (15, 255, 2047)), columns=["batch", "context_tokens"])
    decode = decode.assign(
        operator="attention_decode", query_tokens=1, **head,
        duration_s=4e-6 + decode.batch * decode.context_tokens * 2e-9,
    )  # fmt: skip
    return pd.concat([gemm, prefill, decode], ignore_index=True).assign(**KEY).convert_dtypes()


@pytest.fixture
def home(tmp_path: Path, frontier: Frontier) -> Path:
    """A profile of kernels, a deployment, and a run of it with 0.4 ms a step and 7 ms a request."""
    (tmp_path / "kernels").mkdir()
    kernels().to_parquet(tmp_path / "kernels" / "kernels.parquet")
    (tmp_path / "d.yaml").write_text(yaml.safe_dump(DEPLOYMENT))
    work = tmp_path / "work"
    made = frontier("traces", "synth", "--out", work, "--requests", 150, "--rate", 8,
                    "--prompt", "fixed:200", "--output", "fixed:40")  # fmt: skip
    assert made.exit_code == 0, made.output
    replay = ("replay", work, "-D", tmp_path / "d.yaml", "--operators")
    assert frontier(*replay, tmp_path / "kernels", "--out", tmp_path / "warm").exit_code == 0
    shutil.copytree(tmp_path / "kernels", tmp_path / "slow")
    save_overhead(Overhead("0.32.0", "h100_sxm", 0.4e-3, 7e-3), tmp_path / "slow")
    assert frontier(*replay, tmp_path / "slow", "--out", tmp_path / "run").exit_code == 0
    return tmp_path


def test_constants_are_found_again_and_used(home: Path, frontier: Frontier) -> None:
    fit = frontier("fit", home / "run", "--operators", home / "kernels", "--out", home / "fitted",
                   "--constant=step_s", "--constant=frontend_s")  # fmt: skip
    assert fit.exit_code == 0, fit.output
    assert "added to a step" in fit.output
    found = load_overhead(home / "fitted")
    assert found is not None
    assert found.step_s == pytest.approx(0.4e-3, rel=0.02)
    assert found.frontend_s == pytest.approx(7e-3, rel=0.02)
    for name in ("step_s", "frontend_s"):
        low, high = found.intervals[name]
        assert low <= getattr(found, name) <= high
    assert found.warnings == []
    again = frontier(
        "replay", home / "work", "-D", home / "d.yaml", "--operators", home / "fitted",
        "--out", home / "again",
    )  # fmt: skip
    assert again.exit_code == 0, again.output
    note = read_bundle(home / "again").manifest.notes["operators"]
    assert note["fitted_on"] == [found.fitted_on[0]["hash"]]
    assert note["step_s"] == found.step_s


def test_a_capture_faster_than_its_kernels_is_warned_of(home: Path, frontier: Frontier) -> None:
    """Twice the seconds in the table: the fit wants a negative constant and keeps 0."""
    rows = pd.read_parquet(home / "kernels" / "kernels.parquet")
    (home / "heavy").mkdir()
    rows.assign(duration_s=rows.duration_s * 2).to_parquet(home / "heavy" / "kernels.parquet")
    fit = frontier("fit", home / "warm", "--operators", home / "heavy", "--out", home / "out",
                   "--constant=step_s", "--constant=frontend_s")  # fmt: skip
    assert fit.exit_code == 0, fit.output
    assert "warning: a step: the captures are faster than their kernels" in fit.output
    found = load_overhead(home / "out")
    assert found is not None
    assert found.step_s == 0.0


def test_constants_that_do_not_settle_are_warned_of(
    home: Path, frontier: Frontier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replay.fit_overhead.ROUNDS", 1)
    fit = frontier("fit", home / "run", "--operators", home / "kernels", "--out", home / "out")
    assert fit.exit_code == 0, fit.output
    assert "warning: not settled after 1 rounds: +" in fit.output


def test_one_constant_from_the_first_requests_alone(home: Path, frontier: Frontier) -> None:
    fit = frontier("fit", home / "run", "--operators", home / "kernels", "--out", home / "fitted",
                   "--first", 50, "--constant", "frontend_s")  # fmt: skip
    assert fit.exit_code == 0, fit.output
    assert "added to a step" not in fit.output
    found = load_overhead(home / "fitted")
    assert found is not None
    assert found.step_s == 0.0
    assert found.frontend_s > 7e-3  # it makes up for the steps that are too short
    assert list(found.intervals) == ["frontend_s"]


def test_steps_with_prompts_are_told_from_other_steps(home: Path, frontier: Frontier) -> None:
    seeded = Overhead("0.32.0", "h100_sxm", 0.4e-3, 7e-3, prompt_step_s=5e-3)
    shutil.copytree(home / "kernels", home / "pieces")
    save_overhead(seeded, home / "pieces")
    run = frontier("replay", home / "work", "-D", home / "d.yaml", "--operators", home / "pieces",
                   "--out", home / "pieces-run")  # fmt: skip
    assert run.exit_code == 0, run.output
    names = ("step_s", "prompt_step_s", "frontend_s")
    fit = frontier("fit", home / "pieces-run", "--operators", home / "kernels", "--out",
                   home / "told", *(f"--constant={name}" for name in names))  # fmt: skip
    assert fit.exit_code == 0, fit.output
    assert "added if it has prompts" in fit.output
    found = load_overhead(home / "told")
    assert found is not None
    for name in names:
        assert getattr(found, name) == pytest.approx(getattr(seeded, name), rel=0.05)
        low, high = found.intervals[name]
        assert low <= getattr(found, name) <= high


@pytest.mark.parametrize("slowdown", [0.08, -0.06])
def test_kernels_that_take_longer_or_less(home: Path, frontier: Frontier, slowdown: float) -> None:
    shutil.copytree(home / "kernels", home / "other")
    save_overhead(Overhead("0.32.0", "h100_sxm", 0.0, 7e-3, slowdown=slowdown), home / "other")
    run = frontier("replay", home / "work", "-D", home / "d.yaml", "--operators", home / "other",
                   "--out", home / "other-run")  # fmt: skip
    assert run.exit_code == 0, run.output
    fit = frontier("fit", home / "other-run", "--operators", home / "kernels", "--out",
                   home / "told")  # fmt: skip
    assert fit.exit_code == 0, fit.output
    assert "kernels take longer by" in fit.output
    found = load_overhead(home / "told")
    assert found is not None
    assert found.slowdown == pytest.approx(slowdown, rel=0.02)
    assert found.frontend_s == pytest.approx(7e-3, rel=0.02)
    low, high = found.intervals["slowdown"]
    assert low <= found.slowdown <= high


def test_another_version_or_a_damaged_file_is_refused(home: Path, frontier: Frontier) -> None:
    replay = (
        "replay", home / "work", "-D", home / "d.yaml", "--operators", home / "slow", "--out",
        home / "x",
    )  # fmt: skip
    save_overhead(Overhead("0.19.0", "h100_sxm", 1e-3, 0.0), home / "slow")
    result = frontier(*replay)
    assert result.exit_code == 2
    assert "fitted for engine version 0.19.0, the deployment has 0.32.0" in result.output
    save_overhead(Overhead("0.32.0+cu129", "h100_sxm", 1e-3, 0.0), home / "slow")  # a build of it
    assert frontier(*replay).exit_code == 0
    (home / "slow" / "overhead.yaml").write_text("schema: 1\nstep: 2\n")
    result = frontier(*replay)
    assert result.exit_code == 2
    assert "unknown key 'step'; did you mean 'step_s'?" in result.output
    save_overhead(Overhead("0.32.0", "h100_sxm", 0.0, 0.0, slowdown=-1.0), home / "slow")
    result = frontier(*replay)
    assert result.exit_code == 2
    assert "slowdown: must be a number above -1, got -1.0" in result.output


def test_needs_kernels(home: Path, frontier: Frontier) -> None:
    result = frontier("fit", home / "run", "--operators", home / "run", "--out", home / "y")
    assert result.exit_code == 2
    assert "no kernels.parquet there" in result.output


@pytest.mark.parametrize(
    ("family", "named"),
    [("linear", "no linear kernel for qkv_proj (n 6144, k 4096) on h100_sxm"),
     ("attention_decode", "no attention_decode kernel in bfloat16 with a cache in bfloat16")],
)  # fmt: skip
def test_a_missing_family_is_named_with_what_supplies_it(
    home: Path, frontier: Frontier, family: str, named: str
) -> None:
    replay = ("replay", home / "work", "-D", home / "d.yaml", "--out", home / "x", "--operators")
    (home / "less").mkdir()
    rows = pd.read_parquet(home / "kernels" / "kernels.parquet")
    rows[rows.operator != family].to_parquet(home / "less" / "kernels.parquet")
    result = frontier(*replay, home / "less")
    assert result.exit_code == 2
    assert named in result.output
    assert "frontier capture --profile-kernels" in result.output
    assert "frontier import-kernels" in result.output


def test_kernel_times_are_never_mixed_with_times_of_launches(
    home: Path, frontier: Frontier
) -> None:
    replay = ("replay", home / "work", "-D", home / "d.yaml", "--operators")
    rows = pd.read_parquet(home / "kernels" / "kernels.parquet")
    gemm = rows.operator == "linear"
    (home / "only").mkdir()
    rows.assign(timing=rows.timing.mask(gemm, "with_launch")).to_parquet(
        home / "only" / "kernels.parquet"
    )
    result = frontier(*replay, home / "only", "--out", home / "x")
    assert result.exit_code == 2
    assert "it has times with launch, which do not mix with kernel times" in result.output
    (home / "both").mkdir()
    slow = rows[gemm].assign(timing="with_launch", duration_s=1.0)
    pd.concat([rows, slow]).to_parquet(home / "both" / "kernels.parquet")
    assert frontier(*replay, home / "both", "--out", home / "y").exit_code == 0
    own, other = (read_bundle(home / name).requests.column("finished_s") for name in ("warm", "y"))
    assert own == other
