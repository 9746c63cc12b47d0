"""Puts the hooks on the path as a capture does, and this folder's fakes beside them."""

from __future__ import annotations

import sys
from pathlib import Path

from replay.command import HOOKS

sys.path[:0] = [str(HOOKS), str(Path(__file__).parent)]
