"""Lazy layers: looked at with their shapes, and afterwards lazy as before."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter, is_lazy

from lightning_init import analyze
from lightning_init.architecture.lazy import has_lazy, keep_lazy, materialize_
from lightning_init.architecture.preserve import preserved
from tests.zoo import noise


def lazy():
    return nn.Sequential(
        nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)
    )


def eager():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    )


def run(model):
    return lambda: model(noise(5, 2, 8, 8)).sum()


def everything(model):
    """Classes, attributes, hooks and identities of all modules and tensors."""
    held = []
    for module in model.modules():
        for name, value in module.__dict__.items():
            if name != "_lightning_init":
                plain = list(value.items()) if isinstance(value, dict) else value
                held.append((type(module).__name__, name, repr(plain)))
    tensors = [*model.parameters(), *model.buffers()]
    return held, [(id(t), type(t), t.dtype, t.device) for t in tensors]


def test_a_pass_inside_preserved_leaves_a_model_lazy():
    model = lazy()
    before, random = everything(model), torch.get_rng_state()
    with preserved(model):
        run(model)().backward()
        assert type(model[4]) is nn.Linear
        assert model[4].weight.grad is not None
    assert before == everything(model)
    assert torch.equal(random, torch.get_rng_state())
    assert type(model[1].running_mean) is UninitializedBuffer
    assert type(model[0].weight) is UninitializedParameter
    assert model[4].weight.grad is None
    assert model[4].in_features == 0
    model(noise(1, 2, 4, 4)).sum().backward()  # and other shapes may come
    assert model[4].weight.shape == (3, 16)


def test_an_error_in_the_middle_leaves_a_model_lazy():
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(5, 2))
    before = everything(model)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        analyze(model, lambda: model(noise(2, 3)))
    assert before == everything(model)


def test_analysis_gives_the_facts_of_the_layers_to_be():
    model, twin = lazy(), eager()
    before, random = everything(model), torch.get_rng_state()
    found, expected = analyze(model, run(model)), analyze(twin, run(twin))
    assert before == everything(model)
    assert torch.equal(random, torch.get_rng_state())
    for info in expected:
        assert found[info.name] == replace(info, flags=info.flags | {"lazy"})
    assert found.traced


def test_without_a_pass_there_are_no_shapes():
    found = analyze(lazy())
    assert {info.shape for info in found} == {()}
    assert {info.provenance for info in found} == {"fresh"}


def test_materializing_moves_nothing_else():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.Dropout())
    parameters = list(model.parameters())
    statistics = {n: b.clone() for n, b in model[0].named_buffers()}
    random = torch.get_rng_state()
    materialize_(model, lambda: model(noise(8, 3)))
    assert torch.equal(random, torch.get_rng_state())
    assert not has_lazy(model)
    assert [type(module) for module in model[1:3]] == [nn.Linear, nn.BatchNorm1d]
    assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]
    assert all(torch.equal(b, statistics[n]) for n, b in model[0].named_buffers())
    assert int(model[2].num_batches_tracked) == 0
    assert bool((model[2].running_mean == 0).all())
    assert not model[1]._forward_pre_hooks
    assert float(model[1].weight.detach().abs().max()) <= 3**-0.5
    assert all(parameter.grad is None for parameter in parameters)


def test_layers_that_the_pass_does_not_reach_stay_lazy():
    model = nn.ModuleList([nn.LazyLinear(4), nn.LazyLinear(2)])
    materialize_(model, lambda: model[0](noise(2, 3)))
    assert [is_lazy(layer.weight) for layer in model] == [False, True]
    model[1](noise(2, 5))


def test_a_layer_used_twice_and_one_with_keywords():
    class Scaled(nn.LazyLinear):
        cls_to_become = None

        def initialize_parameters(self, input, scale=1.0):
            super().initialize_parameters(input)
            self.scale = scale

        def forward(self, input, scale=1.0):
            return super().forward(input) * scale

    model = nn.ModuleList([nn.LazyLinear(3), Scaled(3)])
    materialize_(model, lambda: model[1](input=model[0](model[0](noise(2, 3))), scale=2.0))
    assert not has_lazy(model)
    assert model[1].scale == 2.0


def test_a_model_can_be_made_lazy_again():
    model = lazy()
    before, undo = everything(model), keep_lazy(model)
    materialize_(model, run(model))
    assert before != everything(model)
    for restore in undo:
        restore()
    assert before == everything(model)
