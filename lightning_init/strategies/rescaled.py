"""Factors on std for the parts of a model, on top of any scheme: head, embedding, branch ends, ..."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from lightning_init.architecture.arguments import Range
from lightning_init.architecture.names import named_tensors
from lightning_init.architecture.params import Architecture, ParamInfo, Role
from lightning_init.strategies.chain import modifier
from lightning_init.strategies.distributions import Distribution, Keep
from lightning_init.strategies.initializers import HEAD, Initializer, matches, with_reason
from lightning_init.strategies.needs import FORWARD, NotYetError, is_hidden, unsuitable
from lightning_init.strategies.parts import split
from lightning_init.strategies.plan import Forward, Plan, PlanEntry
from lightning_init.strategies.registry import Calibrator, Strategy, strategy


def _steers(info: ParamInfo) -> bool:
    return info.usage is not None and info.usage.attention in ("query", "key", "query|key")


# What a factor can be asked for; a tensor that is in several gets the product.
PARTS: Mapping[str, Callable[[ParamInfo], bool]] = {
    "scale": lambda info: True,  # noqa: ARG005
    "embedding": lambda info: info.role is Role.EMBEDDING,
    "position": lambda info: info.role is Role.POSITION,
    "head": lambda info: matches(HEAD, info),
    "residual": lambda info: info.usage is not None and info.usage.ends_branch,
    "attention": _steers,
    "recurrent": lambda info: info.role is Role.RECURRENT or is_hidden(info),
}
_SEEN = ("head", "residual", "attention")  # by a forward pass only


def parts_of(architecture: Architecture) -> tuple[str, ...]:
    """The parts that a model has, besides the whole of it.

    Example:
        >>> from lightning_init import analyze
        >>> parts_of(analyze(nn.Sequential(nn.Embedding(9, 4), nn.LSTM(4, 4))))
        ('embedding', 'recurrent')
    """
    described = [
        each
        for info in architecture
        for each in (info, *(part for _, part in split(info) if info.parts))
    ]
    return tuple(
        name for name, means in PARTS.items() if name != "scale" and any(map(means, described))
    )


@dataclass(frozen=True)
class Rescaled:
    """Another initializer, times the factors of the parts that a tensor is in.

    Args:
        initializer: The other one.
        factors: Part -> factor on std.

    Example:
        >>> from lightning_init.strategies.distributions import Normal
        >>> table = ParamInfo(("emb",), (9, 4), Role.EMBEDDING)
        >>> Rescaled(lambda info: Normal(1.0), {"scale": 2.0, "embedding": 0.1})(table).std
        0.2
    """

    initializer: Initializer
    factors: Mapping[str, float] = field(default_factory=dict)

    def __call__(self, info: ParamInfo) -> Distribution:
        """The distribution of one tensor."""
        base, factor = self.initializer(info), self.factor(info)
        if factor == 1 or isinstance(base, Keep):
            return base
        scaled = base.scaled(factor)
        return base if scaled == base else with_reason(scaled, f"{base.reason}, x {factor:.4g}")

    def factor(self, info: ParamInfo) -> float:
        """The product of the factors that apply to a tensor."""
        return math.prod(number for name, number in self.factors.items() if PARTS[name](info))

    def after(self, below: Calibrator) -> Calibrator:
        """A calibration, and then the factors on what it left: it would undo them before."""

        def calibrate_(model: nn.Module, plan: Plan, forward: Forward) -> list[Any]:
            tensors = {names[0]: tensor for names, tensor in named_tensors(model)}
            vectors = {e.info.name: tensors[e.info.name].detach().clone() for e in _biases(plan)}
            found = list(below(model, plan, forward) or ())
            with torch.no_grad():
                for entry in plan:
                    tensor = tensors[entry.info.name]
                    old = vectors.get(entry.info.name)
                    moved = old is not None and not torch.equal(old, tensor)
                    if entry.written and (moved or _has_std(entry.distribution)):
                        self._multiply(entry.info, tensor)
            return found

        return calibrate_

    def _multiply(self, info: ParamInfo, tensor: Tensor) -> None:
        if not info.parts:
            if (factor := self.factor(info)) != 1:
                tensor.mul_(factor)
            return
        for part, each in split(info):
            if (factor := self.factor(each)) != 1:
                for start, stop in part.rows:
                    tensor.narrow(info.axis, start, stop - start).mul_(factor)


def _biases(plan: Plan) -> list[PlanEntry]:
    """What is drawn as a constant, and may be set by a calibration."""
    return [e for e in plan if e.written and e.info.role is Role.BIAS]


def _has_std(distribution: Distribution) -> bool:
    return distribution.scaled(2.0) != distribution


Factor = Annotated[float, Range(1e-3, 1e3, log=True, search=(0.1, 10.0))]


@strategy(search=False)
def rescaled(
    scale: Factor = 1.0,
    embedding: Factor = 1.0,
    position: Factor = 1.0,
    head: Factor = 1.0,
    residual: Factor = 1.0,
    attention: Factor = 1.0,
    recurrent: Factor = 1.0,
) -> Strategy:
    """The std of all tensors times `scale`, of each part of the model times a factor of its own.

    On top of any scheme in a `chain`, alone on `auto`'s table. A tensor that is in several parts
    gets the product; constants (zero biases, norms) and what is kept as built stay. What a
    calibration below sets is multiplied after it: `lsuv` would undo a factor on the draw.

    Args:
        scale: On everything that is drawn.
        embedding: On lookup tables.
        position: On tables of positions.
        head: On output layers, also where their matrix is a lookup table.
        residual: On the layers whose result is added to a skip path.
        attention: On queries and keys, so that logits get its square.
        recurrent: On hidden-to-hidden matrices.

    References:
        Yang et al. (2022), https://arxiv.org/abs/2203.03466, section 6 and appendix F (the scales
        of embedding and output that transfer across widths are searched); Chizat et al. (2019),
        https://arxiv.org/abs/1812.07956 (what the scale of all weights does to training)

    Example:
        >>> from lightning_init import InitSpec, make_plan
        >>> model, x = nn.Sequential(nn.Linear(4, 16), nn.Linear(16, 2)), torch.ones(3, 4)
        >>> spec = InitSpec("chain", {"steps": ["xavier_normal", InitSpec("rescaled", {"head": 0.1})]})
        >>> plans = [make_plan(model, s, forward=lambda: model(x)) for s in ("xavier_normal", spec)]
        >>> round(plans[1]["1.weight"].std / plans[0]["1.weight"].std, 6)
        0.1
        >>> plans[1]["0.weight"] == plans[0]["0.weight"]
        True
    """
    given = {"scale": scale, "embedding": embedding, "position": position, "head": head}
    given |= {"residual": residual, "attention": attention, "recurrent": recurrent}
    factors = {name: number for name, number in given.items() if number != 1}
    made = modifier(
        lambda below: Rescaled(below, factors), on_calibration=Rescaled(_unused, factors).after
    )

    def prepare(model: nn.Module, architecture: Architecture) -> Strategy:
        del model
        there = parts_of(architecture)
        for name in factors:
            if name == "scale" or name in there:
                continue
            text = f"rescaled: no tensor of this model is in the part {name!r}"
            if name in _SEEN and not architecture.traced:
                raise NotYetError(
                    f"{text} as far as seen without a forward pass: {FORWARD}. Nothing has been "
                    "changed"
                )
            raise unsuitable(f"{text} (it has {', '.join(there) or 'none'}): ", "auto")
        return made

    return made._replace(prepare=prepare)


def _unused(info: ParamInfo) -> Distribution:
    raise AssertionError(f"a calibration asks nothing of {info.name}")
