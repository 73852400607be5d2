"""What a training starts from: told, written into the run's folder, saved as a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lightning_init.callbacks.display import render
from lightning_init.callbacks.logs import save_weights, write_json
from lightning_init.callbacks.placement import Placement
from lightning_init.health.report import Report
from lightning_init.strategies.apply import fingerprint
from lightning_init.strategies.spec import InitSpec


@dataclass(frozen=True)
class Start:
    """What one InitCallback has drawn, once the model is whole.

    Args:
        name: The strategy's name.
        spec: The spec as plain data, None for a function.
        seed: The seed.
        seed_source: Where the seed comes from.
        fingerprint: Of all weights.
    """

    name: str
    spec: dict[str, Any] | None
    seed: int
    seed_source: str
    fingerprint: str


def seal(
    trainer: pl.Trainer, module: pl.LightningModule, placed: Placement, name: str, file: Path | None
) -> Start:
    """Fingerprint, file and saved copy of the weights that training starts from.

    Args:
        trainer: Knows the folder; all processes call this.
        module: The model, whole.
        placed: What was applied.
        name: The strategy's name.
        file: Where the weights go, None for nowhere.
    """
    spec = placed.strategy.to_dict() if isinstance(placed.strategy, InitSpec) else None
    start = Start(name, spec, placed.seed.value, placed.seed.source, fingerprint(module))
    data = {
        "spec": spec,
        "seed": start.seed,
        "seed_source": start.seed_source,
        "fingerprint": start.fingerprint,
        "plan": None if placed.plan is None else placed.plan.to_dict(),
    }
    write_json(trainer, "init.json", data)
    if file is not None and trainer.is_global_zero:
        save_weights(module, file, {"fingerprint": start.fingerprint})
    return start


def table(placed: Placement, report: Report | None, name: str) -> str:
    """What was drawn, where and why, beside what it does."""
    if placed.plan is None:
        return ""
    spec = placed.strategy  # not always the callback's own: that of a rescue
    chosen = spec if isinstance(spec, InitSpec) else name
    late = placed.missing and f"; {placed.missing}"
    head = f"lightning_init: {chosen}, seed {placed.seed.value} ({placed.seed.source}){late}"
    return render(placed.plan, report, head)
