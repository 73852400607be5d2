"""The parameters that residual branches get, and the hooks that use them.

A hook is a function of this module, without state: it finds its parameters on the module that it
runs for. So a model with branch scales can be copied, pickled and compiled like any other, and
hooks of the user's are not touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_init.architecture.hosts import Host
from lightning_init.architecture.layers import BRANCH_BIAS_IN, BRANCH_BIAS_OUT, BRANCH_SCALE
from lightning_init.architecture.params import Architecture
from lightning_init.strategies.stacks import stacks

VECTORS = ("layerscale", "admin")
_STARTS = {"fixup": 1.0, "skipinit": 0.0, "rezero": 0.0, "admin": 1.0}


def scale_branches_(
    hosts: Sequence[Host],
    scheme: str,
    architecture: Architecture | None,
    value: float | None,
    per_layer: bool,
) -> None:
    """Give each module a `branch_scale`, and the hook that multiplies its result by it.

    Args:
        hosts: The modules that end branches.
        scheme: A key of `structure.Scheme`.
        architecture: The branches, None if no forward pass has shown them.
        value: Another start than the scheme's.
        per_layer: One parameter for all branches of a layer.
    """
    starts = _starts(scheme, architecture) if value is None else {-1: value}
    shared: dict[int, nn.Parameter] = {}
    layer_of = _layers(architecture) if per_layer and architecture is not None else {}
    for host in hosts:
        key = layer_of.get(host.branch, -1 - len(shared))
        start = starts[host.branch if host.branch in starts else -1]
        if key not in shared:
            shape = host.channels if scheme in VECTORS else (1,)  # FSDP takes no tensors without
            shared[key] = nn.Parameter(
                torch.full(shape, start, **_like(host.module)),  # dimensions
                requires_grad=scheme != "deepnorm",
            )
        host.module.register_parameter(BRANCH_SCALE, shared[key])
        host.module.register_forward_hook(_after)


def add_biases_(host: Host) -> None:
    """Scalar biases before and after a weight layer of a branch."""
    module = host.module
    module.register_parameter(BRANCH_BIAS_IN, nn.Parameter(torch.zeros(1, **_like(module))))
    module.register_parameter(BRANCH_BIAS_OUT, nn.Parameter(torch.zeros(1, **_like(module))))
    module.register_forward_pre_hook(_before, with_kwargs=True)
    if module._parameters.get(BRANCH_SCALE) is None:  # else the hook is there already
        module.register_forward_hook(_after)


def _before(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Add the scalar bias to the input; attention has three, which may be one tensor."""
    bias: Tensor = module._parameters[BRANCH_BIAS_IN]  # type: ignore[assignment]
    done: dict[int, Tensor] = {}

    def shifted(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if id(x) not in done:
            done[id(x)] = x + bias.to(x.dtype)
        return done[id(x)]

    if isinstance(module, nn.MultiheadAttention):
        given = {key: shifted(x) for key, x in kwargs.items() if key in ("query", "key", "value")}
        return (*map(shifted, args[:3]), *args[3:]), {**kwargs, **given}
    if args:
        return (shifted(args[0]), *args[1:]), kwargs
    first = next(iter(kwargs))
    return args, {**kwargs, first: shifted(kwargs[first])}


def _after(module: nn.Module, args: Any, output: Any) -> Any:
    """Scale the result (of a tuple the first tensor), and add the scalar bias if there is one."""
    if isinstance(output, tuple):
        return (_after(module, args, output[0]), *output[1:])
    scale = module._parameters.get(BRANCH_SCALE)
    bias = module._parameters.get(BRANCH_BIAS_OUT)
    if scale is not None:
        output = output * scale.to(output.dtype)
    return output if bias is None else output + bias.to(output.dtype)


def _like(module: nn.Module) -> dict[str, Any]:
    """Device and dtype of what a module computes with."""
    for parameter in module.parameters():
        if parameter.is_floating_point():
            return {"device": parameter.device, "dtype": parameter.dtype}
    return {}


def _starts(scheme: str, architecture: Architecture | None) -> dict[int, float]:
    """Where the scale of each branch starts; -1 stands for all."""
    if scheme in _STARTS:
        return {-1: _STARTS[scheme]}
    assert architecture is not None
    branches = list(enumerate(architecture.branches))
    if scheme == "deepnorm":
        alphas = deepnorm_alphas(architecture)
        return {number: 1 / alphas[branch.stream] for number, branch in branches}
    layers = {stack.stream: stack.layers for stack in stacks(architecture)}
    return {number: layerscale_value(layers[branch.stream]) for number, branch in branches}


def _layers(architecture: Architecture) -> dict[int, int]:
    """The layer of each branch: one begins with each self-attention of a stream."""
    found: dict[int, int] = {}
    current: dict[int, int] = {}
    for number, branch in enumerate(architecture.branches):
        if branch.stream not in current or (branch.attends and not branch.crosses):
            current[branch.stream] = number
        attending = any(b.attends for b in architecture.branches if b.stream == branch.stream)
        found[number] = current[branch.stream] if attending else number
    return found


def deepnorm_alphas(architecture: Architecture) -> dict[int, float]:
    """DeepNorm's alpha by stream: the factor on the skip path of each of a model's stacks.

    (2N)^(1/4) with N layers; with an encoder of N and a decoder of M layers 0.81 (N^4 M)^(1/16) in
    the encoder and (3M)^(1/4) in the decoder. In a stack without attention, 2N is its branches.

    References:
        Wang et al. (2022), figure 2, https://arxiv.org/abs/2203.00555

    Example:
        >>> from lightning_init.architecture.params import BranchInfo
        >>> seen = Architecture((), 4, True, tuple(BranchInfo(2, 0, i % 2 == 0) for i in range(4)))
        >>> round(deepnorm_alphas(seen)[0], 4)  # (2 * 2) ** 0.25
        1.4142
    """
    found = stacks(architecture)
    decoders = [stack for stack in found if stack.crosses]
    encoders = [stack for stack in found if stack.attends and not stack.crosses]
    alphas = {}
    for stack in found:
        if stack in decoders:  # also where its encoder is another model
            alphas[stack.stream] = (3 * stack.layers) ** 0.25
        elif stack in encoders and decoders:
            layers = stack.layers**4 * decoders[0].layers
            alphas[stack.stream] = 0.81 * layers ** (1 / 16)
        else:
            alphas[stack.stream] = (2 * stack.layers if stack.attends else stack.branches) ** 0.25
    return alphas


def layerscale_value(layers: int) -> float:
    """Where LayerScale starts, by the number of layers.

    References:
        Touvron et al. (2021), section 2, https://arxiv.org/abs/2103.17239

    Example:
        >>> [layerscale_value(n) for n in (12, 18, 24, 36)]
        [0.1, 0.1, 1e-05, 1e-06]
    """
    return 0.1 if layers <= 18 else 1e-5 if layers <= 24 else 1e-6
