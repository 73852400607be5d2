"""What a Trainer was made with, read off it: a Trainer keeps no arguments."""

from __future__ import annotations

import copy
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_init.search.mistakes import ConfigError, one_line
from lightning_init.search.parsed import kept


def settings_of(trainer: pl.Trainer) -> dict[str, Any]:
    """Arguments for a Trainer that trains as this one does, on one device.

    Loggers, checkpoints, bars, profilers, limits of time, strategies for several devices and
    callbacks that only watch are left out; other callbacks are copied.

    Args:
        trainer: Is only read.

    Raises:
        ConfigError: If one of its callbacks cannot be copied.
    """
    connector, held = trainer._accelerator_connector, vars(trainer)
    seconds = getattr(trainer, "_val_check_time_interval", None)
    found: dict[str, Any] = {
        "accelerator": connector._accelerator_flag,
        "max_epochs": trainer.max_epochs,
        "max_steps": trainer.max_steps,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "gradient_clip_val": trainer.gradient_clip_val,
        "gradient_clip_algorithm": trainer.gradient_clip_algorithm,
        "val_check_interval": timedelta(seconds=seconds) if seconds else trainer.val_check_interval,
        "check_val_every_n_epoch": trainer.check_val_every_n_epoch,
        "reload_dataloaders_every_n_epochs": held["reload_dataloaders_every_n_epochs"],
        "log_every_n_steps": held["log_every_n_steps"] or None,
        "inference_mode": trainer.validate_loop.inference_mode,
        "detect_anomaly": trainer._detect_anomaly,
        "default_root_dir": trainer.default_root_dir,
        "callbacks": [_copied(one) for one in kept(held["callbacks"])],
    }
    if overfit := held["overfit_batches"]:
        found["overfit_batches"] = overfit
    else:
        found["limit_train_batches"] = trainer.limit_train_batches
        found["limit_val_batches"] = trainer.limit_val_batches
    if connector._precision_plugin_flag is None:
        found["precision"] = trainer.precision
    else:
        found["plugins"] = [copy.deepcopy(connector._precision_plugin_flag)]
    if torch.are_deterministic_algorithms_enabled():  # the Trainer turned it on for the process
        warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        found["deterministic"] = "warn" if warn_only else True
    elif torch.backends.cudnn.benchmark:
        found["benchmark"] = True
    if found["accelerator"] in ("cuda", "gpu") and trainer.device_ids:
        found["devices"] = [trainer.device_ids[0]]
    return found


def watched(trainer: pl.Trainer) -> tuple[str, str] | None:
    """Metric and mode that its checkpoints, or else its early stopping, watch."""
    for one in (*trainer.checkpoint_callbacks, *trainer.early_stopping_callbacks):
        if monitor := getattr(one, "monitor", None):
            return str(monitor), "max" if getattr(one, "mode", "min") == "max" else "min"
    return None


def _copied(callback: pl.Callback) -> pl.Callback:
    try:
        return copy.deepcopy(callback)
    except Exception as error:
        raise ConfigError(
            f"the Trainer's callback {type(callback).__name__} cannot be copied "
            f"({type(error).__name__}: {one_line(error)}): search with a Trainer without it"
        ) from error
