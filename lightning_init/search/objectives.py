"""What is to be made small or large: a metric at the end, or something read off its course."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from lightning_init.architecture.arguments import unknown
from lightning_init.search.statistics import Mode

Kind = Literal["last", "area", "steps_to", "gap", "pruned", "ensemble"]
_VALUED = ("steps_to", "pruned", "ensemble")


@dataclass(frozen=True, slots=True)
class Objective:
    """One number per trial, and its direction.

    Args:
        kind: `last`, the metric after the last step; `area`, its mean over the steps; `steps_to`,
            the first step at which it reaches `value`; `gap`, how much better it is on training
            data; `pruned`, after the smallest weights are set to zero, `value` of them; `ensemble`,
            of the averaged outputs of `value` members with seeds of their own.
        monitor: The metric, as the module logs it.
        mode: Whether a smaller or larger metric is better.
        value: The target, the sparsity above 0 and below 1, or a number of members from 2.

    Raises:
        ValueError: If the kind is unknown, or the value is missing or not legal.

    Example:
        >>> Objective("steps_to", "val_acc", "max", 0.9).name
        'steps to val_acc 0.9'
        >>> Objective("steps_to", "val_acc", "max", 0.9).direction
        'min'
    """

    kind: Kind = "last"
    monitor: str = "metric"
    mode: Mode = "min"
    value: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(unknown("objective", self.kind, get_args(Kind)))
        if (self.value is not None) != (self.kind in _VALUED):
            raise ValueError(
                f"objective {self.kind} takes {'a' if self.kind in _VALUED else 'no'} value, but "
                f"got {self.value}: write {self.kind}{'=0.9' if self.kind in _VALUED else ''}"
            )
        value = math.nan if self.value is None else self.value
        if self.kind == "pruned" and not 0 < value < 1:
            raise ValueError(f"`0 < sparsity < 1` must hold, but got pruned={self.value}")
        if self.kind == "ensemble" and (value < 2 or value != int(value)):
            raise ValueError(f"ensemble takes a whole number from 2, but got {self.value}")
        if self.kind == "steps_to" and not math.isfinite(value):
            raise ValueError(f"steps_to takes a finite target, but got {self.value}")

    @property
    def name(self) -> str:
        """For people."""
        value = 0.0 if self.value is None else self.value
        names: dict[Kind, str] = {
            "last": self.monitor,
            "area": f"mean {self.monitor} over the steps",
            "steps_to": f"steps to {self.monitor} {value:g}",
            "gap": f"gap of {self.monitor}",
            "pruned": f"{self.monitor} at {100 * value:g} % sparsity",
            "ensemble": f"{self.monitor} of {value:g} seeds together",
        }
        return names[self.kind]

    @property
    def direction(self) -> Mode:
        """Whether a smaller or larger objective is better."""
        return "min" if self.kind in ("steps_to", "gap") else self.mode


TRAIN_LOSS = "train_loss_end"  # the monitor of a model that logs no validation metric
_VALIDATED = ("gap", "pruned", "ensemble")
_LARGER = ("acc", "auc", "auroc", "f1", "precision", "recall", "iou", "dice", "r2", "bleu")


def usual_mode(monitor: str) -> Mode:
    """Whether a smaller or larger metric is better, by its name.

    Example:
        >>> usual_mode("val_acc"), usual_mode("val_loss")
        ('max', 'min')
    """
    return "max" if any(part in monitor.lower() for part in _LARGER) else "min"


def parse_objectives(texts: Sequence[str], monitor: str, mode: Mode) -> tuple[Objective, ...]:
    """Objectives from `last`, `steps_to=0.9`, ...; also several in one text, with commas.

    Raises:
        ValueError: If one is not legal, needs a validation that there is none of, or is named
            twice.

    Example:
        >>> [o.name for o in parse_objectives(["last,pruned=0.9"], "val_loss", "min")]
        ['val_loss', 'val_loss at 90 % sparsity']
    """
    found = []
    for text in ",".join(texts or ["last"]).split(","):
        kind, equals, value = text.strip().partition("=")
        try:
            number = float(value) if equals else None
        except ValueError:
            raise ValueError(f"--objective {text}: {value!r} is not a number") from None
        one = Objective(kind, monitor, mode, number)  # type: ignore[arg-type]
        if kind in _VALIDATED and monitor == TRAIN_LOSS:
            raise ValueError(
                f"objective {kind} runs your validation, but no validation metric is known: log "
                "one in validation_step and name it as the monitor; without are last, area and "
                "steps_to"
            )
        found.append(one)
    if len(set(found)) < len(found):
        raise ValueError(f"an objective is named twice: {', '.join(texts)}")
    return tuple(found)
