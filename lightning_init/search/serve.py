"""The worker's side of a pool: one process that runs the trials it is told."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing as mp
import os
import pickle
import signal
import sys
import threading
import traceback
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

BEGUN = "begun"  # what a worker says when it takes up a trial


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker runs.

    Attributes:
        evaluate: The pickled function that runs a trial.
        device: Its CUDA_VISIBLE_DEVICES, None to leave that alone.
        threads: Of its computations.
        log: A file for everything that it prints.
        path: Where it finds modules.
        start: How its own processes are started, as they are in the search's process.
    """

    evaluate: bytes
    device: str | None
    threads: int
    log: Path | None
    path: tuple[str, ...]
    start: str


def serve(connection: Connection, place: Place) -> None:
    """Run the trials that come through a connection until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(AttributeError, OSError):  # with its data loaders, apart from others
        os.setpgid(0, 0)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    sys.path[:] = place.path
    # Else data loaders start as workers do: slowly, and without data sets that cannot be pickled.
    mp.set_start_method(place.start, force=True)
    with contextlib.suppress(AttributeError):  # a loader that holds it would hide a worker's death
        os.register_at_fork(after_in_child=connection.close)
    # Before anything can ask CUDA for its devices, and for what starts its threads later.
    if place.device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = place.device
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(place.threads)
    if place.log is not None:
        _print_to(place.log)
    _answer(connection, place)


def _answer(connection: Connection, place: Place) -> None:
    import torch

    from lightning_init.search.executors import Answer, answer_of

    torch.set_num_threads(place.threads)
    quiet()
    broken = ""
    try:
        evaluate = pickle.loads(place.evaluate)
    except Exception as error:
        traceback.print_exc()
        broken = f"evaluate cannot be loaded in a worker process: {type(error).__name__}: {error}"

    def report(step: int, value: float) -> bool:
        connection.send((step, value))
        return bool(connection.recv())

    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        while True:
            job, trial = connection.recv()
            connection.send(BEGUN)
            if broken:
                connection.send(Answer(job, None, f"TypeError: {broken}", user_error=True))
            else:
                connection.send(answer_of(evaluate, job, trial, report))


def _end_with_the_parent() -> None:
    """However the parent ends, end at once, with every data loader: nothing holds the GPU."""
    parent = mp.parent_process()
    if parent is None:
        return
    wait([parent.sentinel])
    end_group(os.getpid())
    os._exit(1)


def end_group(pid: int) -> None:
    """Kill a worker with the processes that it has started."""
    with contextlib.suppress(AttributeError, OSError):
        os.killpg(pid, signal.SIGKILL)


def _print_to(log: Path) -> None:
    stream = log.open("a", buffering=1, encoding="utf-8")
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(stream.fileno(), 1)
    os.dup2(stream.fileno(), 2)


def quiet() -> None:
    """Keep Lightning's remarks on a short fit to itself."""
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
