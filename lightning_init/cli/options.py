"""What commands share: parsing, the run of one batch, strategies by name or file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, Namespace
from lightning.pytorch.callbacks import Callback

from lightning_init.callbacks.init import InitCallback
from lightning_init.cli.flags import add_flags
from lightning_init.cli.main import COMMANDS
from lightning_init.cli.quick import FULL
from lightning_init.search.job import SHORT, ConfigError, Job, interruptible, require_data
from lightning_init.search.mistakes import explain
from lightning_init.search.own_cli import Recipe
from lightning_init.search.serve import quiet
from lightning_init.strategies.spec import InitSpec, spec_in


def parse(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """Parse, with errors as one line.

    Raises:
        ConfigError: If an option is not legal.
    """
    try:
        return parser.parse_args(list(arguments))
    except ArgumentError as error:
        raise ConfigError(explain(error, parser)) from error


def job_for(
    command: str, arguments: Sequence[str], own: Recipe | None = None, prog: str = "lightning-init"
) -> Job:
    """The parsed configuration of a command that takes LightningCLI's options.

    Args:
        command: A key of the table.
        arguments: What follows the command.
        own: The LightningCLI that the command belongs to; None for `--cli`, or for Lightning's.
        prog: The program, for the help.

    Raises:
        ConfigError: If there is no model, or something does not fit.
    """
    quiet()
    return Job(
        _without_full(arguments),
        lambda parser: add_flags(parser, command),
        f"{prog} {command}",
        COMMANDS[command],
        cli_of(arguments) if own is None else own,
    )


def _without_full(arguments: Sequence[str]) -> list[str]:
    """The arguments without the word behind `--help`; `--scale all` keeps its own."""
    before = ["", *arguments]
    return [
        word
        for last, word in zip(before, arguments, strict=False)
        if not (word == FULL and last in ("-h", "--help"))
    ]


def cli_of(arguments: Sequence[str]) -> str:
    """The value of `--cli`, `""` if it is not given."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--cli", default="")
    given, _ = parser.parse_known_args(list(arguments))
    return str(given.cli)


def spec_from(text: str) -> InitSpec:
    """A strategy's name or a file with a spec.

    Raises:
        ValueError: If there is no such strategy, or the file holds no spec.
    """
    if text.endswith((".yaml", ".yml", ".json")) or Path(text).is_file():
        return InitSpec.load(text)
    return InitSpec(text)


def configured_spec(job: Job) -> InitSpec | None:
    """The spec of an InitCallback in the configuration itself."""
    found = spec_in(job.plain())
    return None if found is None else InitSpec.from_dict(found)


def one_batch(job: Job, spec: InitSpec, **callback: Any) -> InitCallback:
    """Build everything afresh, train one batch, and return the callback that saw it; see `watched`."""
    return watched(job, spec, 1, **callback)


def watched(
    job: Job, spec: InitSpec, steps: int, *others: Callback, **callback: Any
) -> InitCallback:
    """Build everything afresh, train some steps, and return the callback that saw them.

    Args:
        job: The configuration.
        spec: How weights are drawn.
        steps: Training steps, at least 1.
        others: More callbacks.
        callback: Arguments of the InitCallback.

    Raises:
        ConfigError: If there is no training data.
    """
    seed = job.config.get("seed_everything")
    seen = InitCallback.from_spec(spec, verbose=False, **callback)
    model, data, trainer = job.build(
        seed if isinstance(seed, int) and not isinstance(seed, bool) else 0,
        {},
        [seen, *others],
        **SHORT,
        max_steps=steps,
        max_epochs=-1,
        limit_val_batches=0,
    )
    require_data(model, data)
    with interruptible():
        trainer.fit(model, datamodule=data)
    return seen
