"""One root cause is reported once: what a finding explains becomes its consequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from lightning_init.architecture.readings import Readings
from lightning_init.health.findings import Finding

_RANK = {"error": 0, "warning": 1, "info": 2}


def roots(
    findings: Sequence[Finding], rules: Mapping[str, tuple[int, tuple[str, ...]]]
) -> tuple[Finding, ...]:
    """The findings that no earlier one explains, errors first; the others are with their root.

    A root is as severe as the worst that follows from it.

    Args:
        findings: All findings.
        rules: Detector -> its order and the names of those it explains.

    Example:
        >>> low = Finding("scale", "warning", "data", 0, 9.0, 3.0, "", "", "")
        >>> high = Finding("loss", "error", "loss", 0, 9.0, 3.0, "", "", "")
        >>> (root,) = roots([high, low], {"scale": (1, ("loss",)), "loss": (2, ())})
        >>> root.detector, root.severity, [one.detector for one in root.consequences]
        ('scale', 'error', ['loss'])
    """

    def place(finding: Finding) -> tuple[int, int]:
        return finding.step, rules[finding.detector][0] if finding.detector in rules else 50

    kept: list[Finding] = []
    for finding in sorted(findings, key=place):
        index = next((i for i, root in enumerate(kept) if _explains(root, finding, rules)), None)
        if index is None:
            kept.append(finding)
            continue
        root = kept[index]
        kept[index] = replace(
            root,
            severity=min(root.severity, finding.severity, key=_RANK.__getitem__),
            consequences=(*root.consequences, finding),
        )
    return tuple(sorted(kept, key=lambda finding: _RANK[finding.severity]))


def _explains(
    root: Finding, finding: Finding, rules: Mapping[str, tuple[int, tuple[str, ...]]]
) -> bool:
    if root.severity == "info" or root.detector not in rules or finding.detector not in rules:
        return False
    order, explains = rules[root.detector]
    if finding.detector == root.detector:
        return False
    return finding.detector in explains or ("*" in explains and rules[finding.detector][0] > order)


def with_scheme(finding: Finding, readings: Readings) -> Finding:
    """A finding with what the tensor at its place was drawn from."""
    if finding.scheme or not readings.steps:
        return finding
    for weight in readings.steps[0].weights:
        if weight.drawn and finding.where in (weight.name, *weight.names, weight.module):
            return replace(finding, scheme=weight.drawn)
    return finding
