"""The id a client knows its request by, from the one vLLM uses inside.

vLLM 0.32 (entrypoints/openai/*/serving.py, v1/engine/input_processor.py and
parallel_sampling.py): ``/v1/completions`` turns X-Request-Id ``X`` into ``cmpl-X-<prompt>``,
``/v1/chat/completions`` into ``chatcmpl-X`` (``chatcmpl-X_<prompt>`` when there are several),
a tokens-in endpoint into ``generate-tokens-X``; then eight random hex digits are appended;
with ``n`` > 1 the samples are ``<sample>_<id>``.
"""

from __future__ import annotations

import re

_RANDOM = re.compile(r"-[0-9a-f]{8}$")
_SAMPLE = re.compile(r"^(\d+)_(?=cmpl-|chatcmpl-|generate-tokens-)")
_PREFIX = re.compile(r"^(cmpl|chatcmpl|generate-tokens)-")


def external_id(internal: str, *, random_suffix: bool = True) -> str:
    """Return the X-Request-Id; a further prompt or sample of one call keeps its number.

    >>> external_id("cmpl-req-7-0-1a2b3c4d")
    'req-7'
    >>> external_id("cmpl-req-7-2-1a2b3c4d"), external_id("1_cmpl-req-7-0-1a2b3c4d")
    ('req-7-2', 'req-7#1')
    >>> external_id("chatcmpl-req-7-1a2b3c4d"), external_id("cmpl-7-0", random_suffix=False)
    ('req-7', '7')
    """
    name = _RANDOM.sub("", internal) if random_suffix else internal
    sample = _SAMPLE.match(name)
    name = _SAMPLE.sub("", name)
    prefix = _PREFIX.match(name)
    name = _PREFIX.sub("", name)
    if prefix and prefix[1] == "cmpl":
        name = name.removesuffix("-0")
    return f"{name}#{sample[1]}" if sample and sample[1] != "0" else name


def external_ids(internal: list[list[str]], *, random_suffix: bool) -> tuple[list[list[str]], int]:
    """External ids of every replica's requests, made unique, and how many had to be.

    A client may use one id twice, which tables cannot: later ones get ``~2``, ``~3``, ...
    """
    seen: dict[str, int] = {}
    named: list[list[str]] = []
    for ids in internal:
        names = []
        for name in (external_id(i, random_suffix=random_suffix) for i in ids):
            seen[name] = seen.get(name, 0) + 1
            names.append(name if seen[name] == 1 else f"{name}~{seen[name]}")
        named.append(names)
    return named, sum(count - 1 for count in seen.values())
