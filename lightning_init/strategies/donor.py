"""A checkpoint as a dict of tensors, read without running anything that is in it.

Files of PyTorch are read with `weights_only=True`, memory-mapped where their format allows; a
`.safetensors` file is a header in JSON and raw numbers, which are mapped too.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import difflib
import json
import math
import pathlib
import pickle
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WHAT = (
    "a .ckpt of Lightning, a .pt, .pth or .bin, a .safetensors, or a folder of Hugging Face or of "
    "a Lightning run"
)
_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")
_FOLDER = (  # in the order in which `transformers` and `diffusers` prefer them
    *("model.safetensors.index.json", "model.safetensors"),
    *("diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model.safetensors"),
    *("pytorch_model.bin.index.json", "pytorch_model.bin"),
)
_STATES = ("state_dict", "model_state_dict", "model", "module", "net", "weights", "params")
# Classes that only hold what they are given; hyperparameters of Lightning often have them.
_HARMLESS = (
    *(pathlib.Path, pathlib.PosixPath, pathlib.WindowsPath),
    *(pathlib.PurePath, pathlib.PurePosixPath, pathlib.PureWindowsPath),
    *(argparse.Namespace, collections.defaultdict, collections.deque),
    *(datetime.datetime, datetime.date, datetime.timedelta, datetime.timezone),
)
_TYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8},
    **{"U8": torch.uint8, "BOOL": torch.bool, "C64": torch.complex64},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2},
}


@dataclass(frozen=True, slots=True)
class Donor:
    """The tensors of a checkpoint.

    Attributes:
        name: The name of its file or folder.
        tensors: By their names in the file.
        heads: Attention heads, where a `config.json` lies beside it; 0 if unknown.
        notes: What else the file holds, a sentence each.
    """

    name: str
    tensors: Mapping[str, Tensor]
    heads: int = 0
    notes: tuple[str, ...] = ()


def read_donor(path: str, entry: str = "") -> Donor:
    """Read the weights of a checkpoint.

    Args:
        path: A file or a folder, see `WHAT`.
        entry: Which entry of the file has the weights, for example `state_dict_ema`; `""` takes
            the usual one.

    Returns:
        Its tensors, memory-mapped where possible.

    Raises:
        ValueError: If there is no such file, it cannot be read safely, or has no weights.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": {"w": torch.ones(2)}}, f"{folder}/best.ckpt")
        ...     read_donor(f"{folder}/best.ckpt").tensors
        {'w': tensor([1., 1.])}
    """
    given = Path(path).expanduser()
    file = _file(given)
    notes: tuple[str, ...] = ()
    if file.name.endswith(".index.json"):
        shards = sorted(set(_json(file)["weight_map"].values()))
        whole: dict[str, Tensor] = {}
        for shard in shards:
            whole.update(_read(_file(file.parent / str(shard)), entry)[0])
        tensors = whole
    else:
        tensors, notes = _read(file, entry)
    return Donor(given.name or str(given), tensors, _heads(file.parent), notes)


def _file(path: Path) -> Path:
    """The file that is meant by a path."""
    if path.is_file():
        return path
    if not path.exists():
        parent = path.parent
        names = sorted(each.name for each in parent.iterdir()) if parent.is_dir() else []
        close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.4)
        where = f"that folder has {_listed(close or names)}"
        if not parent.is_dir():
            where = f"there is no folder {str(parent)!r} either"
        raise ValueError(f"there is no file {str(path)!r}: {where}")
    for name in _FOLDER:
        if (path / name).is_file():
            return path / name
    found = sorted(each for each in path.rglob("*") if each.suffix in _SUFFIXES)
    if len(found) == 1:
        return found[0]
    if found:
        names = [str(each.relative_to(path)) for each in found]
        raise ValueError(
            f"the folder {str(path)!r} has {len(found)} checkpoints: name one of {_listed(names)}"
        )
    names = sorted(each.name for each in path.iterdir())
    raise ValueError(f"the folder {str(path)!r} has no weights, but {_listed(names)}: name {WHAT}")


def _read(path: Path, entry: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of one file, and what else is worth knowing of it."""
    if path.suffix == ".safetensors":
        return _safetensors(path), ()
    content = _unpickled(path)
    states = _states(content)
    if entry:
        if entry not in states:
            raise ValueError(
                f"{str(path)!r} has no entry {entry!r} with weights: "
                f"{_listed(list(states)) if states else 'it has no entries that hold any'}"
            )
        return _tensors(states[entry]), ()
    usual = next((key for key in _STATES if key in states), "")
    inner = [key for key in states if key.rpartition(".")[2] in _STATES]
    usual = usual or (inner[0] if len(inner) == 1 else "")
    if not usual and isinstance(content, Mapping) and (top := _tensors(content)):
        return top, ()
    usual = usual or (next(iter(states)) if len(states) == 1 else "")
    if usual:
        also = [key for key in states if "ema" in key.lower().split("_") and key != usual]
        notes = tuple(f"{path.name} also has {key}: entry: {key} reads it" for key in also)
        return _tensors(states[usual]), notes
    held = _listed(list(map(str, content))) if isinstance(content, Mapping) else type(content)
    says = "say which has the weights by `entry`" if states else "it has no weights"
    raise ValueError(f"{str(path)!r} holds {held}: {says}")


def _states(content: object, outer: str = "") -> dict[str, Mapping[Any, Any]]:
    """The entries of a file that hold tensors, also one level down: `checkpoint.model`."""
    found: dict[str, Mapping[Any, Any]] = {}
    for key, value in content.items() if isinstance(content, Mapping) else ():
        if isinstance(value, Mapping) and _tensors(value):
            found[f"{outer}{key}"] = value
        elif not outer:
            found.update(_states(value, f"{key}."))
    return found


def _tensors(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The plain tensors of a dict."""
    return {
        str(key): value.detach()
        for key, value in content.items()
        if isinstance(value, Tensor)
        and value.layout is torch.strided
        and not (value.is_quantized or value.is_meta)
    }


def _unpickled(path: Path) -> Any:
    is_zip = zipfile.is_zipfile(path)
    try:
        with torch.serialization.safe_globals([*_HARMLESS, *_numbers()]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip or None)
    except pickle.UnpicklingError as error:
        raise ValueError(_unsafe(path, error)) from None
    except (RuntimeError, EOFError, OSError, KeyError, UnicodeDecodeError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        text = "no checkpoint" if isinstance(error, KeyError) else text
        raise ValueError(f"{str(path)!r} cannot be read ({text}): it must be {WHAT}") from None


def _unsafe(path: Path, error: Exception) -> str:
    """What is in the way of reading a file safely, and what to do."""
    try:
        with torch.serialization.safe_globals([*_HARMLESS, *_numbers()]):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # a file of the old format, or no checkpoint at all
        names = []
    if not names:
        line = next((each for each in str(error).splitlines() if "Unsupported" in each), "")
        line = line or str(error).splitlines()[0]
        return f"{str(path)!r} cannot be read safely ({line.strip()}): it must be {WHAT}"
    return (
        f"{str(path)!r} has objects besides tensors, {_listed(names)}, and reading those could run "
        "code, so it is not read. Where it was made, save the weights alone, "
        "torch.save(model.state_dict(), 'weights.pt'), and name that file"
    )


def _numbers() -> list[Any]:
    """What NumPy's numbers are made of, as metrics of a checkpoint often are."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return []
    kinds = [type(numpy.dtype(kind)) for kind in ("f8", "f4", "i8", "i4", "?")]
    scalar = numpy.float64(0).__reduce__()[0]
    return [scalar, numpy.dtype, *kinds]


def _safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, as views of the mapped file."""
    size = path.stat().st_size
    wrong = f"{str(path)!r} is no .safetensors file, or is cut off"
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= size - 8:
                raise ValueError(wrong)
            header = json.loads(file.read(length))
        start, found = 8 + length, {}
        content = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
        for name, each in header.items():
            if name == "__metadata__":
                continue
            begin, end = (start + int(offset) for offset in each["data_offsets"])
            kind, shape = _TYPES[each["dtype"]], tuple(each["shape"])
            if not start <= begin <= end <= size or end - begin != math.prod(shape) * kind.itemsize:
                raise ValueError(wrong)
            raw = content[begin:end]
            raw = raw if begin % kind.itemsize == 0 else raw.clone()
            found[name] = raw.view(kind).view(shape)
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{wrong} ({type(error).__name__}: {error})") from None
    return found


def _heads(folder: Path) -> int:
    """The attention heads that a `config.json` of Hugging Face names, 0 if it does not."""
    config = _json(folder / "config.json") if (folder / "config.json").is_file() else {}
    for key in ("num_attention_heads", "n_head", "num_heads", "n_heads"):
        if isinstance(config.get(key), int):
            return int(config[key])
    return 0


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{str(path)!r} is no JSON: {error}") from None
    return found if isinstance(found, dict) else {}


def _listed(names: list[str], most: int = 6) -> str:
    shown = ", ".join(names[:most]) or "nothing"
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
