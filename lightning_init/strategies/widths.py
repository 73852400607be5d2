"""How wide the residual stream is that a tensor belongs to, read from how the model is used.

A branch is as wide as the matrix that ends it. The recipes of transformers speak of one hidden
size d; here each stack has its own, and a layer outside of all branches (a patch embedding, a
head) has that of the stream which its outputs or inputs are as wide as.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lightning_init.architecture.params import Architecture, ParamInfo, Role

_TABLES = (Role.EMBEDDING, Role.POSITION)


@dataclass(frozen=True, slots=True)
class Widths:
    """The width of the stream of each residual branch.

    Args:
        branches: Index of a branch -> its width.

    Example:
        >>> inner = ParamInfo(("fc",), (64, 16), Role.WEIGHT, fan_in=16, fan_out=64)
        >>> Widths().of(inner), Widths({0: 64}).of(inner)
        (16, 64)
    """

    branches: Mapping[int, int] = field(default_factory=dict)

    def of(self, info: ParamInfo) -> float:
        """The width for one tensor.

        A table has its own. A matrix has that of its branch; outside of branches that of a
        stream it writes to or reads from; in a model without such a stream its own fan_in.
        """
        if info.role in _TABLES:
            return info.shape[-1]
        if info.usage is not None and info.usage.within in self.branches:
            return self.branches[info.usage.within]
        streams = set(self.branches.values())
        outputs = info.shape[info.axis] if info.shape else 0
        for size in (outputs, info.fan_in):
            if size in streams:
                return size
        return info.fan_in


def widths(architecture: Architecture) -> Widths:
    """The widths of a model's residual branches, empty if a forward pass shows none.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_init import analyze
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> widths(analyze(layer, lambda: layer(torch.ones(1, 4, 8)))).branches
        {0: 8, 1: 8}
    """
    found = {
        info.usage.branch: info.shape[info.axis]
        for info in architecture
        if info.usage is not None and info.usage.ends_branch and len(info.shape) > 1
    }
    return Widths(found)
