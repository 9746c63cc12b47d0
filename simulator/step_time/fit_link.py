"""What a captured pair of clusters tells of its link: set-up, bandwidth, time of the proxy.

A transfer that is alone takes set-up + bytes / bandwidth; the fit has non-negative
coefficients and weights 1 / prediction, as that of steps. The proxy's time is the mean delay
from prefill's answer to the decode engine's input queue, less what the front end takes: of each
request the delay nearest to that which agrees with most looks into the queue. Most are alike,
but a host with too few cores holds some up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc

from simulator.step_time.regression import Floats, fit_part, frontend_delay
from traces.bundle import Bundle
from traces.metrics import column

WARM_UP = "warmup-"


def fit_link(bundles: Sequence[Bundle], frontend_s: float) -> dict[str, Any]:
    """Set-up and proxy in us, bandwidth in 1e9 bytes/s, and how well they describe transfers.

    The bandwidth is None if transfers do not grow with their bytes.
    """
    sizes, seconds = (np.concatenate(parts) for parts in zip(*map(_alone, bundles), strict=True))
    setup_s, per_byte = fit_part(np.stack([np.ones_like(sizes), sizes], axis=1), seconds)
    predicted = setup_s + per_byte * sizes
    bounds = np.concatenate([_bounds(b) for b in bundles])
    usual_s = frontend_delay(bounds)
    delay_s = float(np.clip(usual_s, bounds[:, 0], bounds[:, 1]).mean()) if usual_s else 0.0
    return {
        "setup_us": float(setup_s) * 1e6,
        "bandwidth_gb_s": float(1e-9 / per_byte) if per_byte else None,
        "proxy_us": max(0.0, delay_s - frontend_s) * 1e6,
        "transfers": len(sizes),
        "mape": float(np.mean(np.abs(predicted / seconds - 1))),
        "total_error": float(predicted.sum() / seconds.sum() - 1),
    }


def link_line(link: dict[str, Any]) -> str:
    """The fit in a line."""
    bandwidth = link["bandwidth_gb_s"]
    return (
        f"link: set-up {link['setup_us']:.1f} us, bandwidth "
        + (f"{bandwidth:.3f} GB/s" if bandwidth else "without bound")
        + f", proxy {link['proxy_us']:.1f} us; MAPE {link['mape']:.1%} over "
        f"{link['transfers']} transfers"
    )


def _alone(bundle: Bundle) -> tuple[Floats, Floats]:
    """Bytes and seconds of the transfers that overlap no other, or of all if none is alone."""
    table = bundle.table("transfers")
    table = table.filter(pc.invert(pc.starts_with(table["request_id"], WARM_UP)))
    start, end, sizes = (column(table, name) for name in ("start_s", "end_s", "bytes"))
    order = np.argsort(start, kind="stable")
    start, end, sizes = start[order], end[order], sizes[order]
    before = np.append(-np.inf, np.maximum.accumulate(end)[:-1])
    alone = (before <= start) & (np.append(start[1:], np.inf) >= end) & (end > start)
    if not alone.any():
        alone = end > start
    return sizes[alone], (end - start)[alone]


def _bounds(bundle: Bundle) -> Floats:
    """Least and largest delay from prefill's answer to decode's queue, ``(n, 2)`` seconds."""
    requests, steps = bundle.requests, bundle.table("steps")
    found = []
    names = [c["name"] for c in bundle.manifest.deployment["clusters"] if c["role"] == "decode"]
    for replica in pc.unique(requests["decode_replica"].drop_null()).to_pylist():
        mine = pc.and_(pc.equal(steps["cluster"], names[0]), pc.equal(steps["replica"], replica))
        start, end = (column(steps.filter(mine), name) for name in ("start_s", "end_s"))
        of = requests.filter(
            pc.and_(
                pc.fill_null(pc.equal(requests["decode_replica"], replica), False),
                pc.invert(pc.starts_with(requests["request_id"], WARM_UP)),
            )
        )
        answered, queued = (column(of, f"{n}_s") for n in ("prefill_finished", "decode_queued"))
        looks = np.searchsorted(start, queued, side="right") - 1
        last = np.maximum(looks, 0)
        largest = queued - answered
        idle = (looks < 0) | (end[last] <= answered)
        least = np.where(idle, largest, np.maximum(start[last] - answered, 0.0))
        found.append(np.stack([least, largest], axis=1))
    return np.concatenate(found)
