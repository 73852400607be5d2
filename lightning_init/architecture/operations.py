"""PyTorch's functions by what they do: the vocabulary in which a forward pass is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Function = Callable[..., Any]

TRANSPOSED: frozenset[Function] = frozenset(
    {F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}
)
CONVOLUTIONS: frozenset[Function] = frozenset(
    {
        *(F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d),
        *TRANSPOSED,
    }
)
RECURRENT: frozenset[Function] = frozenset(
    getattr(torch._VF, name)  # where torch.nn finds these kernels
    for name in (
        *("lstm", "gru", "rnn_tanh", "rnn_relu"),
        *("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"),
    )
)
MATRIX: frozenset[Function] = CONVOLUTIONS | {F.linear, F.bilinear, torch.addmm, Tensor.addmm}
WEIGHTED: frozenset[Function] = MATRIX | RECURRENT | {F.multi_head_attention_forward}
NORMS: frozenset[Function] = frozenset(
    {F.layer_norm, F.batch_norm, F.group_norm, F.instance_norm, F.rms_norm}
)
DROPOUTS: frozenset[Function] = frozenset(
    {
        *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, torch.dropout, torch.dropout_),
        *(F.alpha_dropout, F.feature_alpha_dropout),
    }
)
ADDITIONS: frozenset[Function] = frozenset(
    {torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__}
)
ACTIVATIONS: dict[Function, str] = {
    **dict.fromkeys((F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_), "relu"),
    **dict.fromkeys((F.relu_, F.relu6, F.hardtanh), "relu"),
    **dict.fromkeys((F.leaky_relu, F.leaky_relu_, F.prelu, torch.prelu, F.rrelu), "leaky_relu"),
    **dict.fromkeys((torch.tanh, torch.tanh_, Tensor.tanh, Tensor.tanh_, F.tanh), "tanh"),
    **dict.fromkeys((torch.sigmoid, Tensor.sigmoid, F.sigmoid, torch.sigmoid_), "sigmoid"),
    **dict.fromkeys((F.elu, F.elu_, F.celu), "elu"),
    **dict.fromkeys((F.selu, F.selu_, torch.selu), "selu"),
    F.gelu: "gelu",
    F.silu: "silu",
    F.hardswish: "silu",
    F.mish: "mish",
    F.softplus: "softplus",
    **dict.fromkeys((torch.sin, Tensor.sin), "sin"),
}
TRANSPARENT: frozenset[Function] = (
    NORMS
    | DROPOUTS
    | {
        *(torch.flatten, Tensor.flatten, Tensor.view, Tensor.reshape, torch.reshape),
        *(Tensor.transpose, torch.transpose, Tensor.permute, torch.permute, Tensor.contiguous),
        *(Tensor.to, Tensor.float, Tensor.half, Tensor.bfloat16, Tensor.clone, Tensor.mul),
        *(Tensor.squeeze, Tensor.unsqueeze, torch.squeeze, torch.unsqueeze, Tensor.__mul__),
        *(Tensor.type_as, Tensor.__rmul__, torch.mul, Tensor.unflatten, Tensor.__getitem__),
    }
)
