"""Module type -> what each of its tensors is for.

One `case` per layer type, and the only place that knows layer types: role, fans, stacked blocks,
and the distribution that the layer's own constructor draws (so that "never touched" is a fact).
A type that is not listed yields nothing; its tensors stay `Role.OTHER` unless a forward pass
shows their use.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

from lightning_init.architecture.params import Role
from lightning_init.architecture.sharded import kind_of

# What `strategies.structure.add_branch_scales_` adds to modules, by name.
BRANCH_SCALE, BRANCH_BIAS_IN, BRANCH_BIAS_OUT = "branch_scale", "branch_bias_in", "branch_bias_out"

_ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.PReLU: "leaky_relu",
    nn.RReLU: "leaky_relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.GELU: "gelu",
    nn.SiLU: "silu",
    nn.ELU: "elu",
    nn.CELU: "elu",
    nn.SELU: "selu",
    nn.Mish: "mish",
    nn.Softplus: "softplus",
    nn.Hardswish: "silu",
}


# In the order in which PyTorch stacks them, by their number.
_GATES = {4: ("input", "forget", "cell", "output"), 3: ("reset", "update", "new")}


@dataclass(frozen=True, slots=True)
class Default:
    """What a layer's constructor draws: U(-value, value), N(0, value^2) or the constant `value`."""

    kind: Literal["uniform", "normal", "constant"]
    value: float


@dataclass(frozen=True, slots=True)
class Described:
    """What a module type says of one of its tensors (see `ParamInfo` for the fields)."""

    role: Role
    fan_in: float = math.nan
    fan_out: float = math.nan
    blocks: int = 1
    default: Default | None = None
    padding_idx: int | None = None
    tied_default: Default | None = None  # what the constructor of a tied layer draws
    gates: tuple[str, ...] = ()  # names of the blocks


def activation_name(module: nn.Module) -> str | None:
    """The name of an activation module, None if it is not one.

    Example:
        >>> activation_name(nn.GELU()), activation_name(nn.Linear(1, 1))
        ('gelu', None)
    """
    return next((name for kind, name in _ACTIVATIONS.items() if isinstance(module, kind)), None)


def describe(module: nn.Module) -> dict[str, Described]:
    """Roles, fans and blocks of a module's own tensors, by local name.

    `fan_in` counts the products summed into one output element: `in/groups * kernel` for a
    convolution, divided by the stride for a transposed one; fused matrices count per block.

    Args:
        module: Any module; only its type and its sizes are read.

    Returns:
        One entry per recognized tensor; names that the module lacks may be present.

    Example:
        >>> describe(nn.Conv2d(8, 16, 3, groups=4))["weight"].fan_in
        18.0
    """
    match module:
        case nn.Linear():
            return _matrix(module.in_features, module.out_features)
        case nn.Bilinear():
            fan_in = module.in1_features * module.in2_features
            bound = Default("uniform", module.in1_features**-0.5)
            return {
                # The gradient of the first input sums over the outputs and the second input.
                "weight": Described(
                    Role.WEIGHT, fan_in, module.out_features * module.in2_features, default=bound
                ),
                "bias": Described(Role.BIAS, fan_in, default=bound),
            }
        case nn.modules.conv._ConvNd():
            return _convolution(module)
        case nn.Embedding() | nn.EmbeddingBag():
            return {
                "weight": Described(
                    Role.EMBEDDING,
                    fan_in=1,
                    fan_out=module.embedding_dim,
                    default=Default("normal", 1.0),
                    padding_idx=module.padding_idx,
                )
            }
        case nn.MultiheadAttention():
            return _attention(module)
        case nn.RNNBase():
            return _recurrent(module)
        case nn.RNNCellBase():
            is_gru = isinstance(module, nn.GRUCell)
            gates = 4 if isinstance(module, nn.LSTMCell) else 3 if is_gru else 1
            bound = Default("uniform", module.hidden_size**-0.5)
            size, hidden = module.input_size, module.hidden_size
            return {
                "weight_ih": Described(Role.WEIGHT, size, hidden, gates, bound),
                "weight_hh": Described(Role.RECURRENT, hidden, hidden, gates, bound),
                "bias_ih": Described(
                    Role.BIAS, size, blocks=gates, default=bound, gates=_GATES.get(gates, ())
                ),
                "bias_hh": Described(Role.BIAS, hidden, blocks=gates, default=bound),
            }
        case nn.LayerNorm() | nn.GroupNorm() | nn.RMSNorm() | nn.modules.batchnorm._NormBase():
            return {
                "weight": Described(Role.NORM_SCALE, default=Default("constant", 1.0)),
                "bias": Described(Role.NORM_SHIFT, default=Default("constant", 0.0)),
            }
    if kind_of(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        # GPT-2's layer in transformers: a linear map stored (in, out), no subclass of nn.Linear.
        # Its N(0, 0.02^2) is the recipe of a model, not a default that nobody chose.
        rows, columns = module.get_parameter("weight").shape
        return {
            "weight": Described(Role.WEIGHT, rows, columns),
            "bias": Described(Role.BIAS, rows, default=Default("constant", 0.0)),
        }
    return {}


def describe_model(model: nn.Module) -> dict[int, tuple[Described, str]]:
    """What the module types say of every tensor: `id(parameter)` -> facts, class of its owner.

    A composite knows more than its parts and comes first; a table tied to a head is a table.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3))
        >>> describe_model(net)[id(net[0].weight)][1]
        'Linear'
    """
    found: dict[int, tuple[Described, str]] = {}
    for module in model.modules():
        for name, fact in describe(module).items():
            *path, leaf = name.split(".")
            owner: nn.Module | None = module
            for part in path:
                owner = _held(owner._modules, part) if owner else None
            parameter = _held(owner._parameters, leaf) if owner else None
            if parameter is None:
                continue
            known, kind = found.get(id(parameter), (fact, kind_of(module).__name__))
            if fact.role is Role.EMBEDDING:
                known, kind, fact = fact, kind_of(module).__name__, known
            if fact is not known:
                known = replace(known, tied_default=fact.default)
            found[id(parameter)] = (known, kind)
        for name in (BRANCH_SCALE, BRANCH_BIAS_IN, BRANCH_BIAS_OUT):
            parameter = _held(module._parameters, name)
            if parameter is not None:
                role = Role.BRANCH_SCALE if name == BRANCH_SCALE else Role.BIAS
                found[id(parameter)] = (Described(role), kind_of(module).__name__)
    return found


def _held(members: Any, name: str) -> Any:
    """A member of a module, None without it; those of a scripted module are no dict."""
    return next((member for key, member in members.items() if key == name), None)


def module_traits(model: nn.Module) -> frozenset[str]:
    """Facts of a whole model that its module types tell.

    Example:
        >>> sorted(module_traits(nn.Sequential(nn.Conv2d(1, 1, 3), nn.BatchNorm2d(1), nn.ReLU())))
        ['convolution', 'norm', 'relu']
    """
    found = set()
    for module in model.modules():
        kind = kind_of(module).__name__
        found |= {name} if (name := activation_name(module)) else set()
        found |= {"attention"} if "Attention" in kind or "Transformer" in kind else set()
        found |= {"convolution"} if isinstance(module, nn.modules.conv._ConvNd) else set()
        found |= {"recurrence"} if isinstance(module, (nn.RNNBase, nn.RNNCellBase)) else set()
        found |= {"norm"} if is_norm(module) else set()
    return frozenset(found)


_NORMS = ("BatchNorm", "LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm")


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalizes; those that libraries write themselves go by their names.

    Example:
        >>> is_norm(nn.GroupNorm(2, 4)), is_norm(nn.Linear(4, 4))
        (True, False)
    """
    kind = kind_of(module).__name__
    # Norms that libraries write themselves (LlamaRMSNorm, LayerNorm2d, ...) are called so.
    named = kind.endswith("Norm") and not kind.startswith("_")  # torch's own _WeightNorm
    known = any(fact.role is Role.NORM_SCALE for fact in describe(module).values())
    return named or known or any(name in kind for name in _NORMS)


def _matrix(fan_in: int, fan_out: int) -> dict[str, Described]:
    default = Default("uniform", fan_in**-0.5) if fan_in else None
    return {
        "weight": Described(Role.WEIGHT, fan_in, fan_out, default=default),
        "bias": Described(Role.BIAS, fan_in, default=default),
    }


def _convolution(module: nn.modules.conv._ConvNd) -> dict[str, Described]:
    field, stride = math.prod(module.kernel_size), math.prod(module.stride)
    fan_in = module.in_channels // module.groups * field
    fan_out = module.out_channels // module.groups * field
    # The constructor reads fan_in from dim 1, which is `out/groups` in a transposed convolution.
    drawn = fan_out if module.transposed else fan_in  # 0 as long as the layer is lazy
    default = Default("uniform", drawn**-0.5) if drawn else None
    into, back = (fan_in / stride, fan_out) if module.transposed else (fan_in, fan_out / stride)
    return {
        "weight": Described(Role.WEIGHT, float(into), float(back), module.groups, default),
        "bias": Described(Role.BIAS, float(into), default=default),
    }


def _attention(module: nn.MultiheadAttention) -> dict[str, Described]:
    width, zero = module.embed_dim, Default("constant", 0.0)
    parts = {
        "in_proj_weight": Described(
            Role.WEIGHT, width, width, 3, Default("uniform", math.sqrt(6 / (4 * width)))
        ),
        "in_proj_bias": Described(Role.BIAS, width, blocks=3, default=zero),
        "bias_k": Described(Role.BIAS, width, default=Default("normal", width**-0.5)),
        "bias_v": Described(Role.BIAS, width, default=Default("normal", width**-0.5)),
        # out_proj is a Linear of its own, but MultiheadAttention zeroes its bias.
        "out_proj.bias": Described(Role.BIAS, width, default=zero),
    }
    for name, size in (("q", width), ("k", module.kdim), ("v", module.vdim)):
        bound = Default("uniform", math.sqrt(6 / (size + width)))
        parts[f"{name}_proj_weight"] = Described(Role.WEIGHT, size, width, default=bound)
    return parts


def _recurrent(module: nn.RNNBase) -> dict[str, Described]:
    gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    bound = Default("uniform", module.hidden_size**-0.5)
    parts = {}
    for name, tensor in module.named_parameters(recurse=False):
        if name.startswith("weight_hr"):  # the projection of an LSTM with proj_size
            rows, columns = tensor.shape
            parts[name] = Described(Role.WEIGHT, columns, rows, default=bound)
        elif name.startswith("weight"):
            role = Role.RECURRENT if "_hh_" in name else Role.WEIGHT
            rows, columns = tensor.shape
            parts[name] = Described(role, columns, rows // gates, gates, bound)
        else:
            # Two biases add up: names on one of them, so that a gate's bias is set once.
            names = _GATES.get(gates, ()) if name.startswith("bias_ih") else ()
            parts[name] = Described(Role.BIAS, math.nan, blocks=gates, default=bound, gates=names)
    return parts
