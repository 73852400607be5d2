"""A tensor has one name, whatever wraps the model."""

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from lightning_init import analyze, audit, make_plan
from lightning_init.architecture.names import canonical, named_tensors, unwrap
from tests.zoo import ZOO, noise


def names(model):
    return [info.names for info in analyze(model)]


def compiled(model):
    return torch.compile(model, backend="eager")


WRAPPERS = {
    "compile": compiled,
    "data parallel": nn.DataParallel,
    "compile in data parallel": lambda m: nn.DataParallel(compiled(m)),
    "data parallel in compile": lambda m: compiled(nn.DataParallel(m)),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("model", ["relu_mlp", "nanogpt"])
def test_wrappers_do_not_change_names(wrap, model):
    plain, _ = ZOO[model]()
    wrapped = wrap(plain)
    assert unwrap(wrapped) is plain
    assert names(wrapped) == names(plain)
    assert {id(p) for _, p in named_tensors(wrapped)} == {id(p) for p in plain.parameters()}


def test_wrapped_children():
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 2)))
    plain = names(model)
    model[0] = checkpoint_wrapper(model[0])
    model[1] = compiled(model[1])
    assert names(model) == plain


def test_a_compiled_model_is_analyzed_by_running_it():
    plain, _ = ZOO["relu_mlp"]()
    wrapped = compiled(plain)
    seen = analyze(wrapped, lambda: wrapped._orig_mod(noise(4, 12)))
    assert seen["3.weight"].usage.depth == 2


def test_names_that_only_look_like_wrappers_stay():
    assert canonical("module.weight") == "module.weight"
    assert canonical("_orig_mod.a._fsdp_wrapped_module.b") == "a.b"


def test_each_tensor_once_with_all_names_in_registration_order():
    model, _ = ZOO["nanogpt"]()
    found = named_tensors(model)
    assert [n[0] for n, _ in found] == [n for n, _ in model.named_parameters()]
    assert found[0][0] == ("wte.weight", "head.weight")


def test_a_shared_module_is_one_module():
    layer = nn.Linear(2, 2)
    model = nn.ModuleDict({"a": layer, "b": layer})
    assert names(model) == [("a.weight", "b.weight"), ("a.bias", "b.bias")]


@pytest.mark.parametrize("call", [analyze, make_plan, audit])
def test_what_is_not_a_call_or_not_a_model_is_refused_in_words(call):
    model = nn.Linear(2, 2)
    with pytest.raises(TypeError, match=r"lambda: model\(batch\), but got Tensor"):
        call(model, forward=torch.ones(1))
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, but got 'x'"):
        call("x", forward=lambda: None)
