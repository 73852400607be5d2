"""One loop for everything that runs trials: screening, sweeps, confirmation, comparison.

A `Work` says what is next and takes the answers; the loop keeps every worker busy, tells how it
goes, and ends when the work does or when the user wants it to.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
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
        stopping: Seconds that running trials still have; None while nobody wants it to end.
        running: How many trials run.
        note: What the user should know of this phase, `""` for nothing.
    """

    phase: str
    done: int
    total: int
    best: str = ""
    left: float | None = None
    workers: tuple[str, ...] = ()
    stopping: float | None = None
    running: int = 0
    note: str = ""


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
        ahead: Whether the next trial is asked for while others run: for samplers that are slow.
        note: What the user should know of the phases from here on.
    """

    executor: Callable[[], Executor]
    stop: Stop
    progress: Progress
    seen: Seen
    ahead: bool = False
    note: str = ""

    def run(self, work: Work) -> None:
        """Run a phase to its end.

        Raises:
            KeyboardInterrupt: If the user wants it to end; what ran is handed back first.
        """
        pace = _Pace(work.done)
        running: dict[int, Trial] = {}
        waiting: deque[tuple[int, Trial]] = deque()
        try:
            while True:
                while not self.stop.asked and (waiting or self._more(work)) and self._idle:
                    with self.stop.held():
                        item = waiting.popleft() if waiting else work.next()
                        if item is None:
                            break
                        self.executor().submit(*item)
                        running[item[0]] = item[1]
                if not running or self.stop.overdue:
                    break
                self._tell(work, pace, len(running))
                if self._asks_ahead(work, waiting) and (item := work.next()) is not None:
                    waiting.append(item)
                answer = self.executor().next(work.report, _TICK)
                # A trial that ends because everything does has had no fair try.
                if answer is not None and (answer.outcome is not None or not self.stop.asked):
                    with self.stop.held():
                        trial = running.pop(answer.job)
                        work.finish(answer.job, answer)
                        if answer.outcome is not None:
                            self.seen(work.phase, answer.job, trial, answer.outcome)
                    self._tell(work, pace, len(running))
                elif answer is not None:
                    del running[answer.job]
        except BaseException:
            work.give_up()
            raise
        if self.stop.asked:
            work.give_up()
            raise KeyboardInterrupt

    @property
    def _idle(self) -> bool:
        return self.executor().idle > 0

    def _more(self, work: Work) -> bool:
        """Whether trials are left; asks no executor where none is needed."""
        return work.done < work.total

    def _asks_ahead(self, work: Work, waiting: Sequence[object]) -> bool:
        wanted = self.ahead and not waiting and not self.stop.asked
        return wanted and self.executor().overlaps and self._more(work)

    def _tell(self, work: Work, pace: _Pace, running: int) -> None:
        done, total = work.done, work.total
        left, doing = pace.left(done, total), self.executor().doing
        stopping = self.stop.left
        how = (left, doing, stopping, running)
        self.progress(State(work.phase, done, total, work.best, *how, self.note))


class _Pace:
    """How long the rest takes, if it goes on as it went in this session."""

    def __init__(self, done: int) -> None:
        self._began, self._before = time.monotonic(), done
        self._first: float | None = None

    def left(self, done: int, total: int) -> float | None:
        """Seconds, None if no trial has ended yet."""
        now, fresh = time.monotonic(), done - self._before
        if fresh <= 0:
            return None
        if self._first is None:
            self._first, self._counted = now, fresh
        # The first one waited for processes to start and for the data.
        since = fresh - self._counted
        each = (now - self._first) / since if since else (now - self._began) / fresh
        return each * (total - done)
