"""Ways to compute a weight from other tensors."""

import warnings
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.utils import parametrize, prune


def _legacy(function: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    def parametrized(layer: nn.Module, name: str = "weight") -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch calls the old forms deprecated
            return function(layer, name)

    return parametrized


class Doubled(nn.Module):
    """The smallest parametrization: the weight is twice its original."""

    def forward(self, original: Tensor) -> Tensor:
        return 2 * original

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight / 2


class Symmetric(nn.Module):
    """A parametrization that cannot be assigned to."""

    def forward(self, original: Tensor) -> Tensor:
        return original.triu() + original.triu(1).mT


def doubled(layer: nn.Module, name: str = "weight") -> nn.Module:
    return parametrize.register_parametrization(layer, name, Doubled())


def symmetric(layer: nn.Module, name: str = "weight") -> nn.Module:
    return parametrize.register_parametrization(layer, name, Symmetric())


def chained(layer: nn.Module, name: str = "weight") -> nn.Module:
    return doubled(nn.utils.parametrizations.weight_norm(layer, name), name)


# Ways to compute a weight from other tensors: those that can take any value, and the others.
EXACT: dict[str, Callable[..., nn.Module]] = {
    "weight_norm": nn.utils.parametrizations.weight_norm,
    "old weight_norm": _legacy(nn.utils.weight_norm),
    "doubled": doubled,
    "chained": chained,
}
INEXACT: dict[str, Callable[..., nn.Module]] = {
    "spectral_norm": nn.utils.parametrizations.spectral_norm,
    "old spectral_norm": _legacy(nn.utils.spectral_norm),
    "orthogonal": nn.utils.parametrizations.orthogonal,
    "pruning": lambda layer, name="weight": prune.l1_unstructured(layer, name, 0.5),
}
