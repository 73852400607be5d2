"""Who runs trials: what an executor is, and this process as one."""

from __future__ import annotations

import gc
import sys
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TextIO

import torch

from lightning_init.search.job import ConfigError
from lightning_init.search.trial import Evaluate, Outcome, Report, Trial


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for a job: an outcome, or the text of a crash."""

    job: int
    outcome: Outcome | None
    crash: str = ""
    user_error: bool = False  # a mistake in the configuration, the same for every trial
    out_of_memory: bool = False  # whoever ran it is better replaced


class Executor(Protocol):
    """Runs trials somewhere."""

    overlaps: bool  # whether trials run while this process does something else

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
    """Runs trials here, one after another.

    Args:
        evaluate: Runs one trial.
        log: A file for the tracebacks of trials that crash; None for the process's own output.
    """

    overlaps = False

    def __init__(self, evaluate: Evaluate, log: Path | None = None) -> None:
        self.evaluate = evaluate
        self.log = log
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
        return tuple(said_of(job, trial) for job, trial in self._waiting)

    def next(
        self, report: Callable[[int, int, float], bool], seconds: float | None = None
    ) -> Answer:
        """Run the trial that waits, however long it takes."""
        del seconds
        job, trial = self._waiting.popleft()

        def told(step: int, value: float) -> bool:
            return report(job, step, value)

        if self.log is None:
            return answer_of(self.evaluate, job, trial, told)
        with self.log.open("a", encoding="utf-8") as log:
            return answer_of(self.evaluate, job, trial, told, log)

    def close(self) -> None:
        """Nothing to stop."""


def said_of(job: int, trial: Trial, seconds: float | None = None) -> str:
    """A trial in a few words, the most important first."""
    since = "" if seconds is None else f", {seconds:.0f} s"
    return f"trial {job}{since}: {trial.spec}"


def answer_of(
    evaluate: Evaluate, job: int, trial: Trial, report: Report, log: TextIO | None = None
) -> Answer:
    """Run a trial; whatever goes wrong in it is an answer too.

    Args:
        evaluate: Runs it.
        job: Its number.
        trial: What to try.
        report: Is told its losses.
        log: Where the traceback of a crash goes; None for the standard error.
    """
    try:
        outcome = evaluate(trial, report)
        if not isinstance(outcome, Outcome):
            text = f"evaluate must return an Outcome, but gave {outcome!r}"
            return Answer(job, None, f"TypeError: {text}", user_error=True)
        return Answer(job, outcome)
    except (KeyboardInterrupt, EOFError, BrokenPipeError):
        raise
    except BaseException as error:
        stream = log or sys.stderr
        print(f"trial {job}, {trial.spec}, seed {trial.seed}, crashed:", file=stream)
        traceback.print_exc(file=stream)
        text = " ".join(str(error).split()) or type(error).__name__
        full = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        mistake = isinstance(error, ConfigError)
        answer = Answer(job, None, f"{type(error).__name__}: {text}", mistake, full)
    if answer.out_of_memory:  # outside of `except`, which holds on to the frames of the crash
        gc.collect()
        torch.cuda.empty_cache()
    return answer
