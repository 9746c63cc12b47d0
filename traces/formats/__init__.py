"""Foreign trace formats, one file each; a file is recognised by its content, never its name."""

from __future__ import annotations

from pathlib import Path

from traces.errors import TraceError
from traces.formats.azure import Azure
from traces.formats.base import Format
from traces.formats.blis import Blis
from traces.formats.burstgpt import BurstGPT
from traces.formats.engine_stamps import EngineStamps
from traces.formats.mooncake import Mooncake
from traces.formats.read import keys_of
from traces.formats.sharegpt import ShareGPT
from traces.formats.text import read_head
from traces.formats.vidur import Vidur
from traces.formats.vllm_bench import VLLMBench

FORMATS: dict[str, Format] = {
    "azure": Azure(),
    "blis": Blis(),
    "burstgpt": BurstGPT(),
    "engine_stamps": EngineStamps(),
    "mooncake": Mooncake(),
    "sharegpt": ShareGPT(),
    "vidur": Vidur(),
    "vllm_bench": VLLMBench(),
}


def recognise(path: Path) -> Format:
    """The format of a file, by its content.

    Raises TraceError naming the known formats, and the nearest one where the file has some
    of its columns.
    """
    head = read_head(path)
    if not head.strip():
        raise TraceError(f"{path}: the file is empty")
    keys = keys_of(head)
    missing = {name: [c for c in f.columns if c not in keys] for name, f in FORMATS.items()}
    for name, columns in missing.items():
        if not columns:
            return FORMATS[name]
    nearest = min(missing, key=lambda name: len(missing[name]) / len(FORMATS[name].columns))
    hint = ""
    if len(missing[nearest]) < len(FORMATS[nearest].columns):
        lacking = ", ".join(repr(c) for c in missing[nearest])
        hint = f"; nearest is {nearest}, but {lacking} is missing"
    raise TraceError(f"{path}: no known trace format{hint} (known: {', '.join(FORMATS)})")
