"""Calls that drop values at random, made without."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F

from lightning_init.architecture.operations import RECURRENT, Function


def without_dropout(
    func: Function, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call that has dropout inside, without it."""
    if func is F.scaled_dot_product_attention:
        args = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args
        kwargs = {**kwargs, "dropout_p": 0.0} if "dropout_p" in kwargs else kwargs
    elif name in RECURRENT:  # its only number with a point
        args = tuple(0.0 if isinstance(arg, float) else arg for arg in args)
    return args, kwargs
