"""How the truth about a model is written down, and the conventions it follows.

Every truth is written from reading the model's code. The conventions:

- roles: every parameter, by glob on its first name; the first match wins.
  `weight`: matrices and kernels multiplied with activations, bare ones too. `recurrent`: hidden to
  hidden. `embedding`: token tables, tied to a head or not. `position`: tables indexed by position
  or added at every position. `norm_scale`, `norm_shift`: of written-out norms too. `branch_scale`:
  multiplies a residual branch between its last weight layer and the sum. `other`: class tokens,
  learned queries, logit scales and temperatures, biases on attention scores, state-space A and D,
  slopes, magnitudes of a weight norm, lone numbers that are added. What the forward pass does not use has its type's role.
- branches: the weight matrices that end each residual branch, in the order of the additions. One
  side of an addition is the skip: reached unchanged or through norms, dropout, pooling, views,
  scaling, earlier sums or one projection without activation; the other side is computed from it
  through more weight layers. A subtraction counts before more layers, not in a loss. Branches that
  are added to one skip at once are one branch; so are the experts of a mixture. Not residual:
  equal parallel paths, convex mixtures by a data-dependent gate, states of a scan, steps of a
  recurrence, shifts by a condition (FiLM), sums of what leaves a stream inside of its branches. A
  gate's own layers never end a branch, nor do those of a factor that is stretched over positions.
- branch_layers: weight layers on the longest way from the fork to the sum, ways through gates
  aside. Nested branches count: the way from an encoder's feature down a U-Net and up again.
- attention: `part/heads`, everything else has no part. `out` is the first weight layer after the
  context. For fused matrices, `parts` gives the rows of each part along the stacked axis.
- nonlinearity: what follows a matrix's output elementwise, through norms, dropout, pooling, views,
  concatenation, scaling, sums of equal paths; a sum with a skip ends the search. Unlisted matrices
  are linear. If some of several readers, those that only make a gate aside, see it through an
  activation and none reads it as it is, that activation: the stem of a pre-activation net is
  followed by ReLU. A PReLU is a `leaky_relu`, a quick GELU a `gelu`, a gated unit takes the gate's
  activation if fused. The projection of an LSTM is linear.
- outputs: matrices that no weight layer follows on the way to the result, gates aside: what a gate
  scales last is an output, the gate's layers are not.
- identity: the value of a norm's scale that changes nothing, where it is not 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TypeVar

Value = TypeVar("Value")
Rows = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Truth:
    """What a careful reader knows of a model's parameters; keys of mappings are globs."""

    roles: Mapping[str, str]
    branches: tuple[tuple[str, ...], ...] = ()
    branch_layers: tuple[int, ...] = ()
    attention: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, tuple[tuple[str, Rows], ...]] = field(default_factory=dict)
    nonlinearity: Mapping[str, str] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    ties: tuple[tuple[str, ...], ...] = ()
    identity: Mapping[str, float] = field(default_factory=dict)
    unused: tuple[str, ...] = ()

    @property
    def num_branches(self) -> int:
        return len(self.branches)

    def role(self, name: str) -> str | None:
        return lookup(self.roles, name)

    def matrices(self, names: Iterable[str]) -> list[str]:
        """The weights among some names, as far as the forward pass uses them."""
        kinds = ("weight", "recurrent")
        return [n for n in names if self.role(n) in kinds and n not in self.unused]

    def ends(self) -> dict[str, int]:
        """Tensor -> index of the first branch that it ends."""
        found: dict[str, int] = {}
        for index, names in enumerate(self.branches):
            for name in names:
                found.setdefault(name, index)
        return found


def lookup(table: Mapping[str, Value], name: str) -> Value | None:
    """The value of the first glob that matches a name."""
    return next((value for glob, value in table.items() if fnmatchcase(name, glob)), None)


def fused(width: int, key_width: int | None = None) -> tuple[tuple[str, Rows], ...]:
    """Rows of query, key and value, one after the other."""
    key = key_width or width
    return (
        ("query", ((0, width),)),
        ("key", ((width, width + key),)),
        ("value", ((width + key, width + 2 * key),)),
    )


def each(*names: str, times: Iterable[object] = ("",)) -> tuple[tuple[str, ...], ...]:
    """One branch per name, for each value that replaces `{}`."""
    return tuple((name.format(value),) for value in times for name in names)


LAYERS = {"*bias": "bias", "*weight": "weight"}
NORMS = {"*norm*weight": "norm_scale", "*norm*bias": "norm_shift"}
