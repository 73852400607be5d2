"""Given inits against the as-built model, on fresh paired seeds: what a search does at its end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

import optuna

from lightning_init.search.budget import Budget
from lightning_init.search.candidates import Candidate
from lightning_init.search.confirm import Confirmation
from lightning_init.search.finalists import HopelessError
from lightning_init.search.loop import Progress, Seen
from lightning_init.search.records import open_part
from lightning_init.search.result import SearchResult
from lightning_init.search.session import Workers, session
from lightning_init.search.statistics import Mode
from lightning_init.search.study import goals_for
from lightning_init.search.trial import Evaluate
from lightning_init.strategies.spec import InitSpec

Given = InitSpec | str | tuple[InitSpec | str, Mapping[str, Any]]
_FIRST = 1000  # seeds from here on: searches begin at small ones


def compare_specs(
    evaluate: Evaluate,
    candidates: Iterable[Given],
    *,
    seeds: int = 8,
    steps: int = 200,
    baseline: Given = "keep",
    mode: Mode | Sequence[Mode] = "min",
    monitor: str | Sequence[str] = "metric",
    workers: int | Workers = 0,
    storage: str | Path | None = None,
    identity: str = "",
    log: Path | None = None,
    progress: Progress | None = None,
    seen: Seen | None = None,
) -> SearchResult:
    """Compare given inits with the as-built model on the same fresh seeds.

    Args:
        evaluate: Runs one trial.
        candidates: Inits, or pairs of an init and dotted configuration keys with their values.
        seeds: How many seeds, at least 2; none that a search in the same storage has used.
        steps: Training steps of each run.
        baseline: What the others are measured against.
        mode: Whether a smaller or larger metric is better; one for each where there are several.
        monitor: What the metric is called; with several, all are judged.
        workers: Worker processes, how many or which; 0 runs trials in this one.
        storage: A journal file or a database's URL; what it holds already is not run again.
        identity: What must be the same for what is stored to count.
        log: A file for what workers print.
        progress: Is told how it goes.
        seen: Is called as `seen(phase, number, trial, outcome)` for every run that has ended.

    Returns:
        The result; `.suggestion()` is None if nothing beats the baseline by more than the noise.

    Raises:
        ValueError: If an argument is not legal, there is no candidate besides the baseline, or the
            storage holds the runs of something else.
        HopelessError: If every run crashes.
        KeyboardInterrupt: If it is interrupted; what is finished is kept.

    Example:
        >>> from lightning_init import Outcome
        >>> def evaluate(trial, report):
        ...     return Outcome(trial.seed % 7 / 100 + (trial.spec.strategy != "orthogonal"))
        >>> compare_specs(evaluate, ["orthogonal", "normal"], seeds=4).best.label
        'orthogonal'
    """
    first = _candidate(baseline, "keep")
    others = {one.content: one for one in (_candidate(each, "finalist") for each in candidates)}
    others.pop(first.content, None)
    if not others:
        raise ValueError(
            f"nothing to compare: pass at least one init other than {first.label}, such as auto"
        )
    budget = Budget(
        trials=1,
        steps=steps,
        confirm_seeds=seeds,
        goals=goals_for(monitor, mode),
        identity=identity,
    )
    with session(evaluate, storage, workers, log, progress, seen) as (opened, loop):
        stored = open_part(opened, "compare", budget)
        fresh = list(islice((n for n in count(_FIRST) if n not in _used(opened)), seeds))
        runs = Confirmation([first, *others.values()], fresh, budget, stored, "comparing")
        loop.run(runs)
        compared, *rest = runs.candidates()
    everything = [run for one in (compared, *rest) for run in one.runs]
    if all(run.reason.startswith("crashed") for run in everything):
        raise HopelessError(f"every run crashes: {everything[0].reason.partition(': ')[2]}")
    return SearchResult.judge(
        compared,
        rest,
        (),
        goals=budget.goals,
        steps=steps,
        study=optuna.create_study(),
        seeds_option="--seeds",
    )


def _candidate(given: Given, kind: Any) -> Candidate:
    spec, config = given if isinstance(given, tuple) else (given, {})
    spec = InitSpec(spec) if isinstance(spec, str) else spec
    return Candidate(-1, spec, dict(config), kind=kind)


def _used(opened: optuna.storages.BaseStorage) -> set[int]:
    """The seeds of a search in the same storage."""
    found: set[int] = set()
    for study in opened.get_all_studies():
        known = study.user_attrs.get("budget")
        if known is not None:
            found |= set(range(known["seed"], known["seed"] + known["confirm_seeds"] + 1))
    return found
