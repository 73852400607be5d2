"""Which layer a finding is about, so that a table or a plot can show it there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from lightning_init.architecture.readings import LayerReading
from lightning_init.health.findings import Finding, Severity

_RANK = {"error": 0, "warning": 1, "info": 2}


@dataclass(frozen=True, slots=True)
class Mark:
    """What a layer's row says about a finding.

    Attributes:
        severity: The finding's; `""` for a layer where only a consequence shows.
        number: Which finding it is, from 1.
    """

    severity: Severity | str
    number: int

    def __str__(self) -> str:
        return f"{self.severity} [{self.number}]".strip()


def marks(findings: Sequence[Finding], layers: Iterable[LayerReading]) -> dict[str, Mark]:
    """The worst finding at each layer; one of a layer's own comes before a consequence.

    Args:
        findings: In the order in which they are numbered.
        layers: The layers that were read.

    Example:
        >>> fc = LayerReading("fc", "Linear", "", 0.0, 1.0, 1.0, 3.0, 0.0)
        >>> one = Finding("rule", "error", "fc.weight", 0, 9.0, 3.0, "too large", "lr", "less")
        >>> str(marks([one], [fc])["fc"])
        'error [1]'
    """
    names = {layer.name for layer in layers}
    found: dict[str, tuple[int, Mark]] = {}
    for number, finding in enumerate(findings, start=1):
        for rank, severity, where in _said(finding):
            name = layer_of(where, names)
            if name is not None and (name not in found or rank < found[name][0]):
                found[name] = (rank, Mark(severity, number))
    return {name: mark for name, (_, mark) in found.items()}


def layer_of(where: str, names: Iterable[str]) -> str | None:
    """The layer that a finding's place names: itself, or the one that owns the tensor.

    Example:
        >>> layer_of("block.0.fc.weight", {"block.0", "block.0.fc"})
        'block.0.fc'
    """
    known = set(names)
    while where:
        if where in known:
            return where
        where = where.rpartition(".")[0]
    return None


def _said(finding: Finding) -> Iterator[tuple[int, str, str]]:
    yield _RANK[finding.severity], finding.severity, finding.where
    for consequence in finding.consequences:
        for _, _, where in _said(consequence):
            yield 3, "", where
