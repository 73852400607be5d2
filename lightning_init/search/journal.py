"""The study's file: one owner, repaired on opening, never lost.

A process that is killed may leave a torn last line or a lock behind; either would make Optuna's
journal unreadable or slow. Both are put right here, under a lock of our own.
"""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock


class BusyError(RuntimeError):
    """Another process is searching in the same folder."""


@contextmanager
def open_storage(storage: str | Path | None) -> Iterator[BaseStorage]:
    """A storage for studies: in memory, a journal file, or a database's URL.

    Args:
        storage: None, a path, or a URL with `://`.

    Raises:
        BusyError: If another process has the file open for a search.
    """
    if storage is None:
        yield optuna.storages.InMemoryStorage()
    elif isinstance(storage, str) and "://" in storage:
        yield optuna.storages.RDBStorage(storage)
    else:
        path = Path(storage)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _owned(path):
            repair(path)
            for stale in path.parent.glob(f"{path.name}.lock*"):
                stale.unlink()
            lock = JournalFileOpenLock(str(path), grace_period=5)
            yield JournalStorage(JournalFileBackend(str(path), lock_obj=lock))


def repair(path: Path) -> bool:
    """Cut a torn last line off a journal; the file as found is kept beside it.

    Args:
        path: The journal; it need not exist.

    Returns:
        Whether there was one.
    """
    data = path.read_bytes() if path.exists() else b""
    if not data or data.endswith(b"\n"):
        return False
    shutil.copyfile(path, path.with_name(f"{path.name}.bak"))
    with path.open("r+b") as file:
        file.truncate(data.rfind(b"\n") + 1)
    return True


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
