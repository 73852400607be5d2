"""Parameter groups for an optimizer: learning rates and weight decay by what a tensor is for.

The scalars that a scheme adds to a model without norms move all channels of a branch at once, and
want a smaller step than weights; a head, or the second matrix of a LoRA, may want another one.
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from lightning_init.architecture.analyze import analyze
from lightning_init.architecture.names import named_tensors, unwrap
from lightning_init.architecture.params import ParamInfo, Role
from lightning_init.strategies.initializers import HEAD, matches
from lightning_init.strategies.plan import Plan

_SHIFTS = (Role.BIAS, Role.NORM_SCALE, Role.NORM_SHIFT)


def param_groups(
    model: nn.Module,
    plan: Plan | None,
    lr: float,
    *,
    scales: float = 0.1,
    heads: float = 1.0,
    lora_up: float = 1.0,
    weight_decay: float | None = None,
    decay_vectors: bool = True,
) -> list[dict[str, Any]]:
    """Groups for an optimizer: branch scales and scalar biases at lr / 10 and without decay.

    Every trainable parameter is in exactly one group, a tied one too; frozen ones are in none.
    Groups that would be empty are left out. Each has a `name` (Lightning's LearningRateMonitor
    shows it) and the `names` of its parameters, which PyTorch's optimizers keep with it.

    Args:
        model: The model, wrapped or not.
        plan: What `make_plan` or `initialize_` returned, which knows output layers if it has seen
            a forward pass; None: module types alone decide, and `heads` finds none.
        lr: The learning rate of weights, above 0.
        scales: Factor on it for branch scales, scalar biases and other single numbers that no
            layer owns, such as Fixup's; a tenth in its authors' code.
        heads: Factor for output layers.
        lora_up: Factor for the second matrix of LoRA (LoRA+ takes 16).
        weight_decay: For all groups but `scales`, where it is 0; None leaves the optimizer's own.
        decay_vectors: Whether biases and norms decay as well.

    Returns:
        The groups, in the order weights, vectors, heads, LoRA, scales; parameters in the model's.

    Raises:
        ValueError: If a number is out of range, or the plan is of another model.

    References:
        Zhang, Dauphin & Ma (2019), section 5 and code, https://arxiv.org/abs/1901.09321;
        Hayou, Ghosh & Yu (2024), LoRA+, https://arxiv.org/abs/2402.12354

    Example:
        >>> from lightning_init import add_branch_scales_
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16)
        >>> added = add_branch_scales_(layer, "skipinit", names=["self_attn", "linear2"])
        >>> groups = param_groups(layer, None, lr=0.1)
        >>> [(group["name"], round(group["lr"], 4), len(group["params"])) for group in groups]
        [('weights', 0.1, 12), ('scales', 0.01, 2)]
        >>> _ = torch.optim.SGD(groups, lr=0.1, weight_decay=5e-4)
    """
    factors = {"lr": lr, "scales": scales, "heads": heads, "lora_up": lora_up}
    for key, value in factors.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"`{key} > 0` must hold, but got {key}={value!r}")
    if weight_decay is not None and not weight_decay >= 0:
        raise ValueError(f"`weight_decay >= 0` must hold, but got {weight_decay!r}")
    model = unwrap(model)
    infos = _infos(model, plan)
    rates = {"weights": lr, "vectors": lr, "heads": lr * heads}
    rates |= {"lora_up": lr * lora_up, "scales": lr * scales}
    found: dict[str, list[tuple[str, nn.Parameter]]] = {kind: [] for kind in rates}
    for names, parameter in named_tensors(model):
        if parameter.requires_grad:
            kind = _kind(infos[names], by_head=heads != 1, by_vector=not decay_vectors)
            found[kind].append((names[0], parameter))
    groups = []
    for kind, members in found.items():
        if not members:
            continue
        group: dict[str, Any] = {"params": [parameter for _, parameter in members]}
        group |= {"lr": rates[kind], "name": kind, "names": [name for name, _ in members]}
        if kind in ("scales", "vectors"):
            group["weight_decay"] = 0.0
        elif weight_decay is not None:
            group["weight_decay"] = weight_decay
        groups.append(group)
    return groups


def _infos(model: nn.Module, plan: Plan | None) -> dict[tuple[str, ...], ParamInfo]:
    infos = [entry.info for entry in plan] if plan is not None else list(analyze(model))
    by_names = {info.names: info for info in infos}
    missing = [names[0] for names, _ in named_tensors(model) if names not in by_names]
    if missing:
        raise ValueError(
            f"the plan does not know {missing[0]!r}: make it from this very model, after its last "
            "layer was added"
        )
    return by_names


def _kind(info: ParamInfo, *, by_head: bool, by_vector: bool) -> str:
    """The group of a tensor."""
    lonely = info.role in (Role.BIAS, Role.OTHER) and math.isnan(info.fan_in)
    if info.role is Role.BRANCH_SCALE or (info.numel == 1 and lonely and not matches(HEAD, info)):
        return "scales"
    if info.role is Role.LORA_UP:
        return "lora_up"
    if by_vector and info.role in _SHIFTS:
        return "vectors"
    return "heads" if by_head and matches(HEAD, info) else "weights"
