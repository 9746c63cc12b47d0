"""What pytest must not import to look for doctests: it needs torch or vLLM to load."""

from __future__ import annotations

collect_ignore = [
    "replay/hooks",
    *(f"replay/af_testbed/{name}.py" for name in ("attention", "ffn", "model", "part", "wire")),
    "tests/e2e/fake_connector.py",
    "tests/e2e/vllm_side.py",
    "tests/replay/af_reference.py",
    "traces/samples/make_checkpoint.py",
]
