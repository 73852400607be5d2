"""Which modules compute the residual branches: where something can be added to a branch.

A branch is a set of calls. Its host is the module whose result is that of the branch's last weight
layer or norm; what follows until the sum (dropout, a gate, a view) comes after it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from lightning_init.architecture.graph import Graph
from lightning_init.architecture.layers import is_norm
from lightning_init.architecture.lazy import has_lazy
from lightning_init.architecture.names import check_forward
from lightning_init.architecture.operations import (
    ARITHMETIC,
    CONVERSIONS,
    CONVOLUTIONS,
    MOVEMENTS,
    NORMS,
)
from lightning_init.architecture.params import Architecture, BranchInfo
from lightning_init.architecture.plain import plain
from lightning_init.architecture.residual import Branch, residual_branches
from lightning_init.architecture.trace import ModuleCall, trace

_WITHIN_NORMS = MOVEMENTS | CONVERSIONS | ARITHMETIC | {"dropout", "mean", "var", "std"}


@dataclass(frozen=True, slots=True)
class Host:
    """A module that computes part of a residual branch.

    Attributes:
        name: Its name in the model.
        module: The module.
        branch: Index of the branch, of the first one if it serves several.
        channels: Shape of a tensor with one number for each channel of its result.
    """

    name: str
    module: nn.Module
    branch: int
    channels: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Hosts:
    """The modules that compute the residual branches of a model.

    Attributes:
        ends: Those whose results end a branch, in execution order.
        layers: Those that hold one weight layer of a branch each, in execution order.
        architecture: The branches themselves.
        post_norm: Whether nothing but a norm takes the sums, as in LN(x + f(x)).
    """

    ends: tuple[Host, ...]
    layers: tuple[Host, ...]
    architecture: Architecture
    post_norm: bool


def branch_hosts(model: nn.Module, forward: Callable[[], object], *, layers: bool = False) -> Hosts:
    """Find the modules that compute the residual branches, from one forward pass.

    Args:
        model: Any module, not wrapped.
        forward: A call without arguments that runs the model once.
        layers: Whether every weight layer of a branch must have a module of its own, too.

    Raises:
        ValueError: If a branch ends in no module, or in one that is also used elsewhere.

    Example:
        >>> import torch
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> found = branch_hosts(layer, lambda: layer(torch.ones(1, 4, 8)))
        >>> [host.name for host in found.ends], found.post_norm
        (['self_attn', 'linear2'], True)
    """
    check_forward(forward)
    if has_lazy(model):
        raise ValueError("the model has lazy layers: run it once on a batch before you change it")
    calls: list[ModuleCall] = []
    with plain(model):
        ops = trace(model, forward, calls)
    graph = Graph(ops)
    found = residual_branches(graph)
    names = {id(module): name for name, module in model.named_modules()}
    search = _Search(graph, found, calls, names)
    ends = search.ends()
    described = tuple(BranchInfo(b.layers, b.stream, b.attends, b.crosses) for b in found)
    return Hosts(
        ends,
        search.layers() if layers else (),
        Architecture((), len(found), traced=True, branches=described),
        search.post_norm(),
    )


def channels_of(module: nn.Module) -> tuple[int, ...] | None:
    """Shape of a tensor with one number per channel of a layer's result, None if unknown.

    Example:
        >>> channels_of(nn.Conv2d(3, 8, 3)), channels_of(nn.Linear(3, 8)), channels_of(nn.ReLU())
        ((8, 1, 1), (8,), None)
    """
    match module:
        case nn.modules.conv._ConvNd():
            return (module.out_channels, *[1] * len(module.kernel_size))
        case nn.BatchNorm2d() | nn.InstanceNorm2d():
            return (module.num_features, 1, 1)
        case nn.BatchNorm3d() | nn.InstanceNorm3d():
            return (module.num_features, 1, 1, 1)
        case nn.LayerNorm() | nn.RMSNorm():
            return (module.normalized_shape[-1],)
        case nn.Linear():
            return (module.out_features,)
        case nn.MultiheadAttention():
            return (module.embed_dim,)
    width = getattr(module, "nf", None)  # Conv1D of transformers
    return (width,) if isinstance(width, int) else None


class _Search:
    """The branches of a forward pass beside the calls of its modules."""

    def __init__(
        self, graph: Graph, branches: list[Branch], calls: list[ModuleCall], names: dict[int, str]
    ) -> None:
        self.graph, self.branches, self.calls, self.names = graph, branches, calls, names
        # A module that neither has parameters nor normalizes only passes a branch on.
        self.able = [
            call
            for call in calls
            if call.out >= 0
            and (is_norm(call.module) or any(True for _ in call.module.parameters()))
        ]

    def ends(self) -> tuple[Host, ...]:
        """The modules that end branches."""
        found: list[tuple[ModuleCall, int, int]] = []
        for number, branch in enumerate(self.branches):
            members = {*branch.ends, *branch.after}
            for total in branch.sums:
                chain = self._chain(members, total)
                ends = chain & set(branch.ends)
                call = self._covering(chain, ends)
                if call is not None:
                    found.append((call, number, max(ends)))
                    continue
                for end in sorted(ends):
                    call = self._covering(chain, {end})
                    if call is None:
                        raise ValueError(self._homeless(number, end))
                    found.append((call, number, end))
        hosts = self._hosts(found)
        for host in hosts:
            used = sum(call.module is host.module for call in self.calls)
            ended = {(c.start, c.stop) for c, _, _ in found if c.module is host.module}
            if used > len(ended):
                raise ValueError(
                    f"{host.name} ends residual branch {host.branch + 1}, but is also used "
                    "elsewhere: give the branch a last layer of its own"
                )
        return hosts

    def layers(self) -> tuple[Host, ...]:
        """The modules that hold the weight layers of branches."""
        found = []
        for number, branch in enumerate(self.branches):
            for op in sorted(branch.inside):
                around = [call for call in self.calls if call.start <= op < call.stop]
                call = max(around, key=lambda call: call.start, default=None)
                if call is None or not self._holds_one(call):
                    raise ValueError(self._homeless(number, op))
                found.append((call, number, op))
        return self._hosts(found)

    def post_norm(self) -> bool:
        """Whether nothing but a norm takes the sums of the branches."""
        sums = {total for branch in self.branches for total in branch.sums}
        ends = {total for branch in self.branches for total in branch.sums[-1:]}
        return all(self._feeds_norm(total, sums) for total in ends)

    def _feeds_norm(self, total: int, sums: set[int]) -> bool:
        waiting, seen = list(self.graph.ops[total].consumers), set()
        normed = False
        while waiting:
            index = waiting.pop()
            if index in seen:
                continue
            seen.add(index)
            op = self.graph.ops[index]
            if op.kind in NORMS or op.seen.get("normalized"):
                normed = True
            elif index in sums or op.kind not in _WITHIN_NORMS:
                return False
            else:
                waiting += op.consumers
        return normed

    def _chain(self, members: set[int], total: int) -> set[int]:
        """The calls of a branch that lead to one of its sums."""
        chain: set[int] = set()
        waiting = [index for index in self.graph.ops[total].inputs if index in members]
        while waiting:
            index = waiting.pop()
            if index not in chain:
                chain.add(index)
                waiting += [source for source in self.graph.ops[index].inputs if source in members]
        return chain

    def _covering(self, chain: set[int], ends: set[int]) -> ModuleCall | None:
        """The innermost module whose result is that of these weight layers, norms included."""
        ops = self.graph.ops
        after = [i for i in chain if all(self.graph.past(i) >> end & 1 for end in ends)]
        if not after:
            return None
        norms = [i for i in after if ops[i].kind in NORMS or ops[i].seen.get("normalized")]
        first = max([*norms, min(after)])
        fits = [call for call in self.able if call.out in after and call.out >= first]
        return min(fits, key=lambda call: (call.out, -call.start), default=None)

    def _holds_one(self, call: ModuleCall) -> bool:
        if isinstance(call.module, nn.MultiheadAttention):
            return True  # its parts are no modules that are called
        inside = [i for i in range(call.start, call.stop) if self.graph.weights >> i & 1]
        return len(inside) == 1

    def _hosts(self, found: list[tuple[ModuleCall, int, int]]) -> tuple[Host, ...]:
        hosts: dict[int, Host] = {}
        for call, number, layer in found:
            name = self.names[id(call.module)]
            channels = self._channels(layer, call.out)
            hosts.setdefault(id(call.module), Host(name, call.module, number, channels))
        return tuple(hosts.values())

    def _channels(self, layer: int, out: int) -> tuple[int, ...]:
        op, result = self.graph.ops[layer], self.graph.ops[out].out
        if result is None or not result.ndim:
            return (1,)
        if op.kind in CONVOLUTIONS and op.out is not None and op.out.ndim == result.ndim:
            sides = int(op.kind[-2])
            return (int(result.shape[-1 - sides]), *[1] * sides)
        return (int(result.shape[-1]),)

    def _homeless(self, number: int, index: int) -> str:
        around = [call for call in self.calls if call.start <= index < call.stop]
        inner = max(around, key=lambda call: call.start, default=None)
        where = f" in {self.names[id(inner.module)] or 'the model'}" if inner else ""
        return (
            f"a layer of residual branch {number + 1} of {len(self.branches)} is no module of its "
            f"own: {self.graph.ops[index].kind}{where} uses bare parameters. Write it as a module "
            "(nn.Linear, nn.Conv2d, ...)"
        )
