"""The layers that compositions are made of; each call writes a line of source and notes truths."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from tests.truth_kinds import Rows, Truth

ACTIVATIONS = {  # source of a call, or of a module -> what it computes
    "F.relu({})": "relu",
    "{}.relu()": "relu",
    "torch.relu({})": "relu",
    "F.relu({}, inplace=True)": "relu",
    "nn.ReLU(inplace=True)": "relu",
    "nn.ReLU()": "relu",
    "nn.GELU()": "gelu",
    "F.gelu({}, approximate='tanh')": "gelu",
    "F.silu({})": "silu",
    "{0} * torch.sigmoid({0})": "silu",
    "torch.tanh({})": "tanh",
    "nn.ELU()": "elu",
    "F.leaky_relu({}, 0.2)": "leaky_relu",
    "nn.Mish()": "mish",
    "F.softplus({})": "softplus",
    "torch.sin({})": "sin",
}


@dataclass(frozen=True)
class Value:
    """A tensor of the forward pass.

    Attributes:
        var: Its name in the source.
        open: Weights whose outputs reach it elementwise unchanged: what follows is theirs.
        ends: The last weights on the ways that lead to it.
        depth: Weight layers on the longest way to it, gates aside.
    """

    var: str
    open: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    depth: int = 0


def _apart(source: str) -> str:
    """The same activation, not in place: its input is a part of something."""
    return source.replace(", inplace=True", "").replace("inplace=True", "")


class RMSNorm(nn.Module):
    """A norm that no layer type tells of."""

    def __init__(self, width: int, dims: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width, *[1] * dims))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dim = -self.weight.ndim
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(dim, keepdim=True) + 1e-6))


class Layers:
    """Source and truth so far."""

    width = 8
    shape: tuple[int, ...]
    dim: int  # of the features

    def __init__(self) -> None:
        self.parts: dict[str, nn.Module | nn.Parameter] = {}
        self.lines: list[str] = []
        self.roles: dict[str, str] = {}
        self.kinds: dict[str, str] = {}
        self.attends: dict[str, str] = {}
        self.rows: dict[str, tuple[tuple[str, Rows], ...]] = {}
        self.branches: list[tuple[tuple[str, ...], int]] = []

    def source(self) -> str:
        return "\n    ".join(["def forward(self, x):", *self.lines]) + "\n"

    def truth(self, outputs: tuple[str, ...]) -> Truth:
        return Truth(
            self.roles,
            branches=tuple(ends for ends, _ in self.branches),
            branch_layers=tuple(layers for _, layers in self.branches),
            attention=self.attends,
            parts=self.rows,
            nonlinearity=self.kinds,
            outputs=outputs,
        )

    def line(self, expression: str) -> str:
        self.lines.append(f"v{len(self.lines)} = {expression}")
        return f"v{len(self.lines) - 1}"

    def call(self, source: str, *values: Value) -> Value:
        """An operation that changes neither what is open nor where the ways end."""
        if source == "{}":
            return values[0]
        return Value(
            self.line(source.format(*(value.var for value in values))),
            tuple(name for value in values for name in value.open),
            tuple(name for value in values for name in value.ends),
            max(value.depth for value in values),
        )

    def module(self, name: str, x: Value, part: nn.Module) -> Value:
        self.parts.setdefault(name, part)
        return self.call(f"self.{name}({{}})", x)

    def follow(self, x: Value, kind: str) -> Value:
        """Something elementwise, or a reader, follows the weights that are open."""
        for name in x.open:
            assert self.kinds.setdefault(name, kind) == kind, f"{name} is followed by two things"
        return Value(x.var, (), x.ends, x.depth)

    def activation(self, name: str, x: Value, source: str) -> Value:
        if source.startswith("nn."):
            y = self.module(name, x, eval(source, {"nn": nn}))
        else:
            y = self.call(source, x)
        return self.follow(y, ACTIVATIONS[source])

    def matrix(self, name: str, x: Value, part: nn.Module) -> Value:
        """A module with a weight and maybe a bias, as a weight layer."""
        self.follow(x, "linear")
        self.roles[f"{name}.weight"] = "weight"
        if part.bias is not None:
            self.roles[f"{name}.bias"] = "bias"
        y = self.module(name, x, part)
        return Value(y.var, (f"{name}.weight",), (f"{name}.weight",), x.depth + 1)

    def dense(self, name: str, x: Value, into: int, out: int) -> Value:
        return self.matrix(name, x, nn.Linear(into, out, bias=len(name) % 2 == 0))

    def weight(
        self, name: str, x: Value, into: int = 0, out: int = 0, shortcut: bool = False
    ) -> Value:
        raise NotImplementedError

    def norm_module(self) -> nn.Module:
        raise NotImplementedError

    def norm(self, name: str, x: Value, kind: str) -> Value:
        if not kind:
            return x
        own = kind == "own_norm"
        self.roles[f"{name}.weight"] = "norm_scale"
        if not own:
            self.roles[f"{name}.bias"] = "norm_shift"
        dims = len(self.shape) - 2 if self.dim == 1 else 0
        return self.module(name, x, RMSNorm(self.width, dims) if own else self.norm_module())

    def pooled(self, x: Value) -> Value:
        """The mean over positions, kept as dimensions of size one."""
        raise NotImplementedError

    def pool(self, x: Value) -> Value:
        raise NotImplementedError

    def gate(self, name: str, x: Value, kind: str) -> Value:
        """The tensor times a sigmoid of layers that read it."""
        assert not x.open
        y = self.pooled(x) if kind == "squeeze" else x
        if kind == "squeeze":
            y = self.weight(f"{name}1", y, out=4, shortcut=True)
            y = self.follow(self.call("F.relu({})", y), "relu")
            y = self.weight(f"{name}2", y, into=4, shortcut=True)
        else:
            y = self.weight(f"{name}1", y)
        y = self.follow(self.call("torch.sigmoid({})", y), "sigmoid")
        return Value(self.line(f"{x.var} * {y.var}"), (), x.ends, x.depth)

    def film(self, name: str, x: Value) -> Value:
        """The tensor, scaled and shifted by layers that read its mean."""
        assert not x.open
        mean = self.pooled(x)
        scale = self.follow(self.weight(f"{name}1", mean, shortcut=True), "linear")
        shift = self.weight(f"{name}2", mean, shortcut=True)
        y = self.line(f"{x.var} * (1 + {scale.var}) + {shift.var}")
        return Value(y, shift.open, (*x.ends, *shift.ends), x.depth + 1)

    def scale(self, name: str, x: Value, side: str) -> Value:
        if not side:
            return x
        dims = len(self.shape) - 2 if self.dim == 1 else 0
        self.parts.setdefault(name, nn.Parameter(0.1 * torch.ones(self.width, *[1] * dims)))
        self.roles[name] = "branch_scale"
        return self.call(f"self.{name} * {{}}" if side == "left" else f"{{}} * self.{name}", x)

    def gated_unit(self, name: str, x: Value, form: str, act: str) -> Value:
        """act(gate) * up, then down: one fused layer or two."""
        wide = 12
        if form == "separate":
            gate = self.weight(f"{name}gate", x, out=wide)
            up = self.weight(f"{name}up", x, out=wide)
            self.follow(up, "linear")
        else:
            both = self.weight(f"{name}gu", x, out=2 * wide)
            cut = f"chunk(2, {self.dim})" if form == "chunk" else f"split({wide}, {self.dim})"
            pair = self.line(f"{both.var}.{cut}")
            gate = Value(self.line(f"{pair}[0]"), both.open, both.ends, both.depth)
            up = Value(self.line(f"{pair}[1]"), (), both.ends, both.depth)
        gate = self.activation(f"{name}a", gate, _apart(act))
        y = Value(self.line(f"{gate.var} * {up.var}"), (), up.ends, up.depth)
        return self.weight(f"{name}down", y, into=wide)

    def attention(self, name: str, x: Value, form: str) -> Value:
        raise NotImplementedError

    def joined(self, name: str, x: Value, y: Value) -> Value:
        both = self.call(f"torch.cat([{{}}, {{}}], dim={self.dim})", x, y)
        return self.weight(name, both, into=2 * self.width)

    def add(self, fork: Value, skip: Value, branches: tuple[Value, ...], source: str) -> Value:
        """A residual sum: it ends the search of every weight that it reads."""
        for value in (skip, *branches):
            self.follow(value, "linear")
        names = {"skip": skip.var, "branch": branches[0].var}
        names |= dict(zip(("one", "two"), (b.var for b in branches), strict=False))
        if "+=" in source:
            self.lines.append(source.format(**names))
            var = self.line(branches[0].var)
        else:
            var = self.line(source.format(**names))
        ends = tuple(name for branch in branches for name in branch.ends)
        depth = max(branch.depth for branch in branches)
        self.branches.append((ends, depth - fork.depth))
        return Value(var, (), ends, max(depth, skip.depth))

    def finish(self, outs: list[Value]) -> None:
        self.lines.append("return " + ", ".join(out.var for out in outs))
