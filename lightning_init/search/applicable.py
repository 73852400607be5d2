"""The default space of a model: the few schemes that somebody who knows them would try on it.

| the model has                      | tried besides `keep`, `auto` and `torch_default`          |
|------------------------------------|-----------------------------------------------------------|
| sines                              | `siren`                                                   |
| recurrent layers                   | `recurrent`, `chrono`, `orthogonal`                       |
| attention in residual branches     | `gpt2`, `bert`, `small`, `wang`, `deepnorm`, `qk_scaled`  |
| the same without norm layers       | `tfixup`, `fixup`, `zero_gamma` instead of `bert`, `wang` |
| other residual branches            | `zero_gamma`, `skip_gain`                                 |
| the same without norm layers       | `fixup`, `orthogonal`, `lsuv` besides                     |
| a learned scale in each branch     | `skipinit`, whose axis holds `rezero` and `layerscale`    |
| neither branches nor norm layers   | `orthogonal`, `lsuv`, `channel_norm`                      |
| the same, convolutions, 10 layers  | `delta_orthogonal`                                        |
| other layers                       | the law of their activation: Kaiming, LeCun or Xavier     |

Of twins (normal and uniform, Kaiming and Xavier) one is tried: the axis of its gain holds the other.
Norm layers set the scale anew, so that a model with them has few.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_init.architecture.arguments import unknown
from lightning_init.architecture.params import Architecture, Role
from lightning_init.search.axis import Axis
from lightning_init.search.space import ALL, ALWAYS, Space
from lightning_init.strategies.needs import (
    NotYetError,
    UnsuitableError,
    check_needs,
    holds,
)
from lightning_init.strategies.registry import entries, get
from lightning_init.strategies.rescaled import parts_of
from lightning_init.strategies.spec import InitSpec
from lightning_init.strategies.variance import RELU_LIKE

MOST = 12  # strategies in a default space
_DEEP = 10  # weight layers from which isometry matters, as in `recommend`


@dataclass(frozen=True, slots=True)
class Facts:
    """What the choice depends on.

    Attributes:
        sine: Whether a layer is followed by a sine.
        recurrent: Whether there are recurrent layers.
        attention: Whether there is attention.
        branches: Whether there are residual branches.
        scaled: Whether these have learned scales.
        norm: Whether there are norm layers.
        deep: Whether there are 10 weight layers or more in a row.
        convolution: Whether there are convolutions.
        law: The scheme for the activation of most layers.
    """

    sine: bool
    recurrent: bool
    attention: bool
    branches: bool
    scaled: bool
    norm: bool
    deep: bool
    convolution: bool
    law: str

    @classmethod
    def of(cls, architecture: Architecture) -> Facts:
        """The facts of a model."""
        weights = [i for i in architecture if i.role in (Role.WEIGHT, Role.RECURRENT)]
        depth = max((i.usage.depth for i in weights if i.usage), default=len(weights))
        traits = frozenset[str]().union(*(info.traits for info in architecture))
        return cls(
            sine=holds(("sine",), architecture),
            recurrent=holds(("recurrence",), architecture),
            attention=holds(("attention",), architecture),
            branches=holds(("branches",), architecture),
            scaled=holds(("branch scales",), architecture),
            norm="norm" in traits,
            deep=depth >= _DEEP,
            convolution="convolution" in traits,
            law=_law([info.activation for info in weights]),
        )


def _law(activations: Sequence[str]) -> str:
    counts = {
        "kaiming_normal": sum(each in RELU_LIKE for each in activations),
        "lecun_normal": sum(each == "selu" for each in activations),
        "xavier_normal": sum(each in ("tanh", "sigmoid") for each in activations),
    }
    found = max(counts, key=lambda name: counts[name])
    return found if counts[found] else "xavier_normal"


# Schemes, and the facts that ask for them; `-` is for a fact that must not be.
RULES: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("siren",), ("sine",)),
    (("recurrent", "chrono"), ("recurrent",)),
    (("gpt2", "small"), ("attention",)),
    (("deepnorm", "qk_scaled"), ("attention", "branches")),
    (("bert",), ("attention", "norm")),
    (("wang",), ("attention", "branches", "norm")),
    (("tfixup",), ("attention", "branches", "-norm")),
    (("fixup",), ("branches", "-norm")),
    (("skipinit",), ("branches", "scaled")),
    (("zero_gamma",), ("branches", "-attention")),
    (("zero_gamma",), ("branches", "-norm")),
    (("skip_gain",), ("branches", "-attention")),
    (("orthogonal",), ("recurrent",)),
    (("orthogonal",), ("-norm", "-attention", "-sine")),
    (("lsuv",), ("-norm", "-attention", "-sine", "-recurrent")),
    (("channel_norm",), ("-norm", "-attention", "-sine", "-recurrent", "-branches")),
    (("delta_orthogonal",), ("convolution", "-norm", "-branches", "deep")),
)
_SAYS = {
    "sine": "sines",
    "recurrent": "recurrent layers",
    "attention": "attention",
    "branches": "residual branches",
    "scaled": "learned branch scales",
    "norm": "norm layers",
    "convolution": "convolutions",
    "deep": f"{_DEEP} layers in a row",
}


def _lacks(facts: Facts, wanted: tuple[str, ...]) -> str:
    """The first fact that is not as wanted, in words; `""` if all are."""
    for fact in wanted:
        name = fact.removeprefix("-")
        if getattr(facts, name) == fact.startswith("-"):
            return f"{'has' if fact.startswith('-') else 'no'} {_SAYS[name]}"
    return ""


@dataclass(frozen=True, slots=True)
class Choice:
    """The schemes of a default space, and those that were left out, by reason."""

    names: tuple[str, ...]
    left: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def note(self) -> str:
        """What was left out and why, in a line."""
        said = [f"{', '.join(names)} ({why})" for why, names in self.left.items()]
        return f"not tried: {'; '.join(said)}; name any with --strategies" if said else ""


def choose(architecture: Architecture) -> Choice:
    """The schemes that somebody who knows them would try on a model.

    Args:
        architecture: From `analyze`, best with a forward pass.

    Example:
        >>> from torch import nn
        >>> from lightning_init import analyze
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        >>> choose(analyze(model)).names
        ('keep', 'auto', 'xavier_normal', 'orthogonal', 'lsuv', 'channel_norm', 'torch_default')
    """
    facts = Facts.of(architecture)
    law = [] if facts.sine else [facts.law]
    # What most promises is tried first: what is made for the structure, where there is any.
    made_for = (
        facts.attention or facts.branches or facts.recurrent or (facts.deep and not facts.norm)
    )
    names = [*ALWAYS, *([] if made_for else law)]
    why: dict[str, str] = {}
    for schemes, wanted in RULES:
        lacks = _lacks(facts, wanted)
        for name in schemes:
            if not lacks and name not in names:
                names.append(name)
            why[name] = lacks
    names += [name for name in (*law, "torch_default") if name not in names]
    ours = __name__.partition(".")[0]
    for entry in entries():  # of plugins: whoever registers them wants them tried
        foreign = entry.function.__module__.partition(".")[0] != ours
        if foreign and entry.search and holds(entry.needs, architecture):
            names.append(entry.name)
    why.update(dict.fromkeys(names[MOST:], f"more than {MOST}"))
    left: dict[str, tuple[str, ...]] = {}
    for name, text in why.items():
        if name not in names[:MOST]:
            left[text] = (*left.get(text, ()), name)
    return Choice(tuple(names[:MOST]), left)


def _promising_first(
    strategies: Sequence[str | InitSpec], architecture: Architecture
) -> tuple[str | InitSpec, ...]:
    """The same strategies: those that the default space would hold first, in its order."""
    order = choose(architecture).names

    def rank(one: str | InitSpec) -> int:
        known = isinstance(one, str) and one in order
        return order.index(str(one)) if known else len(order)

    return tuple(sorted(strategies, key=rank))


def refusal(spec: InitSpec, architecture: Architecture) -> str:
    """Why a spec cannot serve a model, as far as its description tells; `""` if it may.

    Args:
        spec: With the steps and exceptions in it.
        architecture: Of the model.

    Example:
        >>> import torch
        >>> from lightning_init import analyze
        >>> seen = analyze(net := torch.nn.Linear(2, 2), lambda: net(torch.ones(1, 2)))
        >>> refusal(InitSpec("skip_gain"), seen).partition(":")[0]
        'skip_gain needs residual branches, but the forward pass shows none'
    """
    try:
        for each in _inside(spec):
            entry = get(each.strategy)
            nearest = get(entry.nearest)
            while not holds(nearest.needs, architecture):
                nearest = get(nearest.nearest)
            check_needs(entry.name, entry.needs, architecture, nearest.name)
    except NotYetError:
        return ""
    except UnsuitableError as error:
        return str(error)
    return ""


def _inside(spec: InitSpec) -> Iterator[InitSpec]:
    """A spec, its steps and its exceptions."""
    yield spec
    steps: Sequence[Any] = spec.params.get("steps", ()) if spec.strategy == "chain" else ()
    for each in (*steps, *spec.overrides.values()):
        yield from _inside(each)


def space_for(
    architecture: Architecture,
    strategies: Sequence[str | InitSpec] | None = None,
    config: Mapping[str, Axis] | None = None,
    scales: Mapping[str, Axis] | None = None,
    *,
    fixed: Mapping[str, InitSpec] | None = None,
    ranges: Mapping[str, Mapping[str, Axis]] | None = None,
) -> tuple[Space, tuple[str, ...]]:
    """The space for a model, and what to say about it.

    Args:
        architecture: From `analyze`, best with a forward pass.
        strategies: What the user named; None for what applies to the model.
        config: Dotted configuration key -> axis.
        scales: Part of the model -> axis.
        fixed: Specs among the strategies, by label.
        ranges: Strategy -> parameter -> axis.

    Returns:
        The space and its notes: what was left out and why.

    Raises:
        UnsuitableError: If a strategy that the user named cannot serve the model.
        ValueError: If something is not legal, or the model has no such part.

    Example:
        >>> import torch
        >>> from lightning_init import analyze
        >>> layer = torch.nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        >>> space, notes = space_for(analyze(layer, lambda: layer(torch.ones(1, 4, 16))))
        >>> "gpt2" in space.names, "chrono" in space.names
        (True, False)
    """
    fixed, scales = fixed or {}, scales or {}
    there = (ALL, *parts_of(architecture))
    for part in scales:
        if part not in there:
            raise ValueError(unknown("part of this model", part, there))
    if strategies:
        space = Space(
            _promising_first(strategies, architecture), config or {}, fixed, scales, ranges or {}
        )
        for name in space.names:
            if why := refusal(space.fixed.get(name) or InitSpec(name), architecture):
                raise UnsuitableError(why)
        return space, ()
    choice = choose(architecture)
    names = dict.fromkeys([*choice.names, *(ranges or {})])
    space = Space(tuple(names), config or {}, fixed, scales, ranges or {})
    notes = [choice.note] if choice.note else []
    if not architecture.traced:
        notes.append("no forward pass was seen: schemes for branches and attention are not tried")
    return space, tuple(notes)
