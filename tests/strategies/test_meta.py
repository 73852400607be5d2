"""Models on the meta device: planned from shapes, drawn when they have memory."""

import warnings

import pytest
import torch
from torch import nn

from lightning_init import apply_, initialize_, make_plan
from tests.zoo import ZOO


def on_meta(name):
    with torch.device("meta"):
        return ZOO[name]()[0]


@pytest.mark.parametrize("name", ["relu_mlp", "residual_cnn", "encoder", "lstm"])
@pytest.mark.parametrize("strategy", ["kaiming_normal", "orthogonal", "gpt2"])
def test_the_same_plan_and_the_same_bits_as_on_cpu(name, strategy):
    model, (twin, _) = on_meta(name), ZOO[name]()
    plan, expected = make_plan(model, strategy), make_plan(twin, strategy)
    assert [e.distribution for e in plan] == [e.distribution for e in expected]
    assert all(parameter.is_meta for parameter in model.parameters())
    apply_(twin, expected, 3)
    model.to_empty(device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of what the scheme keeps, tested below
        apply_(model, plan, 3)
    weights = dict(twin.named_parameters())
    written = {name for e in plan if e.written for name in e.info.names}
    assert written
    for name, parameter in model.named_parameters():
        assert name not in written or torch.equal(parameter, weights[name])


def test_a_forward_pass_on_meta_is_seen():
    model = on_meta("residual_cnn")
    plan = make_plan(model, "auto", forward=lambda: model(torch.zeros(4, 3, 8, 8, device="meta")))
    twin, forward = ZOO["residual_cnn"]()
    expected = make_plan(twin, "auto", forward=forward)
    assert [e.info.usage for e in plan] == [e.info.usage for e in expected]
    assert [e.distribution for e in plan] == [e.distribution for e in expected]


def test_without_memory_nothing_can_be_drawn():
    model = on_meta("relu_mlp")
    plan = make_plan(model, "normal")
    text = r"0.weight is on the meta device.*call model.to_empty\(device=...\) first"
    with pytest.raises(ValueError, match=text):
        apply_(model, plan, seed=0)
    with pytest.raises(ValueError, match=text):
        initialize_(model, "normal", seed=0)
    initialize_(model, "keep", seed=0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.token = nn.Parameter(torch.zeros(4))
        self.register_buffer("ids", torch.arange(4), persistent=False)


def test_arbitrary_memory_is_named():
    with torch.device("meta"):
        model = Net()
    plan = make_plan(model, "normal")
    assert not {e.info.name for e in plan if not e.written} ^ {"token"}
    model.to_empty(device="cpu")
    names = (
        r"token, ids, norm.running_mean, norm.running_var, norm.num_batches_tracked: made without"
    )
    with pytest.warns(UserWarning, match=names + r".*reset_running_stats\(\)"):
        apply_(model, plan, seed=0)


def test_what_was_filled_is_not_complained_about():
    with torch.device("meta"):
        model = Net()
    plan = make_plan(model, "normal")
    model.to_empty(device="cpu")
    model.norm.reset_parameters()
    with torch.no_grad():
        model.token.zero_()
        model.ids.copy_(torch.arange(4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        apply_(model, plan, seed=0)
    assert make_plan(model, "normal").meta_buffers == ()


def test_parametrized_on_meta():
    model, twin = (nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)) for _ in range(2))
    plan = make_plan(model.to("meta"), "normal")
    model.to_empty(device="cpu")
    apply_(model, plan, seed=0)
    initialize_(twin, "normal", seed=0)
    assert torch.equal(model.weight, twin.weight)


def test_a_tie_that_to_empty_has_cut_is_named():
    model, (twin, _) = on_meta("nanogpt"), ZOO["nanogpt"]()
    plan = make_plan(model, "normal")
    model.to_empty(device="cpu")
    with pytest.raises(ValueError, match=r"no tensor with the names wte.weight, head.weight.*tie"):
        apply_(model, plan, seed=0)
    model.head.weight = model.wte.weight
    apply_(model, plan, seed=0)
    initialize_(twin, "normal", seed=0)
    assert all(map(torch.equal, model.parameters(), twin.parameters()))


def test_memory_with_values_of_before_does_not_count_as_trained():
    model = on_meta("relu_mlp")
    make_plan(model, "normal")
    model.to_empty(device="cpu")
    for parameter in model.parameters():  # what allocators do: the values of something else
        parameter.data = (
            torch.outer(torch.arange(32.0), torch.arange(32.0))
            .flatten()[: parameter.numel()]
            .reshape(parameter.shape)
        )
    plan = make_plan(model, "normal")
    assert {e.info.provenance for e in plan} == {"fresh"}
    with torch.no_grad():
        model[3].weight.mul_(1.0)  # as loading does
    assert make_plan(model, "normal")["3.weight"].reason.startswith("trained or loaded")
