"""What was tried before a model was healthy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning_init.health.findings import Finding


@dataclass(frozen=True, slots=True)
class Attempt:
    """One initialization that was tried on the first batch.

    Attributes:
        name: The spec in words, e.g. `orthogonal(gain=1.2)`.
        verdict: `healthy`, the worst finding in a line, or why it does not apply.
        findings: What the audit found.
        spec: The spec as plain data, empty for a function.
        kept: Whether training starts from it.

    Example:
        >>> print(Attempt("orthogonal", "healthy", kept=True))
        orthogonal: healthy (kept)
    """

    name: str
    verdict: str
    findings: tuple[Finding, ...] = ()
    spec: Mapping[str, Any] = field(default_factory=dict)
    kept: bool = False

    @property
    def errors(self) -> int:
        """Findings of severity error."""
        return sum(finding.severity == "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "name": self.name,
            "spec": dict(self.spec),
            "verdict": self.verdict,
            "kept": self.kept,
            "findings": [finding.to_dict() for finding in self.findings],
        }

    def __str__(self) -> str:
        return f"{self.name}: {self.verdict}{' (kept)' if self.kept else ''}"
