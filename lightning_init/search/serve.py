"""The worker's side of a pool: one process that runs the trials it is told."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import sys
import warnings
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from lightning_init.search.executors import answer_of


def serve(
    connection: Connection,
    evaluate: bytes,
    device: str | None,
    threads: int,
    log: Path | None,
    path: list[str],
) -> None:
    """Run the trials that come through a connection until it ends."""
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
        answer = answer_of(run, -1, trial, report)
        try:
            connection.send(answer)
        except (BrokenPipeError, OSError):
            return


def quiet() -> None:
    """Keep Lightning's remarks on a short fit to itself."""
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
