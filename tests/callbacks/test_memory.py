"""Memory that a module takes while Lightning builds it, and that may hold weights of another model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.callbacks import nets
from tests.callbacks.nets import AtStart, Digits, mlp
from tests.callbacks.test_placement import direct, quiet


def trained() -> dict[str, Tensor]:
    module = Digits(mlp())
    nets.fit(module, max_steps=60)
    return {name.removeprefix("net."): value for name, value in nets.weights(module).items()}


class Takes(Digits):
    """Takes memory that holds what another model has learned."""

    def __init__(self, where: str, how: str, old: dict[str, Tensor]) -> None:
        super().__init__()
        self.where, self.how, self.old = where, how, old

    def setup(self, stage: str) -> None:
        if self.where == "setup":
            self.build()

    def configure_model(self) -> None:
        if self.where == "configure_model":
            self.build()

    def build(self) -> None:
        if self.how == "skip_init":
            sizes = [(64, 32), (32, 32), (32, 10)]
            first, second, third = (nn.utils.skip_init(nn.Linear, *size) for size in sizes)
            self.net = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)
        else:
            with torch.device("meta"):
                net = mlp()
            self.net = net.to_empty(device="cpu")
        named: Any = dict(self.net.named_parameters())
        for name, value in self.old.items():
            # As numpy, so that nobody sees a write: the memory was like that.
            named[name].detach().numpy()[...] = value.numpy()
        if self.how == "load_state_dict":
            self.net.load_state_dict(self.old)
        if self.how == "data":
            for name, value in self.old.items():
                named[name].data.copy_(value)


@pytest.mark.case(2, 3, 9)
@pytest.mark.parametrize("where", ["setup", "configure_model"])
@pytest.mark.parametrize("how", ["to_empty", "skip_init", "load_state_dict", "data"])
def test_memory_that_was_only_taken_is_drawn_and_what_was_loaded_is_kept(
    where: str, how: str
) -> None:
    old = trained()
    module = Takes(where, how, old)
    nets.fit(module, quiet("orthogonal"), start := AtStart(), max_steps=1)
    if how in ("to_empty", "skip_init"):
        assert nets.same(start.weights, nets.weights(direct(mlp(), "orthogonal")))
    else:
        assert nets.same(start.weights, {f"net.{name}": value for name, value in old.items()})
    assert not nets.hooks(module)
