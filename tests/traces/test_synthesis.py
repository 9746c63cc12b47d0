"""Synthetic workloads: what is asked for is what comes out, and hashes say what is shared."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from replay.verbs.traces import traces_synth
from traces.bundle import read_bundle
from traces.errors import ConfigError
from traces.inspect import prefix_share
from traces.load import load_workload
from traces.synthesis import Recipe, synthesise
from traces.workload import Workload


def made(seed: int = 1, requests: int = 500, rate_per_s: float = 2.0, **recipe: Any) -> Workload:
    return synthesise(Recipe(requests, rate_per_s, **recipe), np.random.default_rng(seed))


def rows(workload: Workload) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = workload.requests.to_pylist()
    return found


def test_plain_requests_share_nothing_and_carry_no_hashes() -> None:
    workload = made(prompt="fixed:40", output="lognormal:20,0.5,5,60", requests=1000)
    table = workload.requests
    assert table.column_names == ["request_id", "arrival_s", "prompt_tokens", "output_tokens"]
    assert workload.hash_block_tokens is None
    assert table["request_id"].to_pylist()[::999] == ["000", "999"]
    assert {*table["prompt_tokens"].to_pylist()} == {40}
    assert abs(table["arrival_s"][-1].as_py() / 500 - 1) < 0.15


def test_the_same_seed_gives_the_same_requests_and_another_others() -> None:
    recipe = {"prefixes": 2, "turns": "lognormal:3,0.5,1,8"}
    assert made(**recipe).requests == made(**recipe).requests
    assert made(**recipe).requests != made(seed=2, **recipe).requests


def test_prefixes_are_shared_by_their_sessions_only() -> None:
    workload = made(
        prefixes=3, prefix_tokens=70, prefix_share=0.6, prompt="fixed:30", output="fixed:10"
    )
    # 70 tokens of a prefix are 4 full blocks of 16; the fifth holds tokens of the request
    with_one = [r for r in rows(workload) if r["prompt_tokens"] == 100]
    without = [r for r in rows(workload) if r["prompt_tokens"] == 30]
    assert len(with_one) + len(without) == 500
    assert abs(len(with_one) / 500 - 0.6) < 0.1
    assert {len(r["block_hashes"]) for r in with_one} == {110 // 16}
    heads = {tuple(r["block_hashes"][:4]) for r in with_one}
    assert len(heads) == 3
    assert len({h for head in heads for h in head}) == 12
    tails = [h for r in with_one for h in r["block_hashes"][4:]]
    tails += [h for r in without for h in r["block_hashes"]]
    assert len(tails) == len({*tails})
    seen = (len(with_one) - 3) * 64
    assert prefix_share(workload.requests, 16) == pytest.approx(
        seen / workload.requests["prompt_tokens"].to_numpy().sum()
    )


def test_a_turn_contains_the_conversation_before_it() -> None:
    workload = made(
        requests=90, turns="fixed:4", think="fixed:3", answer_s=0.5, prefixes=1, prefix_tokens=20,
        prompt="lognormal:30,0.4,10,90", output="lognormal:20,0.4,5,60",
    )  # fmt: skip
    sessions: dict[str, list[dict[str, Any]]] = {}
    for row in rows(workload):
        sessions.setdefault(row["session_id"], []).append(row)
    assert [len(s) for s in sessions.values()].count(4) == 22
    assert min(len(s) for s in sessions.values()) == 2  # the last one, cut at 90 requests
    for turns in sessions.values():
        assert [t["turn"] for t in turns] == list(range(len(turns)))
        assert turns[0]["think_s"] == 0
        for before, after in pairwise(turns):
            told = before["prompt_tokens"] + before["output_tokens"]
            assert 10 <= after["prompt_tokens"] - told <= 90
            assert after["block_hashes"][: told // 16] == before["block_hashes"]
            assert after["arrival_s"] - before["arrival_s"] == pytest.approx(3.5)
            assert after["think_s"] == 3
    arrival_s = workload.requests["arrival_s"].to_numpy()
    assert np.all(np.diff(arrival_s) >= 0)
    first_blocks = {s[0]["block_hashes"][0] for s in sessions.values()}
    assert len(first_blocks) == 1  # the system prompt's only full block
    others = [{h for t in s for h in t["block_hashes"][1:]} for s in sessions.values()]
    assert sum(map(len, others)) == len(set().union(*others))


def test_the_rate_counts_every_turn() -> None:
    workload = made(requests=4000, rate_per_s=5, turns="fixed:4", think="fixed:0.1", answer_s=0)
    assert abs(4000 / workload.requests["arrival_s"][-1].as_py() / 5 - 1) < 0.15


def test_lengths_of_another_workload(tmp_path: Path) -> None:
    known = {(5, 50), (6, 60), (7, 70)}
    text = "".join(f"{i},{p},{o}\n" for i, (p, o) in enumerate(sorted(known)))
    path = tmp_path / "known.csv"
    path.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n" + text)
    lengths = made(prompt=f"from:{path}", output=f"from:{path}").requests.to_pylist()
    assert {(r["prompt_tokens"], r["output_tokens"]) for r in lengths} == known
    mixed = made(prompt="fixed:9", output=f"from:{path}")
    assert {*mixed.requests["output_tokens"].to_pylist()} == {50, 60, 70}
    assert mixed.notes["recipe"]["output"] == "from:known.csv"


@pytest.mark.parametrize(
    ("recipe", "what"),
    [
        ({"requests": 0}, "a workload needs at least 1 request and a rate above 0"),
        ({"rate_per_s": 0.0}, "a workload needs at least 1 request and a rate above 0"),
        ({"prompt": "fixed:0"}, "prompt: drew 0, must be at least 1"),
        ({"turns": "fixed:0.2"}, "turns: drew 0.2, must be at least 1"),
        ({"output": "exact:3"}, "distribution: unknown 'exact' (known: fixed, lognormal)"),
    ],
)
def test_impossible_recipes(recipe: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError) as error:
        made(**recipe)
    assert str(error.value) == what


class TestCommand:
    def test_makes_a_bundle_that_says_how_it_was_made(
        self, tmp_path: Path, frontier: Callable[..., Result]
    ) -> None:
        got = frontier("traces", "synth", "--out", tmp_path / "b", "--requests", 50, "--rate", 3,
                       "--turns", "fixed:2", "--prefixes", 1, "--seed", 4)  # fmt: skip
        assert got.exit_code == 0, got.output
        bundle = read_bundle(tmp_path / "b")
        recipe = {"turns": "fixed:2", "prefixes": 1}
        assert load_workload(tmp_path / "b").requests == made(4, 50, 3, **recipe).requests
        assert (bundle.manifest.seed, bundle.manifest.hash_block_tokens) == (4, 16)
        assert Recipe(**bundle.manifest.notes["recipe"]) == Recipe(50, 3.0, **recipe)

    def test_writes_other_formats(self, tmp_path: Path, frontier: Callable[..., Result]) -> None:
        for to in ("mooncake", "vidur"):
            out = tmp_path / f"{to}.gz"
            got = frontier("traces", "synth", "--out", out, "--to", to, "--requests", 20)
            assert got.exit_code == 0, got.output
            assert load_workload(out).source == f"{to} {out.name}"
        got = frontier("traces", "synth", "--out", tmp_path / "a", "--to", "azure")
        assert got.exit_code == 2
        assert got.output == (
            "frontier: --to azure: can only be read (can be written: bundle, mooncake, vidur)\n"
        )

    def test_defaults_are_those_of_a_recipe(self) -> None:
        given = traces_synth.make_context("synth", ["--out", "w"]).params
        for name, field in inspect.signature(Recipe).parameters.items():
            if field.default is not field.empty:
                assert given[name] == field.default, name
