"""What the engine is written in means, compiled, what it means in Python."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.engine import llvm
from simulator.engine.build import compiled, symbol_of
from simulator.engine.layout import Request, World, request_of, world_at
from simulator.engine.records import at, copy
from simulator.engine.translate import assembly
from traces.errors import InvariantError

LIMIT = 7
request_at = at(Request)
C_TYPES = {"int": ctypes.c_int64, "bool": ctypes.c_int64, "float": ctypes.c_double, "None": None}
INTS = st.integers(-(1 << 20), 1 << 20)
FLOATS = st.floats(-1e9, 1e9)


def arithmetic(a: int, b: int) -> int:
    """Integers; ``b`` is not 0."""
    less, chained = a < b, -LIMIT <= a < b <= LIMIT * LIMIT
    c = a // b + a % b * 3 - ~a - (-a) // b
    c += less
    c |= chained
    c -= (a & 5) * (a != b)
    return min(c, a, LIMIT) * 31 + max(b, c, a == b)


def ways(a: int, b: int) -> int:
    """Loops, and ways out of them."""
    total = 0
    for k in range(a % LIMIT, 60):
        if k % 2 == 0 and (k > 20 or not b % 3):
            continue
        if total > 400:
            break
        total += k
    for k in range(5, -3, -2):
        for other in range(k):
            total += other * k
    while total > b:
        total //= 2
        if total < 2 or total < b // 2:
            return -total
    return total if b > 0 and _is_odd(total) else k


@compiled
def _is_odd(a: int) -> bool:
    return a % 2 == 1


def reals(x: float, y: float, n: int) -> float:
    """Floating point, with integers among it."""
    low, high = min(x, y), max(x, y, 1)
    share = (high - low) / (abs_of(high) + 1)
    if share:
        low = low + math.sqrt(share) * n
    root = math.exp(-share) if x != y else -1.5
    return float(n) / 3 + math.log(1.0 + share) * math.pow(root, 2.0) + int(low) + np.rint(y)


@compiled
def abs_of(x: float) -> float:
    return x if x > 0 else -x


def swap_in_memory(world: int) -> int:
    """A field of 32 bits, records as a whole, and one found by its array's address."""
    w = world_at(world)
    a, b = request_of(w, 0), request_of(w, 1)
    a.prompt, b.prompt = b.prompt, a.prompt
    copy(request_of(w, 2), b)
    a.priority = b.priority = -1
    request_of(w, 2).arrival_ps += LIMIT * 1000000007
    request_at(w.requests_at, 1).priority = -3
    return a.priority


FUNCTIONS = (arithmetic, ways, reals, swap_in_memory)


@pytest.fixture(scope="module")
def machine_code() -> Callable[[Any], Any]:
    engine = llvm.load(llvm.machine_code(assembly(FUNCTIONS)))

    def load(function: Any) -> Any:
        *takes, gives = (C_TYPES[kind] for kind in function.__annotations__.values())
        at = engine.get_function_address(symbol_of(function))
        loaded = ctypes.CFUNCTYPE(gives, *takes)(at)
        loaded.engine = engine
        return loaded

    return load


@given(INTS, INTS.filter(bool))
def test_integers(machine_code: Callable[[Any], Any], a: int, b: int) -> None:
    assert machine_code(arithmetic)(a, b) == arithmetic(a, b)


@given(INTS, INTS)
def test_control(machine_code: Callable[[Any], Any], a: int, b: int) -> None:
    assert machine_code(ways)(a, b) == ways(a, b)


@given(FLOATS, FLOATS, INTS)
def test_reals(machine_code: Callable[[Any], Any], x: float, y: float, n: int) -> None:
    assert machine_code(reals)(x, y, n) == reals(x, y, n)


def test_records(machine_code: Callable[[Any], Any]) -> None:
    requests, world = np.zeros(3, Request.dtype), np.zeros(1, World.dtype)
    requests["prompt"], requests["arrival_ps"] = [11, -22, 33], [1, 2, 3]
    world["requests_at"] = requests.ctypes.data
    assert machine_code(swap_in_memory)(world.ctypes.data) == -1
    assert requests["prompt"].tolist() == [-22, 11, 11]
    assert requests["priority"].tolist() == [-1, -3, 0]
    assert requests["arrival_ps"].tolist() == [1, 2, 2 + (LIMIT * 1000000007)]


def a_list(a: int) -> int:
    """Lists are not compiled."""
    return [a, a][0]


def two_kinds(a: int) -> int:
    """A name that is an integer, then a float."""
    x = a
    x = 1.5  # type: ignore[assignment]
    return x + a


def foreign(a: int) -> int:
    """A function that is not compiled."""
    return LIMIT + len(str(a))


@pytest.mark.parametrize(
    ("function", "why"),
    [(a_list, "[a, a]"), (two_kinds, "float where int is needed"), (foreign, "str(a)")],
)
def test_other_python_is_refused_by_line(function: Any, why: str) -> None:
    with pytest.raises(InvariantError, match=f"{function.__name__}, line [0-9]+: ") as error:
        assembly([function])
    assert why in str(error.value)
