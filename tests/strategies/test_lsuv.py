"""LSUV: one forward pass, exact unit variance, and nothing else changes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from lightning_init import InitSpec, apply_, calibrate_, initialize_, make_plan
from lightning_init.architecture.opened import OPENED
from lightning_init.architecture.operations import MATRIX, kind
from lightning_init.strategies.distributions import Calibrated
from tests.zoo import ZOO, noise


class Outputs(TorchFunctionMode):
    """Standard deviation of what each matrix product gives, by shape of the weight."""

    def __init__(self):
        super().__init__()
        self.stds = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if kind(func) in MATRIX:
            self.stds.append(float(out.detach().double().std(correction=0)))
        return out


def stds(model, forward):
    training = model.training
    model.eval()  # without dropout
    with torch.no_grad(), Outputs() as outputs:
        forward()
    model.train(training)
    return outputs.stds


def lsuv(model, forward, seed=0, **params):
    return initialize_(model, InitSpec("lsuv", params), seed=seed, forward=forward)


@pytest.mark.parametrize(
    "name",
    [
        "relu_mlp",
        "tanh_mlp",
        "selu_mlp",
        "plain_cnn",
        "depthwise",
        "generator",
        "functional",
        "bert",
    ],
)
def test_every_calibrated_output_has_unit_std(name):
    model, forward = ZOO[name]()
    plan = lsuv(model, forward)
    found = stds(model, forward)
    calibrated = [e for e in plan if isinstance(e.distribution, Calibrated)]
    assert len(calibrated) == len(found) - 1, "all but the head"
    assert all(abs(std - 1) < 1e-5 for std in found[:-1])
    assert abs(found[-1] - 1) > 1e-3


@pytest.mark.parametrize("target", [0.25, 4.0])
def test_the_target_and_the_head(target):
    model, forward = ZOO["plain_cnn"]()
    lsuv(model, forward, scale=target, include_head=True)
    assert all(abs(std / target - 1) < 1e-5 for std in stds(model, forward))


def test_gpt2s_transposed_layers():
    model, forward = ZOO["gpt2"]()
    lsuv(model, forward)
    found = stds(model, forward)
    assert len(found) == 4 * 2 + 1
    fused = (0, 4)  # query, key and value are scaled each by itself
    assert all(abs(found[i] - 1) < 1e-5 for i in range(8) if i not in fused)
    assert all(abs(found[i] - 1) < 0.1 for i in fused)


@pytest.mark.parametrize("name", ["gpt2", "fused_gpt", "nanogpt", "encoder"])
def test_query_key_and_value_have_unit_std_each(name):
    model, forward = ZOO[name]()
    lsuv(model, forward)
    outputs = parts(model, forward)
    assert len(outputs) >= 2
    for out in outputs:
        for piece in out.chunk(3, -1):
            assert abs(float(piece.double().std(correction=0)) - 1) < 1e-5


def parts(model, forward):
    """What fused projections put out: three times as wide as what they take."""

    class Fused(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func in OPENED:
                with self:
                    return OPENED[func](*args, **(kwargs or {}))
            out = func(*args, **(kwargs or {}))
            if kind(func) in ("linear", "addmm"):
                given = args[0] if kind(func) == "linear" else args[1]
                if out.shape[-1] == 3 * given.shape[-1]:
                    found.append(out.detach())
            return out

    found = []
    training = model.training
    model.eval()  # without dropout
    with Fused():
        forward()
    model.train(training)
    return found


@pytest.mark.parametrize("name", ["relu_mlp", "residual_cnn", "functional"])
def test_exactly_one_forward_pass_calibrates(name):
    """And one before and one after it read the model, with a gradient."""
    model, forward = ZOO[name]()
    runs = []

    def counted():
        before = sum(float(p.detach().double().square().sum()) for p in model.parameters())
        out = forward()
        after = sum(float(p.detach().double().square().sum()) for p in model.parameters())
        runs.append((torch.is_grad_enabled(), before != after))
        return out

    plan = make_plan(model, "lsuv", forward=forward)
    with pytest.warns(UserWarning, match="only drawn"):
        apply_(model, plan, seed=0)
    calibrate_(model, plan, counted)
    assert runs == [(True, False), (False, True), (True, False)]


def test_two_calls_and_one_give_the_same_weights():
    one, forward_one = ZOO["plain_cnn"]()
    two, forward_two = ZOO["plain_cnn"](1)
    lsuv(one, forward_one, seed=3)
    plan = make_plan(two, "lsuv", forward=forward_two)
    with pytest.warns(UserWarning, match="only drawn"):
        apply_(two, plan, seed=3)
    calibrate_(two, plan, forward_two)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_the_plan_that_comes_back_holds_what_was_measured():
    model, forward = ZOO["relu_mlp"]()
    plan = lsuv(model, forward)
    assert plan.calibrate_ is None
    for name in ("0.weight", "3.weight"):
        weight = model.get_parameter(name).detach()
        assert plan[name].std == pytest.approx(float(weight.std(correction=0)), rel=1e-6)
        assert plan[name].reason.endswith("scaled on one batch")
    assert not isinstance(plan["5.weight"], Calibrated)
    with pytest.raises(ValueError, match="was calibrated on data and cannot be drawn again"):
        apply_(model, plan, seed=0)


def test_directions_stay_orthogonal():
    model, forward = ZOO["tanh_mlp"]()
    lsuv(model, forward)
    values = torch.linalg.svdvals(model[4].weight.detach())
    assert torch.allclose(values, values[0].expand(16), rtol=1e-5)


@pytest.mark.parametrize("layer", ["linear", "conv", "transposed", "conv1d", "unbatched"])
def test_layers_with_a_bias_that_is_not_zero(layer):
    """The product is scaled; a bias outside the scope is added to it as it is."""
    module, x = {
        "linear": (nn.Linear(6, 9), noise(64, 6)),
        "conv": (nn.Conv2d(3, 5, 3), noise(8, 3, 9, 9)),
        "transposed": (nn.ConvTranspose2d(3, 5, 4, stride=2), noise(8, 3, 9, 9)),
        "conv1d": (nn.Conv1d(3, 5, 3), noise(8, 3, 30)),
        "unbatched": (nn.Conv2d(3, 5, 3), noise(3, 9, 9)),
    }[layer]
    with torch.no_grad():
        module.bias.copy_(torch.linspace(-5, 5, module.bias.numel()))
    model = nn.Sequential(module, nn.ReLU())
    bias = module.bias.detach().clone()
    spec = InitSpec("lsuv", {"include_head": True})
    initialize_(model, spec, seed=0, forward=lambda: model(x), scope=["0.weight"])
    assert torch.equal(module.bias, bias)
    shift = bias if layer == "linear" else bias.reshape(-1, *[1] * (module.weight.ndim - 2))
    assert float((module(x) - shift).detach().std(correction=0)) == pytest.approx(1, abs=1e-5)


def test_a_dead_output_is_left_as_drawn_and_named():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.zeros(8, 4)
    with pytest.warns(UserWarning, match=r"lsuv left 0.weight, 2.weight as drawn.*constant"):
        plan = lsuv(model, lambda: model(x))
    assert torch.allclose(torch.linalg.svdvals(model[0].weight.detach()), torch.ones(4), atol=1e-5)
    assert not isinstance(plan["0.weight"], Calibrated)


def test_dropout_inside_fused_attention_is_off():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True)
    model = nn.Sequential(layer, nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    x = noise(4, 6, 8)
    lsuv(model, lambda: model(x))
    model.eval()
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        found = stds(model, lambda: model(x))
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
    assert len(found) == 4
    assert all(abs(std - 1) < 1e-5 for std in found[:-1])


def test_dropout_is_off_and_modes_buffers_and_randomness_stay():
    model = nn.Sequential(
        nn.Linear(6, 32), nn.BatchNorm1d(32), nn.Dropout(0.5), nn.Linear(32, 32), nn.Linear(32, 2)
    )
    x = noise(64, 6)
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    state = torch.get_rng_state()
    lsuv(model, lambda: model(x))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    assert all(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    model[2].p = 0.0
    found = stds_in_training(model, x)
    assert all(abs(std - 1) < 1e-5 for std in found[:-1])


def stds_in_training(model, x):
    with torch.no_grad(), Outputs() as outputs:
        model(x)
    return outputs.stds


def test_a_weight_used_twice_is_scaled_on_its_first_use():
    layer = nn.Linear(8, 8)
    model = nn.ModuleDict({"shared": layer, "head": nn.Linear(8, 2)})
    x = 3 * noise(64, 8)
    lsuv(model, lambda: model["head"](layer(layer(x).relu())))
    assert float(layer(x).detach().std(correction=0)) == pytest.approx(1, abs=1e-5)


def test_frozen_weights_are_not_scaled():
    model, forward = ZOO["relu_mlp"]()
    model[3].requires_grad_(False)
    before = model[3].weight.clone()
    plan = lsuv(model, forward)
    assert torch.equal(before, model[3].weight)
    assert not isinstance(plan["3.weight"], Calibrated)


def test_a_tied_head_is_not_scaled_as_a_matrix():
    model, forward = ZOO["nanogpt"]()
    plan = lsuv(model, forward)
    assert plan["head.weight"].std == 0.25


def test_a_strategy_that_needs_data_may_be_an_exception():
    """Each calibration speaks of the tensors that its own key decides."""
    model, forward = ZOO["relu_mlp"]()
    spec = InitSpec("kaiming_normal", overrides={"3.*": InitSpec("lsuv", {"scale": 2.0})})
    plan = initialize_(model, spec, seed=0, forward=forward)
    found = stds(model, forward)
    assert found[1] == pytest.approx(2.0, rel=1e-5)
    assert [e.info.name for e in plan if isinstance(e.distribution, Calibrated)] == ["3.weight"]
    assert plan["0.weight"].std == pytest.approx((2 / 12) ** 0.5)


def test_an_exception_from_lsuv_is_not_calibrated():
    model, forward = ZOO["relu_mlp"]()
    spec = InitSpec("lsuv", overrides={"3.*": InitSpec("normal", {"std": 0.001})})
    plan = initialize_(model, spec, seed=0, forward=forward)
    assert plan["3.weight"].std == 0.001
    assert float(model[3].weight.detach().std()) == pytest.approx(0.001, rel=0.2)
    assert stds(model, forward)[0] == pytest.approx(1, abs=1e-5)


def test_keyword_arguments_and_functional_calls():
    weight = nn.Parameter(torch.randn(5, 4))
    model = nn.ParameterDict({"w": weight, "b": nn.Parameter(torch.ones(5))})
    x = 7 * noise(64, 4)

    def forward():
        return F.linear(input=x, weight=model["w"], bias=model["b"])

    initialize_(
        model,
        InitSpec("lsuv", {"include_head": True}),
        seed=0,
        forward=forward,
        scope=["w"],
    )
    out = F.linear(x, weight, model["b"]).detach()
    assert float((out - 1).std(correction=0)) == pytest.approx(1, abs=1e-5)


def test_a_forward_that_differentiates_is_calibrated_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Linear(32, 2))
    x = torch.randn(64, 8)

    def forward():
        loss = model(x).square().mean()
        loss.backward()
        return loss

    initialize_(model, "lsuv", seed=0, forward=forward)
    assert float(model[:3](x).detach().std(correction=0)) == pytest.approx(1, abs=1e-5)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_forward_that_fails_leaves_the_weights_as_they_were():
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Linear(32, 2))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    calls = []

    def forward():
        calls.append(model(torch.ones(2, 8)))
        if len(calls) > 1:
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        initialize_(model, "lsuv", seed=0, forward=forward)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
