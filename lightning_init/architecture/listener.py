"""Listens to a model at work: hooks on its modules, and a mode that sees the calls between them.

Outputs are reduced where they appear, before an in-place call can overwrite them, and never kept.
The calls tell what follows a layer, which input comes from the batch, and where a softmax attends.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_init.architecture.aside import aside, enter, leave
from lightning_init.architecture.attention_scores import Scores, product_scores, softmax_scores
from lightning_init.architecture.calls import tensors
from lightning_init.architecture.ear import Ear
from lightning_init.architecture.heard import Heard, Step
from lightning_init.architecture.inputs_seen import read_input
from lightning_init.architecture.nonlinear import WATCHED, activation
from lightning_init.architecture.opened import OPENED
from lightning_init.architecture.operations import (
    FRESH,
    LOOKUPS,
    NORMS,
    PRODUCTS,
    Function,
    kind,
)
from lightning_init.architecture.signals import euclidean, leading, norm
from lightning_init.architecture.stage import Place, Stage
from lightning_init.architecture.trails import (
    CONSTANT,
    MOVED,
    SCALED,
    WEIGHTED,
    Trail,
    Trails,
    merged,
    ordinary,
    signals,
)

_KEPT = 2048  # values of an output that a histogram is drawn from


class Listener(TorchFunctionMode):
    """Hears one step of a model between `listen` and `rest`.

    Args:
        stage: The model's modules and parameters, by what they are for.
        full: Whether all rows of every output are read instead of the leading ones.
        sample: Whether a few values of each output are kept.
        follow: Whether the calls between the modules are heard, too.
    """

    def __init__(
        self, stage: Stage, *, full: bool = False, sample: bool = False, follow: bool = True
    ) -> None:
        super().__init__()
        self.stage, self.full, self.sample, self.follow = stage, full, sample, follow
        self.step = Step()
        self._trails = Trails()
        self._within: list[str | None] = []
        self._made = 0
        self._on = False
        self._handles: list[Any] = []

    def listen(self) -> None:
        """Put the hooks on, enter the mode."""
        self._on = True
        for place in self.stage.places:
            self._hook(place.module, place)
        if not self.follow:
            return
        for name, module in self.stage.rooms:
            self._handles.append(module.register_forward_pre_hook(Ear(self._enter(name))))
            self._handles.append(module.register_forward_hook(Ear(self._leave(name))))
        for name, module in self.stage.norms:
            self._handles.append(module.register_forward_hook(Ear(self._normalized(name))))
        for buffer in self.stage.constants:
            self._trails[buffer] = CONSTANT
        enter(self)

    def rest(self) -> Step:
        """Take everything away; what was heard."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._on and self.follow:
            leave(self)
        self._on = False
        self._trails.clear()
        self._within = []
        return self.step

    def _deaf(self) -> bool:
        """Not to be read: what is compiled, and in a backward pass a recomputation."""
        deaf = torch.compiler.is_compiling() or not self._on or self.step.error is not None
        return deaf or torch._C._current_graph_task_id() != -1

    def _hook(self, module: nn.Module, place: Place) -> None:
        def read(_: nn.Module, args: Any, kwargs: dict[str, Any], out: Any) -> None:
            if self._deaf():
                return
            try:
                with aside():
                    self._hear_module(place, args, kwargs, out)
            except Exception as error:  # what is only looked at must not break a training
                self.step.error = error

        self._handles.append(module.register_forward_hook(Ear(read), with_kwargs=True))

    def _hear_module(
        self, place: Place, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        found = list(tensors(out.to_tuple() if hasattr(out, "to_tuple") else out))
        taken = next(iter(signals((args, list(kwargs.values())))), None)
        if not found or not ordinary(found[0]):
            return
        if place.is_layer:
            self._made += 1
            self._layer(place, taken, found[0])
            for each in found:
                self._trails[each] = Trail(self._made, place.name, straight=True)
        elif not any(heard.place.owner == place.name for heard in self.step.layers.values()):
            self._hear(place, found[0])

    def _layer(self, place: Place, taken: Tensor | None, out: Tensor) -> None:
        """A weight layer has run: `_made` is its number."""
        self.step.last = place.name
        first = place.name not in self.step.layers
        heard = self._hear(place, out)
        if not first or taken is None or not ordinary(taken):
            return
        heard.made = self._made
        part = leading(taken.detach(), place.channels, self.full)
        heard.took = (self.step.ledger.note(norm(part)), part.numel())
        self._input(place.name, taken, place.channels, normalized=False)

    def _hear(self, place: Place, out: Tensor) -> Heard:
        step, name = self.step, place.name
        if name in step.layers:  # a module used twice is read on its first call
            return step.layers[name]
        channels = place.channels and out.ndim > 2
        pooled = step.pool.add(step.ledger, out, channels, self.full, cosines=self.follow)
        heard = Heard(place, pooled, out.numel())
        if self.sample:
            part = leading(out.detach(), channels, self.full)
            step.samples[name] = part.flatten()[:_KEPT].float().clone()
        step.layers[name] = heard
        if out.requires_grad:

            def read(grad: Tensor) -> None:
                if self._on:
                    with aside():
                        heard.grad = step.ledger.note(euclidean(grad))

            out.register_hook(read)  # type: ignore[no-untyped-call]
        return heard

    def _input(self, name: str, taken: Tensor, channels: bool, normalized: bool) -> bool:
        """Read a layer's input if it came with the batch; whether it did."""
        trail = self._trail(taken)
        outside = not (trail.made or trail.learned) and taken.grad_fn is None
        if outside and self.follow and not trail.normed and name not in self.step.inputs:
            seen = read_input(self.step.ledger, taken.detach(), channels, normalized, self.full)
            self.step.inputs[name] = seen
        return outside

    def _enter(self, name: str | None) -> Any:
        return lambda *_: self._within.append(name)

    def _leave(self, name: str | None) -> Any:
        def leave(*_: Any) -> None:
            while self._within and self._within.pop() != name:
                pass  # what an exception has left

        return leave

    def _normalized(self, name: str) -> Any:
        def read(_: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            if not self._deaf() and args:
                with aside():
                    if ordinary(args[0]) and ordinary(out):
                        self._trails[out] = self._norm(name, args[0])

        return read

    def _norm(self, name: str, taken: Tensor) -> Trail:
        trail = self._trail(taken)
        if trail.straight and trail.layer is not None:
            self.step.normalized.add(trail.layer)
        normed = self._input(name, taken, taken.ndim > 2, normalized=True)
        return trail._replace(straight=False, normed=normed)

    def __torch_function__(
        self,
        func: Function,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the call, hear what it is."""
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():  # a user's function: nothing of this may be in its graph
            return func(*args, **kwargs)
        if func in OPENED:
            with self:
                return OPENED[func](*args, **kwargs)
        out = func(*args, **kwargs)
        # An optimizer's calls are none of a forward pass: outside of modules, without gradients.
        wanted = isinstance(out, (Tensor, tuple, list)) and not self._deaf()
        if wanted and (self._within or torch.is_grad_enabled()):
            try:
                self._call(kind(func), args, kwargs, out)
            except Exception as error:  # what is only looked at must not break a training
                self.step.error = error
        return out

    def _trail(self, tensor: Tensor) -> Trail:
        owner = self.stage.owners.get(id(tensor))
        return self._trails[tensor] if owner is None else owner

    def _room(self) -> str:
        """Name of the module that runs."""
        return next((name for name in reversed(self._within) if name is not None), "")

    def _call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        results = signals((out,))
        if not results:
            return
        given = signals((args, list(kwargs.values())))
        trails = [self._trail(tensor) for tensor in given]
        if name in FRESH or not given:
            if self._within and not any(map(isinstance, args, (Tensor,) * len(args))):
                trail = CONSTANT
            else:
                return
        elif name in WEIGHTED or name in PRODUCTS:
            trail = self._product(name, given, trails, results[0])
        elif name in LOOKUPS:
            self._made += 1
            trail = Trail(self._made)
        elif name in NORMS:
            with aside():
                trail = self._norm(self._room(), given[0])
        else:
            trail = merged(trails)
            if name == "softmax" and trail.scores:
                dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
                with aside():
                    self._attention(softmax_scores(self.step.ledger, given[0], dim))
            elif name == "scaled_dot_product_attention":
                with aside():
                    self._attention(product_scores(self.step.ledger, args, kwargs))
            elif name in WATCHED and not trail.scores:
                self._activation(name, args, kwargs, trail, results[0])
            trail = trail._replace(
                straight=trail.straight and name in MOVED,
                scores=trail.scores and name in SCALED,
            )
        if trail != Trail():
            for result in results:
                self._trails[result] = trail

    def _product(self, name: str, given: list[Tensor], trails: list[Trail], out: Tensor) -> Trail:
        flowing = [trail for trail in trails if not trail.learned]
        owners = [trail.layer for trail in trails if trail.learned and trail.layer is not None]
        if name not in WEIGHTED and not (flowing and owners):
            trail = merged(trails)
            return trail._replace(straight=False, scores=len(flowing) > 1)
        self._made += 1
        owner = owners[0] if owners else None
        place = self.stage.raw.get(owner) if owner is not None else None
        if place is not None and ordinary(out):
            pairs = zip(given, trails, strict=True)
            with aside():
                self._layer(place, next((t for t, trail in pairs if not trail.learned), None), out)
        return Trail(self._made, owner, straight=True)

    def _attention(self, scores: Scores | None) -> None:
        if scores is not None:
            self.step.attentions.append((self._room(), scores))

    def _activation(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], trail: Trail, out: Tensor
    ) -> None:
        heard = self.step.layers.get(trail.layer or "")
        if trail.layer is None or heard is None or heard.after is not None:
            return
        if heard.made != trail.made or not ordinary(out):
            return
        channels = heard.place.channels and out.ndim > 2
        pool, ledger = self.step.pool, self.step.ledger
        with aside():
            heard.after = activation(pool, ledger, name, args, kwargs, out, channels, self.full)
