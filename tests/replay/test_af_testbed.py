"""The attention/FFN testbed: the tokens of one process, whatever the processes and cuts."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from threading import Timer

import pytest
from click.testing import CliRunner

from replay.af_testbed.__main__ import main
from replay.af_testbed.launch import Engine
from replay.af_testbed.record import write_run
from replay.af_testbed.shape import Launch, ModelShape, Run, Wire
from traces.bundle import read_bundle
from traces.errors import CaptureError

torch = pytest.mark.vllm  # comes with it
SHAPE = ModelShape(
    layers=2, hidden=64, heads=4, kv_heads=2, head_dim=16, experts=8, top_k=2, inter=48, vocab=128
)
RUN = Run(batch=5, micro_batches=1, prompt=10, output=6, spread=6)


def launch(ranks: int = 1, wire: Wire = Wire(), copies: int = 3) -> Launch:  # noqa: B008
    return Launch(SHAPE, wire, ranks, RUN.batch, 3, RUN.prompt + RUN.output, copies, True)


@pytest.fixture(scope="module")
def truth() -> tuple[list[list[int]], dict[tuple[int, int], Counter[int]]]:
    """Tokens by request, and tokens per expert by step and layer, from one process."""
    from af_reference import Reference

    from replay.af_testbed.part import prompts_of

    reference, tokens, experts = Reference(SHAPE), [], {}
    for prompt in prompts_of(RUN, SHAPE.vocab):
        found, counted = reference.generate(prompt, RUN.output)
        tokens.append(found)
        for step, layers in enumerate(counted):
            for layer, count in enumerate(layers):
                experts.setdefault((step, layer), Counter()).update(count)
    assert len({tuple(t) for t in tokens}) == RUN.batch
    assert len({t for some in tokens for t in some}) > 10, "the model says one thing only"
    return tokens, experts


@torch
@pytest.mark.parametrize(("ranks", "copies"), [(1, 3), (2, 1)])
def test_the_tokens_of_one_process(
    ranks: int, copies: int, truth: tuple[list[list[int]], dict[tuple[int, int], Counter[int]]],
    tmp_path: Path,
) -> None:  # fmt: skip
    started = launch(ranks, copies=copies)
    with Engine(started) as engine:
        runs = [Run(RUN.batch, m, RUN.prompt, RUN.output, RUN.spread) for m in (3, 1, 2)]
        for run, records in zip(runs, engine.run(runs), strict=True):
            assert records[0].tokens == truth[0]
            found: dict[tuple[int, int], Counter[int]] = {}
            for step, _, layer, counts in records[0].experts:
                per_expert = {e: n for e, n in enumerate(counts) if n}
                found.setdefault((step, layer), Counter()).update(per_expert)
            assert found == truth[1]
            _check_bundle(tmp_path / f"m{run.micro_batches}", started, run, records)


def _check_bundle(out: Path, started: Launch, run: Run, records: list) -> None:  # type: ignore[type-arg]
    write_run(out, started, run, records, {"launch": 0, "repeat": 0})
    bundle = read_bundle(out)
    spans = bundle.table("spans").to_pandas()
    counts = spans[spans["layer"].notna()].groupby("stage").size()
    each = run.output * SHAPE.layers * run.micro_batches
    ranks = started.ffn_ranks
    assert counts.to_dict() == {
        "attention": each, "a2f": ranks * each, "ffn": ranks * each, "f2a": ranks * each,
    }  # fmt: skip
    back = spans[(spans["stage"] == "f2a") & (spans["step"] > 0)]
    rows = back.groupby(["step", "layer"])["bytes"].sum() / (4 * SHAPE.hidden)
    assert rows.between(run.batch, ranks * run.batch).all()
    assert ranks == 1 or (rows < ranks * run.batch).any(), "every token went to both ranks"
    steps = bundle.table("steps").to_pandas()
    inside = spans.merge(steps, on="step", suffixes=("", "_of_step"))
    assert (inside["start_s"] >= inside["start_s_of_step"]).all()
    assert (inside["end_s"] <= inside["end_s_of_step"]).all()


@torch
def test_more_micro_batches_than_requests() -> None:
    with Engine(launch()) as engine:
        record = engine.run([Run(2, 3, 5, 3)])[0][0]
    assert {stamp.micro_batch for stamp in record.stamps} == {0, 1}


@torch
def test_a_shaped_wire_carries_one_message_at_a_time() -> None:
    wire = Wire(bandwidth_gb_s=0.01, latency_us=500)
    with Engine(launch(wire=wire)) as engine:
        (records,) = engine.run([Run(6, 3, 5, 4)])
    for record, stage in zip(records, ("a2f", "f2a"), strict=True):
        sent = [s for s in record.stamps if s.stage == stage]
        for stamp in sent:
            assert stamp.end_ns - stamp.start_ns == wire.occupied_ns(stamp.bytes) + 500_000
        for one, other in pairwise(sent):
            assert other.start_ns >= one.end_ns - 500_000
    taken = {
        (s.step, s.layer, s.micro_batch): s.end_ns for s in records[0].stamps if s.stage == "a2f"
    }
    for stamp in records[1].stamps:
        if stamp.stage == "ffn":
            assert stamp.start_ns >= taken[stamp.step, stamp.layer, stamp.micro_batch]


@torch
def test_a_process_that_fails_ends_the_launch() -> None:
    with Engine(launch()) as engine, pytest.raises(CaptureError, match="IndexError"):
        engine.run([Run(RUN.batch, 1, 40, 2)])
    with Engine(launch()) as engine:
        Timer(0.5, engine._processes[1].kill).start()
        with pytest.raises(CaptureError, match="died"):
            engine.run([Run(RUN.batch, 1, 4, 16)] * 2000)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--micro-batches", "1,9", "--batch", "8"], "--micro-batches: 1 to 8"),
        (["--micro-batches", "two"], "--micro-batches: not numbers: 'two'"),
        (["--experts", "7", "--ffn-ranks", "2"], "--experts: 2 FFN ranks do not divide 7"),
        (["--latency-us", "5"], "--latency-us: a shaped wire needs --bandwidth-gb-s too"),
        (["--out", str(Path(__file__).parent)], f"--out {Path(__file__).parent}: exists and is"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["--out", str(tmp_path / "x"), *arguments])
    assert done.exit_code == 2
    assert done.output.startswith(f"af_testbed: {message}")
    assert done.output.count("\n") == 1
