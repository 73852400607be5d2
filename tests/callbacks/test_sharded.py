"""Weights that several processes hold together: the same as on one device, to the last bit.

Each test starts two processes once and runs its scenes in them, one after the other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_init import InitCallback, InitSpec, initialize_, make_plan
from lightning_init.architecture.sharded import local, whole
from lightning_init.strategies.apply import fingerprint
from lightning_init.strategies.needs import UnsuitableError
from lightning_init.strategies.registry import entries
from tests.callbacks import nets
from tests.callbacks.nets import Digits
from tests.callbacks.together import (
    FSDP1,
    Late,
    Sharded,
    ShardedOnMeta,
    Start,
    fsdp2,
    full_weights,
    net,
    together,
)
from tests.zoo import ZOO

WAYS: dict[str, tuple[Callable[[], Any], type[Digits]]] = {
    "ddp": (lambda: "ddp", Late),
    "fsdp (FSDP1)": (FSDP1, Late),
    "model parallel (FSDP2)": (fsdp2, Sharded),
    "model parallel (FSDP2, meta)": (fsdp2, ShardedOnMeta),
}
STRATEGIES = ("orthogonal", "auto", "torch_default")
MODELS = ("relu_mlp", "residual_cnn", "lstm", "layer_scale", "encoder")
NEEDS_DATA = {"batch", "loss", "donor"}


class Sine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(2, 9), nn.Linear(9, 5), nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.sin(30 * self.second(torch.sin(30 * self.first(x)))))


def built(name: str) -> tuple[nn.Module, Callable[[], object]]:
    if name != "sine":
        return ZOO[name]()
    torch.manual_seed(0)
    model = Sine()
    return model, lambda: model(torch.linspace(-1, 1, 8).view(4, 2))


def every_strategy(folder: Path) -> None:
    """Each data-free scheme draws the same into parts as into wholes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh, served = init_device_mesh("cpu", (2,)), {}
    names = [each.name for each in entries() if not NEEDS_DATA & set(each.needs)]
    for strategy in names:
        for name in (*MODELS, "sine"):
            one, forward = built(name)
            try:
                plan = make_plan(one, strategy, forward=forward)
            except UnsuitableError:
                continue
            if len(served.setdefault(strategy, [])) == 2:
                break
            initialize_(one, strategy, seed=3, forward=forward)
            two, other = built(name)
            for child in two.children():
                if not isinstance(child, nn.ModuleList):
                    fully_shard(child, mesh=mesh)
            fully_shard(two, mesh=mesh)
            found = initialize_(two, strategy, seed=3, forward=other)
            assert fingerprint(two) == fingerprint(one), (strategy, name, plan.diff(found))
            served[strategy].append(name)
    (folder / "served.json").write_text(json.dumps([names, served]))


def parts_and_wholes(folder: Path) -> None:
    """Uneven parts and empty ones, a wide orthogonal matrix, padding, half precision."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_module, distribute_tensor

    rank, mesh = torch.distributed.get_rank(), init_device_mesh("cpu", (2,))

    def model() -> nn.ModuleDict:
        torch.manual_seed(0)
        layers = {"wide": nn.Linear(9, 5), "one": nn.Linear(4, 1), "table": nn.Embedding(7, 3, 2)}
        return nn.ModuleDict(layers)

    for dim, dtype in ((0, torch.float32), (1, torch.float32), (0, torch.bfloat16)):

        def spread(_: str, module: nn.Module, mesh: Any, dim: int = dim) -> None:
            for name, p in list(module.named_parameters(recurse=False)):
                place = Shard(dim) if p.ndim > dim else Replicate()
                module.register_parameter(name, nn.Parameter(distribute_tensor(p, mesh, [place])))

        parts = distribute_module(model().to(dtype), mesh, spread)
        wholes = model().to(dtype)
        for each in (parts, wholes):
            initialize_(each, "orthogonal", seed=1, scope="all")
            initialize_(each, "normal", seed=1, scope=["table.weight"])
        for p, q in zip(parts.parameters(), wholes.parameters(), strict=True):
            assert torch.equal(whole(p), q)
        if dim == 0:
            assert tuple(local(parts.wide.weight).shape) == ((3, 9), (2, 9))[rank]
            assert local(parts.one.weight).numel() == (4, 0)[rank]
        full = whole(parts.wide.weight).float()
        assert torch.allclose(
            full @ full.T, torch.eye(5), atol=1e-2 if dtype != torch.float32 else 1e-5
        )
        assert not bool(whole(parts.table.weight)[2].any())


def fits(folder: Path) -> None:
    """Whole fits, each with and without anybody who watches."""
    rank = torch.distributed.get_rank()
    told: dict[str, Any] = {}
    # Every second sample: together the batches of both are one batch of 64.
    data = nets.digits()
    sampler = torch.utils.data.DistributedSampler(data, shuffle=False)
    loader = torch.utils.data.DataLoader(data, batch_size=32, sampler=sampler)
    for label, (strategy, module) in WAYS.items():
        for name in STRATEGIES:
            watched, quiet, start = module(), module(), Start()
            file = folder / f"{label}-{name}.safetensors"
            callback = InitCallback(name, seed=3, save_init=str(file), verbose=False)
            given = {"devices": 2, "max_steps": 3, "default_root_dir": folder / f"{label}-{name}"}
            run = nets.fit(watched, callback, start, strategy=strategy(), loader=loader, **given)
            torch.save(start.weights, folder / f"{label}-{name}-{rank}.pt")
            told[f"{label}-{name}"] = callback.fingerprint
            if name == "auto":
                report = callback.report
                readings = [
                    [[w.grad_rms, w.update, w.std] for w in s.weights]
                    for s in report.readings.steps
                ]
                told[label] = [readings, len(report.layers), list(report.blind)]
                end = full_weights(run)
                still = InitCallback(name, seed=3, monitor_steps=0, loss_steps=0, verbose=False)
                run = nets.fit(quiet, still, strategy=strategy(), loader=loader, **given)
                assert nets.same(full_weights(run), end), label
                assert quiet.seen == watched.seen
    (folder / f"told{rank}.json").write_text(json.dumps(told))


@pytest.mark.slow
@pytest.mark.case(18, 22, 23, 24, 25, 54)
def test_one_fingerprint_however_many_processes(tmp_path: Path, ran: Any) -> None:
    together(tmp_path, every_strategy, parts_and_wholes, fits)
    names, served = json.loads((tmp_path / "every_strategy/served.json").read_text())
    unserved = set(names) - {name for name, models in served.items() if models}
    # Masks are parametrizations; priors come from labels, which a test below has.
    assert unserved == {"sparse_aware", "prior_head"}
    folder = tmp_path / "fits"
    told = [json.loads((folder / f"told{rank}.json").read_text()) for rank in (0, 1)]
    for name in STRATEGIES:
        callback, start = InitCallback(name, seed=3, verbose=False), nets.AtStart()
        nets.fit(Late(), callback, start, loader=nets.ordered(64), max_steps=3)
        for label in WAYS:
            for rank in (0, 1):
                assert told[rank][f"{label}-{name}"] == callback.fingerprint, (label, name)
                assert nets.same(torch.load(folder / f"{label}-{name}-{rank}.pt"), start.weights)
            data = json.loads((folder / f"{label}-{name}/init.json").read_text())
            assert data["fingerprint"] == callback.fingerprint
            assert nets.same(
                load_file(folder / f"{label}-{name}.safetensors"),
                dict(sorted(start.weights.items())),
            )
        if name == "auto":
            assert callback.report is not None
            expected = [
                [(w.grad_rms, w.update, w.std) for w in s.weights]
                for s in callback.report.readings.steps
            ]
    for label in WAYS:
        ran(label)
        (readings, layers, blind), (others, *_) = told[0][label], told[1][label]
        assert layers == 4
        if "FSDP1" in label:
            assert blind == ["weights and their gradients: FSDP1 has cut them up; outputs are read"]
            assert not any(readings)
        elif "FSDP2" in label:  # numbers of the whole, which a batch of both processes' samples has
            assert str(readings) == str(others)
            assert not blind
            for step, wanted in zip(readings, expected, strict=True):
                for mine, one in zip(step, wanted, strict=True):
                    for found, number in zip(mine, one, strict=True):
                        assert math.isnan(found) == math.isnan(number)
                        assert math.isnan(found) or found == pytest.approx(
                            number, rel=2e-3, abs=1e-7
                        )


class Split(nets.Stream):
    """Each process meets samples of its own."""

    def __iter__(self) -> Any:
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        samples = list(nets.digits())
        own = [(x, y) for x, y in samples if int(y) % 2 == rank and int(y) < 8 - rank]
        yield from own


def streams(folder: Path) -> None:
    """What the first batch alone can tell, one process decides."""
    rank = torch.distributed.get_rank()
    for label in ("ddp", "model parallel (FSDP2)", "model parallel (FSDP2, meta)"):
        strategy, module = WAYS[label]
        start = Start()
        stream = torch.utils.data.DataLoader(Split(), 32)
        given = {"devices": 2, "max_steps": 2, "default_root_dir": folder, "strategy": strategy()}
        callback = InitCallback("prior_head", seed=3, verbose=False)
        nets.fit(module(), callback, start, loader=stream, **given)
        torch.save(start.weights, folder / f"{label}-{rank}.pt")


class Own(torch.utils.data.Dataset[Any]):
    """Each process has labels of its own, and scales of its own."""

    def __init__(self, rank: int | None = None) -> None:
        self.rank = torch.distributed.get_rank() if rank is None else rank
        self.data = [(x * (1 + self.rank), y) for x, y in nets.digits() if int(y) % 2 == self.rank][
            :128
        ]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        return self.data[index]


CALIBRATED = (
    ("fsdp (FSDP1)", "lsuv"),
    ("fsdp (FSDP1)", "prior_head"),
    ("model parallel (FSDP2)", "prior_head"),
    ("model parallel (FSDP2, meta)", "prior_head"),
)


def looked(folder: Path) -> None:
    """What each process sees before training differs; the first one's counts for all."""
    for label, name in CALIBRATED:
        strategy, module = WAYS[label]
        start = Start()
        loader = torch.utils.data.DataLoader(Own(), 32)
        given = {"devices": 2, "max_steps": 1, "default_root_dir": folder, "strategy": strategy()}
        callback = InitCallback(name, seed=3, verbose=False)
        nets.fit(module(), callback, start, loader=loader, **given)
        torch.save(start.weights, folder / f"{label}-{name}-{torch.distributed.get_rank()}.pt")


@pytest.mark.slow
@pytest.mark.case(21, 22, 23)
def test_of_other_batches_before_training_the_first_processs_counts(tmp_path: Path) -> None:
    together(tmp_path, looked)
    for label, name in CALIBRATED:
        start = nets.AtStart()
        loader = torch.utils.data.DataLoader(Own(0), 32)
        callback = InitCallback(name, seed=3, verbose=False)
        nets.fit(Late(), callback, start, loader=loader, max_steps=1)
        for rank in (0, 1):
            weights = torch.load(tmp_path / "looked" / f"{label}-{name}-{rank}.pt")
            assert nets.same(weights, start.weights), (label, name, rank)


def resumed(folder: Path) -> None:
    """A checkpoint wins over what has been drawn into parts, real or on meta.

    Of FSDP1 on a CPU there is none: PyTorch crashes as it saves one, without us, too.
    """
    given = {"devices": 2, "default_root_dir": folder, "enable_checkpointing": True}
    for label in ("model parallel (FSDP2)", "model parallel (FSDP2, meta)"):
        strategy, module = WAYS[label]
        own = folder / label
        saves = ModelCheckpoint(own, save_last=True, every_n_train_steps=1)
        run = nets.fit(
            module(),
            InitCallback("orthogonal", seed=3, verbose=False),
            saves,
            strategy=strategy(),
            max_steps=3,
            **given,
        )
        end, start = full_weights(run), Start()
        callback = InitCallback("orthogonal", seed=4, verbose=False)
        again = nets.trainer(callback, start, strategy=strategy(), max_steps=5, **given)
        again.fit(module(), nets.ordered(), ckpt_path=saves.last_model_path)
        assert again.global_step == 5
        assert nets.same(start.weights, end), label
        assert callback.report is None


class Sick(Sharded):
    """Vanishes at the start, until it is drawn otherwise."""

    def configure_model(self) -> None:
        from torch.distributed.fsdp import fully_shard

        if not hasattr(self, "net"):
            self.net = nets.sick(12)
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])


def rescued(folder: Path) -> None:
    """Parts are put back as they were built, and drawn anew."""
    start = Start()
    callback = InitCallback(
        InitSpec("normal", {"std": 0.001}), seed=3, on_unhealthy="rescue", ladder=["orthogonal"]
    )
    given = {"devices": 2, "max_steps": 2, "default_root_dir": folder, "strategy": fsdp2()}
    nets.fit(Sick(), callback, start, **given)
    assert callback.report is not None
    assert str(callback.report.attempts[-1]) == "orthogonal: healthy (kept)"
    torch.save(start.weights, folder / "start.pt")


def refused(folder: Path) -> None:
    """What parts do not allow is said before anything has been changed."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    module = Sharded()
    with pytest.raises(
        UnsuitableError, match=r"cannot calibrate net\.0\.weight and 9 more on data"
    ):
        nets.fit(
            module,
            InitCallback("lsuv", seed=3),
            strategy=fsdp2(),
            devices=2,
            max_steps=2,
            default_root_dir=folder,
        )
    assert not {"setup", "configure_model", "log"} & set(vars(module))

    for strategy in ("lsuv", "channel_norm", "metainit", "gradinit"):
        made = net()
        fully_shard(made, mesh=init_device_mesh("cpu", (2,)))
        before, x = fingerprint(made), torch.rand(8, 64)
        with pytest.raises(UnsuitableError, match="sharded over several processes"):
            initialize_(made, strategy, forward=lambda made=made, x=x: made(x).square().mean())
        assert fingerprint(made) == before
    made = nn.Sequential(nn.Linear(4, 4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    fully_shard(made[0], mesh=init_device_mesh("cpu", (2,)))
    with pytest.raises(ValueError, match=r"1\.weight computed by a parametrization"):
        initialize_(made, "orthogonal")


@pytest.mark.slow
@pytest.mark.case(21, 23)
def test_sharded_models_resume_wait_and_refuse(tmp_path: Path, ran: Any) -> None:
    together(tmp_path, streams, resumed, rescued, refused)
    start = nets.AtStart()
    nets.fit(Digits(nets.sick(12)), InitCallback("orthogonal", seed=3), start, max_steps=1)
    assert nets.same(torch.load(tmp_path / "rescued/start.pt"), start.weights)
    start = nets.AtStart()
    stream = torch.utils.data.DataLoader(Split(), 32)
    nets.fit(Late(), InitCallback("prior_head", seed=3), start, loader=stream, max_steps=2)
    assert float(start.weights["net.6.bias"].std()) > 0.1
    for file in sorted((tmp_path / "streams").glob("*.pt")):
        assert nets.same(torch.load(file), start.weights), file.name
    assert len(list((tmp_path / "streams").glob("*.pt"))) == 6
    ran("ddp")
