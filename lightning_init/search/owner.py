"""Who searches in a database: its processes may be on many machines, so its owner shows a pulse.

What an owner left RUNNING is run again by the next one. So there must be one at a time.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from types import TracebackType
from typing import Any, Self

from optuna.exceptions import DuplicatedStudyError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection

_STUDY = "owner"
_BEAT = 10.0  # seconds between two signs of life
_PATIENCE = 60.0  # seconds without one after which an owner counts as gone


class BusyError(RuntimeError):
    """Another process is searching in the same storage."""


class Owner:
    """Holds a database for this process.

    Args:
        storage: The database.

    Raises:
        BusyError: On entering, if another process searches in it.
    """

    def __init__(self, storage: RDBStorage) -> None:
        self._storage = storage
        self._me = uuid.uuid4().hex
        self._done = threading.Event()
        self._pulse = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        try:
            self._study = self._storage.create_new_study([StudyDirection.MINIMIZE], _STUDY)
        except DuplicatedStudyError:
            self._study = self._storage.get_study_id_from_name(_STUDY)
        if _lives(other := self._record()):
            raise BusyError(
                f"another search is running on this storage (process {other['pid']} on "
                f"{other['host']}): wait for it, or pass another --storage"
            )
        self._sign()
        if self._record().get("who") != self._me:  # two began at once
            raise BusyError("another search has just begun on this storage: wait for it")
        self._pulse.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._pulse.join()
        if self._record().get("who") == self._me:
            self._storage.set_study_user_attr(self._study, _STUDY, {})

    def _beat(self) -> None:
        while not self._done.wait(_BEAT):
            self._sign()

    def _sign(self) -> None:
        record = {
            "who": self._me,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "time": time.time(),
        }
        self._storage.set_study_user_attr(self._study, _STUDY, record)

    def _record(self) -> dict[str, Any]:
        found = self._storage.get_study_user_attrs(self._study).get(_STUDY)
        return dict(found or {})


def _lives(record: dict[str, Any]) -> bool:
    """Whether the owner of a record still searches; a dead process here is known at once."""
    if not record or time.time() - record["time"] > _PATIENCE:
        return False
    if record["host"] != socket.gethostname():
        return True
    try:
        os.kill(record["pid"], 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # somebody else's process
    return True
