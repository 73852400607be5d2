"""`lightning-init compare`: given inits against the as-built model, paired, on fresh seeds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from lightning_init.cli.options import job_for, spec_from
from lightning_init.cli.search import config_name, say
from lightning_init.search.board import Board
from lightning_init.search.compare import compare_specs
from lightning_init.search.evaluate import JobEvaluate
from lightning_init.search.job import ConfigError, Job
from lightning_init.search.keys import dotted_items, every_item, unknown_key
from lightning_init.search.live import Live
from lightning_init.search.records import OtherStudyError
from lightning_init.search.settings import Settings, settings_for
from lightning_init.strategies.spec import InitSpec, spec_in

_FILES = ("", "compare.json", "compare.html")
_NOT_COMPARED = ("seed_everything", "trainer.callbacks", "trainer.max_steps", "trainer.max_epochs")


def run(arguments: Sequence[str]) -> int:
    """Compare, print the table, and write `compare.json` and `compare.html`.

    Args:
        arguments: Specs, LightningCLI's options, and the command's own (`cli/flags.py`).

    Returns:
        0; 130 if interrupted, then the same command goes on.
    """
    job = job_for("compare", arguments)
    settings = settings_for(job, job.config, config_name(arguments))
    specs = [(text, *_given(text, job)) for text in job.config.specs]
    console = Console(highlight=False)
    steps, seeds = settings.budget.steps, job.config.seeds
    goals = ", ".join(f"{goal.name} ({goal.mode})" for goal in settings.budget.goals)
    several = "s" if len(specs) > 1 else ""
    console.print(
        f"Comparing {goals} of {len(specs)} init{several} with keep: {seeds} fresh seeds, {steps} "
        f"steps each; {settings.where}; {settings.out}"
    )
    for text, spec, config in specs:
        keys = "".join(f", {key} {value}" for key, value in config.items())
        if text != str(spec) or keys:
            console.print(f"{text}: {spec}{keys}", markup=False)
    settings.out.mkdir(parents=True, exist_ok=True)
    board = Board(settings.out / "tensorboard", [goal.name for goal in settings.budget.goals])
    try:
        with Live(console) as live:
            result = compare_specs(
                JobEvaluate(settings.config, settings.objectives, job.cli, settings.look.ready),
                [(spec, config) for _, spec, config in specs],
                seeds=seeds,
                steps=steps,
                mode=[goal.mode for goal in settings.budget.goals],
                monitor=[goal.name for goal in settings.budget.goals],
                workers=settings.workers,
                storage=settings.storage,
                identity=_identity(settings),
                log=settings.out / "log.txt",
                progress=live,
                seen=board,
            )
    except OtherStudyError:
        raise ConfigError(
            f"{settings.place} holds the comparison of another configuration or metric: pass "
            f"{settings.elsewhere}"
        ) from None
    except KeyboardInterrupt:
        console.print("interrupted: finished runs are kept, the same command goes on")
        return 130
    result.save(settings.out, _FILES)
    say(result, console)
    console.print(f"{settings.out / _FILES[2]}: the plots")
    return 0


def _given(text: str, job: Job) -> tuple[InitSpec, dict[str, Any]]:
    """A name, a spec's file, or an overlay with its configuration keys."""
    spec = spec_from(text)
    if not Path(text).is_file():
        return spec, {}
    data = yaml.safe_load(Path(text).read_text(encoding="utf-8"))
    if "strategy" in data:
        return spec, {}
    plain = job.plain()
    known = dict(every_item(plain))
    found = {key: v for key, v in dotted_items(data) if key.rstrip("+") not in _NOT_COMPARED}
    # a list of callbacks is said as a whole: what differs from the user's own is a key
    pairs = zip(_callbacks(plain), _callbacks(data), strict=False)
    for (number, _), (_, one) in pairs:
        for key, value in every_item(one, f"trainer.callbacks.{number}"):
            if known.get(key) != value and not key.endswith(".class_path"):  # spelled otherwise
                found |= {key: value}
    for key in found:
        if key not in known:
            raise ConfigError(f"{text}: {unknown_key(key, plain)}")
    return spec, found


def _callbacks(data: Mapping[str, Any]) -> list[tuple[int, Any]]:
    """The callbacks of a configuration with their numbers, but for inits."""
    listed = (data.get("trainer") or {}).get("callbacks")
    every = enumerate(listed if isinstance(listed, list) else [])
    return [pair for pair in every if spec_in({"trainer": {"callbacks": [pair[1]]}}) is None]


def _identity(settings: Settings) -> str:
    """What must be the same for runs that are stored to count."""
    data = {
        "config": {key: v for key, v in settings.config.items() if key != "seed_everything"},
        "objectives": [str(one) for one in settings.objectives],
    }
    text = json.dumps(data, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
