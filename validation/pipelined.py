"""Measured pipelined steps against the max-plus model of them, from a testbed's runs.

Three questions, each of decode steps only:

- replay: every step from its own stage times; says whether the structure is right
- structure: a run's mean step from its mean stage times
- prediction: a run with m micro-batches from the stage times of runs with one micro-batch of
  the same size, in the same launch; nothing of the predicted run is used

A step that the machine disturbed on any rank is left out; everything is also told with all
steps. The rule was fixed before the measurements it judges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.clock import PS_PER_S, to_ps
from simulator.deployment import Deployment, parse_deployment
from simulator.pipeline import STAGES, Lanes, Pipeline, Stage, create_strategy
from traces.bundle import Bundle, read_bundle
from traces.errors import TraceError
from traces.metrics import column

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

# (launch, requests of a micro-batch) -> (stages, layers + 1, lanes), picoseconds
Costs = dict[tuple[int, int], Floats]

LEAST_CPU = 0.99  # of a step's wall time, on every rank: all of them spin while they wait
MOST_SWITCHES = 10  # involuntary, in a step
RULE = (
    f"a step counts unless on some rank the thread had less than {LEAST_CPU:.0%} of the wall "
    f"time on the CPU, the hypervisor stole time, or there were more than {MOST_SWITCHES} "
    "involuntary context switches"
)


@dataclass(slots=True)
class MeasuredRun:
    """A run's decode steps.

    ``durations (steps, stages, layers + 1, micro_batches, lanes)`` and ``step_ps (steps,)``
    are picoseconds; ``sizes`` the requests of each micro-batch; ``undisturbed (steps,)``.
    """

    path: Path
    launch: int
    policy: str
    sizes: tuple[int, ...]
    lanes: Lanes
    latency_ps: dict[Stage, int]
    durations: Ints
    step_ps: Ints
    undisturbed: Bools

    @property
    def batch(self) -> int:
        return sum(self.sizes)

    def pipeline(self) -> Pipeline:
        """The model of one of its steps."""
        layers = self.durations.shape[2] - 1
        strategy = create_strategy(self.policy)
        late = {stage: [ps] * self.lanes.ffn for stage, ps in self.latency_ps.items()}
        return Pipeline(strategy, layers, len(self.sizes), self.lanes, latency_ps=late)


def read_runs(root: Path) -> list[MeasuredRun]:
    """The runs under ``root``, in order of their paths. Raises TraceError, ConfigError."""
    paths = sorted(p.parent for p in root.rglob("bundle.yaml"))
    if not paths:
        raise TraceError(f"{root}: no bundle in it")
    return [read_run(read_bundle(path)) for path in paths]


def read_run(bundle: Bundle) -> MeasuredRun:
    """A measured bundle with spans of pipelined steps. Raises TraceError, ConfigError."""
    path, notes = bundle.path, bundle.manifest.notes.get("af_testbed", {})
    if "spans" not in bundle or "disturbance" not in notes:
        raise TraceError(f"{path}: not a run of the testbed (no spans, or no disturbance noted)")
    deployment = parse_deployment(bundle.manifest.deployment, f"{path}/bundle.yaml: deployment")
    steps = bundle.table("steps")
    decodes = column(steps, "prefill_tokens") == 0
    counted = _undisturbed(notes["disturbance"])
    spans = {name: column(bundle.table("spans"), name) for name in
             ("rank", "step", "layer", "micro_batch", "start_s", "end_s")}  # fmt: skip
    names = bundle.table("spans").column("stage").to_numpy(zero_copy_only=False)
    last = int(np.nanmax(spans["layer"])) + 1
    places = (
        spans["step"].astype(int),
        np.array([STAGES.index(name) for name in names]),
        np.nan_to_num(spans["layer"], nan=last).astype(int),
        spans["micro_batch"].astype(int),
        spans["rank"].astype(int),
    )
    latency_ps = _latencies(deployment)
    took = np.rint((spans["end_s"] - spans["start_s"]) * PS_PER_S).astype(np.int64)
    for stage, ps in latency_ps.items():
        took[names == stage] -= ps
    durations = np.zeros([int(axis.max()) + 1 for axis in places[:1]] + [len(STAGES), last + 1]
                         + [int(axis.max()) + 1 for axis in places[3:]], np.int64)  # fmt: skip
    durations[places] = np.maximum(took, 0)
    ffn = deployment.clusters[-1].engine.data_parallel_size
    return MeasuredRun(
        path=path,
        launch=int(notes["launch"]),
        policy=deployment.pipeline.policy,
        sizes=_sizes(bundle, durations.shape[3]),
        lanes=Lanes(1, ffn),
        latency_ps=latency_ps,
        durations=durations[decodes],
        step_ps=np.rint(column(steps, "forward_s")[decodes] * PS_PER_S).astype(np.int64),
        undisturbed=counted[decodes],
    )


def _latencies(deployment: Deployment) -> dict[Stage, int]:
    roles = {cluster.name: cluster.role for cluster in deployment.clusters}
    ways: dict[str, Stage] = {"attention": "a2f", "ffn": "f2a"}
    return {ways[roles[link.from_]]: to_ps(link.latency_us * 1e-6) for link in deployment.links}


def _sizes(bundle: Bundle, micro_batches: int) -> tuple[int, ...]:
    """Tokens of each micro-batch in the last step: those of its experts, over top-k."""
    table = bundle.table("experts")
    step, part, layer = (column(table, n) for n in ("step", "micro_batch", "layer"))
    tokens = np.array([sum(e) for e in table.column("expert_tokens").to_pylist()])
    top_k = (bundle.model_config() or {})["num_experts_per_tok"]
    last = (step == step.max()) & (layer == 0)
    return tuple(int(tokens[last & (part == i)].sum()) // top_k for i in range(micro_batches))


def _undisturbed(ranks: Sequence[dict[str, list[int]]]) -> Bools:
    good = []
    for rank in ranks:
        wall, cpu, switches, steal = (
            np.array(rank[name]) for name in ("wall_us", "cpu_us", "switches", "steal_ticks")
        )
        good.append((cpu >= LEAST_CPU * wall) & (switches <= MOST_SWITCHES) & (steal == 0))
    counted: Bools = np.logical_and.reduce(good)
    return counted


@dataclass(frozen=True, slots=True)
class Line:
    """Runs of one number of micro-batches over one batch, in one launch.

    Times are seconds a step, errors fractions of the measured one; None where no run with
    one micro-batch of some size was there to predict from.
    """

    launch: int
    micro_batches: int
    batch: int
    runs: int
    steps: int
    counted: int
    measured_s: float
    spread: float  # standard deviation over mean, of the runs' means
    structure: float
    replay: float  # mean over steps of the absolute error
    predicted_s: float | None

    @property
    def prediction(self) -> float | None:
        """Error of the prediction."""
        return None if self.predicted_s is None else self.predicted_s / self.measured_s - 1


def lines(runs: Sequence[MeasuredRun], *, filtered: bool) -> list[Line]:
    """One line for each launch, number of micro-batches and batch, in this order."""
    groups = _groups(runs)
    costs = stage_costs(runs, filtered=filtered)
    return [_line(key, groups[key], costs, filtered) for key in sorted(groups)]


def _groups(runs: Sequence[MeasuredRun]) -> dict[tuple[int, int, int], list[MeasuredRun]]:
    """Runs by launch, number of micro-batches and batch."""
    groups: dict[tuple[int, int, int], list[MeasuredRun]] = {}
    for run in runs:
        groups.setdefault((run.launch, len(run.sizes), run.batch), []).append(run)
    return groups


def stage_costs(runs: Sequence[MeasuredRun], *, filtered: bool) -> Costs:
    """Mean stage times by launch and size, from the runs with one micro-batch."""
    return {
        (launch, batch): _mean_durations(group, filtered)[:, :, 0]
        for (launch, parts, batch), group in _groups(runs).items()
        if parts == 1
    }


def predicted_durations(run: MeasuredRun, costs: Costs) -> Floats | None:
    """Stage times of a step of the run, from those of its sizes; None if one was not run."""
    if any((run.launch, size) not in costs for size in run.sizes):
        return None
    return np.stack([costs[run.launch, size] for size in run.sizes], 2)


def _chosen(run: MeasuredRun, filtered: bool) -> Bools:
    return run.undisturbed if filtered else np.ones_like(run.undisturbed)


def _mean_durations(group: Sequence[MeasuredRun], filtered: bool) -> Floats:
    found = np.concatenate([run.durations[_chosen(run, filtered)] for run in group])
    if not len(found):
        raise TraceError(f"{group[0].path}: no step counts; the machine was never quiet")
    mean: Floats = found.mean(0)
    return mean


def _line(
    key: tuple[int, int, int],
    group: Sequence[MeasuredRun],
    costs: Costs,
    filtered: bool,
) -> Line:
    launch, parts, batch = key
    pipeline = group[0].pipeline()
    means, structures, replays = [], [], []
    for run in group:
        chosen = _chosen(run, filtered)
        if not chosen.any():
            continue
        step_ps = run.step_ps[chosen]
        own = evaluate(pipeline, run.durations[chosen].mean(0))
        each = np.array([evaluate(pipeline, d) for d in run.durations[chosen]])
        means.append(step_ps.mean())
        structures.append(own / step_ps.mean() - 1)
        replays.append(np.abs(each / step_ps - 1).mean())
    steps_ps = np.concatenate([run.step_ps[_chosen(run, filtered)] for run in group])
    if not len(steps_ps):
        raise TraceError(f"{group[0].path}: no step counts; the machine was never quiet")
    table = predicted_durations(group[0], costs)
    predicted_s = None if table is None else evaluate(pipeline, table) / PS_PER_S
    return Line(
        launch=launch,
        micro_batches=parts,
        batch=batch,
        runs=len(group),
        steps=sum(len(run.step_ps) for run in group),
        counted=len(steps_ps),
        measured_s=float(steps_ps.mean()) / PS_PER_S,
        spread=float(np.std(means, ddof=1) / np.mean(means)) if len(means) > 1 else 0.0,
        structure=max(structures, key=abs),
        replay=float(np.mean(replays)),
        predicted_s=predicted_s,
    )


def evaluate(pipeline: Pipeline, durations: Floats | Ints) -> int:
    """Picoseconds of a step with these stage times, ``(stages, layers + 1, m, lanes)``."""
    pipeline.durations[...] = np.rint(durations)
    return pipeline.evaluate()


GAP = 0.05


@dataclass(frozen=True, slots=True)
class Choice:
    """Two numbers of micro-batches whose measured steps differ by more than ``GAP``."""

    launch: int
    better: int
    worse: int
    measured: float  # by how much the worse is slower
    predicted: float

    @property
    def right(self) -> bool:
        """The model names the same one."""
        return self.predicted > 0


def choices(found: Sequence[Line]) -> list[Choice]:
    """Every pair of lines of one launch and batch whose measured gap exceeds ``GAP``."""
    pairs = []
    for one in found:
        for other in found:
            alike = (one.launch, one.batch) == (other.launch, other.batch)
            if not alike or one.predicted_s is None or other.predicted_s is None:
                continue
            slower = other.measured_s / one.measured_s - 1
            if slower > GAP:
                predicted = other.predicted_s / one.predicted_s - 1
                pairs.append(
                    Choice(one.launch, one.micro_batches, other.micro_batches, slower, predicted)
                )
    return pairs


def as_json(found: Sequence[Line]) -> list[dict[str, Any]]:
    """Lines as plain data."""
    names = Line.__dataclass_fields__
    return [{**{n: getattr(x, n) for n in names}, "prediction": x.prediction} for x in found]
