"""What a calibration did: a value that a plan keeps and prints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Calibration:
    """One calibration, its objective and what a probe read before and after.

    Attributes:
        scheme: Who calibrated.
        objective: What was to be reached, in words.
        before: The objective before, NaN if unknown.
        after: The objective after.
        readings: Name -> (before, after), as measured by a probe.
        accepted: Whether the result stands; if not, the weights are those before.
        why: Why it was taken back, or was not, in words.
        passes: Forward and backward passes that were run.

    Example:
        >>> print(Calibration("lsuv", "largest |std - 1|", 0.9, 1e-7, {"chi": (0.5, 1.0)}))
        lsuv: largest |std - 1| 0.9 -> 1e-07; chi 0.5 -> 1
    """

    scheme: str
    objective: str
    before: float
    after: float
    readings: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    accepted: bool = True
    why: str = ""
    passes: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "scheme": self.scheme,
            "objective": self.objective,
            "before": _number(self.before),
            "after": _number(self.after),
            "readings": {key: [_number(v) for v in pair] for key, pair in self.readings.items()},
            "accepted": self.accepted,
            "why": self.why,
            "passes": self.passes,
        }

    def __str__(self) -> str:
        said = [f"{self.objective} {self.before:.3g} -> {self.after:.3g}"]
        said += [f"{key} {one:.3g} -> {two:.3g}" for key, (one, two) in self.readings.items()]
        said += [self.passes] if self.passes else []
        if not self.accepted:
            said.append(f"taken back: {self.why}")
        elif self.why:
            said.append(self.why)
        return f"{self.scheme}: {'; '.join(said)}"


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
