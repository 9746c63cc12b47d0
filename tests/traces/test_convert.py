"""``frontier traces convert`` and ``inspect`` from the outside."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from traces.bundle import Manifest, read_bundle, write_bundle
from traces.inspect import prefix_share
from traces.load import load_workload

Run = Callable[..., Result]
VIDUR = "arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,600,3\n0.5,20,0\n1.5,1100,40\n"
MOON = (
    '{"timestamp": 0, "input_length": 1100, "output_length": 3, "hash_ids": [0, 1, 2]}\n'
    '{"timestamp": 250, "input_length": 1536, "output_length": 9, "hash_ids": [0, 1, 3]}\n'
)
STAMPS = {
    "request_id": "a", "input_toks": 5, "output_toks": 3, "arrival_time": 1.7e9,
    "queued_ts": 10.0, "scheduled_ts": 11.0, "first_token_ts": 12.0, "last_token_ts": 13.0,
}  # fmt: skip


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "vidur.csv").write_text(VIDUR)
    (tmp_path / "moon.jsonl").write_text(MOON)
    (tmp_path / "stamps.jsonl").write_text(json.dumps(STAMPS) + "\n")
    return tmp_path


def test_round_trip_through_a_bundle(here: Path, frontier: Run) -> None:
    for name, to in (("moon.jsonl", "mooncake"), ("vidur.csv", "vidur")):
        bundle, back = here / f"{to}.bundle", here / f"back.{to}"
        assert frontier("traces", "convert", here / name, "--to", "bundle",
                        "--out", bundle).exit_code == 0  # fmt: skip
        got = frontier("traces", "convert", bundle, "--to", to, "--out", back)
        assert got.exit_code == 0
        assert load_workload(back).requests == load_workload(here / name).requests
        assert "request_id" in got.output  # it says that ids are lost


def test_what_was_skipped_is_said_and_kept(here: Path, frontier: Run) -> None:
    got = frontier("traces", "convert", here / "vidur.csv", "--to", "bundle", "--out", here / "b")
    assert got.output == "requests without an output token skipped: 1\n"
    manifest = read_bundle(here / "b").manifest
    assert manifest.notes == {
        "workload": "vidur vidur.csv",
        "requests without an output token skipped": 1,
    }
    assert manifest.command == ["frontier", "traces", "convert", "vidur.csv"]


def test_prefixes_survive_from_16_to_512_tokens(here: Path, frontier: Run) -> None:
    frontier("traces", "synth", "--out", here / "s", "--requests", 40, "--prefixes", 1,
             "--prefix-tokens", 1030, "--prompt", "fixed:600", "--output", "fixed:5")  # fmt: skip
    frontier("traces", "convert", here / "s", "--to", "mooncake", "--out", here / "m")
    assert prefix_share(load_workload(here / "s").requests, 16) == 39 * 1024 / (40 * 1630)
    assert prefix_share(load_workload(here / "m").requests, 512) == 39 * 1024 / (40 * 1630)


def test_hash_blocks_that_do_not_divide_512_are_refused(here: Path, frontier: Run) -> None:
    frontier("traces", "synth", "--out", here / "s", "--requests", 9, "--prefixes", 1,
             "--block-tokens", 48)  # fmt: skip
    got = frontier("traces", "convert", here / "s", "--to", "mooncake", "--out", here / "m")
    assert got.exit_code == 2
    assert got.output.endswith("hash blocks of 48 tokens do not divide 512\n")


def test_measurements_become_measured_bundles(here: Path, frontier: Run) -> None:
    path = here / "stamps.jsonl"
    assert frontier("traces", "convert", path, "--to", "bundle", "--out", here / "b").exit_code == 0
    assert read_bundle(here / "b").manifest.kind == "measured"
    again = frontier("traces", "convert", path, "--to", "bundle", "--out", here / "b")
    assert again.exit_code == 2
    assert again.output.endswith("holds a measured bundle, which is never overwritten\n")


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["vidur.csv", "--to", "azure"],
         "--to azure: can only be read (can be written: bundle, mooncake, vidur)"),
        (["vidur.csv", "--to", "mooncak"],
         "--to: unknown format 'mooncak'; did you mean 'mooncake'?"),
        (["vidur.csv", "--from", "azur", "--to", "bundle"],
         "unknown workload format 'azur'; did you mean 'azure'?"),
        (["vidur.csv", "--from", "azure", "--to", "bundle"], "{}/vidur.csv: column 'TIMESTAMP' is"),
        (["gone", "--to", "bundle"], "{}/gone: no such file or directory"),
        (["vidur.csv", "--from", "bundle", "--to", "vidur"], "{}/vidur.csv: not a bundle"),
    ],
)  # fmt: skip
def test_one_clear_line_and_exit_2(
    here: Path, frontier: Run, arguments: list[str], what: str
) -> None:
    got = frontier("traces", "convert", here / arguments[0], *arguments[1:], "--out", here / "x")
    assert got.exit_code == 2
    assert got.output.startswith(f"frontier: {what.format(here)}")
    assert not (here / "x").exists()


class TestInspect:
    def said(self, got: Result) -> str:
        """The output, spaces and line breaks as one space."""
        assert got.exit_code == 0, got.output
        return " ".join(got.output.split())

    def test_a_trace(self, here: Path, frontier: Run) -> None:
        said = self.said(frontier("traces", "inspect", here / "moon.jsonl"))
        assert said.startswith("format mooncake requests 2 arrivals over 0.25 s, 4 a second")
        assert "shared prefixes 38.8% of the prompt tokens, in blocks of 512" in said  # 1024 / 2636
        assert "tokens mean p50 p90 p99 max prompt 1318 1318 1492 1532 1536" in said

    def test_a_measured_bundle(self, here: Path, frontier: Run) -> None:
        frontier("traces", "convert", here / "stamps.jsonl", "--to", "bundle", "--out", here / "b")
        said = self.said(frontier("traces", "inspect", here / "b"))
        assert "kind measured, seen by the engine engine vllm" in said
        assert "ended 1 finished ignored nothing" in said
        assert "TTFT 1 2000.000 2000.000 2000.000 TPOT 1 500.000" in said
        assert "E2EL 1 3000.000 3000.000 3000.000 Queue time 1 1000.000" in said
        assert "table rows columns partly filled columns absent requests 1 sent_s" in said

    def test_what_was_ignored_and_half_filled_columns(self, here: Path, frontier: Run) -> None:
        import pyarrow as pa

        requests = pa.table(
            {
                "request_id": ["a", "b"], "arrival_s": [0.0, 1.0], "prompt_tokens": [10, 30],
                "output_tokens": [1, 2], "cached_tokens": [0, 10], "preemptions": [0, 3],
                "queued_s": [0.5, None], "status": ["finished", "aborted"],
            }
        )  # fmt: skip
        manifest = Manifest("measured", ignored=["LoRA", "speculative decoding"])
        write_bundle(here / "b", manifest, {"requests": requests})
        said = self.said(frontier("traces", "inspect", here / "b"))
        assert "ended 1 finished, 1 aborted" in said
        assert "preempted 50.0% of the requests, 3 times" in said
        assert "found in the prefix cache 25.0% of the prompt tokens" in said
        assert "ignored LoRA; speculative decoding" in said
        assert "requests 2 queued_s 50% sent_s" in said

    def test_a_workload_bundle_says_that_it_is_one(self, here: Path, frontier: Run) -> None:
        frontier("traces", "synth", "--out", here / "s", "--requests", 5, "--turns", "fixed:2")
        said = self.said(frontier("traces", "inspect", here / "s"))
        assert "a workload: what is asked for, nothing that was done" in said
        assert "sessions 3" in said

    def test_bad_input(self, here: Path, frontier: Run) -> None:
        (here / "x").write_text("a,b\n")
        got = frontier("traces", "inspect", here / "x")
        assert (got.exit_code, got.output.count("\n")) == (2, 1)
        assert got.output.startswith(f"frontier: {here}/x: no known trace format (known: azure, ")
