"""What a command's options and the user's configuration come to: all that a search needs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from lightning_init.architecture.arguments import unknown
from lightning_init.search.budget import Budget, Goal
from lightning_init.search.database import hidden, is_url, open_database
from lightning_init.search.devices import cores, threads_each, visible_devices
from lightning_init.search.evaluate import TRAIN_LOSS
from lightning_init.search.job import ConfigError, Job
from lightning_init.search.look import Look, look
from lightning_init.search.objectives import Objective, parse_objectives, usual_mode
from lightning_init.search.session import Workers
from lightning_init.search.space import STRATEGY, Space
from lightning_init.search.wanted import wanted

_STEPS = 200
_VAL_LOSS = re.compile(r"(val|valid|validation)[_/.-]loss(_epoch)?")


@dataclass(frozen=True)
class Settings:
    """A search, ready to be run.

    Attributes:
        config: The user's configuration as plain data.
        objectives: What is read off each trial.
        space: What is tried.
        budget: How much, and how it is judged.
        workers: Who runs the trials.
        out: The run's folder.
        storage: Its study: a file in the folder, or a database's URL.
        look: What one batch of the job has shown.
        notes: What the user should know before it begins.
    """

    config: dict[str, Any]
    objectives: tuple[Objective, ...]
    space: Space
    budget: Budget
    workers: Workers
    out: Path
    storage: str | Path
    look: Look
    notes: tuple[str, ...] = ()

    @property
    def arguments(self) -> dict[str, Any]:
        """For `search_init`."""
        budget = self.budget
        return {
            "trials": budget.trials,
            "steps": budget.steps,
            "seed": budget.seed,
            "confirm_seeds": budget.confirm_seeds,
            "confirm_steps": budget.confirm_steps,
            "top": budget.top,
            "mode": [goal.mode for goal in budget.goals],
            "monitor": [goal.name for goal in budget.goals],
            "sampler": budget.sampler,
            "pruning": budget.pruning,
            "lr_key": budget.lr_key,
            "identity": budget.identity,
            "longest_steps": budget.longest_steps,
            "workers": self.workers,
            "storage": self.storage,
            "log": self.out / "log.txt",
        }

    @property
    def place(self) -> str:
        """Where the study is, for people."""
        return f"{self.out}" if isinstance(self.storage, Path) else hidden(self.storage)

    @property
    def elsewhere(self) -> str:
        """The option that puts a study into another place."""
        return f"--out {self.out}-2" if isinstance(self.storage, Path) else "another --storage"

    @property
    def headline(self) -> str:
        """The first line of output."""
        budget = self.budget
        goals = ", ".join(f"{goal.name} ({goal.mode})" for goal in budget.goals)
        searched = {
            **self.space.config,
            **{f"scale of {k}": v for k, v in self.space.scales.items()},
        }
        axes = ", ".join(f"{key} {axis}" for key, axis in searched.items())
        longer = f" of {budget.horizon} steps" if budget.horizon != budget.steps else ""
        return (
            f"Searching {goals} over {len(self.space.strategies)} "
            f"strategies{f' and {axes}' if axes else ''}: {budget.trials} trials of "
            f"{self.look.sentence(budget.steps)}; then the best {budget.top} and keep on "
            f"{budget.confirm_seeds} fresh seeds{longer}; {self.where}; "
            f"{self.out}"
        )

    @property
    def where(self) -> str:
        """Who runs the trials, in words."""
        count, gpus = self.workers.count, len(self.workers.devices or ())
        if not count:
            return "in this process"
        each = threads_each(count)
        threads = f"{each} thread{'s' if each > 1 else ''}"
        workers = f"{count} worker{'s' if count > 1 else ''}"
        if not gpus:
            return f"{workers} of {threads}"
        return f"{workers} on {gpus} GPU{'s' if gpus > 1 else ''}, {threads} each"


def settings_for(job: Job, options: Namespace, name: str) -> Settings:
    """What a search of a configuration is to do.

    Args:
        job: The configuration.
        options: The command's own; those that it does not have are at their defaults.
        name: Of the configuration, for the run's folder.

    Raises:
        ValueError: If an option is not legal for this configuration.
    """
    _check_storage(options)
    notes = []
    if job.dropped:
        notes.append(
            f"ignored keys of the configuration: {', '.join(job.dropped)} (if your own "
            "LightningCLI has them: --cli train.py:main)"
        )
    config = job.plain()
    seen = look(job)
    space, lr_key, said = wanted(job, options, seen.architecture)
    notes += said
    budget = _budget(seen, options)
    if budget.trials < len(space.names):
        late = ", ".join(point[STRATEGY] for point in space.recipes()[budget.trials :])
        notes.append(f"{budget.trials} trials are too few to try each strategy: not {late}")
    objectives = _objectives(job, options, seen)
    out = Path(options.get("out") or Path("lightning_init_runs") / name)
    own = {
        **vars_of(budget),
        "goals": tuple(Goal(one.name, one.direction) for one in objectives),
        "lr_key": lr_key,
        "identity": _identity(config, objectives, budget, space),
    }
    return Settings(
        config=config,
        objectives=objectives,
        space=space,
        budget=Budget(**own),
        workers=_workers(job, options),
        out=out,
        storage=options.get("storage") or out / "study.journal",
        look=seen,
        notes=tuple(notes),
    )


def _check_storage(options: Namespace) -> None:
    """Open a database once before anything runs: what is wrong with its URL is said at once."""
    if is_url(storage := options.get("storage")):
        open_database(storage)


def vars_of(budget: Budget) -> dict[str, Any]:
    """The fields of a budget."""
    return {name: getattr(budget, name) for name in Budget.__dataclass_fields__}


def _budget(seen: Look, options: Namespace) -> Budget:
    default = min(_STEPS, seen.job_steps or _STEPS)
    steps = options.get("steps") or default
    longest = options.get("longest_steps")
    return Budget(
        trials=options.get("trials", 40),
        steps=steps,
        seed=options.get("seed", 0),
        confirm_seeds=options.get("confirm_seeds", 5),
        confirm_steps=options.get("confirm_steps") or Budget.longer(steps, seen.job_steps),
        sampler=options.get("sampler", "tpe"),
        pruning=not options.get("no_pruning", False),
        longest_steps=Budget.longer(steps, seen.job_steps) if longest is None else longest,
    )


def _objectives(job: Job, options: Namespace, seen: Look) -> tuple[Objective, ...]:
    logged = seen.metrics
    chosen, mode = options.get("monitor"), options.get("mode")
    if chosen is None and (found := job.monitored()) is not None:
        chosen, mode = found[0], mode or ("max" if found[1] == "max" else "min")
    elif chosen is None:
        chosen = next((name for name in logged if _VAL_LOSS.fullmatch(name)), TRAIN_LOSS)
    if chosen == TRAIN_LOSS and not seen.loss:
        legal = ", ".join(logged) or "none: log one"
        raise ConfigError(
            f"--monitor: training_step returns no loss to judge by; name one of what the module "
            f"logs: {legal}"
        )
    if chosen not in (*logged, TRAIN_LOSS):
        raise ConfigError(f"--monitor: {unknown('metric', chosen, logged)} (the module logs these)")
    return parse_objectives(options.get("objective") or [], chosen, mode or usual_mode(chosen))


def _workers(job: Job, options: Namespace) -> Workers:
    gpus = visible_devices(str(job.config.get("trainer.accelerator") or "auto"))
    count, timeout = options.get("workers"), options.get("trial_timeout")
    isolate = bool(options.get("isolate"))
    if count is None:
        count = len(gpus) or cores()
    if not count and (timeout or isolate):
        raise ConfigError("--trial-timeout and --isolate need processes: pass --workers 1 or more")
    return Workers(count, tuple(gpus), timeout, isolate)


def _identity(
    config: Mapping[str, Any], objectives: tuple[Objective, ...], budget: Budget, space: Space
) -> str:
    """What must be the same for a study to go on."""
    data = {
        "config": {key: value for key, value in config.items() if key != "seed_everything"},
        "objectives": [str(one) for one in objectives],
        "steps": budget.steps,
        "seed": budget.seed,
        "sampler": budget.sampler,
        "space": space.to_dict(),
        "axes": {key: axis.to_dict() for key, axis in space.axes.items()},
    }
    text = json.dumps(data, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
