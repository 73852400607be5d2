"""Schemes that need more than a seed, in a real Trainer."""

import json
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_init import (
    InitCallback,
    InitSpec,
    add_branch_scales_,
    make_plan,
    param_groups,
    remove_norms_,
)
from lightning_init.strategies.needs import UnsuitableError
from tests.callbacks.nets import Digits, Stream, digits, fit, mlp, ordered


class Block(nn.Module):
    def __init__(self, width: int, norm: bool) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.down(torch.relu(self.up(x))))


def residual(norm: bool = False) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(64, 32), *[Block(32, norm) for _ in range(3)], nn.ReLU(), nn.Linear(32, 10)
    )


def loader(stream: bool) -> DataLoader[tuple[Tensor, Tensor]]:
    return DataLoader(Stream() if stream else digits(), batch_size=32)


@pytest.mark.parametrize("stream", [False, True])
def test_a_scheme_that_cannot_serve_stops_the_run_before_anything_is_changed(stream: bool) -> None:
    module = Digits(mlp())
    before = [p.detach().clone() for p in module.parameters()]
    with pytest.raises(UnsuitableError, match="fixup needs residual branches") as raised:
        fit(module, InitCallback("fixup"), loader=loader(stream))
    assert raised.value.nearest in str(raised.value)
    assert all(torch.equal(p, b) for p, b in zip(module.parameters(), before, strict=True))
    assert module.seen == []


@pytest.mark.parametrize("stream", [False, True])
def test_a_scheme_that_needs_to_see_the_model_waits_for_a_batch(stream: bool) -> None:
    module = Digits(residual(), lr=0.0)
    callback = InitCallback("zero_gamma", seed=0)
    fit(module, callback, loader=loader(stream), max_steps=1)
    assert callback.plan is not None
    assert callback.plan.traced
    assert all(float(block.down.weight.detach().abs().max()) == 0 for block in module.net[1:4])
    assert float(module.net[0].weight.detach().std()) > 0.05


class Fixup(pl.LightningModule):
    """Built as the paper has it: no norms, scalars in the branches, small steps for these."""

    def __init__(self) -> None:
        super().__init__()
        self.net = residual(norm=True)
        remove_norms_(self.net)
        add_branch_scales_(self.net, "fixup", forward=lambda: self.net(torch.zeros(2, 64)))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(param_groups(self, None, lr=0.1), lr=0.1, momentum=0.9)


def test_fixup_with_its_structure_and_its_learning_rates(tmp_path: Path) -> None:
    module, callback = Fixup(), InitCallback("fixup", seed=0)
    trainer = fit(module, callback, max_steps=60)
    assert callback.plan is not None
    assert callback.plan.notes == ()
    rates = sorted({g["lr"] for g in trainer.optimizers[0].param_groups})
    assert rates == [pytest.approx(0.01), pytest.approx(0.1)]
    assert callback.report is not None
    first = callback.report.to_dict()
    assert "2.303" in json.dumps(first), "the zero head starts at ln 10 exactly"
    trainer.save_checkpoint(tmp_path / "fixup.ckpt")
    again = Fixup.load_from_checkpoint(tmp_path / "fixup.ckpt", weights_only=True)
    for (name, one), (_, two) in zip(
        module.named_parameters(), again.named_parameters(), strict=True
    ):
        assert torch.equal(one, two), name
    assert any("branch_scale" in name for name, _ in again.named_parameters())


def test_what_is_missing_is_said_where_the_plan_is_printed(said: list[str]) -> None:
    fit(Digits(residual(norm=True)), InitCallback("fixup", seed=0), max_steps=1)
    text = "\n".join(said)
    assert "remove_norms_(model" in text
    assert "add_branch_scales_(model" in text


def test_what_a_calibration_did_is_printed_and_written(said: list[str]) -> None:
    trainer = fit(Digits(mlp()), InitCallback("lsuv", seed=0), logger=True, max_steps=1)
    lines = [line for text in said for line in text.splitlines() if line.startswith("lsuv:")]
    assert any("->" in line for line in lines)
    assert trainer.log_dir is not None
    data = json.loads((Path(trainer.log_dir) / "init.json").read_text())
    (done,) = data["plan"]["calibrations"]
    assert done["scheme"] == "lsuv"
    assert done["accepted"]
    assert done["after"] < 1e-5 < done["before"]


def test_a_chain_from_a_file(tmp_path: Path) -> None:
    head = {"strategy": "keep", "overrides": {"role:head": "zeros"}}
    InitSpec("chain", {"steps": ["orthogonal", "lsuv", head]}, seed=1).save(tmp_path / "c.yaml")
    module, callback = Digits(mlp(), lr=0.0), InitCallback.from_file(tmp_path / "c.yaml")
    fit(module, callback, max_steps=1)
    assert float(module.net[4].weight.detach().abs().max()) == 0
    x = torch.stack([digits()[i * len(digits()) // 32][0] for i in range(32)])
    with torch.no_grad():
        assert float(module.net[:3](x).std(correction=0)) == pytest.approx(1, abs=1e-4)


def test_the_prior_of_uneven_labels() -> None:
    class Two(Digits):
        def loss(self, batch: list[Tensor]) -> Tensor:
            x, y = batch
            return nn.functional.cross_entropy(self.net(x), (y == 0).long())

    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2))
    module = Two(net, lr=0.0)
    callback = InitCallback("prior_head", seed=0)
    fit(module, callback, loader=ordered(64), max_steps=1)
    rows = [digits()[i * len(digits()) // 64][1] for i in range(64)]
    ones = sum(int(y == 0) for y in rows)
    bias = net[2].bias.detach()
    wanted = torch.tensor([(64 - ones) / ones]).log()
    assert float(bias[0] - bias[1]) == pytest.approx(float(wanted), rel=0.2)


def test_a_warm_start_and_a_new_head(tmp_path: Path) -> None:
    donor = Digits(mlp())
    trainer = fit(donor, InitCallback("kaiming_normal", seed=0), max_steps=30)
    trainer.save_checkpoint(tmp_path / "donor.ckpt")
    module = Digits(
        nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 7)),
        lr=0.0,
    )
    spec = InitSpec("warm_start", {"path": str(tmp_path / "donor.ckpt")}, seed=3)

    plan = make_plan(module, spec, forward=lambda: module.net(torch.ones(2, 64)))
    assert torch.equal(
        torch.as_tensor(plan["net.0.weight"].sample((32, 64), torch.Generator())),
        donor.net[0].weight.detach(),
    )
    assert any("donor.ckpt" in note for note in plan.notes)
