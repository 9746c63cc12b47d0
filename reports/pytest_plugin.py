"""pytest plugin: gate the accuracy of a simulation in a team's own tests.

    def test_accuracy(frontier_scorecard):
        card = frontier_scorecard("bundles/measured", "out/simulated", repeats=["bundles/again"])
        card.check("baselines/dense.json")          # fails the test with the reason
        assert abs(card.error("tpot", "mean")) < 0.05

``pytest --frontier-update-baselines`` writes the baselines instead of checking them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from validation.scorecard import Scorecard

PathLike = str | Path


@dataclass(frozen=True)
class CheckedScorecard:
    """A scorecard in a test; ``path`` is the directory of its reports."""

    scorecard: Scorecard
    path: Path
    update: bool

    def error(self, metric: str, statistic: str = "mean") -> float:
        """simulated / measured - 1 of a statistic. Fails the test if it was not compared."""
        errors = self.scorecard.metrics.get(metric)
        found = errors.statistics.get(statistic) if errors else None
        if found is None or found.error is None:
            pytest.fail(f"{metric} {statistic}: not compared ({self.path})", pytrace=False)
        return found.error

    def check(self, baseline: PathLike, *, points: float = 2.0, ms: float = 0.1) -> None:
        """Fail the test if the scorecard is worse than ``baseline``, or not comparable with it.

        ``points`` (percent) and ``ms`` are the growths of an error to ignore.
        """
        from reports.check import Threshold, run_check
        from traces.errors import TraceError

        try:
            findings, reason = run_check(
                self.path,
                Path(baseline),
                update=self.update,
                threshold=Threshold(points / 100, ms / 1e3),
            )
        except TraceError as error:
            pytest.fail(str(error), pytrace=False)
        if findings:
            texts = "\n".join(f"{f.kind}: {f.text}" for f in findings)
            pytest.fail(f"{reason}\n{texts}\n{self.path / 'report.html'}", pytrace=False)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("frontier").addoption(
        "--frontier-update-baselines",
        action="store_true",
        help="write the baselines that frontier_scorecard would be checked against",
    )


@pytest.fixture
def frontier_scorecard(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., CheckedScorecard]:
    """Validate bundles: ``frontier_scorecard(measured, simulated, repeats=(), out=None)``.

    Writes all reports to ``out``, a temporary directory unless given.
    """

    def validate(
        measured: PathLike,
        simulated: PathLike,
        *,
        repeats: Sequence[PathLike] = (),
        out: PathLike | None = None,
    ) -> CheckedScorecard:
        from reports.validate import run_validate

        path = Path(out) if out is not None else tmp_path_factory.mktemp("frontier")
        card, _ = run_validate(
            Path(measured), Path(simulated), path, repeats=[Path(r) for r in repeats]
        )
        update = bool(request.config.getoption("--frontier-update-baselines"))
        return CheckedScorecard(card, path, update)

    return validate
