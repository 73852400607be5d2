"""Runs that are wanted, each made once and stored: what was run before is not run again.

A run is known by its content (init and configuration), its seed and its steps; so more seeds, a
longer horizon or other finalists use what is there, and never mix.
"""

from __future__ import annotations

from collections.abc import Iterable

import optuna

from lightning_init.search.candidates import Run, content
from lightning_init.search.executors import Answer
from lightning_init.search.job import ConfigError
from lightning_init.search.records import RunKey, check_values, known_runs, remember
from lightning_init.search.trial import Outcome, Trial


def key_of(trial: Trial) -> RunKey:
    """What a run is known by."""
    return content(trial.spec, trial.config), trial.seed, trial.steps


class Runs:
    """Makes the runs that are not stored yet; one that crashed is tried once more.

    Args:
        phase: What it is called.
        stored: The study that holds what has been run, one finished trial for each run.
        wanted: The trials; of several that are the same the first counts.
    """

    def __init__(self, phase: str, stored: optuna.Study, wanted: Iterable[Trial]) -> None:
        self.phase = phase
        self.best = ""
        self.stored = stored
        self.known = known_runs(stored)
        self._wanted: dict[RunKey, Trial] = {}
        for trial in wanted:
            self._wanted.setdefault(key_of(trial), trial)
        self._keys = list(self._wanted)
        self._waiting = [key for key in self._keys if key not in self.known]
        self._again: set[RunKey] = set()

    @property
    def total(self) -> int:
        """Runs wanted."""
        return len(self._keys)

    @property
    def done(self) -> int:
        """Wanted runs that are stored."""
        return sum(key in self.known for key in self._keys)

    def run(self, trial: Trial) -> Run:
        """A run that is stored."""
        return self.known[key_of(trial)]

    def next(self) -> tuple[int, Trial] | None:
        """The next run."""
        if not self._waiting:
            return None
        key = self._waiting.pop(0)
        return self._keys.index(key), self._wanted[key]

    def report(self, job: int, step: int, value: float) -> bool:
        """Nothing ends a run early: it would not be comparable."""
        del job, step, value
        return False

    def finish(self, job: int, answer: Answer) -> None:
        """Store a run; one that crashed is tried once more.

        Raises:
            ConfigError: If the configuration is wrong: the others would end the same.
        """
        key = self._keys[job]
        if answer.user_error:
            raise ConfigError(answer.crash.partition(": ")[2])
        if answer.outcome is None and key not in self._again:
            self._again.add(key)
            self._waiting.append(key)
            return
        outcome = answer.outcome or Outcome(None, reason=f"crashed: {answer.crash}")
        check_values(self.stored, outcome)
        self.known[key] = remember(self.stored, key, outcome)

    def give_up(self) -> None:
        """Nothing to hand back: only finished runs are stored."""
