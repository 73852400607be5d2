"""The user's own database: a URL that is checked before anything runs, and never printed whole."""

from __future__ import annotations

import re
from pathlib import Path

from optuna.storages import RDBStorage

from lightning_init.architecture.arguments import unknown
from lightning_init.search.mistakes import ConfigError, one_line

_KINDS = ("sqlite", "postgresql", "mysql", "mariadb", "mssql", "oracle")
_FORMS = "sqlite:///FILE, postgresql://USER:PASSWORD@HOST/NAME or mysql://USER:PASSWORD@HOST/NAME"
_USUAL = {"MySQLdb": "mysqlclient", "psycopg2": "psycopg2-binary"}  # what to install


def is_url(storage: object) -> bool:
    """Whether a storage is a database rather than a file.

    Raises:
        ConfigError: If it is neither: `sqlite:/FILE`.
    """
    if not isinstance(storage, str) or "://" in storage:
        return isinstance(storage, str)
    if kind := re.match(r"([a-z][a-z0-9+]+):", storage):  # one letter is a drive
        raise ConfigError(
            f"storage {hidden(storage)} is no URL: {kind[1]}: must be followed by //; legal are "
            f"{_FORMS}, or a path"
        )
    return False


def hidden(url: object) -> str:
    """A URL without its password, wherever that stands.

    Example:
        >>> hidden("mysql://me:a@b@host/db?password=c&x=1")
        'mysql://me:***@host/db?password=***&x=1'
    """
    text = str(url)
    shown = re.sub(r"^([^/:]*://[^/:@]*):.*@", r"\1:***@", text)
    text = re.sub(r":(?!//).*@", ":***@", text) if shown == text else shown
    return re.sub(r"(?i)\b(\w*(?:passw|pwd|token|secret)\w*=)[^&]*", r"\1***", text)


def open_database(url: str, *, exists: bool = False) -> RDBStorage:
    """The database of a URL.

    Args:
        url: As SQLAlchemy has it.
        exists: Whether a file must be there already.

    Raises:
        ConfigError: If it cannot be opened; what is wrong, what is legal, no password.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

    shown = hidden(url)
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise ConfigError(f"storage {shown} is no URL of a database: legal are {_FORMS}") from None
    kind, _, driver = parsed.drivername.partition("+")
    try:
        dialect = parsed.get_dialect()
        dialect.import_dbapi()
    except NoSuchModuleError:
        if kind in _KINDS:
            wrong = f"unknown driver {driver!r}: leave it out for the usual one"
        else:
            wrong = f"{unknown('database', kind, _KINDS)}, as in {_FORMS}"
        raise ConfigError(f"storage {shown}: {wrong}") from None
    except ImportError as error:
        name = str(error.name)
        raise ConfigError(
            f"storage {shown}: {kind} needs the package {name}, which is not installed: "
            f"pip install {_USUAL.get(name, name)}"
        ) from None
    file = parsed.database if kind == "sqlite" else None
    if file and file != ":memory:" and not file.startswith("file:"):
        if not Path(file).absolute().parent.is_dir():
            raise ConfigError(f"storage {shown}: there is no folder {Path(file).parent}")
        if exists and not Path(file).is_file():
            raise ConfigError(f"storage {shown}: there is no file {file}")
    try:
        return RDBStorage(url)
    except (SQLAlchemyError, ImportError, RuntimeError, TypeError) as error:
        text = one_line(getattr(error, "orig", None) or error)
        for secret in filter(None, (parsed.password, *parsed.query.values())):
            text = text.replace(str(secret), "***")
        raise ConfigError(f"storage {shown} cannot be opened: {text}; legal are {_FORMS}") from None
