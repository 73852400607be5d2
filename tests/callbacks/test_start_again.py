"""Saved initial weights: a later run starts from exactly the same point."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.data import DataLoader, TensorDataset

from lightning_init import InitCallback
from lightning_init.strategies.apply import fingerprint
from tests.callbacks import nets
from tests.callbacks.nets import AtStart, BuiltInConfigureModel, Digits, Rows, mlp, noisy

FILE = "kept/init.safetensors"
AGAIN: dict[str, Any] = {"strategy": "warm_start", "params": {"path": FILE}}


class Tied(Digits):
    """A table that is used twice, a buffer that is part of the function, a module used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Linear(64, 10)
        self.back = nn.Linear(10, 64)
        self.back.weight = nn.Parameter(self.table.weight.data.T)
        self.out = nn.Linear(64, 10)
        self.out.weight = self.table.weight
        self.register_buffer("shift", torch.full((64,), 0.3))
        self.block = self.same = nn.Linear(64, 64)

    def loss(self, batch: Any) -> Tensor:
        x = torch.relu(self.block(batch[0] + self.shift))
        x = torch.relu(self.back(self.table(torch.relu(self.same(x)))))
        return F.cross_entropy(self.out(x), batch[1])


def normed() -> nn.Sequential:
    return nn.Sequential(weight_norm(nn.Linear(64, 16)), nn.ReLU(), nn.Linear(16, 10))


def lazy() -> nn.Sequential:
    return nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.Linear(16, 10))


KINDS: dict[str, Any] = {
    "dense": lambda: Digits(mlp()),
    "batch norm, dropout": lambda: Digits(noisy()),
    "LSTM": lambda: Digits(Rows()),
    "tied, shared, a buffer": Tied,
    "weight norm": lambda: Digits(normed()),
    "lazy": lambda: Digits(lazy()),
    "configure_model": BuiltInConfigureModel,
    "float64": lambda: Digits(mlp()).double(),
}
# The cases around a Trainer that a kind shows.
SHOWS = {"tied, shared, a buffer": [37], "weight norm": [39], "lazy": [40]}


def trained(callback: InitCallback, make: Any, seed: int, **arguments: Any) -> tuple[Any, ...]:
    torch.manual_seed(seed)  # another model as built
    module, start = make(), AtStart()
    torch.manual_seed(1)  # the same training
    loader = nets.ordered()
    if module.dtype == torch.float64:
        x, y = nets.digits().tensors
        loader = DataLoader(TensorDataset(x.double(), y), batch_size=32)
    nets.fit(module, callback, start, loader=loader, max_steps=4, **arguments)
    return start.weights, nets.weights(module), module


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.case(*SHOWS.get(kind, ()))]) for kind in KINDS]
)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")  # torch
@pytest.mark.filterwarnings("ignore:The total number of parameters detected:UserWarning")
def test_a_run_from_saved_weights_is_the_same_run(kind: str) -> None:
    first = InitCallback("auto", seed=3, save_init=FILE, verbose=False)
    one = trained(first, KINDS[kind], 5)
    again = InitCallback(**AGAIN, seed=9, verbose=False)
    two = trained(again, KINDS[kind], 6)
    assert nets.same(one[0], two[0])
    assert nets.same(one[1], two[1])
    assert not nets.same(one[0], one[1])
    assert again.fingerprint == first.fingerprint
    if kind.startswith("tied"):
        assert two[2].out.weight is two[2].table.weight
        assert len({"out.weight", "table.weight"} & set(load_file(FILE))) == 1


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "bf16-mixed", "64-true"])
def test_in_every_precision(precision: str) -> None:
    def run(callback: InitCallback, seed: int) -> tuple[Any, ...]:
        return trained(callback, KINDS["dense"], seed, precision=precision)

    first = InitCallback("auto", seed=3, save_init=FILE, verbose=False)
    one = run(first, 5)
    two = run(again := InitCallback(**AGAIN, verbose=False), 6)
    assert nets.same(one[0], two[0])
    assert nets.same(one[1], two[1])
    assert again.fingerprint == first.fingerprint


def test_what_else_there_is_in_a_scope_stays_as_it_is_built() -> None:
    trained(InitCallback("auto", seed=3, save_init=FILE, verbose=False), KINDS["dense"], 5)
    saved = load_file(FILE)
    torch.manual_seed(6)
    built = nets.weights(mlp())
    again = InitCallback(**AGAIN, scope=["net.0.*", "net.2.weight"], verbose=False)
    start, _, _ = trained(again, KINDS["dense"], 6)
    for name, value in start.items():
        mine = name.startswith("net.0") or name == "net.2.weight"
        assert nets.same(value, saved[name] if mine else built[name.removeprefix("net.")])


WRONG: dict[str, tuple[Any, str]] = {
    "none": (None, "there is no .*kept/init.safetensors"),
    "text": (b"not a file of weights", "kept/init.safetensors"),
    "cut": ("cut", "kept/init.safetensors"),
    "other": (
        {"a.weight": torch.ones(3, 3), "b": torch.ones(2)},
        "coverage|of the model's parameters",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_told_before_anything_is_changed(name: str) -> None:
    content, text = WRONG[name]
    Path("kept").mkdir()
    if content == "cut":
        trained(InitCallback("auto", save_init=FILE, verbose=False), KINDS["dense"], 5)
        Path(FILE).write_bytes(Path(FILE).read_bytes()[:-100])
    elif isinstance(content, bytes):
        Path(FILE).write_bytes(content)
    elif content is not None:
        save_file(content, FILE)
    module = Digits(mlp())
    before = nets.weights(module)
    with pytest.raises((ValueError, FileNotFoundError), match=text):
        nets.fit(module, InitCallback(**AGAIN))
    assert nets.same(nets.weights(module), before)
    assert nets.hooks(module) == []


def test_the_hash_of_a_file_is_that_of_the_run() -> None:
    callback = InitCallback("orthogonal", save_init=FILE, verbose=False)
    trained(callback, KINDS["dense"], 5)
    with safe_open(FILE, "pt") as file:
        assert file.metadata()["fingerprint"] == callback.fingerprint
    module = Digits(mlp())
    module.load_state_dict(load_file(FILE))
    assert fingerprint(module) == callback.fingerprint


UNWRITABLE = {
    "a file for a folder": ("file/init.safetensors", "FileExistsError"),
    "below a file": ("file/deeper/init.safetensors", "NotADirectoryError"),
    "a folder": ("folder.safetensors", "that is a folder"),
}


@pytest.mark.parametrize("name", UNWRITABLE)
def test_a_file_that_cannot_be_written_is_told_before_anything_is_changed(name: str) -> None:
    path, text = UNWRITABLE[name]
    Path("file").touch()
    Path("folder.safetensors").mkdir()
    module = Digits(mlp())
    before = nets.weights(module)
    with pytest.raises(OSError, match=f"save_init='{path}' cannot be written.*{text}.*name a "):
        nets.fit(module, InitCallback("orthogonal", save_init=path))
    assert nets.same(nets.weights(module), before)
    assert nets.hooks(module) == []
