"""Our metrics of a bench result against what vLLM itself computes from the same requests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from traces.bundle import Bundle
from traces.formats.vllm_bench import VLLMBench
from traces.metrics import inter_token_latencies, request_metrics

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]  # torch warns
serve = pytest.importorskip("vllm.benchmarks.serve")


def test_same_means_and_percentiles(tmp_path: Path) -> None:
    from vllm.benchmarks.lib.endpoint_request_func import RequestFuncOutput

    rng = np.random.default_rng(3)
    outputs = []
    for i in range(200):
        gaps = rng.exponential(0.01, int(rng.integers(0, 40))).tolist()  # 0: one token
        ttft = float(rng.exponential(0.1))
        failed = i % 10 == 3
        outputs.append(
            RequestFuncOutput(
                success=not failed,
                latency=0.0 if failed else ttft + sum(gaps),
                output_tokens=0 if failed else len(gaps) + 1,
                ttft=0.0 if failed else ttft,
                itl=[] if failed else gaps,
                prompt_len=int(rng.integers(1, 500)),
                error="Traceback" if failed else "",
                start_time=5e5 + i * 0.05,
            )
        )
    theirs, lengths = serve.calculate_metrics([], outputs, 20.0, None, [50, 90, 99], {})
    result = {  # as benchmark() puts it together
        "duration": 20.0, "completed": theirs.completed, "request_throughput": 1.0,
        "total_input_tokens": theirs.total_input, "input_lens": [o.prompt_len for o in outputs],
        "output_lens": lengths, "ttfts": [o.ttft for o in outputs],
        "itls": [o.itl for o in outputs],
        "start_times": [o.start_time for o in outputs], "errors": [o.error for o in outputs],
    }  # fmt: skip
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(result))
    manifest, tables = VLLMBench().read_bundle(path)
    bundle = Bundle(path, manifest, tables)
    ours = request_metrics(bundle) | {"itl": inter_token_latencies(bundle)}
    assert bundle.requests["status"].to_pylist().count("finished") == theirs.completed == 180
    for name, theirs_name in (("ttft", "ttft"), ("tpot", "tpot"), ("itl", "itl"), ("e2e", "e2el")):
        known = ours[name][np.isfinite(ours[name])]
        # start times of 5e5 s leave 6e-11 s of a float
        near = pytest.approx
        assert known.mean() * 1e3 == near(getattr(theirs, f"mean_{theirs_name}_ms"), abs=1e-6)
        for p, value in getattr(theirs, f"percentiles_{theirs_name}_ms"):
            assert np.percentile(known, p) * 1e3 == near(value, abs=1e-6), (name, p)
