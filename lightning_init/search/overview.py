"""What there is to see of a search, finished or not: the plain values that pages and plots draw.

A figure needs neither a Trainer nor an open study, so a search that still runs, or was killed, is
drawn by the same functions as one that ended.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from lightning_init.search.budget import Goal
from lightning_init.search.candidates import Candidate
from lightning_init.search.result import SearchResult
from lightning_init.search.space import STRATEGY
from lightning_init.strategies.registry import entries
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
            goals=(Goal(result.monitor, result.mode),),
            trials=rows,
            study=result.study,
            result=result,
            commands=_next(result, Path(folder)) if folder else (),
            facts=_facts(rows, result),
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


def tried(rows: tuple[dict[str, Any], ...], study: optuna.Study) -> Iterator[Tried]:
    """The trials of a screening.

    Args:
        rows: Their inits and configurations.
        study: Where the rest of them is.
    """
    known = {trial.number: trial for trial in study.get_trials(deepcopy=False)}
    for row in rows:
        trial, attrs = known[row["number"]], known[row["number"]].user_attrs
        spec, info = row["spec"], attrs.get("info", {})
        strategy = spec["strategy"] if spec else str(trial.params.get(STRATEGY, ""))
        label = strategy or "not started"
        if spec:
            label = Candidate(0, InitSpec.from_dict(spec), row["config"], ()).label
        metric = attrs.get("metric")
        values = [] if metric is None else [metric, *attrs.get("others", ())]
        yield Tried(
            number=trial.number,
            label=label,
            strategy=strategy,
            kind=_kind(trial),
            values=tuple(values) if all(map(math.isfinite, values)) else (),
            axes={
                name: value
                for name, value in trial.params.items()
                if name != STRATEGY and _used(name, strategy, row["config"])
            },
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


def _facts(trials: Sequence[Tried], result: SearchResult | None) -> tuple[tuple[str, str], ...]:
    """What the numbers hold for: the same on another machine only if these are."""
    seconds = sum(one.seconds or 0.0 for one in trials)
    facts = [("trials", f"{len(trials)}, {seconds:.0f} s of training in all")]
    if result is not None:
        runs = [run for one in (result.baseline, *result.candidates) for run in one.runs]
        threads = sorted({str(run.info["threads"]) for run in runs if "threads" in run.info})
        facts.append(("steps of a confirmation run", str(result.steps)))
        facts.append(("confirmation seeds", ", ".join(str(r.seed) for r in result.baseline.runs)))
        if threads:
            facts.append(("threads of a run", ", ".join(threads)))
    facts.append(("python", platform.python_version()))
    for name in ("lightning-init", "torch", "lightning", "optuna"):
        with suppress(PackageNotFoundError):
            facts.append((name, version(name)))
    return tuple(facts)


def _kind(trial: FrozenTrial) -> Kind:
    reason = trial.user_attrs.get("reason", "")
    if trial.state is TrialState.PRUNED or reason.startswith("slower than"):
        return "pruned"
    if trial.state is TrialState.FAIL or reason.startswith("crashed"):
        return "crashed"
    if not trial.state.is_finished():
        return "unfinished"
    return "unhealthy" if reason else "healthy"


def _used(axis: str, strategy: str, config: Mapping[str, Any]) -> bool:
    """Whether a strategy takes what an axis gives: the space is flat, every trial has a value."""
    if axis in config:
        return True
    owner, _, name = axis.rpartition(".")
    owners = {one.name for one in entries() if name in one.parameters}
    if owner:
        return owner == strategy or owner not in {one.name for one in entries()}
    return strategy in owners or not owners
