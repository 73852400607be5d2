"""The values that a model was built with, and which of its tensors may get others."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_init.architecture.names import named_states, named_tensors, unwrap
from lightning_init.architecture.provenance import record_of
from lightning_init.architecture.sharded import everywhere, local
from lightning_init.strategies.distributions import Keep
from lightning_init.strategies.plan import CUSTOMIZED, Plan, PlanEntry
from lightning_init.strategies.spec import InitSpec


class Built:
    """Copies of what was there before anything was drawn.

    Example:
        >>> layer, built = nn.Linear(2, 2), Built()
        >>> built.note(layer)
        >>> len(built.values)
        2
    """

    def __init__(self) -> None:
        self.values: dict[tuple[str, ...], Tensor] = {}
        self._plan: Plan | None = None
        self._ours: frozenset[tuple[str, ...]] = frozenset()

    def note(self, module: nn.Module) -> None:
        """Copy what exists and may be drawn, unless it was copied before."""
        for names, tensor in named_tensors(module):
            if names in self.values or is_lazy(tensor) or tensor.is_meta:
                continue
            if tensor.requires_grad:
                self.values[names] = local(tensor).cpu().clone()

    def first(self, module: nn.Module, plan: Plan) -> Built:
        """Before the first time that other values are tried: which tensors may have them.

        What the first plan drew and nobody has changed since, and what it left as its layer made
        it; what was loaded, restored or made by the model itself is not ours.
        """
        if self._plan is None:
            record = record_of(unwrap(module))
            states, tensors = dict(named_states(module)), dict(named_tensors(module))
            ours = set()
            for entry in plan:
                names = entry.info.names
                if names not in tensors:
                    continue
                if entry.written:
                    mine = record.holds(names[0], states[names])
                else:
                    fresh = entry.info.provenance == "fresh" and names in self.values
                    mine = fresh and self._is_as_built(names, tensors[names])
                ours |= {names} if mine else set()
            self._plan, self._ours = plan, frozenset(ours)
        return self

    def allowed(self, entry: PlanEntry, spec: InitSpec) -> PlanEntry:
        """An entry of a later plan; what must not be touched is kept."""
        if not entry.written or self._plan is None:
            return entry
        info = entry.info
        if info.names not in self._ours:
            return PlanEntry(info, Keep("not drawn by lightning_init"))
        known = {first.info.names: first.info.provenance for first in self._plan}
        # `auto` would have kept it, had it come first.
        if spec.strategy == "auto" and known.get(info.names) == "custom":
            return PlanEntry(info, Keep(CUSTOMIZED))
        return entry

    def restore(self, module: nn.Module) -> None:
        """Put the values back into all that is ours, in place."""
        record = record_of(unwrap(module))
        with torch.no_grad():
            for names, tensor in named_tensors(module):
                if names in self._ours and names in self.values:
                    local(tensor).copy_(self.values[names])
                    record.written.pop(names[0], None)

    def _is_as_built(self, names: tuple[str, ...], tensor: Tensor) -> bool:
        mine = local(tensor)
        value = self.values[names].to(mine.device, mine.dtype)
        return everywhere(value.shape == mine.shape and torch.equal(value, mine), tensor)
