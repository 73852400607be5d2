"""The command that starts a run again with another initialization."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import yaml

from lightning_init.callbacks.arguments import callbacks_of
from lightning_init.callbacks.logs import run_folder
from lightning_init.callbacks.placement import Placement
from lightning_init.callbacks.rescue import rungs
from lightning_init.health.report import Report
from lightning_init.strategies.spec import InitSpec

FILE = "rescue.yaml"


# Causes that another initialization mends.
_OF_INIT = frozenset(
    ("init scale", "symmetry", "bias", "depth", "output layer", "attention scale", "tied weights")
)


def restart(
    trainer: pl.Trainer,
    placed: Placement,
    report: Report,
    ladder: tuple[InitSpec, ...] | None,
    arguments: Mapping[str, Any],
) -> str:
    """Write the next initialization into the run's folder; all processes call this.

    Args:
        trainer: Knows the folder.
        placed: What was applied last.
        report: What was tried before, and the likely causes.
        ladder: What to try, in order; None for the default.
        arguments: Other arguments of the InitCallback; those that are None are left out.

    Returns:
        What to type: the command of this run with one more `--config`, or a line of Python.
    """
    folder = run_folder(trainer)
    tried = [placed.strategy, *(InitSpec.from_dict(a.spec) for a in report.attempts if a.spec)]
    left = () if placed.plan is None else rungs(ladder, tried, placed.plan)
    if not left:
        return "nothing is left on the ladder: the initialization alone is not to blame"
    head = f"to start again with {left[0]}:\n  "
    causes = report.errors[0].causes if report.errors else ()
    if causes and causes[0] not in _OF_INIT:
        head = f"the likeliest cause is {causes[0]}, which no initialization mends; {head}"
    if folder is None:
        return f'{head}InitCallback(InitSpec.from_dict({left[0].to_dict()}), on_unhealthy="rescue")'
    path = folder / FILE
    if trainer.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(overlay(left, arguments), sort_keys=False)
        first = f"# The next initialization to try: fit --config <yours> --config {path}\n"
        path.write_text(first + text, encoding="utf-8")
    if _cli_runs(trainer):
        return head + shlex.join([*_command(), "--config", str(path)])
    return f'{head}InitCallback.from_file("{path}", on_unhealthy="rescue")'


def overlay(left: Sequence[InitSpec], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A LightningCLI configuration to put after the user's own.

    Example:
        >>> overlay([InitSpec("gpt2")], {})["trainer"]["callbacks+"][0]["init_args"]["strategy"]
        'gpt2'
    """
    init = {
        **left[0].to_dict(),
        **{key: value for key, value in arguments.items() if value is not None},
        "on_unhealthy": "rescue",
        "ladder": [rung.to_dict() for rung in left[1:]],
    }
    callback = {"class_path": "lightning_init.InitCallback", "init_args": init}
    return {"trainer": {"callbacks+": [callback]}}


def _cli_runs(trainer: pl.Trainer) -> bool:
    """Whether a LightningCLI built the Trainer: it puts a callback of its own in."""
    callbacks = callbacks_of(trainer)
    names = {kind.__name__ for each in callbacks for kind in type(each).__mro__}
    return "SaveConfigCallback" in names


def _command() -> list[str]:
    """What was typed, with the interpreter and its options."""
    typed = list(sys.orig_argv)
    if len(sys.argv) < 2 or typed[-len(sys.argv[1:]) :] == sys.argv[1:]:
        return typed
    return ["python", *sys.argv]
