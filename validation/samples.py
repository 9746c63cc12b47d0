"""The values each metric takes in a bundle, over the requests that are compared.

Request metrics are ``traces.metrics``'; those of steps are, over the steps that ran tokens
between the first compared arrival and the last compared finish:

step_time   end - start
batch_size  requests running after schedule()
kv_use      1 - free_blocks / (num_gpu_blocks - 1), as vLLM reports it: one block is reserved
stage       end - start of the spans of a stage

throughput is one number a run: output tokens over the time from the first arrival to the
last finish.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from traces.bundle import Bundle
from traces.metrics import Floats, column, inter_token_latencies, request_metrics
from validation.compared import CHAIN, OF_STEPS, in_order
from validation.pairing import Rows

_REQUEST_COLUMNS = (
    "request_id", "arrival_s", "sent_s", "output_tokens", "scheduled_s", "first_token_s",
    "finished_s", "status", "token_times_s", "prefill_finished_s", "transfer_start_s",
    "transfer_end_s", "decode_scheduled_s", "decode_replica",
)  # fmt: skip

Bools = npt.NDArray[np.bool_]


class View:
    """A bundle cut down to the requests in ``rows``, in that order.

    ``first_s`` and ``last_s`` are their first arrival and last finish, bundle time.
    """

    def __init__(self, bundle: Bundle, rows: Rows) -> None:
        requests = bundle.requests
        requests = requests.select([n for n in _REQUEST_COLUMNS if n in requests.column_names])
        if len(rows) != len(requests) or (np.diff(rows) != 1).any():
            requests = requests.take(pa.array(rows))
        data = {"requests": requests}
        if "step_requests" in bundle and "token_times_s" not in requests.column_names:
            table = bundle.table("step_requests")
            ids = requests.column("request_id").combine_chunks()
            data["step_requests"] = table.filter(
                pc.is_in(table.column("request_id"), value_set=ids)
            )
        self.bundle = Bundle(bundle.path, bundle.manifest, data)
        self._whole = bundle
        self.first_s = float(np.min(column(requests, "arrival_s")))
        self.last_s = float(np.nanmax(column(requests, "finished_s")))

    @cached_property
    def values(self) -> dict[str, Floats]:
        """Values of every metric the bundle can tell, ``{metric: (n,)}`` in ``Metric.unit``.

        Metrics of requests have one value a compared request, NaN where it has none; tokens,
        steps and spans come in the order of time.
        """
        requests = self.bundle.requests
        found = request_metrics(self.bundle)
        for name, (_, early, late) in CHAIN.items():
            found[name] = column(requests, late) - column(requests, early)
        found["itl"] = inter_token_latencies(self.bundle)
        found |= {name: values for name, (_, values) in self.of_steps.items()}
        found |= self._stages()
        if self.last_s > self.first_s:
            tokens = float(column(requests, "output_tokens").sum())
            found["throughput"] = np.array([tokens / (self.last_s - self.first_s)])
        return {name: found[name] for name in in_order(found) if np.isfinite(found[name]).any()}

    @cached_property
    def of_steps(self) -> dict[str, tuple[Floats, Floats]]:
        """Start, seconds, and value of each live step by metric, in the order of start.

        A metric of each cluster where there are several.
        """
        if "steps" not in self._whole:
            return {}
        steps = self._whole.table("steps")
        tokens = column(steps, "prefill_tokens") + column(steps, "decode_tokens")
        kept = (tokens > 0) & self._alive(steps)
        if "dummy" in steps.column_names:
            kept &= ~pc.fill_null(steps.column("dummy"), False).to_numpy().astype(bool)
        clusters = pc.unique(steps.column("cluster")).to_pylist()
        if len({*clusters, *_declared(self._whole)}) <= 1:
            return self._step_metrics(steps, kept, "")
        found: dict[str, tuple[Floats, Floats]] = {}
        for name in sorted(clusters):
            here = pc.equal(steps.column("cluster"), name).to_numpy().astype(bool)
            found |= self._step_metrics(steps, kept & here, f".{name}")
        return found

    def _step_metrics(
        self, steps: pa.Table, kept: Bools, suffix: str
    ) -> dict[str, tuple[Floats, Floats]]:
        start, order = _by_start(steps, kept)
        values = {
            "step_time": column(steps, "end_s")[order] - start,
            "batch_size": column(steps, "running")[order],
        }
        if (blocks := _usable_blocks(self._whole, steps, order)) is not None:
            values["kv_use"] = 1 - column(steps, "free_blocks")[order] / blocks
        return {name + suffix: (start, values[name]) for name in OF_STEPS if name in values}

    def _stages(self) -> dict[str, Floats]:
        if "spans" not in self._whole:
            return {}
        spans = self._whole.table("spans")
        alive, end = self._alive(spans), column(spans, "end_s")
        found = {}
        for name in pc.unique(spans.column("stage")).to_pylist():
            here = pc.equal(spans.column("stage"), name).to_numpy().astype(bool)
            start, order = _by_start(spans, alive & here)
            found[f"stage.{name}"] = end[order] - start
        return found

    def _alive(self, table: pa.Table) -> Bools:
        """Rows that start while compared requests are there."""
        start = column(table, "start_s")
        alive: Bools = (start >= self.first_s) & (start <= self.last_s)
        return alive


def _by_start(table: pa.Table, kept: Bools) -> tuple[Floats, Rows]:
    """Starts and row numbers of the rows kept, in the order of start."""
    rows = np.flatnonzero(kept)
    start = column(table, "start_s")[rows]
    order = np.argsort(start, kind="stable")
    return start[order], rows[order]


def _usable_blocks(bundle: Bundle, steps: pa.Table, rows: Rows) -> Floats | None:
    """KV blocks requests can use on the replica of each step; None where not recorded."""
    if "free_blocks" not in steps.column_names:
        return None
    total: dict[str, int] = {}
    for name, cluster in _declared(bundle).items():
        engine = cluster.get("engine")
        blocks = engine.get("num_gpu_blocks") if isinstance(engine, dict) else None
        if isinstance(blocks, int) and blocks > 1:
            total[name] = blocks - 1
    names = steps.column("cluster").combine_chunks().dictionary_encode()
    known: Floats = np.array([total.get(n, np.nan) for n in names.dictionary.to_pylist()], float)
    blocks = known[names.indices.to_numpy()[rows]]
    return None if np.isnan(blocks).any() or not len(blocks) else blocks


def _declared(bundle: Bundle) -> dict[str, dict[str, object]]:
    """The deployment's clusters by name."""
    clusters = bundle.manifest.deployment.get("clusters")
    listed = clusters if isinstance(clusters, list) else []
    return {str(c.get("name", "main")): c for c in listed if isinstance(c, dict)}


def finite(values: Floats) -> Floats:
    """The values that are numbers."""
    kept: Floats = values[np.isfinite(values)]
    return kept
