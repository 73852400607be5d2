"""An audit finds planted faults, is calm about healthy nets, and leaves no trace."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lightning_init import apply_, audit, initialize_, make_plan
from lightning_init.health.report import Report

_X, _Y = load_digits(return_X_y=True)
X = torch.tensor(_X[:128], dtype=torch.float32) / 16
X = (X - X.mean()) / X.std()
Y = torch.tensor(_Y[:128])
IDS = torch.randint(0, 50, (8, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def mlp(activation: type[nn.Module] = nn.ReLU, depth: int = 5) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(64, 48), activation()]
    for _ in range(depth):
        layers += [nn.Linear(48, 48), activation()]
    return nn.Sequential(*layers, nn.Linear(48, 10))


def loss_of(model: nn.Module, x: Tensor = X) -> Callable[[], Tensor]:
    return lambda: F.cross_entropy(model(x), Y)


def errors(report: Report) -> list[tuple[str, str]]:
    return [(finding.detector, finding.where) for finding in report.errors]


# planted faults


def test_weights_ten_times_too_large() -> None:
    model = mlp()
    initialize_(model, "kaiming_normal", seed=0)
    assert audit(model, loss_of(model)).errors == ()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10)
    report = audit(model, loss_of(model))
    assert errors(report) == [("forward_growth", "0")]
    followed = {finding.detector for finding in report.worst.consequences}
    assert followed == {"backward_growth", "initial_loss"}


def test_one_layer_a_thousand_times_too_small() -> None:
    model = mlp()
    initialize_(model, "kaiming_normal", seed=0)
    with torch.no_grad():
        model[6].weight.mul_(0.001)
    report = audit(model, loss_of(model))
    assert errors(report) == [("peer_scale", "6.weight")]
    (growth,) = [f for f in report.worst.consequences if f.detector == "forward_growth"]
    assert "the output of 6 is x0.00" in growth.message


@pytest.mark.parametrize("place", ["4.weight", "4.bias"])
def test_one_nan(place: str) -> None:
    model = mlp()
    model.get_parameter(place).data.flatten()[3] = torch.nan
    report = audit(model, loss_of(model))
    assert errors(report)[0] == ("non_finite", place)
    assert report.worst.step == 0


def test_a_loss_that_refuses_nan() -> None:
    model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 1), nn.Sigmoid())
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    target = torch.ones(len(X), 1)
    report = audit(model, lambda: F.binary_cross_entropy(model(X), target))
    assert [(one.detector, one.where) for one in report.errors] == [("non_finite", "0.weight")]


def test_a_layer_that_was_overwritten_is_named() -> None:
    model = mlp()
    plan = make_plan(model, "kaiming_normal")
    apply_(model, plan, seed=0)
    assert audit(model, loss_of(model), plan=plan).findings == ()
    nn.init.xavier_uniform_(model[4].weight)
    (finding,) = audit(model, loss_of(model), plan=plan).findings
    assert (finding.detector, finding.severity, finding.where) == (
        "scheme_audit",
        "warning",
        "4.weight",
    )
    nn.init.normal_(model[4].weight, std=0.02)
    (finding,) = audit(model, loss_of(model), plan=plan).errors
    assert (finding.detector, finding.where) == ("scheme_audit", "4.weight")
    assert (
        "drawn with 0.2041 (normal, std 0.2041)".replace("0.2041 (", "0.204 (") in finding.message
    )
    apply_(model, plan, seed=0)
    nn.init.uniform_(model[4].bias, -0.1, 0.1)
    (finding,) = audit(model, loss_of(model), plan=plan).findings
    assert (finding.detector, finding.where) == ("scheme_audit", "4.bias")


def test_a_head_a_hundred_times_too_large() -> None:
    model = mlp()
    initialize_(model, "kaiming_normal", seed=0)
    with torch.no_grad():
        model[-1].weight.mul_(100)
    report = audit(model, loss_of(model))
    assert errors(report) == [("initial_loss", "loss")]
    assert "cross-entropy over 10 classes starts at" in report.worst.message


def test_deep_tanh_with_the_default_init() -> None:
    model = mlp(nn.Tanh, depth=30)
    report = audit(model, loss_of(model))
    assert errors(report) == [("backward_growth", "0")]
    assert "gradients vanish" in report.worst.message
    initialize_(model, "orthogonal", seed=0)
    assert audit(model, loss_of(model)).errors == ()


def test_inputs_that_are_not_normalized() -> None:
    model = mlp()
    initialize_(model, "kaiming_normal", seed=0)
    report = audit(model, loss_of(model, X * 255))
    assert errors(report) == [("input_scale", "0")]
    assert "initial_loss" in {finding.detector for finding in report.worst.consequences}


def test_a_target_among_the_inputs() -> None:
    model = nn.Linear(10, 10)
    nn.init.eye_(model.weight)
    x = 6.0 * F.one_hot(Y, 10)
    report = audit(model, lambda: F.cross_entropy(model(x), Y))
    assert errors(report) == [("initial_loss", "loss")]
    assert "knows before it has learned" in report.worst.message


def test_a_model_that_was_trained_may_know() -> None:
    model = nn.Sequential(nn.Linear(10, 10), nn.BatchNorm1d(10))
    nn.init.eye_(model[0].weight)
    nn.init.constant_(model[1].weight, 4)
    x = 6.0 * F.one_hot(Y, 10)
    assert errors(audit(model, lambda: F.cross_entropy(model(x), Y))) == [("initial_loss", "loss")]
    model(x)  # counts a batch
    assert audit(model, lambda: F.cross_entropy(model(x), Y)).findings == ()


# healthy nets


class Rows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 24, num_layers=2, batch_first=True)
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x.view(-1, 8, 8))[0][:, -1])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(8, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.inside(x.view(-1, 8, 8))).mean(1))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x), inplace=True)


def resnet(blocks: int = 8) -> nn.Sequential:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 12, 3, padding=1),
        nn.Sequential(*[Block(12) for _ in range(blocks)]),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 10),
    )


def cnn() -> nn.Sequential:
    parts: list[nn.Module] = [nn.Unflatten(1, (1, 8, 8))]
    for i, o in ((1, 8), (8, 16), (16, 16), (16, 16)):
        parts += [nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(inplace=True)]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(1024, 10))


class FromConfig(nn.Module):
    """A tiny transformers model and its own loss."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        import transformers

        if kind == "gpt2":
            config = transformers.GPT2Config(
                vocab_size=50, n_positions=16, n_embd=32, n_layer=4, n_head=4, bos_token_id=0,
                eos_token_id=0,
            )  # fmt: skip
            self.model = transformers.GPT2LMHeadModel(config)
        else:
            config = transformers.BertConfig(
                vocab_size=50, hidden_size=32, num_hidden_layers=4, num_attention_heads=4,
                intermediate_size=64, max_position_embeddings=16, num_labels=10,
            )  # fmt: skip
            self.model = transformers.BertForMaskedLM(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(input_ids=x, labels=x.roll(-1, 1)).loss


HEALTHY: dict[str, Callable[[], nn.Module]] = {
    "relu": mlp,
    "tanh": lambda: mlp(nn.Tanh),
    "cnn": cnn,
    "resnet": resnet,
    "lstm": Rows,
    "encoder": Attention,
    "gpt2": lambda: FromConfig("gpt2"),
    "bert": lambda: FromConfig("bert"),
}


@pytest.mark.parametrize("strategy", ["as_built", "auto"])
@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_nets_raise_no_error(name: str, strategy: str) -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        model = HEALTHY[name]()
        text = name in ("gpt2", "bert")
        forward = (lambda m=model: m(IDS)) if text else loss_of(model)
        plan = None
        if strategy == "auto":
            plan = initialize_(model, "auto", seed=seed, forward=forward)
        report = audit(model, forward, plan=plan)
        assert report.errors == ()
        assert len(report.layers) >= 2
        assert all(layer.grad_norm > 0 for layer in report.layers if layer.group)


# no trace


def state_of(model: nn.Module) -> dict[str, Any]:
    modules = dict(model.named_modules())
    return {
        "weights": {k: v.detach().clone() for k, v in model.named_parameters()},
        "versions": {k: v._version for k, v in model.named_parameters()},
        "buffers": {k: v.clone() for k, v in model.named_buffers()},
        "grads": {k: None if v.grad is None else v.grad.clone() for k, v in model.named_parameters()},
        "grad_ids": {k: id(v.grad) for k, v in model.named_parameters()},
        "mode": {k: m.training for k, m in modules.items()},
        "hooks": {k: [len(v) for n, v in vars(m).items() if n.endswith("_hooks")] for k, m in modules.items()},
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),  # noqa: NPY002
        "python": random.getstate(),
    }  # fmt: skip


def same(one: Any, two: Any) -> bool:
    if isinstance(one, (Tensor, np.ndarray)):
        return bool((torch.as_tensor(one) == torch.as_tensor(two)).all())
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[k], two[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(same, one, two))
    return bool(one == two)


@pytest.mark.parametrize("grads", ["with gradients", "without"])
@pytest.mark.parametrize("ends", ["well", "with an error"])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_everything_is_as_it_was(grads: str, ends: str, mode: str) -> None:
    model = nn.Sequential(resnet(2), nn.Dropout(0.2), nn.Linear(10, 10)).train(mode == "train")
    model[0][1].eval()
    model[0][1].register_forward_hook(lambda *_: None)
    if grads == "with gradients":
        loss_of(model)().backward()

    def forward() -> Tensor:
        model.train()
        loss = loss_of(model)() + random.random() + float(np.random.rand())  # noqa: NPY002
        if ends == "with an error":
            raise ArithmeticError
        return loss

    before = state_of(model)
    if ends == "well":
        audit(model, forward)
    else:
        with pytest.raises(ArithmeticError):
            audit(model, forward)
    after = state_of(model)
    assert [key for key in before if not same(before[key], after[key])] == []


def test_an_audit_reads_the_mode_it_finds_and_runs_without_outer_gradients() -> None:
    model = cnn()
    loss = float(loss_of(model)().detach())
    with torch.no_grad():
        report = audit(model, loss_of(model))
    assert report.readings.loss[0] == pytest.approx(loss, rel=1e-6)
    assert report.layers[0].grad_norm > 0
    model.eval()
    assert audit(model, loss_of(model)).readings.loss[0] != pytest.approx(loss, rel=1e-3)


@pytest.mark.parametrize("out", [lambda y: y, lambda y: {"logits": y}, lambda y: None])
def test_what_is_no_loss_is_judged_forward_only(out: Callable[[Tensor], Any]) -> None:
    model = mlp()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10)
    report = audit(model, lambda: out(model(X)))
    assert errors(report) == [("forward_growth", "0")]
    assert report.readings.loss == {}
    assert all(layer.grad_norm != layer.grad_norm for layer in report.layers)


def test_frozen_and_unused_parameters() -> None:
    model = mlp()
    model[0].requires_grad_(False)
    model.unused = nn.Linear(3, 3)
    report = audit(model, lambda: F.cross_entropy(nn.Sequential(*list(model)[:-1])(X), Y))
    assert report.errors == ()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    found = audit(model, loss_of(nn.Sequential(*list(model)[:-1]))).errors
    assert [finding.detector for finding in found] == ["frozen_layers"]
