"""What a user reads: the fix that is named mends the model, and the words are right."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_init import InitCallback, audit
from lightning_init.callbacks.actions import UnhealthyWarning
from lightning_init.health.heatmaps import distribution
from lightning_init.health.report import Report
from tests.health import made

X = torch.randn(128, 32, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 10, (128,), generator=torch.Generator().manual_seed(1))


def mlp(depth: int, activation: type[nn.Module], width: int = 64) -> nn.Sequential:
    torch.manual_seed(0)
    widths = [32, *[width] * (depth - 1), 10]
    layers = [
        layer
        for wide, next_wide in pairwise(widths)
        for layer in (nn.Linear(wide, next_wide), activation())
    ]
    return nn.Sequential(*layers[:-1])


def looked(model: nn.Module, x: Tensor = X) -> Report:
    return audit(model, lambda: nn.functional.cross_entropy(model(x), Y))


class Module(pl.LightningModule):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def started(net: nn.Module, callback: InitCallback) -> Report:
    """What the callback says of the first batch."""
    trainer = pl.Trainer(
        max_steps=1, callbacks=[callback], accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Module(net), DataLoader(TensorDataset(X, Y), batch_size=128))
    assert callback.report is not None
    return callback.report


def normal(net: nn.Module) -> nn.Module:
    for tensor in net.parameters():
        if tensor.ndim > 1:
            nn.init.normal_(tensor)
    return net


def constant(net: nn.Module) -> nn.Module:
    for tensor in net.parameters():
        if tensor.ndim > 1:
            nn.init.constant_(tensor, 0.1)
    return net


@pytest.mark.parametrize("spoil", [normal, constant])
def test_the_first_init_that_a_fix_names_draws_over_what_the_model_made_itself(
    spoil: Callable[[nn.Module], nn.Module],
) -> None:
    """`auto` keeps such weights: to name it would be no help."""
    with pytest.warns(UnhealthyWarning):
        report = started(spoil(mlp(8, nn.ReLU)), InitCallback("auto", verbose=True))
    (error,) = report.errors
    first = error.remedy.partition("; 2. ")[0]
    named = re.findall(r'InitCallback\("(\w+)"', first)
    assert named
    assert "auto" not in named
    for name in named:
        assert not started(spoil(mlp(8, nn.ReLU)), InitCallback(name, verbose=False)).errors


def test_of_many_biases_that_are_off_all_are_named() -> None:
    net = mlp(6, nn.ReLU)
    for layer in list(net)[2:-1:2]:
        nn.init.constant_(layer.bias, -20.0)
    (error,) = looked(net).errors
    assert "(and 3 more tensors) have mean -20" in error.likely_cause
    (fix,) = re.findall(r'overrides={"([^"]*)": "zeros"}', error.remedy)
    mended = InitCallback("keep", overrides={fix: "zeros"}, verbose=False)
    assert not started(net, mended).errors


def test_samples_that_collapse_on_the_way_down_are_no_second_finding() -> None:
    (root,) = looked(mlp(30, nn.Tanh)).findings
    assert root.detector == "backward_growth"
    assert [one.detector for one in root.consequences] == ["collapsed_samples"]


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (0.0, "weights too small for tanh"),
        (0.2, "weights too small for tanh, or too large: up to 20% of its outputs are where it is"),
        (0.8, "weights too large for tanh: up to 80% of its outputs are where it is flat"),
    ],
)
def test_what_saturates_is_said_where_something_does(share: float, said: str) -> None:
    chain = [
        made.layer(
            f"fc{i}",
            group="all",
            grad_norm=10.0 ** (i - 9),
            after=made.after("tanh", saturated=share),
        )
        for i in range(10)
    ]
    finding = made.only("backward_growth", made.at(made.step(layers=chain)))
    assert finding is not None
    assert said in finding.likely_cause
    assert share or "%" not in finding.likely_cause


def test_data_with_nan_are_said_to_be_that() -> None:
    x = X.clone()
    x[3, 3] = torch.nan
    text = str(looked(mlp(3, nn.ReLU), x))
    assert "input of 0: holds NaN or infinity\n" in text


def test_data_that_are_not_normalized_have_one_pair_of_brackets() -> None:
    report = looked(mlp(3, nn.ReLU), X * 80 + 500)
    assert re.search(
        r"\(mean \d+, std [\d.]+\): rms 5\d\d \(limit 10\); the first", str(report.worst)
    )


class Recomputed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(32, 16), nn.Linear(16, 10)
        self.inner = nn.Sequential(nn.Linear(16, 16), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.last(checkpoint(self.inner, self.first(x), use_reentrant=True))


def test_what_reentrant_checkpoints_hide_is_said() -> None:
    report = looked(Recomputed())
    assert len(report.layers) == 3
    assert any("use_reentrant=True" in line for line in report.blind)
    assert "use_reentrant=False" in " ".join(str(report).split())
    callback = InitCallback("keep", verbose=False)
    assert any("use_reentrant=True" in line for line in started(Recomputed(), callback).blind)


@pytest.mark.parametrize("name", ["report.txt", "report", "report.yaml"])
def test_a_report_is_not_written_as_what_its_name_does_not_say(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"must end in \.json or \.html"):
        looked(mlp(3, nn.ReLU)).save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_healthy_relu_does_not_look_dead_on_the_page() -> None:
    """Half of its outputs are 0; the other half must be seen. Dead units are one dark line."""
    healthy, dead = mlp(4, nn.ReLU), mlp(4, nn.ReLU)
    for layer in list(dead)[:-1:2]:
        nn.init.constant_(layer.bias, -20.0)
    counts = []
    for net in (healthy, dead):
        figure = distribution(looked(net))
        assert figure is not None
        columns = list(zip(*figure["data"][1]["z"], strict=True))  # after the nonlinearity
        assert all(max(column) == 1 for column in columns)
        counts.append([sum(value > 0.15 for value in column) for column in columns])
    assert min(counts[0]) >= 4
    assert max(counts[1]) <= 2
