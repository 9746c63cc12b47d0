"""``frontier whatif``: read the sweep, evaluate its points, keep them as one table."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from replay.progress import progress_of
from replay.whatif.backends import Backend, create_backend
from replay.whatif.base import Bases, Settings, deployment_hash
from replay.whatif.evaluate import Context, Evaluator, Row, Task, is_judged
from replay.whatif.keys import BASE
from replay.whatif.points import axes_of, points_of
from replay.whatif.results import Journal, write_results
from replay.whatif.search import search
from replay.whatif.spec import Sweep, load_sweep, statistics_of
from simulator.deployment import find_file
from traces.bundle import is_bundle, read_bundle
from traces.digest import batches_of, new_hash, table_digest, text_digest
from traces.errors import ConfigError
from traces.load import load_workload
from traces.schema import REQUESTS
from traces.workload import Workload, first_requests

SUMMARY = "sweep.json"
SCHEMA = 1


def run_whatif(
    workload_path: Path,
    sweep_path: Path,
    out: Path,
    *,
    operators: Path | None = None,
    jobs: int = 1,
    backend: str = "local",
    address: str | None = None,
    limit: int | None = None,
) -> Callable[[int], str]:
    """Evaluate every point; writes ``results.parquet`` and ``sweep.json``.

    Returns what gives a point's deployment, as the text of a deployment file. Points that the
    journal in ``out`` has are not evaluated again. Raises ConfigError or TraceError for a
    sweep, workload or deployment that cannot be used.
    """
    sweep = load_sweep(sweep_path)
    where = str(sweep_path)
    workload = load_workload(workload_path)
    if limit is not None:
        workload = first_requests(workload, limit)
    _check_length(workload, sweep, where)
    bases = _bases(sweep, sweep_path, workload_path, operators)
    points = _plan_points(sweep, bases, where)
    context = Context(workload, bases.files, sweep, _digest(workload, sweep))
    runner = _Runner(bases, context, create_backend(backend, jobs, address), out, where)
    total = len(points) + (sweep.search.points if sweep.search else 0) + bool(bases.default)
    with runner.opened(), progress_of(total, "points") as runner.advance:
        try:
            base = runner.rows([{}])[0] if bases.default else None
            runner.evaluate(points)
            if sweep.search is not None:
                search(sweep, where, runner.evaluate)
        except KeyboardInterrupt:
            print(f"{runner.done} points are kept in {out}; run it again to go on", file=sys.stderr)
            raise
        finally:
            runner.write()
    summary = _summary(sweep, workload, base, runner.points)
    (out / SUMMARY).write_text(json.dumps(summary, indent=1) + "\n")
    return lambda point: bases.as_file(runner.points[point])


class _Runner:
    """Evaluates settings through the journal and the backend; ``points`` are those so far."""

    def __init__(
        self, bases: Bases, context: Context, backend: Backend, out: Path, where: str
    ) -> None:
        self._bases, self._context, self._backend = bases, context, backend
        self._journal = Journal(out)
        self._out, self._where = out, where
        self.advance: Callable[[int], None] = lambda _: None
        self.done = 0
        self._started = False
        self.points: list[Settings] = []
        self._numbers: dict[str, int] = {}

    @contextmanager
    def opened(self) -> Iterator[None]:
        """The backend, started when there is something to evaluate."""
        with ExitStack() as self._stack:
            self._stack.callback(self._journal.close)
            scratch = self._stack.enter_context(TemporaryDirectory(prefix="frontier-whatif-"))
            self._make = partial(Evaluator, self._context, Path(scratch))
            yield

    def evaluate(self, points: Sequence[Settings]) -> list[Row]:
        """Rows of points, which are numbered and kept for the table unless met before."""
        for settings in points:
            if self._numbers.setdefault(repr(settings), len(self.points)) == len(self.points):
                self.points.append(settings)
        return self.rows(points)

    def rows(self, points: Sequence[Settings]) -> list[Row]:
        """Rows of points, evaluated where the journal lacks them."""
        tasks = [self._task(settings) for settings in points]
        missing = list({t.key: t for t in tasks if t.key not in self._journal.rows}.values())
        self.done += len(tasks) - len(missing)
        if missing and not self._started:
            self._stack.enter_context(self._backend.open(self._make))
            self._started = True
        for outcome in self._backend.run(missing) if missing else ():
            task = missing[outcome.index]
            row = outcome.answer
            if outcome.died is not None:
                row = {
                    "deployment": deployment_hash(task.raw),
                    "status": "failed",
                    "reason": outcome.died,
                }
            self._journal.add(task.key, row)
            self.done += 1
            self.advance(self.done)
        return [self._finished(task) for task in tasks]

    def write(self) -> None:
        """Write the table of the points that have a row."""
        tasks = [self._task(settings) for settings in self.points]
        found = [
            (number, settings, self._finished(task))
            for number, (settings, task) in enumerate(zip(self.points, tasks, strict=True))
            if task.key in self._journal.rows
        ]
        if not found:
            return
        sweep = self._context.sweep
        write_results(self._out, found, sweep.set_keys, statistics_of(sweep))

    def _finished(self, task: Task) -> Row:
        row = self._journal.rows[task.key]
        return row | {"objective": row.get(self._context.sweep.objective_column)}

    def _task(self, settings: Settings) -> Task:
        raw, notes = self._bases.deployment(settings)
        rate, concurrency = settings.get("rate_scale", 1.0), settings.get("concurrency")
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not rate > 0:
            raise ConfigError(f"{self._where}: rate_scale: must be a number above 0, got {rate!r}")
        if concurrency is not None and not (isinstance(concurrency, int) and concurrency > 0):
            raise ConfigError(
                f"{self._where}: concurrency: must be a number of requests, got {concurrency!r}"
            )
        return self._context.task(raw, float(rate), concurrency, notes)


def _plan_points(sweep: Sweep, bases: Bases, where: str) -> list[Settings]:
    """The points known beforehand, each key of theirs and of a search tried once."""
    points = points_of(sweep, where)
    tried = [dict.fromkeys(grid) | {k: _first(a) for k, a in axes_of(grid, where).items()}
             for grid in sweep.grids]  # fmt: skip
    for settings in [*points, *tried]:
        try:
            bases.deployment(settings)
        except ConfigError as error:
            raise ConfigError(f"{where}: axes: {error}") from None
    for grid in sweep.grids:  # files are read before any process needs them
        for key, axis in axes_of(grid, where).items():
            for value in axis if isinstance(axis, list) else ():
                bases.resolve(key, value)
    return points


def _first(axis: Any) -> Any:
    return axis[0] if isinstance(axis, list) else axis.low


def _bases(sweep: Sweep, sweep_path: Path, workload: Path, operators: Path | None) -> Bases:
    home = sweep_path.resolve().parent
    bases = Bases(home)
    if operators is None and sweep.operators is not None:
        operators = find_file(sweep.operators, home)
    if sweep.base is not None:
        bases.default = sweep.base
        bases.load(bases.default, find_file(sweep.base, home), operators)
    elif is_bundle(workload) and read_bundle(workload, eager=False).manifest.deployment:
        bases.default = str(workload)
        bases.load(bases.default, workload, operators)
    named = [g[BASE] for g in (*sweep.grids, *sweep.points) if BASE in g]
    for name in (n for given in named for n in (given if isinstance(given, list) else [given])):
        if name not in bases.by_name:
            bases.load(str(name), find_file(str(name), home), operators)
    return bases


def _check_length(workload: Workload, sweep: Sweep, where: str) -> None:
    """Refuse percentiles that lie beyond the last request."""
    ids = workload.requests.column("request_id").to_pylist()
    warmup = max([sweep.warmup, *([sweep.capacity.warmup] if sweep.capacity else [])])
    judged = int(is_judged(ids, warmup).sum())
    for name in dict.fromkeys([*sweep.slos, sweep.objective]):
        if "." not in name:
            continue
        percentile = next(
            s.percentile for s in statistics_of(sweep) if name == f"{s.metric}.{s.name}"
        )
        needed = 1 if percentile is None else ceil(round(100 / (100 - percentile), 6))
        if judged < needed:
            raise ConfigError(
                f"{where}: {name}: needs {needed} requests, the workload has {judged} "
                f"beside its warm-up: too short a trace for it"
            )


def _digest(workload: Workload, sweep: Sweep) -> str:
    """Digest of all that rows depend on beside their deployment and load."""
    return text_digest(
        {
            "workload": table_digest(REQUESTS, batches_of(workload.requests)),
            "hash_block_tokens": workload.hash_block_tokens,
            "judged": sweep.model_dump(
                mode="json", include={"constraints", "prices", "slos", "warmup", "capacity"}
            ),
            "statistics": [s.column for s in statistics_of(sweep)],
            "code": _code_digest(),
        }
    )


@cache
def _code_digest() -> str:
    """Digest of the code that makes rows: another simulator's are not taken for this one's."""
    root = Path(__file__).resolve().parents[2]
    digest = new_hash()
    files = [*(root / "simulator").rglob("*.py"), *(root / "replay").rglob("*.py")]
    for file in sorted(files, key=lambda f: f.relative_to(root).as_posix()):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _summary(
    sweep: Sweep, workload: Workload, base: Row | None, points: Sequence[Settings]
) -> dict[str, Any]:
    """What a reader of the table needs to know beside it."""
    requests = workload.requests
    arrivals = requests.column("arrival_s").to_numpy()
    return {
        "schema": SCHEMA,
        "workload": {
            "source": workload.source,
            "requests": len(requests),
            "duration_s": float(arrivals[-1] - arrivals[0]),
            "prompt_tokens": int(requests.column("prompt_tokens").to_numpy().sum()),
            "output_tokens": int(requests.column("output_tokens").to_numpy().sum()),
        },
        "axes": [k for k in sweep.set_keys if len({repr(p.get(k)) for p in points}) > 1],
        "fixed": {k: points[0].get(k) for k in sweep.set_keys
                  if points and len({repr(p.get(k)) for p in points}) == 1},
        "objective": sweep.objective_words(),
        "slos": sweep.slos,
        "constraints": sweep.constraints.model_dump(exclude_none=True),
        "prices": sweep.prices,
        "warmup": sweep.warmup,
        "capacity": sweep.capacity.model_dump() if sweep.capacity else None,
        "base": base,
    }  # fmt: skip
