"""LLVM assembly of a function, line by line: values, places, and what is done with them.

A value is of a kind: ``int`` and ``float`` of 64 bits, ``bool``, or a record by its name, which
is a pointer. Fields of records may be as narrow as 32 bits and are aligned to 32.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import pack
from typing import Any

from simulator.engine import layout
from simulator.engine.records import Accessor, Record

TYPES = {"int": "i64", "float": "double", "bool": "i1", "None": "void"}  # of records: ptr
FIELD_TYPES = {"int64": "i64", "int32": "i32", "float64": "double"}
CASTS = {("bool", "int"): "zext", ("bool", "float"): "uitofp", ("int", "float"): "sitofp"}
RECORDS = {
    name: record
    for name, record in vars(layout).items()
    if isinstance(record, type) and issubclass(record, Record)
}
MATH = {
    "math.exp": "llvm.exp", "math.log": "llvm.log", "math.pow": "llvm.pow",
    "math.sqrt": "llvm.sqrt", "np.rint": "llvm.rint",
}  # fmt: skip
COPY = "llvm.memcpy.p0.p0.i64"
DECLARED = f"declare void @{COPY}(ptr, ptr, i64, i1)\n" + "\n".join(
    f"declare double @{name}.f64(double{', double' * (name == 'llvm.pow')})"
    for name in MATH.values()
)


@dataclass(frozen=True, slots=True)
class Value:
    """Its kind (int, float, bool, or a record's name), and what assembly calls it."""

    kind: str
    text: str

    def __str__(self) -> str:
        return f"{type_of(self.kind)} {self.text}"


@dataclass(frozen=True, slots=True)
class Place:
    """What can be assigned to: a local name's slot, or a record's field."""

    kind: str
    type: str
    address: str


class Writer:
    """The lines of one function, and its local names."""

    def __init__(self) -> None:
        self._locals: dict[str, Place] = {}
        self._slots: list[str] = []
        self._lines: list[str] = []
        self._count = 0

    def _reach(self, accessor: Accessor[Any], owner: Value, *index: Value) -> Value:
        """A pointer to a record, from its address or its owner and index."""
        kind = accessor.record.__name__
        if accessor.owner is None:
            first = self._let(kind, f"inttoptr {owner} to ptr")
        elif owner.kind != accessor.owner.__name__:
            raise TypeError(f"of a {accessor.owner.__name__}, not of a {owner.kind}")
        else:
            address = self._field(owner, accessor.field)[1]
            first = self._let(kind, f"load ptr, ptr {address}, align 4")
        if not index:
            return first
        size = accessor.record.dtype.itemsize
        offset = self._let("int", f"mul {self._cast(index[0], 'int')}, {size}")
        return self._let(kind, f"getelementptr i8, {first}, {offset}")

    def _field(self, record: Value, name: str) -> tuple[str, str]:
        """Type and address of a field."""
        fields = RECORDS[record.kind].dtype.fields
        assert fields is not None
        dtype, offset = fields[name][:2]
        address = self._let("int", f"getelementptr i8, {record}, i64 {offset}")
        return dtype.name, address.text

    def _local(self, name: str, kind: str) -> Place:
        if name not in self._locals:
            self._locals[name] = Place(kind, type_of(kind), f"%{name}.slot")
            self._slots.append(f"%{name}.slot = alloca {type_of(kind)}, align 8")
        return self._locals[name]

    def _load(self, place: Place) -> Value:
        value = self._let(place.kind, f"load {place.type}, ptr {place.address}, align 4")
        if place.type == "i32":
            return self._let("int", f"sext i32 {value.text} to i64")
        return value

    def _store(self, value: Value, place: Place) -> None:
        text = self._cast(value, place.kind).text
        if place.type == "i32":
            text = self._let("int", f"trunc i64 {text} to i32").text
        self._lines.append(f"store {place.type} {text}, ptr {place.address}, align 4")

    def _cast(self, value: Value, kind: str) -> Value:
        if value.kind == kind:
            return value
        if (value.kind, kind) not in CASTS:
            raise TypeError(f"{value.kind} where {kind} is needed")
        return self._let(kind, f"{CASTS[value.kind, kind]} {value} to {type_of(kind)}")

    def _truth(self, value: Value) -> Value:
        if value.kind == "bool":
            return value
        if value.kind == "float":
            return self._let("bool", f"fcmp une {value}, 0.0")
        return self._let("bool", f"icmp ne {self._cast(value, 'int')}, 0")

    def _let(self, kind: str, operation: str) -> Value:
        value = Value(kind, f"%{self._new()}")
        self._lines.append(f"{value.text} = {operation}")
        return value

    def _new(self) -> str:
        self._count += 1
        return f".{self._count}"

    def _begin(self, label: str) -> None:
        self._lines.append(f"{label}:")

    def _jump(self, label: str) -> None:
        self._lines.append(f"br label %{label}")

    def _branch(self, truth: Value, yes: str, no: str) -> None:
        self._lines.append(f"br {truth}, label %{yes}, label %{no}")

    def _floor(self, a: Value, b: Value, *, modulo: bool) -> Value:
        """Quotient or remainder towards minus infinity; the machine's are towards 0."""
        rest = self._let("int", f"srem {a}, {b.text}")
        signs = self._let("int", f"xor {rest}, {b.text}")
        apart = self._let("bool", f"icmp slt {signs}, 0")
        some = self._let("bool", f"icmp ne {rest}, 0")
        off = self._let("bool", f"and {apart}, {some.text}")
        if modulo:
            more = self._let("int", f"select {off}, {b}, i64 0")
            return self._let("int", f"add {rest}, {more.text}")
        quotient = self._let("int", f"sdiv {a}, {b.text}")
        return self._let("int", f"sub {quotient}, {self._cast(off, 'int').text}")

    def _extreme(self, how: str, values: list[Value]) -> Value:
        kind = common_kind(*values)
        compare = f"fcmp o{how}" if kind == "float" else f"icmp s{how}"
        found, *others = (self._cast(value, kind) for value in values)
        for other in others:
            better = self._let("bool", f"{compare} {other}, {found.text}")
            found = self._let(kind, f"select {better}, {other}, {found}")
        return found


def type_of(kind: str) -> str:
    """What assembly calls a kind."""
    return TYPES.get(kind, "ptr")


def common_kind(*values: Value) -> str:
    """The kind that values of several are taken for."""
    kinds = {value.kind for value in values}
    return kinds.pop() if len(kinds) == 1 else "float" if "float" in kinds else "int"


def constant(value: object) -> Value:
    """Of a number or truth value of Python. Raises TypeError for others."""
    if isinstance(value, bool):
        return Value("bool", str(value).lower())
    if isinstance(value, float):
        return Value("float", f"0x{pack('>d', value).hex()}")
    if isinstance(value, int):
        return Value("int", str(int(value)))
    raise TypeError(f"no number: {value!r}")
