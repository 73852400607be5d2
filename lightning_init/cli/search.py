"""`lightning-init search`: find the best init by short trials on your own model and data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lightning_init.cli.live import Live
from lightning_init.cli.options import job_for
from lightning_init.search.evaluate import JobEvaluate
from lightning_init.search.job import ConfigError
from lightning_init.search.records import OtherStudyError
from lightning_init.search.result import SearchResult
from lightning_init.search.settings import Settings, settings_for
from lightning_init.search.study import search_init


def run(arguments: Sequence[str]) -> int:
    """Search, confirm, and write `best.yaml`, `results.json` and `report.html`.

    Args:
        arguments: LightningCLI's, and the command's own (`cli/flags.py`).

    Returns:
        0; 130 if interrupted, then the same command goes on.
    """
    job = job_for("search", arguments)
    settings = settings_for(job, job.config, config_name(arguments))
    return search(settings, JobEvaluate(settings.config, settings.objectives))


def search(settings: Settings, evaluate: JobEvaluate) -> int:
    """Run a search and print what it found.

    Returns:
        0; 130 if interrupted.
    """
    console = Console(highlight=False)
    for line in (settings.headline, *settings.notes):
        console.print(line)
    settings.out.mkdir(parents=True, exist_ok=True)
    try:
        with Live(console) as live:
            result = search_init(evaluate, settings.space, **settings.arguments, progress=live)
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


def config_name(arguments: Sequence[str]) -> str:
    """The name of the first configuration file, for the run's folder."""
    given = list(arguments)
    for index, argument in enumerate(given):
        flag, _, value = argument.partition("=")
        if flag in ("--config", "-c"):
            return Path(value or given[index + 1]).stem
    return "search"
