"""The calls of a forward pass as a graph: what comes before what, how deep, what is a gate."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from lightning_init.architecture.calls import Op
from lightning_init.architecture.composed import is_written_norm
from lightning_init.architecture.operations import (
    ARITHMETIC,
    BOUNDED,
    CONVERSIONS,
    LOOKUPS,
    MERGES,
    MOVEMENTS,
    PRODUCTS,
)


class Graph:
    """Ancestors as bit sets (bit i: call i), depths, and the ways that values take.

    Attributes:
        ops: The calls, in execution order.
        depth: Weight layers on the longest way to and including each call.
        weights: The weight layers, as a bit set.
    """

    def __init__(self, ops: list[Op]) -> None:
        self.ops = ops
        self.depth: list[int] = []
        self.weights = 0
        self._before: list[int] = []
        learned = 0
        for index, op in enumerate(ops):
            if "shapes" in op.seen and not op.seen["normalized"]:
                op.seen["normalized"] = is_written_norm(ops, op)
            mask, depth = 0, 0
            for source in op.inputs:
                mask |= self._before[source] | 1 << source
                depth = max(depth, self.depth[source])
            self._before.append(mask)
            layers = op.seen.get("layers", 1) if op.is_weight_layer else 0
            self.depth.append(depth + layers)
            self.weights |= int(op.is_weight_layer) << index
            made = op.is_weight_layer or op.kind in LOOKUPS or op.kind == "learned"
            learned |= int(made) << index
        self._learned = learned

    def past(self, index: int) -> int:
        """The call itself and everything before it."""
        return self._before[index] | 1 << index

    def is_learned(self, index: int) -> bool:
        """Whether a weight layer or a lookup made the result, or it came from outside unchanged."""
        return bool(self.past(index) & self._learned)

    def signals(self, index: int) -> list[int]:
        """The inputs of a call without constants and masks: where its signal comes from."""
        inputs = list(self.ops[index].inputs)
        if len(inputs) > 1:
            learned = [source for source in inputs if self.is_learned(source)]
            inputs = learned or [s for s in inputs if self.ops[s].kind != "input"] or inputs
        return inputs

    def values(self, index: int) -> list[int]:
        """The inputs of a call whose values it passes on: no gates, no attention weights."""
        op, inputs = self.ops[index], self.signals(index)
        if op.kind == "scaled_dot_product_attention":
            value = op.seen["parts"][2][0]
            return [value.op] if hasattr(value, "op") else []
        if op.kind in ("mul", "addcmul", "lerp") or op.kind in PRODUCTS:
            open_ = [source for source in inputs if not self.is_gate(source)]
            return self._unstretched(index, open_ or inputs)
        return inputs

    def _unstretched(self, index: int, factors: list[int]) -> list[int]:
        """The factors of an elementwise product that have its size, if any is stretched to it."""
        if self.ops[index].kind in PRODUCTS or len(factors) < 2:
            return factors
        outs = {source: self.ops[source].out for source in (index, *factors)}
        sizes = {source: 0 if out is None else out.numel() for source, out in outs.items()}
        return [source for source in factors if sizes[source] >= sizes[index]] or factors

    def is_gate(self, index: int) -> bool:
        """Whether a signal is the result of a sigmoid or softmax, at most seen from another side."""
        for _ in range(32):
            op = self.ops[index]
            if op.kind in BOUNDED:
                return True
            alone = len(op.inputs) == 1
            if (op.kind in _GATE_KEEPS and op.inputs) or (op.kind in _GATE_BENDS and alone):
                index = op.inputs[0]
            else:
                return False
        return False

    @cached_property
    def reaches_layer(self) -> list[bool]:
        """Whether a weight layer follows each call, other than one whose result is only a gate."""
        found = [False] * len(self.ops)
        for index in range(len(self.ops) - 1, -1, -1):
            found[index] = any(
                found[consumer] or (self.ops[consumer].is_weight_layer and self.ends[consumer])
                for consumer in self.ops[index].consumers
            )
        return found

    @cached_property
    def ends(self) -> list[bool]:
        """Whether a call's values reach an end otherwise than as a gate."""
        found = [False] * len(self.ops)
        for index in range(len(self.ops) - 1, -1, -1):
            consumers = self.ops[index].consumers
            found[index] = not consumers or any(
                found[consumer] and (index in self.values(consumer) or self.attends(consumer))
                for consumer in consumers
            )
        return found

    @cached_property
    def numbered(self) -> tuple[list[Op], list[int]]:
        """The weight layers whose rows are numbered, and their first numbers."""
        layers = [op for op in self.ops if "rows" in op.seen]
        return layers, [op.base for op in layers]

    @cached_property
    def twins(self) -> dict[int, set[int]]:
        """Rows of one layer that were mixed two by two, as rotary embedding does."""
        found: dict[int, set[int]] = {}
        for op in self.ops:
            if "twins" not in op.seen:
                continue
            first, second = (rows.flatten() for rows in op.seen["twins"])
            mixed = first != second
            for one, two in zip(first[mixed].tolist(), second[mixed].tolist(), strict=True):
                found.setdefault(one, set()).add(two)
        return found

    def attends(self, index: int) -> bool:
        """Whether signals meet in a call, as query, key and value do."""
        op = self.ops[index]
        return op.kind == "scaled_dot_product_attention" or "meet" in op.seen

    def is_output(self, index: int) -> bool:
        """Whether a weight layer's values reach the end, and no weight layer follows."""
        return (
            self.ops[index].is_weight_layer and not self.reaches_layer[index] and self.ends[index]
        )

    def longest_way(self, start: int, end: int) -> int:
        """Weight layers on the longest way from one call to another that is not a gate's."""
        distance = {start: 0}
        for index in range(start + 1, end + 1):
            op = self.ops[index]
            way = self.signals(index) if self.attends(index) else self.values(index)
            sources = op.inputs if op.kind in MERGES else way
            before = [distance[source] for source in sources if source in distance]
            if before:
                layers = op.seen.get("layers", 1) if op.is_weight_layer else 0
                distance[index] = max(before) + layers
        return distance.get(end, 0)

    def onward(self, index: int, through: frozenset[str]) -> Iterator[int]:
        """The calls that a result reaches through calls of the given kinds, these excluded."""
        waiting, seen = list(self.ops[index].consumers), set()
        while waiting:
            consumer = waiting.pop()
            if consumer in seen:
                continue
            seen.add(consumer)
            if self.ops[consumer].kind in through and not self.ops[consumer].is_weight_layer:
                waiting += self.ops[consumer].consumers
            else:
                yield consumer

    def meets(self, index: int) -> bool:
        """Whether a result is a product of two signals, at most scaled, shifted or masked."""
        for _ in range(32):
            op = self.ops[index]
            if op.kind in PRODUCTS:
                return "meet" in op.seen
            if op.kind not in SAME or not op.inputs:
                return False
            index = self.signals(index)[0]
        return False


SAME = MOVEMENTS | CONVERSIONS | ARITHMETIC | {"dropout"}
_GATE_BENDS = frozenset({"mul", "exp", "sqrt", "neg", "pow", "add", "sub"})  # exp(-c * gate)
_GATE_KEEPS = (
    {"rsub"} | MOVEMENTS | CONVERSIONS | {"div", "topk", "dropout", "masked_fill", "where", "sum"}
)
