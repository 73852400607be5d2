"""One loop for everything that runs trials: screening, sweeps, confirmation, comparison.

A `Work` says what is next and takes the answers; the loop keeps every worker busy, tells how it
goes, and ends when the work does or when the user wants it to.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from lightning_init.search.executors import Answer, Executor
from lightning_init.search.interrupts import Stop
from lightning_init.search.trial import Outcome, Trial

_TICK = 0.5  # seconds between two looks at the clock while trials run


@dataclass(frozen=True, slots=True)
class State:
    """How a phase goes.

    Attributes:
        phase: `screening`, `sweep`, `confirming` or `comparing`.
        done: Trials done.
        total: Trials in all.
        best: The best so far in a few words, `""` if there is none.
        left: Seconds until the phase ends at the present pace, None if not known yet.
        workers: What each worker does, for people.
    """

    phase: str
    done: int
    total: int
    best: str = ""
    left: float | None = None
    workers: tuple[str, ...] = ()


Progress = Callable[[State], None]
Seen = Callable[[str, int, Trial, Outcome], None]  # phase, job, trial, outcome


class Work(Protocol):
    """A phase: some trials, and what to do with their answers."""

    phase: str

    @property
    def done(self) -> int:
        """Trials done, also in earlier sessions."""

    @property
    def total(self) -> int:
        """Trials in all."""

    @property
    def best(self) -> str:
        """The best so far in a few words."""

    def next(self) -> tuple[int, Trial] | None:
        """A job's number and its trial; None if there is none to start now."""

    def report(self, job: int, step: int, value: float) -> bool:
        """A running trial's training loss; True stops it."""

    def finish(self, job: int, answer: Answer) -> None:
        """Take an answer."""

    def give_up(self) -> None:
        """The search ends while trials run: hand them back."""


@dataclass
class Loop:
    """Runs a phase after the other on the same workers.

    Attributes:
        executor: Gives who runs trials, made on first use: what is complete starts no process.
        stop: Whether the user wants it to end.
        progress: Is told how it goes.
        seen: Is shown every trial that has ended, with its outcome.
    """

    executor: Callable[[], Executor]
    stop: Stop
    progress: Progress
    seen: Seen

    def run(self, work: Work) -> None:
        """Run a phase to its end.

        Raises:
            KeyboardInterrupt: If the user wants it to end; what ran is handed back first.
        """
        began, before = time.monotonic(), work.done
        running: dict[int, Trial] = {}
        try:
            while True:
                while not self.stop.asked and self._can_start(work):
                    item = work.next()
                    if item is None:
                        break
                    self.executor().submit(*item)
                    running[item[0]] = item[1]
                if not running or self.stop.overdue:
                    break
                self._tell(work, began, before)
                answer = self.executor().next(work.report, _TICK)
                if answer is not None:
                    trial = running.pop(answer.job)
                    work.finish(answer.job, answer)
                    if answer.outcome is not None:
                        self.seen(work.phase, answer.job, trial, answer.outcome)
                    self._tell(work, began, before)
        except BaseException:
            work.give_up()
            raise
        if self.stop.asked:
            work.give_up()
            raise KeyboardInterrupt

    def _can_start(self, work: Work) -> bool:
        """Whether a trial can be started; asks no executor where none is needed."""
        return work.done < work.total and self.executor().idle > 0

    def _tell(self, work: Work, began: float, before: int) -> None:
        fresh = work.done - before
        pace = (time.monotonic() - began) / fresh if fresh else None
        left = None if pace is None else pace * (work.total - work.done)
        self.progress(
            State(work.phase, work.done, work.total, work.best, left, self.executor().doing)
        )
