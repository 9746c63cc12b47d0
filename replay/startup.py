"""Start-up check: the five folders' names are common, so a foreign package may shadow one.

Imports nothing of the five, since any may be the shadowed one.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("replay", "simulator", "validation", "traces", "reports")


def check_packages() -> None:
    """Exit with code 2 and one line that names the package another distribution shadows."""
    home = Path(__file__).resolve().parent.parent
    for name in PACKAGES:
        spec = find_spec(name)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin != home / name / "__init__.py":
            print(
                f"frontier: package {name!r} is imported from {origin or 'nowhere'}, not from "
                f"{home / name}: another distribution or folder on PYTHONPATH shadows it; remove "
                "it or change directory",
                file=sys.stderr,
            )
            sys.exit(2)


class _NoPandas(MetaPathFinder):
    """Makes pandas look as if it were not installed."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def load_pyarrow() -> None:
    """Load pyarrow without pandas, which it takes on its first conversion if it finds it.

    A replay has no use for it and starts in half the time. pyarrow looks for pandas again
    when it is asked for a data frame.
    """
    without = _NoPandas()
    sys.meta_path.insert(0, without)
    try:
        import_module("pyarrow").array([0]).to_numpy()
    finally:
        sys.meta_path.remove(without)
