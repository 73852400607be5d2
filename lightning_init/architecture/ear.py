"""A hook that does not go with the copies of a module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Ear:
    """Calls a function with what a hook gets; that of a copied or pickled module hears nothing.

    Example:
        >>> import copy
        >>> Ear(print)("x"), copy.deepcopy(Ear(print))("x")
        x
        (None, None)
    """

    def __init__(self, hear: Callable[..., None] | None = None) -> None:
        self.hear = hear

    def __call__(self, *args: Any) -> None:
        """Nothing of it gets into a graph that is being compiled."""
        if self.hear is not None and not torch.compiler.is_compiling():
            self.hear(*args)

    def __reduce__(self) -> Any:
        return Ear, ()
