"""What must hold in any bundle that was captured from a real engine."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from traces.bundle import Bundle

Row = dict[str, Any]


def requests_of(bundle: Bundle) -> dict[str, Row]:
    """Rows of the requests table by id."""
    return {row["request_id"]: row for row in bundle.requests.to_pylist()}


def check_progress(bundle: Bundle) -> int:
    """The rows of each finished request go from what was cached to its last token.

    A preemption sets it back; how many tokens were computed again is returned.
    """
    steps: dict[str, list[Row]] = defaultdict(list)
    for row in bundle.table("step_requests").to_pylist():
        steps[row["request_id"]].append(row)
    again = 0
    for name, request in requests_of(bundle).items():
        if request["status"] != "finished":
            continue
        first = np.array([row["computed_tokens"] for row in steps[name]])
        tokens = np.array([row["scheduled_tokens"] for row in steps[name]])
        set_back = (first + tokens)[:-1] - first[1:]
        assert first[0] == request["cached_tokens"], name
        assert (set_back >= 0).all(), name
        assert (set_back > 0).sum() <= request["preemptions"], name
        new = request["prompt_tokens"] - request["cached_tokens"] + request["output_tokens"] - 1
        assert tokens.sum() == new + set_back.sum(), name
        emitted = [row["emitted_tokens"] for row in steps[name]]
        assert sum(emitted) == request["output_tokens"], name
        again += int(set_back.sum())
    return again


def check_steps(bundle: Bundle) -> None:
    """Steps say the same as the requests in them, and their times are possible."""
    steps = bundle.table("steps").to_pylist()
    tokens, rows = np.zeros(len(steps), int), np.zeros(len(steps), int)
    for row in bundle.table("step_requests").to_pylist():
        tokens[row["step"]] += row["scheduled_tokens"]
        rows[row["step"]] += 1
    for step, count, requests in zip(steps, tokens, rows, strict=True):
        assert step["prefill_tokens"] + step["decode_tokens"] == count > 0
        assert step["padded_tokens"] == count  # a CPU pads nothing
        assert requests <= step["running"]
        assert 0 < step["forward_s"] < step["end_s"] - step["start_s"]
    starts, ends = ([step[c] for step in steps] for c in ("start_s", "end_s"))
    assert all(end <= start for end, start in zip(ends[:-1], starts[1:], strict=True))
    assert sum(s["preempted"] for s in steps) == sum(bundle.requests["preemptions"].to_pylist())


def check_join(engine: Bundle, client: Bundle) -> None:
    """Client and engine know the same requests; the client saw all of it later."""
    theirs, ours = requests_of(client), requests_of(engine)
    assert theirs.keys() == ours.keys()
    sent, received = (zero_s(b) for b in (client, engine))
    for name, row in theirs.items():
        seen = ours[name]
        assert (row["status"], seen["status"]) == ("finished", "finished"), name
        for column in ("prompt_tokens", "output_tokens"):
            assert row[column] == seen[column], (name, column)
        # the front end stamps arrivals with the epoch clock, which may be slewed
        assert row["sent_s"] + sent < seen["arrival_s"] + received + 1e-3, name
        for column in ("first_token_s", "finished_s"):
            assert row[column] + sent > seen[column] + received, (name, column)
        assert row["first_token_s"] - row["sent_s"] > seen["first_token_s"] - seen["arrival_s"]


def zero_s(bundle: Bundle) -> float:
    """A bundle's zero on the machine's monotonic clock, in seconds."""
    return float(bundle.manifest.clock["zero_monotonic_s"])


def check_hashes(engine: Bundle, workload: Bundle) -> None:
    """Captured and wanted hashes tell the same prompt blocks equal, and no others."""
    wanted, captured = requests_of(workload), requests_of(engine)
    block = engine.manifest.hash_block_tokens
    assert block == workload.manifest.hash_block_tokens
    pairs = set()
    for name, row in captured.items():
        hashes = row["block_hashes"]
        assert len(hashes) == (row["prompt_tokens"] + row["output_tokens"]) // block, name
        if name in wanted:
            pairs |= set(zip(wanted[name]["block_hashes"], hashes, strict=False))
    assert pairs
    assert len({one for one, _ in pairs}) == len({two for _, two in pairs}) == len(pairs)


def values_of(bundle: Bundle) -> str:
    """Everything a bundle says, as one text without blanks."""
    said = [str(bundle.manifest), str(bundle.model_config())]
    said += [str(bundle.table(name).to_pylist()) for name in bundle.tables]
    return "".join(said).replace(" ", "")
