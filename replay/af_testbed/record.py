"""A run of the testbed as a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from replay.af_testbed.shape import Launch, Run
from replay.af_testbed.stamps import Record
from traces.bundle import Manifest, write_bundle
from traces.schema import TABLES

ENGINE = "frontier-af-testbed"
VERSION = "1"
BLOCK_TOKENS = 16
UNSHAPED_GB_S = 1000.0  # what the bundle says of a link that takes no time


def write_run(
    out: Path, launch: Launch, run: Run, records: Sequence[Record], notes: dict[str, Any]
) -> None:
    """Write one run; ``records`` are those of attention and of the FFN ranks. Raises TraceError.

    Between the run's steps other runs had theirs: its clock stands still meanwhile.
    """
    manifest = Manifest(
        kind="measured",
        engine=ENGINE,
        engine_version=VERSION,
        clock={"name": "monotonic, stopped while other runs step"},
        command=["python", "-m", "replay.af_testbed"],
        deployment=deployment(launch, run),
        seed=run.seed,
        notes={"af_testbed": {**notes, "disturbance": _disturbance(records)}},
    )
    clock = Clock(records[0].steps)
    rows = {
        "requests": _requests(run, records[0], clock),
        "steps": _steps(run, records[0], clock),
        "step_requests": _step_requests(run, records[0]),
        "experts": _experts(records[0]),
        "spans": _spans(records, clock),
    }
    tables = {}
    for name, found in rows.items():
        names = [c.name for c in TABLES[name].columns if c.name in found[0]]
        tables[name] = pa.Table.from_pylist(found, TABLES[name].arrow_schema(names))
    write_bundle(out, manifest, tables, model_config=launch.model.config(launch.max_len))


class Clock:
    """Seconds of a run's own clock, which runs from the start of a step to its end."""

    def __init__(self, steps: Sequence[tuple[int, int]]) -> None:
        self._shift_ns: list[int] = []
        elapsed_ns = 0
        for start_ns, end_ns in steps:
            self._shift_ns.append(elapsed_ns - start_ns)
            elapsed_ns += end_ns - start_ns

    def seconds(self, step: int, ns: int) -> float:
        """Of a stamp of that step."""
        return (ns + self._shift_ns[step]) / 1e9


def deployment(launch: Launch, run: Run) -> dict[str, Any]:
    """The deployment that a simulation of this run needs."""
    blocks = run.batch * -(-(run.prompt + run.output) // BLOCK_TOKENS) + 1
    engine = {
        "dtype": "float32", "max_num_seqs": run.batch, "block_size": BLOCK_TOKENS,
        "max_num_batched_tokens": max(run.batch * run.prompt, launch.max_len),
        "enable_prefix_caching": False, "async_scheduling": False, "enforce_eager": True,
    }  # fmt: skip
    ffn = {**engine, "data_parallel_size": launch.ffn_ranks, "enable_expert_parallel": True}
    wire = launch.wire
    link = {"bandwidth_gb_s": wire.bandwidth_gb_s or UNSHAPED_GB_S, "latency_us": wire.latency_us}
    policy = {"policy": "ping_pong", "micro_batches": run.micro_batches}
    return {
        "clusters": [
            {"name": "attention", "role": "attention", "hardware": "cpu",
             "engine": {**engine, "num_gpu_blocks": blocks}},
            {"name": "ffn", "role": "ffn", "hardware": "cpu", "engine": ffn},
        ],
        "links": [
            {"from": "attention", "to": "ffn", **link}, {"from": "ffn", "to": "attention", **link},
        ],
        "pipeline": policy if run.micro_batches > 1 else {"policy": "none"},
    }  # fmt: skip


def _disturbance(records: Sequence[Record]) -> list[dict[str, Any]]:
    """By rank, lists over the steps."""
    return [
        {
            "wall_us": [d.wall_ns // 1000 for d in record.disturbances],
            "cpu_us": [d.cpu_ns // 1000 for d in record.disturbances],
            "switches": [d.switches for d in record.disturbances],
            "steal_ticks": [d.steal_ticks for d in record.disturbances],
        }
        for record in records
    ]


def _name(request: int) -> str:
    return f"request-{request:03d}"


def _requests(run: Run, record: Record, clock: Clock) -> list[dict[str, Any]]:
    last_step = len(record.steps) - 1
    first = clock.seconds(0, record.steps[0][1])
    last = clock.seconds(last_step, record.steps[-1][1])
    return [
        {
            "request_id": _name(i), "arrival_s": 0.0, "prompt_tokens": len(record.prompts[i]),
            "output_tokens": run.output, "cluster": "attention", "replica": 0, "queued_s": 0.0,
            "scheduled_s": 0.0, "first_token_s": first, "finished_s": last, "preemptions": 0,
            "status": "finished",
        }
        for i in range(run.batch)
    ]  # fmt: skip


def _steps(run: Run, record: Record, clock: Clock) -> list[dict[str, Any]]:
    prompts = sum(map(len, record.prompts))
    return [
        {
            "cluster": "attention", "replica": 0, "step": i, "start_s": clock.seconds(i, start),
            "end_s": clock.seconds(i, end), "forward_s": (end - start) / 1e9,
            "prefill_tokens": 0 if i else prompts, "decode_tokens": run.batch if i else 0,
            "running": run.batch, "waiting": 0,
        }
        for i, (start, end) in enumerate(record.steps)
    ]  # fmt: skip


def _step_requests(run: Run, record: Record) -> list[dict[str, Any]]:
    return [
        {
            "cluster": "attention", "replica": 0, "step": step, "request_id": _name(i),
            "scheduled_tokens": 1 if step else len(prompt),
            "computed_tokens": len(prompt) + step - 1 if step else 0, "emitted_tokens": 1,
        }
        for step in range(run.output)
        for i, prompt in enumerate(record.prompts)
    ]  # fmt: skip


def _experts(record: Record) -> list[dict[str, Any]]:
    return [
        {
            "cluster": "attention", "replica": 0, "step": step, "micro_batch": micro_batch,
            "layer": layer, "expert_tokens": counts,
        }
        for step, micro_batch, layer, counts in record.experts
    ]  # fmt: skip


def _spans(records: Sequence[Record], clock: Clock) -> list[dict[str, Any]]:
    """Attention's stages and sends under its cluster, the FFN's under its own.

    One attention rank sends over a link to each FFN rank: ``a2f`` rows carry the number of
    the receiver.
    """
    links = len(records) - 1
    found = []
    for place, record in enumerate(records):
        sends = 0
        for stamp in record.stamps:
            rank = max(0, place - 1)
            if stamp.stage == "a2f":
                rank, sends = sends % links, sends + 1
            row = {
                "cluster": "ffn" if place else "attention", "replica": 0, "rank": rank,
                "step": stamp.step, "layer": stamp.layer if stamp.layer >= 0 else None,
                "micro_batch": stamp.micro_batch, "stage": stamp.stage,
                "bytes": stamp.bytes if stamp.stage in ("a2f", "f2a") else None,
                "start_s": clock.seconds(stamp.step, stamp.start_ns),
                "end_s": clock.seconds(stamp.step, stamp.end_ns),
            }  # fmt: skip
            found.append(row)
    return found
