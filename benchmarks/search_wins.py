"""Does the search's winner train better than `keep` and `auto`? Full trainings on six real tasks.

    python benchmarks/search_wins.py [--quick] [--only cnn] [--seed 0] [--workers 1]

`lightning-init search` runs as it comes, only its trials are shortened with the trainings (`short`
in search_tasks.py); where it says that more seeds may tell, it is run once more with those. Then
full trainings on 8 seeds that nothing has seen, paired, three ways: the winner with its learning
rate (`best.yaml`) against the others at the user's; all at the user's; and each at its own best of
five rates (on two other seeds). The difference is in seed standard deviations of `keep`; a diverged
training counts as twice the loss of guessing. `better` and `not worse`: the 95 % interval lies
above 0, above -0.5; `worse`: below -0.5; else `undecided`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from jsonargparse import Namespace

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.search_runs import SOURCES, ahead, cached, interval, mean, script, sd  # noqa: E402
from benchmarks.search_tasks import CODE, LR, RATES, Task, fit_of, tasks  # noqa: E402
from lightning_init import InitSpec, search_init  # noqa: E402
from lightning_init.search.evaluate import JobEvaluate  # noqa: E402
from lightning_init.search.job import Job  # noqa: E402
from lightning_init.search.settings import settings_for  # noqa: E402
from lightning_init.search.verdict import promising  # noqa: E402

TUNING, SEEDS = (301, 302), tuple(range(401, 409))


@dataclass(frozen=True)
class Winner:
    """What a search recommends."""

    spec: InitSpec
    lr: float
    verdict: str
    seconds: float


@dataclass(frozen=True)
class Budget:
    """How much is trained."""

    trials: int = 40
    seeds: tuple[int, ...] = SEEDS
    rates: tuple[float, ...] = RATES
    tuning: tuple[int, ...] = TUNING
    share: float = 1.0  # of the steps
    confirm: int = 5  # seeds of the search's confirmation


QUICK = Budget(4, SEEDS[:2], (1.0,), TUNING[:1], 0.05, 2)


def winner(task: Task, seed: int, budget: Budget, cache: Path) -> Winner:
    """Search as the command does, or look up what it found."""
    name = json.dumps(["wins", task.config, task.short, seed, budget.trials, CODE, SOURCES])
    path = cache / "search" / f"{hashlib.sha256(name.encode()).hexdigest()[:20]}.json"
    if not path.exists():
        options = Namespace(
            trials=budget.trials,
            steps=task.short,
            seed=seed,
            workers=0,
            confirm_seeds=budget.confirm,
        )
        chosen = settings_for(Job(task.config), options, "wins")
        evaluate = JobEvaluate(chosen.config, chosen.objectives)
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            storage = Path(folder) / "study.journal"
            arguments = {**chosen.arguments, "storage": storage, "log": None}
            result = search_init(evaluate, chosen.space, **arguments)
            if (more := promising(result)) is not None:  # as it says that one should
                arguments["confirm_seeds"] = more[-1]
                result = search_init(evaluate, chosen.space, **arguments)
        seconds = time.perf_counter() - began
        rows = [result.best.spec.to_dict(), result.best.config[LR], result.verdict(), seconds]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows))
    spec, lr, verdict, seconds = json.loads(path.read_text())
    return Winner(InitSpec.from_dict(spec), lr, verdict, seconds)


def trained(
    key: str, arms: list[tuple[InitSpec, float]], budget: Budget, cache: Path, workers: int
) -> list[list[float]]:
    """The metric of each init at its learning rate, on each seed."""
    steps = round(tasks()[key].steps * budget.share)
    fits = [[fit_of(key, spec, lr, seed, steps) for seed in budget.seeds] for spec, lr in arms]
    done = cached([fit for row in fits for fit in row], cache, workers)
    return [[done[fit] for fit in row] for row in fits]


def best_rate(key: str, spec: InitSpec, budget: Budget, cache: Path, workers: int) -> float:
    """The learning rate at which an init trains best, on seeds of its own."""
    task = tasks()[key]
    steps = round(task.steps * budget.share)
    fits = {
        factor: [fit_of(key, spec, task.lr * factor, seed, steps) for seed in budget.tuning]
        for factor in budget.rates
    }
    done = cached([fit for row in fits.values() for fit in row], cache, workers)
    return task.lr * min(fits, key=lambda factor: mean([done[fit] for fit in fits[factor]]))


def judged(ours: list[float], other: list[float], spread: float) -> str:
    """`+1.2 [+0.8, +1.6] better`: the paired difference in standard deviations of keep."""
    if ours == other:
        return "the same"
    middle, low, high = interval([(b - a) / spread for a, b in zip(ours, other, strict=True)])
    if low > 0:
        verdict = "better"
    elif low > -0.5:
        verdict = "not worse"
    else:
        verdict = "worse" if high < -0.5 else "undecided"
    return f"{middle:+.2g} [{low:+.2g}, {high:+.2g}] {verdict}"


def rows(key: str, found: Winner, budget: Budget, cache: Path, workers: int) -> list[str]:
    """The three comparisons of a task."""
    user = tasks()[key].lr
    specs = [found.spec, InitSpec("keep"), InitSpec("auto")]
    own = [best_rate(key, spec, budget, cache, workers) for spec in specs]
    ways = {
        "`best.yaml`": [found.lr, user, user],
        "the user's lr": [user, user, user],
        "own best lr": own,
    }
    lines = []
    for way, rates in ways.items():
        ours, keep, auto = trained(
            key, list(zip(specs, rates, strict=True)), budget, cache, workers
        )
        cells = [
            f"{mean(row):.3f} ({rate:.2g})"
            for row, rate in zip((ours, keep, auto), rates, strict=True)
        ]
        spread = max(sd(keep), 1e-9)
        against = judged(ours, keep, spread), judged(ours, auto, spread)
        lines.append(f"| | {way} | {' | '.join((*cells, f'{spread:.2g}', *against))} |")
    return lines


def report(args: argparse.Namespace) -> str:
    """The table."""
    budget = QUICK if args.quick else Budget()
    lines = [
        "| task, winner | each at | winner (lr) | keep (lr) | auto (lr) | sd of keep "
        "| winner - keep in sd [95 %] | winner - auto |",
        "|---|---|---|---|---|---|---|---|",
    ]
    chosen = {
        key: replace(task, short=round(task.short * budget.share))
        for key, task in list(tasks().items())[: 1 if args.quick else None]
        if args.only in key
    }
    searches = [partial(winner, task, args.seed, budget, args.cache) for task in chosen.values()]
    ahead(searches, args.workers)
    for key, task in chosen.items():
        found = winner(task, args.seed, budget, args.cache)
        head = f"| **{task.name}**: {found.spec}, lr {found.lr:.2g} | | | | | | | |"
        print(f"{key}: {found.verdict} ({found.seconds:.0f} s)", file=sys.stderr, flush=True)
        lines += [head, *rows(key, found, budget, args.cache, args.workers)]
        print("\n".join(lines[-4:]), file=sys.stderr, flush=True)
    return "\n".join(lines)


def main() -> None:
    script("wins", __doc__, report, seed=(0, "of the search"))


if __name__ == "__main__":
    main()
