"""`lightning-init` itself: help, version, errors as one line, the catalogue."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len

import lightning_init
from lightning_init.cli.list import catalogue, markdown
from lightning_init.cli.main import COMMANDS, main
from lightning_init.health import registry as detectors
from lightning_init.strategies import registry
from lightning_init.strategies.needs import NEEDS


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_names_every_command(capsys, arguments):
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert said.err == ""
    for name, text in COMMANDS.items():
        assert f"  {name}" in said.out
        assert text in said.out


def test_an_interrupted_command_says_so(capsys, monkeypatch):
    def run(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("lightning_init.cli.list.run", run)
    assert main(["list"]) == 130
    assert capsys.readouterr().err == "lightning-init: interrupted\n"


@pytest.mark.parametrize("argument", ["--help", "--version", "serch"])
def test_nothing_heavy_is_imported_before_the_command_is_known(argument):
    code = (
        "import sys\n"
        "from lightning_init.cli.main import main\n"
        f"main([{argument!r}])\n"
        "heavy = {'torch', 'lightning', 'optuna', 'jsonargparse', 'numpy', 'rich', 'yaml'}\n"
        "print('imported:', sorted(heavy & set(sys.modules)))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "imported: []"


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lightning-init {lightning_init.__version__}\n"


def test_an_unknown_command_names_the_closest(capsys):
    assert main(["serch", "--config", "x"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "unknown command 'serch': did you mean 'search'?" in said.err
    assert all(name in said.err for name in COMMANDS)


def test_debug_shows_where(capsys):
    arguments = ["list", "strategys"]
    assert main(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err
    with pytest.raises(ValueError, match="strategys"):
        main(["--debug", *arguments])
    with pytest.raises(ValueError, match="strategys"):
        main([*arguments, "--debug"])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(capsys, command):
    assert main([command, "--help"]) == 0
    assert f"lightning-init {command}" in capsys.readouterr().out


def test_list_as_json_is_the_registry(capsys):
    assert main(["list", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in data["strategies"]] == [e.name for e in registry.entries()]
    assert [row["name"] for row in data["detectors"]] == [e.name for e in detectors.entries()]
    rows = {row["name"]: row for row in data["strategies"]}
    for entry in registry.entries():
        row = rows[entry.name]
        assert row["summary"] == entry.summary != ""
        assert row["aliases"] == list(entry.aliases)
        assert row["needs"] == [NEEDS[name].says for name in entry.needs]
        assert row["passes"] == entry.cost
        parameters = {p["name"]: p for p in row["parameters"]}
        assert set(parameters) == set(entry.parameters)
        for name, parameter in entry.parameters.items():
            if parameter.converted is None:
                assert parameters[name]["default"] == parameter.default
            if parameter.range is not None:
                assert parameters[name]["low"] == parameter.range.low
                assert parameters[name]["high"] == parameter.range.high
    mode = next(p for p in rows["kaiming_normal"]["parameters"] if p["name"] == "mode")
    assert mode["choices"][:2] == ["fan_in", "fan_out"]


@pytest.mark.parametrize("what", ["strategies", "detectors"])
def test_list_one_kind(capsys, what):
    assert main(["list", what, "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == [what]
    assert main(["list", what]) == 0
    out = capsys.readouterr().out
    names = [e.name for e in (registry if what == "strategies" else detectors).entries()]
    others = [e.name for e in (detectors if what == "strategies" else registry).entries()]
    firsts = [line.split(" ")[0] for line in out.splitlines()]
    assert [first for first in firsts if first in names] == names
    assert not set(firsts) & set(others)


@pytest.mark.parametrize("columns", [80, 120])
def test_the_catalogue_fits_the_terminal(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert max(cell_len(line.rstrip()) for line in out.splitlines()) <= columns
    assert "…" not in out
    for entry in (*registry.entries(), *detectors.entries()):
        assert f"\n{entry.name} " in out
        for name in entry.parameters:
            assert f"{name}=" in out


@pytest.mark.parametrize(
    ("what", "page"), [("strategies", "schemes.md"), ("detectors", "detectors/README.md")]
)
def test_the_catalogue_in_the_docs_is_the_one_of_the_registry(what, page):
    text = (Path(__file__).parents[2] / "docs" / page).read_text(encoding="utf-8")
    _, begin, rest = text.partition("<!-- catalogue -->\n")
    table, end, _ = rest.partition("\n<!-- end -->")
    assert begin
    assert end
    assert table == markdown(catalogue()[what]), "run: python docs/catalogue.py"


def test_the_catalogue_says_how_bad_each_finding_is_and_where_to_read(capsys):
    rows = {row["name"]: row for row in catalogue()["detectors"]}
    # What the rules themselves were seen to say in their own tests.
    assert rows["worse_than_shallow"]["severities"] == ["error", "warning"]
    assert rows["loss_oscillates"]["severities"] == ["warning"]
    assert rows["textbook_std"]["profile"] == "textbook"
    assert all(row["severities"] for row in rows.values())
    assert main(["list", "detectors"]) == 0
    out = capsys.readouterr().out
    for row in rows.values():
        assert row["page"] in out
    assert out.count("(profile textbook)") + out.count("(profile\n") >= 1


def test_the_catalogue_says_what_each_scheme_needs_and_costs(capsys):
    assert main(["list", "strategies"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for entry in registry.entries():
        assert entry.name in printed
        for need in entry.needs:
            assert NEEDS[need].says.split()[-1] in printed
