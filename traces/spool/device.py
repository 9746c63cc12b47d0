"""How deployments and tables of kernels name the device of a capture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def device_name(device: Mapping[str, Any]) -> str:
    """The name of what the hooks say they ran on.

    A GPU as its driver names it; a processor ``cpu``, or ``cpu_amx`` if it multiplies matrices
    of bfloat16 in units of their own, several times as fast.

    >>> device_name({"type": "cpu", "name": "some Xeon", "amx": True})
    'cpu_amx'
    """
    if device["type"] != "cpu":
        return str(device["name"])
    return "cpu_amx" if device.get("amx") else "cpu"
