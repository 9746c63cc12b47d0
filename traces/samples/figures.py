"""What a captured sample measured, in a line."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from traces.bundle import Bundle, read_bundle
from traces.metrics import request_metrics


def judged(bundle: Bundle, column: str) -> np.ndarray:
    """A column of the requests that are not warm-up."""
    values: np.ndarray = bundle.requests.column(column).to_numpy(zero_copy_only=False)
    kept: np.ndarray = values[is_judged(bundle)]
    return kept


def is_judged(bundle: Bundle) -> np.ndarray:
    ids = bundle.requests.column("request_id").to_pylist()
    return np.array([not i.startswith("warmup-") for i in ids])


def measures(bundle: Bundle) -> dict[str, float]:
    """Means over the judged requests (seconds), and how busy an engine was (fractions)."""
    keep = is_judged(bundle)
    metrics = request_metrics(bundle)
    found = {name: float(np.nanmean(metrics[name][keep])) for name in ("ttft", "tpot", "e2e")}
    steps = bundle.table("steps")
    start_s, end_s = (steps.column(c).to_numpy() for c in ("start_s", "end_s"))
    first, last = judged(bundle, "arrival_s").min(), judged(bundle, "finished_s").max()
    inside = start_s >= first
    if "dummy" in steps.column_names:
        dummy = steps["dummy"].to_numpy(zero_copy_only=False)
        found["dummy"] = float(dummy[inside].mean())
        inside &= ~dummy
    engines = len(steps.group_by(["cluster", "replica"]).aggregate([]))
    found["busy"] = float((end_s - start_s)[inside].sum() / (last - first) / engines)
    found["running"] = float(np.average(steps["running"].to_numpy()[inside]))
    found["preempted"] = float((judged(bundle, "preemptions") > 0).mean())
    found["cached"] = float(
        judged(bundle, "cached_tokens").sum() / judged(bundle, "prompt_tokens").sum()
    )
    found["duration_s"] = float(last - first)
    if "experts" in bundle:
        tokens = np.stack(bundle.table("experts")["expert_tokens"].to_pylist())
        layer = bundle.table("experts")["layer"].to_numpy()
        loads = np.stack([tokens[layer == k].sum(axis=0) for k in np.unique(layer)])
        found["skew"] = float((loads.max(axis=1) / loads.mean(axis=1)).mean())
    return found


def summary(bundle: Bundle) -> str:
    m = measures(bundle)
    times = ", ".join(f"{k} {m[k] * 1e3:.2f} ms" for k in ("ttft", "tpot", "e2e"))
    rest = ", ".join(f"{k} {v:.2f}" for k, v in m.items() if k not in ("ttft", "tpot", "e2e"))
    return f"{times}, {rest}"


def figures(name: str, directory: Path) -> str:
    """Mean over the repeats and, in brackets, the coefficient of variation."""
    found = [measures(read_bundle(d)) for d in sorted(directory.iterdir()) if d.is_dir()]
    cells = [f"== {name}"]
    for name in found[0]:
        values = np.array([m[name] for m in found if name in m])
        known = len(values) > 1 and values.mean() > 0
        spread = f" ({values.std(ddof=1) / values.mean():.1%})" if known else ""
        cells.append(f"{name} {values.mean():.4g}{spread}")
    return ", ".join(cells)
