"""Synthetic workloads: arrivals, lengths, shared prefixes and sessions.

A request is a turn of a session; without sessions every session has one turn. A session is
one growing text: the system prompt it begins with, if any, then what is asked and answered
turn by turn, so that each prompt contains the whole conversation before it:

    turn 0   [system][asked 0] -> answered 0
    turn 1   [system][asked 0][answered 0][asked 1] -> answered 1

Full blocks of that text have a random number each as hash, those of a system prompt one that
all sessions share that begin with it. Everything is drawn from one generator.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from traces import draws
from traces.errors import ConfigError
from traces.load import load_workload
from traces.workload import Workload, make_workload

FROM = "from:"
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to synthesise; distributions as in ``traces.draws`` or ``from:PATH``.

    ``rate_per_s`` is the mean rate while sessions begin. ``prompt`` is what a turn adds:
    prefix and earlier turns come on top. ``prefix_share`` of the sessions begin with one of
    ``prefixes`` system prompts of ``prefix_tokens`` each. ``turns`` makes sessions; a later
    turn arrives ``answer_s`` (how long an answer takes is not known yet: an assumption)
    plus a pause drawn from ``think`` after the one before.
    """

    requests: int
    rate_per_s: float
    arrivals: str = "poisson"
    prompt: str = "lognormal:512,0.8,16,4096"
    output: str = "lognormal:128,0.8,4,1024"
    prefixes: int = 0
    prefix_tokens: int = 256
    prefix_share: float = 1.0
    turns: str | None = None
    think: str = "lognormal:5,1,0.5,60"
    answer_s: float = 1.0
    block_tokens: int = 16


def synthesise(recipe: Recipe, rng: np.random.Generator) -> Workload:
    """Draw the workload of a recipe. Raises ConfigError, and TraceError for a bad ``from:``."""
    if recipe.requests < 1 or not recipe.rate_per_s > 0:
        raise ConfigError("a workload needs at least 1 request and a rate above 0")
    turns = _turns(recipe, rng)
    n, first = recipe.requests, np.cumsum(turns) - turns
    session = np.repeat(np.arange(len(turns)), turns)
    start_s = draws.arrivals(recipe.arrivals, rng, len(turns), recipe.rate_per_s * len(turns) / n)
    prefix, system = _prefixes(recipe, rng, len(turns))
    asked, answered = _lengths(recipe, rng)
    turn = np.arange(n) - first[session]
    prompt = system[session] + _before(asked + answered, first, session) + asked
    columns: dict[str, Any] = {"prompt_tokens": prompt, "output_tokens": answered}
    think_s = np.zeros(n)
    if recipe.turns is not None:
        think_s = np.where(turn > 0, draws.values(recipe.think, rng, n), 0.0)
        columns |= {"session_id": _names(session), "turn": turn, "think_s": think_s}
    pause_s = np.where(turn > 0, recipe.answer_s + think_s, 0.0)
    columns["arrival_s"] = start_s[session] + _before(pause_s, first, session) + pause_s
    size = None
    if recipe.turns is not None or recipe.prefixes:  # else nobody shares anything
        size = recipe.block_tokens
        blocks = (prompt + answered) // size
        columns["block_hashes"] = _hashes(rng, blocks, first, session, prefix, system // size)
    return make_workload(columns, "synthesis", hash_block_tokens=size, notes=_notes(recipe))


def _turns(recipe: Recipe, rng: np.random.Generator) -> Ints:
    """Turns of each session, ``(n_sessions,)``; the last session is cut to fit."""
    n = recipe.requests
    if recipe.turns is None:
        return np.ones(n, np.int64)
    turns = _whole("turns", draws.values(recipe.turns, rng, n))
    total = np.cumsum(turns)
    last = int(np.searchsorted(total, n))
    turns[last] -= total[last] - n
    return turns[: last + 1]


def _prefixes(recipe: Recipe, rng: np.random.Generator, sessions: int) -> tuple[Ints, Ints]:
    """The system prompt of each session and its tokens (0 where it has none), ``(n_sessions,)``."""
    if not recipe.prefixes:
        return np.zeros(sessions, np.int64), np.zeros(sessions, np.int64)
    has_one = rng.random(sessions) < recipe.prefix_share
    return rng.integers(recipe.prefixes, size=sessions), has_one * recipe.prefix_tokens


def _lengths(recipe: Recipe, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Tokens asked and answered by each request; pairs where both are of one workload."""
    n, texts = recipe.requests, (recipe.prompt, recipe.output)
    if texts[0] == texts[1] and texts[0].startswith(FROM):
        prompts, outputs = (_empirical(texts[0], c) for c in ("prompt_tokens", "output_tokens"))
        rows = rng.integers(len(prompts), size=n)
        return prompts[rows], outputs[rows]
    asked = _drawn("prompt", texts[0], "prompt_tokens", rng, n)
    return asked, _drawn("output", texts[1], "output_tokens", rng, n)


def _drawn(what: str, text: str, column: str, rng: np.random.Generator, n: int) -> Ints:
    if text.startswith(FROM):
        known = _empirical(text, column)
        return known[rng.integers(len(known), size=n)]
    return _whole(what, draws.values(text, rng, n))


def _empirical(text: str, column: str) -> Ints:
    table = load_workload(Path(text.removeprefix(FROM))).requests
    found: Ints = table.column(column).to_numpy()
    return found


def _whole(what: str, drawn: Floats) -> Ints:
    whole = np.rint(drawn).astype(np.int64)
    if whole.min() < 1:
        raise ConfigError(f"{what}: drew {drawn.min():g}, must be at least 1")
    return whole


def _before(values: npt.NDArray[Any], first: Ints, session: Ints) -> npt.NDArray[Any]:
    """The sum of ``values`` over the earlier turns of each request's session."""
    before = np.cumsum(values) - values
    within: npt.NDArray[Any] = before - before[first][session]
    return within


def _hashes(
    rng: np.random.Generator, blocks: Ints, first: Ints, session: Ints, prefix: Ints, shared: Ints
) -> pa.Array:
    """Hashes of the first ``blocks`` blocks of each request's session.

    The first ``shared`` blocks of a session are those of its ``prefix``.
    """
    lengths = np.maximum.reduceat(blocks, first)  # of the whole text of each session
    of = np.repeat(np.arange(len(lengths)), lengths)
    place = _ranges(np.zeros_like(lengths), lengths)
    text = _numbers(rng, len(of))
    systems = _numbers(rng, (int(prefix.max()) + 1, int(shared.max())))
    is_shared = place < shared[of]
    text[is_shared] = systems[prefix[of[is_shared]], place[is_shared]]
    begin = np.cumsum(lengths) - lengths
    offsets = np.concatenate([[0], np.cumsum(blocks)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, text[_ranges(begin[session], blocks)])


def _numbers(rng: np.random.Generator, shape: int | tuple[int, int]) -> Ints:
    limits = np.iinfo(np.int64)
    return rng.integers(limits.min, limits.max, size=shape, endpoint=True)


def _ranges(starts: Ints, lengths: Ints) -> Ints:
    """``arange(start, start + length)`` of each pair, one after the other."""
    shift = starts - (np.cumsum(lengths) - lengths)
    ranges: Ints = np.repeat(shift, lengths) + np.arange(int(lengths.sum()))
    return ranges


def _names(session: Ints) -> list[str]:
    width = len(str(int(session.max())))
    return [f"s{i:0{width}d}" for i in session.tolist()]


def _notes(recipe: Recipe) -> dict[str, Any]:
    """The recipe, without the folders of this machine, and what it assumes."""
    told = {k: v for k, v in asdict(recipe).items() if v is not None}
    for name in ("prompt", "output"):
        if told[name].startswith(FROM):
            told[name] = FROM + Path(told[name].removeprefix(FROM)).name
    notes: dict[str, Any] = {"recipe": told}
    if recipe.turns is not None:
        notes["later turns"] = f"due as if every answer took {recipe.answer_s:g} s"
    return notes
