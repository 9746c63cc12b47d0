"""The engine's functions as LLVM assembly, by numba: needed where no machine code is cached.

Each is translated alone: the functions it calls are declared to numba by name and type, the
records it reaches by what ``records.Accessor`` says.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any

import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba import types
from numba.core import typed_passes, untyped_passes
from numba.core.compiler import CompilerBase
from numba.core.compiler_machinery import PassManager
from numba.extending import intrinsic

from simulator.engine import entries, layout
from simulator.engine.build import symbol_of
from simulator.engine.records import Accessor, Record

Function = Callable[..., Any]
INT64 = ir.IntType(64)
KINDS = {"int": types.int64, "bool": types.int64, "float": types.float64, "None": types.void}
KINDS |= {
    name: numba.from_dtype(record.dtype)
    for name, record in vars(layout).items()
    if isinstance(record, type) and issubclass(record, Record) and record is not Record
}


class Lean(CompilerBase):  # type: ignore[misc]
    """Of numba's passes those that functions of numbers need: a fifth faster than all."""

    def define_pipelines(self) -> list[PassManager]:
        passes = PassManager("lean")
        for step in (
            untyped_passes.TranslateByteCode, untyped_passes.FixupArgs,
            untyped_passes.IRProcessing, untyped_passes.ReconstructSSA,
            typed_passes.NopythonTypeInference, typed_passes.PreLowerStripPhis,
            typed_passes.NativeLowering, typed_passes.NoPythonBackend,
        ):  # fmt: skip
            passes.add_pass(step, step.__name__)
        passes.finalize()
        return [passes]


def main(share: int, shares: int) -> None:
    """Print a share of the functions in LLVM assembly, as a JSON list."""
    functions = _functions()
    for function in functions:
        # numba makes machine code of each too, and looks for what it calls; it is never run
        llvm.add_symbol(symbol_of(function), 1)
    print(json.dumps([_assembly(function) for function in functions[share::shares]]))


def _functions() -> list[Function]:
    """The entries and all they call."""
    functions = [
        f for f in vars(entries).values() if getattr(f, "__module__", "") == entries.__name__
    ]
    for function in functions:  # grows as callees are found
        for called in _named(function).values():
            if hasattr(called, "compiled") and called not in functions:
                functions.append(called)
    return functions


def _assembly(function: Function) -> str:
    known: dict[str, Any] = {}
    for name, value in _named(function).items():
        if isinstance(value, Accessor):
            known[name] = _reach(value)
        elif hasattr(value, "compiled"):
            known[name] = types.ExternalFunction(symbol_of(value), _signature(value))
    alone = FunctionType(function.__code__, {**function.__globals__, **known}, function.__name__)
    part = numba.cfunc(_signature(function), error_model="numpy", pipeline_class=Lean)(alone)
    # the wrapper that numba keeps from being one with its function gets the symbol
    module = llvm.parse_assembly(part.inspect_llvm().replace("noinline", "nounwind"))
    module.get_function(part.native_name).name = symbol_of(function)
    return str(module)


def _named(function: Function) -> dict[str, Any]:
    """The globals a function names."""
    names = function.__code__.co_names
    return {n: function.__globals__[n] for n in names if n in function.__globals__}


def _signature(function: Function) -> Any:
    *takes, gives = (KINDS[kind] for kind in function.__annotations__.values())
    return gives(*takes)


@cache
def _reach(accessor: Accessor[Any]) -> Any:
    """An accessor for numba: pointer arithmetic."""
    pointer = KINDS[accessor.record.__name__]
    size = ir.Constant(INT64, accessor.record.dtype.itemsize)
    if accessor.owner is not None:
        assert accessor.owner.dtype.fields is not None
        offset = ir.Constant(INT64, accessor.owner.dtype.fields[accessor.field][1])

    @intrinsic  # type: ignore[untyped-decorator]
    def from_address(_: Any, address: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            return builder.inttoptr(given[0], context.get_value_type(pointer))

        return pointer(types.int64), code

    @intrinsic  # type: ignore[untyped-decorator]
    def from_owner(_: Any, owner: Any, index: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            where = builder.add(builder.ptrtoint(given[0], INT64), offset)
            start = builder.load(builder.inttoptr(where, INT64.as_pointer()))
            k = context.cast(builder, given[1], signature.args[1], types.int64)
            address = builder.add(start, builder.mul(k, size))
            return builder.inttoptr(address, context.get_value_type(pointer))

        return pointer(owner, index), code

    return from_address if accessor.owner is None else from_owner
