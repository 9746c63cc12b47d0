"""Measured pipelined steps beside the model's: the table that ``frontier pipeline`` prints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from validation.pipelined import RULE, Choice, Line, as_json, choices, lines, read_runs
from validation.pipelined_bundles import write_predicted


def run_pipeline(
    root: Path, out: Path | None, simulated: Path | None = None
) -> tuple[list[Table], list[str]]:
    """Tables with the undisturbed and with all steps, and what is to be said of them.

    ``out`` takes the numbers as JSON, ``simulated`` the predicted runs as bundles.
    """
    runs = read_runs(root)
    if simulated is not None:
        write_predicted(runs, root, simulated)
    kept, every = (lines(runs, filtered=filtered) for filtered in (True, False))
    if out is not None:
        content = {"schema": 1, "rule": RULE, "undisturbed": as_json(kept), "all": as_json(every)}
        out.write_text(json.dumps(content, indent=1) + "\n")
    said = [f"Rule: {RULE}."]
    for name, found in (("undisturbed", kept), ("all", every)):
        said.append(f"With {name} steps: {_worst(found)}; {_choice_words(choices(found))}.")
    return [_table("Undisturbed steps", kept), _table("All steps", every)], said


def _table(title: str, found: Sequence[Line]) -> Table:
    table = Table(title=title, title_justify="left")
    heads = ("launch", "m", "batch", "runs", "steps", "counted", "measured", "spread", "replay",
             "structure", "predicted", "error")  # fmt: skip
    for head in heads:
        table.add_column(head, justify="right")
    for line in found:
        error = line.prediction if line.micro_batches > 1 else None
        table.add_row(
            str(line.launch), str(line.micro_batches), str(line.batch), str(line.runs),
            str(line.steps), str(line.counted), f"{line.measured_s * 1e3:.2f} ms",
            f"{line.spread:.1%}", f"{line.replay:.2%}", f"{line.structure:+.2%}",
            "" if error is None else f"{line.predicted_s * 1e3:.2f} ms",  # type: ignore[operator]
            "" if error is None else f"{error:+.1%}",
        )  # fmt: skip
    return table


def _worst(found: Sequence[Line]) -> str:
    errors = {
        line.micro_batches: max(
            (x.prediction for x in found
             if x.micro_batches == line.micro_batches and x.prediction is not None),
            key=abs, default=None,
        )
        for line in found
        if line.micro_batches > 1
    }  # fmt: skip
    words = [f"m={m} {error:+.1%}" for m, error in errors.items() if error is not None]
    replay, structure = max(x.replay for x in found), max(abs(x.structure) for x in found)
    return (
        f"replay {replay:.2%}, structure {structure:.2%}, "
        f"prediction {', '.join(words) or 'none'} at worst"
    )


def _choice_words(found: Sequence[Choice]) -> str:
    right = sum(choice.right for choice in found)
    return f"the better m named in {right} of {len(found)} pairs that differ by more than 5%"
