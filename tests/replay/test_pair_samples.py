"""The shipped prefill/decode captures: the recorded order, and free runs at another load."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from recorded_pair import agreements

from replay.plan import make_plan
from replay.simulate import replay
from replay.verbs.validate import simulator_of
from simulator.step_time.fit import fit_profile
from simulator.step_time.fitted import save_profile
from traces.bundle import Bundle, read_bundle
from traces.metrics import HANDOVER
from traces.samples import sample_runs
from traces.workload import WARM_UP, bundle_workload
from validation.mixing import means_of
from validation.pair_mixing import PairMixer
from validation.samples import View

GROUPS = ("dense-pd-low", "dense-pd-high", "dense-pd-wire")
BAR = 0.10  # of a mean; twice the spread of the repeats, where that is more
CHAIN = ("queue", *HANDOVER)
RECORDED = 1e-6  # of a mean
BETWEEN = ("transfer_wait", "transfer", "decode_queue")  # prefill's answer to decode's first step


@pytest.mark.parametrize("group", GROUPS)
def test_recorded_times_give_the_recorded_order(
    group: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who is in each batch, so whose first is when; blocks reserved, kept and freed till then."""
    for path in sample_runs(group):
        for name, agreement in agreements(path).items():
            with capsys.disabled():
                print(
                    f"\n{group}/{path.name} {name}: batches {agreement.equal}, free blocks "
                    f"{agreement.blocks} of {agreement.steps} steps",
                    end="",
                )
            assert agreement.equal == agreement.steps, agreement.first
            assert agreement.blocks == agreement.steps


@pytest.mark.parametrize("group", GROUPS)
def test_all_was_handed_over(group: str) -> None:
    for path in sample_runs(group):
        bundle = read_bundle(path)
        assert set(bundle.requests["status"].to_pylist()) == {"finished"}
        assert len(bundle.table("transfers")) == len(bundle.requests)
        assert bundle.manifest.ignored == []


@pytest.mark.parametrize(("fitted", "held"), [("low", "high"), ("high", "low"), ("wire", "wire")])
def test_free_run(
    fitted: str, held: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen, runs = sample_runs(f"dense-pd-{fitted}"), sample_runs(f"dense-pd-{held}")
    if fitted == held:  # one load: the last capture is held against the others
        seen, runs = seen[:1], runs[1:]
    save_profile(fit_profile([read_bundle(p) for p in seen]), tmp_path)
    measured = [means(read_bundle(p)) for p in runs]
    workload = bundle_workload(read_bundle(runs[0]))
    manifest, tables = replay(workload, make_plan(runs[0], operators=tmp_path), record=("steps",))
    simulated = means(Bundle(tmp_path, manifest, tables))
    beyond, lines = {}, []
    for name, value in simulated.items():
        real = np.array([m[name] for m in measured])
        spread = real.std(ddof=1) / real.mean()
        error = value / real.mean() - 1
        lines.append(f"{name} {real.mean() * 1e3:.1f} ms {error:+.1%} (s {spread:.1%})")
        if name not in BETWEEN and abs(error) > max(BAR, 2 * spread):
            beyond[name] = error
    with capsys.disabled():
        print(f"\n{fitted} to {held}: " + ", ".join(lines))
    assert beyond == {}


@pytest.mark.parametrize("group", GROUPS)
def test_recorded_times_leave_no_term_of_scheduling(group: str, tmp_path: Path) -> None:
    """The ladder's first rung, both schedulers under recorded times, is the measured run."""
    path = sample_runs(group)[0]
    bundle = read_bundle(path)
    save_profile(fit_profile([bundle]), tmp_path)
    mixer = PairMixer(bundle, bundle, simulator_of(path, path, tmp_path))
    found = mixer.run(next(mix for name, mix in mixer.mixes() if name == "scheduling"))
    real = means_of(bundle, mixer.pairing.measured)
    assert found == pytest.approx(real, rel=RECORDED)


def means(bundle: Bundle) -> dict[str, float]:
    """Mean of each metric and part of the chain over the requests that are no warm-up.

    What lies between prefill and decode is one part here, ``handover``: NIXL tells that a
    transfer is over when it is asked, once a step, so that a captured one ends with a step,
    and the decode queue of the simulation is part of it.
    """
    ids = bundle.requests["request_id"].to_pylist()
    judged = np.array([i for i, name in enumerate(ids) if not name.startswith(WARM_UP)])
    values = View(bundle, judged).values
    found = {n: float(np.nanmean(values[n])) for n in (*CHAIN, "ttft", "tpot", "e2e")}
    return found | {"handover": sum(found[n] for n in BETWEEN)}
