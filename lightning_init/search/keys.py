"""Dotted keys of nested configurations, both ways."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def dotted_items(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested mappings with their dotted keys.

    Example:
        >>> list(dotted_items({"a": {"b": 1}, "c": [2]}))
        [('a.b', 1), ('c', [2])]
    """
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from dotted_items(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def dotted_keys(data: Mapping[str, Any]) -> list[str]:
    """The dotted keys of nested mappings."""
    return [key for key, _ in dotted_items(data)]


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys back to nested mappings.

    Example:
        >>> nested({"model.init_args.lr": 0.1})
        {'model': {'init_args': {'lr': 0.1}}}
    """
    data: dict[str, Any] = {}
    for key, value in flat.items():
        *path, leaf = key.split(".")
        inner = data
        for part in path:
            inner = inner.setdefault(part, {})
        inner[leaf] = value
    return data
