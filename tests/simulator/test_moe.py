"""Expert loads: what laws draw, where placements put it, and what was recorded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.deployment import Engine, MoE
from simulator.model import load_model
from simulator.moe.deployed import deployed_loads
from simulator.moe.fit import fit_loads, read_fitted, write_fitted
from simulator.moe.laws import (
    Dirichlet,
    Drawn,
    Layers,
    LoadLaw,
    Prompts,
    Recorded,
    Table,
    Uniform,
    Zipf,
)
from simulator.moe.loads import draw_loads
from simulator.moe.placement import PLACEMENTS, make_placement
from simulator.moe.recorded import ExpertCounts, expert_counts
from simulator.moe.routing import chances, route
from traces.bundle import read_bundle
from traces.errors import ConfigError, FrontierError
from traces.samples import HOME as SAMPLES

SIZES = (1, 2, 5, 64, 1000)
laws = st.one_of(
    st.builds(Uniform),
    st.builds(Zipf, st.floats(0, 2)),
    st.builds(
        Dirichlet,
        st.floats(0.1, 20),
        st.builds(Prompts, st.floats(0, 3), st.floats(0, 0.9), st.integers(0, 200)),
    ),
)
models = st.builds(
    lambda ranks, each, layers, k: (Layers(layers, ranks * each, min(k, ranks * each)), ranks),
    st.integers(1, 8), st.integers(1, 8), st.integers(1, 5), st.integers(1, 8),
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(laws, models, st.integers(0, 9))
def test_every_token_picks_top_k_different_experts(
    law: LoadLaw, made: tuple[Layers, int], seed: int
) -> None:
    moe, _ = made
    before = np.zeros(1)
    rng = np.random.default_rng(seed)
    for tokens, counts in zip(SIZES, law.counts(rng, moe, 3, SIZES), strict=True):
        assert counts.sum(axis=-1) == pytest.approx(tokens * moe.top_k)
        assert counts.max() <= tokens * (1 + 1e-9)
        assert (counts >= before - 1e-9).all()  # a draw's tokens are those before and more
        before = counts


@settings(deadline=None, max_examples=60)
@given(laws, models, st.sampled_from(sorted(PLACEMENTS)), st.integers(0, 2))
def test_ranks_get_all_pairs_and_no_more_experts_than_they_hold(
    law: LoadLaw, made: tuple[Layers, int], name: str, more: int
) -> None:
    moe, ranks = made
    redundant = more * ranks if name == "eplb" else 0
    for load in draw_loads(
        law, PLACEMENTS[name](), moe, ranks=ranks, redundant=redundant, steps=3, sizes=SIZES
    ):
        assert load.pairs.sum(axis=-1) == pytest.approx(load.tokens * moe.top_k)
        assert load.active.max() <= (moe.experts + redundant) / ranks + 1e-9
        if not isinstance(law, Uniform):
            assert (load.fullest <= load.pairs + 1e-9).all()
        else:
            assert load.imbalance() == pytest.approx(1)
            assert np.ptp(load.active) == 0


def test_chances_of_a_popular_expert_end_at_one() -> None:
    chance = chances(np.array([1e5, 5.0, 3.0, 1.0]), 2)
    assert chance.sum() == pytest.approx(2)
    assert chance[0] == pytest.approx(1, abs=1e-3)
    counts = route(np.random.default_rng(0), np.broadcast_to(chance, (50, 4)), 2000)
    assert counts.mean(axis=0) / 2000 == pytest.approx(chance, abs=0.01)


def test_redundant_experts_balance_what_placement_alone_cannot() -> None:
    moe = Layers(8, 64, 4)
    found = {}
    for name, more in (("linear", 0), ("eplb", 0), ("eplb", 32)):
        (load,) = draw_loads(
            Zipf(1.0), PLACEMENTS[name](), moe, ranks=8, redundant=more, steps=16, sizes=[4096]
        )
        found[name, more] = load.imbalance()
    assert found["eplb", 32] < found["eplb", 0] < found["linear", 0]
    assert found["eplb", 32] < 1.1


def sample(name: str, rep: int = 1) -> ExpertCounts:
    return expert_counts(read_bundle(SAMPLES / name / f"rep{rep}", eager=False), 2)


def test_a_record_is_replayed_as_it_was() -> None:
    record = sample("moe-low")
    moe = Layers(6, 16, 2)
    steps = 64
    tokens = record.counts[:steps, 0].sum(axis=-1) // 2
    for size in np.unique(tokens)[:5]:
        (counts,) = Recorded(record).counts(np.random.default_rng(0), moe, steps, [int(size)])
        here = tokens == size
        np.testing.assert_array_equal(counts[here], record.counts[:steps][here])
    for size in (1, 37, 5000):
        (counts,) = Recorded(record).counts(np.random.default_rng(0), moe, steps, [size])
        assert (counts.sum(axis=-1) == 2 * size).all()
        assert counts.max() <= size


@settings(deadline=None, max_examples=40)
@given(laws, models, st.integers(0, 9))
def test_prompts_beside_decodes_are_as_many_picks(
    law: LoadLaw, made: tuple[Layers, int], seed: int
) -> None:
    moe, _ = made
    if not isinstance(law, Drawn):
        return
    prompts, decodes = (0, 1, 7, 100, 5000), (0, 1, 16)
    found = list(law.mixed(np.random.default_rng(seed), moe, 3, prompts, decodes))
    pairs = [own + more for own in prompts for more in decodes]
    assert [tokens for tokens, _ in found] == pairs
    for tokens, counts in found:
        assert (counts.sum(axis=-1) == tokens * moe.top_k).all()
        assert counts.max() <= tokens


def test_a_prompt_s_tokens_are_alike_and_many_prompts_are_as_the_mean() -> None:
    moe, sizes = Layers(10, 32, 4), [200, 800, 200 * 400]
    law = Dirichlet(2.0, Prompts(2.0, 0.0, 200))
    mean = law.mean(np.random.default_rng(0), moe)
    one, four, many = (
        counts / size for size, counts in zip(
            sizes, law.prompts.counts(np.random.default_rng(0), mean, 400, sizes), strict=True
        )
    )  # fmt: skip
    assert float(np.abs(one.mean(axis=0) - mean).mean()) < 0.03
    width = [float(((share - mean) ** 2).mean()) for share in (one, four, many)]
    assert width[1] == pytest.approx(width[0] / 4, rel=0.15)
    assert width[2] < width[0] / 30
    decodes = next(c / 200 for c in law.counts(np.random.default_rng(0), moe, 400, [200]))
    assert float(((decodes - mean) ** 2).mean()) < width[0] / 10


def test_the_law_is_kept_in_a_profile(tmp_path: Path) -> None:
    fitted = fit_loads([sample("moe-low")])
    write_fitted(fitted, tmp_path)
    model = load_model(SAMPLES / "moe-low" / "rep1" / "model.json")
    law = read_fitted(tmp_path, model)
    assert isinstance(law, Table)
    assert law.shares == pytest.approx(fitted.shares, abs=1e-5)
    loads = deployed_loads(MoE(expert_load="fitted"), model, Engine(), tmp_path, tmp_path)
    assert isinstance(loads.law, Table)
    other = load_model(SAMPLES.parent / "models" / "qwen3-30b-a3b.json")
    assert isinstance(read_fitted(tmp_path, other), Dirichlet)


@pytest.mark.parametrize(
    ("moe", "message"),
    [
        (MoE(expert_load="zip"), r"moe.expert_load.from: unknown 'zip'.*zipf"),
        (MoE(expert_load={"from": "zipf", "exponnt": 1}), r"unknown key 'exponnt'.*exponent"),
        (MoE(expert_load={"from": "zipf", "exponent": -1}), r"exponent: must be a number from 0"),
        (MoE(expert_load={"from": "bundle", "path": "no"}), r"no is no bundle"),
        (MoE(expert_load="fitted"), r"no experts.yaml; frontier fit writes it"),
        (MoE(placement="eplp"), r"moe.placement: unknown 'eplp'.*eplb"),
        (MoE(placement={"file": "p.yaml"}), r"p.yaml"),
    ],
)
def test_what_cannot_be_is_refused(moe: MoE, message: str, tmp_path: Path) -> None:
    model = load_model(SAMPLES / "moe-low" / "rep1" / "model.json")
    with pytest.raises(FrontierError, match=message):
        deployed_loads(moe, model, Engine(), tmp_path, tmp_path)


def test_a_listed_placement_must_hold_every_expert(tmp_path: Path) -> None:
    shares = np.full((2, 4), 0.25)
    (tmp_path / "p.yaml").write_text("[[3, 0], [1, 2]]")
    listed = make_placement({"file": "p.yaml"}, tmp_path)
    assert listed.slots(shares, 2, 0).tolist() == [[[3, 0], [1, 2]]] * 2
    (tmp_path / "p.yaml").write_text("[[3, 0], [1, 1]]")
    with pytest.raises(ConfigError, match="layer 0: no expert 2"):
        listed.slots(shares, 2, 0)
    (tmp_path / "p.yaml").write_text("[[0, 1, 2, 3], []]")
    with pytest.raises(ConfigError, match="a list of experts for each rank, as many on each"):
        listed.slots(shares, 2, 0)
    (tmp_path / "p.yaml").write_text("[[3, 0], [1, 1]]")
    with pytest.raises(ConfigError, match="2 ranks in 2 layers, the deployment has 4 in 2"):
        listed.slots(shares, 4, 0)
    with pytest.raises(ConfigError, match="5 experts over 2 ranks do not divide"):
        PLACEMENTS["linear"]().slots(np.full((1, 5), 0.2), 2, 0)
