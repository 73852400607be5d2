"""Weights that a module computes from other tensors: weight_norm, spectral_norm, pruning, ...

Such a weight is no parameter, so what is copied into it is lost. It is *read* as the layer sees it
(`Derived.value`) and *assigned* through the inverse of its parametrization (`Derived.assign`), in
place on the parameters behind it. One of these is the *primary*, which bears the weight's name; the
others are its companions and are set with it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from lightning_init.architecture.preserve import keep_module, keep_rng, preserved
from lightning_init.architecture.state import Undo, keep_tensor

_ITERATIONS = 30  # of the power method; torch makes 15 when it parametrizes a layer


@dataclass(frozen=True, slots=True)
class Derived:
    """One computed weight of one module.

    Attributes:
        module: The layer.
        name: The weight's name in the layer.
        rule: What computes it: a `ParametrizationList`, or the hook of weight_norm, spectral_norm
            or pruning in `torch.nn.utils`.
        originals: The parameters behind it.
    """

    module: nn.Module
    name: str
    rule: Any
    originals: tuple[nn.Parameter, ...]

    @property
    def primary(self) -> nn.Parameter:
        """The parameter that bears the weight's name: the direction of weight_norm."""
        return self.originals[-1]

    @property
    def kind(self) -> str:
        """What computes the weight, in a word."""
        if isinstance(self.rule, prune.BasePruningMethod):
            return "pruning"
        rules = self.rule.children() if isinstance(self.rule, nn.Module) else (self.rule,)
        return " and ".join(type(rule).__name__.lstrip("_") for rule in rules)

    def value(self) -> Tensor:
        """The weight as the layer sees it, detached; no state moves.

        Example:
            >>> layer = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
            >>> torch.equal(derived(layer)[0].value(), layer.weight)
            True
        """
        with torch.no_grad():
            if not isinstance(self.rule, nn.Module):
                return self._hooked().detach().clone()
            with preserved(self.rule):
                self.rule.eval()  # a power iteration of spectral_norm would move its vectors
                found: Tensor = self.rule()
                return found.detach().clone()

    def stored(self) -> Tensor:
        """All numbers behind the weight, but those that drift by themselves, in one row.

        They do not depend on the device, as the last bits of `value` do.
        """
        parts: list[Tensor] = [*self.originals]
        for rule in self.rule.modules() if isinstance(self.rule, nn.Module) else ():
            if not isinstance(rule, parametrizations._SpectralNorm):
                parts += [buffer for buffer in rule._buffers.values() if buffer is not None]
        return torch.cat([part.detach().flatten().to(self.primary) for part in parts])

    def assign(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Make the weight equal a value, as far as its parametrization can.

        Args:
            value: Of the weight's shape, on any device.
            generator: For what the inverse draws, and for directions that a value of 0 leaves open.

        Returns:
            What the weight has become.

        Raises:
            ValueError: If it cannot be assigned; everything is then as before.

        Example:
            >>> layer = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
            >>> _ = derived(layer)[0].assign(torch.eye(2))
            >>> layer.weight.detach()
            tensor([[1., 0.],
                    [0., 1.]])
        """
        undo = self.keep()
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        try:
            with torch.no_grad(), _seeded(generator):
                self._write(value.to(self.primary.device, self.primary.dtype), generator)
            found = self.value()
            if bool(value.isfinite().all()) and not bool(found.isfinite().all()):
                raise ValueError("what is drawn would make it infinite or NaN")
        except Exception as error:
            for restore in undo:
                restore()
            raise ValueError(
                f"is computed by {self.kind} and cannot be assigned to: {error}"
            ) from error
        self._refresh()
        return found

    def keep(self) -> list[Undo]:
        """How to put back everything that `assign` changes."""
        if isinstance(self.rule, nn.Module):
            undo = [keep_module(module) for module in self.rule.modules()]
            return without_grad([*undo, *map(keep_tensor, self.rule.parameters())])
        return without_grad([*map(keep_tensor, self.originals), keep_module(self.module)])

    def copied(self) -> Derived:
        """The same weight of a layer that does not matter: what an assignment would do."""
        bench = nn.Module()
        if isinstance(self.rule, nn.Module):
            rule = copy.deepcopy(self.rule)
            return Derived(bench, self.name, rule, _originals(rule))
        for name, parameter in self.module._parameters.items():
            if parameter is not None and name.startswith(f"{self.name}_"):
                bench.register_parameter(name, nn.Parameter(parameter.detach().clone()))
        for name, buffer in self.module._buffers.items():
            if buffer is not None and name.startswith(f"{self.name}_"):
                bench.register_buffer(name, buffer.clone())
        twin = _of_hook(bench, self.rule)
        assert twin is not None
        return twin

    def _hooked(self) -> Tensor:
        """The weight that a hook would compute now."""
        if isinstance(self.rule, prune.BasePruningMethod):
            return self.rule.apply_mask(self.module)  # type: ignore[no-untyped-call,no-any-return]
        if isinstance(self.rule, SpectralNorm):
            return self.rule.compute_weight(self.module, do_power_iteration=False)
        found: Tensor = self.rule.compute_weight(self.module)
        return found

    def _write(self, value: Tensor, generator: torch.Generator) -> None:
        """Set the parameters behind the weight, in place: references to them stay true."""
        if not isinstance(self.rule, nn.Module):
            values = [value]
            if isinstance(self.rule, WeightNorm):
                values = [torch.norm_except_dim(value, 2, self.rule.dim), value]
            self._copy(values, isinstance(self.rule, WeightNorm), generator)
            if isinstance(self.rule, SpectralNorm):
                _settle_hook(self.module, self.rule)
            return
        rules: list[Any] = [*self.rule.children()]
        found: Any = value
        for rule in reversed(rules):
            if not hasattr(rule, "right_inverse"):
                raise TypeError(f"{type(rule).__name__} has no `right_inverse`, define one")
            found = rule.right_inverse(found)
        values = [found] if isinstance(found, Tensor) else list(found)
        self._copy(values, isinstance(rules[0], parametrizations._WeightNorm), generator)
        if any(isinstance(rule, parametrizations._SpectralNorm) for rule in rules):
            _settle(rules, self.originals)

    def _copy(self, values: list[Tensor], normed: bool, generator: torch.Generator) -> None:
        if normed:  # 0 has no direction: any will do, and 0 / 0 would not
            norm, direction = values
            noise = torch.randn(direction.shape, generator=generator).to(direction)
            values = [norm, torch.where(norm == 0, noise, direction)]
        for original, new in zip(self.originals, values, strict=True):
            if original.shape != new.shape:
                raise ValueError(f"shape {tuple(new.shape)} instead of {tuple(original.shape)}")
            original.copy_(new)

    def _refresh(self) -> None:
        """Renew what holds a copy of the weight."""
        if isinstance(self.rule, nn.Module):
            parametrize._cache.pop((id(self.module), self.name), None)
            return
        grad = bool(getattr(self.module, self.name, self.primary).requires_grad)
        with torch.set_grad_enabled(grad):
            setattr(self.module, self.name, self._hooked())


def derived(model: nn.Module) -> list[Derived]:
    """The computed weights of a model, in registration order.

    Example:
        >>> layer = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
        >>> [(weight.kind, weight.name) for weight in derived(nn.Sequential(layer, nn.ReLU()))]
        [('WeightNorm', 'weight')]
    """
    found: list[Derived | None] = []
    for module in model.modules():
        lists = getattr(module, "parametrizations", None)
        if isinstance(lists, nn.ModuleDict) and parametrize.is_parametrized(module):
            weights = [Derived(module, n, rule, _originals(rule)) for n, rule in lists.items()]
            # A computed buffer would go with the class of its module: leave such a module alone.
            found += weights if all(weight.originals for weight in weights) else []
        found += [_of_hook(module, hook) for hook in module._forward_pre_hooks.values()]
    return [weight for weight in found if weight is not None]


def _originals(rule: nn.Module) -> tuple[nn.Parameter, ...]:
    """The parameters behind a list of parametrizations, () if they are not all parameters."""
    assert isinstance(rule, parametrize.ParametrizationList)
    names = ["original"] if rule.is_tensor else [f"original{i}" for i in range(rule.ntensors)]
    found = [getattr(rule, name, None) for name in names]
    good = [tensor for tensor in found if isinstance(tensor, nn.Parameter) and not is_lazy(tensor)]
    return tuple(good) if len(good) == len(found) else ()


def _of_hook(module: nn.Module, hook: Any) -> Derived | None:
    ends = ("_g", "_v") if isinstance(hook, WeightNorm) else ("_orig",)
    if isinstance(hook, prune.BasePruningMethod):
        name = str(hook._tensor_name)
    elif isinstance(hook, (WeightNorm, SpectralNorm)):
        name = hook.name
    else:
        return None
    found = [module._parameters.get(name + end) for end in ends]
    parameters = tuple(parameter for parameter in found if parameter is not None)
    return Derived(module, name, hook, parameters) if len(parameters) == len(ends) else None


def _settle(rules: list[Any], originals: tuple[Tensor, ...]) -> None:
    """Estimate the vectors of spectral_norm for the weight as it is now."""
    values = originals
    for rule in rules:
        if isinstance(rule, parametrizations._SpectralNorm) and values[0].ndim > 1:
            _start(rule._u)
            _start(rule._v)
            rule._power_method(rule._reshape_weight_to_matrix(values[0]), _ITERATIONS)
        training, rule.training = rule.training, False
        values = (rule(*values),)
        rule.training = training


def _settle_hook(module: nn.Module, hook: SpectralNorm) -> None:
    patient = copy.copy(hook)
    patient.n_power_iterations = _ITERATIONS
    for end in ("_u", "_v"):
        _start(module.get_buffer(hook.name + end))
    patient.compute_weight(module, do_power_iteration=True)


def _start(vector: Tensor) -> None:
    """One and the same start for every process: torch's own is random."""
    vector.copy_(1 + torch.arange(vector.numel(), device=vector.device) % 7)
    vector.div_(torch.linalg.vector_norm(vector))


@contextmanager
def _seeded(generator: torch.Generator) -> Iterator[None]:
    """A right_inverse may draw; it does so from our seed, and the global state stays."""
    restore = keep_rng()
    seed = int(torch.randint(2**31, (1,), generator=generator))
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
    try:
        yield
    finally:
        restore()


def without_grad(undo: Sequence[Undo | None]) -> list[Undo]:
    """Ways to put values back that may run outside of `no_grad`."""
    return [torch.no_grad()(restore) for restore in undo if restore is not None]
