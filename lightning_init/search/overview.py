"""What there is to see of a search, finished or not: the plain values that pages and plots draw.

A figure needs neither a Trainer nor an open study, so a search that still runs, or was killed, is
drawn by the same functions as one that ended.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from lightning_init.search.budget import Budget, Goal
from lightning_init.search.candidates import label
from lightning_init.search.pruner import PRUNED
from lightning_init.search.result import SearchResult
from lightning_init.search.space import STRATEGY, Space
from lightning_init.strategies.spec import InitSpec

Kind = Literal["healthy", "pruned", "unhealthy", "crashed", "unfinished"]


@dataclass(frozen=True, slots=True)
class Tried:
    """One trial of the screening.

    Attributes:
        number: In order of asking.
        label: Init and configuration, short: `orthogonal(gain=1.2) lr=0.03`.
        strategy: The init's strategy.
        kind: What came of it.
        values: One per goal, empty if there is no metric.
        axes: What it was given on each axis that it uses.
        reason: Why it was stopped, `""` if it was not.
        seconds: Wall time, None if it has not ended.
        curve: (step, training loss) pairs.
        findings: Of the health rules, as plain data.
        calibrated: What of a calibration was taken back, `""` for nothing.
    """

    number: int
    label: str
    strategy: str
    kind: Kind
    values: tuple[float, ...] = ()
    axes: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    seconds: float | None = None
    curve: tuple[tuple[int, float], ...] = ()
    findings: tuple[Mapping[str, Any], ...] = ()
    calibrated: str = ""

    @property
    def metric(self) -> float | None:
        """The first goal's value, if it counts: that of a healthy trial."""
        return self.values[0] if self.values and self.kind == "healthy" else None


@dataclass(frozen=True)
class Overview:
    """A search as it is seen.

    Attributes:
        goals: What the values are; the first decides.
        trials: The screening.
        study: Optuna's, for what it computes itself.
        result: The confirmed candidates, None as long as they are not all confirmed.
        missing: What is not there yet, `""` for nothing.
        lines: Remarks below the verdict.
        commands: What to type next.
        facts: (name, value) of the surroundings: budget, versions, seeds.
    """

    goals: tuple[Goal, ...]
    trials: tuple[Tried, ...]
    study: optuna.Study
    result: SearchResult | None = None
    missing: str = ""
    lines: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, result: SearchResult, folder: str | Path = "") -> Overview:
        """Of a search that has ended.

        Args:
            result: What it found.
            folder: Where its files are, for the commands that name them; `""` for nowhere.
        """
        rows = tuple(tried(result.trials, result.study))
        return cls(
            goals=result.goals,
            trials=rows,
            study=result.study,
            result=result,
            lines=tuple(result.lines()),
            commands=_next(result, Path(folder)) if folder else (),
            facts=(*_spent(rows), *_confirmed(result), *_versions(result.study)),
        )

    @classmethod
    def unfinished(
        cls, rows: Sequence[Mapping[str, Any]], study: optuna.Study, budget: Budget, runs: int
    ) -> Overview:
        """Of a search that runs, or was ended before it was through.

        Args:
            rows: The screening trials as plain data.
            study: Where the rest of them is.
            budget: How much there is to be.
            runs: Confirmation runs that are stored.
        """
        trials = tuple(tried(rows, study))
        states = (TrialState.COMPLETE, TrialState.PRUNED)
        done = len(study.get_trials(deepcopy=False, states=states))
        there = f"{runs} runs of the confirmation" if runs else "nothing is confirmed"
        return cls(
            goals=budget.goals,
            trials=trials,
            study=study,
            missing=(
                f"not finished: {done} of {budget.trials} trials of the screening, {there}. One "
                "seed and few steps choose nobody: the command that began it goes on with it"
            ),
            facts=(
                ("steps of a trial", str(budget.steps)),
                ("seed of the screening", str(budget.seed)),
                *_spent(trials),
                *_versions(study),
            ),
        )

    @property
    def log_axes(self) -> frozenset[str]:
        """The axes that are searched on a logarithmic scale."""
        return frozenset(
            name
            for trial in self.study.get_trials(deepcopy=False)
            for name, one in trial.distributions.items()
            if getattr(one, "log", False)
        )

    @property
    def counts(self) -> dict[Kind, int]:
        """How many trials came to what; what did not happen is left out."""
        found: dict[Kind, int] = {}
        for one in self.trials:
            found[one.kind] = found.get(one.kind, 0) + 1
        return found


def tried(rows: Sequence[Mapping[str, Any]], study: optuna.Study) -> Iterator[Tried]:
    """The trials of a screening.

    Args:
        rows: Their inits and configurations.
        study: Where the rest of them is.
    """
    known = {trial.number: trial for trial in study.get_trials(deepcopy=False)}
    plain = study.user_attrs.get("space")
    space = None if plain is None else Space.from_dict(plain)
    for row in rows:
        trial, attrs = known[row["number"]], known[row["number"]].user_attrs
        if trial.state is TrialState.WAITING:
            continue  # nobody has begun it
        spec, info, params = row["spec"], attrs.get("info", {}), trial.params
        strategy = str(params.get(STRATEGY, ""))
        used = params.keys() if space is None or not spec else space.used(params)
        metric = attrs.get("metric")
        values = [] if metric is None else [metric, *attrs.get("others", ())]
        yield Tried(
            number=trial.number,
            label=label(InitSpec.from_dict(spec), row["config"]) if spec else "not started",
            strategy=strategy,
            kind=_kind(trial),
            values=tuple(values) if all(map(math.isfinite, values)) else (),
            axes={key: params[key] for key in params if key in used and key != STRATEGY},
            reason=attrs.get("reason", ""),
            seconds=attrs.get("seconds"),
            curve=tuple((int(step), float(value)) for step, value in attrs.get("curve", ())),
            findings=tuple(info.get("findings", ())),
            calibrated=info.get("calibration") or "",
        )


def _next(result: SearchResult, folder: Path) -> tuple[str, ...]:
    if result.best.is_baseline:
        return ()
    return (f"python main.py fit --config <yours> --config {folder / 'best.yaml'}",)


def _spent(trials: Sequence[Tried]) -> Iterator[tuple[str, str]]:
    seconds = sum(one.seconds or 0.0 for one in trials)
    if trials:
        yield "screening", f"{len(trials)} trial{'s' * (len(trials) > 1)}, {seconds:.1f} s in all"


def _confirmed(result: SearchResult) -> Iterator[tuple[str, str]]:
    """What the numbers hold for: the same elsewhere only if these are."""
    runs = [run for one in (result.baseline, *result.candidates) for run in one.runs]
    threads = sorted({str(run.info["threads"]) for run in runs if "threads" in run.info})
    yield "steps of a confirmation run", str(result.steps)
    yield "confirmation seeds", ", ".join(str(run.seed) for run in result.baseline.runs)
    if threads:
        yield "threads of a run", ", ".join(threads)


def _versions(study: optuna.Study) -> Iterator[tuple[str, str]]:
    """Of the session that trained last, which need not be this machine's."""
    yield from study.user_attrs.get("versions", {}).items()


def _kind(trial: FrozenTrial) -> Kind:
    reason = trial.user_attrs.get("reason", "")
    if trial.state is TrialState.PRUNED or reason.startswith(PRUNED):
        return "pruned"
    if reason.startswith("crashed"):
        return "crashed"
    if trial.state is TrialState.FAIL or not trial.state.is_finished():
        return "unfinished"  # interrupted, and queued again under another number
    return "unhealthy" if reason else "healthy"
