"""Audits side by side: the same model under two or more initializations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_init.architecture.readings import LayerReading
from lightning_init.health.layers import Column, grid, number, verdict
from lightning_init.health.marks import Mark, marks
from lightning_init.health.report import Report, write
from lightning_init.health.words import finding as words, wrapped

_BESIDE = 2  # reports in one table: more do not fit 80 columns


@dataclass(frozen=True)
class Comparison:
    """Reports of one model by name, side by side.

    Attributes:
        reports: Name, e.g. of the strategy -> its report.

    Example:
        >>> from lightning_init.architecture.readings import Readings
        >>> empty = Report((), Readings())
        >>> print(Comparison({"keep": empty, "auto": empty}))
        keep: nothing was measured
        auto: nothing was measured
    """

    reports: Mapping[str, Report]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: name -> the report's."""
        return {name: report.to_dict() for name, report in self.reports.items()}

    def save(self, path: str | Path) -> None:
        """Write all of it: a page with overlaid plots if the name ends in `.html`, data if in `.json`.

        Args:
            path: The file; its folder must exist.

        Raises:
            ValueError: If the name ends in anything else.
            FileNotFoundError: If the folder does not exist.
            ImportError: If a page is asked for and plotly is not installed.
        """
        write(path, self.reports, self.to_dict())

    def __str__(self) -> str:
        names = list(self.reports)
        found: list[str] = []
        for start in range(0, len(names), _BESIDE):
            block = _table({name: self.reports[name] for name in names[start : start + _BESIDE]})
            found += [*block, ""] if block else []
        for name, report in self.reports.items():
            for index, finding in enumerate(report.findings, start=1):
                found += [*words(finding, index, name), ""]
        for name, report in self.reports.items():
            for line in (*report.remarks(), report.summary()):
                found += wrapped(f"{name}: {line}")
        return "\n".join(found)


def _table(reports: Mapping[str, Report]) -> list[str]:
    """Layers by name, in the order of the first report that has them."""
    layers: dict[str, LayerReading] = {}
    for report in reports.values():
        for layer in report.layers:
            layers.setdefault(layer.name, layer)
    if not layers:
        return []
    columns: list[Column] = []
    told: dict[str, Mark] = {}
    for name, report in reports.items():
        own = {layer.name: layer for layer in report.layers}
        said = marks(report.findings, report.layers)
        told |= {layer: mark for layer, mark in said.items() if layer not in told}
        columns += _columns(name, own, said)
    return grid(list(layers.values()), columns, told)


def _columns(
    title: str, own: Mapping[str, LayerReading], said: Mapping[str, Mark]
) -> Sequence[Column]:
    def std(layer: LayerReading) -> float:
        return own[layer.name].std if layer.name in own else float("nan")

    def grad(layer: LayerReading) -> float:
        return own[layer.name].grad_rms if layer.name in own else float("nan")

    def told(layer: LayerReading) -> str:
        return verdict(own[layer.name], said) if layer.name in own else "not there"

    return (
        Column("std", lambda layer: number(std(layer)), std, title),
        Column("grad", lambda layer: number(grad(layer)), grad, title),
        Column("verdict", told, None, title),
    )
