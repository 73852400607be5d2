"""Axes that reach into lists of the configuration: trial, best.yaml, and the fit with it."""

import json
import sys

import pytest
import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningCLI

from lightning_init import InitSpec
from lightning_init.cli.main import main
from lightning_init.search.evaluate import JobEvaluate
from lightning_init.search.job import ConfigError, Job
from lightning_init.search.keys import every_item, with_lists
from lightning_init.search.look import look
from lightning_init.search.objectives import parse_objectives
from lightning_init.search.trial import Trial
from lightning_init.search.wanted import wanted
from lightning_init.strategies.apply import fingerprint
from tests.search.lists import CLI, Small
from tests.search.models import Data

FACTOR, RATE = "trainer.callbacks.1.init_args.factor", "model.init_args.rates.1"
PARTS = [
    {"class_path": "torch.nn.Tanh"},
    {"class_path": "torch.nn.ELU", "init_args": {"alpha": 0.5}},
]
CALLBACKS = [
    {"class_path": "EarlyStopping", "init_args": {"monitor": "val_loss", "patience": 4}},
    {"class_path": "tests.search.lists.Damped", "init_args": {"factor": 0.0, "names": ["a", "b"]}},
]
PLAIN = {
    "model": {
        "class_path": "tests.search.lists.Stack",
        "init_args": {"widths": [8, 4], "rates": [0.01, 0.02], "parts": PARTS},
    },
    "data": {"class_path": "tests.search.models.Data"},
    "trainer": {"accelerator": "cpu", "max_steps": 30, "callbacks": CALLBACKS},
}
BOUND = {
    "model": {"widths": [8, 4], "rates": [0.01, 0.02]},
    "trainer": {"max_steps": 30, "callbacks": CALLBACKS},
}

pytestmark = pytest.mark.filterwarnings(
    "ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning",
    "ignore:.*LightningCLI.*args parameter:UserWarning",
)


@pytest.fixture
def config(tmp_path):
    def written(data: object) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(data, sort_keys=False))
        return str(path)

    return written


def asked(job: Job, **options):
    return wanted(job, Namespace(strategies="normal", **options), look(job).architecture)


@pytest.mark.parametrize(
    ("data", "cli", "kind", "arguments", "rate"),
    [
        (PLAIN, "", LightningCLI, (), RATE),
        (BOUND, "tests.search.lists:main", CLI, (Small, Data), "model.rates.1"),
    ],
    ids=["plain", "class-bound"],
)
def test_fit_with_best_yaml_is_the_confirmation_run(
    config, tmp_path, monkeypatch, data, cli, kind, arguments, rate
):
    """Oracle: LightningCLI itself. As configured, nothing is learned: the axis wins."""
    monkeypatch.chdir(tmp_path)
    path = config(data)
    given = [f"--cli={cli}"] if cli else []
    assert not main(
        [
            *("search", *given, f"--config={path}", f"--axis={FACTOR}=0.5,1.0", "--steps=12"),
            *(f"--axis={rate}=0.01:0.05", "--strategies=normal", "--trials=6", "--confirm-seeds=3"),
            *("--workers=0", "--confirm-steps=12", "--out=run"),
        ]
    )
    winner = json.loads((tmp_path / "run" / "results.json").read_text())["winner"]
    assert winner["config"][FACTOR] > 0
    overlay = yaml.safe_load((tmp_path / "run" / "best.yaml").read_text())
    changed = overlay["trainer"]["callbacks"]
    assert [one["class_path"].rpartition(".")[2] for one in changed] == [
        *("EarlyStopping", "Damped", "InitCallback")
    ]
    assert changed[1]["init_args"] == {"factor": winner["config"][FACTOR], "names": ["a", "b"]}
    assert changed[0]["init_args"]["patience"] == 4
    assert dict(every_item(overlay))[rate] == winner["config"][rate]
    fit = [f"--config={path}", "--config=run/best.yaml", "--trainer.max_steps=12"]
    fit += ["--trainer.enable_progress_bar=false", "--trainer.logger=false"]
    made: list[LightningCLI] = []
    monkeypatch.setattr(kind, "after_fit", lambda self: made.append(self), raising=False)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    kind(*arguments, args=["fit", *fit], save_config_callback=None)
    assert made[0].trainer.global_step == 12
    assert fingerprint(made[0].model) == winner["runs"][0]["final_fingerprint"]
    assert InitSpec.load("run/best.yaml").to_dict() == winner["spec"]
    assert not main(["report", "run"])


def test_each_value_reaches_the_object_that_has_it(config):
    job = Job(["--config", config(PLAIN)])
    parts = "model.init_args.parts.1.init_args.alpha"
    values = {FACTOR: 0.25, RATE: 0.5, "model.init_args.widths.0": 6, parts: 2.0}
    model, _, trainer = job.build(0, values, ())
    assert [one.factor for one in trainer.callbacks if hasattr(one, "factor")] == [0.25]
    assert model.rates == [0.01, 0.5]
    assert model.net[0].out_features == 6
    assert model.net[2].out_features == 4
    assert model.net[3].alpha == 2.0
    again, _, _ = job.build(0, {}, ())
    assert (again.rates, again.net[3].alpha) == ([0.01, 0.02], 0.5)


def test_an_entry_is_changed_as_if_it_had_been_written_so(config):
    """Oracle: the trial of a configuration that has the value from the start."""
    trial = Trial(InitSpec("normal"), {FACTOR: 0.5, RATE: 0.3}, 3, 6)
    job = Job(["--config", config(PLAIN)])
    objectives = parse_objectives([], "val_loss", "min")
    one = JobEvaluate(job.plain(), objectives)(trial, lambda *_: False)
    written = with_lists(
        {"callbacks.1.init_args.factor": 0.5, "rates.1": 0.3},
        {"callbacks": CALLBACKS, "rates": [0.01, 0.02]},
    )
    inner = {**PLAIN["model"]["init_args"], "rates": written["rates"]}
    data = {
        **PLAIN,
        "model": {**PLAIN["model"], "init_args": inner},
        "trainer": {**PLAIN["trainer"], "callbacks": written["callbacks"]},
    }
    job = Job(["--config", config(data)])
    plain = Trial(InitSpec("normal"), {}, 3, 6)
    two = JobEvaluate(job.plain(), objectives)(plain, lambda *_: False)
    assert one.info["final_fingerprint"] == two.info["final_fingerprint"]
    assert one.metric == two.metric
    assert CALLBACKS[1]["init_args"]["factor"] == 0.0


def test_the_axis_begins_at_the_users_own_value(config):
    job = Job(["--config", config(PLAIN)])
    space, key, notes = asked(job, axis=[f"{FACTOR}=0.5:1.0"], lr_key=RATE)
    assert key == RATE
    assert space.config[RATE].current == 0.02
    assert (space.config[FACTOR].low, space.config[FACTOR].current) == (0.0, 0.0)
    assert any(f"{FACTOR}: 0.5..1 is widened to hold your own 0.0" in note for note in notes)
    assert set(space.lists) == {"trainer.callbacks", "model.init_args.rates"}


def test_learning_rates_in_lists_are_found_where_there_are_no_others(config):
    groups = [{"lr": 0.1, "betas": [0.9, 0.999]}]
    data = {
        **PLAIN,
        "model": {
            "class_path": "tests.search.test_lists.Grouped",
            "init_args": {"groups": groups},
        },
    }
    assert Job(["--config", config(data)]).learning_rates() == {"model.init_args.groups.0.lr": 0.1}
    data["model"]["init_args"]["lr"] = 0.2
    assert Job(["--config", config(data)]).learning_rates() == {"model.init_args.lr": 0.2}


class Grouped(Small):
    def __init__(self, groups: list[dict], lr: float | None = None) -> None:
        super().__init__([4, 4], [groups[0]["lr"], lr or 0.1])


def test_an_axis_of_what_trials_leave_out_is_said(config):
    key = "trainer.callbacks.0.init_args.patience"
    _, _, notes = asked(Job(["--config", config(PLAIN)]), axis=[f"{key}=2,5"])
    assert f"{key} changes nothing: trials leave EarlyStopping out" in notes


@pytest.mark.parametrize(
    ("key", "says"),
    [
        (
            "trainer.callbacks.2.init_args.factor",
            "trainer.callbacks is a list, of which 0 (EarlyStopping), 1 (Damped) is legal, but got '2'",
        ),
        ("trainer.callbacks.-1.init_args.factor", "is legal, but got '-1'"),
        ("trainer.callbacks.01.init_args.factor", "is legal, but got '01'"),
        ("trainer.callbacks.factor", "0 (EarlyStopping), 1 (Damped) is legal, but got 'factor'"),
        ("trainer.callbacks.1.init_args.facto", f"did you mean '{FACTOR}'"),
        ("model.init_args.rates.2", "of which 0, 1 is legal, but got '2'"),
        ("model.init_args.rates.1.0", f"did you mean '{RATE}'"),
    ],
)
def test_a_wrong_entry_names_those_that_there_are(config, key, says):
    job = Job(["--config", config(PLAIN)])
    with pytest.raises(ConfigError) as caught:
        asked(job, axis=[f"{key}=0.5:1.0"])
    assert says in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        job.build(0, {key: 0.5}, ())
    assert says in str(caught.value)


def test_a_value_that_does_not_fit_its_entry_is_a_mistake(config):
    with pytest.raises(ConfigError, match=r"trainer\.callbacks"):
        Job(["--config", config(PLAIN)]).build(0, {FACTOR: "fast"}, ())


def test_compare_takes_such_an_overlay(config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    init = {"class_path": "lightning_init.InitCallback", "init_args": {"strategy": "lsuv"}}
    theirs = json.loads(json.dumps(CALLBACKS))
    theirs[1]["init_args"]["factor"] = 0.5
    (tmp_path / "best.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [*theirs, init]}}))
    arguments = ["compare", "best.yaml", f"--config={config(PLAIN)}", "--seeds=2", "--steps=4"]
    assert not main([*arguments, "--workers=0", "--out=run"])
    assert f"best.yaml: lsuv, {FACTOR} 0.5" in capsys.readouterr().out
    data = json.loads((tmp_path / "run" / "compare.json").read_text())
    assert data["candidates"][0]["config"] == {FACTOR: 0.5}
    assert torch.tensor([run["metric"] for run in data["candidates"][0]["runs"]]).isfinite().all()
