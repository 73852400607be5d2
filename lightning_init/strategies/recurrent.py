"""Recurrent nets: a recipe per gate.

PyTorch's layers stack their gates (LSTM: input, forget, cell, output; GRU: reset, update, new) and
add two biases, of which one is set here and the other is 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Self

import torch
from torch import Generator, Tensor, nn

from lightning_init.architecture.arguments import Range
from lightning_init.architecture.params import Architecture, ParamInfo, Role
from lightning_init.strategies.distributions import Constant, Distribution, reason_field
from lightning_init.strategies.initializers import ByRole
from lightning_init.strategies.needs import is_hidden, unsuitable
from lightning_init.strategies.orthogonal import Orthonormal
from lightning_init.strategies.registry import Strategy, strategy
from lightning_init.strategies.variance import Gain, VarianceScaling, tied_table


@dataclass(frozen=True, slots=True)
class ForgetBias:
    """A value for the bias of forget gates, 0 for other biases."""

    value: float = 1.0

    def __call__(self, info: ParamInfo) -> Distribution:
        """The distribution of one bias, or of one gate's part of it."""
        if info.part == "forget":
            return Constant(self.value, reason="forget gate open")
        return Constant(0.0, reason="zero")


@dataclass(frozen=True, slots=True)
class Hidden:
    """Orthogonal per gate for hidden-to-hidden matrices of cells written by hand, else Xavier."""

    gain: float = 1.0

    def __call__(self, info: ParamInfo) -> Distribution:
        """The distribution of one matrix, or of one gate's part of it."""
        if not is_hidden(info):
            return VarianceScaling(1, "fan_avg", 1.0, "uniform", "Xavier")(info)
        gates = 1 if info.part else info.shape[info.axis] // info.shape[1 - info.axis]
        return Orthonormal(self.gain, "hidden to hidden")(replace(info, blocks=gates))


def _per_gate(gain: float) -> ByRole:
    return ByRole(
        weight=Hidden(gain),
        recurrent=Orthonormal(gain, "hidden to hidden"),
        embedding=tied_table,
    )


@strategy(needs=("recurrence",), nearest="xavier_uniform", search=False)
def recurrent(
    forget_bias: Annotated[float, Range(0.0, 10.0, search=(0.0, 3.0))] = 1.0, gain: Gain = 1.0
) -> Strategy:
    """Orthogonal hidden-to-hidden and U(+-sqrt(6/(in+out))) other matrices per gate; forget bias 1.

    The forget bias is set once: PyTorch adds `bias_ih` and `bias_hh`, so the first has the value
    and the second is 0, as are all other biases. A GRU has no forget gate. Of a cell that is
    written by hand a forward pass of 2 or more steps shows the hidden-to-hidden matrix, if it is
    square per gate, but not which gate forgets: the plan says so, and its biases are 0.

    Args:
        forget_bias: Of an LSTM's forget gates, 0 to 10.
        gain: Every singular value of the hidden-to-hidden matrices, 0.5 to 2.

    References:
        Gers, Schmidhuber & Cummins (2000), Neural Computation 12(10); Jozefowicz, Zaremba &
        Sutskever (2015), section 3, https://proceedings.mlr.press/v37/jozefowicz15.html;
        Saxe, McClelland & Ganguli (2013), https://arxiv.org/abs/1312.6120

    Example:
        >>> from lightning_init import make_plan
        >>> plan = make_plan(nn.LSTM(3, 4), "recurrent")
        >>> print(plan["bias_ih_l0"]), print(plan["bias_hh_l0"])
        input|cell|output constant 0; forget constant 1
        constant 0
        (None, None)
    """
    made = Strategy(replace(_per_gate(gain), bias=ForgetBias(forget_bias)))

    def prepare(model: nn.Module, architecture: Architecture) -> Strategy:  # noqa: ARG001
        return made._replace(notes=_by_hand(architecture))

    return made._replace(prepare=prepare)


def _by_hand(architecture: Architecture) -> tuple[str, ...]:
    """A sentence for cells of which it is not known which gate forgets."""
    found = [info.name for info in architecture if is_hidden(info)]
    if not found:
        return ()
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return (
        f"written by hand: {found[0]}{more}; which of its gates forgets is not to be seen, so no "
        "bias is set for it: set it where the model is built, and leave it by an override `keep`",
    )


@dataclass(frozen=True, slots=True)
class Chrono:
    """Biases of gates that forget at rates spread over 1 to t_max: log u, u ~ U(1, t_max - 1).

    Args:
        t_max: The longest memory in steps, at least 3.
        gates: Number of gates in the tensor.
        keeps: Index of the gate that keeps the old state: it gets log u.
        admits: Index of the gate that admits the new one, -1 if none: it gets -log u of the same u.
        factor: On the biases.

    Example:
        >>> bias = Chrono(100).sample((8,), torch.Generator().manual_seed(0))
        >>> bool((bias[:2] == -bias[2:4]).all()), bias[4:].tolist()
        (True, [0.0, 0.0, 0.0, 0.0])
    """

    t_max: int
    gates: int = 4
    keeps: int = 1
    admits: int = 0
    factor: float = 1.0
    reason: str = reason_field()

    @property
    def mean(self) -> float:
        """Mean over all gates."""
        top = self.t_max - 1.0
        log = (top * math.log(top) - top + 1) / (top - 1)
        return 0.0 if self.admits >= 0 else self.factor * log / self.gates

    @property
    def std(self) -> float:
        """Standard deviation over all gates."""
        top = self.t_max - 1.0
        log = math.log(top)
        square = (top * log**2 - 2 * top * log + 2 * top - 2) / (top - 1)
        drawn = 2 if self.admits >= 0 else 1
        return math.sqrt(self.factor**2 * square * drawn / self.gates - self.mean**2)

    def sample(self, shape: tuple[int, ...], generator: Generator) -> Tensor:
        """Draw a float32 tensor on the CPU."""
        bias = torch.zeros(shape)
        gates = bias.view(self.gates, -1)
        log = torch.empty(gates.shape[1]).uniform_(1, self.t_max - 1, generator=generator).log_()
        gates[self.keeps] = self.factor * log
        if self.admits >= 0:
            gates[self.admits] = -self.factor * log
        return bias

    def scaled(self, factor: float) -> Self:
        """The same with its biases multiplied by `factor`."""
        return replace(self, factor=self.factor * factor)

    def __str__(self) -> str:
        sign = "log u in one gate" if self.admits < 0 else "log u and -log u in two gates"
        times = f"{self.factor:.4g} x " if self.factor != 1 else ""
        return f"{times}{sign}, u uniform from 1 to {self.t_max - 1}"


@dataclass(frozen=True, slots=True)
class ChronoBias:
    """Chrono biases for layers with gates; 0 for other biases."""

    t_max: int

    def __call__(self, info: ParamInfo) -> Distribution:
        """The distribution of one bias; all gates of one are drawn together."""
        if not _has_gates(info):
            return Constant(0.0, reason="zero")
        if info.part in ("reset", "update", "new") or len(info.parts) == 3:
            return Chrono(self.t_max, 3, 1, -1, reason="chrono: the update gate keeps the state")
        return Chrono(self.t_max, reason="chrono: forget gate, and its negative for the input gate")


@strategy(needs=("recurrence",), nearest="xavier_uniform", search=False)
def chrono(
    t_max: Annotated[int, Range(3, 1_000_000, log=True, search=(10, 1000))] = 100, gain: Gain = 1.0
) -> Strategy:
    """Forget bias log u, u ~ U(1, t_max - 1), input bias -log u of the same u; else as `recurrent`.

    Units then forget after 1 to t_max steps. In a GRU the update gate has log u: in PyTorch it
    multiplies the old state (in the paper's leaky nets a gate multiplies the new one, hence
    -log u). Set once, as two biases add; u is continuous, as the paper has it.

    Args:
        t_max: The longest dependency that is expected, in steps, 3 to 1,000,000.
        gain: Every singular value of the hidden-to-hidden matrices, 0.5 to 2.

    References:
        Tallec & Ollivier (2018), https://arxiv.org/abs/1804.11188

    Example:
        >>> from lightning_init import make_plan
        >>> print(make_plan(nn.GRU(3, 4), "chrono")["bias_ih_l0"])
        log u in one gate, u uniform from 1 to 99
    """
    made = Strategy(replace(_per_gate(gain), bias=ChronoBias(t_max)))

    def prepare(model: nn.Module, architecture: Architecture) -> Strategy:  # noqa: ARG001
        if not any(info.role is Role.BIAS and _has_gates(info) for info in architecture):
            raise unsuitable(
                "chrono needs gates with biases, but the forward pass and the layers show none: ",
                "recurrent",
            )
        return made

    return made._replace(prepare=prepare)


def _has_gates(info: ParamInfo) -> bool:
    """Whether a bias belongs to the stacked gates of an LSTM or GRU."""
    names = {info.part, *(part.name for part in info.parts)}
    return bool(names & {"forget", "update"}) or info.part in (
        "input",
        "cell",
        "output",
        "reset",
        "new",
    )
