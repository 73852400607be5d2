"""What an audit or a monitor says: findings, the layers' numbers, one verdict."""

from __future__ import annotations

import dataclasses
import json
import math
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_init.architecture.readings import LayerReading, Readings, StepReading
from lightning_init.health.findings import Finding


@dataclass(frozen=True)
class Report:
    """Findings, and the readings they come from.

    Attributes:
        findings: Errors first, then nearest to the root cause.
        readings: What was measured.
        blind: What could not be watched, and why; empty if all was.

    Example:
        >>> Report((), Readings()).verdict()
        'healthy: nothing was measured'
    """

    findings: tuple[Finding, ...]
    readings: Readings
    blind: tuple[str, ...] = ()

    @property
    def layers(self) -> tuple[LayerReading, ...]:
        """The layers at the first step that was read."""
        return self.readings.steps[0].layers if self.readings.steps else ()

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
            return f"healthy: {self._seen()}"
        more = len(self.findings) - 1
        others = f"\n  and {more} more finding{'s' * (more > 1)} in the report" if more else ""
        return f"{worst}{others}"

    def _seen(self) -> str:
        steps = [reading.step for reading in self.readings.steps]
        if not steps:
            return "nothing was measured"
        losses = [loss for _, loss in sorted(self.readings.loss.items())]
        text = f"{len(self.layers)} layers read"
        if len(losses) > 1:
            return f"{text}, loss {losses[0]:.4g} -> {losses[-1]:.4g} in {len(losses)} steps"
        for loss in self.readings.steps[0].losses[:1]:
            text += f", {loss.kind} {loss.value:.4g} (chance {loss.chance:.4g})"
        return text

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; what is not a number becomes None."""
        return {
            "verdict": self.verdict(),
            "findings": [finding.to_dict() for finding in self.findings],
            "blind": list(self.blind),
            "loss": {str(step): _plain(loss) for step, loss in self.readings.loss.items()},
            "steps": [_step(reading) for reading in self.readings.steps],
        }

    def save(self, path: str | Path) -> None:
        """Write the report as JSON.

        Args:
            path: The file; its folder must exist.
        """
        Path(path).write_text(json.dumps(self.to_dict(), indent=1), encoding="utf-8")

    def __str__(self) -> str:
        lines = [f"{'layer':<26} {'std':>8} {'|max|':>8} {'grad':>7}  textbook"]
        lines += [
            f"{shorten(layer.name, 26):<26} {layer.std:>8.3g} {layer.absmax:>8.3g} "
            f"{layer.grad_rms:>7.2g}  {textbook(layer)}"
            for layer in self.layers
        ]
        text = [line for part in (*self.blind, self.verdict()) for line in part.splitlines()]
        lines += [
            textwrap.fill(line, 80, subsequent_indent="    ", break_long_words=False)
            for line in text
        ]
        return "\n".join(lines)


def textbook(layer: LayerReading) -> str:
    """Which of the textbook's absolute limits a layer breaks; a note, not a verdict.

    Example:
        >>> reading = LayerReading("fc", "Linear", "", 0.0, 0.05, 0.05, 0.2, 0.0, grad_rms=1e-3)
        >>> textbook(reading)
        'std<0.1'
    """
    notes = {
        "std>5": layer.std > 5,
        "std<0.1": layer.std < 0.1,
        "|max|>1000": layer.absmax > 1000,
        "grad<1e-5": layer.grad_rms < 1e-5,
    }
    return " ".join(note for note, broken in notes.items() if broken)


def shorten(name: str, width: int) -> str:
    """A name in at most `width` characters, its middle cut.

    Example:
        >>> shorten("encoder.layers.11.attention.output", 20)
        'encoder.l…ion.output'
    """
    if len(name) <= width:
        return name
    head = (width - 1) // 2
    return f"{name[:head]}…{name[-(width - 1 - head) :]}"


def _step(reading: StepReading) -> dict[str, Any]:
    return {
        "step": reading.step,
        "layers": [_row(layer) for layer in reading.layers],
        "weights": [_row(weight) for weight in reading.weights],
        "losses": [_row(loss) for loss in reading.losses],
    }


def _row(value: Any) -> dict[str, Any]:
    found: dict[str, Any] = _plain(dataclasses.asdict(value))
    return found


def _plain(value: Any) -> Any:
    """What JSON can hold: lists, and None for what is not a number."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
