"""What torch's profiler saw of a forward pass, by module: the events of a Chrome trace.

Operators (``cpu_op``) nest in ranges (``user_annotation``) that name a module. A range's time is
that of the operators right below it, less what ranges further in took; where there are GPU
kernels it is that of the kernels which these operators launched (by External id, else by the
launch's correlation). What exchanges data or writes the KV cache, by the operator's or kernel's
name, is told apart from the module that it runs in.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

RANGE = "frontier:"
US = 1e-6  # Chrome traces count microseconds
WITHIN = {  # names of operators (vLLM, torch, gloo) and kernels (NCCL, vLLM)
    "all_reduce": re.compile(r"all_?reduce|cross_device_reduce", re.I),
    "all_gather": re.compile(r"all_?gather", re.I),
    "reduce_scatter": re.compile(r"reduce_?scatter", re.I),
    "all_to_all": re.compile(r"all_?to_?all|deep_?ep|(?:dispatch|combine)_kernel", re.I),
    "send_recv": re.compile(r"sendrecv|c10d::(?:send|recv)", re.I),
    "kv_write": re.compile(r"reshape_and_cache|concat_and_cache|kv_cache_update", re.I),
}
WIDTH = {"c10::BFloat16": 2, "c10::Half": 2, "float": 4, "double": 8, "int": 4, "long int": 8}


@dataclass(slots=True)
class Part:
    """A part of a range: what it is (``""``: the module itself), its time, its inputs.

    ``operator``, ``shapes`` and ``types`` are those of the operator that took the host longest,
    ``inputs`` the shapes of the inputs of all.
    """

    what: str
    seconds: float = 0.0
    operator: str = ""
    shapes: list[list[int]] = field(default_factory=list)
    types: list[str] = field(default_factory=list)
    names: Counter[str] = field(default_factory=Counter)
    inputs: list[list[int]] = field(default_factory=list)
    longest: float = -1.0

    def bytes(self) -> int:
        """Size of the first input that is a tensor of a known type, 0 if there is none."""
        for shape, kind in zip(self.shapes, self.types, strict=False):
            if shape and kind in WIDTH:
                size = WIDTH[kind]
                for length in shape:
                    size *= length
                return size
        return 0


@dataclass(slots=True)
class Range:
    """One call of a module: its index, and its parts by what they are."""

    module: int
    parts: dict[str, Part] = field(default_factory=dict)

    def part(self, what: str) -> Part:
        return self.parts.setdefault(what, Part(what))


@dataclass(slots=True)
class Trace:
    """The ranges of a pass in order, and seconds of kernels by name that lie in none."""

    ranges: list[Range]
    outside: Counter[str]
    on_device: bool


def kind_of(name: str) -> str:
    """Which exchange, or ``kv_write``, an operator or kernel is by its name; ``""`` for neither.

    >>> kind_of("ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)")
    'all_reduce'
    >>> kind_of("void vllm::reshape_and_cache_flash_kernel<__nv_bfloat16, ...>")
    'kv_write'
    >>> kind_of("nvjet_sm90_tst_128x256_64x4_2x1_v_bz_coopA_TNT")
    ''
    """
    return next((kind for kind, pattern in WITHIN.items() if pattern.search(name)), "")


@dataclass(slots=True)
class _Open:
    """An event that later ones may lie in; operators have the part that their time goes to."""

    event: Mapping[str, Any]
    range: Range | None
    part: Part | None


def read_trace(events: Sequence[Mapping[str, Any]]) -> Trace:
    """The ranges of the complete ("X") events of a Chrome trace, in order; seconds.

    Raises KeyError, TypeError or ValueError for what is not such an event.
    """
    host = [e for e in events if e["cat"] in ("cpu_op", "user_annotation", "cuda_runtime")]
    kernels = [e for e in events if e["cat"] == "kernel"]
    host.sort(key=lambda e: (e["tid"], e["ts"], -e["dur"], e["cat"] != "user_annotation"))
    ranges: list[Range] = []
    launched: dict[tuple[str, int], _Open] = {}
    stack: list[_Open] = []
    for event in host:
        while stack and not _inside(event, stack[-1].event):
            stack.pop()
        if event["cat"] == "cuda_runtime":
            if stack and "correlation" in event["args"]:
                launched["correlation", event["args"]["correlation"]] = stack[-1]
            continue
        if event["cat"] == "user_annotation":
            ranges.append(Range(int(event["name"].removeprefix(RANGE))))
            stack.append(_Open(event, ranges[-1], None))
            continue
        stack.append(_operator(event, stack))
        if "External id" in event["args"]:
            launched["External id", event["args"]["External id"]] = stack[-1]
    outside: Counter[str] = Counter()
    if kernels:
        for part in (part for found in ranges for part in found.parts.values()):
            part.seconds = 0.0
    for kernel in kernels:
        keys = [
            (k, kernel["args"][k]) for k in ("External id", "correlation") if k in kernel["args"]
        ]
        by = next((launched[key] for key in keys if key in launched), None)
        if by is None or by.range is None:
            outside[kernel["name"]] += kernel["dur"] * US
            continue
        what = kind_of(kernel["name"]) or (by.part.what if by.part is not None else "")
        part = by.range.part(what)
        part.seconds += kernel["dur"] * US
        part.names[kernel["name"]] += 1
    return Trace(ranges, outside, bool(kernels))


def _inside(event: Mapping[str, Any], outer: Mapping[str, Any]) -> bool:
    same: bool = event["tid"] == outer["tid"]
    return same and float(event["ts"]) < outer["ts"] + outer["dur"]


def _operator(event: Mapping[str, Any], stack: Sequence[_Open]) -> _Open:
    """An operator's place: its time goes to the range it is in, from what it lies in there."""
    if not stack or stack[-1].range is None:
        return _Open(event, None, None)
    above, what = stack[-1], kind_of(event["name"])
    around = above.part
    if around is None:  # right below a range: what the range itself lies in took less
        around = next((o.part for o in reversed(stack) if o.part is not None), None)
    elif not what or what == around.what:
        return _Open(event, above.range, around)  # in an operator of the same part
    assert above.range is not None
    part = above.range.part(what)
    part.seconds += event["dur"] * US
    if around is not None:
        around.seconds -= event["dur"] * US
    part.names[event["name"]] += 1
    part.inputs += [shape for shape in event["args"].get("Input Dims", []) if shape]
    if event["dur"] > part.longest:
        part.longest, part.operator = event["dur"], event["name"]
        part.shapes = event["args"].get("Input Dims", [])
        part.types = event["args"].get("Input type", [])
    return _Open(event, above.range, part)
