"""How much the counts on the labelled trainings change when one limit is moved by a quarter.

A limit that is a share above one half is moved in its distance from 1; whole numbers by at least 1.
That a run has an error does not depend on which finding explains which, so a moved rule is judged
by itself, beside what the others say.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.health_devset import STEPS, records
from benchmarks.health_runs import MOMENTS, Record, before
from lightning_init.architecture.arguments import Parameter
from lightning_init.architecture.readings import Readings
from lightning_init.health.registry import Entry, entries

MOVES = (0.75, 1.25)


def moved(parameter: Parameter, factor: float) -> Any:
    """A quarter lower or higher, within the legal range; None for what is not a number."""
    value = parameter.default
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, int):
        other: float = value + (1 if factor > 1 else -1) * max(1, round(value / 4))
    elif 0.5 < value < 1:
        other = 1 - (1 - value) * (2 - factor)
    else:
        other = value * factor
    try:
        return parameter.check(other, "moved")
    except ValueError:
        return None


def flags(entry: Entry, views: list[Readings], limits: dict[str, Any]) -> bool:
    """Whether a rule alone finds an error at one of the moments."""
    return any(
        finding.severity == "error" for view in views for finding in entry.function(view, **limits)
    )


def changes(labelled: list[tuple[Record, str]]) -> Iterator[tuple[str, str, Any, dict[str, int]]]:
    """Rule, limit, value, and how many runs more or fewer are flagged, by label."""
    moments = [step for step in MOMENTS if step < STEPS]
    views = [[before(record.readings, step) for step in moments] for record, _ in labelled]
    chosen = entries("default")
    said = {e.name: [flags(e, view, {}) for view in views] for e in chosen}
    for entry in chosen:
        others = [
            any(said[name][i] for name in said if name != entry.name) for i in range(len(views))
        ]
        for name, parameter in entry.parameters.items():
            for factor in MOVES:
                value = moved(parameter, factor)
                if value is None:
                    continue
                found = {"fail": 0, "ok": 0}
                for i, (_, label) in enumerate(labelled):
                    if not others[i]:
                        now = flags(entry, views[i], {name: value})
                        found[label] += int(now) - int(said[entry.name][i])
                yield entry.name, name, value, found


def report(folder: Path, cache: Path, verbose: bool = False) -> str:
    """The largest change, and the limits that change anything."""
    labelled = records(folder, cache)
    all_changes = list(changes(labelled))
    worst = max((abs(n) for *_, found in all_changes for n in found.values()), default=0)
    lines = [
        f"Of {len({(rule, limit) for rule, limit, *_ in all_changes})} limits, each moved a quarter "
        f"down and up, none changes the number of failing runs that are flagged, or of others, by "
        f"more than {worst} (of {len(labelled)}).",
        "",
        "| rule | limit | moved to | failing flagged | others flagged |",
        "|---|---|---|---|---|",
    ]
    for rule, limit, value, found in all_changes:
        if any(found.values()) or verbose:
            cells = f"{found['fail']:+d} | {found['ok']:+d}"
            lines.append(f"| `{rule}` | `{limit}` | {value:g} | {cells} |")
    return "\n".join(lines if len(lines) > 4 else lines[:1])
