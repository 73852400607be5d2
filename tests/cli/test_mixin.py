"""`search` beside fit in the user's own LightningCLI, and what it finds, fitted by that same class."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningCLI

from examples.own_cli import CLI, NoisyDigits, ScaledMLP
from lightning_init import SearchMixin
from lightning_init.cli.mixin import _after_search
from lightning_init.search.mistakes import ConfigError
from lightning_init.search.own_cli import Recipe, for_workers
from lightning_init.strategies.apply import fingerprint
from tests.search.own_clis import Regressor

ROOT = Path(__file__).parents[2]
CONFIG = "configs/own_cli.yaml"
SEARCH = [
    *("search", "--config", CONFIG, "--trials=3", "--steps=60", "--strategies=xavier_normal"),
    *("--confirm-seeds=3", "--confirm-steps=60", "--label_noise=0.05"),
]


class Plain(LightningCLI):
    pass


class Mixed(SearchMixin, Plain):
    pass


def run(*command: object) -> str:
    ran = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def said(monkeypatch, capsys, kind, *arguments: str) -> tuple[str, str, object]:
    monkeypatch.setattr(sys, "argv", ["main.py", *arguments])
    with pytest.raises(SystemExit) as caught:
        kind(Regressor)
    out, err = capsys.readouterr()
    return out, err, caught.value.code


def test_other_subcommands_are_unchanged(monkeypatch, capsys):
    arguments = ("fit", "--model.inputs=4", "--print_config")
    mixed = said(monkeypatch, capsys, Mixed, *arguments)
    assert mixed == said(monkeypatch, capsys, Plain, *arguments)
    assert yaml.safe_load(mixed[0])["model"]["inputs"] == 4


def test_help_names_search_and_tells_its_options(monkeypatch, capsys):
    out, _, code = said(monkeypatch, capsys, Mixed, "--help")
    assert "search              find the best init" in out
    assert code == 0
    out, _, code = said(monkeypatch, capsys, Mixed, "search", "--help")
    assert out.startswith("usage: main.py search --config FILE [options]")
    assert "--confirm-seeds N" in out
    assert "--cli" not in out
    assert code == 0


def test_a_mistake_is_one_line(monkeypatch, capsys):
    wrong = ("search", "--model.inputs=4", "--trialz=3")
    out, err, code = said(monkeypatch, capsys, Mixed, *wrong)
    assert (out, code) == ("", 2)
    assert "unknown option '--trialz': did you mean '--trials'" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "rest"),
    [
        (["search", "--trials", "3"], ["--trials", "3"]),
        (["--config", "a.yaml", "search", "--steps=1"], ["--config", "a.yaml", "--steps=1"]),
        (["-c=a.yaml", "search"], ["-c=a.yaml"]),
        (["fit", "--config", "search"], None),
        (["--print_config", "search"], None),
        ([], None),
    ],
)
def test_where_the_subcommand_is(given, rest):
    assert _after_search(given) == rest


def test_what_workers_could_not_make_is_refused():
    local = type("Local", (Plain,), {})
    with pytest.raises(ConfigError, match=r"how Local is made .*, or pass --workers 0"):
        for_workers(Recipe(local))
    with pytest.raises(
        ConfigError, match=r"how Plain is made .*define that at the top of a module"
    ):
        for_workers(Recipe(Plain, (lambda: None,)))
    for_workers(Recipe(Plain, (Regressor,), {"seed_everything_default": 3}))


@pytest.mark.slow
def test_an_unguarded_script_is_told_what_to_change(tmp_path):
    script = tmp_path / "unguarded.py"
    script.write_text(
        "from lightning.pytorch.cli import LightningCLI\n"
        "from lightning_init import SearchMixin\n"
        "from tests.search.own_clis import Regressor, Rows\n"
        "class CLI(SearchMixin, LightningCLI):\n    pass\n"
        "CLI(Regressor, Rows)\n"
    )
    ran = subprocess.run(
        [sys.executable, script, "search", "--model.inputs=4", "--workers=1"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2
    assert "put line 6 under `if __name__" in ran.stderr
    assert "or pass --workers 0" in ran.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("search") / "run"
    run("-m", "examples.own_cli", *SEARCH, "--workers=1", f"--out={out}")
    return out


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


@pytest.mark.slow
def test_fit_of_the_users_own_class_is_the_confirmation_run(folder, tmp_path):
    """Bit for bit, with model and data bound, a key of its own, a link, and a worker process."""
    winner = results(folder)["winner"]
    assert winner["spec"]["strategy"] != "keep"
    last = winner["runs"][2]
    saved = {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": {"every_n_train_steps": 60},
    }
    extra = tmp_path / "last.yaml"
    extra.write_text(yaml.safe_dump({"trainer": {"callbacks+": [saved]}}))
    run(
        *("-m", "examples.own_cli", "fit", f"--config={CONFIG}", "--label_noise=0.05"),
        *(f"--config={folder / 'best.yaml'}", f"--config={extra}"),
        *(f"--seed_everything={last['seed']}", "--trainer.max_steps=60"),
        f"--trainer.default_root_dir={tmp_path}",
    )
    [checkpoint] = tmp_path.rglob("*step=60.ckpt")
    model = ScaledMLP(20, 32)
    model.load_state_dict(torch.load(checkpoint, weights_only=False)["state_dict"])
    assert fingerprint(model) == last["final_fingerprint"]
    [init] = tmp_path.rglob("init.json")
    assert json.loads(init.read_text())["fingerprint"] == last["init_fingerprint"]


@pytest.mark.slow
def test_lightning_init_with_the_same_class_finds_the_same(folder, tmp_path):
    cli = ("-m", "lightning_init.cli.main", *SEARCH, "--cli=examples/own_cli.py", "--workers=0")
    run(*cli, f"--out={tmp_path}")
    runs = [
        [run["final_fingerprint"] for run in results(one)["winner"]["runs"]]
        for one in (folder, tmp_path)
    ]
    assert runs[0] == runs[1]


def test_the_example_has_what_it_says():
    assert issubclass(CLI, SearchMixin)
    assert NoisyDigits.label_noise == 0.0
