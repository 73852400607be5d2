"""What PyTorch's own layers draw when they are built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from lightning_init.architecture.layers import Default, describe_model
from lightning_init.architecture.names import named_tensors
from lightning_init.architecture.params import Architecture, ParamInfo, Role
from lightning_init.architecture.plain import plain
from lightning_init.strategies.distributions import (
    Constant,
    Distribution,
    Keep,
    Normal,
    Uniform,
)
from lightning_init.strategies.registry import Strategy, strategy


@dataclass(frozen=True)
class AsBuilt:
    """The distribution that the constructor of a tensor's layer draws from.

    Args:
        laws: By the tensor's first name; without one, the shape and the layer's class tell.
        weights: Shape of the weight beside each bias of a layer that has no sizes yet.
    """

    laws: Mapping[str, Default] = field(default_factory=dict)
    weights: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __call__(self, info: ParamInfo) -> Distribution:
        """The distribution of one tensor."""
        law = self.laws.get(info.name) or self._of_lazy(info)
        reason = f"PyTorch's own for {info.layer or 'this layer'}"
        if law is None or info.numel == 0:
            return Keep("as built: no layer of PyTorch's own")
        if law.kind == "uniform":
            return Uniform(-law.value, law.value, reason=reason)
        if law.kind == "normal":
            return Normal(law.value, reason=reason)
        return Constant(law.value, reason=reason)

    def _of_lazy(self, info: ParamInfo) -> Default | None:
        """The law of a layer whose sizes a forward pass has shown."""
        if "lazy" not in info.flags or info.role not in (Role.WEIGHT, Role.BIAS):
            return None
        shape = info.shape if info.role is Role.WEIGHT else self.weights.get(info.name, ())
        summed = math.prod(shape[1:])
        return Default("uniform", summed**-0.5) if len(shape) > 1 and summed else None


@strategy(aliases=("pytorch", "default"))
def torch_default() -> Strategy:
    """What each layer of PyTorch draws by itself: U(+-1/sqrt(fan_in)) for weights and biases alike.

    So Linear and convolutions, whose std is 1/sqrt(3 fan_in): a third of LeCun's variance, a sixth
    of Kaiming's, and too little for deep nets without norm layers. fan_in is what the constructor
    takes for it: out/groups x kernel in a transposed convolution, in1 in Bilinear. Recurrent
    layers: U(+-1/sqrt(hidden)); tables: N(0, 1); the projection of MultiheadAttention: Xavier
    uniform, its biases 0; norms: the identity. Other tensors stay as built; what a composite as
    nn.Transformer draws anew is not followed.

    References:
        The `reset_parameters` of torch.nn, https://github.com/pytorch/pytorch/blob/main/torch/nn/init.py

    Example:
        >>> from lightning_init import make_plan
        >>> print(make_plan(nn.Linear(4, 2), "torch_default")["bias"])
        uniform, -0.5 to 0.5
    """

    def prepare(model: nn.Module, architecture: Architecture) -> Strategy:
        shapes = {name: info.shape for info in architecture for name in info.names}
        beside = {
            info.name: shapes.get(info.name.removesuffix("bias") + "weight", ())
            for info in architecture
            if info.role is Role.BIAS
        }
        return Strategy(AsBuilt(_laws(model), beside))

    return Strategy(AsBuilt(), prepare=prepare)


def _laws(model: nn.Module) -> dict[str, Default]:
    """The law of each tensor of a layer that PyTorch knows, by its first name."""
    with plain(model):
        found = {key: fact.default for key, (fact, _) in describe_model(model).items()}
        for module in model.modules():
            if isinstance(module, nn.PReLU):
                found[id(module.weight)] = Default("constant", module.init)
        of = {names[0]: found.get(id(tensor)) for names, tensor in named_tensors(model)}
    return {name: law for name, law in of.items() if law is not None}
