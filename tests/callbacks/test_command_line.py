"""Every argument, optimizers and a search's best.yaml on the command line of a LightningCLI."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningCLI

from lightning_init import HealthMonitor, InitCallback, InitSpec, initialize_, search_init
from lightning_init.search.space import Space
from lightning_init.search.trial import Outcome
from tests.callbacks import nets
from tests.callbacks.nets import AtStart, Model

pytestmark = pytest.mark.filterwarnings(  # lightning calls an old name
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"
)
QUIET = {"accelerator": "cpu", "logger": False, "max_steps": 1, "enable_checkpointing": False,
         "enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 1,
         "default_root_dir": "out"}  # fmt: skip


class WithoutOptimizer(Model):
    """The command line brings one: LightningCLI makes it before `fit`."""

    configure_optimizers = pl.LightningModule.configure_optimizers


Line = Callable[..., LightningCLI]


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Line:
    """Runs a script's LightningCLI with what somebody has typed."""

    def run(*typed: str, kind: type[Model] = Model, **arguments: Any) -> LightningCLI:
        trainer = [f"--trainer.{name}={str(value).lower()}" for name, value in QUIET.items()]
        monkeypatch.setattr("sys.argv", ["main.py", "fit", *trainer, *typed])
        return LightningCLI(kind, save_config_callback=None, seed_everything_default=7, **arguments)

    return run


def the(kind: type[Any], made: LightningCLI) -> Any:
    (found,) = [each for each in made.trainer.callbacks if isinstance(each, kind)]
    return found


# What is typed for each argument, what is read from the callback, what that must be.
Typed = dict[str, tuple[list[str], Callable[[Any], Any], Any]]
WATCHES: Typed = {
    "monitor_steps": (["=5"], lambda c: c.monitor_steps, 5),
    "loss_steps": (["=6"], lambda c: c.loss_steps, 6),
    "on_unhealthy": (["=raise"], lambda c: c.on_unhealthy, "raise"),
    "detectors": (["=[dead_units]"], lambda c: list(c.rules), ["dead_units"]),
    "profile": (["=textbook"], lambda c: c.rules, HealthMonitor(profile="textbook").rules),
}  # fmt: skip
MONITOR: Typed = {**WATCHES, "verbose": (["=false"], lambda c: c.verbose, False)}


def in_monitor(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda callback: read(callback.monitor)


INIT: Typed = {
    "strategy": (["=lsuv"], lambda c: c.spec, InitSpec("lsuv")),
    "params": ([".scale=0.5"], lambda c: c.spec, InitSpec("auto", {"scale": 0.5})),
    "overrides": (
        ['={"role:head": {"strategy": "normal", "params": {"std": 0.1}}}'],
        lambda c: c.spec.overrides,
        {"role:head": InitSpec("normal", {"std": 0.1})},
    ),
    "seed": (["=11"], lambda c: (c.seed, c.plan is not None), (11, True)),
    "scope": (
        ["=[net.0.*, net.2.weight]"],
        lambda c: [entry.info.name for entry in c.plan if entry.written],
        ["net.0.weight", "net.0.bias", "net.2.weight"],
    ),
    "save_init": (["=init.safetensors"], lambda c: Path("init.safetensors").exists(), True),
    "verbose": (["=false"], lambda c: c.verbose, False),
    "ladder": (
        ["=[orthogonal, lsuv]"],
        lambda c: list(c.ladder or ()),
        list(InitCallback(ladder=["orthogonal", "lsuv"]).ladder or ()),
    ),
    "max_rescues": (["=0"], lambda c: c.max_rescues, 0),
    **{
        name: (typed, in_monitor(read), value)
        for name, (typed, read, value) in WATCHES.items()
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "table"), [(InitCallback, INIT), (HealthMonitor, MONITOR)], ids=["init", "monitor"]
)
def test_every_argument_is_in_the_tables(kind: type[Any], table: Typed) -> None:
    assert set(table) == set(inspect.signature(kind).parameters)
    default = kind()
    for name, (_, read, value) in table.items():
        if name not in ("seed", "scope"):  # to be read after a fit
            assert read(default) != value, f"{name} shows nothing: that is its default"


@pytest.mark.parametrize(
    ("kind", "name"),
    [(InitCallback, name) for name in INIT] + [(HealthMonitor, name) for name in MONITOR],
)
def test_each_argument_as_it_is_typed(kind: type[Any], name: str, line: Line) -> None:
    typed, read, value = (INIT if kind is InitCallback else MONITOR)[name]
    made = line(
        f"--trainer.callbacks+=lightning_init.{kind.__name__}",
        *(f"--trainer.callbacks.{name}{text}" for text in typed),
    )
    assert made.trainer.global_step == 1
    assert read(the(kind, made)) == value


def test_several_arguments_of_several_callbacks(line: Line) -> None:
    made = line(
        "--trainer.callbacks+=lightning_init.InitCallback",
        "--trainer.callbacks.strategy=orthogonal",
        "--trainer.callbacks.params.gain=1.5",
        "--trainer.callbacks.seed=4",
        "--trainer.callbacks+=lightning_init.HealthMonitor",
        "--trainer.callbacks.monitor_steps=2",
        "--trainer.callbacks+=tests.callbacks.nets.AtStart",
    )
    initialize_(expected := Model(), InitSpec("orthogonal", {"gain": 1.5}), seed=4)
    assert nets.same(the(AtStart, made).weights, nets.weights(expected))
    assert the(HealthMonitor, made).monitor_steps == 2


@pytest.mark.case(38)
@pytest.mark.parametrize("scheduler", [[], ["--lr_scheduler=ConstantLR"]], ids=["", "scheduled"])
def test_an_optimizer_of_the_command_line_trains_the_tensors_it_was_given(
    scheduler: list[str], line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    make = torch.optim.SGD.__init__

    @wraps(make)
    def noted(self: Any, params: Any, *args: Any, **kwargs: Any) -> None:
        given.append(params := list(params))
        make(self, params, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "__init__", noted)
    made = line(
        "--optimizer=SGD",
        "--optimizer.lr=0.1",
        *scheduler,
        "--trainer.callbacks+=lightning_init.InitCallback",
        "--trainer.callbacks.strategy=orthogonal",
        "--trainer.callbacks.seed=3",
        "--trainer.callbacks+=tests.callbacks.nets.AtStart",
        kind=WithoutOptimizer,
    )
    (tensors,) = given
    assert [id(p) for p in tensors] == [id(p) for p in made.model.parameters()]
    (optimizer,) = made.trainer.optimizers
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in tensors]
    start = the(AtStart, made).weights
    initialize_(expected := Model(), "orthogonal", seed=3)
    assert nets.same(start, nets.weights(expected))
    moved = [not torch.equal(start[name], p) for name, p in made.model.named_parameters()]
    assert all(moved)


def test_what_a_search_writes_after_a_users_own_callback(line: Line, said: list[str]) -> None:
    def evaluate(trial: Any, report: Any) -> Outcome:
        return Outcome((trial.spec.strategy != "orthogonal") + trial.seed / 1e6)

    result = search_init(
        evaluate, Space(("orthogonal", "xavier_normal")), trials=4, steps=20, confirm_seeds=3
    )
    result.save("run")
    assert InitSpec.load("run/best.yaml").strategy == "orthogonal"
    own = {"class_path": "lightning_init.InitCallback", "init_args": {"strategy": "normal"}}
    start = {"class_path": "tests.callbacks.nets.AtStart"}
    Path("own.yaml").write_text(yaml.safe_dump({"trainer": {**QUIET, "callbacks": [own, start]}}))
    made = line("--config=own.yaml", "--config=run/best.yaml")
    first, last = (each for each in made.trainer.callbacks if isinstance(each, InitCallback))
    assert first.name == "normal"
    assert first.plan is None
    assert last.spec == result.suggestion()
    assert [text for text in said if "yields" in text] == [
        "lightning_init: InitCallback('normal') yields to InitCallback('orthogonal'), which comes later "
        "in the list of callbacks"
    ]
    seed = result.best.runs[0].seed
    initialize_(expected := Model(), result.suggestion(), seed=seed)
    assert nets.same(the(AtStart, made).weights, nets.weights(expected))
