"""The table of options: help and mistakes are answered from it alone, the parser takes the same."""

import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from jsonargparse import ArgumentParser

from lightning_init.cli.flags import FLAGS, OBJECTIVES, add_flags
from lightning_init.cli.main import COMMANDS, main
from lightning_init.cli.options import job_for
from lightning_init.cli.quick import answer, help_of
from lightning_init.search.objectives import Kind

CONFIG = str(Path(__file__).parents[2] / "configs" / "digits.yaml")
HEAVY = {"torch", "lightning", "optuna", "jsonargparse", "numpy", "scipy", "rich", "yaml"}
WITH_CONFIG = [command for command in FLAGS if command not in ("list", "report")]


def imported_by(*arguments: str) -> tuple[int, list[str], str]:
    """Exit code, heavy imports, and what a process says to these arguments."""
    code = (
        "import json, sys\n"
        "from lightning_init.cli.main import main\n"
        f"code = main({list(arguments)!r})\n"
        f"print(json.dumps([code, sorted({HEAVY!r} & set(sys.modules))]))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    code, heavy = json.loads(run.stdout.splitlines()[-1])
    return code, heavy, run.stdout + run.stderr


def test_every_command_is_in_the_table():
    assert set(FLAGS) == set(COMMANDS)


@pytest.mark.parametrize("command", FLAGS)
def test_help_imports_nothing_heavy(command):
    code, heavy, said = imported_by(command, "--help")
    assert (code, heavy) == (0, [])
    assert f"usage: lightning-init {command}" in said


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ("search --tirals=3", "unknown option '--tirals': did you mean '--trials'?"),
        ("search --trials=many", "--trials must be a whole number, but got 'many'"),
        ("search --trials 0", "`--trials >= 1` must hold, but got 0"),
        ("search --sampler=cma", "--sampler: unknown value 'cma': Legal are gp, tpe"),
        ("search --mode mim", "--mode: unknown value 'mim': did you mean 'min'?"),
        ("search --objective=area,steps_two=3", "--objective: unknown objective 'steps_two': did"),
        ("search --no-pruning=3", "--no-pruning takes no value, but got '3'"),
        ("search --steps", "--steps needs a value"),
        ("search --steps --seed=1", "--steps needs a value"),
        ("search some.yaml", "unexpected argument 'some.yaml': a configuration goes after"),
        ("search --config=absent.yaml", "unknown configuration file 'absent.yaml'"),
        ("search --config", "--config needs FILE"),
        ("search", "no model: pass --config FILE"),
        ("audit --strategy", "--strategy needs NAME|FILE"),
        ("plan --jsn", "unknown option '--jsn': did you mean '--json'?"),
        ("list strategys", "what: unknown value 'strategys': did you mean 'strategies'?"),
        ("list all all", "unexpected argument 'all'"),
    ],
)
def test_mistakes_are_answered_without_anything_heavy(arguments, wanted):
    code, heavy, said = imported_by(*arguments.split())
    assert (code, heavy) == (2, [])
    assert f"lightning-init: {wanted}" in said


@pytest.mark.parametrize("command", FLAGS)
@pytest.mark.parametrize("columns", ["60", "80", "200"])
def test_help_fits_and_names_every_option_with_its_default(monkeypatch, command, columns):
    monkeypatch.setenv("COLUMNS", columns)
    text = help_of(command, COMMANDS[command])
    assert max(map(len, text.splitlines())) <= min(80, int(columns))
    words = " ".join(text.split())
    for flag in FLAGS[command]:
        assert flag.name in words
        assert flag.help in words
        if flag.default is not None:
            assert f"{flag.help} ({flag.default})" in words


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config", CONFIG],
        [f"--config={CONFIG}", "--trainer.max_steps", "5", "--model.init_args.lr=0.1"],
        ["--model", "some.Net", "--data", "some.Data", "--seed_everything", "-1"],
        ["-c", CONFIG, "--trainer.callbacks+=some.Callback", "--optimizer=Adam"],
        ["--lr_scheduler=ExponentialLR", "--lr_scheduler.gamma", "0.9", "--config", CONFIG],
    ],
)
@pytest.mark.parametrize("command", WITH_CONFIG)
def test_what_lightningcli_takes_is_left_alone(command, arguments):
    positions = ["spec"] if any(f.by_position for f in FLAGS[command]) else []
    assert answer(command, [*positions, *arguments], "") is None


def test_all_options_of_lightningcli_can_be_listed(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["plan", "--help", "all"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "--trainer.max_steps" in out
    assert "--diff" in out


@pytest.mark.parametrize("command", FLAGS)
def test_the_parser_has_the_defaults_of_the_table(command):
    parser = ArgumentParser(exit_on_error=False)
    add_flags(parser, command)
    given = ["spec"] if any(f.by_position and f.many for f in FLAGS[command]) else []
    options = parser.parse_args(given)
    for flag in FLAGS[command]:
        if given and flag.by_position:
            continue
        wanted = False if flag.kind is bool else flag.default
        assert options[flag.spellings[0].lstrip("-")] == wanted


@pytest.mark.parametrize("command", FLAGS)
def test_what_the_check_lets_through_the_parser_takes(command):
    """Every option once, with a value of its kind; both spellings."""
    for index in (0, -1):
        given, wanted = [], {}
        for flag in FLAGS[command]:
            text = {int: "7", float: "1.5"}.get(flag.kind, "text")
            text = (flag.choices or flag.kinds or (text,))[0]
            value = True if flag.kind is bool else text if flag.kind is str else flag.kind(text)
            name = flag.spellings[index]
            given += [text] if flag.by_position else [name] if value is True else [name, text]
            wanted[flag.spellings[0].lstrip("-")] = [value] if flag.many else value
        parser = ArgumentParser(exit_on_error=False)
        add_flags(parser, command)
        assert (
            answer(command, [*given, "--config", CONFIG] if command in WITH_CONFIG else given, "")
            is None
        )
        assert {
            k: v for k, v in parser.parse_args(given).as_dict().items() if k in wanted
        } == wanted


def test_the_kinds_of_objectives_are_those_that_there_are():
    assert get_args(Kind) == OBJECTIVES


def test_help_before_a_mistake_is_help_after_it_the_mistake():
    assert "usage" in str(answer("search", ["--help", "--tirals"], ""))
    with pytest.raises(ValueError, match="--tirals"):
        answer("search", ["--tirals", "--help"], "")


def test_the_word_behind_help_is_dropped_there_only():
    given = ["--config", "configs/digits.yaml", "--scale", "all", "--scale", "head"]
    assert job_for("search", given).config.scale == ["all", "head"]
