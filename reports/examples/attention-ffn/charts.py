"""What a decode step takes with attention and FFN apart, over micro-batches and bandwidth.

    python reports/examples/attention-ffn/charts.py runs/h200 --out runs/charts

Prints the tables and crossing points, and draws ``micro-batches.svg`` and ``bandwidth.svg``.
Every time is the mean over draws of the expert loads. "Not apart" is ``colocated.yaml`` with
the same decodes, on as many GPUs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from replay.plan import Plan, load_step_time, make_plan
from replay.plan_attention_ffn import priced_split
from reports.svg import line_chart
from simulator.pipeline import idle_times
from simulator.step_time.attention_ffn import attention_ffn_step_time
from simulator.step_time.base import BatchShape, StepTimeModel
from simulator.step_time.pipelined import PipelinedStepTime
from simulator.step_time.split import Split

HERE = Path(__file__).resolve().parent
CONTEXT = 800  # tokens before a decode
DRAWS = 8
DECODES = (16, 32, 64, 128, 256)  # on an attention rank
FIXED = 128
MICRO_BATCHES = (1, 2, 3, 4, 5, 6)
BANDWIDTHS = (12.5, 25.0, 50.0, 100.0, 200.0, 400.0)  # GB/s of a port


def decodes(rows: int, ranks: int, draw: int) -> BatchShape:
    """``rows`` decodes on each of ``ranks``."""
    return BatchShape(
        tokens=rows, rows=rows, sampled=rows, decodes=rows, decode_context=rows * CONTEXT,
        decode_context_sq=rows * CONTEXT**2, decode_context_max=CONTEXT,
        engine_tokens=ranks * rows, most_tokens=rows, most_rows=rows, draw=draw,
    )  # fmt: skip


def step_ms(model: StepTimeModel, rows: int, ranks: int) -> float:
    """Milliseconds of a decode step."""
    times = [model.times(decodes(rows, ranks, d)) for d in range(DRAWS)]
    return float(np.mean([t.alone for t in times])) / 1e9


def held_ms(model: PipelinedStepTime, rows: int, ranks: int, micro_batches: int) -> float:
    """The same in so many micro-batches."""
    model.hold(micro_batches)
    return step_ms(model, rows, ranks)


def crossing(xs: Sequence[float], one: Sequence[float], other: Sequence[float]) -> float | None:
    """Where ``one`` falls below ``other`` for good, between two of ``xs`` in their logarithm."""
    above = [a > b for a, b in zip(one, other, strict=True)]
    if above[-1] or not any(above):
        return None if above[-1] else xs[0]
    i = len(above) - 1 - above[::-1].index(True)
    gaps = [np.log(one[k] / other[k]) for k in (i, i + 1)]
    share = gaps[0] / (gaps[0] - gaps[1])
    return float(np.exp(np.log(xs[i]) + share * np.log(xs[i + 1] / xs[i])))


def over_micro_batches(split: Split, ranks: int, beside: Mapping[int, float]) -> str:
    """Print step times by decodes and micro-batches, and who idles; returns the chart.

    ``beside``: what the same decodes take if not apart.
    """
    model, _ = attention_ffn_step_time(split)
    found = {n: [held_ms(model, n, ranks, m) for m in MICRO_BATCHES] for n in DECODES}
    print("decode step, ms, by micro-batches")
    print("decodes a rank " + "".join(f"{m:>8}" for m in MICRO_BATCHES) + "  not apart")
    for n, times in found.items():
        print(f"{n:>14} " + "".join(f"{ms:>8.2f}" for ms in times) + f"{beside[n]:>11.2f}")
    for fewer, more in ((1, 2), (2, 3), (3, 4)):
        one, other = ([found[n][m - 1] for n in DECODES] for m in (more, fewer))
        print(f"{more} micro-batches beat {fewer} {_from_decodes(crossing(DECODES, one, other))}")
    best = [min(found[n]) for n in DECODES]
    at = crossing(DECODES, best, [beside[n] for n in DECODES])
    print(f"the best number beats not apart {_from_decodes(at)}")
    print(f"idle share of a step of {FIXED} decodes a rank")
    print("micro-batches " + "".join(f"{name:>11}" for name in ("attention", "ffn", "a2f", "f2a")))
    for m in MICRO_BATCHES[:4]:
        model.hold(m)
        idle = {i.resource: i for i in idle_times(model.pipeline_of(decodes(FIXED, ranks, 0)))}
        shares = {}
        for name in ("attention", "ffn", "a2f", "f2a"):
            waited = sum(idle[name].waited_ps.values())
            shares[name] = waited / (waited + idle[name].busy_ps)
        print(f"{m:>13} " + "".join(f"{share:>11.0%}" for share in shares.values()))
    series = {f"{n} decodes": list(zip(map(float, MICRO_BATCHES), t, strict=True))
              for n, t in found.items()}  # fmt: skip
    rings = [min(zip(times, MICRO_BATCHES, strict=True)) for times in found.values()]
    return line_chart(
        "A decode step, 16 attention and 16 FFN ranks, 50 GB/s (ringed: the best)",
        "micro-batches", "ms", series, marks=[("", float(m), ms) for ms, m in rings],
    )  # fmt: skip


def over_bandwidth(split: Split, ranks: int, beside_ms: float) -> str:
    """Print step times by bandwidth; returns the chart. ``beside_ms``: decode, not pipelined."""
    found: dict[int, list[float]] = {m: [] for m in (1, 2, 3)}
    for gb_s in BANDWIDTHS:
        for side in split.ffn:
            side.to = side.to.model_copy(update={"bandwidth_gb_s": gb_s})
            side.back = side.back.model_copy(update={"bandwidth_gb_s": gb_s})
        model, _ = attention_ffn_step_time(split)
        for m, times in found.items():
            times.append(held_ms(model, FIXED, ranks, m))
    print(f"decode step of {FIXED} decodes a rank, ms, by GB/s of a port")
    print("micro-batches " + "".join(f"{gb_s:>8g}" for gb_s in BANDWIDTHS))
    for m, times in found.items():
        print(f"{m:>13} " + "".join(f"{ms:>8.2f}" for ms in times))
    print(f"{'not apart':>13} " + f"{beside_ms:>8.2f}" * len(BANDWIDTHS))
    flat = [beside_ms] * len(BANDWIDTHS)
    marks = []
    for m, times in found.items():
        at = crossing(BANDWIDTHS, times, flat)
        print(f"{m} micro-batches beat not apart {_from(at)}")
        if at is not None and at > BANDWIDTHS[0]:
            marks.append((f"{m}: {at:.0f} GB/s", at, beside_ms))
    for m in (2, 3):
        at = crossing(BANDWIDTHS, [t / 1.05 for t in found[m]], [found[m][-1]] * len(BANDWIDTHS))
        print(f"links cost {m} micro-batches less than 5 % {_from(at)}")
    series = {f"{m} micro-batches": list(zip(BANDWIDTHS, t, strict=True)) for m, t in found.items()}
    series["not apart"] = list(zip(BANDWIDTHS, flat, strict=True))
    return line_chart(
        f"A decode step of {FIXED} decodes an attention rank", "GB/s of a port", "ms", series,
        log_x=True, marks=marks,
    )  # fmt: skip


def _from_decodes(rows: float | None) -> str:
    if rows is None:
        return "nowhere here"
    return f"from {rows:.0f} decodes a rank on" if rows > DECODES[0] else "everywhere here"


def _from(gb_s: float | None) -> str:
    if gb_s is None:
        return "nowhere here"
    return f"from {gb_s:.0f} GB/s on" if gb_s > BANDWIDTHS[0] else "everywhere here"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("profile", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr)  # noqa: E731
    together = make_plan(HERE / "colocated.yaml", operators=given.profile)
    apart = _tried(make_plan(HERE / "af.yaml", operators=given.profile), MICRO_BATCHES[-1])
    ranks, all_ranks = apart.only.schedulers, together.only.schedulers
    given.out.mkdir(parents=True, exist_ok=True)
    model = load_step_time(together, None, say)[0]
    beside = {n: step_ms(model, n * ranks // all_ranks, all_ranks) for n in DECODES}
    with priced_split(apart, say) as (split, _):
        (given.out / "micro-batches.svg").write_text(over_micro_batches(split, ranks, beside))
        (given.out / "bandwidth.svg").write_text(over_bandwidth(split, ranks, beside[FIXED]))


def _tried(plan: Plan, micro_batches: int) -> Plan:
    """The plan with pipelines up to so many micro-batches."""
    pipeline = plan.deployment.pipeline.model_copy(update={"micro_batches": micro_batches})
    return replace(plan, deployment=plan.deployment.model_copy(update={"pipeline": pipeline}))


if __name__ == "__main__":
    main()
