"""What a search ran with: the same numbers elsewhere need the same versions."""

from __future__ import annotations

import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

_NAMES = ("lightning-init", "torch", "lightning", "optuna")


def versions() -> dict[str, str]:
    """Name -> version, of what is installed.

    Example:
        >>> sorted(versions())[-2:]
        ['python', 'torch']
    """
    found = {"python": platform.python_version()}
    for name in _NAMES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
