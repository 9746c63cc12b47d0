"""Start-up check: the five folders' names are common, so a foreign package may shadow one."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from traces.errors import ConfigError

PACKAGES = ("replay", "simulator", "validation", "traces", "reports")


def check_packages() -> None:
    """Raise ConfigError naming the package that another distribution shadows."""
    home = Path(__file__).resolve().parent.parent
    for name in PACKAGES:
        spec = find_spec(name)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin != home / name / "__init__.py":
            raise ConfigError(
                f"package {name!r} is imported from {origin or 'nowhere'}, not from {home / name}: "
                "another distribution or folder on PYTHONPATH shadows it; remove it or change "
                "directory"
            )
