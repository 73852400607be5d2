"""The best few and the as-built model again, on fresh paired seeds; then the comparison."""

from __future__ import annotations

from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial, TrialState

from lightning_init.search.budget import Budget
from lightning_init.search.candidates import Candidate
from lightning_init.search.executors import Answer
from lightning_init.search.records import ranked, remember, row, run_of, whole
from lightning_init.search.result import SearchResult
from lightning_init.search.space import STRATEGY, Space
from lightning_init.search.trial import Outcome, Trial


class HopelessError(RuntimeError):
    """There is nothing to compare: every trial crashes."""


Key = tuple[int, int]  # number of the candidate's screening trial, seed


@dataclass
class Confirmation:
    """Chooses whom to confirm, runs what is not stored yet, compares.

    Attributes:
        study: The screening.
        budget: How many, on how many seeds.
        space: What was searched.
        stored: What has been run, one finished trial for each run.
    """

    study: optuna.Study
    budget: Budget
    space: Space
    stored: optuna.Study
    phase: str = "confirming"
    best: str = ""

    def __post_init__(self) -> None:
        self._runs = {
            (t.user_attrs["candidate"], t.user_attrs["seed"]): run_of(t)
            for t in self.stored.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        }
        numbers = [self._baseline().number, *(trial.number for trial in self._finalists())]
        self._all: list[Key] = [(number, seed) for seed in self._seeds for number in numbers]
        self._waiting = [key for key in self._all if key not in self._runs]
        self._again: set[Key] = set()

    @property
    def total(self) -> int:
        """Runs wanted."""
        return len(self._all)

    @property
    def done(self) -> int:
        """Runs that are stored."""
        return sum(key in self._runs for key in self._all)

    def next(self) -> tuple[int, Trial] | None:
        """The next run."""
        if not self._waiting:
            return None
        number, seed = key = self._waiting.pop(0)
        values = self.study.get_trials(deepcopy=False)[number].params
        config = self.space.overrides(values)
        trial = Trial(self.space.spec(values), config, seed, self.budget.horizon, gated=False)
        return self._all.index(key), trial

    def report(self, job: int, step: int, value: float) -> bool:
        """Nothing ends a run early: it would not be comparable."""
        del job, step, value
        return False

    def finish(self, job: int, answer: Answer) -> None:
        """Store a run; one that crashed is tried once more."""
        key = self._all[job]
        if answer.outcome is None and not answer.user_error and key not in self._again:
            self._again.add(key)
            self._waiting.append(key)
            return
        outcome = answer.outcome or Outcome(None, reason=f"crashed: {answer.crash}")
        self._runs[key] = remember(self.stored, key, outcome)

    def give_up(self) -> None:
        """Nothing to hand back: only finished runs are stored."""

    @property
    def _seeds(self) -> list[int]:
        return [self.budget.seed + 1 + index for index in range(self.budget.confirm_seeds)]

    def _baseline(self) -> FrozenTrial:
        """The as-built model with the configuration as it is."""
        start = self.space.recipes()[0]
        for trial in self.study.get_trials(deepcopy=False):
            same = {k: trial.params.get(k) for k in self.space.config} == self.space.overrides(
                start
            )
            if trial.params.get(STRATEGY) == "keep" and same and whole(self.space, trial):
                return trial
        raise HopelessError("the as-built model has not been tried")

    def _finalists(self) -> list[FrozenTrial]:
        start = self.space.recipes()[0]
        chosen: dict[tuple[str, str], FrozenTrial] = {}
        nothing_new = (repr(self.space.spec(start)), str(self.space.overrides(start)))
        for trial in ranked(self.study, self.budget.mode):
            key = (repr(self.space.spec(trial.params)), str(self.space.overrides(trial.params)))
            if key != nothing_new and key not in chosen:
                chosen[key] = trial
        return list(chosen.values())[: self.budget.top]

    def result(self) -> SearchResult:
        """All trials and the confirmed candidates, compared."""

        def candidate(trial: FrozenTrial) -> Candidate:
            return Candidate(
                number=trial.number,
                spec=self.space.spec(trial.params),
                config=self.space.overrides(trial.params),
                runs=tuple(self._runs[trial.number, seed] for seed in self._seeds),
                is_baseline=trial.number == self._baseline().number,
            )

        return SearchResult.judge(
            candidate(self._baseline()),
            tuple(candidate(trial) for trial in self._finalists()),
            tuple(row(self.space, trial) for trial in self.study.get_trials(deepcopy=False)),
            mode=self.budget.mode,
            monitor=self.budget.monitor,
            steps=self.budget.horizon,
            study=self.study,
        )
