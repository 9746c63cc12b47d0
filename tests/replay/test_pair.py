"""How the engines of a deployment file are started."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from replay.pair import Launch, serve_command
from simulator.deployment import Cluster, Engine, Link

LINK = Link(**{"from": "p", "to": "d", "bandwidth_gb_s": 1.0, "lease_s": 12.0})
FILE = """
model: traces/models/llama-2-7b.json
clusters: [{name: p, role: prefill}, {name: d, role: decode}]
links: [{from: p, to: d, bandwidth_gb_s: 1}]
launch: {checkpoint: weights}
"""


def test_keys_become_arguments() -> None:
    cluster = Cluster(name="d", role="decode", engine=Engine(num_gpu_blocks=50, max_num_seqs=8))
    launch = Launch(checkpoint="m", arguments=["--skip-tokenizer-init"], port=9000)
    command = serve_command(launch, cluster, LINK, 1)
    assert command[:4] == ["vllm", "serve", "m", "--skip-tokenizer-init"]
    assert command[4:10] == [
        "--max-num-seqs", "8", "--num-gpu-blocks-override", "50", "--port", "9001",
    ]  # fmt: skip
    assert json.loads(command[-1]) == {
        "kv_connector": "NixlConnector",
        "kv_role": "kv_consumer",
        "kv_connector_extra_config": {"kv_lease_duration": 12},
    }


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "role: decode",
            "role: prefill",
            "one prefill and one decode cluster, got prefill, prefill",
        ),
        ("from: p, to: d", "from: d, to: p", "links: one from p to d is needed"),
        ("{checkpoint: weights}", "{}", "launch.checkpoint: Field required"),
        ("weights}", "weights, prot: 1}", "launch.prot: Extra inputs are not permitted"),
    ],
)
def test_bad_files(
    tmp_path: Path, frontier: Callable[..., Result], old: str, new: str, said: str
) -> None:
    assert old in FILE
    (tmp_path / "d.yaml").write_text(FILE.replace(old, new))
    done = frontier("capture", "--deployment", tmp_path / "d.yaml", "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert said in done.output
    assert not (tmp_path / "out").exists()


def test_a_command_or_a_deployment(tmp_path: Path, frontier: Callable[..., Result]) -> None:
    done = frontier("capture", "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "or --deployment D" in done.output
