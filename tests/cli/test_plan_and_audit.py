"""`plan` shows and changes nothing; `audit` finds the deep net broken and `auto` sound."""

import json
import os
from pathlib import Path

import pytest
import torch
import yaml

from examples.digits import DigitsMLP
from lightning_init import InitSpec, make_plan
from lightning_init.cli.main import main

CONFIG = str(Path(__file__).parents[2] / "configs" / "digits.yaml")
DEPTH = "--model.init_args.depth=5"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield
    assert list((tmp_path / "here").iterdir()) == [], "nothing is written unless asked for"


def said(capsys, *arguments: str, code: int = 0) -> str:
    assert main(list(arguments)) == code, capsys.readouterr().err
    found = capsys.readouterr()
    assert found.err == ""
    return found.out


def entries(text: str) -> dict[str, dict]:
    return {entry["name"]: entry for entry in json.loads(text)["entries"]}


@pytest.mark.parametrize("name", ["orthogonal", "he_normal", "keep", "lecun_normal"])
def test_plan_of_a_named_strategy_is_the_plan_of_the_model(capsys, name):
    model = DigitsMLP(5)
    # What keeps everything needs no look at the model.
    forward = None if name == "keep" else lambda: model.net(torch.rand(64, 64))
    expected = make_plan(model, name, forward=forward)
    arguments = ("plan", "--config", CONFIG, DEPTH, "--strategy", name)
    assert said(capsys, *arguments) == f"{expected}\n"
    assert json.loads(said(capsys, *arguments, "--json")) == expected.to_dict()


def test_plan_is_auto_unless_the_configuration_says(capsys, tmp_path):
    auto = said(capsys, "plan", "--config", CONFIG, DEPTH)
    assert auto == said(capsys, "plan", "--config", CONFIG, DEPTH, "--strategy", "auto")
    overlay = tmp_path / "overlay.yaml"
    callback = {
        "class_path": "lightning_init.InitCallback",
        "init_args": {"strategy": "lecun_normal"},
    }
    overlay.write_text(yaml.safe_dump({"trainer": {"callbacks+": [callback]}}))
    configured = said(capsys, "plan", "--config", CONFIG, "--config", str(overlay), DEPTH)
    assert configured == said(capsys, "plan", "--config", CONFIG, DEPTH, "--strategy=lecun_normal")
    assert configured != auto


@pytest.mark.parametrize("form", ["spec", "overlay"])
def test_plan_of_a_file(capsys, tmp_path, form):
    path = tmp_path / "best.yaml"
    if form == "spec":
        InitSpec("orthogonal", {"gain": 1.25}).save(path)
    else:
        args = {"strategy": "orthogonal", "params": {"gain": 1.25}}
        callback = {"class_path": "lightning_init.InitCallback", "init_args": args}
        path.write_text(yaml.safe_dump({"trainer": {"callbacks+": [callback]}}))
    plain = said(capsys, "plan", "--config", CONFIG, DEPTH, "--strategy", "orthogonal", "--json")
    wider = said(capsys, "plan", "--config", CONFIG, DEPTH, "--strategy", str(path), "--json")
    one, two = entries(plain)["net.2.weight"], entries(wider)["net.2.weight"]
    assert (one["draw"], two["draw"]) == ("orthogonal, gain 1", "orthogonal, gain 1.25")
    assert (one["std"], two["std"]) == (0.125, 0.15625)


def test_plan_diff_names_what_changes_only(capsys):
    diff = said(
        capsys,
        "plan",
        "--config",
        CONFIG,
        DEPTH,
        "--strategy=xavier_normal",
        "--diff=xavier_uniform",
    )
    assert diff.startswith("xavier_normal -> xavier_uniform\n")
    assert "4 x net.*.weight: normal, std 0.125 -> uniform" in diff
    assert "net.8.weight: normal" in diff
    assert "bias" not in diff
    same = said(
        capsys, "plan", "--config", CONFIG, DEPTH, "--strategy=orthogonal", "--diff=orthogonal"
    )
    assert "net." not in same


def test_audit_of_the_deep_net_as_built_fails(capsys):
    found = said(capsys, "audit", "--config", CONFIG, code=1)
    assert "ERROR" in found or "error" in found
    assert "keep" in found


def test_audit_of_auto_passes(capsys):
    found = said(capsys, "audit", "--config", CONFIG, "--strategy=auto")
    assert "auto" in found


def test_audit_of_several_fails_if_one_does(capsys, tmp_path):
    out = tmp_path / "report.json"
    arguments = ["audit", "--config", CONFIG, "--strategy=auto", "--strategy=keep"]
    found = json.loads(said(capsys, *arguments, "--json", "--out", str(out), code=1))
    assert list(found) == ["auto", "keep"]
    assert json.loads(out.read_text()) == found
    severities = {
        name: {finding["severity"] for finding in report["findings"]}
        for name, report in found.items()
    }
    assert "error" not in severities["auto"]
    assert "error" in severities["keep"]
    text = said(capsys, *arguments, code=1)
    assert text.startswith("lightning_init audit: auto, keep\n")
    assert max(map(len, text.splitlines())) <= 80
    head = text.splitlines()[2]
    assert head.index(" auto ") < head.index(" keep ")
    first = next(line for line in text.splitlines() if line.startswith("0 "))
    assert first.split()[3] == "ok", "the first layer under auto"
    assert first.endswith("error [1]"), "gradients vanish there under keep"
    assert "\nkeep [1] ERROR" in text
    assert "\nauto: healthy: " in text
    assert "\nkeep: unhealthy: " in text


@pytest.mark.slow
def test_audit_with_a_baseline_says_that_depth_is_worse(capsys):
    arguments = ["audit", "--config", CONFIG, "--baseline", "--steps=60", "--json"]
    arguments += ["--strategy=keep", "--strategy=orthogonal"]
    found = json.loads(said(capsys, *arguments, code=1))
    twins = {name: report["baseline"] for name, report in found.items()}
    assert all(len(twin["deep"]) == len(twin["shallow"]) == 60 for twin in twins.values())
    # The one hidden layer does not know how the deep model was drawn.
    assert twins["keep"]["shallow"] == twins["orthogonal"]["shallow"]
    assert twins["keep"]["shallow"]["59"] < 0.7 < 2 < twins["keep"]["deep"]["59"]
    named = {
        name: [(f, *f["consequences"]) for f in report["findings"]]
        for name, report in found.items()
    }
    detectors = {
        name: {one["detector"] for group in groups for one in group}
        for name, groups in named.items()
    }
    assert "worse_than_shallow" in detectors["keep"]
    assert "worse_than_shallow" not in detectors["orthogonal"]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--steps=50"], "--steps goes with --baseline"),
        (["--baseline", "--steps=3"], "steps >= 20"),
    ],
)
def test_audit_says_which_steps_are_legal(capsys, options, why):
    assert main(["audit", "--config", CONFIG, *options]) == 2
    assert why in capsys.readouterr().err


@pytest.mark.parametrize("name", ["audit.json", "audit.html", "folder"])
def test_audit_writes_where_it_is_told(capsys, tmp_path, name):
    said(capsys, "audit", "--config", CONFIG, DEPTH, "--strategy=auto", f"--out={tmp_path / name}")
    folder = tmp_path / "folder"
    written = (
        [folder / "audit.json", folder / "audit.html"] if name == "folder" else [tmp_path / name]
    )
    for path in written:
        text = path.read_text(encoding="utf-8")
        assert text.startswith("<!doctype html>") == (path.suffix == ".html")
        if path.suffix == ".json":
            assert list(json.loads(text)) == ["auto"]


@pytest.mark.parametrize(
    ("out", "why"),
    [("nowhere/audit.json", "no folder nowhere"), ("audit.txt", "must end in .json or .html")],
)
def test_audit_says_at_once_that_it_cannot_write(capsys, out, why):
    assert main(["audit", "--config", CONFIG, DEPTH, "--out", out]) == 2
    assert why in capsys.readouterr().err


def test_audit_names_the_closest_strategy(capsys):
    assert main(["audit", "--config", CONFIG, "--strategy=keep", "--strategy=ortogonal"]) == 2
    assert "orthogonal" in capsys.readouterr().err


def test_audit_of_a_file(capsys, tmp_path):
    path = tmp_path / "tiny.yaml"
    InitSpec("normal", {"std": 1e-4}).save(path)
    found = json.loads(
        said(capsys, "audit", "--config", CONFIG, f"--strategy={path}", "--json", code=1)
    )
    assert list(found) == [str(path)]


def test_plan_and_audit_take_overrides_of_the_configuration(capsys):
    shallow = said(capsys, "audit", "--config", CONFIG, "--model.init_args.depth=2")
    assert "healthy: 2 layers read" in shallow


def test_a_place_that_cannot_be_written_is_said_before_anything_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    nowhere = tmp_path / "file" / "folder"
    assert main(["audit", "--config", CONFIG, DEPTH, "--out", str(nowhere)]) == 2
    assert "--out: the folder" in capsys.readouterr().err
    allowed = os.access
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK and allowed(path, mode))
    assert main(["audit", "--config", CONFIG, DEPTH, "--out", str(tmp_path / "a.html")]) == 2
    assert "no permission" in capsys.readouterr().err
    assert not (tmp_path / "a.html").exists()
