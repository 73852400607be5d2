"""A checkpoint fitted to a model: what goes into each tensor, and a report of it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

from torch import Tensor, nn

from lightning_init.architecture.names import canonical, unwrap
from lightning_init.architecture.params import Architecture, ParamInfo, Role
from lightning_init.strategies.axes import Pair, out_dim
from lightning_init.strategies.donor import WHAT, Donor, read_donor
from lightning_init.strategies.initializers import Initializer
from lightning_init.strategies.matching import computed, match
from lightning_init.strategies.needs import unsuitable
from lightning_init.strategies.neurons import Select
from lightning_init.strategies.slicing import Cut, Rescale, Slicer
from lightning_init.strategies.transferred import Transferred

Mismatch = Literal["slice", "skip", "error"]
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_WIDTHS = (32, 64, 80, 96, 128)  # of a head; families of models keep one and vary the number
_HEADS = ("num_heads", "num_attention_heads", "n_head", "n_heads", "nhead", "heads")
_ENDS = frozenset({"head", "heads", "classifier", "fc", "lm_head", "score", "logits", "qa_outputs"})


def read(scheme: str, path: str, entry: str) -> Donor:
    """The donor of a scheme.

    Raises:
        UnsuitableError: If no file is named.
        ValueError: If it cannot be read.
    """
    if not path:
        raise unsuitable(
            f"{scheme} needs a file with weights, but none was named: set path to {WHAT}, for "
            f"example InitSpec({scheme!r}, {{'path': 'best.ckpt'}}), or ",
            "auto",
        )
    try:
        donor = read_donor(path, entry)
    except ValueError as error:
        raise ValueError(f"{scheme}: {error}. Nothing has been changed") from None
    return replace(donor, tensors=computed(donor.tensors))


class Fitting:
    """The tensors of a donor and those of a model.

    Args:
        scheme: Who asks.
        donor: From `read`.
        model: The model.
        architecture: Its description.
        rename: See `matching.match`.
        heads: Heads of attention in the donor, 0 to find out.
    """

    def __init__(
        self,
        scheme: str,
        donor: Donor,
        model: nn.Module,
        architecture: Architecture,
        rename: str,
        heads: int,
    ) -> None:
        self.scheme, self.donor, self.model = scheme, donor, unwrap(model)
        self.infos = [info for info in architecture if "companion" not in info.flags]
        self.architecture = architecture
        self.total = max(1, sum(info.numel for info in self.infos))
        statistics = [_statistic(name, buffer, architecture) for name, buffer in self._buffers()]
        self.statistics = {info.name for info in statistics}
        targets = [(info.names, info.shape) for info in (*self.infos, *statistics)]
        shapes = {name: tuple(tensor.shape) for name, tensor in donor.tensors.items()}
        try:
            self.matching = match(shapes, targets, rename)
        except ValueError as error:
            raise ValueError(f"{scheme}: {error}. Nothing has been changed") from None
        found = self.matching.found
        self.pairs = [
            Pair(info, donor.tensors[found[info.name]])
            for info in (*self.infos, *statistics)
            if info.name in found and not info.flags & {"complex", "quantized"}
        ]
        self.heads = self._heads(heads or donor.heads)
        self.cuts: dict[str, Cut] = {}
        self.skipped: dict[str, str] = {}
        self.left: frozenset[str] = frozenset()

    def leave_heads(self) -> None:
        """Take nothing for the output layers."""
        self.left = frozenset(info.name for info in self.infos if _is_head(info))

    def fit(self, mismatch: Mismatch, select: Select, rescale: Rescale, grow: bool = True) -> None:
        """Decide what goes into each tensor.

        Raises:
            UnsuitableError: If shapes differ and `mismatch` is `error`, or the donor is smaller
                and may not be.
        """
        other = [pair for pair in self.pairs if tuple(pair.donor.shape) != pair.info.shape]
        if other and mismatch == "error":
            shown = "; ".join(map(_says, other[:3])) + (
                f" and {len(other) - 3} more" if len(other) > 3 else ""
            )
            raise unsuitable(
                f"{self.scheme}: {self.donor.name} has other shapes, {shown}: mismatch: slice or "
                "mismatch: skip allows that; or ",
                "auto",
            )
        smaller = [p for p in other if any(a < b for a, b in map(p.sizes, range(p.donor.ndim)))]
        smaller = [pair for pair in smaller if pair.info.name not in self.left]
        if smaller and not grow:
            raise unsuitable(
                f"{self.scheme} needs a donor at least as large as the model, but "
                f"{self.donor.name} has {_says(smaller[0])}: ",
                "warm_start",
            )
        if mismatch == "skip":
            self.skipped.update({p.info.name: f"other shape: {_says(p)}" for p in other})
            self.pairs = [pair for pair in self.pairs if pair not in other]
        for name, cut in Slicer(self.pairs, self.heads, select, rescale).cut().items():
            if name in self.left:
                self.skipped[name] = "output layer"
            elif isinstance(cut, Cut):
                self.cuts[name] = cut
            else:
                self.skipped[name] = cut
        self.select, self.rescale = select, rescale

    def initializer(self, coverage: float, zero: bool) -> Callable[[Initializer], Initializer]:
        """What puts the donor's tensors on top of another initializer.

        Raises:
            UnsuitableError: If the donor covers too little of the model.
        """
        self._check(coverage)
        self.silent = self._new_branches() if zero else frozenset()
        source = {
            name: f"from {self.donor.name}: {self.matching.found[name]}" for name in self.cuts
        }
        cuts = {name: cut for name, cut in self.cuts.items() if name not in self.statistics}
        silent = self.silent
        return lambda below: Transferred(below, cuts, source, silent)

    def buffers(self) -> dict[str, Tensor]:
        """Running statistics of norm layers."""
        return {
            name: self.cuts[name].values
            for name in self.statistics
            if name in self.cuts and not self.cuts[name].places
        }

    def notes(self) -> tuple[str, ...]:
        """The report, a sentence each."""
        own = {name: cut for name, cut in self.cuts.items() if name not in self.statistics}
        changed = {name: cut.how for name, cut in own.items() if cut.how}
        missing = [i.name for i in self.infos if i.name not in own and i.name not in self.skipped]
        used = {self.matching.found.get(name) for name in (*self.cuts, *self.skipped)}
        for info in self.infos if used else ():
            used |= self.matching.names_of(info.names[1:])
        unused = [name for name in self.donor.tensors if name not in used]
        lines = [
            f"{self.scheme} from {self.donor.name}: {len(own)} of {len(self.infos)} tensors, "
            f"{self.covered:.0%} of the parameters; {len(changed)} of them cut to fit, "
            f"{len(self.skipped)} skipped, {len(missing)} missing, {len(unused)} of the file unused"
        ]
        if says := self.matching.says():
            lines.append(f"names: {says}")
        if changed:
            how = f"neurons by {self.select}" if self.select == "importance" else "evenly spaced"
            lines.append(f"cut to fit ({how}, inputs rescaled: {self.rescale}): {_listed(changed)}")
            if differing := {f"{a} -> {b}" for a, b in self.heads.values() if a != b}:
                lines.append(f"heads of attention, as far as known: {', '.join(sorted(differing))}")
            if not any(info.channels for info in self.infos):
                lines.append("which neurons connect is told by their numbers alone")
        if self.skipped:
            lines.append(f"skipped: {_listed(self.skipped)}")
        if missing:
            lines.append(f"missing in the file: {_listed(dict.fromkeys(missing, ''))}")
        if unused:
            lines.append(f"unused in the file: {_listed(dict.fromkeys(unused, ''))}")
        if self.silent:
            lines.append(
                f"new residual branches start as 0: {_listed(dict.fromkeys(sorted(self.silent), ''))}"
            )
        return (*lines, *self.donor.notes)

    @property
    def covered(self) -> float:
        """The share of the model's parameters that have a donor."""
        own = (c.values.numel() for n, c in self.cuts.items() if n not in self.statistics)
        return sum(own) / self.total

    def _check(self, coverage: float) -> None:
        spoilt = [name for name, c in self.cuts.items() if not bool(c.values.isfinite().all())]
        if spoilt:
            where = f"{self.matching.found[spoilt[0]]} of {self.donor.name}"
            says = "has values that are NaN or infinite: name an earlier checkpoint, or "
            raise unsuitable(f"{self.scheme}: {where} {says}", "auto")
        # What grows counts whole: twice as wide is 4 times as many parameters.
        share = sum(i.numel for i in self.infos if i.name in self.cuts) / self.total
        if share >= coverage and self.cuts:
            return
        left = sorted((i for i in self.infos if i.name not in self.cuts), key=lambda i: -i.numel)
        lines = []
        for info in left[:3]:
            why = self.skipped.get(info.name)
            close = difflib.get_close_matches(info.name, self.donor.tensors, n=1, cutoff=0.0)
            near = [f"{c} {tuple(self.donor.tensors[c].shape)}" for c in close]
            lines.append(
                f"{info.name} {info.shape}: {why or f'the closest is {near[0] if near else None}'}"
            )
        raise unsuitable(
            f"{self.scheme}: {self.donor.name} covers {share:.1%} of the parameters, less "
            f"than coverage={coverage:g}. Without a donor are {'; '.join(lines)}. Say by rename: "
            "'old=new' how parts of names differ, or lower coverage; else ",
            "auto",
        )

    def _new_branches(self) -> frozenset[str]:
        """What ends the residual branches of which the donor has nothing."""
        found: dict[int, list[ParamInfo]] = {}
        for info in self.infos:
            if info.usage is not None and info.usage.within >= 0:
                found.setdefault(info.usage.within, []).append(info)
        new = [b for b, each in found.items() if not any(i.name in self.cuts for i in each)]
        silent: set[str] = set()
        for branch in new if len(new) < len(found) else []:
            ending = [i for i in found[branch] if i.usage and i.usage.branch == branch]
            norms = [i.name for i in ending if i.role is Role.NORM_SCALE]
            silent.update(norms or [i.name for i in ending if i.role is Role.WEIGHT])
        return frozenset(silent)

    def _buffers(self) -> list[tuple[str, Tensor]]:
        named = ((canonical(name), buffer) for name, buffer in self.model.named_buffers())
        return [(name, b) for name, b in named if name.rpartition(".")[2] in _STATISTICS]

    def _heads(self, donor: int) -> dict[str, tuple[int, int]]:
        """Heads of the donor and of the model, for each tensor that makes queries, keys, values."""
        own = {}
        for info in self.infos:
            parts = set(info.usage.attention.split("|")) if info.usage else set()
            if info.usage and parts & {"query", "key", "value"} and info.usage.num_heads > 1:
                own[info.name] = info.usage.num_heads
        if not self.architecture.traced:
            for prefix, module in self.model.named_modules():
                heads = next(
                    (
                        n
                        for key in _HEADS
                        if isinstance(n := getattr(module, key, 0), int) and n > 1
                    ),
                    0,
                )
                for name, _ in module.named_parameters(prefix) if heads else ():
                    own[canonical(name)] = heads
        shapes = {pair.info.name: pair for pair in self.pairs}
        found = {}
        for name, heads in own.items():
            if name in shapes and (dim := out_dim(shapes[name].info)) is not None:
                old, new = (
                    size // max(1, shapes[name].info.blocks) for size in shapes[name].sizes(dim)
                )
                width = new // heads
                usual = old // width if width in _WIDTHS and old % width == 0 else heads
                # Keys and values may have fewer heads than queries.
                named = donor * heads // max(own.values())
                found[name] = (named or usual, heads)
        return found


def _statistic(name: str, buffer: Tensor, architecture: Architecture) -> ParamInfo:
    """A running statistic as if it were a shift of its norm layer."""
    owner = name.rpartition(".")[0]
    siblings = [i for i in architecture if i.names[0].rpartition(".")[0] == owner]
    channels = siblings[0].channels if siblings and buffer.ndim == 1 else ()
    return ParamInfo((name,), tuple(buffer.shape), Role.NORM_SHIFT, channels=channels)


def _is_head(info: ParamInfo) -> bool:
    """Whether a tensor belongs to an output layer; without a forward pass, by its name."""
    if info.role is Role.EMBEDDING:
        return False
    if info.usage is not None:
        return info.usage.is_output and not info.usage.ends_branch
    return bool(_ENDS & set(info.name.split(".")[:-1]))


def _says(pair: Pair) -> str:
    return f"{pair.info.name} {tuple(pair.donor.shape)} for {pair.info.shape}"


def _listed(items: Mapping[str, str], most: int = 4) -> str:
    shown = [f"{name} ({why})" if why else name for name, why in list(items.items())[:most]]
    return ", ".join(shown) + (f" and {len(items) - most} more" if len(items) > most else "")
