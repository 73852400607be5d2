"""What a probe reads inside a Trainer: in the training pass, or in an eager pass beside it.

Hooks are on the model from the start to the end of a sampled batch only. A compiled model is not
touched: hooks would recompile it, or be ignored; its layers are read in an eager pass beside the
training, in which nothing changes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_init.architecture.names import named_tensors
from lightning_init.architecture.preserve import preserved
from lightning_init.architecture.probe import Probe, euclidean, weights
from lightning_init.architecture.readings import LayerReading, StepReading
from lightning_init.callbacks.forward import training_forward
from lightning_init.strategies.plan import Plan

_KEPT = 2048  # values of a tensor that make its histogram


class Watch:
    """The probe of one fit.

    Args:
        module: The module.
        plan: What was applied, if anything.
        samples: Whether values for histograms are kept, too.

    Attributes:
        samples: Tag -> values of the batch that was read last.
    """

    def __init__(self, module: pl.LightningModule, plan: Plan | None, samples: bool) -> None:
        self.compiled = is_compiled(module)
        self.samples: dict[str, Tensor] = {}
        self._module, self._keeps = module, samples
        self._probe: Probe | None = None
        self._layers: tuple[LayerReading, ...] = ()
        self._gradients: dict[int, Tensor] = {}
        self._seen: set[int] = set()

    def start(self) -> None:
        """Before a batch that is read in the training pass."""
        self.clear()
        self._probe = Probe(self._module, sample=self._keeps)
        self._probe.active = True

    def beside(self, batch: Any) -> None:
        """Read a batch in an eager pass of its own."""
        self.clear()
        self._probe = Probe(self._module, sample=self._keeps)
        try:
            with preserved(self._module), eager(), torch.enable_grad():
                self._probe.active = True
                loss = training_forward(self._module, batch)()
                wanted = [p for p in self._module.parameters() if p.requires_grad]
                if isinstance(loss, Tensor) and loss.requires_grad and loss.numel() == 1:
                    torch.autograd.grad(loss, wanted, allow_unused=True)
        finally:
            self.stop()

    def gradients(self, optimizer: Optimizer, scale: float) -> None:
        """Where gradients are unscaled and not yet clipped: before an optimizer's first step.

        Args:
            optimizer: The one that is about to step; later steps of the same batch are not read.
            scale: What its gradients are still multiplied by.
        """
        if id(optimizer) in self._seen:
            return
        self._seen.add(id(optimizer))
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._gradients[id(parameter)] = euclidean(parameter.grad) / scale
        if self._keeps:
            self._keep_gradients(scale)

    def stop(self) -> None:
        """Take every hook off the model."""
        if self._probe is not None:
            self._layers = self._probe.layers()
            self.samples |= {f"outputs/{n}": value for n, value in self._probe.samples.items()}
            self._probe.remove()
            self._probe = None

    def read(self, step: int, optimizers: Iterable[Optimizer]) -> StepReading:
        """What was seen of the batch that has just ended; one transfer to the host."""
        self.stop()
        del optimizers
        read = weights(self._module, None, self._gradients)
        if self._keeps:
            self.samples |= weight_samples(self._module)
        return StepReading(step, self._layers, read)

    def clear(self) -> None:
        """Forget the batch that was read last."""
        self.samples, self._layers = {}, ()
        self._gradients, self._seen = {}, set()

    def _keep_gradients(self, scale: float) -> None:
        for names, parameter in named_tensors(self._module):
            if parameter.grad is not None and parameter.ndim > 1 and not parameter.grad.is_sparse:
                self.samples.setdefault(
                    f"gradients/{names[0]}", _some(parameter.grad).float() / scale
                )


def weight_samples(module: pl.LightningModule) -> dict[str, Tensor]:
    """Tag -> some values of each matrix, kernel and table."""
    return {
        f"weights/{names[0]}": _some(tensor)
        for names, tensor in named_tensors(module)
        if tensor.ndim > 1 and tensor.numel() and not tensor.is_meta
    }


def _some(tensor: Tensor) -> Tensor:
    # An odd stride: an even one would meet the same columns in every row.
    flat = tensor.detach().flatten()
    return flat[:: max(1, flat.numel() // _KEPT) | 1].clone()


def is_compiled(module: pl.LightningModule) -> bool:
    """Whether a module, or a part of it, is compiled."""
    return bool(getattr(module, "_compiler_ctx", None)) or any(
        hasattr(child, "_orig_mod") or getattr(child, "_compiled_call_impl", None) is not None
        for child in module.modules()
    )


@contextmanager
def eager() -> Iterator[None]:
    """Run compiled code as it was written, without compiling anything."""
    stance: Callable[[str], Any] | None = getattr(torch.compiler, "set_stance", None)
    # Nothing can be compiled before torch has loaded its compiler, which takes seconds.
    if stance is None or "torch._dynamo" not in sys.modules:
        yield
        return
    with stance("force_eager"):
        yield


def gradient_scale(trainer: pl.Trainer, optimizer: Optimizer) -> float:
    """What the gradients are still multiplied by: optimizers that unscale inside their step."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None or not getattr(optimizer, "_step_supports_amp_scaling", False):
        return 1.0
    return float(scaler.get_scale())
