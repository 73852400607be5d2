"""PyTorch's functions by what they do: the vocabulary in which a forward pass is read.

A function goes by its canonical name: `torch.add`, `Tensor.add_`, `+` and `+=` are all `add`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

Function = Callable[..., Any]

_DUNDERS = {
    **{
        f"{prefix}{name}": name for name in ("add", "mul", "matmul", "and", "or") for prefix in "ir"
    },
    **{"isub": "sub", "truediv": "div", "itruediv": "div", "idiv": "div", "ipow": "pow"},
    **{"rdiv": "rtruediv"},
}
_SYNONYMS = {
    **{"subtract": "sub", "multiply": "mul", "divide": "div", "true_divide": "div"},
    **{"concat": "cat", "concatenate": "cat", "swapaxes": "transpose", "swapdims": "transpose"},
    **{"_softmax": "softmax", "dropout1d": "dropout", "dropout2d": "dropout"},
    **{"dropout3d": "dropout", "alpha_dropout": "dropout", "feature_alpha_dropout": "dropout"},
    **{"native_dropout": "dropout", "feature_dropout": "dropout", "_grouped_mm": "grouped_mm"},
}


@cache
def kind(function: Function) -> str:
    """The canonical name of a function of PyTorch.

    Example:
        >>> import torch
        >>> kind(torch.Tensor.__iadd__), kind(torch.Tensor.add_), kind(torch.Tensor.T.__get__)
        ('add', 'add', 'T')
    """
    name: str = getattr(function, "__name__", "")
    if name == "__get__":  # a property
        return str(getattr(getattr(function, "__self__", None), "__name__", ""))
    if name.startswith("__"):
        name = name.strip("_")
        return _DUNDERS.get(name, name)
    name = name.rstrip("_")
    return _SYNONYMS.get(name, name)


def in_place(function: Function) -> bool:
    """Whether a function writes its first argument.

    Example:
        >>> import torch
        >>> in_place(torch.Tensor.add_), in_place(torch.Tensor.add), in_place(torch.relu_)
        (True, False, True)
    """
    name: str = getattr(function, "__name__", "")
    if name.startswith("__"):
        return name == "__setitem__" or (name[2] == "i" and name[2:-2] in _DUNDERS)
    return name.endswith("_")


TRANSPOSED = frozenset({"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"})
CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d"}) | TRANSPOSED
RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
RECURRENT_CELLS = frozenset(f"{name}_cell" for name in RECURRENT)
MATRIX = CONVOLUTIONS | {"linear", "bilinear", "addmm"}  # layers with one matrix
PRODUCTS = frozenset(
    {
        *("matmul", "mm", "bmm", "mv", "dot", "inner", "linear", "addmm", "baddbmm", "addbmm"),
        *("einsum", "tensordot", "chain_matmul", "vdot", "grouped_mm"),
    }
)
NORMS = frozenset({"layer_norm", "batch_norm", "group_norm", "instance_norm", "rms_norm"})
# Their input is a signal even if it is a parameter: a learned query, not a computed weight.
LAYERS = (
    CONVOLUTIONS
    | RECURRENT
    | RECURRENT_CELLS
    | NORMS
    | {"linear", "bilinear", "scaled_dot_product_attention", "softmax", "dropout"}
)
# Their first argument is what flows, whatever it is made of.
TAKES_INPUT = CONVOLUTIONS | NORMS | {"linear", "bilinear", "scaled_dot_product_attention"}
LOOKUPS = frozenset({"embedding", "embedding_bag"})
ADDITIONS = frozenset({"add", "sub", "addcmul", "index_add", "scatter_add"})
MERGES = ADDITIONS | {"cat", "stack", "setitem", "where", "masked_scatter", "index_put"}
ACTIVATIONS: dict[str, str] = {
    **dict.fromkeys(("relu", "relu6", "hardtanh", "clamp_min"), "relu"),
    **dict.fromkeys(("leaky_relu", "prelu", "rrelu"), "leaky_relu"),
    **dict.fromkeys(("elu", "celu"), "elu"),
    **dict.fromkeys(("silu", "hardswish"), "silu"),
    **dict.fromkeys(("sigmoid", "hardsigmoid"), "sigmoid"),
    **{name: name for name in ("tanh", "selu", "gelu", "mish", "softplus", "sin")},
}
BOUNDED = frozenset({"sigmoid", "hardsigmoid", "softmax", "sparsemax", "gumbel_softmax"})
# The same elements in another order or shape; replayed on row numbers to see where rows go.
MOVEMENTS = frozenset(
    {
        *("view", "reshape", "permute", "transpose", "t", "T", "mT", "movedim", "moveaxis"),
        *("chunk", "split", "split_with_sizes", "tensor_split", "unbind", "getitem", "select"),
        *("narrow", "index_select", "unflatten", "flatten", "squeeze", "unsqueeze", "expand"),
        *("expand_as", "repeat", "repeat_interleave", "tile", "roll", "flip", "rot90", "cat"),
        *("stack", "gather", "view_as", "reshape_as", "broadcast_to", "ravel", "take_along_dim"),
        *("hstack", "vstack", "dstack", "diagonal", "_unsafe_view", "hsplit", "vsplit", "H", "mH"),
    }
)
TEMPLATES = frozenset({"type_as", "to", "view_as", "reshape_as", "expand_as"})  # of a second tensor
SPLITS = frozenset({"chunk", "split", "split_with_sizes", "tensor_split", "unbind"})
# Element by element, or nearly so: the shape and the order of the elements stay.
CONVERSIONS = frozenset(
    {
        *("to", "float", "half", "bfloat16", "double", "type_as", "type", "contiguous", "clone"),
        *("detach", "alias", "cpu", "cuda", "requires_grad", "data", "_to_copy"),
    }
)
ARITHMETIC = frozenset(
    {
        *("mul", "div", "add", "sub", "neg", "rsub", "rtruediv", "pow", "square", "exp", "sqrt"),
        *("rsqrt", "erf", "abs", "clamp", "clamp_max", "masked_fill", "where", "addcmul", "log"),
        *("log1p", "expm1", "float_power", "rpow", "reciprocal", "cos", "nan_to_num", "lerp"),
    }
)
ELEMENTWISE = ARITHMETIC | CONVERSIONS | {"dropout"} | frozenset(ACTIVATIONS)
SAME_SHAPE = ELEMENTWISE | NORMS | {"normalize"}
POOLS = frozenset(
    {
        *(f"{how}_pool{d}d" for how in ("max", "avg", "lp", "adaptive_avg") for d in (1, 2, 3)),
        *(f"adaptive_max_pool{d}d" for d in (1, 2, 3)),
        *(f"max_pool{d}d_with_indices" for d in (1, 2, 3)),
        *("_max_pool1d", "_max_pool2d", "_max_pool3d", "mean", "amax"),
    }
)
RESIZES = frozenset({"interpolate", "upsample", "pad", "pixel_shuffle", "pixel_unshuffle"})
# What leaves a signal essentially itself: a skip path may pass through these.
TRANSPARENT = MOVEMENTS | CONVERSIONS | NORMS | POOLS | RESIZES | {"dropout", "normalize"}
FRESH = frozenset(  # a new tensor that takes at most shape and dtype from its arguments
    {f"{name}_like" for name in ("zeros", "ones", "empty", "rand", "randn", "full", "randint")}
    | {f"new_{name}" for name in ("zeros", "ones", "empty", "full", "tensor")}
)
