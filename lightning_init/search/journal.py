"""The study's file: one owner, repaired on opening, never lost.

A process that is killed may leave a torn last line or a lock behind; either would make Optuna's
journal unreadable or slow. Both are put right here, under a lock of our own.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import (
    BaseJournalBackend,
    JournalFileBackend,
    JournalFileOpenLock,
)

from lightning_init.search.database import is_url, open_database
from lightning_init.search.owner import BusyError, Owner

__all__ = ["BusyError", "LostError", "open_storage", "repair"]


# Optuna's numbers for a trial's parameters, losses and attributes.
_BETWEEN = (5, 7, 8, 9)


class LostError(RuntimeError):
    """The study's file has been taken away while it was in use."""


@contextmanager
def open_storage(storage: str | Path | None) -> Iterator[BaseStorage]:
    """A storage for studies: in memory, a journal file, or a database's URL.

    Args:
        storage: None, a path, or a URL with `://`.

    Raises:
        BusyError: If another process has it open for a search.
        ConfigError: If a database cannot be opened.
        LostError: If the file is deleted or replaced meanwhile.
    """
    if storage is None:
        yield optuna.storages.InMemoryStorage()
    elif is_url(storage):
        database = open_database(str(storage))
        with Owner(database):
            yield database
    else:
        path = Path(storage)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _owned(path):
            repair(path)
            for stale in path.parent.glob(f"{path.name}.lock*"):
                stale.unlink()
            yield JournalStorage(_Backend(path))


class _Backend(BaseJournalBackend):
    """Optuna's journal, but for two things.

    It is not begun anew, half of it, where somebody has deleted it. And it waits for the disk when
    a trial begins or ends, not for each of the twenty records between: a process that is killed
    loses none of them, a machine without power what a torn tail loses.
    """

    def __init__(self, path: Path) -> None:
        lock = JournalFileOpenLock(str(path), grace_period=5)
        self._file = JournalFileBackend(str(path), lock_obj=lock)
        self._lock, self._path = lock, path
        path.touch()
        self._inode = path.stat().st_ino

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write, if the file is still the one that was opened."""
        self._check()
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        self._lock.acquire()  # optuna-dashboard may write notes
        try:
            with self._path.open("ab") as file:
                file.write(lines.encode())
                file.flush()
                if not all(log.get("op_code") in _BETWEEN for log in logs):
                    os.fsync(file.fileno())
        finally:
            self._lock.release()

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """Read, if the file is still the one that was opened."""
        self._check()
        return self._file.read_logs(log_number_from)

    def _check(self) -> None:
        try:
            same = self._path.stat().st_ino == self._inode
        except FileNotFoundError:
            same = False
        if not same:
            raise LostError(
                f"{self._path} was deleted or replaced while the search used it: put it back and "
                "run the same command, or pass another --out to begin anew"
            )


def repair(path: Path) -> bool:
    """Cut a torn last record off a journal; the file as found is kept beside it.

    Args:
        path: The journal; it need not exist.

    Returns:
        Whether there was one.
    """
    data = path.read_bytes() if path.exists() else b""
    whole = data
    while whole and not _is_whole(whole):
        whole = whole[: whole.rstrip(b"\n").rfind(b"\n") + 1]
    if whole and not whole.endswith(b"\n"):
        whole += b"\n"  # nothing but the line's end was lost
    if whole == data:
        return False
    shutil.copyfile(path, path.with_name(f"{path.name}.bak"))
    fresh = path.with_name(f"{path.name}.repaired")
    fresh.write_bytes(whole)
    fresh.replace(path)
    return True


def _is_whole(data: bytes) -> bool:
    """Whether the last line is a record."""
    last = data.rstrip(b"\n").rpartition(b"\n")[2]
    try:
        return isinstance(json.loads(last), dict)
    except ValueError:
        return False


@contextmanager
def _owned(path: Path) -> Iterator[None]:
    try:
        fcntl = importlib.import_module("fcntl")
    except ImportError:  # Windows has no advisory locks; one search per folder is then a promise
        yield
        return
    handle = os.open(path.with_name(f".{path.name}.owner"), os.O_CREAT | os.O_RDWR)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BusyError(
                f"another search is running in {path.parent}: wait for it, or pass another --out"
            ) from None
        yield
    finally:
        os.close(handle)
