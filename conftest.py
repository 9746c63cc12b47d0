"""What pytest needs to know before it collects."""

from __future__ import annotations

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # started in the background of a script: the commands that tests interrupt would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

# needs torch or vLLM to load: not looked at for doctests
collect_ignore = [
    "replay/hooks",
    *(f"replay/af_testbed/{name}.py" for name in ("attention", "ffn", "model", "part", "wire")),
    "tests/e2e/fake_connector.py",
    "tests/e2e/vllm_side.py",
    "tests/replay/af_reference.py",
    "traces/samples/make_checkpoint.py",
]
