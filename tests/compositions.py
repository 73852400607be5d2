"""Random models put together from blocks, with their truth by construction.

`blueprints()` draws nested tuples, `compose(blueprint)` makes the model, a call that runs it, the
truth about it and the Python source of its forward pass, for the message of a failing test. What
the conventions leave open is not composed: no activation is the first reader of a weight layer
whose output is also a skip path, no branch ends with an inner sum, a gate follows an activation or
is the last thing in a branch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.compositions_layers import ACTIVATIONS, Layers, Value
from tests.compositions_worlds import Images, Tokens
from tests.truth_kinds import Truth

BETWEEN = ("{}", "F.dropout({}, 0.1, self.training)", "{} * 0.5", "{}.contiguous()", "{} / 2.0")
ADDITIONS = (
    "{skip} + {branch}",
    "{branch} + {skip}",
    "torch.add({skip}, {branch})",
    "{branch}.add({skip})",
    "torch.add({skip}, {branch}, alpha=0.5)",
    "sum(({skip}, {branch}))",
    "{skip} * 0.7 + {branch} * 0.3",
    "{skip} - {branch}",
    "{branch}.add_({skip})",
    "{branch} += {skip}",
)
TOGETHER = (
    "{skip} + {one} + {two}",
    "{skip} + ({one} + {two})",
    "({two} + {skip}) + {one}",
    "torch.add({one}, {two}).add({skip})",
)

BEFORE = ("", "norm", "own_norm", "act", "norm act")
AFTER = ("", "", "norm", "act", "norm act")
TOP = ("residual",) * 5 + ("together", "layer", "mlp", "glu", "gate", "concat", "parallel", "film")
INNER = ("film", "layer", "mlp", "glu", "gate", "concat", "parallel", "residual", "together")
ENDS = ("attention", "layer", "active", "mlp", "glu", "attention", "attention")

_acts = st.sampled_from(list(ACTIVATIONS))
_betweens = st.sampled_from(BETWEEN)
_norms = st.sampled_from(["", "", "norm", "own_norm"])
_gates = st.sampled_from(["squeeze", "single"])
_forms = st.sampled_from(["separate", "fused", "heads", "grouped", "module"])


@st.composite
def _block(draw: st.DrawFn, kind: str, depth: int = 0) -> tuple:
    match kind:
        case "layer":
            return ("layer", draw(_norms), draw(_betweens), None)
        case "active":
            return ("layer", draw(_norms), draw(_betweens), draw(_acts))
        case "mlp":
            return ("mlp", draw(_betweens), draw(_acts))
        case "glu":
            return ("glu", draw(st.sampled_from(["separate", "chunk", "split"])), draw(_acts))
        case "attention":
            return ("attention", draw(_forms))
        case "gate":
            return ("gate", draw(_gates), draw(_acts))
        case "film":
            return ("film", draw(_acts))
        case "concat":
            return ("concat", draw(_block("active")))
        case "parallel":
            inner = draw(st.sampled_from(["layer", "mlp"]))
            act = draw(_acts) if inner == "layer" and draw(st.booleans()) else None
            return ("parallel", draw(_block(inner)), draw(_block(inner)), act)
        case "together":
            kinds = (st.sampled_from(["attention", "mlp"]), st.sampled_from(["mlp", "glu"]))
            bodies = tuple(draw(_block(draw(kind))) for kind in kinds)
            return ("together", draw(_norms), bodies, draw(st.sampled_from(TOGETHER)))
    return ("residual", draw(_residual(depth)))


@st.composite
def _residual(draw: st.DrawFn, depth: int) -> dict:
    """Skip and branch: any blocks inside, a weight layer at the end."""
    inner = INNER[:-1] if depth else INNER
    kinds = draw(st.lists(st.sampled_from(inner), max_size=1 if depth else 2)) if depth < 2 else []
    return {
        "before": draw(st.sampled_from(BEFORE)),
        "body": [draw(_block(kind, depth + 1)) for kind in kinds],
        "end": draw(_block(draw(st.sampled_from(ENDS)))),
        "gate": draw(st.sampled_from(["", "", "", "squeeze", "single"])),
        "scale": draw(st.sampled_from(["", "", "left", "right"])),
        "shortcut": draw(st.sampled_from(["", "", "plain", "normed"])),
        "addition": draw(st.sampled_from(ADDITIONS)),
        "after": draw(st.sampled_from(AFTER)),
        "times": draw(st.sampled_from([1, 1, 1, 2, 3])),
    }


@st.composite
def blueprints(draw: st.DrawFn) -> tuple:
    """World (tokens or images), number of heads, and the blocks between stem and heads."""
    kinds = draw(st.lists(st.sampled_from(TOP), min_size=1, max_size=3))
    return (
        draw(st.sampled_from(["tokens", "tokens", "images"])),
        draw(st.sampled_from([1, 1, 2])),
        [draw(_block(kind)) for kind in kinds],
    )


@dataclass
class Composition:
    """A model with everything that is known of it."""

    model: nn.Module
    forward: Callable[[], object]
    truth: Truth
    source: str


class Composed(nn.Module):
    """Modules and parameters under short names, and the code that runs them."""

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        for name, part in layers.parts.items():
            if isinstance(part, nn.Parameter):
                self.register_parameter(name, part)
            else:
                self.add_module(name, part)
        self.source = layers.source()
        space = {"torch": torch, "F": F, "nn": nn}
        exec(self.source, space)
        self.run = space["forward"]

    def forward(self, x: Tensor) -> object:
        return self.run(self, x)


def compose(blueprint: tuple) -> Composition:
    """Build a blueprint."""
    world, heads, blocks = blueprint
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        builder = _Builder(Tokens() if world == "tokens" else Images())
        truth = builder.build(blocks, heads)
        model = Composed(builder.layers)
    x = torch.randn(builder.layers.shape, generator=torch.Generator().manual_seed(0))
    return Composition(model, lambda: model(x), truth, model.source)


def _acts_first(spec: tuple) -> bool:
    """Whether a block's first reader of its input is an activation."""
    if spec[0] == "residual":
        body = spec[1]["body"]
        return "act" in spec[1]["before"] or (bool(body) and _acts_first(body[0]))
    return spec[0] in ("gate", "film")


class _Builder:
    def __init__(self, layers: Layers) -> None:
        self.layers = layers

    def build(self, blocks: list[tuple], heads: int) -> Truth:
        layers = self.layers
        x = layers.weight("stem", Value("x"), into=3)
        for index, block in enumerate(blocks):
            x = self.block(f"b{index}", block, x)
        pooled = layers.pool(x)
        outs = [layers.dense(f"head{index}", pooled, layers.width, 2) for index in range(heads)]
        for out in outs:
            layers.follow(out, "linear")
        layers.finish(outs)
        return layers.truth(outputs=tuple(f"head{index}.weight" for index in range(heads)))

    def block(self, name: str, spec: tuple, x: Value) -> Value:
        make: dict[str, Callable[..., Value]] = {
            "layer": self._layer,
            "mlp": self._mlp,
            "glu": self.layers.gated_unit,
            "attention": self.layers.attention,
            "gate": self._gate,
            "film": self._film,
            "concat": self._concat,
            "parallel": self._parallel,
            "together": self._together,
            "residual": self._residual,
        }
        return make[spec[0]](name, x, *spec[1:])

    def _layer(self, name: str, x: Value, norm: str, between: str, act: str | None) -> Value:
        x = self.layers.weight(f"{name}w", x)
        x = self.layers.norm(f"{name}n", self.layers.call(between, x), norm)
        return self.layers.activation(f"{name}a", x, act) if act else x

    def _mlp(self, name: str, x: Value, between: str, act: str) -> Value:
        layers = self.layers
        x = layers.weight(f"{name}up", x, out=2 * layers.width)
        x = self.layers.activation(f"{name}a", layers.call(between, x), act)
        return layers.weight(f"{name}down", x, into=2 * layers.width)

    def _closed(self, name: str, x: Value) -> Value:
        """No weight layer still waits for what follows it."""
        return self.layers.activation(f"{name}closing", x, "F.relu({})") if x.open else x

    def _gate(self, name: str, x: Value, kind: str, act: str) -> Value:
        if x.open:
            x = self.layers.activation(f"{name}a", x, act)
        return self.layers.gate(f"{name}g", x, kind)

    def _film(self, name: str, x: Value, act: str) -> Value:
        if x.open:
            x = self.layers.activation(f"{name}a", x, act)
        return self.layers.film(f"{name}f", x)

    def _concat(self, name: str, x: Value, layer: tuple) -> Value:
        y = self.block(f"{name}i", layer, x)
        self.layers.follow(x, "linear")
        return self.layers.joined(f"{name}w", x, y)

    def _parallel(self, name: str, x: Value, one: tuple, two: tuple, act: str | None) -> Value:
        a, b = self.block(f"{name}l", one, x), self.block(f"{name}r", two, x)
        y = self.layers.call("{} + {}", a, b)
        return self.layers.activation(f"{name}a", y, act) if act else y

    def _before(self, name: str, x: Value, kind: str) -> Value:
        y = self.layers.norm(f"{name}pre", x, next((k for k in kind.split() if k != "act"), ""))
        return self.layers.activation(f"{name}pa", y, "F.relu({})") if "act" in kind else y

    def _together(self, name: str, x: Value, norm: str, bodies: tuple, addition: str) -> Value:
        layers = self.layers
        y = self._before(name, x, norm)
        one, two = (self.block(f"{name}{k}", body, y) for k, body in zip("lr", bodies, strict=True))
        return layers.add(x, x, (one, two), addition)

    def _residual(self, name: str, x: Value, spec: dict) -> Value:
        layers = self.layers
        if _acts_first(("residual", spec)):
            x = self._closed(name, x)
        for _ in range(spec["times"]):
            y = self._before(name, x, spec["before"])
            for index, inner in enumerate(spec["body"]):
                y = self.block(f"{name}_{index}", inner, y)
            y = self.block(f"{name}e", spec["end"], y)
            if spec["gate"]:
                if y.open:
                    # what a gate reads, it reads as it is; the sum ends the search as well
                    layers.follow(y, "linear")
                    y = Value(y.var, (), y.ends, y.depth)
                y = layers.gate(f"{name}g", y, spec["gate"])
            y = layers.scale(f"{name}s", y, spec["scale"])
            skip = x
            # one layer on each side would be two parallel paths
            if spec["shortcut"] and y.depth - x.depth > 1:
                skip = layers.weight(f"{name}p", x, shortcut=True)
                skip = layers.norm(
                    f"{name}pn", skip, "norm" if spec["shortcut"] == "normed" else ""
                )
            x = layers.add(x, skip, (y,), spec["addition"])
            x = layers.norm(f"{name}post", x, "norm" if "norm" in spec["after"] else "")
            if "act" in spec["after"]:
                x = self.layers.activation(f"{name}poa", x, "F.relu({})")
        return x
