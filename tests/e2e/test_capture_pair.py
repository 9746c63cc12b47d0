"""A real prefill and a real decode engine over NIXL, captured and held against our schedulers."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from recorded_pair import agreements
from vllm_server import BIN, free_port, running, send, workload

from traces.bundle import read_bundle
from traces.samples.lab import following, pair_deployment, wait_until_up

pytestmark = pytest.mark.vllm
pytest.importorskip("nixl")
REQUESTS = 16
SHARE = 0.99  # of steps: what a transfer's end has missed by a poll is a step late


def test_the_pair_decides_as_our_schedulers_do(tmp_path: Path, models: Path) -> None:
    port = free_port()
    file, out = tmp_path / "pair.yaml", tmp_path / "bundle"
    file.write_text(yaml.safe_dump(pair_deployment(BIN.parent, models / "dense", port)))
    command = [BIN / "frontier", "capture", "--out", out, "--deployment", file]
    work = workload(tmp_path / "work", REQUESTS, 1.0, seed=1)
    with running(command, tmp_path / "log", port) as servers:
        servers.wait_until_up()
        wait_until_up(following(servers.url), servers.process, servers.log)
        client = send(work, servers.url, tmp_path / "client", "--decode-url",
                      following(servers.url))  # fmt: skip
        assert servers.stop() == 0, servers.said
    bundle = read_bundle(out)
    assert set(client.requests["status"].to_pylist()) == {"finished"}
    assert set(bundle.requests["status"].to_pylist()) == {"finished"}
    assert len(bundle.table("transfers")) == REQUESTS
    assert bundle.manifest.ignored == []
    for side in ("prefill-0", "decode-0"):
        assert bundle.manifest.notes[f"capture of {side}"]["patches"] == ["frontier_cpu_nixl"]
    for agreement in agreements(out).values():
        assert agreement.steps > 0
        assert agreement.share >= SHARE, agreement.first
        assert agreement.blocks >= SHARE * agreement.steps - 1
