"""`lightning-init search`: find the best init by short trials on your own model and data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lightning_init.cli.options import job_for
from lightning_init.search.board import Board
from lightning_init.search.evaluate import JobEvaluate
from lightning_init.search.job import ConfigError
from lightning_init.search.live import Live
from lightning_init.search.own_cli import Recipe, for_workers
from lightning_init.search.records import OtherStudyError
from lightning_init.search.result import SearchResult
from lightning_init.search.settings import Settings, settings_for
from lightning_init.search.study import search_init


def run(arguments: Sequence[str], own: Recipe | None = None, prog: str = "lightning-init") -> int:
    """Search, confirm, and write `best.yaml`, `results.json` and `report.html`.

    Args:
        arguments: LightningCLI's, and the command's own (`cli/flags.py`).
        own: The LightningCLI that has the command; None for `--cli`, or for Lightning's.
        prog: The program, for the help.

    Returns:
        0; 130 if interrupted, then the same command goes on.
    """
    job = job_for("search", arguments, own, prog)
    settings = settings_for(job, job.config, config_name(arguments))
    if own is not None and settings.workers.count:
        for_workers(own)
    return search(
        settings, JobEvaluate(settings.config, settings.objectives, job.cli, settings.look.ready)
    )


def search(settings: Settings, evaluate: JobEvaluate) -> int:
    """Run a search and print what it found.

    Returns:
        0; 130 if interrupted.
    """
    console = Console(highlight=False)
    for line in (settings.headline, *settings.notes):
        console.print(line)
    settings.out.mkdir(parents=True, exist_ok=True)
    board = Board(settings.out / "tensorboard", [goal.name for goal in settings.budget.goals])
    try:
        with Live(console) as live:
            result = search_init(
                evaluate, settings.space, **settings.arguments, progress=live, seen=board
            )
    except OtherStudyError:
        raise ConfigError(
            f"{settings.place} holds the search of another configuration (or of other --steps, "
            f"--seed, --objective in this order, --monitor, --strategies or axes): pass "
            f"{settings.elsewhere}"
        ) from None
    except KeyboardInterrupt:
        console.print("interrupted: finished trials are kept, the same command goes on")
        return 130
    result.save(settings.out)
    say(result, console)
    console.print(f"{settings.out / 'best.yaml'}: add it to your command line, after your own:")
    console.print(f"  fit --config <yours> --config {settings.out / 'best.yaml'}")
    console.print(f"{settings.out / 'report.html'}: the plots; more of them, also while it runs:")
    console.print(f"  tensorboard --logdir {settings.out / 'tensorboard'}")
    return 0


def say(result: SearchResult, console: Console) -> None:
    """Print what a search or a comparison found: a table for each goal, and the sentences."""
    for goal in range(len(result.goals)):
        console.print(summary(result, goal))
    for line in result.lines():
        console.print(line, markup=False)
    console.print(result.verdict(), markup=False)


def summary(result: SearchResult, goal: int = 0) -> Table:
    """The confirmed candidates as a table of 80 columns, for one goal."""
    grid = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    first, *others = result.heads(goal)
    grid.add_column(first, overflow="fold")
    for head in others:  # numbers stay in one piece, names of inits are folded
        lines = head.replace(", ", ",\n").replace(" keep", "\nkeep")
        grid.add_column(lines, justify="right", no_wrap=len(head) < 40, overflow="fold")
    for row in result.rows(goal):
        grid.add_row(*row)
    return grid


def config_name(arguments: Sequence[str]) -> str:
    """The name of the first configuration file, for the run's folder."""
    given = list(arguments)
    for index, argument in enumerate(given):
        flag, _, value = argument.partition("=")
        if flag in ("--config", "-c"):
            return Path(value or given[index + 1]).stem
    return "search"
