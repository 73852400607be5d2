"""Screen wide with one seed, confirm the best few and the baseline on fresh paired seeds.

This process owns the Optuna study and is the only one that writes it; executors are told trials
and answer. An unhealthy trial is told as a finite, capped penalty with a constraint, so that the
sampler learns to avoid it; a crashed one fails and is tried once more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from lightning_init.search.evaluate import Evaluate, Outcome, Trial
from lightning_init.search.job import ConfigError
from lightning_init.search.journal import open_storage
from lightning_init.search.result import Candidate, Run, SearchResult
from lightning_init.search.space import STRATEGY, Space
from lightning_init.search.statistics import Mode
from lightning_init.search.workers import Answer, Executor, InProcess, Pool, devices

Progress = Callable[[str, int, int, str], None]
_POINTS = 60  # of a loss curve are kept in the study
_HOPELESS = 3  # crashes in a row, without any success before, end the search


class HopelessError(RuntimeError):
    """Every trial crashes."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to search and how to judge.

    Attributes:
        trials: Trials in the screening, all sessions together.
        steps: Training steps of each.
        seed: Of the sampler and of every screening trial.
        confirm_seeds: Fresh seeds for the best few and the baseline.
        top: How many are confirmed.
        mode: Whether a smaller or larger metric is better.
        monitor: What the metric is called.
        sampler: `tpe` or `gp`.
        identity: What must be the same for a study to go on.
    """

    trials: int = 40
    steps: int = 200
    seed: int = 0
    confirm_seeds: int = 5
    top: int = 3
    mode: Mode = "min"
    monitor: str = "metric"
    sampler: Literal["tpe", "gp"] = "tpe"
    identity: str = ""

    def __post_init__(self) -> None:
        for name, least in (("trials", 1), ("steps", 1), ("confirm_seeds", 2), ("top", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name} >= {least}` must hold, but got {getattr(self, name)}")
        if self.mode not in ("min", "max"):
            raise ValueError(f"mode must be min or max, but got {self.mode!r}")
        if self.sampler not in ("tpe", "gp"):
            raise ValueError(f"sampler must be tpe or gp, but got {self.sampler!r}")


class OtherStudyError(ValueError):
    """The storage holds the study of something else."""


def search_init(
    evaluate: Evaluate,
    space: Space,
    *,
    trials: int = 40,
    steps: int = 200,
    seed: int = 0,
    confirm_seeds: int = 5,
    top: int = 3,
    mode: Mode = "min",
    monitor: str = "metric",
    sampler: Literal["tpe", "gp"] = "tpe",
    workers: int = 0,
    storage: str | Path | None = None,
    identity: str = "",
    log: Path | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Find the best init for a task by short trials, and say honestly whether it is better.

    Args:
        evaluate: Runs one trial.
        space: What to try; the as-built model (`keep`) is always the first trial.
        trials: Trials in the screening; with a storage, the total over all sessions.
        steps: Training steps of each trial.
        seed: Of the sampler and of every screening trial; confirmation uses seed + 1, + 2, ...
        confirm_seeds: Fresh paired seeds for the best few and `keep`, at least 2.
        top: How many are confirmed.
        mode: Whether a smaller or larger metric is better.
        monitor: What the metric is called.
        sampler: `tpe`, or `gp` for 50 trials and more.
        workers: Worker processes; 0 runs trials in this one.
        storage: A journal file or a database's URL; the same call then goes on where it ended.
        identity: What must be the same for a stored study to go on.
        log: A file for what workers print.
        progress: Called as `progress(phase, done, total, text)`.

    Returns:
        The result; `.suggestion()` is None if nothing beats `keep` by more than the noise.

    Raises:
        ValueError: If an argument is not legal, or the storage holds another study.
        HopelessError: If every trial crashes.

    Example:
        >>> from lightning_init.search.evaluate import Outcome
        >>> def evaluate(trial, report):
        ...     return Outcome(trial.seed % 7 / 100 + (trial.spec.strategy != "orthogonal"))
        >>> result = search_init(evaluate, Space(("orthogonal", "normal")), trials=6)
        >>> result.suggestion().strategy
        'orthogonal'
    """
    plan = Plan(trials, steps, seed, confirm_seeds, top, mode, monitor, sampler, identity)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with open_storage(storage) as opened:
        study = _open_study(opened, plan, space)
        executor: Executor = (
            Pool(evaluate, workers, devices(), log) if workers else InProcess(evaluate)
        )
        try:
            search = _Search(study, plan, space, executor, progress or _silent)
            search.screen()
            confirmed = search.confirm(_open(opened, "confirm", plan))
        finally:
            executor.close()
        return search.result(confirmed)


@dataclass
class _Search:
    study: optuna.Study
    plan: Plan
    space: Space
    executor: Executor
    progress: Progress
    running: dict[int, optuna.Trial] = field(default_factory=dict)
    crashes: int = 0

    def screen(self) -> None:
        """Ask, run and tell until enough trials are complete."""
        try:
            while True:
                while self.executor.idle and self._done + len(self.running) < self.plan.trials:
                    self._start()
                if not self.running:
                    return
                self.progress("screening", self._done, self.plan.trials, self._best_text())
                answer = self.executor.next(self._report)
                self._finish(self.running.pop(answer.job), answer)
                self.progress("screening", self._done, self.plan.trials, self._best_text())
        except BaseException:
            _requeue_running(self.study)
            raise

    @property
    def _done(self) -> int:
        states = (TrialState.COMPLETE, TrialState.PRUNED)
        return len(self.study.get_trials(deepcopy=False, states=states))

    def _start(self) -> None:
        trial = self.study.ask(self._distributions)
        self.running[trial.number] = trial
        self.executor.submit(trial.number, self._trial(trial.params, self.plan.seed, gated=None))

    @property
    def _distributions(self) -> dict[str, optuna.distributions.BaseDistribution]:
        return {name: axis.distribution for name, axis in self.space.axes.items()}

    def _trial(self, values: Mapping[str, Any], seed: int, gated: bool | None) -> Trial:
        # The as-built model is never stopped: everything is measured against it.
        gate = values[STRATEGY] != "keep" if gated is None else gated
        overrides = self.space.overrides(values)
        return Trial(self.space.spec(values), overrides, seed, self.plan.steps, gate)

    def _report(self, job: int, step: int, value: float) -> bool:
        trial = self.running.get(job)
        if trial is not None:
            trial.report(value, step)
        return False

    def _finish(self, trial: optuna.Trial, answer: Answer) -> None:
        if answer.outcome is None:
            self._crashed(trial, answer)
            return
        self.crashes = -1
        outcome = answer.outcome
        for key, value in _attributes(outcome).items():
            trial.set_user_attr(key, value)
        value = outcome.metric
        if value is None or outcome.reason:
            trial.set_constraint("health", 1.0)
            value = self._penalty()
        self.study.tell(trial, value)

    def _crashed(self, trial: optuna.Trial, answer: Answer) -> None:
        trial.set_user_attr("reason", f"crashed: {answer.crash}")
        if answer.user_error:
            self.study.tell(trial, state=TrialState.FAIL)
            raise ConfigError(answer.crash.partition(": ")[2])
        if self.crashes >= 0:
            self.crashes += 1
        if "retry_of" in trial.user_attrs:
            trial.set_constraint("health", 1.0)
            self.study.tell(trial, self._penalty())
        else:
            _requeue(self.study, trial.number)
        if self.crashes >= _HOPELESS:
            raise HopelessError(f"every trial crashes: {answer.crash}")

    def _penalty(self) -> float:
        """Worse than the worst healthy value so far by a tenth of the spread: finite, capped."""
        values = [t.value for t in _healthy(self.study) if t.value is not None]
        if not values:
            return 10.0 if self.plan.mode == "min" else 0.0
        low, high = min(values), max(values)
        margin = max(0.1 * (high - low), 0.01 * max(abs(low), abs(high)))
        return high + margin if self.plan.mode == "min" else low - margin

    def _best_text(self) -> str:
        found = _ranked(self.study, self.plan.mode)
        if not found:
            return ""
        return f"best {self.plan.monitor} {found[0].value:.4g} ({found[0].params[STRATEGY]})"

    def confirm(self, study: optuna.Study) -> dict[tuple[int, int], Run]:
        """Run the best few and the baseline on fresh seeds; what is stored is not run again."""
        done = {
            (t.user_attrs["candidate"], t.user_attrs["seed"]): _run_of(t)
            for t in study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        }
        todo = [
            (number, seed)
            for seed in self._seeds
            for number in (self._baseline().number, *[t.number for t in self._finalists()])
            if (number, seed) not in done
        ]
        total, waiting = len(todo), list(todo)
        running: dict[int, tuple[int, int]] = {}
        values = {t.number: t.params for t in self.study.get_trials(deepcopy=False)}
        tries: dict[tuple[int, int], int] = {}
        while waiting or running:
            while waiting and self.executor.idle:
                number, seed = waiting.pop(0)
                job = todo.index((number, seed))
                running[job] = (number, seed)
                self.executor.submit(job, self._trial(values[number], seed, gated=False))
            ran = total - len(waiting) - len(running)
            self.progress("confirming", ran, total, "")
            answer = self.executor.next(_go_on)
            key = running.pop(answer.job)
            if answer.outcome is None and not answer.user_error and not tries.get(key):
                tries[key] = 1
                waiting.append(key)
                continue
            outcome = answer.outcome or Outcome(None, reason=f"crashed: {answer.crash}")
            done[key] = _remember(study, key, outcome)
            self.progress("confirming", total - len(waiting) - len(running), total, "")
        return done

    @property
    def _seeds(self) -> list[int]:
        return [self.plan.seed + 1 + index for index in range(self.plan.confirm_seeds)]

    def _baseline(self) -> FrozenTrial:
        """The as-built model with the configuration as it is."""
        start = self.space.recipes()[0]
        for trial in self.study.get_trials(deepcopy=False):
            same = {k: trial.params.get(k) for k in self.space.config} == self.space.overrides(
                start
            )
            if trial.params.get(STRATEGY) == "keep" and same and _whole(self.space, trial):
                return trial
        raise HopelessError("the as-built model has not been tried")

    def _finalists(self) -> list[FrozenTrial]:
        start = self.space.recipes()[0]
        chosen: dict[tuple[str, str], FrozenTrial] = {}
        nothing_new = (str(self.space.spec(start)), str(self.space.overrides(start)))
        for trial in _ranked(self.study, self.plan.mode):
            key = (str(self.space.spec(trial.params)), str(self.space.overrides(trial.params)))
            if key != nothing_new and key not in chosen:
                chosen[key] = trial
        return list(chosen.values())[: self.plan.top]

    def result(self, confirmed: dict[tuple[int, int], Run]) -> SearchResult:
        """All trials and the confirmed candidates, compared."""

        def candidate(trial: FrozenTrial) -> Candidate:
            return Candidate(
                number=trial.number,
                spec=self.space.spec(trial.params),
                config=self.space.overrides(trial.params),
                runs=tuple(confirmed[trial.number, seed] for seed in self._seeds),
                is_baseline=trial.number == self._baseline().number,
            )

        return SearchResult.judge(
            candidate(self._baseline()),
            tuple(candidate(trial) for trial in self._finalists()),
            tuple(_row(self.space, trial) for trial in self.study.get_trials(deepcopy=False)),
            mode=self.plan.mode,
            monitor=self.plan.monitor,
            steps=self.plan.steps,
            study=self.study,
        )


def _open_study(storage: optuna.storages.BaseStorage, plan: Plan, space: Space) -> optuna.Study:
    study = _open(storage, "search", plan)
    _requeue_running(study)  # their process is gone: this one owns the study now
    for point in space.recipes()[: plan.trials]:
        study.enqueue_trial(point, skip_if_exists=True)
    return study


def _open(storage: optuna.storages.BaseStorage, name: str, plan: Plan) -> optuna.Study:
    study = optuna.create_study(
        study_name=name,
        storage=storage,
        pruner=optuna.pruners.NopPruner(),
        direction="minimize" if plan.mode == "min" else "maximize",
        load_if_exists=True,
    )
    # A search that goes on must not propose the same random points again.
    seed = (plan.seed + 7919 * len(study.get_trials(deepcopy=False))) % 2**32
    gp = plan.sampler == "gp"
    study.sampler = (optuna.samplers.GPSampler if gp else optuna.samplers.TPESampler)(seed=seed)
    known = study.user_attrs.get("identity")
    if known is None:
        study.set_user_attr("identity", plan.identity)
    elif known != plan.identity:
        raise OtherStudyError("this storage holds the study of another configuration")
    return study


def _requeue_running(study: optuna.Study) -> None:
    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        _requeue(study, trial.number)


def _requeue(study: optuna.Study, number: int) -> None:
    """Queue a lost trial's parameters once more and mark it as failed, safe to be cut off between."""
    trial = study.get_trials(deepcopy=False)[number]
    # A recipe may have been lost before it was told its own parameters.
    if params := {**trial.system_attrs.get("fixed_params", {}), **trial.params}:
        study.enqueue_trial(params, user_attrs={"retry_of": number})
    study.tell(number, state=TrialState.FAIL)


def _healthy(study: optuna.Study) -> list[FrozenTrial]:
    done = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    return [trial for trial in done if not trial.user_attrs.get("reason")]


def _ranked(study: optuna.Study, mode: Mode) -> list[FrozenTrial]:
    sign = 1 if mode == "min" else -1
    return sorted(_healthy(study), key=lambda trial: sign * (trial.value or 0.0))


def _attributes(outcome: Outcome) -> dict[str, Any]:
    every = max(1, math.ceil(len(outcome.curve) / _POINTS))
    thin = [list(point) for point in outcome.curve[::every]]
    return {
        "reason": outcome.reason,
        "metric": outcome.metric,
        "curve": [[step, value] for step, value in thin if math.isfinite(value)],
        "seconds": outcome.seconds,
        "info": dict(outcome.info),
    }


def _remember(study: optuna.Study, key: tuple[int, int], outcome: Outcome) -> Run:
    number, seed = key
    metric = outcome.metric
    trial = optuna.create_trial(
        state=TrialState.COMPLETE,
        value=0.0 if metric is None else metric,
        user_attrs={**_attributes(outcome), "candidate": number, "seed": seed},
    )
    study.add_trial(trial)
    return _run_of(trial)


def _run_of(trial: FrozenTrial) -> Run:
    attrs = trial.user_attrs
    curve = tuple((int(step), float(value)) for step, value in attrs.get("curve", []))
    return Run(attrs["seed"], attrs["metric"], attrs["reason"], curve, attrs.get("info", {}))


def _whole(space: Space, trial: FrozenTrial) -> bool:
    """Whether a trial has all its parameters; one that was cut off while starting has not."""
    return space.axes.keys() <= trial.params.keys()


def _row(space: Space, trial: FrozenTrial) -> dict[str, Any]:
    known = _whole(space, trial)
    return {
        "number": trial.number,
        "state": trial.state.name,
        "spec": space.spec(trial.params).to_dict() if known else None,
        "config": space.overrides(trial.params) if known else {},
        "value": trial.value if trial.state is TrialState.COMPLETE else None,
        "metric": trial.user_attrs.get("metric"),
        "reason": trial.user_attrs.get("reason", ""),
        "seconds": trial.user_attrs.get("seconds"),
        "curve": trial.user_attrs.get("curve", []),
    }


def _go_on(job: int, step: int, value: float) -> bool:
    del job, step, value
    return False


def _silent(phase: str, done: int, total: int, text: str) -> None:
    del phase, done, total, text
