"""Whether a model runs compiled."""

from __future__ import annotations

import sys

from torch import nn


def is_compiled(model: nn.Module) -> bool:
    """Whether a part of a model runs compiled now, where hooks and modes are not at home.

    Example:
        >>> is_compiled(nn.Linear(1, 1))
        False
    """
    if "torch._dynamo" not in sys.modules:  # nothing can have been compiled
        return False
    stance = getattr(sys.modules.get("torch._dynamo.eval_frame"), "_stance", None)
    if getattr(stance, "stance", "default") == "force_eager":
        return False
    return bool(getattr(model, "_compiler_ctx", None)) or any(
        hasattr(child, "_orig_mod") or getattr(child, "_compiled_call_impl", None) is not None
        for child in model.modules()
    )
