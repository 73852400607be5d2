"""What a finding of severity error does: warn, stop, raise, or whatever a user's function does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_init.architecture.arguments import unknown
from lightning_init.health.findings import Finding
from lightning_init.health.report import Report
from lightning_init.health.words import finding as words

Action = Callable[[pl.Trainer, pl.LightningModule, Report], object]
OnUnhealthy = Literal["warn", "stop", "raise", "rescue"] | Action
NAMES = ("warn", "stop", "raise", "rescue")


class UnhealthyError(RuntimeError):
    """Training was ended because of a finding of severity error; `report` has all of it."""

    def __init__(self, report: Report) -> None:
        super().__init__(report)
        self.report = report

    def __str__(self) -> str:
        return f"unhealthy: {self.report.verdict()}"


class UnhealthyWarning(UserWarning):
    """A finding during training."""


def check_action(action: object) -> None:
    """Make sure that an action is one.

    Raises:
        ValueError: If it is neither a name nor callable.

    Example:
        >>> check_action("stop")
    """
    if callable(action) or action in NAMES:
        return
    raise ValueError(
        f"{unknown('on_unhealthy', str(action), NAMES)}; or a function (trainer, module, report)"
    )


def warn(findings: list[Finding]) -> None:
    """Say the first of the findings that are worth a warning, and how many more there are."""
    loud = [finding for finding in findings if finding.severity != "info"]
    if loud:
        said = words(loud[0], None, "lightning_init:")
        said += [f"    and {len(loud) - 1} more in the report"] if len(loud) > 1 else []
        rank_zero_warn("\n".join(said), category=UnhealthyWarning)


def stop(trainer: pl.Trainer, verbose: bool) -> None:
    """End the training after the current batch."""
    if verbose:
        rank_zero_info("lightning_init: stopping after this batch")
    trainer.should_stop = True
