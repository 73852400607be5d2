"""Which tensor of a checkpoint is which tensor of a model, by name.

Wrappers leave parts in names (`module.`, `_orig_mod.`, `.base_layer.`), and a model often lies one
level deeper in one of the two (`model.bert.encoder` and `encoder`): the one exchange of prefixes
that gives the most tensors of equal shape is found by trying them all.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_WRAPPERS = frozenset(
    {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
    | {"base_layer"}
)
_DEEPEST = 6  # levels of a prefix that are tried
_LEAST = 20  # a prefix that is exchanged holds at least the 20th part of the names
_OLD = {"weight": "gamma", "bias": "beta"}  # LayerNorm in checkpoints of TensorFlow

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Matching:
    """Which tensors go together.

    Attributes:
        found: Name in the model -> name in the checkpoint.
        source: The prefix in the checkpoint that was exchanged.
        target: The prefix in the model that took its place.
    """

    found: Mapping[str, str]
    source: str = ""
    target: str = ""

    def names_of(self, names: Iterable[str]) -> set[str]:
        """What the checkpoint may call a tensor of the model, which is tied if it has several."""
        bare = (_stripped(name) for name in names)
        return {f"{self.source}{name.removeprefix(self.target)}" for name in bare}

    def says(self) -> str:
        """The exchange of prefixes in words, `""` if there is none."""
        if self.source == self.target:
            return ""
        return f"{self.source or 'the top'} of the file is {self.target or 'the top'} of the model"


def match(
    donor: Shapes, model: Sequence[tuple[tuple[str, ...], tuple[int, ...]]], rename: str = ""
) -> Matching:
    """Find the tensor of a checkpoint for each tensor of a model.

    Args:
        donor: Shapes by name.
        model: Names (several if it is tied) and shape of each tensor.
        rename: `old=new` pairs, separated by commas: parts of names in the checkpoint and what
            they are called in the model.

    Returns:
        The pairs, of equal names but not always of equal shape.

    Raises:
        ValueError: If `rename` is no such pair, or names nothing in the checkpoint.

    Example:
        >>> model = [(("net.0.weight",), (4, 2)), (("net.0.bias",), (4,)), (("head.bias",), (3,))]
        >>> donor = {"module.0.weight": (4, 2), "module.0.bias": (4,)}
        >>> match(donor, model).found
        {'net.0.weight': 'module.0.weight', 'net.0.bias': 'module.0.bias'}
    """
    sources = {_stripped(new): old for new, old in _renamed(donor, rename).items()}
    targets = [([_stripped(name) for name in names], names[0], shape) for names, shape in model]
    best: tuple[tuple[int, ...], dict[str, str], str, str] = ((-1,), {}, "", "")
    everywhere = [name for names, _, _ in targets for name in names]
    for source in _prefixes(sources):
        rest = {
            name[len(source) :]: old for name, old in sources.items() if name.startswith(source)
        }
        for target in _prefixes(everywhere):
            found, same = {}, 0
            for names, own, shape in targets:
                old = _lookup(names, target, rest, donor, shape)
                if old is not None:
                    found[own] = old
                    same += donor[old] == shape
            score = (same + len(found), -len(source) - len(target))
            if score > best[0]:
                best = (score, found, source, target)
    return Matching(best[1], best[2], best[3])


def _lookup(
    names: list[str], prefix: str, rest: Mapping[str, str], donor: Shapes, shape: tuple[int, ...]
) -> str | None:
    """The checkpoint's name for a tensor; a tied one may be there under any of its names."""
    candidates = [rest.get(n[len(prefix) :]) for n in names if n.startswith(prefix)]
    if not any(candidates):
        for name in (n[len(prefix) :] for n in names if n.startswith(prefix)):
            head, dot, last = name.rpartition(".")
            candidates.append(rest.get(f"{head}{dot}{_OLD.get(last, last)}"))
    known = [old for old in candidates if old is not None and len(donor[old]) == len(shape)]
    return next((old for old in known if donor[old] == shape), known[0] if known else None)


def _prefixes(names: Iterable[str]) -> list[str]:
    counts: Counter[str] = Counter()
    total = 0
    for name in names:
        parts = name.split(".")
        total += 1
        for depth in range(min(_DEEPEST, len(parts) - 1) + 1):
            counts["".join(f"{part}." for part in parts[:depth])] += 1
    return [prefix for prefix, count in counts.items() if count * _LEAST >= total]


def _stripped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _renamed(donor: Shapes, rename: str) -> dict[str, str]:
    """New name -> name in the checkpoint."""
    pairs = []
    for pair in filter(None, (each.strip() for each in rename.split(","))):
        old, equals, new = (text.strip().strip(".") for text in pair.partition("="))
        if not equals or not old:
            raise ValueError(
                f"rename must be pairs old=new, separated by commas, for example "
                f"'backbone=encoder, fc=head', but got {rename!r}"
            )
        if not any(f".{old}." in f".{name}." for name in donor):
            parts = {part for name in donor for part in (*name.split("."), name)}
            close = difflib.get_close_matches(old, sorted(parts), n=3, cutoff=0.4)
            hint = f"the closest are {', '.join(close)}" if close else "none is close to it"
            raise ValueError(f"rename: no name in the file has {old!r} as a part: {hint}")
        pairs.append((f".{old}.", f".{new}." if new else "."))
    found = {}
    for name in donor:
        text = f".{name}."
        for before, after in pairs:
            text = text.replace(before, after)
        found[text.strip(".")] = name
    return found


def computed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint, with computed weights in place of what they are computed from.

    Weight norm and spectral norm in their old and new form, and pruning masks, so that a donor
    with and a model without them (or the other way round) fit.

    Args:
        tensors: By name.

    Returns:
        The same where nothing is computed.

    Example:
        >>> raw = {"fc.weight_g": torch.tensor([[2.0]]), "fc.weight_v": torch.tensor([[3.0, 4.0]])}
        >>> {name: weight.tolist() for name, weight in computed(raw).items()}
        {'fc.weight': [[1.2000000476837158, 1.600000023841858]]}
    """
    found = dict(tensors)
    for name in tensors:
        head, _, last = name.rpartition(".")
        stem = name.rpartition("_")[0]
        if last.endswith("_g") and f"{stem}_v" in tensors:
            found[stem] = _normed(found.pop(name), found.pop(f"{stem}_v"))
        elif last == "original0" and f"{head}.original1" in tensors:
            norm, direction = found.pop(name), found.pop(f"{head}.original1")
            found[_owner(head)] = _normed(norm, direction)
        elif last == "original" and f"{head}.0._u" in tensors:
            vector = found.pop(f"{head}.0._u"), found.pop(f"{head}.0._v")
            found[_owner(head)] = _spectral(found.pop(name), *vector)
        elif last.endswith("_orig") and f"{stem}_mask" in tensors:
            found[stem] = found.pop(name) * found.pop(f"{stem}_mask")
        elif last.endswith("_orig") and {f"{stem}_u", f"{stem}_v"} <= set(tensors):
            vector = found.pop(f"{stem}_u"), found.pop(f"{stem}_v")
            found[stem] = _spectral(found.pop(name), *vector)
    return found


def _owner(head: str) -> str:
    """`fc.parametrizations.weight` -> `fc.weight`."""
    parts = head.split(".")
    return ".".join([*parts[:-2], parts[-1]])


def _normed(norm: Tensor, direction: Tensor) -> Tensor:
    dims = [dim for dim in range(direction.ndim) if norm.ndim == 0 or norm.shape[dim] == 1]
    length = torch.linalg.vector_norm(direction.float(), dim=dims or None, keepdim=True)
    if not dims:
        length = direction.float().abs()
    found: Tensor = (direction.float() * (norm.float() / length)).to(direction.dtype)
    return found


def _spectral(weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
    rows = next((dim for dim, size in enumerate(weight.shape) if size == u.numel()), 0)
    matrix = weight.movedim(rows, 0).flatten(1)
    found: Tensor = weight / torch.dot(u, torch.mv(matrix, v))
    return found
