"""A result as plain data, for JSON: every number that is shown anywhere, and every run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lightning_init.search.candidates import Candidate, Run
from lightning_init.search.statistics import Comparison, chances_of_best

if TYPE_CHECKING:
    from lightning_init.search.result import SearchResult


def plain(result: SearchResult) -> dict[str, Any]:
    """The whole result; what is not finite is None."""
    everyone = [*result.candidates, result.baseline]
    best = chances_of_best([one.metrics for one in everyone], result.mode)
    rows = [
        _candidate(one, found, share)
        for one, found, share in zip(
            everyone, [*result.versus_keep, result.owns], best, strict=True
        )
    ]
    decision = result.decision
    data = {
        "monitor": result.monitor,
        "mode": result.mode,
        "goals": [{"name": goal.name, "mode": goal.mode} for goal in result.goals],
        "steps": result.steps,
        "verdict": result.verdict(),
        "lines": result.lines(),
        "winner": next(row for row, one in zip(rows, everyone, strict=True) if one is result.best),
        "baseline": rows[-1],
        "candidates": rows[:-1],
        "gain": {
            "learning_rate": decision.rate and _statistics(decision.rate),
            "init": decision.init and _statistics(decision.init),
        },
        "stability": result.stability
        and {"tau": result.stability.tau, "text": result.stability.text},
        "rates": {name: [list(pair) for pair in found] for name, found in result.rates.items()},
        "trials": list(result.trials),
    }
    return {name: _finite(value) for name, value in data.items()}


def _finite(value: Any) -> Any:
    """Plain data with None for what JSON has no number for, such as how far NaN weights went."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _candidate(one: Candidate, found: tuple[Comparison, ...], best: float) -> dict[str, Any]:
    return {
        "trial": one.number,
        "kind": one.kind,
        "label": one.label,
        "spec": one.spec.to_dict(),
        "config": dict(one.config),
        "chance_of_best": best,
        "statistics": _statistics(found[0]),
        "goals": [_statistics(each) for each in found],
        "runs": [_run(run) for run in one.runs],
    }


def _run(run: Run) -> dict[str, Any]:
    return {
        "seed": run.seed,
        "metric": run.metric,
        "others": list(run.others),
        "reason": run.reason,
        "curve": [list(point) for point in run.curve],
        "readings": [list(point) for point in run.readings],
        **run.info,
    }


def _statistics(found: Comparison) -> dict[str, float | None]:
    names = ("n", "failures", "mean", "sd", "gain", "low", "high", "wins", "chance")
    return {name: getattr(found, name) for name in names}
