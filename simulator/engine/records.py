"""Records in memory, and how compiled code reaches them.

A record is a row of a numpy structured array that Python owns (``memory.py``). Compiled code
holds a pointer to it, reads its fields by name, and finds others through the addresses in
its ``..._at`` fields. No index is checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

R = TypeVar("R", bound="Record")
small = int  # an annotation: 32 bits suffice
WIDTHS = {"int": np.int64, "small": np.int32, "float": np.float64}


class Record:
    """Base of a record's declaration: its annotations are its fields, in their order.

    No instance ever exists: compiled code sees pointers, Python the rows of an array of
    ``dtype``.
    """

    dtype: np.dtype[Any]

    def __init_subclass__(cls) -> None:
        cls.dtype = np.dtype([(name, WIDTHS[kind]) for name, kind in cls.__annotations__.items()])


@dataclass(frozen=True, slots=True)
class Accessor(Generic[R]):
    """In compiled code a function of (owner, index): that record of the array.

    The array's address is in the owner's ``field``; without one the owner is the address.
    """

    record: type[R]
    owner: type[Record] | None = None
    field: str = ""

    def __call__(self, owner: Any, index: int = 0) -> R:
        raise NotImplementedError("only compiled code reaches records by address")


def at(record: type[R]) -> Accessor[R]:
    """Accessor of the record at an address."""
    return Accessor(record)


def of(owner: type[Record], field: str, record: type[R]) -> Accessor[R]:
    """Accessor of the records whose array is at the address in ``owner.field``."""
    return Accessor(record, owner, field)


def copy(to: R, record: R) -> None:
    """In compiled code: make one record like another."""
    raise NotImplementedError("only compiled code copies records by address")
