"""``frontier decisions``: does the simulator choose as the real system does; JSON and Markdown."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from reports import words
from reports.tables import console, escape, markdown_lines
from traces.errors import ConfigError
from validation.compared import COMPARED
from validation.configurations import read_configurations
from validation.decisions import decide, parse_limit

FILE = "decisions.json"
FIDELITY = ("objective", "tau", "decided pairs", "tau of these", "best measured",
            "best simulated", "regret", "noise")  # fmt: skip
AGREEMENT = ("SLO", "limit", "agreement", "both pass", "both fail", "wrong pass", "wrong fail",
             "within noise")  # fmt: skip


def run_decisions(
    path: Path,
    out: Path,
    slos: Sequence[str] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Compare the configurations under ``path``; writes ``decisions.json`` and ``.md`` to ``out``.

    Raises TraceError for what cannot be read, ConfigError if ``out`` is no directory.
    """
    limits = [parse_limit(text) for text in slos]
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: not a directory")
    found = decide(read_configurations(path, progress), limits)
    out.mkdir(parents=True, exist_ok=True)
    (out / FILE).write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    (out / "decisions.md").write_text(markdown(found), encoding="utf-8")
    return found


def fidelity_rows(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row an objective, a text for each of ``FIDELITY``."""
    return [
        (
            _label(name),
            _number(o["tau"]),
            f"{o['decided']['pairs']} of {o['pairs']} ({o['decided']['by']})",
            _number(o["decided"]["tau"]),
            o["best"]["measured"],
            o["best"]["simulated"],
            words.percent(o["regret"]),
            words.percent(o["noise"]),
        )
        for name, o in found["objectives"].items()
    ]


def agreement_rows(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row an SLO, a text for each of ``AGREEMENT``."""
    return [
        (
            _label(name),
            words.value(s["limit"], COMPARED[name.split(".")[0]])
            + ("" if s["given"] else " (median)"),
            words.percent(s["agreement"]),
            *(str(s[key]) for key in ("both_pass", "both_fail", "wrong_pass", "wrong_fail")),
            ", ".join(s["near"]) or words.NONE,
        )
        for name, s in found["slos"].items()
    ]


def value_rows(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row a configuration: measured -> simulated of each objective."""
    return [
        (
            c["name"] + (" (fitted)" if c["fitted"] else ""),
            *(_change(name, v) for name, v in c["values"].items()),
        )
        for c in found["configurations"]
    ]


def _change(name: str, value: Mapping[str, Any]) -> str:
    metric = COMPARED[name.split(".")[0]]
    sides = (words.value(value[side], metric) for side in ("measured", "simulated"))
    return f"{' → '.join(sides)} ({words.percent(value['error'], sign=True)})"


def _label(name: str) -> str:
    metric, statistic = name.split(".")
    return f"{COMPARED[metric].label} {statistic}"


def _number(value: float | None) -> str:
    return words.NONE if value is None else words.signed(f"{value:.2f}")


def tables(found: Mapping[str, Any]) -> list[Table]:
    """The outcome for the console."""
    return [
        console(FIDELITY, fidelity_rows(found)),
        console(AGREEMENT, agreement_rows(found)),
    ]


def sentence(found: Mapping[str, Any]) -> str:
    """What the choice costs at most, and on what it rests."""
    regrets = {n: o["regret"] for n, o in found["objectives"].items() if o["regret"] is not None}
    worst = max(regrets, key=lambda n: regrets[n], default=None)
    text = f"{len(found['configurations'])} configurations"
    if worst is not None:
        text += f"; the simulator's choice costs at most {words.percent(regrets[worst])}"
        text += f" ({_label(worst)})" if regrets[worst] else ""
    if fitted := [c["name"] for c in found["configurations"] if c["fitted"]]:
        text += f"; the operator profile was fitted on {', '.join(fitted)}"
    return f"{text}."


def markdown(found: Mapping[str, Any]) -> str:
    """The outcome as Markdown."""
    names = [_label(name) for name in found["objectives"]]
    parts = [
        ("", FIDELITY, fidelity_rows(found)),
        ("SLOs", AGREEMENT, agreement_rows(found)),
        ("Measured → simulated", ("configuration", *names), value_rows(found)),
    ]
    lines = ["### Decisions", "", escape(sentence(found))]
    for title, head, rows in parts:
        lines += ["", *([f"**{title}**", ""] if title else [])]
        lines += markdown_lines(head, rows)
    return "\n".join([*lines, ""])
