"""The callback's arguments in Python, from a file, and on LightningCLI's command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.cli import LightningCLI

from lightning_init import HealthMonitor, InitCallback, InitSpec, Strategy
from lightning_init.strategies.initializers import keep
from tests.callbacks import nets
from tests.callbacks.nets import Digits, Validated, mlp

pytestmark = pytest.mark.filterwarnings(  # lightning calls an old name
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"
)
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "strategy": ({"strategy": "ortogonal"}, "unknown strategy 'ortogonal': did you mean 'orthogonal'"),
    "parameter": ({"strategy": "orthogonal", "params": {"gian": 1}}, "did you mean 'gain'"),
    "value": ({"strategy": "orthogonal", "params": {"gain": -1}}, "gain=-1"),
    "type": ({"strategy": "orthogonal", "params": {"gain": "big"}}, "gain"),
    "scale": ({"params": {"scale": 1e9}}, "scale"),
    "params": ({"params": [1]}, r"params must be a mapping.*\[1\]"),
    "override": ({"overrides": {"*": "ortogonal"}}, "did you mean 'orthogonal'"),
    "role": ({"overrides": {"role:embeding": "normal"}}, "did you mean 'embedding'"),
    "monitor_steps": ({"monitor_steps": -1}, "`monitor_steps >= 0` must hold, but got monitor_st.*-1"),
    "loss_steps": ({"loss_steps": -2}, "`loss_steps >= 0` must hold, but got loss_steps=-2"),
    "steps": ({"monitor_steps": 1.5}, "monitor_steps"),
    "on_unhealthy": ({"on_unhealthy": "rase"}, "did you mean 'raise'"),
    "save_init": ({"save_init": "init.pt"}, "must name a .safetensors file, but got 'init.pt'"),
    "scope": ({"scope": []}, "scope"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name: str) -> None:
    arguments, text = WRONG[name]
    if name == "scope":
        with pytest.raises(ValueError, match="scope must be"):
            nets.fit(Digits(mlp()), InitCallback(**arguments))
        return
    with pytest.raises(ValueError, match=text):
        InitCallback(**arguments)


def test_what_does_not_go_together() -> None:
    for strategy in (InitSpec("normal"), Strategy(keep), keep):
        with pytest.raises(ValueError, match="params and overrides go with a strategy's name"):
            InitCallback(strategy, {"std": 0.1})
    with pytest.raises((TypeError, ValueError), match="strategy must be a name"):
        InitCallback(3)


def test_monitor_arguments() -> None:
    with pytest.raises(ValueError, match="unknown detector 'dead_unit'"):
        HealthMonitor(detectors=["dead_unit"])
    with pytest.raises(ValueError, match="on_unhealthy"):
        HealthMonitor(on_unhealthy="explode")


def test_from_spec_and_from_file() -> None:
    spec = InitSpec("orthogonal", {"gain": 1.5}, {"role:bias": "normal"}, seed=4)
    spec.save("best.yaml")
    Path("overlay.yaml").write_text(
        "trainer:\n  callbacks+:\n  - class_path: lightning_init.InitCallback\n"
        "    init_args:\n      strategy: orthogonal\n      params: {gain: 1.5}\n"
        "      overrides: {'role:bias': normal}\n      seed: 4\n      monitor_steps: 3\n"
    )
    starts = []
    for callback in (
        InitCallback.from_spec(spec, monitor_steps=7),
        InitCallback.from_file("best.yaml", monitor_steps=7),
        InitCallback.from_file(Path("overlay.yaml"), monitor_steps=7),
        InitCallback("orthogonal", {"gain": 1.5}, {"role:bias": "normal"}, 4, monitor_steps=7),
    ):
        assert callback.spec == spec
        assert callback.monitor.monitor_steps == 7
        nets.fit(Digits(mlp()), callback, start := nets.AtStart(), max_steps=1)
        starts.append(start.weights)
    assert all(nets.same(starts[0], other) for other in starts[1:])
    with pytest.raises(FileNotFoundError, match=r"no init spec at none\.yaml"):
        InitCallback.from_file("none.yaml")
    Path("other.yaml").write_text("trainer: {max_steps: 3}\n")
    with pytest.raises(ValueError, match="is not an init spec"):
        InitCallback.from_file("other.yaml")


# LightningCLI


class Model(Validated):
    def __init__(self, width: int = 16) -> None:
        super().__init__(mlp(width))


QUIET = ["--trainer.accelerator=cpu", "--trainer.logger=false", "--trainer.max_steps=1",
         "--trainer.enable_checkpointing=false", "--trainer.enable_progress_bar=false",
         "--trainer.enable_model_summary=false"]  # fmt: skip
ADD = "--trainer.callbacks+=lightning_init.InitCallback"


@pytest.fixture(autouse=True)
def _no_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["main.py"])


def cli(*arguments: str) -> LightningCLI:
    return LightningCLI(
        Model, run=False, args=[*QUIET, *arguments], save_config_callback=None,
        seed_everything_default=7,
    )  # fmt: skip


def the_callback(made: LightningCLI) -> InitCallback:
    (found,) = [c for c in made.trainer.callbacks if isinstance(c, InitCallback)]
    return found


def test_dotted_arguments() -> None:
    made = cli(ADD, "--trainer.callbacks.strategy=lsuv", "--trainer.callbacks.params.scale=0.5")
    callback = the_callback(made)
    assert callback.spec == InitSpec("lsuv", {"scale": 0.5})
    made = cli(ADD, "--trainer.callbacks.strategy=orthogonal",
               '--trainer.callbacks.params={"gain": 1.5}', "--trainer.callbacks.on_unhealthy=raise",
               "--trainer.callbacks.scope=[net.0.*]", "--trainer.callbacks.monitor_steps=5")  # fmt: skip
    callback = the_callback(made)
    assert callback.spec == InitSpec("orthogonal", {"gain": 1.5})
    assert callback.monitor.on_unhealthy == "raise"
    assert callback.monitor.monitor_steps == 5
    assert callback.scope == ["net.0.*"]
    made.trainer.fit(made.model, nets.ordered(), nets.ordered(600))
    assert callback.plan is not None
    assert [e.info.name for e in callback.plan if e.written] == ["net.0.weight", "net.0.bias"]


def test_the_overlay_that_a_search_writes(tmp_path: Path) -> None:
    overlay = tmp_path / "best.yaml"
    overlay.write_text(
        "trainer:\n  callbacks+:\n  - class_path: lightning_init.InitCallback\n"
        "    init_args:\n      strategy: orthogonal\n      params: {gain: 1.5}\n"
        "      overrides:\n        role:embedding: {strategy: normal, params: {std: 0.1}}\n"
    )
    callback = the_callback(cli("--config", str(overlay)))
    expected = InitSpec(
        "orthogonal", {"gain": 1.5}, {"role:embedding": InitSpec("normal", {"std": 0.1})}
    )
    assert callback.spec == expected


def test_a_typing_error_names_the_closest_match() -> None:
    with pytest.raises(ValueError, match="strategy 'ortogonal': did you mean 'orthogonal'"):
        cli(ADD, "--trainer.callbacks.strategy=ortogonal")
