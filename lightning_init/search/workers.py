"""Who runs trials: this process, or persistent worker processes, one per device.

A worker is told a trial and answers with reports and an outcome; it never opens the study. A dead
worker costs its own trial only and is replaced.
"""

from __future__ import annotations

import logging
import multiprocessing as mp
import os
import pickle
import signal
import sys
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol

import torch

from lightning_init.search.job import ConfigError
from lightning_init.search.trial import Evaluate, Outcome, Report, Trial

_PRELOAD = ["torch", "lightning.pytorch", "lightning_init.search.evaluate"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for a job: an outcome, or the text of a crash."""

    job: int
    outcome: Outcome | None
    crash: str = ""
    user_error: bool = False  # a mistake in the configuration, the same for every trial


class Executor(Protocol):
    """Runs trials somewhere."""

    @property
    def idle(self) -> int:
        """How many trials can be submitted now."""

    def submit(self, job: int, trial: Trial) -> None:
        """Start a trial; only while `idle` is positive."""

    @property
    def doing(self) -> tuple[str, ...]:
        """What each worker does, for people."""

    def next(
        self, report: Callable[[int, int, float], bool], seconds: float | None = None
    ) -> Answer | None:
        """The next answer, None if none came in some seconds.

        Reports of running trials go through `report(job, step, value)`.
        """

    def close(self) -> None:
        """Stop all workers."""


class InProcess:
    """Runs trials here, one after another."""

    def __init__(self, evaluate: Evaluate) -> None:
        self.evaluate = evaluate
        self._waiting: deque[tuple[int, Trial]] = deque()

    @property
    def idle(self) -> int:
        """One trial at a time."""
        return 1 - len(self._waiting)

    def submit(self, job: int, trial: Trial) -> None:
        """Remember the trial; `next` runs it."""
        self._waiting.append((job, trial))

    @property
    def doing(self) -> tuple[str, ...]:
        """The trial that waits."""
        return tuple(str(trial.spec) for _, trial in self._waiting)

    def next(
        self, report: Callable[[int, int, float], bool], seconds: float | None = None
    ) -> Answer:
        """Run the trial that waits, however long it takes."""
        del seconds
        job, trial = self._waiting.popleft()
        return _run(self.evaluate, job, trial, lambda step, value: report(job, step, value))

    def close(self) -> None:
        """Nothing to stop."""


@dataclass(slots=True)
class _Worker:
    process: BaseProcess
    connection: Connection
    device: str | None
    job: int | None = None
    label: str = ""
    since: float = 0.0


class Pool:
    """Persistent worker processes.

    Args:
        evaluate: Sent to each worker, so it must pickle.
        workers: How many.
        devices: The value of CUDA_VISIBLE_DEVICES for each worker, None for CPU workers.
        log: A file for everything that workers print.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        workers: int,
        devices: list[str] | None = None,
        log: Path | None = None,
    ) -> None:
        try:
            self._evaluate = pickle.dumps(evaluate)
        except Exception as error:
            raise ValueError(
                f"`evaluate` cannot be sent to worker processes ({error}): define it at the top "
                "of a module, or pass workers=0"
            ) from error
        methods = mp.get_all_start_methods()
        self._context = mp.get_context("forkserver" if "forkserver" in methods else "spawn")
        if "forkserver" in methods:
            mp.set_forkserver_preload(_PRELOAD)
        self._log = log
        self._threads = max(1, (os.cpu_count() or 1) // workers)
        masks: list[str | None] = list(devices) if devices else [None]
        self._workers = [self._start(masks[i % len(masks)]) for i in range(workers)]

    def _start(self, device: str | None) -> _Worker:
        here, there = self._context.Pipe()
        process = self._context.Process(  # type: ignore[attr-defined]
            target=_serve,
            args=(there, self._evaluate, device, self._threads, self._log, list(sys.path)),
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
        try:
            worker.connection.send(trial)
        except OSError:  # it died this very moment
            worker = self._replace(worker)
            worker.connection.send(trial)
        worker.job, worker.label, worker.since = job, str(trial.spec), time.monotonic()

    @property
    def doing(self) -> tuple[str, ...]:
        """The trial of each worker and for how long it runs."""
        now = time.monotonic()
        return tuple(
            "" if worker.job is None else f"{worker.label} {now - worker.since:.0f} s"
            for worker in self._workers
        )

    def next(
        self, report: Callable[[int, int, float], bool], seconds: float | None = None
    ) -> Answer | None:
        """Wait for an outcome or the death of a worker."""
        while True:
            busy = {worker.connection: worker for worker in self._workers if worker.job is not None}
            ready_ones = wait(list(busy), seconds)
            if not ready_ones:
                return None
            for ready in ready_ones:
                worker = next(w for connection, w in busy.items() if connection is ready)
                job = worker.job
                assert job is not None
                try:
                    message = worker.connection.recv()
                    if isinstance(message, tuple):
                        worker.connection.send(report(job, *message))
                        continue
                except (EOFError, OSError):
                    self._replace(worker)
                    return Answer(job, None, f"its worker process died ({_death(worker)})")
                worker.job = None
                return Answer(job, message.outcome, message.crash, message.user_error)

    def close(self) -> None:
        """End all workers; what they run is lost."""
        for worker in self._workers:
            worker.connection.close()
            worker.process.terminate()
        deadline = time.monotonic() + 5
        for worker in self._workers:
            worker.process.join(max(0.1, deadline - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
        self._workers = []

    def _replace(self, dead: _Worker) -> _Worker:
        dead.connection.close()
        dead.process.join(5)
        fresh = self._start(dead.device)
        self._workers[self._workers.index(dead)] = fresh
        return fresh


def devices() -> list[str]:
    """One entry per GPU that this process may use, as CUDA_VISIBLE_DEVICES would name it."""
    mask = os.environ.get("CUDA_VISIBLE_DEVICES")
    if mask is not None:
        return [name.strip() for name in mask.split(",") if name.strip() not in ("", "-1")]
    return [str(index) for index in range(torch.cuda.device_count())]


def _serve(
    connection: Connection,
    evaluate: bytes,
    device: str | None,
    threads: int,
    log: Path | None,
    path: list[str],
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.path[:] = path
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    if log is not None:
        stream = log.open("a", buffering=1)
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    torch.set_num_threads(threads)
    quiet()
    run = pickle.loads(evaluate)

    def report(step: int, value: float) -> bool:
        connection.send((step, value))
        return bool(connection.recv())

    while True:
        try:
            trial = connection.recv()
        except (EOFError, OSError):
            return  # the parent is gone
        answer = _run(run, -1, trial, report)
        try:
            connection.send(answer)
        except (BrokenPipeError, OSError):
            return


def quiet() -> None:
    """Keep Lightning's remarks on a short fit to itself."""
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _run(evaluate: Evaluate, job: int, trial: Trial, report: Report) -> Answer:
    try:
        outcome = evaluate(trial, report)
        if not isinstance(outcome, Outcome):
            text = f"evaluate must return an Outcome, but gave {outcome!r}"
            return Answer(job, None, f"TypeError: {text}", user_error=True)
        return Answer(job, outcome)
    except (KeyboardInterrupt, SystemExit, EOFError, BrokenPipeError):
        raise
    except BaseException as error:
        traceback.print_exc()
        text = " ".join(str(error).split()) or type(error).__name__
        return Answer(job, None, f"{type(error).__name__}: {text}", isinstance(error, ConfigError))


def _death(worker: _Worker) -> str:
    code = worker.process.exitcode
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"
