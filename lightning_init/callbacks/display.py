"""What a run prints: one table of what was drawn, where and why, beside what it does."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from lightning_init.architecture.params import Role
from lightning_init.architecture.readings import LayerReading
from lightning_init.health.labels import shared_prefix, shorten
from lightning_init.health.layers import textbook
from lightning_init.health.report import Report
from lightning_init.strategies.distributions import Calibrated
from lightning_init.strategies.plan import Plan, PlanEntry

_PLURAL = {
    Role.BIAS: "biases",
    Role.NORM_SCALE: "norm scales",
    Role.NORM_SHIFT: "norm shifts",
}


def table(plan: Plan, report: Report | None) -> Table:
    """The plan, grouped, with the measured output std and gradient of each group's layers.

    Args:
        plan: What was applied.
        report: The audit, None if there was none.

    Returns:
        A table that fits a terminal of 80 columns.
    """
    prefix = shared_prefix([entry.info.name for entry in plan])
    grid = Table(box=None, padding=(0, 1), header_style="bold", pad_edge=False)
    grid.add_column("tensors", no_wrap=True)
    grid.add_column("drawn from (why)", min_width=20)
    if report is not None:
        grid.add_column("out std", justify="right", no_wrap=True)
        grid.add_column("grad", justify="right", no_wrap=True)
        grid.add_column("textbook", min_width=9)
    layers = {layer.name: layer for layer in report.layers} if report else {}
    for label, entries in _rows(plan):
        name = shorten(label.replace(prefix, ""), 22)
        row = [name, f"{_drawn(entries)} ({entries[0].distribution.reason})"]
        if report is not None:
            row += _signals([layers[name] for name in _modules(entries) if name in layers])
        grid.add_row(*row)
    return grid


def render(plan: Plan, report: Report | None, header: str, width: int | None = None) -> str:
    """The header, the plan's first line and the table as text."""
    console = Console(width=width or min(Console().width, 110), highlight=False, color_system=None)
    with console.capture() as captured:
        console.print(header)
        console.print(plan.summary())
        if prefix := shared_prefix([entry.info.name for entry in plan]):
            console.print(f"names below {prefix}")
        console.print(table(plan, report))
        for line in (*map(str, plan.calibrations), *(f"note: {note}" for note in plan.notes)):
            console.print(line)
        if hint := plan.hint():
            console.print(f"kept: {hint}")
    return "\n".join(line.rstrip() for line in captured.get().rstrip().splitlines())


def _rows(plan: Plan) -> list[tuple[str, list[PlanEntry]]]:
    """Groups of the plan; constants of one role, and what is kept for one reason, share a row."""
    found: dict[object, tuple[str, list[PlanEntry]]] = {}
    for label, entries in plan.groups():
        entry = entries[0]
        shown, role = str(entry.distribution), entry.info.role
        key: object = label
        if not entry.written:
            key = ("kept", entry.distribution.reason)
        elif role in _PLURAL and entry.distribution.std == 0:
            key = (role, shown)
        known = found.setdefault(key, (label, []))
        known[1].extend(entries)
        count = len(known[1])
        if count > len(entries) or (key != label and count > 1):
            kind = _PLURAL.get(role, "tensors") if entry.written else "tensors"
            found[key] = (f"{count} {kind}", known[1])
    return list(found.values())


def _drawn(entries: list[PlanEntry]) -> str:
    first = entries[0].distribution
    if isinstance(first, Calibrated):
        return f"calibrated, std {_span([entry.distribution.std for entry in entries])}"
    return str(first)


def _modules(entries: Iterable[PlanEntry]) -> list[str]:
    return [
        entry.info.name.rpartition(".")[0]
        for entry in entries
        if entry.info.role in (Role.WEIGHT, Role.RECURRENT)
    ]


def _signals(layers: list[LayerReading]) -> list[str]:
    if not layers:
        return ["", "", ""]
    notes = sorted({note for layer in layers for note in textbook(layer).split()})
    return [
        _span([layer.std for layer in layers]),
        _span([layer.grad_rms for layer in layers]),
        " ".join(notes),
    ]


def _span(values: list[float]) -> str:
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return "not finite" if any(math.isinf(value) for value in values) else ""
    low, high = _compact(min(known), 1), _compact(max(known), 1)
    return _compact(max(known)) if low == high else f"{low}..{high}"


def _compact(value: float, digits: int = 2) -> str:
    """A number in a few characters; of a span one digit says enough."""
    if value == 0 or 0.01 <= abs(value) < 1000:
        return f"{value:.{digits}g}" if abs(value) < 100 else f"{value:.0f}"
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
