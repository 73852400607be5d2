"""Configurations of the user's own LightningCLI mean in a trial what they mean in `fit`."""

import pickle
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers.logger import DummyLogger

from lightning_init.search.job import SHORT, ConfigError, Job
from lightning_init.search.own_cli import recipe_from
from lightning_init.strategies.apply import fingerprint
from tests.search import own_clis
from tests.search.own_clis import CLI, Biased, Bound, Counted, Regressor, Rows

MAIN = "tests.search.own_clis:main"
FILE = Path(own_clis.__file__)
CONFIG = {"shift": 0.5, "model": {"width": 6}, "data": {"batch_size": 16, "features": 5}}


@pytest.fixture
def write(tmp_path):
    def written(data: object, name: str = "config.yaml") -> str:
        path = tmp_path / name
        path.write_text(data if isinstance(data, str) else yaml.safe_dump(data, sort_keys=False))
        return str(path)

    return written


@pytest.fixture
def job(write):
    return lambda data, *more, cli=MAIN: Job(["--config", write(data), *more], cli=cli)


def built(job: Job, seed: int = 0, config: dict | None = None, callbacks: tuple = (), **trainer):
    return job.build(seed, config or {}, callbacks, **{**SHORT, "max_steps": 3, **trainer})


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (MAIN, CLI),
        ("tests.search.own_clis", CLI),
        ("tests.search.own_clis:catches_everything", CLI),
        ("tests.search.own_clis:Bound", Bound),
        ("tests.search.own_clis:not_run", LightningCLI),
        (str(FILE), CLI),
        (f"{FILE}:main", CLI),
    ],
)
def test_it_is_found_by_name_and_file_and_not_run(text, kind, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "--nonsense"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    found = recipe_from(text)
    assert found.kind.__name__ == kind.__name__
    assert sys.argv == ["x", "--nonsense"]


def test_afterwards_lightning_cli_is_made_as_ever(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    recipe_from(MAIN)
    cli = LightningCLI(Regressor, Rows, args=["--model.inputs=4", "--seed_everything=1"], run=False)
    assert isinstance(cli.model, Regressor)


def test_a_file_that_makes_it_without_a_function(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    text = (
        "from lightning.pytorch.cli import LightningCLI\n"
        "from tests.search.own_clis import Regressor\n"
        "class Mine(LightningCLI):\n    pass\n"
    )
    guarded = tmp_path / "train-it.py"
    guarded.write_text(text + "if '__main__' == __name__:\n    Mine(Regressor)\n")
    plain = tmp_path / "unguarded_cli.py"
    plain.write_text(text + "cli = Mine(Regressor)\n")
    for path in (guarded, plain):
        found = recipe_from(str(path))
        assert (found.kind.__name__, found.args) == ("Mine", (Regressor,))


MISTAKES = {
    "module": ("tests.search.own_cli:main", r"unknown module 'tests.search.own_cli'"),
    "function": (f"{MAIN}n", r"unknown function in tests.search.own_clis 'mainn': .*'main'"),
    "file": (f"{FILE.with_name('own_cliz.py')}:main", r"unknown file .*did you mean .*own_clis.py"),
    "nothing": (
        "tests.search.own_clis:nothing",
        r"ran to its end without making a LightningCLI: name the function",
    ),
    "fails": (
        "tests.search.own_clis:fails",
        r"failed before it made a LightningCLI: OSError: no such table",
    ),
    "leaves": ("tests.search.own_clis:leaves", r"failed before .*SystemExit: usage: me"),
    "needs": ("tests.search.own_clis:needs", r"without arguments, but it needs path"),
    "no script": ("tests.search.models", r"ran to its end without making a LightningCLI"),
}


@pytest.mark.parametrize(("text", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_that_says_what_is_legal(text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        recipe_from(text)
    assert "\n" not in str(caught.value)


def test_a_class_bound_configuration_with_keys_and_links(job):
    model, data, trainer = built(job(CONFIG))
    assert isinstance(model, Regressor)
    assert isinstance(data, Rows)
    assert model.net[0].weight.shape == (6, 5)  # 5: linked when data was built
    assert model.hparams["batch_size"] == 16  # linked when it was parsed
    assert model.shift == 0.5  # by a hook of the user's
    assert (trainer.max_epochs, trainer.gradient_clip_val) == (3, 0.5)  # the user's defaults


def test_keys_of_the_users_own_are_kept(job):
    read = job(CONFIG)
    assert read.plain()["shift"] == 0.5
    assert read.dropped == []
    assert built(read, config={"shift": 2.0})[0].shift == 2.0


def test_what_is_linked_to_a_changed_key_follows(job):
    read = job(CONFIG)
    model, data, _ = built(read, config={"data.batch_size": 4, "data.features": 3})
    assert (data.batch_size, model.hparams["batch_size"]) == (4, 4)
    assert model.net[0].in_features == 3
    assert built(read)[0].hparams["batch_size"] == 16


def test_hyperparameters_follow_a_changed_key(job):
    read = job(CONFIG)
    for rate in (0.5, 0.25):
        model, data, trainer = built(read, config={"model.lr": rate})
        trainer.fit(model, datamodule=data)
        assert model.hparams["lr"] == rate
        assert trainer.optimizers[0].defaults["lr"] == rate


def test_a_changed_key_must_fit_its_type(job):
    with pytest.raises(ConfigError, match=r"model\.width must be int, but got"):
        built(job(CONFIG), config={"model.width": 2.5})


def test_callbacks_of_every_source_keep_their_place_and_files_have_none(job):
    own = [{"class_path": "tests.search.own_clis.Counted"}]
    read = job({**CONFIG, "trainer": {"callbacks": own}})
    ours = Counted()
    for _ in range(2):
        model, data, trainer = built(read, callbacks=(ours,))
        first, second, third = (c for c in trainer.callbacks if isinstance(c, Counted))
        assert second is ours  # after the configuration's, before the user's defaults
        assert not any(isinstance(c, EarlyStopping | ModelCheckpoint) for c in trainer.callbacks)
        trainer.fit(model, datamodule=data)
        assert (first.fits, third.fits) == (1, 1)  # fresh each time


def test_a_hook_that_needs_the_configured_logger_finds_it_and_none_is_made(job, tmp_path):
    logger = {
        "class_path": "lightning.pytorch.loggers.CSVLogger",
        "init_args": {"save_dir": str(tmp_path / "logs")},
    }
    _, _, trainer = built(job({**CONFIG, "trainer": {"logger": logger}}))
    assert [type(one) for one in trainer.loggers] == [DummyLogger]
    _, _, trainer = built(job({**CONFIG, "trainer": {"logger": False}}))
    assert trainer.loggers == []
    assert not (tmp_path / "logs").exists()


def test_other_ways_to_make_it(job):
    model, _, _ = built(job({"model": {"inputs": 4}}, cli="tests.search.own_clis:not_run"))
    assert model.net[0].in_features == 4
    model, _, _ = built(job({"model": {"inputs": 4}}, cli="tests.search.own_clis:Bound"))
    assert model.net[0].in_features == 4
    subclass = {"class_path": "tests.search.own_clis.Regressor", "init_args": {"inputs": 4}}
    model, _, _ = built(job({"model": subclass}, cli="tests.search.own_clis:of_subclasses"))
    assert model.net[0].in_features == 4
    bound = job(
        {"model": {"inputs": 4, "width": 3}}, cli="tests.search.own_clis:explicit_arguments"
    )
    assert built(bound)[0].net[0].out_features == 3


@pytest.mark.parametrize("key", ["lr", "bias_at"])  # of the base too, and of the subclass only
def test_an_axis_of_a_subclass_leaves_the_class_as_it_is(job, key):
    given = {"inputs": 4, "bias_at": 2.0, "lr": 0.3}
    subclass = {"class_path": "tests.search.own_clis.Biased", "init_args": given}
    read = job({"model": subclass}, cli="tests.search.own_clis:of_subclasses")
    model, _, _ = built(read, config={f"model.init_args.{key}": 0.7})
    assert type(model) is Biased
    assert {name: model.hparams[name] for name in given} == {**given, key: 0.7}


def test_nested_under_fit_and_printed_by_fit(job, monkeypatch, capsys):
    flat = job(CONFIG).plain()
    assert job({"fit": CONFIG}).plain() == flat
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit):
        LightningCLI(Regressor, Rows, args=["fit", "--model.inputs=4", "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    again = job(printed, cli="tests.search.own_clis:explicit_arguments")
    assert again.plain()["model"] == printed["model"]


def test_the_plain_configuration_builds_the_same(job):
    read = job({**CONFIG, "trainer": {"gradient_clip_val": 0.25}})
    again = Job(read.plain(), cli=MAIN)
    assert again.plain() == read.plain()
    assert fingerprint(built(again, 2)[0]) == fingerprint(built(read, 2)[0])


def test_default_configuration_files(write, tmp_path, monkeypatch):
    defaults = write({"fit": {"model": {"width": 3}}}, "defaults.yaml")
    script = tmp_path / "with_defaults.py"
    script.write_text(
        "from lightning.pytorch.cli import LightningCLI\n"
        "from tests.search.own_clis import Regressor, Rows\n"
        f"LightningCLI(Regressor, Rows, parser_kwargs={{'default_config_files': [{defaults!r}]}})\n"
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    read = Job(["--model.inputs=4"], cli=str(script))
    assert read.plain()["model"]["width"] == 3
    assert Job(read.plain(), cli=str(script)).plain() == read.plain()
    assert (
        Job(["--model.inputs=4", "--model.width=5"], cli=str(script)).plain()["model"]["width"] == 5
    )


def test_a_recipe_travels_to_a_worker():
    recipe = recipe_from(MAIN)
    again = pickle.loads(pickle.dumps(recipe))
    assert again.kind is recipe.kind
    assert again.args == recipe.args
    data = {"model": {"width": 3}}
    assert built(Job(data, cli=again))[0].net[0].out_features == 3


def test_the_same_run_as_the_users_own_fit(job, monkeypatch, tmp_path):
    """Oracle: the user's class, run by LightningCLI itself."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    recipe = recipe_from(MAIN)
    arguments = [
        *("fit", f"--config={tmp_path / 'config.yaml'}", "--seed_everything=5", "--model.lr=0.3"),
        *("--trainer.max_steps=9", "--trainer.enable_progress_bar=false"),
        *("--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={tmp_path}"),
    ]
    read = job({**CONFIG, "trainer": {"deterministic": True}})
    made: list[LightningCLI] = []
    monkeypatch.setattr(CLI, "after_fit", lambda self: made.append(self), raising=False)
    with pytest.raises(RuntimeError, match="nothing is run"):
        CLI(*recipe.args, **recipe.kwargs, args=arguments)
    [theirs] = made
    model, data, trainer = built(read, 5, {"model.lr": 0.3}, max_steps=9)
    trainer.fit(model, datamodule=data)
    assert trainer.global_step == theirs.trainer.global_step == 9
    assert fingerprint(model) == fingerprint(theirs.model)
    assert dict(model.hparams).keys() == dict(theirs.model.hparams).keys()
    assert torch.equal(
        trainer.callback_metrics["val_loss"], theirs.trainer.callback_metrics["val_loss"]
    )
