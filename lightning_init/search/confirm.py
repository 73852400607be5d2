"""The best few and the as-built model again, on fresh paired seeds and a longer horizon."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import optuna

from lightning_init.search.budget import Budget
from lightning_init.search.candidates import Candidate
from lightning_init.search.runs import Runs
from lightning_init.search.trial import Trial


class Confirmation(Runs):
    """Runs every candidate on every seed; what is stored is not run again.

    Args:
        candidates: Whom to run, the as-built model first.
        seeds: Fresh ones, the same for all.
        budget: How many steps, and where the metric is read on the way.
        stored: What has been run.
        phase: What it is called.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        seeds: Sequence[int],
        budget: Budget,
        stored: optuna.Study,
        phase: str = "confirming",
    ) -> None:
        self._candidates, self._seeds, self._budget = candidates, seeds, budget
        pairs = [(one, seed) for seed in seeds for one in candidates]
        super().__init__(phase, stored, [self._trial(one, seed) for one, seed in pairs])

    def candidates(self) -> list[Candidate]:
        """All with their runs, once every run is stored."""
        return [
            replace(one, runs=tuple(self.run(self._trial(one, seed)) for seed in self._seeds))
            for one in self._candidates
        ]

    def _trial(self, one: Candidate, seed: int) -> Trial:
        horizon, steps = self._budget.horizon, self._budget.steps
        marks = (steps,) if steps < horizon else ()
        return Trial(one.spec, one.config, seed, horizon, gated=False, marks=marks, measured=True)


def fresh_seeds(budget: Budget) -> list[int]:
    """The seeds of the confirmation: those after the screening's."""
    return [budget.seed + 1 + index for index in range(budget.confirm_seeds)]
