"""Who runs trials: what an executor is, and this process as one."""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from lightning_init.search.job import ConfigError
from lightning_init.search.trial import Evaluate, Outcome, Report, Trial


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
        return answer_of(self.evaluate, job, trial, lambda step, value: report(job, step, value))

    def close(self) -> None:
        """Nothing to stop."""


def answer_of(evaluate: Evaluate, job: int, trial: Trial, report: Report) -> Answer:
    """Run a trial; whatever goes wrong in it is an answer too."""
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
