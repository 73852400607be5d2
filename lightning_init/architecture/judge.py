"""Fresh, custom or trained: what the values of a model's tensors tell together.

`judge` asks of each tensor whether its layer drew it (`statistics.py`), and of the model around it
whether anything there has been trained. Doubt is on the side of keeping: beside trained weights a
tensor that is not its layer's default is theirs, unless something shows that no step was taken.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_init.architecture.layers import Described, describe_model
from lightning_init.architecture.names import named_states, named_tensors
from lightning_init.architecture.params import ParamInfo, Provenance, Role
from lightning_init.architecture.plain import plain
from lightning_init.architecture.provenance import known_record, missing_from_checkpoint
from lightning_init.architecture.sharded import is_sharded, whole
from lightning_init.architecture.statistics import (
    has_drifted,
    has_structure,
    is_constant,
    is_known_draw,
    looks_default,
    readable,
)

_STEPS = 4  # writes in place that constructors and `torch.nn.init` need for a bias, at most
_DRAWS = 12  # and for two draws of a weight: up to PyTorch 2.11 a truncated normal takes five
_WITNESS = 8  # elements of a layer's biases, or norm, from which on they tell of steps
_STILL = 1e-5  # rms of a bias that nobody would miss; some models draw theirs at 1e-6

MARKED = "marked so"
SHOWN = "its values show it"
DOUBT = "in doubt, beside such weights"


class Verdict(NamedTuple):
    """Where a tensor comes from, and how that is known."""

    provenance: Provenance
    why: str = ""


def examine(model: nn.Module, infos: tuple[ParamInfo, ...]) -> tuple[ParamInfo, ...]:
    """The same entries with `provenance` decided by `judge`."""
    verdicts = judge(model, infos)
    return tuple(replace(info, provenance=verdicts[info.names].provenance) for info in infos)


def judge(model: nn.Module, infos: tuple[ParamInfo, ...]) -> dict[tuple[str, ...], Verdict]:
    """Decide where each tensor's values come from.

    A tensor is *fresh* if we wrote it last or if it looks like its layer's default; *pretrained*
    if a marker says so, if an optimizer has stepped on it, if it has structure that independent
    draws lack, if it is a default draw with blurred edges, or if its bias or norm has moved.
    Otherwise it is *custom*, unless anything in the model is pretrained: then it is so, too, except
    where the nearest biases and norms still have the constants that they began with and it has the
    spread of a known scheme, or where a loader says that it was not in the checkpoint.

    Args:
        model: The model that `infos` describe, unwrapped.
        infos: From `analyze`.

    Returns:
        A verdict per tensor, by its names.
    """
    return _Court(model, infos).verdicts()


class _Court:
    """The evidence on a model's tensors, each piece looked at once."""

    def __init__(self, model: nn.Module, infos: tuple[ParamInfo, ...]) -> None:
        self.tensors, self.states = dict(named_tensors(model)), dict(named_states(model))
        self.record = known_record(model)
        with plain(model) as computed:  # a computed weight is judged by its own values
            described = describe_model(model)
            values = {names[0]: tensor for names, tensor in named_tensors(model)}
        self.values = {n: values.get(n[0], tensor) for n, tensor in self.tensors.items()}
        # Where it is not simply made of its one original (spectral_norm), that one is as built.
        self.alone = {id(weight.primary) for weight, _ in computed if len(weight.originals) == 1}
        self.all = infos
        self.infos = infos = tuple(info for info in infos if not self._silent(info))
        self.new = missing_from_checkpoint(model)
        self.siblings: dict[str, list[ParamInfo]] = {}
        for info in infos:
            self.siblings.setdefault(_owner(info), []).append(info)
        facts = {i.names: described.get(id(self.values[i.names]), (None, ""))[0] for i in infos}
        self.built = {i.names: self._as_built(i, facts[i.names]) for i in infos}
        self.constant = {i.names: self._constant(i) for i in infos}
        self.still: dict[str, bool] = {}  # path -> are all biases and norms below it constant?
        for info in filter(_is_witness, infos):
            path = info.name
            while path:
                path = path.rpartition(".")[0]
                self.still[path] = self.still.get(path, True) and self.constant[info.names]
        self.shown = {i.names for i in infos if self._shows(i, facts[i.names])}
        self.moved = {owner: self._has_moved(group) for owner, group in self.siblings.items()}

    def verdicts(self) -> dict[tuple[str, ...], Verdict]:
        """For every tensor; a tensor shares its fate with the others of its layer."""
        # A frozen table of unknown use may be a filter bank that nobody learned.
        votes = {i.names for i in self.infos if "frozen" not in i.flags or i.role is not Role.OTHER}
        trained = (
            any(info.provenance == "pretrained" for info in self.infos)
            or any(self.moved.values())
            or bool(self.shown & votes)
        )
        found = {info.names: Verdict(info.provenance) for info in self.all}
        found |= {info.names: self._verdict(info, trained) for info in self.infos}
        # A bias that training moved little looks fresh, but its weight beside it does not.
        whys = {_owner(i): v.why for i in self.infos if (v := found[i.names])[0] == "pretrained"}
        for info in self.infos:
            fresh = found[info.names].provenance != "pretrained"
            if fresh and _owner(info) in whys and not self._ours(info):
                found[info.names] = Verdict("pretrained", whys[_owner(info)])
        return found

    def _verdict(self, info: ParamInfo, trained: bool) -> Verdict:
        if info.provenance == "pretrained":
            return Verdict("pretrained", MARKED)
        if self._ours(info):
            return Verdict("fresh")
        if info.names in self.shown or self.moved[_owner(info)]:
            return Verdict("pretrained", SHOWN)
        bounded = self.built[info.names] == "bounded"
        if bounded or not trained or self._certified(info):
            return Verdict("fresh" if self.built[info.names] else "custom")
        return Verdict("pretrained", DOUBT)

    def _silent(self, info: ParamInfo) -> bool:
        """Whether a tensor has no values to ask.

        It is lazy, behind a computed weight, or memory that nobody has written yet.
        """
        tensor = self.tensors[info.names]
        empty = info.name in self.record.empty and not tensor.is_meta
        # What a strategy that shards gave memory to, it filled itself: a checkpoint comes later.
        empty = empty and (tensor._version == 0 or is_sharded(tensor))
        return "companion" in info.flags or is_lazy(tensor) or empty

    def _ours(self, info: ParamInfo) -> bool:
        return self.record.holds(info.name, self.states[info.names])

    def _as_built(self, info: ParamInfo, fact: Described | None) -> str:
        """Empty if a tensor is not its layer's default; "bounded" if a step would show."""
        for default in (fact.default, fact.tied_default) if fact else ():
            if default is None:
                continue
            if any(looks_default(t, default, info.padding_idx) for t in self._looks(info)):
                return "unbounded" if default.kind == "normal" else "bounded"
        return ""

    def _looks(self, info: ParamInfo) -> list[Tensor]:
        tensor: Tensor = self.tensors[info.names]
        return [self.values[info.names], *[tensor] * (id(tensor) in self.alone)]

    def _constant(self, info: ParamInfo) -> bool:
        tensor = self.values[info.names]
        if info.numel == 1:  # a number of its own: 0 and 1 are what constructors write
            return readable(tensor) and float(whole(tensor)) in (0.0, 1.0)
        return len(info.shape) < 2 and is_constant(tensor)

    def _shows(self, info: ParamInfo, fact: Described | None) -> bool:
        """Whether a tensor's own values, or the count of writes to them, tell of training."""
        tensor, default = self.values[info.names], fact.default if fact else None
        if self._ours(info):
            return False
        if self._stepped(info):
            return True
        if self.built[info.names] == "bounded":
            return False
        # What a rule makes of a draw (an orthogonal matrix) has edges of its own.
        plain_draw = tensor is self.tensors[info.names]
        return (plain_draw and has_drifted(tensor, default)) or has_structure(tensor)

    def _stepped(self, info: ParamInfo) -> bool:
        """Whether a tensor and those beside it were written many times, as an optimizer does.

        Some schemes write a weight many times; only steps write its bias as often.
        """
        group = self.siblings[_owner(info)]
        group = group if len(group) > 1 else [i for i in self.infos if "frozen" not in i.flags]
        beside = [self.tensors[i.names] for i in group if "frozen" not in i.flags]
        usual = _STEPS if any(map(_is_witness, group)) else _DRAWS
        return "frozen" not in info.flags and all(t._version > usual for t in beside)

    def _has_moved(self, group: list[ParamInfo]) -> bool:
        """Whether the biases, or scale and shift, of a layer are where only steps put them."""
        told = [i for i in group if _is_witness(i) and not self._ours(i)]
        if not all(readable(self.values[i.names]) for i in told):
            return False
        if sum(i.numel for i in told) < _WITNESS:
            return False
        if any(self.constant[i.names] or self.built[i.names] for i in told):
            return False  # some draw the scale of a norm; who trains it moves the shift as well
        if any(
            float(whole(self.values[i.names]).float().norm()) < _STILL * i.numel**0.5 for i in told
        ):
            return False
        weights = [i for i in group if len(i.shape) > 1]
        return not any(self.built[i.names] == "bounded" for i in weights)

    def _certified(self, info: ParamInfo) -> bool:
        """Whether something shows that a tensor beside trained ones is new."""
        tensor = self.values[info.names]
        if id(tensor) not in self.new and not self._untouched(_owner(info)):
            return False
        return len(info.shape) < 2 or is_known_draw(tensor, info.fan_in, info.fan_out)

    def _untouched(self, owner: str) -> bool:
        """Whether the nearest biases and norms have the constants that they began with."""
        while owner and owner not in self.still:
            owner = owner.rpartition(".")[0]
        return self.still.get(owner, False)


def _owner(info: ParamInfo) -> str:
    return info.name.rpartition(".")[0]


def _is_witness(info: ParamInfo) -> bool:
    """Whether a tensor begins as a constant in most models, and moves with the first step."""
    roles = (Role.BIAS, Role.NORM_SCALE, Role.NORM_SHIFT)
    return info.role in roles and "frozen" not in info.flags
