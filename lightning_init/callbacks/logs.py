"""The files that a run leaves behind in its folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn
from safetensors.torch import save_file
from torch import nn

from lightning_init.architecture.gathered import gathered
from lightning_init.architecture.names import named_tensors, named_weights


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
    """Write a file into the run's folder, on the process that writes; all processes call this.

    Warns:
        UserWarning: If it cannot be written: no training ends for that.
    """
    folder = run_folder(trainer)
    if folder is None or not trainer.is_global_zero:
        return
    text = json.dumps(data, indent=1)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        rank_zero_warn(
            f"lightning_init: {folder / name} was not written ({error}); the training goes on. "
            "Give the logger, or Trainer(default_root_dir=...), a folder that can be written"
        )


def unwritable(path: Path) -> str:
    """Why no file can be written at a path, `""` if one can; its folder is made.

    Example:
        >>> unwritable(Path("/dev/null/init.safetensors")).startswith("FileExistsError")
        True
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    if path.is_dir():
        return "that is a folder"
    return "" if not path.exists() or os.access(path, os.W_OK) else "that file is read-only"


def save_weights(model: nn.Module, path: Path, facts: dict[str, str], writes: bool = True) -> None:
    """Write a model's parameters, each tied one once, as a safetensors file.

    All processes call this: sharded tensors are gathered, one after the other.

    Args:
        model: The model.
        path: The file; its folder is made.
        facts: Kept in the file's header.
        writes: Whether this process writes.
    """
    # A computed weight is kept as what it is computed from, by the names of the state_dict.
    computed = named_weights(model)
    originals = dict(named_tensors(model))
    values = {}
    for names, value in gathered(model):
        own = originals[names].detach() if names in computed else value
        if writes:
            values[names[-1 if names in computed else 0]] = own.cpu().contiguous().clone()
    if not writes:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(values, path, metadata=facts)
