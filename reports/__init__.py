"""Telling people: scorecard files, HTML, Markdown and JUnit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from validation.bars import Bars, Judgement
    from validation.comparison import Comparison
    from validation.scorecard import Scorecard


def write_all(
    scorecard: Scorecard, comparison: Comparison, out: Path, bars: Bars | None = None
) -> list[Judgement]:
    """Write ``scorecard.json``, ``report.html``, ``report.md`` and ``junit.xml`` under ``out``.

    The charts are drawn from ``comparison``. Returns the bars held against the scorecard,
    empty without bars.
    """
    from reports.html import html
    from reports.junit import junit
    from reports.markdown import markdown
    from reports.scorecard_file import FILE, write_scorecard
    from validation.bars import judge

    judgements = judge(scorecard, bars) if bars else []
    out.mkdir(parents=True, exist_ok=True)
    write_scorecard(scorecard, out / FILE)
    (out / "report.html").write_text(
        html(scorecard, comparison.views, judgements), encoding="utf-8"
    )
    (out / "report.md").write_text(markdown(scorecard, judgements), encoding="utf-8")
    (out / "junit.xml").write_bytes(junit(scorecard, judgements))
    return judgements
