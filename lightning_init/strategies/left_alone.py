"""What a plan leaves alone although a user may not expect that: said as warnings."""

from __future__ import annotations

import warnings

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_init.architecture.adapters import is_original
from lightning_init.architecture.names import canonical, named_tensors, unwrap
from lightning_init.architecture.provenance import checksum, known_record
from lightning_init.architecture.sharded import whole
from lightning_init.strategies.plan import Plan


def warn_of_copies(model: nn.Module, plan: Plan) -> None:
    """A frozen copy (a teacher, a target network) no longer equals what is drawn anew."""
    tensors = {
        names: t
        for names, t in named_tensors(model)
        if not is_lazy(t) and not t.is_meta and t.ndim > 1
    }
    drawn = {
        (checksum(tensors[entry.info.names]), entry.info.shape): entry.info.name
        for entry in plan
        if entry.written and entry.info.names in tensors
    }
    for entry in plan:
        tensor = tensors.get(entry.info.names)
        if tensor is None or entry.written or not bool(whole(tensor).any()):
            continue
        if is_original(entry.info.name):  # peft means the two to differ
            continue
        if (original := drawn.get((checksum(tensor), entry.info.shape))) is not None:
            warnings.warn(
                f"{entry.info.name} is kept ({entry.distribution.reason}), but was a copy of "
                f"{original}, which is drawn anew: copy it again after the initialization, or "
                'pass scope="all"',
                stacklevel=3,
            )
            return


def warn_of_garbage(model: nn.Module, plan: Plan) -> None:
    """Memory that was taken without an init, and that nobody has written since."""
    empty = known_record(unwrap(model)).empty
    kept = {e.info.name for e in plan if not e.written}
    kept &= empty | {entry.info.name for entry in plan if "meta" in entry.info.flags}
    tensors: list[tuple[str, Tensor]] = [(names[0], t) for names, t in named_tensors(model)]
    tensors = [(name, tensor) for name, tensor in tensors if name in kept]
    buffers = ((canonical(name), buffer) for name, buffer in unwrap(model).named_buffers())
    tensors += [(name, buffer) for name, buffer in buffers if name in plan.meta_buffers]
    raw = [name for name, tensor in tensors if not tensor.is_meta and tensor._version == 0]
    if raw:
        warnings.warn(
            f"{', '.join(raw)}: made without values (meta device, empty_init=True), not drawn by the "
            "plan and not written since, so arbitrary memory. Call reset_parameters() or reset_running_stats() "
            "of the modules that own them, or load them",
            stacklevel=4,
        )
