"""Fit a step profile from captured steps: ``frontier fit B... --out P``.

Each part of a step is regressed on its terms with non-negative coefficients and weights
1 / prediction (noise grows with the step), iterated. At the solution the residuals sum to
zero, so predicted busy time equals the measured one on the steps fitted.

Prompts that were computed in one go do not tell what a token costs from what its pairs of query
and key cost: both grow together. There the operations of either, which the model's config tells,
are believed to be in proportion to their times (``regression.Proportion``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields

import numpy as np
import numpy.typing as npt

from simulator.deployment import parse_deployment
from simulator.model import ModelSpec
from simulator.step_time.base import BatchShape
from simulator.step_time.fit_link import fit_link, link_line
from simulator.step_time.fitted import LAYOUT, RANGED, StepProfile
from simulator.step_time.identify import undetermined
from simulator.step_time.regression import (
    Proportion,
    fit_part,
    frontend_delay,
    noise_of,
    weights_of,
)
from simulator.step_time.samples import Samples, model_of, samples_of
from simulator.step_time.sheet import pair_flops, token_flops
from simulator.step_time.terms import HOST_TERMS, Term, forward_terms
from traces.bundle import Bundle, bundle_hash
from traces.errors import TraceError

Floats = npt.NDArray[np.float64]
RESAMPLES = 100
BLOCK_STEPS = 50
LEANS = 0.1  # share by which a belief moves a coefficient that is told


def design(shapes: Sequence[BatchShape], terms: dict[str, Term]) -> Floats:
    """Matrix of terms, ``(n_steps, n_terms)``."""
    return np.array([[term(s) for term in terms.values()] for s in shapes], np.float64)


def fit_profile(
    bundles: Sequence[Bundle],
    *,
    cluster: str | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> StepProfile:
    """Fit one profile from captures of one engine, or of all in a cluster of that name.

    From captures of a prefill and a decode cluster their link too. Raises TraceError if they
    recorded no steps, or are of different models or engines.
    """
    first = bundles[0]
    model = model_of(first)
    for other in bundles[1:]:
        if model_of(other) != model:
            raise TraceError(f"{other.path}: another model than {first.path}")
        if other.manifest.engine_version != first.manifest.engine_version:
            raise TraceError(f"{other.path}: another engine version than {first.path}")
    progress("reading steps")
    samples = [samples_of(b, cluster) for b in bundles]
    together = any(shape.engine_tokens for part in samples for shape in part.shapes)
    forward, host = forward_terms(model.moe, together=together), HOST_TERMS
    ratio = pair_flops(model) / token_flops(model)
    progress("fitting forward, host and gap")
    parts = {
        "forward": _fit_named(samples, "forward_s", forward, ratio),
        "host": _fit_named(samples, "host_s", host),
        "gap": _fit_named(samples, "gap_s", host),
    }
    shapes = [s for part in samples for s in part.shapes]
    frontend = frontend_delay(np.concatenate([s.frontend_s for s in samples]))
    engines = parse_deployment(first.manifest.deployment, str(first.path)).clusters
    fitted = [c for c in engines if cluster in (None, c.name)]
    layouts = [(c.hardware, *(getattr(c.engine, name) for name in LAYOUT)) for c in fitted]
    if len(set(layouts)) != 1:
        names = ", ".join(c.name for c in engines)
        raise TraceError(f"{first.path}: clusters differ, say which to fit with --cluster: {names}")
    frontend_s = frontend or 0.0
    return StepProfile(
        model={f.name: getattr(model, f.name) for f in fields(ModelSpec)
               if f.name in ("model_type", "layers", "hidden", "vocab")},
        engine=first.manifest.engine,
        engine_version=first.manifest.engine_version,
        hardware=fitted[0].hardware,
        layout={name: getattr(fitted[0].engine, name) for name in LAYOUT},
        forward=parts["forward"][0],
        host=parts["host"][0],
        gap=parts["gap"][0],
        frontend_s=frontend_s,
        ranges={n: [min(getattr(s, n) for s in shapes), max(getattr(s, n) for s in shapes)]
                for n in RANGED},
        fitted_on=[{"hash": bundle_hash(b), "name": b.path.name} for b in bundles],
        intervals={name: part[1] for name, part in parts.items()},
        fit={name: part[2] for name, part in parts.items()},
        link=fit_link(bundles, frontend_s) if "transfers" in first else None,
        warnings=[f"{name}: {line}" for name, part in parts.items() for line in part[3]]
        + ([] if frontend is not None else ["no request was queued: frontend_s is 0"]),
    )  # fmt: skip


def _fit_named(
    samples: Sequence[Samples],
    part: str,
    terms: dict[str, Term],
    pairs_per_token: float | None = None,
) -> tuple[dict[str, float], dict[str, list[float]], dict[str, float], list[str]]:
    """Coefficients, their 95 % intervals, the error of one part, and what is undetermined.

    Zero terms are left out.
    """
    seconds = np.concatenate([getattr(s, part) for s in samples])
    matrix = design([s for part_ in samples for s in part_.shapes], terms)
    known = np.isfinite(seconds)
    seconds, matrix = seconds[known], matrix[known]
    if not len(seconds) or seconds.max() <= 0:
        return {"step": 0.0}, {}, {"steps": float(len(seconds))}, []
    names = list(terms)
    belief = None if pairs_per_token is None else _belief(names, matrix, pairs_per_token)
    coefficients = fit_part(matrix, seconds, belief)
    draws = _resampled(matrix, seconds, coefficients, belief)
    predicted = matrix @ coefficients
    kept = [i for i, c in enumerate(coefficients) if c > 0]
    intervals = {
        names[i]: [float(v) for v in np.percentile(draws[:, i], [2.5, 97.5])] for i in kept
    }
    error = {
        "steps": float(len(seconds)),
        "mean_s": float(seconds.mean()),
        "mape": float(np.mean(np.abs(predicted / seconds - 1)[seconds > 0])),
        "total_error": float(predicted.sum() / seconds.sum() - 1),
    }
    doubts = undetermined([names[i] for i in kept], draws[:, kept])
    if belief is not None:
        alone, found = fit_part(matrix, seconds)[belief.one], coefficients[belief.one]
        if abs(found - alone) > LEANS * max(found, alone):
            doubts.append(f"{names[belief.one]} leans on its operations: {found * 1e6:.4g} us, "
                          f"{alone * 1e6:.4g} us from the steps alone")  # fmt: skip
    return {names[i]: float(coefficients[i]) for i in kept}, intervals, error, doubts


def _belief(names: Sequence[str], matrix: Floats, pairs_per_token: float) -> Proportion:
    """Time of a pair against that of one more token of a large batch."""
    more = [n in ("tokens", "engine_tokens") or n.startswith("tokens_beyond") for n in names]
    seen = matrix.max(axis=0) > 0  # a term that no step has says nothing of tokens
    return Proportion(names.index("prefill_pairs"), (seen & more).astype(float), pairs_per_token)


def _resampled(
    matrix: Floats, seconds: Floats, coefficients: Floats, belief: Proportion | None
) -> Floats:
    """Coefficients refitted on resampled blocks of successive steps, ``(draws, n_terms)``.

    Weights stay those of the fit, so a draw is a sum of the blocks' normal equations.
    """
    from scipy.optimize import nnls

    rng = np.random.default_rng(0)
    scale = np.maximum(matrix.max(axis=0), 1e-12)
    root = np.sqrt(weights_of(matrix @ coefficients, seconds))
    rows = np.column_stack([matrix / scale, seconds]) * root[:, None]
    blocks = np.array_split(rows, max(1, len(seconds) // BLOCK_STEPS))
    squares = np.array([block.T @ block for block in blocks])
    believed = np.zeros(rows.shape[1])
    if belief is not None:
        noise = noise_of(matrix, seconds, coefficients)
        believed[:-1] = belief.row(coefficients, noise) / scale
    draws = []
    for _ in range(RESAMPLES):
        total = squares[rng.integers(len(blocks), size=len(blocks))].sum(axis=0)
        # a square root of the normal equations: the same least squares in n_terms + 1 rows
        values, vectors = np.linalg.eigh(total + np.outer(believed, believed))
        reduced = (vectors * np.sqrt(np.maximum(values, 0.0))).T
        draws.append(nnls(reduced[:, :-1], reduced[:, -1], maxiter=10_000)[0] / scale)
    return np.array(draws)


def profile_table(profile: StepProfile) -> str:
    """The fit in a few lines: terms with their intervals, and what they explain."""
    seen = ", ".join(f["name"] for f in profile.fitted_on)
    lines = [
        f"{profile.engine} {profile.engine_version} on {profile.hardware}, "
        f"frontend {profile.frontend_s * 1e3:.2f} ms, {f'fitted on {seen}' if seen else 'unfitted'}"
    ]
    for part in ("forward", "host", "gap"):
        fit = profile.fit[part]
        shown = f"{fit.get('mean_s', 0) * 1e3:.3f} ms mean, MAPE {fit.get('mape', 0):.1%}"
        lines.append(f"{part}: {shown} over {fit['steps']:.0f} steps" if seen else f"{part}:")
        for name, value in getattr(profile, part).items():
            low, high = profile.intervals[part].get(name, [value, value])
            lines.append(
                f"  {name:<18} {value * 1e6:12.4f} us  [{low * 1e6:.4f}, {high * 1e6:.4f}]"
            )
    if profile.link is not None:
        lines.append(link_line(profile.link))
    return "\n".join([*lines, *(f"warning: {w}" for w in profile.warnings)])
