"""Sets of neurons: permuting one, wherever it is said to occur, leaves the function as it is."""

import pytest
import torch
from torch import Tensor, nn

from lightning_init import Role, analyze
from lightning_init.architecture.names import named_tensors
from lightning_init.architecture.plain import plain
from lightning_init.strategies.axes import Pair, axes_of, by_use, ends
from lightning_init.strategies.neurons import Choice
from tests.zoo import ZOO

# Layers over positions, groups, uneven parts, experts, features side by side before flattening: nothing is said.
SILENT = {
    *("bare", "depthwise", "densenet", "generator", "bi_lstm", "gru", "experts", "swin"),
    *("sparse_experts", "stacked_experts", "wav2vec2", "mamba", "grouped_attention"),
}
FED = {"encoder"}  # the batch itself is the stream
ROTARY = {"llama"}  # pairs of features turn together
HEADLESS = {"feature_gate"}  # what comes out are the neurons themselves


def flat(out):
    if isinstance(out, Tensor):
        return [out]
    if isinstance(out, (list, tuple)):
        return [t for item in out for t in flat(item)]
    return [t for item in out.values() for t in flat(item)] if isinstance(out, dict) else []


def doubled(architecture):
    """A donor for each tensor, twice as wide along each set of neurons."""
    pairs = []
    for info in architecture:
        sizes = [
            size * 2 if at < len(info.channels) and info.channels[at] >= 0 else size
            for at, size in enumerate(info.shape)
        ]
        pairs.append(Pair(info, torch.empty(sizes)))
    return pairs


@pytest.mark.parametrize("name", ZOO)
def test_permuted_neurons_compute_the_same(name):
    module, forward = ZOO[name]()
    module.eval()
    architecture = analyze(module, forward)
    pairs = doubled(architecture)
    seen = any(info.channels for info in architecture)
    assert seen == (name not in SILENT)
    if not seen:
        return
    axes = by_use(pairs)
    assert axes is not None
    infos = {info.name: info for info in architecture}
    stay = {*ends(axes, pairs), *(axis.key for axis in axes.values() if axis.kind == "rows")}
    base, heads = {}, {}
    for (tensor, dim), axis in axes.items():
        base[axis.key] = infos[tensor].shape[dim] // axis.copies
        usage = infos[tensor].usage
        if (
            axis.kind == "out"
            and usage
            and set(usage.attention.split("|")) & {"query", "key", "value"}
        ):
            heads[axis.key] = min(heads.get(axis.key, 999), max(1, usage.num_heads))
            if name in ROTARY:
                stay.add(axis.key)
        if name in FED and infos[tensor].role is Role.NORM_SCALE:
            stay.add(axis.key)
    generator = torch.Generator().manual_seed(0)
    orders = {}
    for key, size in base.items():
        count = heads.get(key, 1)
        width = size // count
        order = torch.randperm(width, generator=generator)
        orders[key] = torch.cat([order + head * width for head in range(count)])
    with torch.no_grad(), plain(module):
        before = [t.clone() for t in flat(forward())]
        moved = 0
        for names, parameter in named_tensors(module):
            for dim in range(parameter.ndim):
                axis = axes.get((names[0], dim))
                if axis is None or axis.key in stay:
                    continue
                size = base[axis.key]
                choice = Choice(orders[axis.key], torch.arange(size), (size, size)).spread(axis)
                moved += not torch.equal(choice.source, choice.target)
                parameter.copy_(parameter.index_select(dim, choice.source))
        after = flat(forward())
    assert moved
    assert before
    for one, two in zip(before, after, strict=True):
        if name in HEADLESS:
            one, two = one.sort(-1).values, two.sort(-1).values
        if one.is_floating_point() and one.shape == two.shape:
            assert torch.allclose(one, two, atol=1e-4 * max(1.0, float(one.abs().max())))


def test_layers_of_equal_size_are_not_confused():
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    seen = analyze(net, lambda: net(torch.ones(2, 8)))
    (i, a), (b, c), (d, o) = (seen[f"{k}.weight"].channels[::-1] for k in (0, 2, 4))
    assert (a, c) == (b, d)
    assert len({i, a, c, o}) == 4
    assert seen["0.bias"].channels == (a,)


def test_without_a_forward_pass_sizes_tell():
    net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 5))
    wide = nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.Linear(16, 7)).state_dict()
    pairs = [Pair(info, wide[info.name]) for info in analyze(net)]
    axes = axes_of(pairs)
    assert len({axes[at].key for at in [("0.weight", 0), ("1.bias", 0), ("2.weight", 1)]}) == 1
    assert ends(axes, pairs) == {axes["2.bias", 0].key: "other outputs"}


def test_a_flattened_map_and_gates_are_copies():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4 * 9, 6)
            self.lstm, self.out = nn.LSTM(6, 5), nn.Linear(5, 2)

        def forward(self, x):
            return self.out(self.lstm(self.fc(self.conv(x).flatten(1)))[0])

    net = Net()
    seen = analyze(net, lambda: net(torch.ones(2, 1, 5, 5)))
    axes = by_use(doubled(seen))
    assert axes is not None
    assert (axes["fc.weight", 1].copies, axes["fc.weight", 1].inner) == (9, True)
    assert axes["fc.weight", 1].key == axes["conv.bias", 0].key
    assert axes["lstm.weight_hh_l0", 0].copies == axes["lstm.bias_ih_l0", 0].copies == 4
    assert axes["lstm.weight_hh_l0", 1].key == axes["out.weight", 1].key
    assert seen["lstm.weight_hh_l0"].role is Role.RECURRENT
