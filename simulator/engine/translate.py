"""The engine's functions as LLVM assembly, straight from their syntax trees.

They are written in a small part of Python: numbers of 64 bits, truth values, records by their
accessors (records.py), arithmetic, comparisons, ``if``, ``while``, ``for`` over a range, calls
of each other. It means what it means in Python, but that integers wrap around, that division by
0 and indices are not checked, that ``and`` and ``or`` give truth values, and that a name keeps
the kind of value it is given first. Anything else is refused, by function and line.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from simulator.engine.assembly import (
    COPY,
    DECLARED,
    FIELD_TYPES,
    MATH,
    RECORDS,
    Place,
    Value,
    Writer,
    common_kind,
    constant,
    type_of,
)  # fmt: skip
from simulator.engine.build import symbol_of
from simulator.engine.records import Accessor, copy
from traces.errors import InvariantError

Function = Callable[..., Any]
ARITHMETIC: dict[type[ast.operator], str] = {
    ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.BitAnd: "and", ast.BitOr: "or",
}  # fmt: skip
COMPARED: dict[type[ast.cmpop], str] = {
    ast.Eq: "eq", ast.NotEq: "ne", ast.Lt: "lt", ast.LtE: "le", ast.Gt: "gt", ast.GtE: "ge",
}  # fmt: skip


def assembly(exported: Sequence[Function]) -> str:
    """Functions and all they call, as one module. Raises InvariantError for other Python."""
    functions = [*exported]
    for function in functions:  # grows as callees are found
        for name in function.__code__.co_names:
            called: Any = function.__globals__.get(name)
            if hasattr(called, "compiled") and called not in functions:
                functions.append(called)
    texts = (Translator(f).text("" if f in exported else "internal ") for f in functions)
    return "\n".join([DECLARED, *texts])


class Translator(ast.NodeVisitor, Writer):
    """Of one function: a statement adds lines, an expression also gives its ``Value``."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self._function = function
        self._takes, self._gives = _signature(function)
        self._loops: list[tuple[str, str]] = []  # where continue and break lead

    def text(self, linkage: str) -> str:
        """The function's definition."""
        for name, kind in self._takes.items():
            self._store(Value(kind, f"%{name}"), self._local(name, kind))
        self._visit_all(_definitions(self._function.__code__.co_filename)[self._function.__name__])
        self._lines.append("ret void" if self._gives == "None" else "unreachable")
        takes = ", ".join(f"{type_of(kind)} %{name}" for name, kind in self._takes.items())
        head = f'define {linkage}{type_of(self._gives)} @"{symbol_of(self._function)}"({takes})'
        return "\n".join([f"{head} nounwind {{", *self._slots, *self._lines, "}"])

    # statements

    def _visit_all(self, body: Sequence[ast.stmt]) -> None:
        for statement in body:
            self.visit(statement)

    def visit_Pass(self, _: ast.Pass) -> None:
        """Nothing."""

    def visit_Expr(self, node: ast.Expr) -> None:
        """A call, or a docstring."""
        if not isinstance(node.value, ast.Constant):
            self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        """A value to one or more targets, or several values to one each."""
        targets, values = node.targets, [self.visit(node.value)] * len(node.targets)
        if isinstance(node.value, ast.Tuple) and isinstance(targets[0], ast.Tuple):
            targets, values = targets[0].elts, values[0]
        for target, value in zip(targets, values, strict=True):
            self._store(value, self._place(target, value.kind))

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        """To a name or a field."""
        place = self._place(node.target)
        value = self._combine(node.op, self._load(place), self.visit(node.value))
        self._store(value, place)

    def visit_Return(self, node: ast.Return) -> None:
        """What follows in the source is never reached."""
        gives = (
            f"ret {self._cast(self.visit(node.value), self._gives)}" if node.value else "ret void"
        )
        self._lines.append(gives)
        self._begin(self._new())

    def visit_If(self, node: ast.If) -> None:
        """Both ways meet again."""
        yes, no, end = self._new(), self._new(), self._new()
        self._decide(node.test, yes, no)
        for label, body in ((yes, node.body), (no, node.orelse)):
            self._begin(label)
            self._visit_all(body)
            self._jump(end)
        self._begin(end)

    def visit_While(self, node: ast.While) -> None:
        """A loop."""
        again, body, end = self._new(), self._new(), self._new()
        self._jump(again)
        self._begin(again)
        self._decide(node.test, body, end)
        self._begin(body)
        self._loop(node, again, end)
        self._jump(again)
        self._begin(end)

    def visit_For(self, node: ast.For) -> None:
        """Over a range, whose ends are found once; its step is written out."""
        again, body, more, end = (self._new() for _ in range(4))
        if not isinstance(node.iter, ast.Call) or ast.unparse(node.iter.func) != "range":
            self._refuse(node, "not over a range")
        step = ast.literal_eval(node.iter.args[2]) if len(node.iter.args) > 2 else 1
        ends = [Value("int", "0"), *map(self.visit, node.iter.args[:2])]
        counter = self._local(self._new(), "int")
        self._store(ends[-2], counter)
        self._jump(again)
        self._begin(again)
        at = self._load(counter)
        within = self._let("bool", f"icmp {'slt' if step > 0 else 'sgt'} {at}, {ends[-1].text}")
        self._branch(within, body, end)
        self._begin(body)
        self._store(at, self._place(node.target, "int"))
        self._loop(node, more, end)
        self._jump(more)
        self._begin(more)
        self._store(self._let("int", f"add {at}, {step}"), counter)
        self._jump(again)
        self._begin(end)

    def _loop(self, node: ast.For | ast.While, again: str, end: str) -> None:
        if node.orelse:
            self._refuse(node, "a loop with else")
        self._loops.append((again, end))
        self._visit_all(node.body)
        self._loops.pop()

    def visit_Break(self, _: ast.Break) -> None:
        """Out of the innermost loop."""
        self._jump(self._loops[-1][1])
        self._begin(self._new())

    def visit_Continue(self, _: ast.Continue) -> None:
        """On with the innermost loop."""
        self._jump(self._loops[-1][0])
        self._begin(self._new())

    # expressions

    def visit_Constant(self, node: ast.Constant) -> Value:
        """A number or truth value."""
        return constant(node.value)

    def visit_Name(self, node: ast.Name) -> Value:
        """A local name, or a constant of the module."""
        if node.id in self._locals:
            return self._load(self._locals[node.id])
        return constant(self._function.__globals__[node.id])

    def visit_Attribute(self, node: ast.Attribute) -> Value:
        """A field of a record."""
        return self._load(self._place(node))

    def visit_Tuple(self, node: ast.Tuple) -> list[Value]:
        """Several values, to be assigned."""
        return [self.visit(each) for each in node.elts]

    def visit_BinOp(self, node: ast.BinOp) -> Value:
        """Arithmetic."""
        return self._combine(node.op, self.visit(node.left), self.visit(node.right))

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Value:
        """``-x``, ``~x``, ``not x``."""
        value = self.visit(node.operand)
        if isinstance(node.op, ast.Not):
            return self._let("bool", f"xor {self._truth(value)}, true")
        if isinstance(node.op, ast.USub) and value.kind == "float":
            return self._let("float", f"fneg {value}")
        number = self._cast(value, "int")
        if isinstance(node.op, ast.USub):
            return self._let("int", f"sub i64 0, {number.text}")
        return self._let("int", f"xor {number}, -1")

    def visit_Compare(self, node: ast.Compare) -> Value:
        """A chain is compared as a whole: the values of all its links are found."""
        values = [self.visit(each) for each in (node.left, *node.comparators)]
        found = Value("bool", "true")
        for op, a, b in zip(node.ops, values, values[1:], strict=False):
            how, kind = COMPARED[type(op)], common_kind(a, b)
            if kind == "float":
                how = "fcmp une" if how == "ne" else f"fcmp o{how}"
            else:
                how = f"icmp {how}" if how in ("eq", "ne") else f"icmp s{how}"
            link = self._let("bool", f"{how} {self._cast(a, kind)}, {self._cast(b, kind).text}")
            found = link if found.text == "true" else self._let("bool", f"and {found}, {link.text}")
        return found

    def visit_BoolOp(self, node: ast.BoolOp) -> Value:
        """Whether it is true; no more of it is looked at than needed."""
        return self._either(node, Value("bool", "true"), Value("bool", "false"))

    def visit_IfExp(self, node: ast.IfExp) -> Value:
        """Only what is chosen is found."""
        return self._either(node.test, node.body, node.orelse)

    def visit_Call(self, node: ast.Call) -> Value | None:
        """Of a compiled function, an accessor, or one of those known here."""
        name, values = ast.unparse(node.func), [self.visit(each) for each in node.args]
        called: Any = self._function.__globals__.get(name)
        if isinstance(called, Accessor):
            return self._reach(called, *values)
        if hasattr(called, "compiled"):
            takes, gives = _signature(called)
            kinds = zip(values, takes.values(), strict=True)
            given = ", ".join(str(self._cast(value, kind)) for value, kind in kinds)
            call = f'call {type_of(gives)} @"{symbol_of(called)}"({given})'
            if gives != "None":
                return self._let(gives, call)
            self._lines.append(call)
            return None
        if called is copy:
            to, record = values
            size = RECORDS[self._cast(record, to.kind).kind].dtype.itemsize
            self._lines.append(f"call void @{COPY}({to}, {record}, i64 {size}, i1 false)")
            return None
        if name in MATH:
            given = ", ".join(str(self._cast(value, "float")) for value in values)
            return self._let("float", f"call double @{MATH[name]}.f64({given})")
        if name == "int" and values[0].kind == "float":
            return self._let("int", f"fptosi {values[0]} to i64")
        if name in ("int", "float"):
            return self._cast(values[0], name)
        if name in ("min", "max"):
            return self._extreme("lt" if name == "min" else "gt", values)
        return self._refuse(node, "no compiled function")

    def _combine(self, op: ast.operator, a: Value, b: Value) -> Value:
        kind = "float" if isinstance(op, ast.Div) else common_kind(a, b)
        kind = "int" if kind == "bool" else kind
        a, b = self._cast(a, kind), self._cast(b, kind)
        if isinstance(op, ast.Div):
            return self._let("float", f"fdiv {a}, {b.text}")
        if kind == "int" and isinstance(op, ast.FloorDiv | ast.Mod):
            return self._floor(a, b, modulo=isinstance(op, ast.Mod))
        how = ARITHMETIC[type(op)]
        return self._let(kind, f"{'f' * (kind == 'float')}{how} {a}, {b.text}")

    def _either(self, test: ast.expr, *ways: ast.expr | Value) -> Value:
        yes, no, end = self._new(), self._new(), self._new()
        self._decide(test, yes, no)
        slot = self._new()
        for label, way in zip((yes, no), ways, strict=True):
            self._begin(label)
            value = way if isinstance(way, Value) else self.visit(way)
            self._store(value, self._local(slot, value.kind))
            self._jump(end)
        self._begin(end)
        return self._load(self._locals[slot])

    def _decide(self, test: ast.expr, yes: str, no: str) -> None:
        """Go to ``yes`` if it is true, else to ``no``."""
        if isinstance(test, ast.BoolOp):
            *first, last = test.values
            for part in first:
                on = self._new()
                self._decide(part, *((on, no) if isinstance(test.op, ast.And) else (yes, on)))
                self._begin(on)
            self._decide(last, yes, no)
        elif isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            self._decide(test.operand, no, yes)
        else:
            self._branch(self._truth(self.visit(test)), yes, no)

    def _place(self, target: ast.expr, kind: str = "") -> Place:
        """Where a target is; a new name is of ``kind``."""
        if isinstance(target, ast.Name):
            return self._local(target.id, kind)
        if not isinstance(target, ast.Attribute):
            self._refuse(target, "neither a name nor a field")
        dtype, address = self._field(self.visit(target.value), target.attr)
        return Place("float" if dtype == "float64" else "int", FIELD_TYPES[dtype], address)

    def visit(self, node: ast.AST) -> Any:
        """Translate a part of the function."""
        try:
            return super().visit(node)
        except KeyError as error:
            return self._refuse(node, f"unknown here: {error}")
        except (TypeError, ValueError) as error:
            return self._refuse(node, str(error))

    def generic_visit(self, node: ast.AST) -> None:
        """What has no method here."""
        self._refuse(node, "cannot be compiled")

    def _refuse(self, node: ast.AST, why: str) -> NoReturn:
        raise InvariantError(
            f"{symbol_of(self._function)}, line {getattr(node, 'lineno', 0)}: "
            f"{ast.unparse(node).splitlines()[0]!r}: {why}"
        )


def _signature(function: Function) -> tuple[dict[str, str], str]:
    """Kinds of the parameters, and of the result; a truth value is passed as a number."""
    kinds = {
        name: "int" if kind == "bool" else kind for name, kind in function.__annotations__.items()
    }
    return kinds, kinds.pop("return")


@cache
def _definitions(file: str) -> dict[str, list[ast.stmt]]:
    """Bodies of a file's functions."""
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    return {node.name: node.body for node in tree.body if isinstance(node, ast.FunctionDef)}
