"""Persistent worker processes, one per device.

A worker is told a trial and answers with reports and an outcome; it never opens the study. A dead
worker costs its own trial only and is replaced.
"""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from lightning_init.search.devices import threads_each
from lightning_init.search.executors import Answer, said_of
from lightning_init.search.serve import BEGUN, Place, end_group, serve
from lightning_init.search.trial import Evaluate, Trial

_PRELOAD = ["torch", "lightning.pytorch", "lightning_init.search.evaluate"]
_UNGUARDED = 82  # the exit code of a worker that found itself in the user's script
_STARTS = 3  # workers that end before they begin, one after another, end the search


class StartError(RuntimeError):
    """No worker process can be started."""


def refuse_unguarded() -> None:
    """End a worker process in which the user's script runs as if it were the main program."""
    if getattr(mp.current_process(), "_inheriting", False):
        sys.stdout.flush()
        os._exit(_UNGUARDED)  # any other end would be told as a crash


@dataclass(slots=True)
class _Worker:
    process: BaseProcess
    connection: Connection
    device: str | None
    job: int | None = None
    trial: Trial | None = None
    since: float = 0.0
    begun: bool = False


class Pool:
    """Persistent worker processes.

    Args:
        evaluate: Sent to each worker, so it must pickle.
        workers: How many, at least 1.
        devices: The values of CUDA_VISIBLE_DEVICES, shared if there are more workers; none for
            CPU workers.
        log: A file for everything that workers print.
        timeout: Seconds that a trial may take, None for any.
        isolate: Whether each trial gets a fresh process.

    Raises:
        ValueError: If `evaluate` does not pickle or a number is not legal.
    """

    overlaps = True

    def __init__(
        self,
        evaluate: Evaluate,
        workers: int,
        devices: Sequence[str] = (),
        log: Path | None = None,
        timeout: float | None = None,
        isolate: bool = False,
    ) -> None:
        refuse_unguarded()
        if workers < 1 or (timeout is not None and not timeout > 0):
            raise ValueError(
                f"`workers >= 1` and `timeout > 0` must hold, but got {workers} and {timeout}"
            )
        try:
            pickled = pickle.dumps(evaluate)
        except Exception as error:
            raise ValueError(
                f"`evaluate` cannot be sent to worker processes ({error}): define it at the top "
                "of a module, or pass workers=0"
            ) from error
        self._pickled, self._log = pickled, log
        self._threads = threads_each(workers)
        self._timeout, self._isolate = timeout, isolate
        self._failed_starts = 0
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
        methods = mp.get_all_start_methods()
        self._context = mp.get_context("forkserver" if "forkserver" in methods else "spawn")
        if "forkserver" in methods:
            mp.set_forkserver_preload(_PRELOAD)
            with _deaf():  # it would print a traceback while it imports torch
                forkserver.ensure_running()
        masks: list[str | None] = list(devices) or [None]
        self._workers = [self._start(masks[i % len(masks)]) for i in range(workers)]

    def _start(self, device: str | None) -> _Worker:
        here, there = self._context.Pipe()
        # The first of all is the default; asking for it by name would settle it for the user.
        start = mp.get_start_method(allow_none=True) or mp.get_all_start_methods()[0]
        place = Place(self._pickled, device, self._threads, self._log, tuple(sys.path), start)
        process = self._context.Process(  # type: ignore[attr-defined]
            target=serve,
            args=(there, place),
            daemon=False,  # data loaders with workers of their own need a parent that may have some
        )
        process.start()
        there.close()
        return _Worker(process, here, device)

    @property
    def idle(self) -> int:
        """Workers without a trial."""
        return sum(worker.job is None for worker in self._workers)

    def submit(self, job: int, trial: Trial) -> None:
        """Send a trial to an idle worker; one that has died meanwhile is replaced."""
        worker = next(worker for worker in self._workers if worker.job is None)
        if not worker.process.is_alive():
            worker = self._replace(worker)
        self._give(worker, job, trial)

    def _give(self, worker: _Worker, job: int, trial: Trial) -> None:
        try:
            worker.connection.send((job, trial))
        except OSError:  # it died this very moment
            worker = self._replace(worker)
            worker.connection.send((job, trial))
        worker.job, worker.trial, worker.begun = job, trial, False
        worker.since = time.monotonic()

    @property
    def doing(self) -> tuple[str, ...]:
        """The trial of each worker and for how long it runs."""
        now = time.monotonic()
        return tuple(
            "" if w.job is None or w.trial is None else said_of(w.job, w.trial, now - w.since)
            for w in self._workers
        )

    def next(
        self, report: Callable[[int, int, float], bool], seconds: float | None = None
    ) -> Answer | None:
        """Wait for an outcome, the death of a worker, or the end of a trial's time."""
        end = None if seconds is None else time.monotonic() + seconds
        while True:
            busy = {w.connection: w for w in self._workers if w.job is not None}
            heard = wait(list(busy), self._patience(end))
            for connection in heard:
                answer = self._listen(busy[connection], report)  # type: ignore[index]
                if answer is not None:
                    return answer
            for worker in busy.values():
                if self._late(worker):
                    return self._lost(worker, f"it took longer than {self._timeout:g} s")
            if not heard and end is not None and time.monotonic() >= end:
                return None

    def _patience(self, end: float | None) -> float | None:
        """Seconds until there is something to do even if nobody says anything."""
        ends = [] if end is None else [end]
        if self._timeout:
            ends += [
                w.since + self._timeout for w in self._workers if w.begun and w.job is not None
            ]
        return max(0.0, min(ends) - time.monotonic()) if ends else None

    def _late(self, worker: _Worker) -> bool:
        if not self._timeout or not worker.begun or worker.job is None:
            return False
        return time.monotonic() - worker.since > self._timeout

    def _listen(self, worker: _Worker, report: Callable[[int, int, float], bool]) -> Answer | None:
        """One message of a worker; an answer if it is one."""
        assert worker.job is not None
        message = None
        with contextlib.suppress(EOFError, OSError):
            message = worker.connection.recv()
            if isinstance(message, tuple):
                stop = report(worker.job, *message)
                worker.connection.send(stop)
                return None
        if message is None or isinstance(message, tuple):
            return self._died(worker)
        if message == BEGUN:
            worker.begun, worker.since, self._failed_starts = True, time.monotonic(), 0
            return None
        assert isinstance(message, Answer)
        worker.job = worker.trial = None
        if self._isolate or message.out_of_memory:
            self._replace(worker)
        return message

    def _died(self, worker: _Worker) -> Answer | None:
        """What a worker's end means: its trial is lost, or was never begun and is given again."""
        if worker.begun:
            worker.process.join(5)
            return self._lost(worker, f"its worker process died ({_how(worker.process)})")
        job, trial = worker.job, worker.trial
        worker.process.join(5)
        self._failed_starts += 1
        if worker.process.exitcode == _UNGUARDED:
            raise StartError(
                "worker processes run your script from its beginning, and it starts the search "
                'again: put what is to run once under `if __name__ == "__main__":`, or pass '
                "workers=0"
            )
        if self._failed_starts >= _STARTS:
            seen = f"; {self._log} has the reason" if self._log else ""
            raise StartError(f"no worker process starts ({_how(worker.process)}){seen}")
        assert job is not None
        assert trial is not None
        self._give(self._replace(worker), job, trial)
        return None

    def _lost(self, worker: _Worker, why: str) -> Answer:
        assert worker.job is not None
        job = worker.job
        self._replace(worker)
        return Answer(job, None, why)

    def close(self) -> None:
        """End all workers; what they run is lost."""
        for worker in self._workers:
            worker.connection.close()  # one that waits for a trial ends by itself
            if worker.job is not None:
                _kill(worker.process)
        deadline = time.monotonic() + 2
        for worker in self._workers:
            worker.process.join(max(0.1, deadline - time.monotonic()))
            _kill(worker.process)
            worker.process.join(5)
        self._workers = []

    def _replace(self, old: _Worker) -> _Worker:
        """A fresh worker in the place of one that is dead, hung or used up."""
        old.connection.close()
        _kill(old.process)
        old.process.join(5)
        fresh = self._start(old.device)
        self._workers[self._workers.index(old)] = fresh
        return fresh


def _kill(process: BaseProcess) -> None:
    """End a worker that may hang, and the data loaders that it may have left."""
    if process.pid is not None:
        end_group(process.pid)
    if process.is_alive():
        process.kill()


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """What is started here ignores Ctrl-C, and what a cluster sends to all processes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _how(process: BaseProcess) -> str:
    code = process.exitcode
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"
