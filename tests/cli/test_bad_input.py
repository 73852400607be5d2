"""Every mistake: exit code 2, one line that says what is legal, no traceback, nothing written."""

import re
from pathlib import Path

import pytest
import yaml

from lightning_init import InitSpec
from lightning_init.cli.main import main

CONFIGS = Path(__file__).parents[2] / "configs"
CONFIG = str(CONFIGS / "digits_shallow.yaml")
SEARCH = ("search", "--config", CONFIG, "--workers=0", "--trials=1", "--steps=2")


@pytest.fixture(autouse=True)
def _cwd(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def refused(capsys, tmp_path):
    def check(*arguments: str) -> str:
        before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
        assert main([str(argument) for argument in arguments]) == 2
        said = capsys.readouterr()
        assert said.err.startswith("lightning-init: ")
        assert said.err.count("\n") == 1
        assert "Traceback" not in said.err + said.out
        after = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
        assert after == before, "nothing is written"
        return said.err

    return check


def file(tmp_path: Path, data: object, name: str = "config.yaml") -> str:
    path = tmp_path / name
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data))
    return str(path)


NET = {"class_path": "tests.search.models.Net"}
DATA = {"class_path": "tests.search.models.Data"}
OF_ALL = pytest.mark.parametrize("command", ["plan", "audit", "search"])


@pytest.mark.parametrize("option", ["plan --strategy", "plan --diff", "audit --strategy"])
def test_unknown_strategy(refused, option):
    command, flag = option.split()
    text = refused(command, "--config", CONFIG, f"{flag}=orthogonl")
    assert "unknown strategy 'orthogonl': did you mean 'orthogonal'?" in text


def test_unknown_strategy_in_a_search(refused):
    text = refused(*SEARCH, "--strategies=xavier_normal,orthogonl")
    assert "unknown strategy 'orthogonl': did you mean 'orthogonal'?" in text


def test_parameter_out_of_range(refused, tmp_path):
    path = file(tmp_path, {"strategy": "orthogonal", "params": {"gain": 1e9}}, "spec.yaml")
    text = refused("plan", "--config", CONFIG, "--strategy", path)
    assert "spec.yaml" in text
    assert re.search(r"`[\d.e+-]+ <= gain <= [\d.e+-]+` must hold, but got gain=1e\+09", text)


def test_parameter_out_of_range_in_the_configurations_own_callback(refused, tmp_path):
    args = {"strategy": "orthogonal", "params": {"gain": 1e9}}
    callback = {"class_path": "lightning_init.InitCallback", "init_args": args}
    path = file(tmp_path, {"model": NET, "data": DATA, "trainer": {"callbacks": [callback]}})
    assert "<= gain <=" in refused("plan", "--config", path)


@OF_ALL
@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"model": {**NET, "init_args": {"widht": 3}}, "data": DATA}, "did you mean 'width'"),
        ({"model": {**NET, "init_args": {"width": "x"}}, "data": DATA}, "width must be int"),
        ({"model": NET, "data": DATA, "trainer": {"max_stepz": 1}}, "did you mean 'max_steps'"),
        ("model: [1", "is not YAML"),
        ("- 1", "must hold `model:`"),
        ({"foo": 1}, "not a LightningCLI configuration"),
    ],
)
def test_a_configuration_that_does_not_fit(refused, tmp_path, command, data, said):
    assert said in refused(command, "--config", file(tmp_path, data))


@OF_ALL
def test_a_model_without_data(refused, tmp_path, command):
    assert "no training data: add `data:`" in refused(
        command, "--config", file(tmp_path, {"model": NET, "trainer": {"accelerator": "cpu"}})
    )


@OF_ALL
def test_no_model(refused, tmp_path, command):
    assert "no model: pass --config FILE" in refused(command)
    assert "no model: pass --config FILE" in refused(
        command, "--config", file(tmp_path, {"data": DATA})
    )


@pytest.mark.parametrize("command", ["plan", "audit"])
@pytest.mark.parametrize("data", ["just text", "[1, 2]", "a: 1\nb: 2", "a: [", ""])
def test_a_file_that_is_not_a_spec(refused, tmp_path, command, data):
    path = file(tmp_path, data, "spec.yaml")
    text = refused(command, "--config", CONFIG, "--strategy", path)
    assert "spec.yaml is not" in text
    assert "lightning-init search" in text


@pytest.mark.parametrize("command", ["plan", "audit"])
def test_a_missing_spec(refused, command):
    assert "no init spec at absent.yaml" in refused(
        command, "--config", CONFIG, "--strategy=absent.yaml"
    )


@OF_ALL
def test_a_missing_configuration_names_its_neighbour(refused, command):
    text = refused(command, "--config", str(CONFIGS / "digit.yaml"))
    assert "unknown configuration file" in text
    assert "did you mean" in text
    assert "digits.yaml" in text


@OF_ALL
def test_a_wrong_option_names_the_closest(refused, command):
    option = {"plan": "--stratgy", "audit": "--stratgy", "search": "--trails"}[command]
    text = refused(command, "--config", CONFIG, f"{option}=3")
    wanted = "--trials" if command == "search" else "--strategy"
    assert f"did you mean '{wanted}'" in text


def test_axis_of_an_unknown_key(refused):
    text = refused(*SEARCH, "--axis=model.init_args.widht=16:64")
    assert "--axis: unknown configuration key 'model.init_args.widht'" in text
    assert "did you mean 'model.init_args.width'" in text


@pytest.mark.parametrize("axis", ["lr", "lr=", "lr=2:1", "lr=0:1:log", "lr=1:2:3", "=1:2", "lr=1,"])
def test_axis_that_is_neither_interval_nor_list(refused, axis):
    text = refused(*SEARCH, f"--axis={axis}")
    assert "--axis must be KEY=LOW:HIGH, KEY=LOW:HIGH:log or KEY=a,b,c" in text
    assert repr(axis) in text


def test_an_unknown_metric(refused):
    text = refused(*SEARCH, "--monitor=val_los")
    assert "--monitor: unknown metric 'val_los': did you mean 'val_loss'" in text
    assert "val_acc" in text


def test_an_unknown_learning_rate(refused):
    text = refused(*SEARCH, "--lr-key=model.init_args.lrate")
    assert "--lr-key: unknown learning rate 'model.init_args.lrate'" in text
    assert "model.init_args.lr" in text


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--trials=0", "`--trials >= 1` must hold, but got 0"),
        ("--trials=-3", "`--trials >= 1` must hold, but got -3"),
        ("--trials=many", "--trials must be a whole number, but got 'many'"),
        ("--steps=0", "`--steps >= 1` must hold, but got 0"),
        ("--confirm-seeds=1", "`--confirm-seeds >= 2` must hold, but got 1"),
        ("--workers=-1", "workers >= 0"),
        ("--sampler=cma", "sampler"),
        ("--mode=less", "mode"),
    ],
)
def test_numbers_and_choices_of_a_search(refused, option, said):
    assert said in refused(*SEARCH, option)


@pytest.mark.parametrize(
    "change", ["--steps=3", "--seed=4", "--model.init_args.width=32", "--strategies=orthogonal"]
)
def test_a_folder_of_another_search(refused, capsys, tmp_path, change):
    out = tmp_path / "run"
    first = (*SEARCH, f"--out={out}", "--confirm-seeds=2", "--strategies=keep")
    assert main(list(first)) == 0
    capsys.readouterr()
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert main([*first, change]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "another configuration" in said.err
    assert f"--out {out}-2" in said.err
    after = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    for name in ("best.yaml", "results.json", "report.html"):
        assert after[name] == before[name]


def test_a_spec_that_is_legal_is_not_refused(capsys, tmp_path):
    path = tmp_path / "spec.yaml"
    InitSpec("orthogonal", {"gain": 1.5}).save(path)
    assert main(["plan", "--config", CONFIG, "--strategy", str(path)]) == 0
    assert capsys.readouterr().err == ""
