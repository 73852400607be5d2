"""How many layers the encoder and the decoder of a model have, counted by use.

A stack is one stream of residual sums. Its layers are counted by self-attention: a layer may add
to its stream once (attention and feed-forward side by side), twice, or, in a decoder that also
attends to an encoder, three times.
"""

from __future__ import annotations

from dataclasses import dataclass

from lightning_init.architecture.params import Architecture, ParamInfo


@dataclass(frozen=True, slots=True)
class Stack:
    """One stream of residual sums.

    Attributes:
        stream: Its index.
        layers: Layers, each with one self-attention; branches in a stack without attention.
        branches: Residual sums.
        attends: Whether its layers have attention.
        crosses: Whether its layers also attend to another stack, as a decoder's do.
    """

    stream: int
    layers: int
    branches: int
    attends: bool
    crosses: bool


def stacks(architecture: Architecture) -> tuple[Stack, ...]:
    """The stacks of a model, in execution order.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_init import analyze
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        >>> found = analyze(model, lambda: model(torch.ones(1, 4, 8)))
        >>> [(stack.layers, stack.branches, stack.crosses) for stack in stacks(found)]
        [(3, 6, False)]
    """
    found = []
    for stream in dict.fromkeys(branch.stream for branch in architecture.branches):
        mine = [branch for branch in architecture.branches if branch.stream == stream]
        itself = sum(branch.attends and not branch.crosses for branch in mine)
        crosses = any(branch.crosses for branch in mine)
        layers = itself or sum(branch.crosses for branch in mine) or len(mine)
        found.append(Stack(stream, layers, len(mine), itself > 0 or crosses, crosses))
    return tuple(found)


def stack_of(info: ParamInfo, architecture: Architecture) -> Stack | None:
    """The stack that a tensor is part of, None outside of branches."""
    if info.usage is None or info.usage.within < 0:
        return None
    stream = architecture.branches[info.usage.within].stream
    return next(stack for stack in stacks(architecture) if stack.stream == stream)
