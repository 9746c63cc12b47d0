"""One point of a sweep: deployment, constraints, replay, metrics. Nothing but its inputs counts.

Runs in any process that was given the ``Context`` once; whatever a point does short of
killing its process is told in its row.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from replay.plan import Plan, make_plan
from replay.simulate import replay
from replay.whatif.base import Files, deployment_hash
from replay.whatif.capacity import Found, find_capacity
from replay.whatif.keys import Raw
from replay.whatif.spec import Statistic, Sweep, slo_column, statistics_of
from simulator.deployment import Cluster
from simulator.hardware import load_hardware
from simulator.memory import block_bytes, pipeline_stages
from simulator.pipeline.roles import attention_part, ffn_weights
from simulator.weights import weight_bytes
from traces.bundle import Bundle, Manifest
from traces.digest import text_digest
from traces.errors import ConfigError, FrontierError, TraceError
from traces.metrics import Floats, column, request_metrics
from traces.workload import WARM_UP, Workload, scale_rate

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Task:
    """A point ready to evaluate; ``key`` says all that its row depends on."""

    key: str
    raw: Raw
    rate_scale: float
    concurrency: int | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Context:
    """What all points of a sweep share; ``digest`` says all of it."""

    workload: Workload
    files: Files
    sweep: Sweep
    digest: str

    def task(
        self, raw: Raw, rate_scale: float, concurrency: int | None, notes: Sequence[str]
    ) -> Task:
        """The task of a deployment at a load."""
        key = text_digest([self.digest, deployment_hash(raw), rate_scale, concurrency])
        return Task(key, raw, rate_scale, concurrency, tuple(notes))


class Infeasible(ConfigError):
    """A deployment that takes more than the sweep allows."""


class Evaluator:
    """Evaluates tasks in a folder of its own, where the files lie.

    The folder is made in ``scratch``, which the caller removes; on another machine, where
    there is no such, among the temporary ones.
    """

    def __init__(self, context: Context, scratch: Path) -> None:
        self._context = context
        parent = scratch if scratch.is_dir() else None
        self._home = Path(tempfile.mkdtemp(prefix="frontier-whatif-", dir=parent)).resolve()
        context.files.lay_out(self._home)
        self._statistics = statistics_of(context.sweep)

    def __call__(self, task: Task) -> Row:
        """The row of a point, without its number and settings. Raises KeyboardInterrupt."""
        row: Row = {"deployment": deployment_hash(task.raw), "status": "ok", "reason": None}
        row["notes"] = "; ".join(task.notes) or None
        try:
            self._evaluate(task, row)
        except (ConfigError, TraceError) as error:
            row |= {"status": "infeasible", "reason": self._plain(error)}
        except FrontierError as error:
            row |= {"status": "failed", "reason": self._plain(error)}
        except Exception as error:  # one bad point must not end a sweep
            row |= {"status": "failed", "reason": self._plain(error, type(error).__name__ + ": ")}
        return row

    def _plain(self, error: Exception, prefix: str = "") -> str:
        """What went wrong, the same in every process: files under their own names."""
        text = f"{prefix}{error}".replace(f"{self._home}{os.sep}", "")
        for name, place in self._context.files.places.items():
            text = text.replace(name, Path(place).name)
        return text.removeprefix("point.yaml: ")

    def _evaluate(self, task: Task, row: Row) -> None:
        file = self._home / "point.yaml"
        file.write_text(json.dumps(task.raw))
        plan = make_plan(file)
        self._hold_to_constraints(plan, row)
        requests, notes = self._run(plan, task, 1.0)
        row["ignored"] = "; ".join(plan.ignored) or None
        capacity = notes["kv_capacity"]
        if isinstance(capacity, dict):  # by cluster
            capacity = ", ".join(f"{name}: {source}" for name, source in capacity.items())
        row["kv_capacity"] = capacity
        steps = notes["step_time"]
        row["extrapolated"] = steps["extrapolated"] / max(steps["steps"], 1)
        judged = Judged(requests, self._context.sweep.warmup)
        row |= judged.row(self._statistics)
        row |= judged.against(self._context.sweep.slos, row)
        row |= _per_gpu(row)
        if self._context.sweep.capacity is not None:
            row |= self._capacity(plan, task)
            row["capacity_per_gpu"] = _ratio(row["capacity"], row["gpus"])

    def _run(self, plan: Plan, task: Task, factor: float) -> tuple[Bundle, dict[str, Any]]:
        workload = self._context.workload
        if task.rate_scale * factor != 1.0:
            workload = scale_rate(workload, task.rate_scale * factor)
        manifest, tables = replay(workload, plan, concurrency=task.concurrency, record=())
        if "interrupted" in manifest.notes:
            raise KeyboardInterrupt
        return Bundle(self._home, Manifest("simulated"), dict(tables)), manifest.notes

    def _hold_to_constraints(self, plan: Plan, row: Row) -> None:
        sweep, clusters = self._context.sweep, plan.deployment.clusters
        row["gpus"] = sum(devices(c) for c in clusters)
        if sweep.prices:
            row["cost_per_hour"] = sum(
                devices(c) * price_of(c.hardware, sweep.prices, self._home) for c in clusters
            )
        row["memory_gb"] = max(_memory_gb(c, plan, self._home) for c in clusters)
        for name, most in sweep.constraints.model_dump(exclude_none=True).items():
            if row.get(name) is not None and row[name] > most:
                raise Infeasible(f"{name}: {row[name]:.10g} where at most {most:.10g} are allowed")

    def _capacity(self, plan: Plan, task: Task) -> Row:
        sweep = self._context.sweep
        wanted = sweep.capacity
        assert wanted is not None

        def holds(factor: float) -> bool:
            judged = Judged(self._run(plan, task, factor)[0], wanted.warmup)
            verdict: bool = judged.against(sweep.slos, judged.row(self._statistics))["meets_slos"]
            return verdict

        found: Found = find_capacity(holds, wanted.low, wanted.high, wanted.tolerance)
        arrivals = self._context.workload.requests.column("arrival_s").to_numpy()
        rate = (len(arrivals) - 1) / max(arrivals[-1] - arrivals[0], 1e-12) * task.rate_scale
        low, high = (None if f is None else f * rate for f in (found.holds, found.fails))
        return {
            "capacity": low or 0.0,
            "capacity_below": high,
            "capacity_rate_scale": found.holds and found.holds * task.rate_scale,
        }


class Judged:
    """The requests of a run that count: no warm-ups, not the first ``warmup`` of the others."""

    def __init__(self, bundle: Bundle, warmup: float) -> None:
        table = bundle.requests
        kept = is_judged(table.column("request_id").to_pylist(), warmup)
        self._values = {n: v[kept] for n, v in request_metrics(bundle).items()}
        self._start, self._end = (column(table, n)[kept] for n in ("arrival_s", "finished_s"))
        self._tokens = column(table, "output_tokens")[kept]

    def row(self, statistics: Sequence[Statistic]) -> Row:
        """Counts, throughput and the statistics; a request without an end counts as endless."""
        done = np.isfinite(self._end)
        seconds = float(self._end[done].max(initial=0.0) - self._start.min())
        row: Row = {
            "requests": len(done),
            "finished": int(done.sum()),
            "duration_s": seconds,
            "requests_per_s": _ratio(float(done.sum()), seconds),
            "tokens_per_s": _ratio(float(self._tokens[done].sum()), seconds),
        }
        for s in statistics:
            row[s.column] = _statistic(self._latencies(s.metric), s)
        return row

    def against(self, slos: dict[str, float], row: Row) -> Row:
        """Whether the statistics meet the SLOs, and the share of requests within all limits."""
        if not slos:
            return {}
        within = np.ones(len(self._end), bool)
        for name, limit in slos.items():
            values = self._latencies(name.partition(".")[0])
            within &= (values <= limit) | np.isnan(values)
        reached = {n: row[slo_column(n)] for n in slos}
        meets = all(v is not None and v <= slos[n] for n, v in reached.items())
        return {
            "meets_slos": meets,
            "slo_share": float(within.mean()),
            "goodput": _ratio(float(within.sum()), row["duration_s"]),
        }

    def _latencies(self, metric: str) -> Floats:
        """Infinite for a request that did not finish; NaN where the metric does not apply."""
        values: Floats = np.where(np.isnan(self._end), np.inf, self._values[metric])
        return values


def is_judged(ids: Sequence[str], warmup: float) -> np.ndarray:
    """Which requests count, by arrival: no warm-ups, not the first share of the others."""
    kept = np.array([not name.startswith(WARM_UP) for name in ids])
    places = np.flatnonzero(kept)
    kept[places[: int(warmup * len(places))]] = False
    return kept


def _statistic(values: Floats, statistic: Statistic) -> float | None:
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    q = statistic.percentile
    if not np.isfinite(values).all():  # NumPy interpolates infinities to NaN
        value = np.inf if q is None else np.percentile(values, q, method="higher")
        return float(value) if np.isfinite(value) else None
    return float(values.mean() if q is None else np.percentile(values, q))


def _ratio(above: float | None, below: float) -> float | None:
    return above / below if above is not None and below > 0 else None


def _per_gpu(row: Row) -> Row:
    found = {"tokens_per_s_per_gpu": _ratio(row["tokens_per_s"], row["gpus"])}
    if "goodput" in row:
        found["goodput_per_gpu"] = _ratio(row["goodput"], row["gpus"])
    if "cost_per_hour" in row and row["tokens_per_s"]:
        found["cost_per_million_tokens"] = (
            row["cost_per_hour"] / 3600 / row["tokens_per_s"] * 1_000_000
        )
    return found


def devices(cluster: Cluster) -> int:
    """Devices of a cluster: every rank of every engine has one."""
    e = cluster.engine
    ranks = e.tensor_parallel_size * e.pipeline_parallel_size * e.data_parallel_size
    return cluster.replicas * ranks


def price_of(hardware: str, prices: dict[str, float], home: Path) -> float:
    """Price of a device and hour, by sheet name or as the deployment names it."""
    if hardware in prices:
        return prices[hardware]
    name = load_hardware(hardware, home).name
    if name not in prices:
        raise Infeasible(f"prices: none for {name!r} (known: {', '.join(sorted(prices))})")
    return prices[name]


def _memory_gb(cluster: Cluster, plan: Plan, home: Path) -> float:
    """GB (1e9) of weights, and of KV where blocks are given, on the fullest device.

    Raises Infeasible if given blocks do not fit.
    """
    engine, model = cluster.engine, plan.model
    if cluster.role == "ffn":
        return ffn_weights(plan.deployment, model)[cluster.name] / 1e9
    if cluster.role == "attention":
        model = attention_part(model)
    stages = pipeline_stages(model.layers, engine.pipeline_parallel_size)
    blocks = engine.num_gpu_blocks or 0
    taken = [weight_bytes(model, engine, s) + blocks * block_bytes(model, engine, s)
             for s in stages]  # fmt: skip
    most = max(taken) / 1e9
    room = _room_gb(cluster.hardware, home)
    if blocks and room is not None and most > room:
        raise Infeasible(
            f"clusters[{cluster.name}].engine.num_gpu_blocks: weights and {blocks} KV blocks take "
            f"{most:.1f} GB of a device's {room:.1f} GB"
        )
    return most


def _room_gb(hardware: str, home: Path) -> float | None:
    """Memory of a device; None where nobody says, as of a captured device without a sheet."""
    try:
        return load_hardware(hardware, home).memory_gb
    except ConfigError:
        return None
