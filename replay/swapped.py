"""Step times of a simulated deployment with parts of a measured one put in their place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from replay.plan import Plan, load_step_time
from simulator.deployment import Link, MoE
from simulator.step_time.base import StepTimeModel
from traces.bundle import read_bundle


def swapped_step_times(
    measured: Path, real: Plan, plan: Plan
) -> tuple[tuple[str, StepTimeModel], ...]:
    """The parts that differ, ``expert_loads`` and ``links``, with the step times before each.

    What the measured run tells is put in the place of what ``plan`` supposes: the expert loads
    it recorded, else those its deployment names; its links inside an engine, if it names them.
    Before ``expert_loads`` both are the measured run's, before ``links`` they alone. Step times
    fitted from steps know of neither: then nothing is swapped.
    """
    if "kernels_of" not in load_step_time(plan)[1]:
        return ()
    inside = _links(real, plan)
    links = replace(plan, deployment=plan.deployment.model_copy(update={"links": inside}))
    moe = _expert_loads(measured, real, plan)
    loads = replace(links, deployment=links.deployment.model_copy(update={"moe": moe}))
    models = {"expert_loads": loads, "links": links}
    changed = {
        "expert_loads": moe != plan.deployment.moe,
        "links": links.deployment.links != plan.deployment.links,
    }
    return tuple((n, load_step_time(models[n])[0]) for n in models if changed[n])


def _links(real: Plan, plan: Plan) -> tuple[Link, ...]:
    """The measured links inside a cluster, if any are named, in the place of the plan's."""
    inside = tuple(link for link in real.deployment.links if link.from_ == link.to)
    if not inside:
        return plan.deployment.links
    names = {link.from_ for link in inside}
    kept = (k for k in plan.deployment.links if k.from_ != k.to or k.from_ not in names)
    return (*kept, *inside)


def _expert_loads(measured: Path, real: Plan, plan: Plan) -> MoE:
    known = real.deployment.moe
    if plan.model.moe is None:
        return plan.deployment.moe
    if "experts" in read_bundle(measured, eager=False):
        return known.model_copy(
            update={"expert_load": {"from": "bundle", "path": str(measured.resolve())}}
        )
    if known == MoE():  # it does not say
        return plan.deployment.moe
    return known
