"""The identity and its relatives: layers that pass their input on at the start, without randomness."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Annotated, Literal

from torch import nn
from torch.nn.parameter import is_lazy

from lightning_init.architecture.arguments import Range
from lightning_init.architecture.names import named_tensors
from lightning_init.architecture.params import Architecture, ParamInfo, Role
from lightning_init.architecture.sharded import whole
from lightning_init.strategies.distributions import Constant, Distribution, Keep
from lightning_init.strategies.initializers import ByRole, Initializer
from lightning_init.strategies.layout import Layout, layout_of
from lightning_init.strategies.patterns import Kind, Pattern
from lightning_init.strategies.registry import Strategy, strategy

Factor = Annotated[float, Range(1e-2, 10.0, log=True, search=(0.5, 2.0))]
_STACKS = frozenset({"LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell", "MultiheadAttention"})


@dataclass(frozen=True, slots=True)
class Identity:
    """`gain` times the identity, in each gate, block and group; at the centre tap of a kernel."""

    gain: float = 1.0
    fill: Literal["zero", "repeat"] = "zero"

    def __call__(self, info: ParamInfo) -> Distribution:
        """The distribution of one matrix or kernel."""
        if info.numel == 0 or len(info.shape) < 2:
            return Keep("as built: a vector, which can be no identity")
        layout = layout_of(info)
        kind: Kind = "identity"
        reason = "identity"
        if layout.rows != layout.columns:
            kind = "repeated identity" if self.fill == "repeat" else "identity"
            rest = "repeated" if self.fill == "repeat" else "0 beyond"
            reason = f"identity of {min(layout.rows, layout.columns)}, {rest}"
        return Pattern(layout, kind, self.gain, reason=reason)


@strategy(aliases=("eye", "dirac"), search=False)
def identity(gain: Factor = 1.0, fill: Literal["zero", "repeat"] = "zero") -> Strategy:
    """W_ij = gain where i = j, else 0; a kernel has it at its centre tap (Dirac); zero bias.

    It is laid into each gate, block, expert and group of its own; the centre tap is size // 2. A
    hidden-to-hidden matrix gets it too, which for ReLU nets is the IRNN of Le, Jaitly & Hinton.
    Equal layers that run in parallel stay equal: the plan names them.

    Args:
        gain: The value on the diagonal, 0.01 to 10.
        fill: Where rows and columns differ in number, the rest is 0 (`zero`), or the diagonal
            starts anew (`repeat`, as IDInit's main branches: no unit is dead). IDInit's kernels
            also spread over the taps; here they have the centre tap alone.

    References:
        Le, Jaitly & Hinton (2015), https://arxiv.org/abs/1504.00941;
        Pan et al. (2025), IDInit, https://arxiv.org/abs/2503.04626

    Example:
        >>> made = identity().initializer(ParamInfo(("w",), (2, 3), Role.WEIGHT))
        >>> made.sample((2, 3), torch.Generator())
        tensor([[1., 0., 0.],
                [0., 1., 0.]])
    """
    return _with_note(ByRole(weight=Identity(gain, fill), embedding=_kept))


@dataclass(frozen=True, slots=True)
class ZerO:
    """Algorithm 1 of the paper for one matrix, 0 where a residual branch ends.

    Args:
        shift: Added to the exponent of the Hadamard matrix: 0 for an orthonormal one.
        silenced: Indices of the branches whose attention gets values of 0.
        scaled: Indices of the branches that are 0 already by a learned scale.
    """

    shift: float = 0.0
    silenced: frozenset[int] = frozenset()
    scaled: frozenset[int] = frozenset()

    def __call__(self, info: ParamInfo) -> Distribution:
        """The distribution of one matrix or kernel."""
        usage = info.usage
        if usage is None or usage.within in self.scaled:
            return self.matrix(info)
        if usage.within in self.silenced:
            if usage.attention in ("key", "value"):
                return Constant(0.0, reason=f"ZerO: the {usage.attention} of attention is 0")
        elif usage.ends_branch:
            return Constant(0.0, reason="ZerO: a residual branch ends in 0")
        return self.matrix(info)

    def matrix(self, info: ParamInfo) -> Distribution:
        """Identity where rows <= columns, else a cut Hadamard matrix."""
        if info.numel == 0 or len(info.shape) < 2:
            return Keep("as built: a vector, of which ZerO does not speak")
        layout = layout_of(info)
        if layout.rows <= layout.columns:
            return Pattern(layout, "identity", reason="ZerO: as many outputs as inputs, or fewer")
        return self.hadamard(layout)

    def hadamard(self, layout: Layout) -> Distribution:
        """C times the Hadamard matrix of size 2^m, m = ceil(log2 rows), cut to the block."""
        exponent = math.ceil(math.log2(layout.rows))
        gain = 2 ** (-(exponent - self.shift) / 2)
        return Pattern(layout, "hadamard", gain, reason=f"ZerO: Hadamard of size 2^{exponent}")


@strategy(aliases=("zero_init",), search=False)
def zero_hadamard(
    constant: Literal["orthonormal", "printed"] = "orthonormal", tables: bool = False
) -> Strategy:
    """ZerO: I (out <= in) or 2^(-m/2) H_m cut to (out, in), m = ceil(log2 out); branches end in 0.

    No randomness: every seed gives the same weights. A kernel has the matrix at its centre tap,
    gates, groups and experts one each. Attention in a residual branch has query I, key and value
    0, and an output that is not 0 (else no gradient would pass); other residual branches end in a
    0 layer, so that each block starts as the identity. Biases are 0, norms the identity. Layers
    that run in parallel and are alike stay alike: the plan names them.

    Algorithm 1 prints c = 2^(-(m-1)/2), which makes H_m sqrt(2) times a rotation; the text calls
    it a rotation and the authors' code has 2^(-m/2), which is the default here. The feed-forward
    branches of transformers end in 0 by the rule for residual nets.

    Args:
        constant: `orthonormal` for 2^(-m/2), `printed` for 2^(-(m-1)/2).
        tables: Whether lookup tables get rows of a Hadamard matrix too, equal every 2^ceil(log2
            width) rows; the paper leaves them as they are. A table tied to an output layer always
            does.

    References:
        Zhao, Schaefer & Anandkumar (2021), algorithms 1 and 2, https://arxiv.org/abs/2110.12661

    Example:
        >>> rule = zero_hadamard().initializer
        >>> str(rule(ParamInfo(("w",), (8, 4), Role.WEIGHT))), str(rule(ParamInfo(("w",), (4, 8), Role.WEIGHT)))
        ('hadamard x 0.3536', 'identity x 1')
    """
    shift = 1.0 if constant == "printed" else 0.0

    def made(rule: ZerO) -> Initializer:
        return ByRole(weight=rule, embedding=_Table(rule, tables))

    def prepare(model: nn.Module, architecture: Architecture) -> Strategy:
        scaled = _scaled_to_zero(model, architecture)
        rule = ZerO(shift, _silenced(architecture) - scaled, scaled)
        return Strategy(made(rule), notes=parallel(architecture))

    return Strategy(made(ZerO(shift)), prepare=prepare)


@dataclass(frozen=True, slots=True)
class _Table:
    """A lookup table as if it were a layer with an output per row."""

    rule: ZerO
    always: bool

    def __call__(self, info: ParamInfo) -> Distribution:
        drawn = self.always or "tied" in info.flags
        return self.rule.matrix(info) if drawn else _kept(info)


def parallel(architecture: Architecture) -> tuple[str, ...]:
    """A sentence for layers that would start equal, side by side, and learn the same.

    Example:
        >>> parallel(Architecture(()))
        ()
    """
    stacked, groups = [], defaultdict(list)
    for info in architecture:
        usage = info.usage
        if info.role is not Role.WEIGHT or info.parts:
            continue
        if len(info.shape) == 3 and info.blocks > 1 and not layout_of(info).taps:
            stacked.append(f"the {info.blocks} matrices in {info.name}")
        elif usage is not None and not usage.attention and info.layer not in _STACKS:
            place = (usage.depth, usage.within, usage.nonlinearity, usage.ends_branch)
            groups[(*place, usage.is_output, info.shape, info.layer)].append(info.name)
    alike = [f"{', '.join(names[:3])}, ..." for names in groups.values() if len(names) > 1]
    found = [*stacked, *alike]
    if not found:
        return ()
    more = f" (and {len(found) - 1} more such groups)" if len(found) > 1 else ""
    return (
        f"side by side and equal at the start: {found[0]}{more}; they learn the same if their "
        "inputs do not differ: draw all but one by another scheme in `overrides`",
    )


def _silenced(architecture: Architecture) -> frozenset[int]:
    """The residual branches whose attention has values of its own to set to 0."""
    found = set()
    for info in architecture:
        usage = info.usage
        if info.role is Role.WEIGHT and usage is not None and usage.within >= 0:
            own = [part.name for part in info.parts] or [usage.attention]
            found |= {usage.within} if "value" in own else set()
    return frozenset(found)


def _scaled_to_zero(model: nn.Module, architecture: Architecture) -> frozenset[int]:
    """The residual branches that a learned scale makes 0: a last layer of 0 would never learn."""
    tensors, found = dict(named_tensors(model)), set()
    for info in architecture:
        usage, tensor = info.usage, tensors[info.names]
        if info.role is not Role.BRANCH_SCALE or usage is None or usage.within < 0:
            continue
        if not is_lazy(tensor) and not tensor.is_meta and not bool(whole(tensor).any()):
            # one scale for several branches of a block is used once in each, one after the other
            found |= set(range(usage.within, usage.within + usage.calls))
    return frozenset(found)


def _kept(info: ParamInfo) -> Distribution:  # noqa: ARG001
    return Keep("a lookup has no identity: kept as built")


def _with_note(rule: Initializer) -> Strategy:
    def prepare(model: nn.Module, architecture: Architecture) -> Strategy:  # noqa: ARG001
        return Strategy(rule, notes=parallel(architecture))

    return Strategy(rule, prepare=prepare)
