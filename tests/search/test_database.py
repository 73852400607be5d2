"""A storage's URL: a mistake in it is told before anything runs, a password never."""

import re

import optuna
import pytest

from lightning_init import SearchResult, Space, search_init
from lightning_init.cli.main import main
from lightning_init.search.database import hidden, open_database
from lightning_init.search.journal import open_storage
from lightning_init.search.mistakes import ConfigError
from tests.search.fakes import valley

SECRET = "s3cret"
MISTAKES = {
    "sqlit:///x.db": r"unknown database 'sqlit': did you mean 'sqlite'\?",
    f"http://me:{SECRET}@host/x": r"unknown database 'http': Legal are .*postgresql",
    f"mysql+foo://me:{SECRET}@host/x": r"unknown driver 'foo'",
    f"postgresql://me:{SECRET}@host:port/x": r"is no URL of a database: legal are sqlite:///FILE",
    f"postgresql+pg8000://me:{SECRET}@host/x": r"needs the package pg8000, .*pip install pg8000",
    "sqlite:/x.db": r"must be followed by //",
    f"mysql:me:{SECRET}@host/x": r"must be followed by //",
    "sqlite:////no/such/folder/x.db": r"there is no folder /no/such/folder",
    "sqlite://relative.db": r"cannot be opened: Invalid SQLite URL",
}


@pytest.mark.parametrize(("url", "says"), MISTAKES.items(), ids=[u[:12] for u in MISTAKES])
def test_a_mistake_is_told_before_anything_runs(url, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def never(*details: object) -> None:
        raise AssertionError("something has been run")

    with pytest.raises(ConfigError, match=says) as caught:
        search_init(never, Space(("normal",)), storage=url)
    assert SECRET not in str(caught.value)
    config = tmp_path / "config.yaml"
    config.write_text(
        "model: {class_path: tests.search.models.Net}\n"
        "data: {class_path: tests.search.models.Data}\n"
    )
    monkeypatch.setattr("lightning_init.search.settings.look", never)
    assert main(["search", f"--config={config}", f"--storage={url}"]) == 2
    out, err = capsys.readouterr()
    assert re.search(says, err)
    assert SECRET not in out + err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_file_that_is_no_database(tmp_path):
    (tmp_path / "x.db").write_text("no database, but a text of some length" * 40)
    with pytest.raises(ConfigError, match="cannot be opened: file is not a database"):
        open_database(f"sqlite:///{tmp_path / 'x.db'}")


def test_looking_at_a_database_makes_none(tmp_path, capsys):
    path = tmp_path / "x.db"
    assert main(["report", str(tmp_path), f"--storage=sqlite:///{path}"]) == 2
    assert f"there is no file {path}" in capsys.readouterr().err
    assert not path.exists()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:a@b:c/d@host:5432/x", "postgresql://me:***@host:5432/x"),
        ("mysql://:pw@host/x?ssl=1&password=pw", "mysql://:***@host/x?ssl=1&password=***"),
        ("postgresql://me@host/x", "postgresql://me@host/x"),
        ("sqlite:////runs/a.db", "sqlite:////runs/a.db"),
        ("mysql:me:pw@host/x", "mysql:***@host/x"),
    ],
)
def test_a_password_is_hidden_wherever_it_stands(url, shown):
    assert hidden(url) == shown


def test_what_a_driver_says_is_passed_on_without_the_password(monkeypatch):
    class Refuses:
        def __init__(self, url: str) -> None:
            raise RuntimeError(f"no login with {SECRET} at {url}")

    monkeypatch.setattr("lightning_init.search.database.RDBStorage", Refuses)
    with pytest.raises(ConfigError, match=r"no login with \*\*\* at sqlite") as caught:
        open_database(f"sqlite:///x.db?password={SECRET}")
    assert SECRET not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Query string argument:sqlalchemy.exc.SAWarning")
def test_a_search_of_something_else_names_no_password(tmp_path):
    url = f"sqlite:///{tmp_path / 'x.db'}?password={SECRET}"
    with open_storage(url) as storage:
        optuna.create_study(study_name="other", storage=storage)
    with pytest.raises(ValueError, match=r"no search in sqlite:.*password=\*\*\*"):
        SearchResult.load(tmp_path, url)


def test_a_learning_rate_that_is_no_axis_is_refused():
    with pytest.raises(ValueError, match="lr_key: unknown axis of the space 'lr'"):
        search_init(valley, Space(("normal",)), lr_key="lr")
