"""What a parameter is for: the values that describe a model.

`ParamInfo` describes one tensor by how the model uses it, `Usage` holds what one forward pass
showed, `Architecture` is the list of all of them. They are plain frozen data: `analyze` makes
them, initializers read them, nothing changes them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

Provenance = Literal["fresh", "custom", "pretrained"]


class Role(StrEnum):
    """What a tensor does in the model."""

    WEIGHT = "weight"
    RECURRENT = "recurrent"
    EMBEDDING = "embedding"
    POSITION = "position"
    BIAS = "bias"
    NORM_SCALE = "norm_scale"
    NORM_SHIFT = "norm_shift"
    BRANCH_SCALE = "branch_scale"
    LORA_DOWN = "lora_down"
    LORA_UP = "lora_up"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Part:
    """One of several matrices that share a tensor: the query of a fused q|k|v, a gate of an LSTM.

    Attributes:
        name: `query`, `key`, `value`, or what the split shows (`0`, `1`, ...).
        rows: Half-open ranges along `ParamInfo.axis`, ascending.

    Example:
        >>> Part("query", ((0, 4), (12, 16))).size
        8
    """

    name: str
    rows: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        """Number of rows."""
        return sum(stop - start for start, stop in self.rows)


@dataclass(frozen=True, slots=True)
class Usage:
    """What one forward pass showed of a parameter.

    Attributes:
        depth: Weight layers on the longest path from the input up to and including this one.
        nonlinearity: The elementwise function that follows, `"linear"` if none.
        ends_branch: Whether the layer's output is added to a skip path.
        branch: Index of that residual branch in execution order, -1 outside of branches.
        branch_layers: Weight layers on the longest way along that branch, gates aside.
        num_branches: Residual additions in the whole model.
        attention: The layer's part in attention, `""` if none; `"query|key|value"` if fused.
        num_heads: Attention heads of that part (fewer for key and value in grouped-query
            attention; of the query if fused), 0 outside attention.
        is_output: Whether no weight layer follows.
        normalized: Whether norm layers alone take the result: its scale does not matter then.
        calls: Times the tensor was used in one forward pass.
        within: Index of the residual branch that the layer is part of, -1 outside of branches.
        gain: 1 / sqrt(E[phi(z)^2]), z ~ N(0, 1), of the function phi that follows, its arguments
            and formula as seen; 1 if none does, None if unknown.
        recurs: Whether the layer takes what came of its own earlier result: a step of a recurrence
            that is written by hand.
    """

    depth: int = 0
    nonlinearity: str = "linear"
    ends_branch: bool = False
    branch: int = -1
    branch_layers: int = 0
    num_branches: int = 0
    attention: str = ""
    num_heads: int = 0
    is_output: bool = False
    normalized: bool = False
    calls: int = 1
    within: int = -1
    gain: float | None = None
    recurs: bool = False


@dataclass(frozen=True, slots=True)
class BranchInfo:
    """One residual branch of a model.

    Attributes:
        layers: Weight layers on the longest way along it, gates aside.
        stream: Index of the stream that it adds to: an encoder and a decoder are two.
        attends: Whether it has attention.
        crosses: Whether it attends to something that does not come from its stream.
    """

    layers: int
    stream: int
    attends: bool = False
    crosses: bool = False


@dataclass(frozen=True, slots=True)
class ParamInfo:
    """One tensor of a model and what it is for.

    Attributes:
        names: Every name of the tensor, more than one if it is tied.
        shape: Its shape; `()` for a lazy tensor that has none yet.
        role: What it does.
        fan_in: Products summed into one output element, NaN where nothing is summed.
        fan_out: Products summed into one element of the input's gradient.
        blocks: Independent matrices stacked along `axis` (q|k|v, gates, groups, experts).
        provenance: Where its values come from.
        flags: Of `tied frozen adapter sharded meta lazy complex quantized parametrized companion`;
            a companion is set together with the computed (parametrized) weight behind which it is.
        usage: What a forward pass showed, None if none was seen.
        layer: Class name of the module that owns it.
        nonlinearity: The activation that the model's modules suggest, for use without `usage`.
        padding_idx: Row of an embedding that must stay zero.
        axis: The dimension along which blocks and parts are stacked.
        parts: The blocks by name and rows where a forward pass shows them, `()` otherwise.
        identity: For a norm's scale, the value that changes nothing: 1, or 0 where the model
            adds 1 itself.
        part: The name of the part that this describes, `""` for a whole tensor.
        prior: For the bias of an output layer, the values that the labels of the batch suggest,
            `()` where they are about even.
        answer: For the same, the best constant output by these labels, even or not.
        evidence: What was seen, in words.
        channels: For each dimension the number of the set of neurons along it: tensors that share
            one connect; -1 where none was seen, `()` if connections are not known.
        traits: Facts of the whole model: `attention`, `convolution`, `recurrence`, `norm`,
            `tied table`, and the activations it uses.

    Example:
        >>> info = ParamInfo(("fc.weight",), (10, 64), Role.WEIGHT, fan_in=64, fan_out=10)
        >>> info.name, info.numel
        ('fc.weight', 640)
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    role: Role
    fan_in: float = math.nan
    fan_out: float = math.nan
    blocks: int = 1
    provenance: Provenance = "fresh"
    flags: frozenset[str] = frozenset()
    usage: Usage | None = None
    layer: str = ""
    nonlinearity: str = "linear"
    padding_idx: int | None = None
    traits: frozenset[str] = frozenset()
    axis: int = 0
    parts: tuple[Part, ...] = ()
    identity: float = 1.0
    part: str = ""
    prior: tuple[float, ...] = ()
    answer: tuple[float, ...] = ()
    evidence: str = ""
    channels: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The name that `named_parameters` gives the tensor."""
        return self.names[0]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def activation(self) -> str:
        """The nonlinearity that follows: seen in a forward pass, else suggested by the modules."""
        return self.usage.nonlinearity if self.usage else self.nonlinearity


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model as the list of its parameters; prints as a table.

    Attributes:
        params: One entry per tensor, in registration order.
        num_branches: Residual additions seen in the forward pass, 0 if none was seen.
        traced: Whether a forward pass was observed.
        branches: The residual branches, in execution order.
    """

    params: tuple[ParamInfo, ...]
    num_branches: int = 0
    traced: bool = False
    branches: tuple[BranchInfo, ...] = ()

    def __iter__(self) -> Iterator[ParamInfo]:
        return iter(self.params)

    def __len__(self) -> int:
        return len(self.params)

    def __getitem__(self, name: str) -> ParamInfo:
        """The entry of a tensor, by any of its names."""
        for info in self.params:
            if name in info.names:
                return info
        raise KeyError(f"no parameter is called {name!r}")

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        params: list[dict[str, object]] = []
        for info in self.params:
            row = dataclasses.asdict(info)
            row["flags"], row["traits"] = sorted(info.flags), sorted(info.traits)
            row["role"] = str(info.role)
            for fan in ("fan_in", "fan_out"):
                row[fan] = None if math.isnan(row[fan]) else row[fan]
            params.append(row)
        return {"num_branches": self.num_branches, "traced": self.traced, "params": params}

    def __str__(self) -> str:
        total = sum(info.numel for info in self.params)
        seen = "one forward pass" if self.traced else "module types only"
        lines = [f"{len(self.params)} tensors, {total:,} parameters, seen by {seen}"]
        for info in self.params:
            shape = "x".join(map(str, info.shape)) or "scalar"
            notes = [*sorted(info.flags)]
            if info.provenance != "fresh":
                notes.append(info.provenance)
            if info.usage and info.usage.ends_branch:
                notes.append(f"ends branch {info.usage.branch + 1} of {self.num_branches}")
            if info.usage and info.usage.is_output:
                notes.append("output")
            note = f"  ({', '.join(notes)})" if notes else ""
            lines.append(f"  {info.name}  {shape}  {info.role}  {info.activation}{note}")
        return "\n".join(lines)
