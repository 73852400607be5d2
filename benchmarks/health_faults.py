"""Faults, planted in models that are healthy without them: what changes, and what is to blame.

A fault changes the model before the first step, its data, its optimizer or its loss. `causes` are
the names of causes that count as right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.health_grid import adamw, batches, sgd
from benchmarks.health_hosts import HOSTS
from benchmarks.health_runs import Batch, Run
from benchmarks.models import Classifier, LanguageModel, Regressor, text

STEPS, SEEDS = 150, (0, 1)
Plant = Callable[[nn.Module], None]


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        name: As in the table.
        causes: Names of causes of which one is right.
        plant: Changes the model, None if that is not where it is.
        feed: Step and batch -> batch.
        faster: Factor on the learning rate.
        plain: Whether model and clean twin train with SGD.
        hosts: Where it can be planted; all by default.
    """

    name: str
    causes: tuple[str, ...]
    plant: Plant | None = None
    feed: Callable[[int, Batch], Batch] | None = None
    faster: float = 1.0
    plain: bool = False
    hosts: Callable[[str], bool] = lambda _: True


def matrices(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in model.named_parameters() if p.ndim > 1)


def each(change: Callable[[Tensor], object]) -> Plant:
    """Every weight matrix and kernel."""

    def plant(model: nn.Module) -> None:
        with torch.no_grad():
            for _, parameter in matrices(model):
                change(parameter)

    return plant


def _sqrt_forgotten(weight: Tensor) -> object:
    return weight.normal_(0, 2 / (weight.numel() / len(weight)))


def _wrong_fan(weight: Tensor) -> object:
    """Kernels without their area, matrices of the other side's width."""
    fan = weight.shape[1] if weight.ndim > 2 else len(weight)
    return weight.normal_(0, (2 / fan) ** 0.5)


def _unscaled_residuals(model: nn.Module) -> None:
    """Branches drawn as if there were no sum: every matrix keeps the variance of what it takes."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _one_layer(factor: float) -> Plant:
    def plant(model: nn.Module) -> None:
        found = list(matrices(model))
        with torch.no_grad():
            found[len(found) // 2][1].mul_(factor)

    return plant


def _head(factor: float) -> Plant:
    def plant(model: nn.Module) -> None:
        last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
        with torch.no_grad():
            last.weight.mul_(factor)

    return plant


def _dead_bias(model: nn.Module) -> None:
    """A bias of -10 before the first ReLU."""
    with torch.no_grad():
        first = next(m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d))
        first.bias.fill_(-10.0 if isinstance(first, nn.Linear) else -30.0)


def _norms(value: float) -> Plant:
    def plant(model: nn.Module) -> None:
        with torch.no_grad():
            for module in model.modules():
                if "Norm" in type(module).__name__ and getattr(module, "weight", None) is not None:
                    module.weight.fill_(value)

    return plant


def _before_loss(extra: Callable[[], nn.Module]) -> Plant:
    def plant(model: nn.Module) -> None:
        assert isinstance(model, Classifier | LanguageModel | Regressor)
        model.net = nn.Sequential(model.net, extra())

    return plant


def _frozen(model: nn.Module) -> None:
    """All but the last matrix and its bias."""
    last = list(matrices(model))[-1][0].rpartition(".")[0]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(last))


class Detach(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


def _detached(model: nn.Module) -> None:
    """A `detach` before the last layer."""
    for parent in model.modules():
        if isinstance(parent, nn.Sequential) and isinstance(parent[-1], nn.Linear):
            parent[-1] = nn.Sequential(Detach(), parent[-1])
            return


def _nan(step: int, batch: Batch) -> Batch:
    if step != 7:
        return batch
    x = batch[0].clone()
    x[0, 3] = float("nan")
    return (x, *batch[1:])


_RESIDUAL = ("residual mlp, 16", "resnet, no norm")
_RELU = ("relu mlp, 3", "relu mlp, 12", "hourglass mlp", "regression mlp", "plain cnn", "resnet, no norm")  # fmt: skip
_NORMED = ("gelu mlp, norm", "cnn, batch norm", "resnet", "encoder, pre-norm", "encoder, post-norm", "char gpt", "GPT-2", "Llama")  # fmt: skip


def _has_floats(host: str) -> bool:
    return HOSTS[host][1] is not text


def _classifies(host: str) -> bool:
    return host != "regression mlp"


_SCALE = ("init scale",)
FAULTS = (
    Fault("weights x 10", _SCALE, each(lambda w: w.mul_(10))),
    Fault("weights x 100", _SCALE, each(lambda w: w.mul_(100))),
    Fault("weights / 10", _SCALE, each(lambda w: w.div_(10))),
    Fault("weights constant", ("symmetry", "init scale"), each(lambda w: w.fill_(0.05))),
    Fault("weights zero", ("symmetry", "init scale"), each(lambda w: w.zero_())),
    Fault("weights N(0, 1)", _SCALE, each(lambda w: w.normal_())),
    Fault("wrong fan", _SCALE, each(_wrong_fan)),
    Fault("square root forgotten", _SCALE, each(_sqrt_forgotten)),
    Fault(
        *("residuals not scaled", ("init scale", "depth", "architecture", "normalization")),
        *(_unscaled_residuals,),
        hosts=lambda host: host in _RESIDUAL,
    ),
    Fault("a layer x 100", _SCALE, _one_layer(100)),
    Fault("a layer / 1000", _SCALE, _one_layer(1e-3)),
    Fault("output layer x 100", ("init scale", "output layer"), _head(100)),
    Fault(
        *("norm scales 0.01", ("normalization",), _norms(0.01)),
        hosts=lambda host: host in _NORMED,
    ),
    Fault(
        *("inputs x 100 + 50", ("data scale",)),
        feed=lambda _, batch: (batch[0] * 100 + 50, *batch[1:]),
        hosts=_has_floats,
    ),
    Fault(
        *("inputs 0 to 255", ("data scale",)),
        feed=lambda _, batch: ((batch[0] + 2).clamp(0, 4) / 4 * 255, *batch[1:]),
        hosts=_has_floats,
    ),
    Fault("learning rate x 100, AdamW", ("learning rate",), faster=100),
    Fault("learning rate x 100, SGD", ("learning rate",), faster=100, plain=True),
    Fault("dead ReLU by bias", ("bias",), _dead_bias, hosts=lambda host: host in _RELU),
    Fault(
        *("softmax before the loss", ("loss function", "output layer")),
        *(_before_loss(lambda: nn.Softmax(-1)),),
        hosts=_classifies,
    ),
    Fault(
        *("sigmoid before the loss", ("loss function", "output layer")),
        *(_before_loss(nn.Sigmoid),),
        hosts=_classifies,
    ),
    Fault(
        *("ReLU before the loss", ("output layer", "activation", "loss function")),
        *(_before_loss(nn.ReLU),),
    ),
    Fault("all but the last layer frozen", ("frozen weights",), _frozen),
    Fault(
        *("detached before the last layer", ("frozen weights", "architecture")),
        *(_detached,),
        hosts=lambda host: "mlp" in host or "net" in host or "cnn" in host,
    ),
    Fault("NaN in one batch", ("data",), feed=_nan, hosts=_has_floats),
)


def runs(
    hosts: Iterable[str] = HOSTS, faults: Iterable[Fault] = FAULTS
) -> Iterator[tuple[str, Fault | None, bool, Run]]:
    """Host, fault or None for the clean twin, whether by SGD, the run."""
    for host in hosts:
        mine = [fault for fault in faults if fault.hosts(host)]
        for fault in (None, *mine):
            plain = (False, True) if fault is None else (fault.plain,)
            for is_plain in plain:
                for seed in SEEDS:
                    yield host, fault, is_plain, _run(host, fault, is_plain, seed)


def _run(host: str, fault: Fault | None, plain: bool, seed: int) -> Run:
    build, data, lr = HOSTS[host]
    healthy = batches(data(), 64, seed)

    def batch(step: int) -> Batch:
        given = healthy(step)
        return given if fault is None or fault.feed is None else fault.feed(step, given)

    def drawn() -> nn.Module:
        from lightning_init import initialize_

        model = build()
        first = healthy(0)
        initialize_(model, "auto", seed=seed, forward=lambda: model(*first))
        return model

    faster = 1.0 if fault is None else fault.faster
    name = "clean" if fault is None else fault.name
    return Run(
        f"fault {host}, {name}, {'sgd' if plain else 'adamw'}, seed {seed}",
        host,
        drawn,
        batch,
        sgd(10 * lr * faster) if plain else adamw(lr * faster),
        STEPS,
        plant=None if fault is None else fault.plant,
        seed=seed,
    )
