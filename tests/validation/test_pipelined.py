"""Pipelined steps held to the model: runs of known stage times, no torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from replay.af_testbed.disturbance import Disturbance
from replay.af_testbed.record import write_run
from replay.af_testbed.shape import Launch, ModelShape, Run, Wire
from replay.af_testbed.stamps import Record, Stamp
from simulator.pipeline import STAGES, Lanes, Pipeline, create_strategy
from traces.bundle import read_bundle
from traces.samples import HOME, sample_runs
from validation.pipelined import choices, lines, read_run, read_runs

SHAPE = ModelShape(3, 64, 4, 2, 16, 4, 2, 48, 128)
WIRE = Wire(bandwidth_gb_s=0.001, latency_us=100)
LAUNCH = Launch(SHAPE, WIRE, 1, 12, 3, 40, 3, False)
OUTPUT = 6
MS = 10**6  # in ns


def cost_ns(stage: str, size: int, layer: int, micro_batch: int) -> int:
    """Concave in size, another in each layer; the wire by its bandwidth."""
    if stage in ("a2f", "f2a"):
        return WIRE.occupied_ns(64 * size)
    return round((2 + size**0.7 + layer / 4) * MS * (1.5 if stage == "ffn" else 1))


def run(
    out: Path, m: int, batch: int, *, repeat: int = 0, lost: int | None = None,
    idle_ns: int = 0, cost: Callable[[str, int, int, int], int] = cost_ns,
) -> Path:  # fmt: skip
    """A bundle of a run in which step ``lost`` had half of its CPU time, in twice the time."""
    made = Run(batch, m, 8, OUTPUT)
    strategy = create_strategy("ping_pong" if m > 1 else "none")
    latency_ps = {"a2f": [WIRE.latency_ns * 1000], "f2a": [WIRE.latency_ns * 1000]}
    step = Pipeline(strategy, SHAPE.layers, m, Lanes(), latency_ps=latency_ps)
    sizes = [high - low for low, high in made.cut()]
    for i, stage in enumerate(STAGES[:4]):
        for layer in range(SHAPE.layers + (stage == "attention")):
            for b, size in enumerate(sizes):
                step.durations[i, layer, b] = cost(stage, size, layer, b) * 1000
    attention, ffn = Record(prompts=[[1] * 8] * batch), Record()
    now = 0
    for number in range(OUTPUT):
        slow = 2 if number == lost else 1
        took = step.evaluate() // 1000 * slow + idle_ns
        for span in step.spans():
            stage, layer, b = span.work
            record = attention if stage in ("attention", "a2f") else ffn
            start, end = (now + ps // 1000 * slow for ps in (span.start_ps, span.arrived_ps))
            closes = layer == SHAPE.layers
            record.stamps.append(Stamp(number, -1 if closes else layer, b, stage, start, end, 64))
        for record in (attention, ffn):
            record.steps.append((now, now + took))
            record.disturbances.append(Disturbance(took, took // slow, 0, 0))
        for layer in range(SHAPE.layers):
            attention.experts += [(number, b, layer, [n, n, 0, 0]) for b, n in enumerate(sizes)]
        now += took
    notes = {"launch": 0, "repeat": repeat}
    write_run(out / f"repeat{repeat}" / f"m{m}-b{batch}", LAUNCH, made, [attention, ffn], notes)
    return out


def test_stage_times_by_size_predict_every_cut(tmp_path: Path) -> None:
    for m, batch in ((1, 12), (1, 6), (1, 4), (2, 12), (3, 12)):
        run(tmp_path, m, batch)
    found = lines(read_runs(tmp_path), filtered=True)
    assert [(x.micro_batches, x.batch, x.steps, x.counted) for x in found] == [
        (1, 4, 5, 5), (1, 6, 5, 5), (1, 12, 5, 5), (2, 12, 5, 5), (3, 12, 5, 5),
    ]  # fmt: skip
    for line in found:
        assert line.replay < 1e-6
        assert abs(line.structure) < 1e-6
        assert line.prediction == pytest.approx(0, abs=1e-6)
    best = min(found[2:], key=lambda x: x.measured_s).micro_batches
    assert {c.better for c in choices(found) if c.right} >= {best}


def test_without_runs_of_its_sizes_nothing_is_claimed(tmp_path: Path) -> None:
    run(tmp_path, 1, 12)
    run(tmp_path, 2, 12)
    assert [x.predicted_s is None for x in lines(read_runs(tmp_path), filtered=True)] == [
        False,
        True,
    ]


def test_uneven_micro_batches_have_their_own_costs(tmp_path: Path) -> None:
    for m, batch in ((1, 4), (1, 3), (2, 7)):
        run(tmp_path, m, batch)
    last = lines(read_runs(tmp_path), filtered=True)[-1]
    assert (last.batch, last.prediction) == (7, pytest.approx(0, abs=1e-6))


def test_time_that_no_stage_explains_is_a_structural_error(tmp_path: Path) -> None:
    bundle = read_bundle(run(tmp_path, 2, 12, idle_ns=3 * MS) / "repeat0" / "m2-b12")
    measured = read_run(bundle)
    (line,) = lines([measured], filtered=True)
    missing = 3e-3 / line.measured_s
    assert line.structure == pytest.approx(-missing, rel=1e-6)
    assert line.replay == pytest.approx(missing, rel=1e-6)


def test_weights_that_stay_cached_show_as_an_error(tmp_path: Path) -> None:
    def cached(stage: str, size: int, layer: int, micro_batch: int) -> int:
        return cost_ns(stage, size, layer, 0) * (6 if stage == "ffn" and micro_batch else 10)

    for m, batch in ((1, 6), (2, 12)):
        run(tmp_path, m, batch, cost=cached)
    error = lines(read_runs(tmp_path), filtered=True)[-1].prediction
    assert error is not None
    assert error > 0.1


def test_disturbed_steps_are_left_out_and_told(tmp_path: Path) -> None:
    for repeat in (0, 1):
        run(tmp_path, 1, 6, repeat=repeat, lost=2)
        run(tmp_path, 2, 12, repeat=repeat)
    kept, every = (lines(read_runs(tmp_path), filtered=f) for f in (True, False))
    assert [(x.runs, x.steps, x.counted) for x in kept] == [(2, 10, 8), (2, 10, 10)]
    assert [(x.runs, x.steps, x.counted) for x in every] == [(2, 10, 10), (2, 10, 10)]
    assert kept[1].prediction == pytest.approx(0, abs=1e-6)
    assert every[1].prediction == pytest.approx(0.2, abs=1e-3)  # one of five took twice as long


def test_the_table(tmp_path: Path, frontier: Callable[..., Result]) -> None:
    for m, batch in ((1, 6), (2, 12)):
        run(tmp_path / "runs", m, batch)
    done = frontier("pipeline", tmp_path / "runs", "--out", tmp_path / "numbers.json")
    assert done.exit_code == 0, done.output
    assert "Rule: a step counts unless" in done.output
    assert "prediction m=2 " in done.output
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert [x["micro_batches"] for x in numbers["undisturbed"]] == [1, 2]


def test_what_is_no_run_of_the_testbed(tmp_path: Path, frontier: Callable[..., Result]) -> None:
    done = frontier("pipeline", tmp_path)
    assert (done.exit_code, done.output) == (2, f"frontier: {tmp_path}: no bundle in it\n")
    done = frontier("pipeline", sample_runs("dense-low")[0])
    assert done.exit_code == 2
    assert "not a run of the testbed" in done.output


def test_predicted_runs_as_bundles(tmp_path: Path, frontier: Callable[..., Result]) -> None:
    for m, batch in ((1, 6), (2, 12), (3, 12)):
        run(tmp_path / "runs", m, batch)
    done = frontier("pipeline", tmp_path / "runs", "--simulated", tmp_path / "simulated")
    assert done.exit_code == 0, done.output
    both = [read_bundle(tmp_path / place / "repeat0" / "m2-b12") for place in ("runs", "simulated")]
    assert not (tmp_path / "simulated" / "repeat0" / "m3-b12").exists()  # no run of size 4
    columns = ["cluster", "rank", "step", "micro_batch", "stage", "layer"]
    ours, theirs = (
        b.table("spans").to_pandas().query("step > 0").sort_values(columns) for b in both
    )
    assert ours[columns].fillna(-1).to_numpy().tolist() == (
        theirs[columns].fillna(-1).to_numpy().tolist()
    )
    for name in ("start_s", "end_s"):  # the truth was made by the same costs
        assert ours[name].to_numpy() == pytest.approx(theirs[name].to_numpy(), abs=1e-8)
    assert both[1].manifest.kind == "simulated"


def test_the_shipped_runs_of_the_testbed() -> None:
    """Undisturbed steps of a real launch, three repeats: replay, structure, prediction."""
    found = lines(read_runs(HOME / "attention-ffn"), filtered=True)
    assert [(x.micro_batches, x.batch, x.runs) for x in found] == [
        (1, 64, 3), (1, 96, 3), (1, 192, 3), (2, 192, 3), (3, 192, 3),
    ]  # fmt: skip
    for line in found:
        assert line.replay < 0.005
        assert abs(line.structure) < 0.01
        assert line.prediction is not None
        assert abs(line.prediction) < 0.06
    wide = choices(found)
    assert len(wide) >= 2
    assert all(choice.right for choice in wide)
