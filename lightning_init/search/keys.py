"""Dotted keys of nested configurations, both ways; an entry of a list is named by its number.

A parser takes a list as a whole only: what is to change one entry repeats all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from typing import Any

from lightning_init.architecture.arguments import unknown


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


def every_item(data: object, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested mappings and lists with their dotted keys; also lists as a whole.

    Example:
        >>> list(every_item({"a": {"b": 1}, "c": [{"d": 2}, 3]}))
        [('a.b', 1), ('c', [{'d': 2}, 3]), ('c.0.d', 2), ('c.1', 3)]
    """
    if prefix and not isinstance(data, Mapping):
        yield prefix, data
    if isinstance(data, (Mapping, list)):
        pairs = enumerate(data) if isinstance(data, list) else data.items()
        for key, value in pairs:
            yield from every_item(value, f"{prefix}.{key}" if prefix else f"{key}")


def lists_of(keys: Iterable[str], data: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The lists that some keys reach into, by the list's own key.

    Example:
        >>> lists_of(["a.b.0", "c"], {"a": {"b": [1, 2]}, "c": 3})
        {'a.b': [1, 2]}
    """
    found = {}
    for key in keys:
        value: Any = data
        parts = key.split(".")
        for depth, part in enumerate(parts):
            if isinstance(value, list):
                found[".".join(parts[:depth])] = value
                break
            value = value.get(part) if isinstance(value, Mapping) else None
    return found


def with_lists(flat: Mapping[str, Any], lists: Mapping[str, list[Any]]) -> dict[str, Any]:
    """Values of entries of lists as values of the whole lists.

    Args:
        flat: Dotted keys -> values.
        lists: Dotted keys -> lists as they are.

    Example:
        >>> with_lists({"a.0.b": 5, "c": 1}, {"a": [{"b": 2}, 3]})
        {'a': [{'b': 5}, 3], 'c': 1}
    """
    found: dict[str, Any] = {}
    for key, value in flat.items():
        of = next((one for one in lists if key.startswith(f"{one}.")), None)
        if of is None:
            found[key] = value
            continue
        inner: Any = found.setdefault(of, deepcopy(lists[of]))
        *path, leaf = key.removeprefix(f"{of}.").split(".")
        for part in path:
            inner = inner[int(part)] if isinstance(inner, list) else inner[part]
        inner[int(leaf) if isinstance(inner, list) else leaf] = value
    return found


def unknown_key(key: str, data: Mapping[str, Any]) -> str:
    """What is wrong with a key that is not in a configuration, and what is legal."""
    value: Any = data
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if isinstance(value, list):
            if part not in map(str, range(len(value))):
                where, there = ".".join(parts[:depth]), ", ".join(map(_named, enumerate(value)))
                return (
                    f"unknown configuration key {key!r}: {where} is a list, of which "
                    f"{there or 'nothing'} is legal, but got {part!r}"
                )
            value = value[int(part)]
        elif isinstance(value, Mapping) and part in value:
            value = value[part]
        else:
            break
    return unknown("configuration key", key, [name for name, _ in every_item(data)])


def leaf(key: str) -> str:
    """The last part of a key; of an entry of a list also what it is an entry of.

    Example:
        >>> leaf("model.init_args.lr"), leaf("model.init_args.rates.1")
        ('lr', 'rates.1')
    """
    above, _, last = key.rpartition(".")
    return f"{leaf(above)}.{last}" if last.isdecimal() and above else last


def _named(entry: tuple[int, Any]) -> str:
    """An entry of a list: its number, and what it is."""
    number, value = entry
    kind = value.get("class_path", "") if isinstance(value, Mapping) else ""
    return f"{number} ({kind.rpartition('.')[2]})" if kind else f"{number}"


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
