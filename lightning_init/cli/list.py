"""`lightning-init list`: the catalogue, read off the registries."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from lightning_init.architecture.arguments import Parameter
from lightning_init.cli.options import parse
from lightning_init.health import findings as detectors
from lightning_init.strategies import registry as strategies

What = Literal["strategies", "detectors", "all"]


def run(arguments: Sequence[str]) -> int:
    """Print what is registered.

    Args:
        arguments: See `lightning-init list --help`.

    Returns:
        0.
    """
    parser = ArgumentParser(prog="lightning-init list", description=__doc__, exit_on_error=False)
    parser.add_argument("what", type=What, nargs="?", default="all", help="what to list")
    parser.add_argument("--json", action="store_true", help="as JSON")
    options = parse(parser, arguments)
    data = catalogue()
    chosen = data if options.what == "all" else {options.what: data[options.what]}
    if options.json:
        print(json.dumps(chosen, indent=1))
        return 0
    console = Console(highlight=False)
    for title, rows in chosen.items():
        console.print(_table(title, rows))
    return 0


def catalogue() -> dict[str, list[dict[str, Any]]]:
    """Strategies and detectors as plain data."""
    return {
        "strategies": [
            {
                "name": entry.name,
                "aliases": list(entry.aliases),
                "summary": entry.summary,
                "parameters": [_parameter(p) for p in entry.parameters.values()],
                "needs_batch": entry.needs_batch,
                "references": entry.references,
            }
            for entry in strategies.entries()
        ],
        "detectors": [
            {
                "name": entry.name,
                "summary": entry.summary,
                "parameters": [_parameter(p) for p in entry.parameters.values()],
            }
            for entry in detectors.entries()
        ],
    }


def _parameter(parameter: Parameter) -> dict[str, Any]:
    limits = parameter.range
    return {
        "name": parameter.name,
        "type": parameter.kind.__name__,
        "default": parameter.default,
        "low": limits.low if limits else None,
        "high": limits.high if limits else None,
        "log": limits.log if limits else None,
        "choices": list(parameter.choices),
    }


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    grid = Table(title=title, title_justify="left", box=None, padding=(0, 1), pad_edge=False)
    grid.add_column("name", no_wrap=True, style="bold")
    grid.add_column("what it is", overflow="fold")
    grid.add_column("parameters", overflow="fold")
    for row in rows:
        aliases = f" Also {', '.join(row['aliases'])}." if row.get("aliases") else ""
        batch = " Needs a batch." if row.get("needs_batch") else ""
        source = f" {row['references']}" if row.get("references") else ""
        shown = "\n".join(_shown(parameter) for parameter in row["parameters"])
        grid.add_row(row["name"], f"{row['summary']}.{batch}{aliases}{source}", shown)
    return grid


def _shown(parameter: dict[str, Any]) -> str:
    if parameter["choices"]:
        legal = "|".join(parameter["choices"])
    elif parameter["low"] is not None:
        legal = f"{parameter['low']:g}..{parameter['high']:g}"
    else:
        legal = parameter["type"]
    return f"{parameter['name']}={parameter['default']} ({legal})"
