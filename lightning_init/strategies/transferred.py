"""What a plan says of tensors that have a donor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from lightning_init.architecture.params import ParamInfo
from lightning_init.strategies.distributions import Constant, Distribution, Keep
from lightning_init.strategies.initializers import Initializer
from lightning_init.strategies.loaded import Grown, Loaded
from lightning_init.strategies.parts import decide
from lightning_init.strategies.slicing import Cut


@dataclass(frozen=True)
class Transferred:
    """Another initializer for all that has no donor.

    Args:
        below: The other initializer.
        cuts: What goes into a tensor, by its first name.
        source: Where each comes from, in words.
        silent: New residual branches: the tensors that end them start at 0.
    """

    below: Initializer
    cuts: Mapping[str, Cut]
    source: Mapping[str, str]
    silent: frozenset[str] = frozenset()

    def __call__(self, info: ParamInfo) -> Distribution:
        """The distribution of one tensor."""
        cut = self.cuts.get(info.name)
        if info.name in self.silent:
            return Constant(0.0, reason="new residual branch: starts as nothing")
        if cut is None:
            return self.below(info)
        if info.part:
            return Keep("loaded whole")
        why = self.source[info.name]
        if not cut.places:
            return Loaded(cut.values, cut.how, reason=why)
        below = decide(self.below, info)
        if isinstance(below, Keep):
            return replace(below, reason=f"{below.reason}; the donor is smaller")
        return Grown(cut.values, cut.places, below, cut.silent, info.shape, reason=why)
