"""The checks for authors of schemes: correct ones pass, each broken promise is found and named."""

import random
from dataclasses import dataclass, replace
from typing import Annotated

import pytest
import torch
from torch import nn

from lightning_init import Range, Strategy, strategy
from lightning_init.architecture.params import Role
from lightning_init.strategies import registry
from lightning_init.strategies.chain import modifier
from lightning_init.strategies.distributions import Normal
from lightning_init.strategies.initializers import ByRole, keep
from lightning_init.testing import check_strategy


def build():
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Linear(16, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 32)),
        *(nn.BatchNorm1d(32), nn.Linear(32, 4)),
    )
    x = torch.randn(8, 16)
    return model, lambda: model(x)


@pytest.fixture
def register(monkeypatch):
    """Register for one test only."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    monkeypatch.setattr(registry, "_ALIASES", dict(registry._ALIASES))

    def make(made, *, doc="A scheme.", **facts):
        def mine() -> Strategy:
            return made

        mine.__doc__ = doc
        strategy(**facts)(mine)
        return "mine"

    return make


@dataclass(frozen=True)
class Law:
    """A correct one, from which the others differ by a mistake each."""

    std: float = 0.1
    mean: float = 0.0
    reason: str = "mine"

    def sample(self, shape, generator):
        return torch.randn(shape, generator=generator) * self.std

    def scaled(self, factor):
        return replace(self, std=self.std * factor)


class TooWide(Law):
    def sample(self, shape, generator):
        return super().sample(shape, generator) * 1.3


class Unscaled(Law):
    def scaled(self, factor):
        return self


class Transposed(Law):
    def sample(self, shape, generator):
        return super().sample(shape, generator).T


class Global(Law):
    def sample(self, shape, generator):
        return torch.randn(shape) * self.std


class Coin(Law):
    def sample(self, shape, generator):
        return torch.full(shape, self.std * random.choice((-1, 1)))


class Secret(Law):
    state = random.Random(0)

    def sample(self, shape, generator):
        return super().sample(shape, generator) * (1 + 1e-3 * self.state.random())


def weights(law):
    return Strategy(ByRole(weight=lambda info: law))


def of_weights(change):
    """A calibration that changes each weight that the plan drew."""

    def calibrate(model, plan, forward):
        forward()
        tensors = dict(model.named_parameters())
        with torch.no_grad():
            for entry in plan:
                if entry.written and entry.info.role is Role.WEIGHT:
                    change(tensors[entry.info.name])

    return weights(Normal(0.1, reason="mine"))._replace(calibrate_=calibrate)


def prepared(look):
    def prepare(model, architecture):
        look(model, architecture)
        return weights(Normal(0.1, reason="mine"))

    return Strategy(keep, prepare=prepare)


class Halved:
    def __init__(self, below):
        self.below = below

    def __call__(self, info):
        law = self.below(info)
        return law.scaled(0.5) if info.role is Role.WEIGHT else law


def by_depth(model, architecture):
    layers = sum(info.role is Role.WEIGHT for info in architecture)
    return weights(Normal(1 / layers, reason=f"{layers} layers"))


@pytest.mark.parametrize(
    ("made", "facts"),
    [
        (weights(Law()), {}),
        (modifier(Halved), {}),
        (of_weights(lambda weight: weight.mul_(2)), {"needs": ("batch",), "cost": "1 forward"}),
        (Strategy(keep, prepare=by_depth), {"needs": ("forward",)}),
        (weights(Law()), {"needs": ("attention",)}),
    ],
    ids=["law", "modifier", "calibration", "prepare", "refusal"],
)
def test_correct_schemes_pass(register, made, facts):
    check_strategy(register(made, **facts), [build])


def halve(model, architecture):
    with torch.no_grad():
        model[0].weight.mul_(0.5)


FAULTS = {
    "None for some": (Strategy(lambda i: Law() if i.role is Role.WEIGHT else None), "total"),
    "no key for some": (Strategy(lambda i: {Role.WEIGHT: Law()}[i.role]), "total"),
    "no reason": (weights(Law(reason="")), "0.weight has no reason"),
    "writes in prepare": (prepared(halve), "a plan changed the model"),
    "eval in prepare": (prepared(lambda m, a: m.eval()), "training flags"),
    "adds a layer": (prepared(lambda m, a: m.append(nn.ReLU())), "changed modules"),
    "seeds in prepare": (prepared(lambda m, a: torch.manual_seed(3)), "global random generator"),
    "random plan": (
        Strategy(ByRole(weight=lambda i: Law(Secret.state.random() + 0.1))),
        "planned twice, the plans differ",
    ),
    "wrong std": (weights(TooWide()), "planned as .*std 0.1, but what was drawn has 0.1"),
    "scale ignored": (weights(Unscaled()), "its std must double"),
    "wrong shape": (weights(Transposed()), "drawing raised RuntimeError"),
    "global generator": (weights(Global()), "moved a global random generator"),
    "Python's generator": (weights(Coin()), "moved a global random generator"),
    "a state of its own": (weights(Secret()), "differs for the same seed"),
    "silent about its batch": (of_weights(lambda w: w.mul_(2)), "does not say 'batch'"),
    "silent about its forward": (
        Strategy(ByRole(weight=lambda i: Law(0.1 * (1 + i.usage.num_branches)))),
        "needs=..forward",
    ),
    "refuses its own way": (prepared(lambda m, a: 1 / 0), "UnsuitableError"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_promises_are_named(register, fault):
    made, text = FAULTS[fault]
    with pytest.raises(AssertionError, match=text) as found:
        check_strategy(register(made), [build])
    assert str(found.value).startswith("mine: ")


def test_noise_in_a_calibration_is_the_same_whatever_the_global_seed(register):
    noisy = of_weights(lambda weight: weight.add_(0.1 * torch.randn(weight.shape)))
    check_strategy(register(noisy, needs=("batch",)), [build])


def test_a_scheme_without_a_first_sentence_is_found(register):
    with pytest.raises(AssertionError, match="no first sentence"):
        check_strategy(register(weights(Law()), doc=""), [build])


def test_a_legal_value_that_crashes_is_found(register):
    def fragile(count: Annotated[int, Range(1, 5)] = 3) -> Strategy:
        """Fails at the end of its range."""
        return weights(Law(1 / (5 - count)))

    register(weights(Law()))  # restores the registry after the test
    strategy(fragile)
    with pytest.raises(AssertionError, match=r"legal \{'count': 5\}"):
        check_strategy("fragile", [build])
