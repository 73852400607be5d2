"""`lightning-init compare` on a configuration."""

import json
from pathlib import Path

import optuna
import pytest
import yaml

from lightning_init import InitSpec
from lightning_init.cli.main import main
from lightning_init.search.journal import open_storage

CONFIG = Path(__file__).parents[2] / "configs" / "digits.yaml"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning",
    ),
]


def runs(folder: Path) -> int:
    with open_storage(folder / "study.journal") as storage:
        return len(optuna.load_study(study_name="compare", storage=storage).trials)


def test_names_files_and_overlays_against_keep(tmp_path, capsys):
    InitSpec("orthogonal", {"gain": 1.1}).save(tmp_path / "spec.yaml")
    callback = {"class_path": "lightning_init.InitCallback", "init_args": {"strategy": "lsuv"}}
    overlay = {
        "seed_everything": 1,
        "model": {"init_args": {"lr": 0.01}},
        "trainer": {"callbacks+": [callback]},
    }
    (tmp_path / "best.yaml").write_text(yaml.safe_dump(overlay))
    command = ["compare", "auto", str(tmp_path / "spec.yaml"), str(tmp_path / "best.yaml")]
    command += ["--config", str(CONFIG), "--seeds", "2", "--steps", "10", "--workers", "0"]
    command += ["--out", str(tmp_path / "run")]
    assert main(command) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Comparing val_acc (max) of 3 inits with keep: 2 fresh seeds, 10 steps each" in text
    assert "steps each; in this process; " in text
    data = json.loads((tmp_path / "run" / "compare.json").read_text())
    labels = {one["label"] for one in data["candidates"]}
    assert labels == {"auto", "orthogonal(gain=1.1)", "lsuv lr=0.01"}
    assert data["baseline"]["config"] == {}
    assert [run["seed"] for run in data["baseline"]["runs"]] == [1000, 1001]
    assert (tmp_path / "run" / "compare.html").stat().st_size > 10_000
    assert not (tmp_path / "run" / "best.yaml").exists()
    assert runs(tmp_path / "run") == 8
    assert main(command) == 0
    assert runs(tmp_path / "run") == 8, "nothing is run again"
    for argument, said in (
        ("val_loss", "holds the comparison of another configuration or metric: pass --out"),
        ("val_los", "--monitor: unknown metric 'val_los': did you mean 'val_loss'"),
    ):
        assert main([*command, "--monitor", argument]) == 2
        assert said in capsys.readouterr().err


def test_mistakes_are_one_line(tmp_path, capsys):
    tail = ["--config", str(CONFIG), "--out", str(tmp_path / "run")]
    assert main(["compare", "orthogonl", *tail]) == 2
    assert "unknown strategy 'orthogonl': did you mean 'orthogonal'?" in capsys.readouterr().err
    overlay = {
        "model": {"init_args": {"lrr": 0.1}},
        "trainer": {"callbacks+": [{"class_path": "lightning_init.InitCallback"}]},
    }
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(overlay))
    assert main(["compare", str(tmp_path / "bad.yaml"), *tail]) == 2
    assert "unknown configuration key 'model.init_args.lrr'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
