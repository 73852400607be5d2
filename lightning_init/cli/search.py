"""`lightning-init search`: find the best init by short trials on your own model and data."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from lightning_init.architecture.arguments import unknown
from lightning_init.cli.options import job_for
from lightning_init.search.budget import Budget
from lightning_init.search.evaluate import TRAIN_LOSS, JobEvaluate
from lightning_init.search.job import ConfigError, Job
from lightning_init.search.keys import dotted_keys
from lightning_init.search.loop import State
from lightning_init.search.objectives import Objective
from lightning_init.search.records import OtherStudyError
from lightning_init.search.result import SearchResult
from lightning_init.search.space import STRATEGY, Space, around, parse_axis
from lightning_init.search.statistics import Mode
from lightning_init.search.study import search_init
from lightning_init.search.workers import devices
from lightning_init.strategies.spec import InitSpec

_STEPS = 200


@dataclass(frozen=True)
class _Settings:
    space: Space
    monitor: str
    mode: Mode
    steps: int
    seed: int
    workers: int
    out: Path
    notes: tuple[str, ...]


def run(arguments: Sequence[str]) -> int:
    """Search, confirm, and write `best.yaml`, `results.json` and `report.html`.

    Args:
        arguments: LightningCLI's, and the options below.

    Returns:
        0; 130 if interrupted, then the same command goes on.
    """
    job = job_for("search", arguments, _options)
    options = job.config
    settings = _settings(job, arguments)
    config = job.plain()
    evaluate = JobEvaluate(config, (Objective("last", settings.monitor, settings.mode),))
    console = Console(highlight=False)
    for line in (_headline(settings, options), *settings.notes):
        console.print(line)
    settings.out.mkdir(parents=True, exist_ok=True)
    try:
        with _Bar(console) as bar:
            result = search_init(
                evaluate,
                settings.space,
                trials=options.trials,
                steps=settings.steps,
                seed=settings.seed,
                confirm_seeds=options.confirm_seeds,
                mode=settings.mode,
                monitor=settings.monitor,
                sampler=options.sampler,
                workers=settings.workers,
                storage=options.storage or settings.out / "study.journal",
                identity=_identity(config, settings, options.sampler),
                log=settings.out / "log.txt",
                progress=bar,
            )
    except OtherStudyError:
        raise ConfigError(
            f"{settings.out} holds the search of another configuration (or of other --steps, "
            f"--seed, --monitor, --strategies or axes): pass --out {settings.out}-2"
        ) from None
    except KeyboardInterrupt:
        console.print("interrupted: finished trials are kept, the same command goes on")
        return 130
    result.save(settings.out)
    console.print(summary(result))
    for line in _without(result):
        console.print(line, markup=False)
    console.print(result.verdict())
    console.print(f"{settings.out / 'best.yaml'}: add it to your command line, after your own:")
    console.print(f"  fit --config <yours> --config {settings.out / 'best.yaml'}")
    console.print(f"{settings.out / 'report.html'}: the plots")
    return 0


def summary(result: SearchResult) -> Table:
    """The confirmed candidates as a table of 80 columns."""
    grid = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    grid.add_column("init", overflow="fold")
    grid.add_column(f"{result.monitor}, mean ± sd", justify="right")
    grid.add_column("better than keep by [95 %]", justify="right")
    grid.add_column("failed", justify="right")
    for row in result.rows():
        grid.add_row(*row)
    return grid


def _without(result: SearchResult) -> list[str]:
    """What the search cannot say anything about, and why."""
    found: dict[str, str] = {}
    for trial in result.trials:
        name = trial["spec"]["strategy"]
        found.setdefault(name, trial["reason"])
        if trial["metric"] is not None:
            found[name] = ""
    return [f"no result for {name}: {reason}" for name, reason in found.items() if reason]


def _settings(job: Job, arguments: Sequence[str]) -> _Settings:
    options, notes = job.config, []
    if job.dropped:
        notes.append(f"ignored keys of the configuration: {', '.join(job.dropped)}")
    axes = dict(parse_axis(text) for text in options.axis or [])
    known = dotted_keys(job.plain())
    for key in axes:
        if key not in known:
            raise ConfigError(f"--axis: {unknown('configuration key', key, known)}")
    rates = job.learning_rates()
    key = options.lr_key
    if key is not None and key not in rates:
        raise ConfigError(f"--lr-key: {unknown('learning rate', key, rates)}")
    if key is None and len(rates) == 1:
        key = next(iter(rates))
    if key is not None and key not in axes:
        axes[key] = around(rates[key])
    if key is None and not set(axes) & set(rates):
        found = f"{len(rates)} learning rates" if rates else "no learning rate"
        notes.append(
            f"{found} in the configuration: the learning rate is fixed, and at a wrong one the "
            "ranking of inits misleads; name one with --lr-key"
        )
    names = tuple(name.strip() for name in (options.strategies or "").split(",") if name.strip())
    files = {name: InitSpec.load(name) for name in names if name.endswith((".yaml", ".yml"))}
    space = Space(names, axes, files)
    limit = job.config.get("trainer.max_steps")
    default = min(_STEPS, limit) if limit and limit > 0 else _STEPS
    steps = default if options.steps is None else options.steps
    Budget(options.trials, steps, options.seed, options.confirm_seeds)
    if options.trials < len(space.names):
        late = ", ".join(point[STRATEGY] for point in space.recipes()[options.trials :])
        notes.append(f"{options.trials} trials are too few to try each strategy: not {late}")
    workers = options.workers
    if workers is None:
        workers = len(devices()) or os.cpu_count() or 1
    monitor, mode = _monitor(job)
    if workers < 0:
        raise ConfigError(f"`--workers >= 0` must hold, but got {workers}")
    out = Path(options.out or Path("lightning_init_runs") / _config_name(arguments))
    return _Settings(space, monitor, mode, steps, options.seed, workers, out, tuple(notes))


def _monitor(job: Job) -> tuple[str, Mode]:
    chosen, mode = job.config.monitor, job.config.mode
    logged = job.logged_metrics()
    if chosen is None and (found := job.monitored()) is not None:
        chosen, mode = found[0], mode or ("max" if found[1] == "max" else "min")
    elif chosen is None:
        chosen = "val_loss" if "val_loss" in logged else TRAIN_LOSS
    if chosen not in (*logged, TRAIN_LOSS):
        raise ConfigError(f"--monitor: {unknown('metric', chosen, logged)} (the module logs these)")
    if mode is None:
        larger = ("acc", "auc", "auroc", "f1", "precision", "recall", "iou", "dice", "r2", "bleu")
        mode = "max" if any(part in chosen.lower() for part in larger) else "min"
    return chosen, mode


def _headline(settings: _Settings, options: Namespace) -> str:
    axes = ", ".join(
        f"{key} {axis.low:.3g}..{axis.high:.3g}" if not axis.choices else f"{key} {axis.choices}"
        for key, axis in settings.space.config.items()
    )
    return (
        f"Searching {settings.monitor} ({settings.mode}) over {len(settings.space.strategies)} "
        f"strategies{f' and {axes}' if axes else ''}: {options.trials} trials of "
        f"{settings.steps} steps with your schedule cut there, then the best 3 and keep on "
        f"{options.confirm_seeds} fresh seeds; {settings.workers} workers; {settings.out}"
    )


def _identity(config: dict[str, Any], settings: _Settings, sampler: str) -> str:
    data = {
        "config": {key: value for key, value in config.items() if key != "seed_everything"},
        "monitor": settings.monitor,
        "mode": settings.mode,
        "steps": settings.steps,
        "seed": settings.seed,
        "sampler": sampler,
        "space": {key: str(axis) for key, axis in settings.space.axes.items()},
    }
    text = json.dumps(data, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _config_name(arguments: Sequence[str]) -> str:
    given = list(arguments)
    for index, argument in enumerate(given):
        flag, _, value = argument.partition("=")
        if flag in ("--config", "-c"):
            return Path(value or given[index + 1]).stem
    return "search"


class _Bar:
    """A progress bar on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[text]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, Any] = {}
        self._said: dict[str, int] = {}

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._bar.stop()

    def __call__(self, state: State) -> None:
        phase, done, total, text = state.phase, state.done, state.total, state.best
        if phase not in self._tasks:
            self._tasks[phase] = self._bar.add_task(phase, total=total, text=text)
        self._bar.update(self._tasks[phase], completed=done, total=total, text=text)
        tenth = done * 10 // max(1, total)
        if not self._console.is_terminal and tenth > self._said.get(phase, -1):
            self._said[phase] = tenth
            self._console.print(f"{phase} {done}/{total} {text}".rstrip())


def _options(parser: LightningArgumentParser) -> None:
    add = parser.add_argument
    add("--trials", type=int, default=40, help="trials in all; the same command goes on")
    add("--steps", type=int | None, help=f"training steps per trial (max_steps, at most {_STEPS})")
    add("--seed", type=int, default=0, help="seed of the screening; confirmation takes the next")
    add("--confirm_seeds", "--confirm-seeds", type=int, default=5, help="fresh paired seeds")
    add("--workers", type=int | None, help="processes: one per GPU, else one per core; 0: none")
    add("--storage", type=str | None, help="a database URL instead of the run's own file")
    add("--sampler", type=Literal["tpe", "gp"], default="tpe", help="gp pays from 50 trials")
    add(
        "--strategies",
        type=str | None,
        help="names, or files with an init spec, separated by commas; keep is always in",
    )
    add("--axis", action="append", type=str, help="KEY=LOW:HIGH[:log] or KEY=a,b,c; repeatable")
    add("--lr_key", "--lr-key", type=str | None, help="the learning rate's key; found if single")
    add("--monitor", type=str | None, help="metric; the checkpoint callback's, else val_loss")
    add("--mode", type=Literal["min", "max"] | None, help="whether smaller or larger is better")
    add("--out", type=str | None, help="run folder (lightning_init_runs/<config name>)")
