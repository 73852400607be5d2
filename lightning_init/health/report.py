"""What an audit or a monitor says: findings, the layers' numbers, one verdict."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_init.architecture.readings import LayerReading, Readings, StepReading
from lightning_init.health.attempts import Attempt
from lightning_init.health.findings import Finding
from lightning_init.health.layers import table, textbook
from lightning_init.health.marks import marks
from lightning_init.health.page import page
from lightning_init.health.words import baseline_note, finding as words, notes, wrapped

_NOTHING = "nothing was measured"


@dataclass(frozen=True)
class Report:
    """Findings, and the readings they come from.

    Attributes:
        findings: Errors first, then nearest to the root cause.
        readings: What was measured.
        blind: What could not be watched, and why; empty if all was.
        attempts: Initializations that were tried before the first step, the first one first; empty
            if the first was kept without a look at others.

    Example:
        >>> Report((), Readings()).verdict()
        'nothing was measured'
    """

    findings: tuple[Finding, ...]
    readings: Readings
    blind: tuple[str, ...] = ()
    attempts: tuple[Attempt, ...] = ()

    @property
    def layers(self) -> tuple[LayerReading, ...]:
        """The layers at the first step that used any."""
        return self.first.layers

    @property
    def first(self) -> StepReading:
        """The first step at which layers were read, else the first: a step may use none."""
        steps = self.readings.steps or (StepReading(0),)
        return next((step for step in steps if step.layers), steps[0])

    @property
    def worst(self) -> Finding | None:
        """The finding to act on first, None if there is none."""
        return self.findings[0] if self.findings else None

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings of severity error."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    def verdict(self) -> str:
        """One paragraph: symptom, place, likely cause, fix; or that nothing was found."""
        worst = self.worst
        if worst is None or worst.severity == "info":
            seen = self._seen()
            return seen if seen == _NOTHING else f"healthy: {seen}"
        more = len(self.findings) - 1
        others = f"\n  and {more} more finding{'s' * (more > 1)} in the report" if more else ""
        return f"{worst}{others}"

    def _seen(self) -> str:
        steps = [reading.step for reading in self.readings.steps]
        losses = [loss for _, loss in sorted(self.readings.loss.items())]
        count = len(self.layers)
        text = f"{count} layer{'s' * (count != 1)} read"
        if len(losses) > 1:
            course = f"loss {losses[0]:.4g} -> {losses[-1]:.4g} in {len(losses)} steps"
            return f"{text}, {course}" if steps else course
        if not steps:
            return _NOTHING
        for loss in self.readings.steps[0].losses[:1]:
            text += f", {loss.kind} {loss.value:.4g} (chance {loss.chance:.4g})"
        return text

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; what is not a number becomes None."""
        return {
            "verdict": self.verdict(),
            "findings": [finding.to_dict() for finding in self.findings],
            "blind": list(self.blind),
            "attempts": [attempt.to_dict() for attempt in self.attempts],
            "loss": _plain(self.readings.loss),
            "baseline": _plain(self.readings.baseline),
            "steps": [_step(reading) for reading in self.readings.steps],
        }

    def save(self, path: str | Path) -> None:
        """Write the report: a page with the plots if the name ends in `.html`, data if in `.json`.

        Args:
            path: The file; its folder must exist.

        Raises:
            ValueError: If the name ends in anything else.
            FileNotFoundError: If the folder does not exist.
            ImportError: If a page is asked for and plotly is not installed.
        """
        write(path, {"": self}, self.to_dict())

    def remarks(self) -> tuple[str, ...]:
        """What was tried, what could not be watched, and what a shallow model reached, if any."""
        twin = self.readings.baseline
        tried = [f"tried {attempt}" for attempt in self.attempts]
        return (*tried, *self.blind, *([baseline_note(twin)] if twin is not None else []))

    def summary(self) -> str:
        """How many findings of which severity, in one line.

        Example:
            >>> Report((), Readings(), ("loss: none",)).summary()
            'nothing was measured'
        """
        counts = Counter(finding.severity for finding in self.findings)
        said = [
            f"{counts[kind]} {kind}{'s' * (counts[kind] > 1)}"
            for kind in ("error", "warning")
            if counts[kind]
        ]
        return f"unhealthy: {', '.join(said)}; {self._seen()}" if said else self.verdict()

    def __str__(self) -> str:
        first = self.first
        found = table(first.layers, marks(self.findings, first.layers)) if first.layers else []
        found += notes(first, "\n".join(found))
        for index, finding in enumerate(self.findings, start=1):
            found += ["", *words(finding, index)]
        found += [""] if found else []
        for line in (*self.remarks(), self.summary()):
            found += wrapped(line)
        return "\n".join(found)


def write(path: str | Path, reports: Mapping[str, Report], data: Mapping[str, Any]) -> None:
    """Write reports by name as a page if the file's name ends in `.html`, their data if in `.json`.

    Args:
        path: The file; its folder must exist.
        reports: What the page shows.
        data: What the JSON holds.
    """
    kind = Path(path).suffix.lower()
    if kind not in (".json", ".html", ".htm"):
        raise ValueError(f"a report's name must end in .json or .html, but got {str(path)!r}")
    text = json.dumps(data, indent=1) if kind == ".json" else page(reports)
    Path(path).write_text(text, encoding="utf-8")


def _step(reading: StepReading) -> dict[str, Any]:
    return {
        "step": reading.step,
        "layers": [_plain(layer) | {"textbook": textbook(layer)} for layer in reading.layers],
        **{
            name: [_plain(one) for one in getattr(reading, name)]
            for name in ("weights", "losses", "inputs", "attentions")
        },
    }


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
