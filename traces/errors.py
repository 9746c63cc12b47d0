"""The errors a user can meet; every other exception is a bug.

FrontierError
├── TraceError       a bundle, workload or profile on disk is not what it should be
├── ConfigError      a deployment, command line or request asks for the impossible
├── CaptureError     a real server could not be started, recorded or replayed against
└── InvariantError   the simulator broke one of its own rules (a bug, reported with state)

The command line prints the first three as one line and exits with 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class FrontierError(Exception):
    """Root of all errors raised on purpose."""


class TraceError(FrontierError):
    """Data on disk is missing, malformed or contradicts itself."""

    def __init__(self, faults: str | Sequence[str]) -> None:
        self.faults: list[str] = [faults] if isinstance(faults, str) else list(faults)
        super().__init__("; ".join(self.faults))


class ConfigError(FrontierError):
    """A deployment or an argument cannot be honoured."""


class CaptureError(FrontierError):
    """A real server failed, or could not be recorded."""


class InvariantError(FrontierError):
    """The simulator contradicts itself; the message carries the state."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint such as ``"; did you mean 'fcfs'? (known: fcfs, priority)"``."""
    names = sorted(known)
    close = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} (known: {', '.join(names)})"
