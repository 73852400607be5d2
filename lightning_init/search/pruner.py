"""Ends trials that train slower than half of the others did, and no slow starter.

What is compared is the reported training loss, smaller is better whatever the goal; the rule is
Optuna's `MedianPruner`, but a trial must be a quarter of its steps behind: late in a search the
others are good as well, and the bar would cut among equals. Only healthy trials and those ended
here count as the others, the latter as far as they came: a bar made of survivors only would rise by
itself.
"""

from __future__ import annotations

from collections.abc import Mapping

import optuna
from optuna.trial import FrozenTrial, TrialState

PRUNED = "pruned"  # the reason of a trial that was ended here begins so
_FIRST = 10  # trials before any is ended: Optuna's samplers draw at random until then
_LEAST = 5  # others that reported at the same step
_WARM = 0.25  # share of the steps in which none is ended
_LAG = 0.25  # share of its steps that a trial must be behind


class SlowPruner:
    """Says which trial trains slower than half of the others.

    Args:
        steps: Training steps of a trial.
        done: Trials that have ended in earlier sessions.
    """

    def __init__(self, steps: int, done: list[FrozenTrial]) -> None:
        # Optuna's pruners read the direction off the study: this one only holds training losses.
        self._others = optuna.create_study(
            storage=optuna.storages.InMemoryStorage(), direction="minimize"
        )
        self._pruner = optuna.pruners.MedianPruner(n_startup_trials=_FIRST, n_min_trials=_LEAST)
        self._warm = _WARM * steps
        for trial in done:
            self.learn(trial)

    def learn(self, trial: FrozenTrial) -> None:
        """Keep the losses of a trial that has ended; an unhealthy one is no measure."""
        reason = trial.user_attrs.get("reason", "")
        losses = dict(trial.intermediate_values)
        if losses and (not reason or reason.startswith(PRUNED)):
            last = losses[max(losses)]
            self._others.add_trial(optuna.create_trial(value=last, intermediate_values=losses))

    def slow(self, losses: Mapping[int, float]) -> bool:
        """Whether a running trial's best loss is worse than the others' median was long before.

        Args:
            losses: What it has reported, by step.
        """
        now = max(losses)
        before = [step for step in losses if step <= (1 - _LAG) * now]
        if now < self._warm or not before:
            return False
        running = optuna.create_trial(
            state=TrialState.RUNNING, intermediate_values={max(before): min(losses.values())}
        )
        return self._pruner.prune(self._others, running)
