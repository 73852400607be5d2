"""What a search from Python found, and how it is put into a model in hand."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import lightning.pytorch as pl
import torch

from lightning_init.search.as_before import as_before, keep_data
from lightning_init.search.attributes import put
from lightning_init.search.fresh import copied
from lightning_init.search.job import SHORT, interruptible
from lightning_init.search.module_evaluate import ModuleEvaluate
from lightning_init.search.result import SearchResult
from lightning_init.search.serve import quiet


@dataclass(frozen=True)
class TunedResult(SearchResult):
    """What `InitTuner.find` found; it knows the model that was searched.

    Attributes:
        notes: What was said before the search: how trials begin, what was fixed.
    """

    notes: tuple[str, ...] = ()
    write: Callable[[SearchResult, pl.LightningModule | None, int | None], None] = field(
        default=lambda *_: None, repr=False, compare=False
    )

    def lines(self) -> list[str]:
        """All that is said of the search, a sentence each."""
        return [in_python(line) for line in super().lines()]

    def apply(self, model: pl.LightningModule | None = None, seed: int | None = None) -> None:
        """Initialize a model as the winner does, and set its learning rate.

        Args:
            model: None for the one that was searched.
            seed: Of the draw; None for the global seed, as everywhere.
        """
        self.write(self, model, seed)


def in_python(text: str) -> str:
    """What is said of options, said of arguments.

    Example:
        >>> in_python("pass longer --steps; the same command with --confirm-seeds 9 may tell")
        'pass longer steps; the same call with confirm_seeds=9 may tell'
    """

    def argument(found: re.Match[str]) -> str:
        name, value = found.groups()
        return name.replace("-", "_") + (f"={value}" if value else "")

    text = text.replace("the same command with --", "the same call with --")
    return re.sub(r"--([a-z][a-z-]*)(?: (\d+))?", argument, text)


def apply(
    result: SearchResult,
    evaluate: ModuleEvaluate,
    model: pl.LightningModule,
    seed: int | None,
) -> None:
    """Initialize a model as the winner of a search does, and set what it sets.

    Args:
        result: The search.
        evaluate: What its trials were.
        model: The model.
        seed: Of the draw; None for the global seed.
    """
    best = result.best
    if not best.is_baseline:
        for key, value in best.config.items():
            put(model, key, value)
    if best.spec.strategy == "keep":
        return
    undo = keep_data(evaluate.data, evaluate.loaders)
    with as_before():
        quiet()
        twin = copied(model)
        init = result.to_callback(seed=seed, verbose=False, monitor_steps=0, loss_steps=0)
        data = evaluate.data_for(twin)
        settings = {**evaluate.settings, **SHORT, "max_steps": 0}
        settings["callbacks"] = [init]
        trainer = pl.Trainer(**settings)
        with interruptible():
            trainer.fit(twin, datamodule=data)
        for put_back in undo:
            put_back()
    drawn = dict(twin.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(drawn[name])
