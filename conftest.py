"""What pytest must not import to look for doctests: it needs torch or vLLM to load."""

from __future__ import annotations

collect_ignore = ["replay/hooks", "tests/e2e/vllm_side.py", "traces/samples/make_checkpoint.py"]
