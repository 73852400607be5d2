"""Who is compared: an init with its configuration, and its runs on seeds that all share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning_init.strategies.spec import InitSpec


@dataclass(frozen=True, slots=True)
class Run:
    """One confirmation run."""

    seed: int
    metric: float | None
    reason: str
    curve: tuple[tuple[int, float], ...]
    info: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Candidate:
    """An init with its configuration, and its confirmation runs."""

    number: int
    spec: InitSpec
    config: Mapping[str, Any]
    runs: tuple[Run, ...]
    is_baseline: bool = False

    @property
    def metrics(self) -> list[float | None]:
        """One per seed, None where a run failed."""
        return [run.metric for run in self.runs]

    @property
    def label(self) -> str:
        """Short and readable: `orthogonal(gain=1.2) lr=0.03`."""
        config = "".join(
            f" {key.rpartition('.')[2]}={short(value)}" for key, value in self.config.items()
        )
        return f"{self.spec}{config}"


def short(value: Any) -> str:
    """Three digits of a number."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
