"""How bad a rule's findings can be, read off its source: so that no list of it can be out of date."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, get_args

from lightning_init.health.findings import Severity


@lru_cache
def severities(function: Callable[..., Any]) -> tuple[str, ...]:
    """The severities that a detector, and the functions of its module that it calls, mention.

    Args:
        function: The detector.

    Returns:
        The worst first; nothing if there is no source to read.

    Example:
        >>> from lightning_init.health.registry import get
        >>> severities(get("loss_crash").function)
        ('error',)
    """
    said = set(_texts(function, set()))
    return tuple(kind for kind in get_args(Severity) if kind in said)


def _texts(function: Callable[..., Any], seen: set[str]) -> Iterator[str]:
    """String constants of a function and of those of its own module that it names."""
    seen.add(function.__name__)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.Name) and node.id not in seen:
            other = getattr(inspect.getmodule(function), node.id, None)
            if inspect.isfunction(other) and other.__module__ == function.__module__:
                yield from _texts(other, seen)
