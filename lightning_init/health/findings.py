"""A finding: what is wrong, where, how far beyond which limit, why probably, and what to do."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True, slots=True)
class Cause:
    """One possible cause of a symptom.

    Attributes:
        name: What it is in one or two words, e.g. `learning rate`, `data scale`, `init scale`,
            `activation`, `loss function`, `output layer`, `architecture`, `data`,
            `precision`.
        text: Why it is suspected; with numbers where there are any.
        remedy: The argument or command to type, or what to check.
    """

    name: str
    text: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        detector: Name of the rule.
        severity: `error` may stop a run, `warning` is printed, `info` explains.
        where: The layer or tensor by name, `"loss"` for the loss, `"data"` for the batch.
        step: Training step, 0 is before the first update.
        value: What was measured.
        limit: The limit it broke.
        message: Symptom, with number and limit.
        likely_cause: Causes, the likeliest first.
        remedy: What to change or type, in the order of the causes.
        reference: Where the rule comes from.
        causes: Names of the causes, the likeliest first.
        scheme: What the tensor at that place was drawn from, `""` if that is not known.
        consequences: Findings that this one explains.

    Example:
        >>> print(Finding("rule", "error", "fc", 0, 9.0, 3.0, "too large", "lr", "a smaller lr"))
        ERROR rule at fc, step 0: too large
          likely cause: lr
          fix: a smaller lr
    """

    detector: str
    severity: Severity
    where: str
    step: int
    value: float
    limit: float
    message: str
    likely_cause: str
    remedy: str
    reference: str = ""
    causes: tuple[str, ...] = ()
    scheme: str = ""
    consequences: tuple[Finding, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; what is not a number becomes None."""
        data = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "consequences"
        }
        plain = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in data.items()
        }
        return plain | {
            "causes": list(self.causes),
            "consequences": [finding.to_dict() for finding in self.consequences],
        }

    def __str__(self) -> str:
        drawn = f" ({self.scheme})" if self.scheme else ""
        text = (
            f"{self.severity.upper()} {self.detector} at {self.where}{drawn}, step {self.step}: "
            f"{self.message}\n  likely cause: {self.likely_cause}\n  fix: {self.remedy}"
        )
        if self.consequences:
            followed = ", ".join(f"{one.detector} at {one.where}" for one in self.consequences[:3])
            more = len(self.consequences) - 3
            text += f"\n  explains: {followed}{f' and {more} more' if more > 0 else ''}"
        return text


def found(
    detector: str,
    severity: Severity,
    where: str,
    step: int,
    value: float,
    limit: float,
    message: str,
    causes: Sequence[Cause],
    reference: str = "",
) -> Finding:
    """A finding whose causes are ranked, the likeliest first.

    Args:
        detector: Name of the rule.
        severity: How bad it is.
        where: The layer or tensor, `"loss"` or `"data"`.
        step: When.
        value: What was measured.
        limit: The limit it broke.
        message: Symptom, with number and limit.
        causes: At least one; three are said.
        reference: Where the rule comes from.

    Example:
        >>> lr = Cause("learning rate", "it is 1", "lr=0.1")
        >>> data = Cause("data scale", "std 70", "(x - mean) / std")
        >>> print(found("rule", "warning", "loss", 3, 9.0, 3.0, "it jumps", [lr, data]))
        WARNING rule at loss, step 3: it jumps
          likely cause: 1. learning rate: it is 1; 2. data scale: std 70
          fix: 1. lr=0.1; 2. (x - mean) / std
    """
    said = list(causes)[:3]
    marks = [f"{i}. " for i in range(1, len(said) + 1)] if len(said) > 1 else [""]
    likely = "; ".join(f"{m}{c.name}: {c.text}" for m, c in zip(marks, said, strict=True))
    remedy = "; ".join(f"{m}{c.remedy}" for m, c in zip(marks, said, strict=True))
    names = tuple(cause.name for cause in said)
    return Finding(
        detector, severity, where, step, value, limit, message, likely, remedy, reference, names
    )
