"""Persistent worker processes, one per device.

A worker is told a trial and answers with reports and an outcome; it never opens the study. A dead
worker costs its own trial only and is replaced.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from lightning_init.search.executors import Answer
from lightning_init.search.serve import serve
from lightning_init.search.trial import Evaluate, Trial

_PRELOAD = ["torch", "lightning.pytorch", "lightning_init.search.evaluate"]


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
            target=serve,
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


def _death(worker: _Worker) -> str:
    code = worker.process.exitcode
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"
