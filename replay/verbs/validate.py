"""``frontier validate``: a simulated bundle held to a measured one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from replay.verbs.common import ANY_PATH, DIRECTORY, say

if TYPE_CHECKING:
    from replay.plan import Plan
    from simulator.deployment import Role
    from validation.ladder import PairSimulator, Simulator


@click.command()
@click.argument("measured", type=DIRECTORY)
@click.argument("simulated", type=DIRECTORY)
@click.option("--out", required=True, type=ANY_PATH, help="Directory of the reports.")
@click.option("--repeats", multiple=True, type=DIRECTORY, help="Another run of MEASURED: noise.")
@click.option("--bars", type=ANY_PATH, help="YAML of the largest errors allowed; beyond: exit 1.")
@click.option("--allow-vantage-mix", is_flag=True, help="Compare an engine's with a client's.")
@click.option("--require-holdout", is_flag=True, help="Refuse a simulation fitted on these runs.")
@click.option("--ladder", is_flag=True, help="Say what explains the error, and where it starts.")
@click.option("--operators", type=DIRECTORY, help="--ladder: profile (default: SIMULATED's own).")
def validate(
    measured: Path, simulated: Path, out: Path, ladder: bool, operators: Path | None, **options: Any
) -> None:
    """Compare SIMULATED with MEASURED: scorecard.json, report.html, report.md, junit.xml."""
    from reports.validate import print_outcome, run_validate

    if ladder:
        options["simulator"] = lambda: simulator_of(measured, simulated, operators)
    scorecard, judgements = run_validate(measured, simulated, out, progress=say, **options)
    print_outcome(scorecard, judgements, out)
    sys.exit(0 if all(j.passed for j in judgements) else 1)


def simulator_of(
    measured: Path, simulated: Path, operators: Path | None
) -> Simulator | PairSimulator:
    """What the simulator made of the deployments of two bundles."""
    from replay.plan import load_step_time, make_plan
    from replay.swapped import swapped_step_times
    from validation.ladder import Simulator

    real, plan = make_plan(measured), make_plan(simulated, operators=operators)
    if len(plan.clusters) > 1:
        return _pair_simulator(real, plan)
    model, note = load_step_time(plan)
    configs = real.scheduler_config(), plan.scheduler_config()
    return Simulator(*configs, model, note.get("profile"), swapped_step_times(measured, real, plan))


def _pair_simulator(real: Plan, plan: Plan) -> PairSimulator:
    from replay.plan import load_step_time
    from replay.prepare import connect, one_note, side_of
    from validation.ladder import PairSimulator

    roles: tuple[Role, Role] = ("prefill", "decode")
    loaded = {role: load_step_time(plan, plan.side(role)) for role in roles}
    notes = {plan.side(role).cluster.name: note for role, (_, note) in loaded.items()}
    connection, proxy_ps = connect(plan)
    measured, simulated = (
        {str(role): side_of(of.side(role), model) for role, (model, _) in loaded.items()}
        for of in (real, plan)
    )
    profile = one_note(notes)["profile"]
    return PairSimulator(measured, simulated, connection, proxy_ps, profile)
