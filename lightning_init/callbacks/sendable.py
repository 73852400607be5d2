"""A callback that goes to other processes by pickle, and says which argument cannot go."""

from __future__ import annotations

import copy
import pickle
from typing import Any, Self

from lightning.pytorch.callbacks import Callback


class Sendable(Callback):
    """Names the function that cannot be sent; what is copied within a process needs no pickle.

    Example:
        >>> class Called(Sendable):
        ...     def __init__(self, action):
        ...         self.action = action
        >>> pickle.dumps(Called(lambda: 0))
        Traceback (most recent call last):
        _pickle.PicklingError: Called.action is <lambda>, which cannot be sent to another process...
        >>> copy.deepcopy(Called(lambda: 0)).action()
        0
    """

    def __getstate__(self) -> dict[str, Any]:
        """What pickle sends.

        Raises:
            PicklingError: If a function among it is known to this process alone.
        """
        for name, value in vars(self).items():
            own = getattr(value, "__self__", None)
            if not callable(value) or isinstance(own, Sendable):
                continue
            try:
                pickle.dumps(value)
            except Exception as error:
                said = getattr(value, "__name__", type(value).__name__)
                raise pickle.PicklingError(
                    f"{type(self).__name__}.{name} is {said}, which cannot be sent to another "
                    "process: define it at the top of a module, or start processes in another way "
                    "(strategy='ddp')"
                ) from error
        return dict(vars(self))

    def __copy__(self) -> Self:
        """The same attributes."""
        return self._with(dict(vars(self)), None)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copies of the attributes."""
        return self._with(vars(self), memo)

    def _with(self, state: dict[str, Any], memo: dict[int, Any] | None) -> Self:
        new = type(self).__new__(type(self))
        if memo is not None:
            memo[id(self)] = new  # before what refers back to it
            state = copy.deepcopy(state, memo)
        vars(new).update(state)
        return new
