"""Names of layers where there is little room, and which of them are the same layer of a block."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lightning_init.architecture.readings import LayerReading


def shared_prefix(names: Sequence[str]) -> str:
    """The dotted path that all names share, with its last dot.

    Example:
        >>> shared_prefix(["net.h.0.fc", "net.h.1.fc", "net.head"])
        'net.'
    """
    paths = [name.split(".")[:-1] for name in names]
    shared = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "".join(f"{part}." for part in shared)


def shorten(name: str, width: int) -> str:
    """A name in at most `width` characters: its first parts abbreviated, else its middle cut.

    Example:
        >>> shorten("encoder.layers.11.attention.output", 24)
        'e.l.11.attention.output'
        >>> shorten("a_single_long_name", 12)
        'a_sin…g_name'
    """
    parts = name.split(".")
    for index in range(len(parts) - 1):
        if len(".".join(parts)) <= width:
            break
        parts[index] = parts[index] if parts[index].isdigit() else parts[index][:1]
    short = ".".join(parts)
    if len(short) <= width:
        return short
    head = (width - 1) // 2
    return f"{name[:head]}…{name[-(width - 1 - head) :]}"


def roles(layers: Sequence[LayerReading]) -> list[tuple[str, list[LayerReading]]]:
    """Layers that differ in numbers only, with their common name, in order of the first.

    Those that have fewer than three of a kind are one group, `other layers`; so are all where
    there are more than six kinds.

    Example:
        >>> net = [LayerReading(f"h.{i}.fc", "Linear", "", 0, 1, 1, 3, 0) for i in range(3)]
        >>> [(name, len(members)) for name, members in roles(net)]
        [('h.*.fc', 3)]
    """
    groups: dict[str, list[LayerReading]] = {}
    for layer in layers:
        groups.setdefault(re.sub(r"\d+", "*", layer.name), []).append(layer)
    kinds = {name: members for name, members in groups.items() if len(members) >= 3}
    if not 1 <= len(kinds) <= 6:
        return [("", list(layers))] if layers else []
    prefix = shared_prefix(list(kinds)) if len(kinds) > 1 else ""
    found = [(name[len(prefix) :], members) for name, members in kinds.items()]
    rest = [layer for name, members in groups.items() if name not in kinds for layer in members]
    return [*found, ("other layers", rest)] if rest else found
