"""What a run leaves behind: values in the Trainer's loggers, files in its folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_init.architecture.names import named_tensors, named_weights
from lightning_init.architecture.readings import StepReading


def log_step(
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    reading: StepReading,
    samples: Mapping[str, Tensor],
) -> None:
    """Write one step's readings to every logger, scalars and where possible histograms.

    The loggers are called directly: what a module logs before `log_every_n_steps` is lost.

    Args:
        trainer: Its loggers are used.
        pl_module: Its weights become histograms.
        reading: The step.
        samples: Layer -> some of its outputs.
    """
    values: dict[str, float] = {}
    for layer in reading.layers:
        values[f"output_std/{layer.name}"] = layer.std
        values[f"output_grad/{layer.name}"] = layer.grad_rms
    for weight in reading.weights:
        values[f"weight_std/{weight.name}"] = weight.std
        values[f"weight_grad/{weight.name}"] = weight.grad_rms
    known = {key: value for key, value in values.items() if math.isfinite(value)}
    for logger in trainer.loggers:
        mark = logger.group_separator
        named = {f"lightning_init{mark}{k.replace('/', mark)}": v for k, v in known.items()}
        logger.log_metrics(named, step=reading.step)
    for experiment in histogram_loggers(trainer):
        computed = {names: each[0].value() for names, each in named_weights(pl_module).items()}
        tensors = {
            f"weights/{names[0]}": computed.get(names, tensor).detach()
            for names, tensor in named_tensors(pl_module)
            if not is_lazy(tensor) and tensor.ndim > 1
        }
        tensors |= {f"outputs/{name}": sample for name, sample in samples.items()}
        for name, tensor in tensors.items():
            if bool(torch.isfinite(tensor).all()):
                experiment.add_histogram(name, tensor.float(), reading.step)


def histogram_loggers(trainer: pl.Trainer) -> list[Any]:
    """The experiments that take histograms, on the process that writes."""
    if not trainer.is_global_zero:
        return []
    experiments = [getattr(logger, "experiment", None) for logger in trainer.loggers]
    return [e for e in experiments if callable(getattr(type(e), "add_histogram", None))]


def run_folder(trainer: pl.Trainer) -> Path | None:
    """Where a run's files go: the logger's folder, or a `default_root_dir` that the user chose.

    Reading `log_dir` is a collective: all processes call this.
    """
    folder = trainer.log_dir
    if folder is None or getattr(trainer, "fast_dev_run", False):
        return None
    if not trainer.loggers and Path(folder).resolve() == Path.cwd().resolve():
        return None  # nobody asked for files here
    return Path(folder)


def write_json(trainer: pl.Trainer, name: str, data: Mapping[str, Any]) -> None:
    """Write a file into the run's folder, on the process that writes; all processes call this."""
    folder = run_folder(trainer)
    if folder is not None and trainer.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(data, indent=1), encoding="utf-8")


def save_weights(model: nn.Module, path: Path, facts: dict[str, str]) -> None:
    """Write a model's parameters, each tied one once, as a safetensors file.

    Args:
        model: The model.
        path: The file; its folder is made.
        facts: Kept in the file's header.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A computed weight is kept as what it is computed from, by the names of the state_dict.
    computed = named_weights(model)
    values = {
        names[-1 if names in computed else 0]: tensor.detach().cpu().contiguous().clone()
        for names, tensor in named_tensors(model)
        if not is_lazy(tensor)
    }
    save_file(values, path, metadata=facts)
