"""What a listener has heard of one step: places in a ledger, not yet numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from lightning_init.architecture.attention_scores import Scores
from lightning_init.architecture.inputs_seen import Seen
from lightning_init.architecture.ledger import Ledger
from lightning_init.architecture.nonlinear import Activation
from lightning_init.architecture.pool import Pool, Pooled
from lightning_init.architecture.stage import Place


@dataclass(slots=True)
class Heard:
    """What one weight layer said at one step, as places in a ledger."""

    place: Place
    values: Pooled
    size: int
    made: int = 0
    took: tuple[int, int] = (-1, 0)
    grad: int = -1
    after: Activation | None = None


@dataclass(slots=True)
class Step:
    """All that was heard since the start, in execution order."""

    ledger: Ledger = field(default_factory=Ledger)
    pool: Pool = field(default_factory=Pool)
    layers: dict[str, Heard] = field(default_factory=dict)
    inputs: dict[str, Seen] = field(default_factory=dict)
    attentions: list[tuple[str, Scores]] = field(default_factory=list)
    normalized: set[str] = field(default_factory=set)
    samples: dict[str, Tensor] = field(default_factory=dict)
    last: str | None = None
    error: Exception | None = None
