"""What a probe reads inside a Trainer: in the training pass, or in an eager pass beside it.

Hooks are on the model from the start to the end of a sampled batch only. A compiled model is not
touched: hooks would recompile it, or be ignored; its layers are read in an eager pass beside the
training, in which nothing changes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from lightning_init.architecture.names import named_tensors
from lightning_init.architecture.preserve import preserved
from lightning_init.architecture.probe import Probe, is_compiled
from lightning_init.architecture.readings import StepReading
from lightning_init.architecture.sharded import any_sharded, local
from lightning_init.architecture.trace import eager
from lightning_init.callbacks.forward import training_forward
from lightning_init.strategies.plan import Plan

_KEPT = 2048  # values of a tensor that make its histogram


class Watch:
    """The probe of one fit.

    Args:
        module: The module.
        plan: What was applied, if anything.
        samples: Whether values for histograms are kept, too.
        frames: `compiled_frames()` when the fit began.

    Attributes:
        samples: Tag -> values of the batch that was read last.
        stepped: Whether any optimizer has been seen.
    """

    def __init__(
        self, module: pl.LightningModule, plan: Plan | None, samples: bool, frames: int
    ) -> None:
        self.samples: dict[str, Tensor] = {}
        self._module, self._keeps, self._frames = module, samples, frames
        self._probe = Probe(module, plan)
        self.stepped = False
        self._seen: set[int] = set()
        self._lrs: dict[int, float] = {}
        self._failed: Exception | None = None
        self._raw: RemovableHandle | None = None
        self._scale, self._loss_scale = 1.0, 1.0
        held = [value for child in module.modules() for value in vars(child).values()]
        self._calls = any("_torchdynamo_orig_callable" in getattr(h, "__dict__", ()) for h in held)

    @property
    def compiled(self) -> bool:
        """Whether the module is compiled, or a function that it calls."""
        return is_compiled(self._module) or compiled_frames() > self._frames or self._calls

    @property
    def error(self) -> Exception | None:
        """What went wrong while the last batch was read."""
        return self._failed or self._probe.error

    def begin(self, trainer: pl.Trainer, accumulated: int) -> None:
        """Before any batch that is read: forget the one before.

        Args:
            trainer: Its gradient scaler multiplies the loss.
            accumulated: Lightning divides the loss by it.
        """
        self.samples, self._seen, self._lrs, self._failed = {}, set(), {}, None
        self._scale = _scale(trainer)
        self._loss_scale = self._scale / accumulated

    def start(self) -> None:
        """Read the batch that begins in the training pass."""
        self._probe.start(sample=self._keeps)
        if not self._module.automatic_optimization:
            self._raw = register_optimizer_step_pre_hook(self._steps_alone)

    def beside(self, batch: Any) -> None:
        """Read a batch in an eager pass of its own."""
        self._loss_scale = 1.0
        try:
            with preserved(self._module), eager(), torch.enable_grad():
                self._probe.start(sample=self._keeps)
                loss = training_forward(self._module, batch)()
                wanted = [p for p in self._module.parameters() if p.requires_grad]
                if isinstance(loss, Tensor) and loss.requires_grad and loss.numel() == 1:
                    if any_sharded(wanted):
                        loss.backward()  # type: ignore[no-untyped-call]
                    else:
                        torch.autograd.grad(loss, wanted, allow_unused=True)
        finally:
            self.stop()

    def update(self, optimizer: Optimizer) -> None:
        """Before an optimizer's first step, where gradients are not yet clipped.

        Later steps of the same batch are not read: what they show is no more the batch's own.
        """
        if id(optimizer) in self._seen:
            return
        self._seen.add(id(optimizer))
        self.stepped = True
        # Most optimizers step on gradients that are unscaled by now; some do that themselves.
        fused = getattr(optimizer, "_step_supports_amp_scaling", False)
        scale = self._scale if fused else 1.0
        held = [p for group in optimizer.param_groups for p in group["params"]]
        held = [parameter for parameter in held if parameter.grad is not None]
        try:
            self._lrs |= rates([optimizer])
            self._probe.gradients(held, scale)
            self._probe.before_update(held)
            if self._keeps:
                self._keep_gradients(held, scale)
        except Exception as error:  # a kind of tensor that cannot be read must not end a training
            self._failed = error

    def _steps_alone(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """An optimizer that manual optimization steps without the Trainer, which tells nobody."""
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:  # else the gradients are still those of the step before
            self.update(optimizer)

    def stop(self) -> None:
        """Take every hook off the model."""
        self._probe.stop()
        if self._raw is not None:
            self._raw.remove()
            self._raw = None

    def read(self, step: int, trainer: pl.Trainer) -> StepReading:
        """What was seen of the batch that has just ended; one transfer to the host."""
        self.stop()
        if self._keeps:
            self.samples |= {f"outputs/{n}": value for n, value in self._probe.samples.items()}
            self.samples |= weight_samples(self._module)
        lrs = rates(trainer.optimizers) | self._lrs
        reading = self._probe.step(step, lrs, loss_scale=self._loss_scale)
        if _scale(trainer) < self._scale:  # the scaler has skipped the update
            still = tuple(replace(weight, update=math.nan) for weight in reading.weights)
            return replace(reading, weights=still)
        return reading

    def _keep_gradients(self, held: list[Tensor], scale: float) -> None:
        ids = {id(parameter) for parameter in held}
        for names, parameter in named_tensors(self._module):
            grad = parameter.grad
            if id(parameter) in ids and grad is not None and grad.ndim > 1 and not grad.is_sparse:
                self.samples[f"gradients/{names[0]}"] = _some(grad).float() / scale


def rates(optimizers: Iterable[Optimizer]) -> dict[int, float]:
    """`id(parameter)` -> its learning rate.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> list(rates([torch.optim.SGD([weight], lr=0.1)]).values())
        [0.1]
    """
    return {
        id(parameter): float(group["lr"])
        for optimizer in optimizers
        for group in optimizer.param_groups
        if "lr" in group
        for parameter in group["params"]
    }


def small_eps(optimizers: Iterable[Optimizer]) -> str:
    """An optimizer whose eps lies below the normal numbers of its weights' precision.

    There the square of a usual gradient rounds to 0, and eps alone is what it divides by.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(1, dtype=torch.float16))
        >>> small_eps([torch.optim.Adam([weight])])
        'Adam(eps=1e-08) in float16'
        >>> small_eps([torch.optim.Adam([weight], eps=1e-4)])
        ''
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            eps = group.get("eps", 0.0)
            for dtype in {one.dtype for one in group["params"] if one.is_floating_point()}:
                if isinstance(eps, float) and 0 < eps < torch.finfo(dtype).smallest_normal:
                    name, precision = type(optimizer).__name__, str(dtype).removeprefix("torch.")
                    return f"{name}(eps={eps:g}) in {precision}"
    return ""


def weight_samples(module: pl.LightningModule) -> dict[str, Tensor]:
    """Tag -> some values of each matrix, kernel and table."""
    return {
        f"weights/{names[0]}": _some(tensor)
        for names, tensor in named_tensors(module)
        if tensor.ndim > 1 and tensor.numel() and not tensor.is_meta
    }


def _some(tensor: Tensor) -> Tensor:
    # An odd stride: an even one would meet the same columns in every row.
    flat = local(tensor).flatten()  # of a sharded tensor, the part that is here
    return flat[:: max(1, flat.numel() // _KEPT) | 1].clone()


def compiled_frames() -> int:
    """How many pieces of code have been compiled in this process."""
    counters = getattr(sys.modules.get("torch._dynamo.utils"), "counters", {})
    return int(counters["frames"]["total"]) if "frames" in counters else 0


def _scale(trainer: pl.Trainer) -> float:
    """What a gradient scaler multiplies the loss by, 1 without one."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return 1.0 if scaler is None else float(scaler.get_scale())
