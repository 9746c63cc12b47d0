"""Captures of tensor-, data- and expert-parallel servers, and the plugin that makes EP run."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
from captures import check_join, check_progress, check_steps, requests_of
from vllm_server import (
    BIN,
    ENVIRONMENT,
    LIMIT_S,
    captured,
    free_port,
    running,
    send,
    vllm_serve,
    workload,
)

from replay.command import HOOKS
from simulator.routing import VllmDP
from traces.bundle import Bundle, read_bundle

pytestmark = pytest.mark.vllm
pytest.importorskip("vllm")

Answered = tuple[Bundle, list[list[int]]]
Call = dict[str, Any]
A_CORE_EACH = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}
CORES = len(os.sched_getaffinity(0))  # fewer than engines, workers and a front end: they sleep
REQUESTS = 30
LAYERS = 2
HIDDEN, TOP_K = 512, 2
BF16, FLOAT32, INT32 = 2, 4, 4

# greedy tokens, in float32: bfloat16 rounds otherwise where a sum is split
TOKENS = """
import json, sys
if __name__ == "__main__":
    from vllm import LLM, SamplingParams
    model, layout, prompts, out = sys.argv[1:]
    llm = LLM(
        model, skip_tokenizer_init=True, enforce_eager=True, dtype="float32", block_size=32,
        max_model_len=512, max_num_batched_tokens=256, **json.loads(layout),
    )
    greedy = SamplingParams(temperature=0, max_tokens=32, ignore_eos=True, detokenize=False)
    prompts = [{"prompt_token_ids": ids} for ids in json.loads(prompts)]
    given = llm.generate(prompts, greedy, use_tqdm=False)
    with open(out, "w") as file:
        json.dump([list(one.outputs[0].token_ids) for one in given], file)
"""
# each of two ranks has rows of a number of its own
COLLECTIVES = """
import sys
from types import SimpleNamespace
import torch, torch.distributed as dist
from frontier_cpu_ep.patches import all_gatherv, reduce_scatterv
rank, port = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
group = SimpleNamespace(world_size=2, rank_in_group=rank, device_group=dist.group.WORLD)
for sizes in ([1, 1], [1, 7], [5, 2], [3, 3], [4, 0]):
    rows = [torch.randn(n, 8, generator=torch.Generator().manual_seed(n)) for n in sizes]
    mixed = [[t.bfloat16(), t[:, :3].contiguous(), (10 * t).int()] for t in rows]
    for got, *wanted in zip(all_gatherv(group, mixed[rank], 0, sizes), *mixed):
        assert got.dtype == wanted[0].dtype and torch.equal(got, torch.cat(wanted))
    assert torch.equal(all_gatherv(group, rows[rank], 0, sizes), torch.cat(rows))
    parts = [torch.randn(sum(sizes), 8).bfloat16() for _ in range(2)]
    parts = [p.clone() for p in parts]
    for source, part in enumerate(parts):
        dist.broadcast(part, source)
    added = (parts[0].float() + parts[1].float()).bfloat16().split(sizes)[rank]
    assert torch.equal(reduce_scatterv(group, parts[rank], 0, sizes), added)
"""


def start(script: Path, *arguments: object) -> subprocess.Popen[str]:
    """Run a script with the plugins on its path."""
    environment = {**os.environ, **ENVIRONMENT, **A_CORE_EACH, "PYTHONPATH": str(HOOKS)}
    return subprocess.Popen(
        [sys.executable, str(script), *map(str, arguments)],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(process: subprocess.Popen[str]) -> None:
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, err[-4000:]


def test_the_added_collectives(tmp_path: Path) -> None:
    script, port = tmp_path / "collectives.py", free_port()
    script.write_text(COLLECTIVES)
    for rank in [start(script, rank, port) for rank in (0, 1)]:
        wait_for(rank)


def prompts() -> list[list[int]]:
    rng = random.Random(5)
    return [[rng.randrange(2, 8192) for _ in range(rng.randint(5, 120))] for _ in range(12)]


def tokens(model: Path, lab: Path, **layout: object) -> list[list[int]]:
    """What an engine of this layout answers to the prompts."""
    script, out = lab / "tokens.py", lab / "tokens.json"
    script.write_text(TOKENS)  # a file, for the engine's processes import it again
    wait_for(start(script, model, json.dumps(layout), json.dumps(prompts()), out))
    found: list[list[int]] = json.loads(out.read_text())
    return found


@pytest.fixture(scope="module")
def one_rank(models: Path, tmp_path_factory: pytest.TempPathFactory) -> list[list[int]]:
    """The right answers."""
    found = tokens(models / "moe", tmp_path_factory.mktemp("one"))
    assert [len(answer) for answer in found] == [32] * 12
    assert len({tuple(answer) for answer in found}) == 12
    return found


def test_tensor_parallel_answers_with_and_without_expert_parallel(
    models: Path, tmp_path: Path, one_rank: list[list[int]]
) -> None:
    assert tokens(models / "moe", tmp_path, tensor_parallel_size=2) == one_rank
    with_experts = {"tensor_parallel_size": 2, "enable_expert_parallel": True}
    assert tokens(models / "moe", tmp_path, **with_experts) == one_rank


def test_data_and_expert_parallel_answers(answered: Answered, one_rank: list[list[int]]) -> None:
    assert answered[1] == one_rank


@pytest.fixture(scope="module")
def tensor(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A dense model on two tensor-parallel ranks."""
    lab = tmp_path_factory.mktemp("tp2")
    return capture(lab, models / "dense", [], "--tensor-parallel-size", 2)[0]


@pytest.fixture(scope="module")
def answered(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Answered:
    """A MoE model on two data-parallel ranks that split the experts; two front ends."""
    lab = tmp_path_factory.mktemp("dp2ep2")
    layout = ("--data-parallel-size", 2, "--enable-expert-parallel", "--dtype", "float32")
    return capture(lab, models / "moe", prompts(), *layout)


@pytest.fixture(scope="module")
def expert(answered: Answered) -> Bundle:
    return answered[0]


def capture(lab: Path, model: Path, asked: list[list[int]], *arguments: object) -> Answered:
    """What a server did under a small load, and what it answered to ``asked``."""
    port = free_port()
    work = workload(lab / "work", REQUESTS, 3.0, seed=6)
    command = captured(lab / "out", vllm_serve(model, port, *arguments))
    with running(command, lab / "log", port, A_CORE_EACH) as server:
        server.wait_until_up()
        client = send(work, server.url, lab / "client")
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(partial(ask, server.url, str(model)), asked))
        assert server.stop() == 0, server.said[-4000:]
    bundle = read_bundle(lab / "out")
    assert len(bundle.requests) == REQUESTS + len(asked)
    loaded = pc.starts_with(bundle.requests["request_id"], "q")
    known = {"requests": bundle.requests.filter(loaded)}
    check_join(Bundle(bundle.path, bundle.manifest, known), client)
    assert check_progress(bundle) == 0
    return bundle, answers


def ask(url: str, model: str, ids: list[int]) -> list[int]:
    """The greedy answer to a prompt."""
    body = {"model": model, "prompt": ids, "max_tokens": 32, "temperature": 0, "ignore_eos": True}
    data = json.dumps({**body, "return_token_ids": True}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/completions", data, headers)
    with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:
        found: list[int] = json.load(answer)["choices"][0]["token_ids"]
        return found


def calls_of(bundle: Bundle) -> dict[int, dict[tuple[int, int], list[Call]]]:
    """Collectives in the order called, by step and (replica, rank)."""
    found: dict[int, dict[tuple[int, int], list[Call]]] = defaultdict(lambda: defaultdict(list))
    for row in bundle.table("spans").to_pylist():
        found[row["step"]][row["replica"], row["rank"]].append(row)
    return found


def together(calls: dict[tuple[int, int], list[Call]]) -> Iterator[list[Call]]:
    """The calls that all ranks make together; each ends after every rank has begun it."""
    for same in zip(*calls.values(), strict=True):
        assert len({(c["stage"], c["group"], c["layer"]) for c in same}) == 1
        assert max(c["start_s"] for c in same) < min(c["end_s"] for c in same)
        yield list(same)


def test_tensor_parallel_steps_and_collectives(tensor: Bundle) -> None:
    assert tensor.tables == ["requests", "steps", "step_requests", "spans"]
    check_steps(tensor)
    steps, calls = tensor.table("steps").to_pylist(), calls_of(tensor)
    assert calls.keys() == {step["step"] for step in steps}
    reduces = [None, *(layer for layer in range(LAYERS) for _ in ("attention", "mlp"))]
    for step in steps:
        ranks = calls[step["step"]]
        assert ranks.keys() == {(0, 0), (0, 1)}
        *reduced, logits = (same[0] for same in together(ranks))
        assert [c["layer"] for c in reduced] == reduces
        tokens = step["prefill_tokens"] + step["decode_tokens"]
        assert {(c["stage"], c["group"], c["bytes"]) for c in reduced} == {
            ("all_reduce", "tp", tokens * HIDDEN * BF16)
        }
        assert (logits["stage"], logits["group"], logits["layer"]) == ("all_gather", "tp", None)
        assert logits["bytes"] % (8192 * BF16) == 0
        mine = ranks[0, 0]
        assert sum(c["end_s"] - c["start_s"] for c in mine) < step["forward_s"]
        assert step["start_s"] < mine[0]["start_s"] < mine[-1]["end_s"] < step["end_s"]
    engine = tensor.manifest.deployment["clusters"][0]["engine"]
    assert engine["tensor_parallel_size"] == 2
    assert tensor.manifest.notes.get("patches", []) == ["frontier_cpu_wait"] * (CORES < 4)


def test_expert_parallel_ranks_go_in_lock_step(expert: Bundle) -> None:
    served = {row["replica"] for row in requests_of(expert).values()}
    assert served == {0, 1}
    steps = expert.table("steps").to_pylist()
    by_rank = [[s for s in steps if s["replica"] == rank] for rank in (0, 1)]
    assert len(by_rank[0]) == len(by_rank[1])
    alone = both = 0
    for first, second in zip(*by_rank, strict=True):
        assert first["step"] == second["step"]
        assert max(first["start_s"], second["start_s"]) < min(first["end_s"], second["end_s"])
        alone += first["dummy"] != second["dummy"]
        both += not (first["dummy"] or second["dummy"])
    assert min(alone, both) > 10
    for step in steps:
        tokens = step["prefill_tokens"] + step["decode_tokens"]
        assert (tokens == 0) == step["dummy"]
        assert 0 < step["forward_s"] <= step["end_s"] - step["start_s"]


def test_expert_parallel_collectives_carry_every_ranks_tokens(expert: Bundle) -> None:
    steps, calls = expert.table("steps").to_pylist(), calls_of(expert)
    tokens: dict[int, int] = defaultdict(int)
    for step in steps:  # a dummy batch is one token
        tokens[step["step"]] += step["prefill_tokens"] + step["decode_tokens"] or 1
    assert calls.keys() == tokens.keys()
    row = HIDDEN * FLOAT32
    for step, count in tokens.items():
        assert calls[step].keys() == {(0, 0), (1, 0)}
        agree, *layers = (same[0] for same in together(calls[step]))
        assert (agree["stage"], agree["group"], agree["layer"]) == ("all_reduce", "dp", None)
        assert [(c["stage"], c["group"], c["layer"], c["bytes"]) for c in layers] == [
            call
            for layer in range(LAYERS)
            for call in (
                ("all_gather", "dp", layer, count * (row + TOP_K * (FLOAT32 + INT32))),
                ("reduce_scatter", "dp", layer, count * row),
            )
        ]


def test_experts_of_every_ranks_own_tokens(expert: Bundle) -> None:
    table = expert.table("experts").to_pylist()
    steps = [s for s in expert.table("steps").to_pylist() if not s["dummy"]]
    assert [(row["replica"], row["step"], row["layer"]) for row in table] == [
        (step["replica"], step["step"], layer) for step in steps for layer in range(LAYERS)
    ]
    sums = [sum(row["expert_tokens"]) for row in table[::LAYERS]]
    assert sums == [TOP_K * (step["prefill_tokens"] + step["decode_tokens"]) for step in steps]
    by_rank = [
        sum(np.array(row["expert_tokens"]) for row in table if row["replica"] == rank)
        for rank in (0, 1)
    ]
    for counts in by_rank:  # a rank routes to the other's experts too
        assert counts.shape == (16,)
        assert counts[:8].sum() > 0
        assert counts[8:].sum() > 0


def test_the_choice_of_rank_follows_from_the_captured_snapshots(expert: Bundle) -> None:
    choices = expert.table("routing").to_pylist()
    served = {name: row["replica"] for name, row in requests_of(expert).items()}
    assert {row["request_id"]: row["replica"] for row in choices} == served
    fronts = {row["client"]: router_of(row["client"], row["clients"]) for row in choices}
    assert len(fronts) == choices[0]["clients"] == 2
    for row in choices:
        router, ranks = fronts[row["client"]]
        for rank, unfinished in zip(ranks, row["in_flight"], strict=True):
            rank.unfinished = row["clients"] * unfinished  # the others hold as many, it assumes
        loads = zip(row["waiting"], row["running"], row["kv_usage_frac"], strict=True)
        router.publish(list(loads))
        assert router.choose() == row["replica"], row
    assert any(sum(row["waiting"]) + sum(row["running"]) > 0 for row in choices)
    assert any(row["in_flight"][0] != row["in_flight"][1] for row in choices)


def router_of(client: int, clients: int) -> tuple[VllmDP, list[Any]]:
    """A front end's router over two ranks, its first scan started where that front end's does."""
    ranks = [SimpleNamespace(unfinished=0) for _ in range(2)]
    router = VllmDP(ranks)
    for _ in range(2 * client // clients):
        router.choose()
    return router, ranks


def test_the_bundle_says_how_it_ran(expert: Bundle) -> None:
    cluster = expert.manifest.deployment["clusters"][0]
    assert cluster["engine"].items() >= {
        "data_parallel_size": 2, "enable_expert_parallel": True, "tensor_parallel_size": 1,
    }.items()  # fmt: skip
    patches = ["frontier_cpu_ep", *["frontier_cpu_wait"] * (CORES < 5)]
    assert expert.manifest.notes["patches"] == patches
    assert expert.manifest.deployment["routing"] == {"policy": "vllm_dp"}
    assert (BIN / "vllm").name in expert.manifest.command
