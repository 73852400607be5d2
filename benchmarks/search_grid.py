"""Steps of training until the search has an init as good as the best of a full grid.

    python benchmarks/search_grid.py [--quick] [--only mlp] [--repeats 5] [--workers 1]

The grid: 7 strategies as they are x 6 learning rates x 5 seeds. Its best cell is the one with the
best mean; how good that cell is, is measured again on 5 seeds that nothing else uses. The search
(`lightning-init search` as it comes, with these strategies) and plain Optuna (the objective of its
Lightning example, with its pruning callback, TPESampler and MedianPruner as they come) search the
same space: the strategies with their declared ranges, and the learning rate between the grid's
ends. Each new incumbent is trained on the same 5 fresh seeds. It is as good as the grid's best if
its mean is worse by no more than the standard error of the difference of two means of 5 seeds,
sqrt(2/5) of the seed standard deviation in the five best cells: a grid cannot tell those apart.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from jsonargparse import Namespace

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.search_runs import SOURCES, ahead, cached, mean, script, sd  # noqa: E402
from benchmarks.search_tasks import CODE, LR, MONITOR, Task, build, fit_of, tasks  # noqa: E402
from lightning_init import InitCallback, InitSpec, search_init  # noqa: E402
from lightning_init.search.evaluate import JobEvaluate  # noqa: E402
from lightning_init.search.job import Job  # noqa: E402
from lightning_init.search.settings import Settings, settings_for  # noqa: E402
from lightning_init.search.space import Space  # noqa: E402


@dataclass(frozen=True)
class Scale:
    """How much is trained; the learning rates are multiples of the user's own."""

    tasks: tuple[str, ...] = ("mlp", "lstm", "cnn")
    strategies: tuple[str, ...] = (
        *("keep", "auto", "xavier_normal", "kaiming_normal", "orthogonal", "lsuv", "normal"),
    )
    factors: tuple[float, ...] = tuple(10 ** (-1 + 2 * index / 5) for index in range(6))
    seeds: tuple[int, ...] = tuple(range(101, 106))
    fresh: tuple[int, ...] = tuple(range(201, 206))
    trials: int = 40
    repeats: int = 5
    share: float = 1.0  # of the steps of a trial
    confirm: int = 5  # seeds of the search's confirmation


QUICK = Scale(("mlp",), ("keep", "orthogonal"), (1.0,), (101, 102), (201, 202), 4, 1, 0.05, 2)


@dataclass(frozen=True)
class Choice:
    """An init and a learning rate, and what had been trained when it became the incumbent."""

    steps: int
    spec: InitSpec
    lr: float


@dataclass(frozen=True)
class Story:
    """A search: its incumbents in order, and what it recommends at the end."""

    incumbents: tuple[Choice, ...]
    final: Choice


@dataclass(frozen=True)
class Truth:
    """The grid of a task: its best cell on fresh seeds, and what counts as good as that."""

    best: tuple[str, float]
    value: float
    enough: float
    steps: int


def grid(key: str, task: Task, scale: Scale, cache: Path, workers: int) -> Truth:
    """Train the grid."""
    cells = [(name, task.lr * factor) for name in scale.strategies for factor in scale.factors]
    fits = {
        cell: [fit_of(key, InitSpec(cell[0]), cell[1], seed, task.short) for seed in scale.seeds]
        for cell in cells
    }
    done = cached([fit for row in fits.values() for fit in row], cache, workers)
    found = {cell: [done[fit] for fit in row] for cell, row in fits.items()}
    ranked = sorted(cells, key=lambda cell: mean(found[cell]))
    noise = math.sqrt(mean([sd(found[cell]) ** 2 for cell in ranked[:5]]))
    chosen = Choice(0, InitSpec(ranked[0][0]), ranked[0][1])
    value = truth(key, task, chosen, scale.fresh, cache, workers)
    enough = value + math.sqrt(2 / len(scale.seeds)) * noise
    return Truth(ranked[0], value, enough, len(cells) * len(scale.seeds) * task.short)


def truth(
    key: str, task: Task, choice: Choice, fresh: tuple[int, ...], cache: Path, workers: int
) -> float:
    """The mean metric on the fresh seeds."""
    fits = [fit_of(key, choice.spec, choice.lr, seed, task.short) for seed in fresh]
    return mean(list(cached(fits, cache, workers).values()))


def settings(task: Task, seed: int, scale: Scale, folder: Path) -> Settings:
    """What `lightning-init search` makes of the configuration."""
    options = Namespace(
        trials=scale.trials,
        steps=task.short,
        seed=seed,
        workers=0,
        confirm_seeds=scale.confirm,
        strategies=",".join(scale.strategies),
        out=str(folder),
    )
    return settings_for(Job(task.config), options, "grid")


def ours(task: Task, seed: int, scale: Scale, folder: Path) -> Story:
    """The search, as the command runs it."""
    chosen = settings(task, seed, scale, folder)
    spent, best, found = 0, math.inf, []

    def seen(phase: str, number: int, trial: Any, outcome: Any) -> None:
        del number
        nonlocal spent, best
        spent += int(outcome.info.get("steps", 0))
        healthy = outcome.metric is not None and not outcome.reason
        if phase == "screening" and healthy and outcome.metric < best:
            best = outcome.metric
            found.append(Choice(spent, trial.spec, trial.config[LR]))

    arguments = {**chosen.arguments, "storage": None, "log": None, "seen": seen}
    evaluate = JobEvaluate(chosen.config, chosen.objectives)
    result = search_init(evaluate, chosen.space, **arguments)
    return Story(tuple(found), Choice(spent, result.best.spec, result.best.config[LR]))


def plain(task: Task, seed: int, scale: Scale, folder: Path, key: str) -> Story:
    """Optuna as its Lightning example has it."""
    from optuna_integration import PyTorchLightningPruningCallback

    space: Space = settings(task, seed, scale, folder).space
    spent, found = 0, []

    def objective(trial: optuna.Trial) -> float:
        nonlocal spent
        values: dict[str, Any] = {}
        for name, axis in space.axes.items():
            if axis.choices:
                values[name] = trial.suggest_categorical(name, axis.choices)
            elif axis.whole:
                values[name] = trial.suggest_int(name, int(axis.low), int(axis.high), log=axis.log)
            else:
                values[name] = trial.suggest_float(name, axis.low, axis.high, log=axis.log)
        init = InitCallback.from_spec(space.spec(values), verbose=False, monitor_steps=0)
        pruning = PyTorchLightningPruningCallback(trial, monitor=MONITOR)
        validation = {"check_val_every_n_epoch": None, "val_check_interval": task.short // 5}
        model, data, trainer = build(
            key, values[LR], 1000 * seed + trial.number, [init, pruning], task.short, **validation
        )
        try:
            trainer.fit(model, datamodule=data)
        finally:
            spent += trainer.global_step
        return float(trainer.callback_metrics[MONITOR])

    def note(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if trial.state == optuna.trial.TrialState.COMPLETE and study.best_trial == trial:
            found.append(Choice(spent, space.spec(trial.params), trial.params[LR]))

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=seed), pruner=optuna.pruners.MedianPruner()
    )
    study.optimize(
        objective, n_trials=scale.trials, catch=(ValueError, RuntimeError), callbacks=[note]
    )
    return Story(tuple(found), Choice(spent, found[-1].spec, found[-1].lr))


def stored(cache: Path, name: list[Any], make: Callable[[], Story]) -> Story:
    """A search from the cache, under all that its course depends on."""
    path = cache / "search" / f"{hashlib.sha256(json.dumps(name).encode()).hexdigest()[:20]}.json"
    if not path.exists():
        made = make()
        rows = [[c.steps, c.spec.to_dict(), c.lr] for c in (*made.incumbents, made.final)]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows))
    choices = [
        Choice(steps, InitSpec.from_dict(spec), lr)
        for steps, spec, lr in json.loads(path.read_text())
    ]
    return Story(tuple(choices[:-1]), choices[-1])


def quartiles(values: list[float]) -> str:
    """`1200 (900 to 3000)`; infinity is never."""

    def text(value: float) -> str:
        return f"{value:.0f}" if math.isfinite(value) else "never"

    ranked = sorted(values)
    low, middle, high = (ranked[round(part * (len(ranked) - 1))] for part in (0.25, 0.5, 0.75))
    return f"{text(middle)} ({text(low)} to {text(high)})"


def report(args: argparse.Namespace) -> str:
    """The table."""
    scale = QUICK if args.quick else Scale(repeats=args.repeats)
    lines = [
        "| task | grid's best | how | steps until as good, median (quartiles) | of the grid's |"
        " all steps | as good at the end |",
        "|---|---|---|---|---|---|---|",
    ]
    for key in scale.tasks:
        if args.only not in key:
            continue
        task = tasks()[key]
        task = replace(task, short=round(task.short * scale.share))
        known = grid(key, task, scale, args.cache, args.workers)
        searches = [
            partial(_story, how, key, task, seed, scale, args.cache)
            for how in ("search", "Optuna")
            for seed in range(scale.repeats)
        ]
        ahead(searches, args.workers)
        where = f"{known.best[0]}, lr {known.best[1]:.2g}: {known.value:.3f}"
        lines.append(
            f"| {task.name} | {where}, enough {known.enough:.3f} | grid | {known.steps} | 1 "
            f"| {known.steps} | |"
        )
        for how in ("search", "Optuna"):
            reached, spent, good = [], [], 0
            for seed in range(scale.repeats):
                story = _story(how, key, task, seed, scale, args.cache)
                values = {
                    one: truth(key, task, one, scale.fresh, args.cache, args.workers)
                    for one in (*story.incumbents, story.final)
                }
                hits = [one.steps for one, value in values.items() if value <= known.enough]
                reached.append(float(hits[0]) if hits else math.inf)
                end = values[story.final]
                spent.append(story.final.steps)
                good += end <= known.enough
                print(
                    f"{key} {how} {seed}: reached {reached[-1]}, all {spent[-1]}, end {end:.3f} "
                    f"{story.final.spec} lr {story.final.lr:.3g}; incumbents "
                    f"{[(c.steps, str(c.spec), round(v, 3)) for c, v in values.items()]}",
                    file=sys.stderr,
                    flush=True,
                )
            share = statistics.median(reached) / known.steps
            lines.append(
                f"| | | {how} | {quartiles(reached)} | {share:.3f} "
                f"| {statistics.median(spent):.0f} | {good} of {scale.repeats} |"
            )
    return "\n".join(lines)


def _story(how: str, key: str, task: Task, seed: int, scale: Scale, cache: Path) -> Story:
    folder = cache / "search" / "run"
    name: list[Any] = [how, task.config, task.short, scale.strategies, seed, scale.trials, CODE]
    if how == "search":
        return stored(cache, [*name, SOURCES], lambda: ours(task, seed, scale, folder))
    name += [inspect.getsource(plain), optuna.__version__]
    return stored(cache, name, lambda: plain(task, seed, scale, folder, key))


def main() -> None:
    script("grid", __doc__, report, repeats=(5, "seeds of the samplers"))


if __name__ == "__main__":
    main()
