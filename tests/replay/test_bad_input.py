"""What cannot be used is refused in one line that says what and where, with exit code 2."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import Result

from traces.samples import sample_runs

Frontier = Callable[..., Result]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A shipped capture to spoil."""
    return Path(shutil.copytree(sample_runs("dense-low")[0], tmp_path / "b"))


@pytest.fixture
def refused(frontier: Frontier, tmp_path: Path, dense_profile: Path) -> Callable[..., str]:
    """Replay and return the one line that refuses it."""

    def run(workload: Path, deployment: Path | None = None, *more: str) -> str:
        given = [] if deployment is None else ["-D", deployment]
        result = frontier(
            "replay", workload, *given, "--operators", dense_profile, "--out", tmp_path / "out",
            *more,
        )  # fmt: skip
        assert result.exit_code == 2, result.output
        lines = result.stderr.splitlines()
        assert len(lines) == 1, lines
        assert not (tmp_path / "out" / "bundle.yaml").exists()
        return lines[0]

    return run


def spoil(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite the requests with a change to their columns."""
    file = bundle / "requests.parquet"
    columns = pq.read_table(file).to_pydict()
    change(columns)
    pq.write_table(pa.table(columns), file)


def redeploy(bundle: Path, tmp_path: Path, **engine: Any) -> Path:
    """A deployment file like the bundle's own, with other engine arguments."""
    deployment = yaml.safe_load((bundle / "bundle.yaml").read_text())["deployment"]
    deployment["model"] = str(bundle / "model.json")
    deployment["clusters"][0]["engine"] |= engine
    path = tmp_path / "d.yaml"
    path.write_text(yaml.safe_dump(deployment))
    return path


def test_truncated_parquet(bundle: Path, refused: Callable[..., str]) -> None:
    file = bundle / "requests.parquet"
    file.write_bytes(file.read_bytes()[:2000])
    assert "requests.parquet: not readable as parquet" in refused(bundle)


def test_missing_column(bundle: Path, refused: Callable[..., str]) -> None:
    spoil(bundle, lambda c: c.pop("prompt_tokens"))
    assert refused(bundle).endswith("requests.parquet: column 'prompt_tokens' is missing")


def test_negative_time(bundle: Path, refused: Callable[..., str]) -> None:
    spoil(bundle, lambda c: c["queued_s"].__setitem__(3, -1.0))
    assert "row 3, column 'queued_s' is -1.0: must be a number >= 0" in refused(bundle)


def test_time_that_is_no_number(bundle: Path, refused: Callable[..., str]) -> None:
    spoil(bundle, lambda c: c["finished_s"].__setitem__(5, float("nan")))
    assert "row 5, column 'finished_s' is nan: must be a number" in refused(bundle)


def test_arrivals_that_go_backwards(bundle: Path, refused: Callable[..., str]) -> None:
    spoil(bundle, lambda c: c["arrival_s"].__setitem__(7, 0.0))
    assert "row 7, column 'arrival_s' goes backwards" in refused(bundle)


def test_request_longer_than_the_model(
    bundle: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    line = refused(bundle, redeploy(bundle, tmp_path, max_model_len=300))
    assert "prompt +" in line
    assert "output tokens exceed max_model_len 300" in line


def test_kv_too_small_for_one_request(
    bundle: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    line = refused(bundle, redeploy(bundle, tmp_path, num_gpu_blocks=8))
    assert "KV blocks of 32 tokens, the engine has 7" in line


def test_unknown_engine_key(bundle: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    line = refused(bundle, redeploy(bundle, tmp_path, max_num_sequences=8))
    assert "unknown key clusters[0].engine.max_num_sequences; did you mean 'max_num_seqs'?" in line


def test_unknown_policy(bundle: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    line = refused(bundle, redeploy(bundle, tmp_path, scheduling_policy="fcsf"))
    assert "scheduling_policy: unknown 'fcsf'; did you mean 'fcfs'?" in line


def test_tp_that_does_not_divide_the_heads(
    bundle: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    line = refused(bundle, redeploy(bundle, tmp_path, tensor_parallel_size=3))
    assert "tensor_parallel_size: 3 does not divide the model's 8 attention heads" in line


def test_profile_of_another_layout(
    bundle: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    line = refused(bundle, redeploy(bundle, tmp_path, tensor_parallel_size=2))
    assert "fitted under tensor_parallel_size 1, the deployment has 2" in line


def test_empty_workload(tmp_path: Path, bundle: Path, refused: Callable[..., str]) -> None:
    file = tmp_path / "empty.csv"
    file.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n")
    assert "empty workload" in refused(file, bundle)


def test_no_deployment(tmp_path: Path, refused: Callable[..., str]) -> None:
    file = tmp_path / "w.csv"
    file.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n0,5,5\n")
    assert "not a bundle, so --deployment is needed" in refused(file)


def test_model_outside_the_bundle(bundle: Path, refused: Callable[..., str]) -> None:
    text = (bundle / "bundle.yaml").read_text()
    (bundle / "bundle.yaml").write_text(text.replace("model: model.json", "model: ../m.json"))
    assert "leaves the bundle" in refused(bundle)


def test_measured_bundle_is_never_overwritten(
    bundle: Path, frontier: Frontier, dense_profile: Path
) -> None:
    result = frontier("replay", bundle, "--operators", dense_profile, "--out", bundle)
    assert result.exit_code == 2
    assert "never overwritten" in result.stderr
