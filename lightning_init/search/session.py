"""Who runs the trials of a search and where its studies are, from its beginning to its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import optuna

from lightning_init.search.devices import visible_devices
from lightning_init.search.executors import Executor, InProcess
from lightning_init.search.interrupts import Stop
from lightning_init.search.journal import open_storage
from lightning_init.search.loop import Loop, Progress, Seen
from lightning_init.search.pool import Pool, refuse_unguarded
from lightning_init.search.trial import Evaluate

_GRACE = 10.0  # seconds that running trials get after the first Ctrl-C


@dataclass(frozen=True)
class Workers:
    """Worker processes.

    Args:
        count: How many; 0 runs trials in this process, one after another.
        devices: The GPUs that they share, as CUDA_VISIBLE_DEVICES names them; None for all that
            this process may use, empty for none.
        timeout: Seconds that a trial may take, above 0; one that takes longer is ended and tried
            once more. None for any.
        isolate: Whether each trial gets a fresh process.

    Raises:
        ValueError: If a number is not legal, or if a limit is given without any process.

    Example:
        >>> Workers(2, timeout=60.0).count
        2
    """

    count: int = 0
    devices: Sequence[str] | None = None
    timeout: float | None = None
    isolate: bool = False

    def __post_init__(self) -> None:
        if self.count < 0 or (self.timeout is not None and not self.timeout > 0):
            raise ValueError(
                f"`workers >= 0` and `timeout > 0` must hold, but got {self.count} and "
                f"{self.timeout}"
            )
        if not self.count and (self.timeout or self.isolate):
            raise ValueError("a time limit and fresh processes go with workers, but there are none")

    def run(self, evaluate: Evaluate, log: Path | None) -> Executor:
        """Start them."""
        if not self.count:
            return InProcess(evaluate, log)
        devices = visible_devices() if self.devices is None else self.devices
        return Pool(evaluate, self.count, devices, log, self.timeout, self.isolate)


@contextmanager
def session(
    evaluate: Evaluate,
    storage: str | Path | None,
    workers: int | Workers,
    log: Path | None,
    progress: Progress | None,
    seen: Seen | None,
) -> Iterator[tuple[optuna.storages.BaseStorage, Loop]]:
    """A storage and a loop on workers, which are started on first use and ended at the end."""
    refuse_unguarded()
    quiet()
    crew = Workers(workers) if isinstance(workers, int) else workers

    @cache
    def executor() -> Executor:  # a search that is complete starts no process
        return crew.run(evaluate, log)

    with open_storage(storage) as opened, Stop(_GRACE if crew.count else None) as stop:
        try:
            yield opened, Loop(executor, stop, progress or _silent, seen or _silent)
        finally:
            if executor.cache_info().currsize:
                executor().close()


def quiet() -> None:
    """Optuna tells every trial, which is what the progress does."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def _silent(*news: object) -> None:
    del news
