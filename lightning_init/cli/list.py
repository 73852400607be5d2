"""`lightning-init list`: the catalogue, read off the registries."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightning_init.architecture.arguments import Parameter
from lightning_init.cli.flags import add_flags
from lightning_init.cli.options import parse
from lightning_init.cli.severities import severities
from lightning_init.health import registry as detectors
from lightning_init.strategies import registry as strategies
from lightning_init.strategies.needs import NEEDS
from lightning_init.strategies.spec import InitSpec


def run(arguments: Sequence[str]) -> int:
    """Print what is registered.

    Args:
        arguments: See `lightning-init list --help`.

    Returns:
        0.
    """
    parser = ArgumentParser(prog="lightning-init list", description=__doc__, exit_on_error=False)
    add_flags(parser, "list")
    options = parse(parser, arguments)
    data = catalogue()
    chosen = data if options.what == "all" else {options.what: data[options.what]}
    if options.json:
        print(json.dumps(chosen, indent=1))
        return 0
    if options.markdown:
        print("\n\n".join(markdown(rows) for rows in chosen.values()))
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
                "needs": [NEEDS[name].says for name in entry.needs],
                "wants": [NEEDS[name].says for name in entry.wants],
                "passes": entry.cost,
                "references": entry.references,
            }
            for entry in strategies.entries()
        ],
        "detectors": [
            {
                "name": entry.name,
                "summary": entry.summary,
                "profile": entry.profile,
                "severities": list(severities(entry.function)),
                "explains": list(entry.explains),
                "page": page_of(entry.name, entry.profile),
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
        "default": _default(parameter.default),
        "low": limits.low if limits else None,
        "high": limits.high if limits else None,
        "log": limits.log if limits else None,
        "choices": list(parameter.choices),
        "legal": parameter.legal,
    }


def page_of(name: str, profile: str) -> str:
    """The detector's page in the documentation; the textbook's rules share one."""
    return f"docs/detectors/{'textbook' if profile == 'textbook' else name}.md"


def index(rows: list[dict[str, Any]]) -> str:
    """The detectors as a Markdown table with a link to the page of each."""
    lines = ["| detector | symptom | severity | limits |", "|---|---|---|---|"]
    for row in rows:
        page = row["page"].rpartition("/")[2]
        limits = ", ".join(f"`{p['name']}={_short(p['default'])}`" for p in row["parameters"])
        cells = [f"[`{row['name']}`]({page})", row["summary"], ", ".join(row["severities"]), limits]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def markdown(rows: list[dict[str, Any]]) -> str:
    """Part of the catalogue as a Markdown table."""
    if rows and "severities" in rows[0]:
        return index(rows)
    lines = ["| name | what it is | needs | passes | parameters |", "|---|---|---|---|---|"]
    for row in rows:
        needs = [*row.get("needs", ()), *(f"(wants) {want}" for want in row.get("wants", ()))]
        parameters = [
            f"`{p['name']}={_short(p['default'])}` ({p['legal']})"
            for p in row["parameters"]
            if p["name"] != "scale"
        ]
        names = ", ".join(f"`{name}`" for name in (row["name"], *row.get("aliases", ())))
        what = f"{row['summary']}. {row.get('references', '')}".strip()
        cells = [names, what, "; ".join(needs), row.get("passes", ""), "; ".join(parameters)]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _default(value: object) -> object:
    if isinstance(value, tuple):
        return [_default(item) for item in value]
    return value.strategy if isinstance(value, InitSpec) else value


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    grid = Table(title=title, title_justify="left", box=None, padding=(0, 1), pad_edge=False)
    grid.add_column("name", no_wrap=True, style="bold")
    grid.add_column("what it is, its parameters, where it comes from", overflow="fold")
    for row in rows:
        lines = [f"{row['summary']}."]
        if row.get("needs"):
            lines.append(f"Needs {', '.join(row['needs'])}.")
        if row.get("wants"):
            lines.append(f"Wants {', '.join(row['wants'])}.")
        if row.get("passes", "none") != "none":
            lines.append(f"Passes: {row['passes']}.")
        if row.get("severities"):
            textbook = " (profile textbook)" if row["profile"] == "textbook" else ""
            lines.append(f"Severity: {', '.join(row['severities'])}{textbook}.")
        if row.get("aliases"):
            lines.append(f"Also {', '.join(row['aliases'])}.")
        shown = [
            f"{p['name']}={_short(p['default'])} ({p['legal']})"
            for p in row["parameters"]
            if p["name"] != "scale" or p["low"] == p["high"]
        ]
        text = Text(" ".join(lines))
        for more in (", ".join(shown), str(row.get("references", row.get("page", "")))):
            text.append(f"\n{more}" if more else "", style="dim")
        grid.add_row(row["name"], text)
    if title == "detectors":
        hint = 'Some of them only: detectors=["non_finite", "dead_units"]. A limit of your own: '
        hint += 'detectors={"dead_units": {"limit": 0.9}}.'
        grid.add_row("", Text(hint, "dim"))
    if title == "strategies":
        grid.add_row("", Text("Each takes scale=1 (0.001..1000), a factor on every std.", "dim"))
    return grid


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value) or "''"
