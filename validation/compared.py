"""The metrics that are compared: names, labels, units, formulas.

Request metrics are ``traces.metrics``'; a disaggregated request's time is the sum of its
chain: queue, prefill, transfer wait, transfer, decode queue, decode. Where a deployment has
several clusters each has its own metrics of steps (``step_time.<cluster>``), and where spans
are recorded each stage has its own (``stage.<stage>``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from traces.metrics import METRICS


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric that is compared: its label, unit (``s``, ``requests``, ...) and formula.

    ``per`` says what one value belongs to: request (paired by id), token, step, span or run.
    """

    name: str
    label: str
    unit: str
    formula: str
    per: str


COMPARED: dict[str, Metric] = {
    m.name: m
    for m in (
        *(
            Metric(m.name, m.label, "s", m.formula, "token" if m.name == "itl" else "request")
            for m in METRICS.values()
        ),
        Metric("step_time", "Step time", "s", "end - start of steps that ran tokens", "step"),
        Metric("batch_size", "Batch size", "requests", "requests running in a step", "step"),
        Metric(
            "kv_use", "KV use", "frac", "1 - free_blocks / (num_gpu_blocks - 1), by step", "step"
        ),
        Metric(
            "throughput", "Throughput", "tokens/s",
            "output tokens / (last finish - first arrival)", "run",
        ),
    )
}  # fmt: skip
OF_STEPS = ("step_time", "batch_size", "kv_use")
_STAGE = Metric("stage", "Stage", "s", "end - start of its spans", "span")
_ORDER = (*COMPARED, _STAGE.name)


def metric_named(name: str) -> Metric:
    """The metric of a name. Raises KeyError if there is none.

    >>> metric_named("step_time.decode").label
    'Step time, decode'
    """
    if name in COMPARED:
        return COMPARED[name]
    family, _, member = name.partition(".")
    if not member or family not in (*OF_STEPS, _STAGE.name):
        raise KeyError(name)
    if family == _STAGE.name:
        return replace(_STAGE, name=name, label=f"Stage {member}")
    whole = COMPARED[family]
    return replace(whole, name=name, label=f"{whole.label}, {member}")


def in_order(names: Iterable[str]) -> list[str]:
    """Names of metrics as they are shown: requests, steps, the run, stages."""
    return sorted(names, key=lambda name: (_ORDER.index(family_of(name)), name))


def family_of(name: str) -> str:
    """``step_time`` of ``step_time.decode``."""
    return name.partition(".")[0]
