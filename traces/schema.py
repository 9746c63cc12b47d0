"""The bundle's tables, declared once: name, type, unit and meaning of every column.

Reader, writer, validation and documentation all come from this file. Times are
float64 seconds from the bundle's own zero, counts are int64, sizes are bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa

SCHEMA_VERSION = 1

KINDS = ("measured", "simulated")
VANTAGES = ("engine", "client")
STATUSES = ("finished", "aborted", "failed", "rejected", "unfinished")

TYPES: dict[str, pa.DataType] = {
    "int": pa.int64(),
    "float": pa.float64(),
    "str": pa.string(),
    "bool": pa.bool_(),
    "list[int]": pa.list_(pa.int64()),
    "list[float]": pa.list_(pa.float64()),
}


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its type (a key of ``TYPES``), unit and meaning.

    ``required`` columns must be present and hold no nulls; the others may be
    left out or null where they do not apply. ``minimum`` bounds numbers (and
    the numbers inside lists); None means any value.
    """

    name: str
    type: str
    unit: str
    meaning: str
    required: bool = False
    minimum: float | None = 0
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """One table of a bundle.

    ``key`` columns identify a row; ``ordered`` are pairs (earlier, later) of time
    columns that must not run backwards within a row; ``monotonic`` columns must not
    decrease from row to row within one ``group``.
    """

    name: str
    row: str
    columns: tuple[Column, ...]
    key: tuple[str, ...] = ()
    ordered: tuple[tuple[str, str], ...] = ()
    group: tuple[str, ...] = ()
    monotonic: tuple[str, ...] = ()
    by_name: dict[str, Column] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {c.name: c for c in self.columns})

    @property
    def file(self) -> str:
        """File name inside the bundle directory."""
        return f"{self.name}.parquet"

    def arrow_schema(self, names: list[str]) -> pa.Schema:
        """Arrow schema of the given columns, in their order."""
        return pa.schema([(n, TYPES[self.by_name[n].type]) for n in names])


def _time(name: str, meaning: str, *, required: bool = False) -> Column:
    return Column(name, "float", "s", meaning, required=required)


_CLUSTER = Column("cluster", "str", "-", "name of the cluster", required=True)
_REPLICA = Column("replica", "int", "-", "scheduler within the cluster, from 0", required=True)
_STEP = Column("step", "int", "-", "step of that replica, from 0", required=True)

REQUESTS = Table(
    name="requests",
    row="request",
    key=("request_id",),
    columns=(
        Column("request_id", "str", "-", "external id (X-Request-Id)", required=True),
        _time("arrival_s", "the request reached the server (workload: was due)", required=True),
        _time("sent_s", "the client wrote the request to the socket"),
        Column("prompt_tokens", "int", "tokens", "length of the prompt", True, minimum=1),
        Column("output_tokens", "int", "tokens", "tokens generated (workload: to generate)", True),
        Column("cached_tokens", "int", "tokens", "prompt tokens found in the prefix cache"),
        Column("session_id", "str", "-", "conversation the request belongs to"),
        Column("turn", "int", "-", "position in its session, from 0"),
        _time("think_s", "pause between the previous turn's last token and this arrival"),
        Column("priority", "int", "-", "smaller runs first", minimum=None),
        Column(
            "block_hashes",
            "list[int]",
            "-",
            "chained hash of every full block of hash_block_tokens, prompt then output",
            minimum=None,
        ),
        Column("cluster", "str", "-", "name of the cluster that served it first"),
        Column("replica", "int", "-", "scheduler that served it first"),
        _time("queued_s", "entered the scheduler's waiting queue"),
        _time("scheduled_s", "first scheduled"),
        _time("first_token_s", "first output token left the engine (client: was received)"),
        _time("finished_s", "last output token left the engine (client: was received)"),
        Column("preemptions", "int", "-", "times the request lost its blocks"),
        Column("status", "str", "-", "how it ended", choices=STATUSES),
        Column("decode_replica", "int", "-", "PD: decode scheduler"),
        _time("prefill_finished_s", "PD: prefill side done"),
        _time("transfer_start_s", "PD: KV transfer began"),
        _time("transfer_end_s", "PD: KV transfer ended"),
        _time("decode_queued_s", "PD: entered the decode scheduler"),
        _time("decode_scheduled_s", "PD: first scheduled for decode"),
        Column("token_times_s", "list[float]", "s", "client: when each output chunk arrived"),
    ),
    ordered=(
        ("arrival_s", "queued_s"),
        ("queued_s", "scheduled_s"),
        ("scheduled_s", "first_token_s"),
        ("arrival_s", "first_token_s"),
        ("first_token_s", "finished_s"),
        ("arrival_s", "finished_s"),
        ("prefill_finished_s", "transfer_end_s"),
        ("transfer_start_s", "transfer_end_s"),
        ("decode_queued_s", "decode_scheduled_s"),
        ("decode_scheduled_s", "finished_s"),
    ),
    monotonic=("arrival_s",),
)

STEPS = Table(
    name="steps",
    row="engine step",
    key=("cluster", "replica", "step"),
    columns=(
        _CLUSTER,
        _REPLICA,
        _STEP,
        _time("start_s", "schedule() was entered", required=True),
        _time("end_s", "update_from_output() returned", required=True),
        _time("forward_s", "duration of the worker's execute and sample"),
        Column("prefill_tokens", "int", "tokens", "scheduled tokens of prompts", required=True),
        Column("decode_tokens", "int", "tokens", "scheduled tokens of decodes", required=True),
        Column("padded_tokens", "int", "tokens", "tokens the forward ran on, padding included"),
        Column("running", "int", "requests", "requests running after schedule()", required=True),
        Column("waiting", "int", "requests", "requests waiting after schedule()", required=True),
        Column("free_blocks", "int", "blocks", "free KV blocks after schedule()"),
        Column("preempted", "int", "requests", "requests preempted by this schedule()"),
        Column("dummy", "bool", "-", "lock-step batch without requests"),
    ),
    ordered=(("start_s", "end_s"),),
    group=("cluster", "replica"),
    monotonic=("step", "start_s", "end_s"),
)

STEP_REQUESTS = Table(
    name="step_requests",
    row="request in a step",
    key=("cluster", "replica", "step", "request_id"),
    columns=(
        _CLUSTER,
        _REPLICA,
        _STEP,
        Column("request_id", "str", "-", "external id", required=True),
        Column("scheduled_tokens", "int", "tokens", "tokens run in this step", True, minimum=1),
        Column("computed_tokens", "int", "tokens", "context before this step", required=True),
        Column("emitted_tokens", "int", "tokens", "output tokens this step produced"),
    ),
    group=("cluster", "replica"),
    monotonic=("step",),
)

KERNELS = Table(
    name="kernels",
    row="operator timing",
    columns=(
        Column("operator", "str", "-", "family, see simulator/operators", required=True),
        Column("layer", "str", "-", "name of the layer, where the family has several"),
        *(
            Column(name, "int", unit, meaning)
            for name, unit, meaning in (
                ("m", "rows", "GEMM rows (tokens)"),
                ("n", "columns", "GEMM output features"),
                ("k", "columns", "GEMM input features"),
                ("batch", "requests", "requests in the batch"),
                ("query_tokens", "tokens", "query length per request, homogeneous"),
                ("context_tokens", "tokens", "context before the query, per request, homogeneous"),
                ("query_sum", "tokens", "sum of query lengths"),
                ("context_sum", "tokens", "sum of contexts"),
                ("context_sq_sum", "tokens^2", "sum of squared contexts"),
                ("context_max", "tokens", "longest context"),
                ("heads", "-", "query heads on the device"),
                ("kv_heads", "-", "KV heads on the device"),
                ("head_dim", "-", "head dimension"),
                ("window", "tokens", "sliding window, 0 for none"),
                ("tokens", "tokens", "tokens in the operator (MoE: of all ranks of the layer)"),
                ("experts", "-", "routed experts in the layer"),
                ("local_experts", "-", "routed experts on the device"),
                ("active_experts", "-", "local experts with at least one token"),
                ("routed_tokens", "tokens", "token-expert pairs on the device"),
                ("max_tokens", "tokens", "tokens of the fullest local expert"),
                ("top_k", "-", "experts per token"),
                ("hidden", "-", "hidden size (element-wise: width of a row)"),
                ("inter", "-", "intermediate size of one expert, before tensor parallelism"),
                ("tp", "-", "tensor-parallel size"),
                ("ep", "-", "expert-parallel size"),
                ("bytes", "B", "the larger of a rank's input and output buffer (as nccl-tests)"),
                ("ranks", "-", "ranks in the collective"),
                ("nodes", "-", "nodes the ranks span"),
                ("sms", "-", "SMs given to communication, 0 for the kernel's own choice"),
            )
        ),
        Column("query_lens", "list[int]", "tokens", "query length of each request, mixed lengths"),
        Column("context_lens", "list[int]", "tokens", "context of each request, mixed lengths"),
        Column("expert_tokens", "list[int]", "tokens", "tokens per expert, where recorded"),
        Column("load_cv", "float", "1", "std / mean of the tokens per local expert"),
        Column("kv_dtype", "str", "-", "type of the KV cache"),
        Column("attention_dtype", "str", "-", "type attention computes in, inside a module"),
        Column("load", "str", "-", "label of the expert load"),
        Column("duration_s", "float", "s", "time of one call", required=True),
        Column("std_s", "float", "s", "standard deviation over the calls, where given"),
        Column("timing", "str", "-", "what is timed", True, choices=("kernel", "with_launch")),
        Column("device", "str", "-", "hardware sheet name", required=True),
        Column("node", "str", "-", "machine the device sat in"),
        Column("engine", "str", "-", "engine the kernel comes from", required=True),
        Column("engine_version", "str", "-", "its version", required=True),
        Column("backend", "str", "-", "kernel library"),
        Column("dtype", "str", "-", "type of weights and activations", required=True),
    ),
)

EXPERTS = Table(
    name="experts",
    row="layer in a step",
    key=("cluster", "replica", "step", "micro_batch", "layer"),
    columns=(
        _CLUSTER,
        _REPLICA,
        _STEP,
        Column("micro_batch", "int", "-", "micro-batch of the step, from 0", required=True),
        Column("layer", "int", "-", "model layer, from 0", required=True),
        Column("expert_tokens", "list[int]", "tokens", "tokens per routed expert", required=True),
    ),
)

SPANS = Table(
    name="spans",
    row="stage inside a step",
    columns=(
        _CLUSTER,
        _REPLICA,
        Column("rank", "int", "-", "rank within the replica", required=True),
        _STEP,
        Column("layer", "int", "-", "model layer, from 0; null before the first, after the last"),
        Column("micro_batch", "int", "-", "micro-batch of the step, from 0", required=True),
        Column("stage", "str", "-", "attention, a2f, ffn, f2a or a collective", required=True),
        Column("group", "str", "-", "collective: the ranks that take part (tp, dp, ep)"),
        Column("bytes", "int", "B", "bytes moved (collective: the larger of input and output)"),
        _time("start_s", "stage began", required=True),
        _time("end_s", "stage ended", required=True),
    ),
    ordered=(("start_s", "end_s"),),
)

TRANSFERS = Table(
    name="transfers",
    row="KV transfer",
    columns=(
        Column("source", "str", "-", "cluster/replica that held the KV", required=True),
        Column("destination", "str", "-", "cluster/replica that pulled it", required=True),
        Column("request_id", "str", "-", "external id", required=True),
        Column("bytes", "int", "B", "KV bytes moved", required=True),
        _time("start_s", "transfer began", required=True),
        _time("end_s", "transfer ended", required=True),
    ),
    ordered=(("start_s", "end_s"),),
)

ROUTING = Table(
    name="routing",
    row="choice of a replica",
    key=("request_id",),
    columns=(
        Column("request_id", "str", "-", "external id", required=True),
        _time("time_s", "the choice was made", required=True),
        _CLUSTER,
        Column("replica", "int", "-", "the scheduler chosen", required=True),
        Column("client", "int", "-", "front-end process that chose, from 0"),
        Column("clients", "int", "-", "front-end processes"),
        Column("start_index", "int", "-", "replica at which the scan started"),
        Column("in_flight", "list[int]", "requests", "this client's unfinished, per replica"),
        Column("waiting", "list[int]", "requests", "waiting as last published, per replica"),
        Column("running", "list[int]", "requests", "running as last published, per replica"),
        Column("kv_usage_frac", "list[float]", "1", "KV in use as last published, per replica"),
    ),
)

TABLES: dict[str, Table] = {
    t.name: t for t in (REQUESTS, STEPS, STEP_REQUESTS, KERNELS, EXPERTS, SPANS, TRANSFERS, ROUTING)
}
