"""Two worlds of compositions: sequences of tokens, and images."""

from __future__ import annotations

from torch import nn

from tests.compositions_layers import Layers, Value
from tests.truth_kinds import fused


class Tokens(Layers):
    """(batch, time, features), linear layers and attention."""

    shape = (2, 5, 3)
    dim = -1

    def weight(
        self, name: str, x: Value, into: int = 0, out: int = 0, shortcut: bool = False
    ) -> Value:
        return self.dense(name, x, into or self.width, out or self.width)

    def norm_module(self) -> nn.Module:
        return nn.LayerNorm(self.width)

    def pooled(self, x: Value) -> Value:
        return self.call("{}.mean(1, keepdim=True)", x)

    def pool(self, x: Value) -> Value:
        return self.call("{}.mean(1)", x)

    def attention(self, name: str, x: Value, form: str) -> Value:
        self.follow(x, "linear")
        if form == "module":
            return self._attention_module(name, x)
        width, keys = self.width, 1 if form == "grouped" else 2
        inner = width * keys // 2
        if form in ("separate", "grouped"):
            parts = {}
            for part, size, heads in (("query", width, 2), ("key", inner, keys)):
                parts[part] = self.dense(f"{name}{part[0]}", x, width, size)
                self.attends[f"{name}{part[0]}.weight"] = f"{part}/{heads}"
            parts["value"] = self.dense(f"{name}v", x, width, inner)
            self.attends[f"{name}v.weight"] = f"value/{keys}"
            variables = [value.var for value in parts.values()]
            opened = tuple(parts.values())
            q, k, v = (
                self.line(f"{var}.unflatten(2, (-1, {width // 2})).transpose(1, 2)")
                for var in variables
            )
        else:
            both = self.dense(f"{name}qkv", x, width, 3 * width)
            opened = (both,)
            self.attends[f"{name}qkv.weight"] = "query|key|value/2"
            q, k, v = self._cut(name, both, form)
        for value in opened:
            self.follow(value, "linear")
        if keys == 1:
            k, v = (self.line(f"{var}.expand(-1, 2, -1, -1)") for var in (k, v))
        if len(name) % 2:
            context = self.line(f"F.scaled_dot_product_attention({q}, {k}, {v})")
        else:
            scores = self.line(f"({q} @ {k}.transpose(-2, -1) / 2.0).softmax(dim=-1)")
            context = self.line(f"{scores} @ {v}")
        merged = self.line(f"{context}.transpose(1, 2).flatten(2)")
        self.attends[f"{name}o.weight"] = "out/2"
        return self.dense(f"{name}o", Value(merged, (), (), x.depth + 1), width, width)

    def _cut(self, name: str, both: Value, form: str) -> list[str]:
        """Query, key and value one after the other, or each head's three side by side."""
        width, half = self.width, self.width // 2
        if form == "fused":
            self.rows[f"{name}qkv.weight"] = fused(width)
            cut = self.line(f"{both.var}.split({width}, dim=-1)")
            return [
                self.line(f"{cut}[{i}].unflatten(2, (2, {half})).transpose(1, 2)") for i in range(3)
            ]
        self.rows[f"{name}qkv.weight"] = tuple(
            (part, tuple((3 * half * h + half * i, 3 * half * h + half * (i + 1)) for h in (0, 1)))
            for i, part in enumerate(("query", "key", "value"))
        )
        cut = self.line(f"{both.var}.unflatten(2, (2, 3, {half})).permute(3, 0, 2, 1, 4)")
        return [self.line(f"{cut}[{i}]") for i in range(3)]

    def _attention_module(self, name: str, x: Value) -> Value:
        self.parts.setdefault(name, nn.MultiheadAttention(self.width, 2, batch_first=True))
        weight, out = f"{name}.in_proj_weight", f"{name}.out_proj.weight"
        self.roles |= {weight: "weight", out: "weight"}
        self.roles |= {f"{name}.in_proj_bias": "bias", f"{name}.out_proj.bias": "bias"}
        self.attends |= {weight: "query|key|value/2", out: "out/2"}
        self.rows[weight] = fused(self.width)
        self.kinds[weight] = "linear"
        var = self.line(f"self.{name}({x.var}, {x.var}, {x.var}, need_weights=False)[0]")
        return Value(var, (out,), (out,), x.depth + 2)


class Images(Layers):
    """(batch, channels, height, width), convolutions; what would attend is a bottleneck."""

    shape = (2, 3, 6, 6)
    dim = 1

    def weight(
        self, name: str, x: Value, into: int = 0, out: int = 0, shortcut: bool = False
    ) -> Value:
        into, out = into or self.width, out or self.width
        size = 1 if shortcut or len(self.parts) % 3 == 0 else 3
        groups = into if into == out and len(self.parts) % 4 == 0 and size == 3 else 1
        conv = nn.Conv2d(into, out, size, padding=size // 2, groups=groups, bias=size == 1)
        return self.matrix(name, x, self.parts.get(name, conv))

    def norm_module(self) -> nn.Module:
        return nn.BatchNorm2d(self.width) if len(self.parts) % 2 else nn.GroupNorm(2, self.width)

    def pooled(self, x: Value) -> Value:
        return self.call("{}.mean((2, 3), keepdim=True)", x)

    def pool(self, x: Value) -> Value:
        return self.call("F.adaptive_avg_pool2d({}, 1).flatten(1)", x)

    def attention(self, name: str, x: Value, form: str) -> Value:
        x = self.weight(f"{name}1", x, out=4, shortcut=True)
        x = self.follow(self.call("F.relu({})", x), "relu")
        x = self.weight(f"{name}2", x, into=4, out=4)
        x = self.follow(self.call("F.relu({})", x), "relu")
        return self.weight(f"{name}3", x, into=4, shortcut=True)
