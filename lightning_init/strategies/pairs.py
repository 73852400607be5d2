"""Which query, key, value and output matrices belong to the same attention."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from lightning_init.architecture.params import Architecture, ParamInfo, Role

_PARTS = ("query", "key", "value", "out")


@dataclass(frozen=True, slots=True)
class Attention:
    """The matrices of one attention.

    Attributes:
        names: Their first names.
        key: The names that the randomness of all of them is made from.
        width: Width of its input and output.
        heads: Heads.
        head_width: Width of one head.
    """

    names: frozenset[str]
    key: tuple[str, ...]
    width: int
    heads: int
    head_width: int


def attentions(architecture: Architecture) -> tuple[list[Attention], list[str]]:
    """Self-attentions with as many key and value heads as query heads, and why others are not.

    Matrices belong together that are in the same residual branch; of several attentions in one
    branch, or outside of branches, those in the same module.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_init import analyze
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> found, left = attentions(analyze(layer, lambda: layer(torch.ones(1, 4, 8))))
        >>> [(each.width, each.heads, each.head_width) for each in found], left
        ([(8, 2, 4)], [])
    """
    branches: dict[int, list[ParamInfo]] = defaultdict(list)
    for info in architecture:
        if info.role is Role.WEIGHT and info.usage is not None and info.usage.attention:
            branches[info.usage.within].append(info)
    served: list[Attention] = []
    left: list[str] = []
    for within, members in branches.items():
        crosses = within >= 0 and architecture.branches[within].crosses
        for group in _groups(members):
            why = "it attends to another sequence" if crosses else _obstacle(group)
            if why:
                left.append(why)
            else:
                served.append(_attention(group))
    return served, left


def _groups(members: list[ParamInfo]) -> list[list[ParamInfo]]:
    if len([part for info in members for part in _parts(info)]) <= len(_PARTS):
        return [members]
    modules: dict[str, list[ParamInfo]] = defaultdict(list)
    for info in members:
        depth = 1 if info.layer == "MultiheadAttention" else 2
        modules[".".join(info.name.split(".")[:-depth])].append(info)
    return list(modules.values())


def _parts(info: ParamInfo) -> list[str]:
    assert info.usage is not None
    return [part for part in info.usage.attention.split("|") if part in _PARTS]


def _sizes(group: list[ParamInfo]) -> dict[str, int]:
    """Output features of each part."""
    sizes: dict[str, int] = {}
    for info in group:
        whole = info.shape[info.axis]
        rows = {part.name: part.size for part in info.parts}
        sizes |= {part: rows.get(part, whole) for part in _parts(info)}
    return sizes


def _obstacle(group: list[ParamInfo]) -> str:
    """Why a group is not one square self-attention, `""` if it is."""
    parts = [part for info in group for part in _parts(info)]
    if sorted(parts) != sorted(_PARTS):
        return "which query belongs to which key, value and output matrix is not to be seen"
    if any(len(info.shape) != 2 or (len(_parts(info)) > 1 and not info.parts) for info in group):
        return "its matrices are not to be told apart"
    sizes, heads = _sizes(group), _heads(group)
    if len({sizes[part] for part in ("query", "key", "value")}) > 1:
        return "several query heads share a key and value head"
    if not heads or sizes["query"] % heads:
        return "the number of heads is not to be seen"
    inputs = {info.shape[1 - info.axis] for info in group if _parts(info) != ["out"]}
    if inputs != {sizes["out"]} or sizes["query"] > sizes["out"]:
        return "its inputs and outputs differ in width"
    return ""


def _heads(group: list[ParamInfo]) -> int:
    return next(i.usage.num_heads for i in group if i.usage is not None and "query" in _parts(i))


def _attention(group: list[ParamInfo]) -> Attention:
    sizes, heads = _sizes(group), _heads(group)
    query = next(info for info in group if "query" in _parts(info))
    return Attention(
        frozenset(info.name for info in group),
        query.names,
        sizes["out"],
        heads,
        sizes["query"] // heads,
    )
