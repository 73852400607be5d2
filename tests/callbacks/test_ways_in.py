"""Other ways into a Trainer: `pytorch_lightning`, the environment, the module's own callbacks."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning_utilities.core import rank_zero

from lightning_init import HealthMonitor, InitCallback, InitSpec
from tests.callbacks import nets
from tests.callbacks.nets import AtStart, Digits, mlp

pytestmark = pytest.mark.case(44)
PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
GROUPS = {"lightning.pytorch": "lightning.fabric", "pytorch_lightning": "lightning_fabric"}


@pytest.fixture(params=list(GROUPS))
def package(request: pytest.FixtureRequest) -> ModuleType:
    log = rank_zero.log  # whichever package is imported last puts its own there
    found = pytest.importorskip(request.param, reason="only lightning is installed, not this twin")
    rank_zero.log = log
    return found


@pytest.fixture
def _installed(package: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this checkout were installed, and nothing else."""
    told = PROJECT["project"]["entry-points"]

    def entry_points(group: str) -> list[EntryPoint]:
        return [EntryPoint(name, value, group) for name, value in told.get(group, {}).items()]

    registry = f"{GROUPS[package.__name__]}.utilities.registry"
    monkeypatch.setattr(importlib.import_module(registry), "entry_points", entry_points)


def trainer(package: ModuleType, *callbacks: Any, **arguments: Any) -> Any:
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "devices": 1,
             "enable_model_summary": False, "logger": False}  # fmt: skip
    return package.Trainer(
        accelerator="cpu", callbacks=list(callbacks), **{**quiet, "max_steps": 3, **arguments}
    )


def module(package: ModuleType, later: bool = False, own: Any = ()) -> Any:
    class Twin(package.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            if not later:
                self.net = mlp()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = F.cross_entropy(self.net(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=0.01)

        def configure_callbacks(self) -> Any:
            return own

    class Later(Twin):
        def configure_model(self) -> None:
            if not hasattr(self, "net"):
                self.net = mlp()

    return Later() if later else Twin()


def inits(made: Any) -> list[InitCallback]:
    return [each for each in made.callbacks if isinstance(each, InitCallback)]


@pytest.mark.parametrize("later", [False, True], ids=["__init__", "configure_model"])
def test_both_packages_train_the_same(package: ModuleType, later: bool) -> None:
    callback, start = InitCallback("lsuv", seed=3), AtStart()
    made = trainer(package, callback, start, default_root_dir="out", logger=True)
    made.fit(net := module(package, later), nets.ordered())
    alone, expected = InitCallback("lsuv", seed=3), AtStart()
    nets.fit(reference := Digits(mlp()), alone, expected)
    assert nets.same(start.weights, expected.weights)
    assert nets.same(nets.weights(net), nets.weights(reference))
    assert callback.report is not None
    assert alone.report is not None
    assert callback.report.to_dict()["loss"] == alone.report.to_dict()["loss"]
    assert {path.name for path in Path(made.log_dir).iterdir()} >= {"init.json", "health.json"}
    assert nets.hooks(net) == []


def test_a_run_goes_on_in_both_packages(package: ModuleType) -> None:
    made = trainer(package, InitCallback("orthogonal", seed=3), HealthMonitor())
    made.fit(net := module(package), nets.ordered())
    made.save_checkpoint("last.ckpt")
    again, start = InitCallback("orthogonal", seed=4), AtStart()
    resumed = trainer(package, again, start, max_steps=5)
    resumed.fit(module(package), nets.ordered(), ckpt_path="last.ckpt")
    assert nets.same(start.weights, nets.weights(net))
    assert again.fingerprint == inits(made)[0].fingerprint


@pytest.mark.usefixtures("_installed")
def test_nothing_is_added_unless_the_environment_asks(
    package: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in (None, "", " "):
        if value is not None:
            monkeypatch.setenv("LIGHTNING_INIT", value)
        assert inits(trainer(package)) == []
    start = AtStart()
    monkeypatch.setenv("LIGHTNING_INIT", "orthogonal")
    made = trainer(package, start)
    [added] = inits(made)
    assert added.spec == InitSpec("orthogonal")
    torch.manual_seed(8)
    made.fit(module(package), nets.ordered())
    nets.fit(Digits(mlp()), InitCallback("orthogonal", seed=8), expected := AtStart())
    assert nets.same(start.weights, expected.weights)


@pytest.mark.usefixtures("_installed")
def test_the_environment_names_a_file(package: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = InitSpec("orthogonal", {"gain": 1.5}, seed=4)
    spec.save("best.yaml")
    monkeypatch.setenv("LIGHTNING_INIT", "best.yaml")
    assert inits(trainer(package))[0].spec == spec


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize(
    ("value", "text"),
    [
        (
            "ortogonal",
            "LIGHTNING_INIT=ortogonal: unknown strategy.*did you mean 'orthogonal'.*unset",
        ),
        ("1", "LIGHTNING_INIT=1: unknown strategy '1'.*set LIGHTNING_INIT to a strategy's name or"),
        ("none.yaml", r"LIGHTNING_INIT=none\.yaml: no init spec at none\.yaml.*unset it"),
    ],
)
def test_a_value_that_is_not_legal(
    package: ModuleType, value: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIGHTNING_INIT", value)
    with pytest.raises(ValueError, match=text):
        trainer(package)


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize("scope", ["untrained", ["net.0.*"]], ids=["whole", "a part"])
def test_what_the_user_lists_decides_before_the_environment(
    package: ModuleType, scope: Any, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIGHTNING_INIT", "xavier_normal")
    torch.manual_seed(3)
    own, start = InitCallback("orthogonal", scope=scope), AtStart()
    made = trainer(package, own, start)
    made.fit(module(package), nets.ordered())
    [_, added] = inits(made)
    monkeypatch.delenv("LIGHTNING_INIT")
    expected: dict[str, Any] = {}
    for name in ("orthogonal", "xavier_normal"):
        nets.fit(Digits(mlp()), InitCallback(name, seed=3), first := AtStart())
        expected[name] = first.weights
    for name, value in start.weights.items():
        mine = scope == "untrained" or name.startswith("net.0")
        assert nets.same(value, expected["orthogonal" if mine else "xavier_normal"][name])
    assert own.report is added.report is not None or scope == "untrained"
    assert own.monitor.record.steps != ()  # the user's own watches
    what = "yields" if scope == "untrained" else r"leaves net.0.*"
    told = [text for text in said if "LIGHTNING_INIT" in text]
    assert told == [
        f"lightning_init: LIGHTNING_INIT=xavier_normal {what} to InitCallback('orthogonal'), "
        "which is listed"
    ]


def test_the_factory_imports_nothing_heavy() -> None:
    """Every Trainer of an environment calls it, whether it uses this package or not."""
    code = (
        "import sys; from lightning_init.callbacks.factory import from_environment; "
        "assert from_environment() == []; print([m for m in ('torch', 'lightning') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.usefixtures("_installed")
def test_a_callback_of_the_module_replaces_that_of_the_trainer(
    package: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIGHTNING_INIT", "kaiming_normal")
    own, start = InitCallback("orthogonal", seed=3), AtStart()
    made = trainer(package, InitCallback("xavier_normal"), start)
    made.fit(module(package, own=own), nets.ordered())
    assert inits(made) == [own]
    nets.fit(Digits(mlp()), InitCallback("orthogonal", seed=3), expected := AtStart())
    assert nets.same(start.weights, expected.weights)


def test_the_same_callback_twice_is_once(package: ModuleType, said: list[str]) -> None:
    first, last, start = InitCallback("normal", seed=3), InitCallback("normal", seed=3), AtStart()
    trainer(package, first, last, start).fit(module(package), nets.ordered())
    nets.fit(Digits(mlp()), InitCallback("normal", seed=3), expected := AtStart())
    assert nets.same(start.weights, expected.weights)
    assert first.plan is None
    assert sum("yields to InitCallback('normal')" in text for text in said) == 1
