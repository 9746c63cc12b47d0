"""A client's bundle as the result file of ``vllm bench serve --save-result --save-detailed``.

Keys and formulas as vllm/benchmarks/serve.py (0.32), ``calculate_metrics``: latencies of
finished requests in ms, standard deviations of the population, throughput over the time from
the first request sent to the last finish. Warm-ups are left out, as there. Texts are not
known: the lists of them are empty strings.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from traces.bundle import Bundle
from traces.errors import ConfigError, TraceError
from traces.metrics import Floats, column, inter_token_latencies, request_metrics
from traces.workload import WARM_UP

PERCENTILE = 99


def write_bench_result(bundle: Bundle, path: Path) -> None:
    """Write ``path``. Raises TraceError for a bundle no client saw, ConfigError for the path."""
    text = json.dumps(bench_result(bundle), indent=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    except OSError as error:
        raise ConfigError(f"--bench-json {path}: {error.strerror}") from None


def bench_result(bundle: Bundle) -> dict[str, Any]:
    """The result as plain data. Raises TraceError without the times of tokens."""
    if "token_times_s" not in bundle.requests.column_names:
        raise TraceError(f"{bundle.path}: no token_times_s: not seen by a client")
    bundle = _without_warm_ups(bundle)
    table = bundle.requests
    metrics = request_metrics(bundle)
    done = np.isfinite(metrics["e2e"])
    prompt, output = (column(table, n).astype(int) for n in ("prompt_tokens", "output_tokens"))
    sent_s = column(table, "sent_s")
    end_s = column(table, "finished_s")[done].max(initial=np.nanmin(sent_s, initial=np.inf))
    seconds = float(end_s - np.nanmin(sent_s, initial=end_s)) or float("nan")
    times = table.column("token_times_s").to_pylist()
    live = bundle.manifest.notes.get("live", {})
    loop = str(live.get("loop", ""))
    closed = loop.removeprefix("closed, ").split(",")[0] if loop.startswith("closed") else None
    result: dict[str, Any] = {
        "backend": "openai",
        "num_prompts": len(table),
        "request_rate": "inf" if closed else None,
        "max_concurrency": int(closed) if closed else None,
        "duration": seconds,
        "completed": int(done.sum()),
        "failed": int((~done).sum()),
        "total_input_tokens": int(prompt[done].sum()),
        "total_output_tokens": int(output[done].sum()),
        "request_throughput": float(done.sum() / seconds),
        "output_throughput": float(output[done].sum() / seconds),
        "total_token_throughput": float((prompt[done].sum() + output[done].sum()) / seconds),
        "input_lens": prompt.tolist(),
        "output_lens": np.where(done, output, 0).tolist(),
        "ttfts": np.nan_to_num(np.where(done, metrics["ttft"], 0.0)).tolist(),
        "itls": [np.diff(t).tolist() if ok else [] for t, ok in zip(times, done, strict=True)],
        "start_times": sent_s.tolist(),
        "generated_texts": [""] * len(table),
        "errors": ["" if ok else "failed" for ok in done],
    }
    finished = Bundle(bundle.path, bundle.manifest, {"requests": table.filter(pa.array(done))})
    for name, values in {
        "ttft": metrics["ttft"][done],
        "tpot": metrics["tpot"][done],
        "itl": inter_token_latencies(finished),
        "e2el": metrics["e2e"][done],
    }.items():
        result |= _statistics(name, values)
    return result


def _statistics(name: str, seconds: Floats) -> dict[str, float]:
    ms = seconds[np.isfinite(seconds)] * 1e3
    if not len(ms):
        ms = np.zeros(1)  # as vLLM does
    return {
        f"mean_{name}_ms": float(ms.mean()),
        f"median_{name}_ms": float(np.median(ms)),
        f"std_{name}_ms": float(ms.std()),
        f"p{PERCENTILE}_{name}_ms": float(np.percentile(ms, PERCENTILE)),
    }


def _without_warm_ups(bundle: Bundle) -> Bundle:
    warm = pc.starts_with(bundle.requests.column("request_id"), WARM_UP)
    return Bundle(
        bundle.path, bundle.manifest, {"requests": bundle.requests.filter(pc.invert(warm))}
    )
