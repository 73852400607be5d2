"""LSUV: one forward pass, exact unit variance, and nothing else changes."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.utils.parametrizations import orthogonal, spectral_norm
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


# -- parameters that take other ways --


def measured(plan):
    (line,) = plan.calibrations
    assert line.objective.startswith("largest |std - ")
    return line


@pytest.mark.parametrize("name", sorted(set(ZOO) - {"spectral_normed", "pixel_cnn"}))
def test_what_the_report_says_of_every_model(name):
    """T12: each calibrated output within 1e-5, measured in a pass of its own."""
    model, forward = ZOO[name]()
    plan = lsuv(model, forward, accept="always")
    if name in ("lstm", "bi_lstm", "gru", "gru_cell", "padded"):
        assert not measured(plan).after > 1e-5
    else:
        assert measured(plan).after < 1e-5
    if name == "lstm":
        assert "no output of lstm.weight_ih_l0 and 3 more is seen" in measured(plan).why


def test_attention_with_other_widths_for_key_and_value():
    torch.manual_seed(0)
    attend = nn.MultiheadAttention(8, 2, kdim=6, vdim=5, batch_first=True)
    head = nn.Linear(8, 2)
    model = nn.ModuleList([attend, head])
    q, k, v = noise(4, 7, 8), 3 * noise(4, 9, 6), noise(4, 9, 5) / 2
    lsuv(model, lambda: head(attend(q, k, v)[0]))
    with torch.no_grad():
        for x, weight in (
            (q, attend.q_proj_weight),
            (k, attend.k_proj_weight),
            (v, attend.v_proj_weight),
        ):
            assert float((x @ weight.T).std(correction=0)) == pytest.approx(1, abs=1e-5)
        out = attend(q, k, v)[0]
    assert float(out.std(correction=0)) == pytest.approx(1, abs=1e-5)


def test_one_fused_matrix_that_is_used_piece_by_piece():
    """Cross attention splits `in_proj_weight`: the query takes one piece, key and value another."""
    torch.manual_seed(0)
    attend, head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 2)
    model = nn.ModuleList([attend, head])
    q, k = noise(4, 7, 8), 3 * noise(4, 9, 8)
    lsuv(model, lambda: head(attend(q, k, k)[0]))
    for x, rows in ((q, slice(0, 8)), (k, slice(8, 16)), (k, slice(16, 24))):
        out = x @ attend.in_proj_weight.detach()[rows].T
        assert float(out.std(correction=0)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("way", ["masked", "transposed", "einsum", "cast", "scaled", "experts"])
def test_a_weight_on_its_way_to_the_product(way):
    x, shape = 3 * noise(64, 6), (2, 6, 5) if way == "experts" else (6, 5)
    model = nn.ParameterDict({"w": nn.Parameter(noise(*shape)), "v": nn.Parameter(noise(5, 2))})
    model.register_buffer("mask", (torch.arange(30).reshape(6, 5) % 3 > 0).float())

    def out():
        w = model["w"]
        match way:
            case "masked":
                return x @ (model.mask * w)
            case "transposed":
                return F.linear(x, w.transpose(0, 1))
            case "einsum":
                return torch.einsum("bi,io->bo", x, w)
            case "cast":
                return (x.double() @ w.double()).float()
            case "scaled":
                return x @ (0.1 * w / 7)
        return torch.bmm(x.reshape(2, 32, 6), w).reshape(64, 5)

    lsuv(model, lambda: out().relu() @ model["v"])
    assert float(out().detach().std(correction=0)) == pytest.approx(1, abs=1e-5)


def test_a_cast_weight_that_is_used_again():
    """The second use sees the scaled weight, also where it is a copy."""
    model = nn.ParameterDict({"w": nn.Parameter(noise(6, 6)), "v": nn.Parameter(noise(6, 2))})
    x, seen = 5 * noise(64, 6), []

    def forward():
        w = model["w"].double()
        h = (x.double() @ w).tanh() @ w
        seen.append(h.detach().clone())
        return h.float() @ model["v"]

    lsuv(model, forward)
    forward()
    assert torch.allclose(seen[-3], seen[-1])  # in the calibrating pass and afterwards


def test_bfloat16_is_measured_in_float32():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 2))
    model.bfloat16()
    x = noise(256, 64).bfloat16()
    line = measured(lsuv(model, lambda: model(x)))
    assert line.after < 0.01  # what a weight of 8 bits can hold
    assert model[0].weight.dtype is torch.bfloat16


def test_zeros_that_were_drawn_stay_without_a_warning():
    model, forward = ZOO["relu_mlp"]()
    spec = InitSpec("lsuv", overrides={"3.weight": "constant"})
    initialize_(model, spec, seed=0, forward=forward)
    assert not bool(model[3].weight.any())


@pytest.mark.parametrize("steps", [["orthogonal", "lsuv"], ["xavier_uniform", "gpt2", "lsuv"]])
def test_in_a_chain_it_calibrates_what_is_there(steps):
    model, forward = ZOO["relu_mlp"]()
    below, other = ZOO["relu_mlp"]()
    initialize_(below, InitSpec("chain", {"steps": steps[:-1]}), seed=0, forward=other)
    plan = initialize_(model, InitSpec("chain", {"steps": steps}), seed=0, forward=forward)
    assert measured(plan).after < 1e-5
    ratio = model[3].weight.detach() / below[3].weight.detach()
    assert float(ratio.std() / ratio.mean()) == pytest.approx(0, abs=1e-5)


def test_branches_that_share_one_variance():
    """With `residual`, each branch adds 1/L: the stream's variance does not grow with depth."""

    class Net(nn.Module):
        def __init__(self, depth):
            super().__init__()
            self.stem = nn.Linear(32, 32)
            self.branches = nn.ModuleList(
                nn.Sequential(nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
                for _ in range(depth)
            )
            self.head = nn.Linear(32, 4)

        def forward(self, x):
            x = self.stem(x)
            for branch in self.branches:
                x = x + branch(x)
            self.__dict__["stream"] = x
            return self.head(x)

    torch.manual_seed(0)
    model, x = Net(16), noise(128, 32)
    lsuv(model, lambda: model(x), residual=True)
    found = stds(model, lambda: model(x))
    assert found[0] == pytest.approx(1, abs=1e-5)
    assert found[1:-1:2] == pytest.approx([1] * 16, abs=1e-5)
    assert found[2:-1:2] == pytest.approx([0.25] * 16, abs=1e-5)
    aware = float(model.stream.std())
    lsuv(model, lambda: model(x))
    model(x)
    assert aware < 1.8  # sqrt(2) where branches are independent
    assert float(model.stream.detach().std()) > 3.5  # sqrt(17)


def test_no_graph_is_built_while_calibrating():
    model, run = ZOO["relu_mlp"]()
    grads = []

    def forward():
        out = run()
        grads.append(out.requires_grad)
        return out

    plan = make_plan(model, "lsuv", forward=forward)
    with pytest.warns(UserWarning, match="only drawn"):
        apply_(model, plan, seed=0)
    grads.clear()
    calibrate_(model, plan, forward)
    assert grads == [True, False, True]


# -- small-scale results (SCHEMES.md, T1 and T2): trains, or does not --


def digits():
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    x = (x - x.mean(0)) / (x.std(0) + 1e-2)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return (x[order[:1400]], y[order[:1400]]), (x[order[1400:]], y[order[1400:]])


def deep(depth, activation, seed):
    torch.manual_seed(seed)
    layers = [each for _ in range(depth) for each in (nn.Linear(64, 64), activation())]
    return nn.Sequential(*layers, nn.Linear(64, 10))


def accuracy(depth, activation, strategy, seed, lr, steps=200):
    """On held-out digits, after SGD with momentum 0.9, gradients clipped at 1."""
    (x, y), (test_x, test_y) = digits()
    model = deep(depth, activation, seed)
    plan = initialize_(
        model, strategy, seed=seed, forward=lambda: F.cross_entropy(model(x[:256]), y[:256])
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    order = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(x), (64,), generator=order)
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        return float((model(test_x).argmax(-1) == test_y).float().mean()), plan


ALWAYS = InitSpec("lsuv", {"accept": "always"})


@pytest.mark.slow
def test_unit_variance_fails_in_a_deep_tanh_net_and_is_taken_back():
    """T1 at 100 layers: LSUV .106, orthogonal .94; the gate keeps the latter."""
    kept, plan = accuracy(100, nn.Tanh, "lsuv", 0, 0.01)
    assert not plan.calibrations[0].accepted
    assert kept > 0.85
    forced, plan = accuracy(100, nn.Tanh, ALWAYS, 0, 0.01)
    assert forced < 0.4
    line = plan.calibrations[0]
    assert line.why.startswith("kept although")
    # Mean field: 1.178 per layer at unit variance; 1.178^50 within a factor of 3.
    assert 1.178**50 / 3 < line.readings["chi"][1] ** 49.5 < 1.178**50 * 3


@pytest.mark.slow
def test_lsuv_trains_a_deep_rectifier_net():
    """T2 at 40 layers: LSUV .69, the default of PyTorch .10, Xavier .09."""
    found, plan = accuracy(40, nn.ReLU, "lsuv", 0, 0.01)
    assert plan.calibrations[0].accepted
    best = max(found, *(accuracy(40, nn.ReLU, "lsuv", seed, 0.01)[0] for seed in (1, 2)))
    assert best > 0.4
    for baseline in ("keep", "xavier_normal"):
        assert accuracy(40, nn.ReLU, baseline, 0, 0.01)[0] < 0.2


def biased(groups=1):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, groups=groups), nn.ReLU(), nn.ConvTranspose2d(8, 8, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(512, 16), nn.Tanh(), nn.Linear(16, 4),
    )  # fmt: skip


def test_outputs_have_unit_std_with_their_biases():
    """PyTorch's own biases are not 0: what a hook sees is the product and its bias."""
    model, x = biased(), noise(32, 3, 8, 8)
    spec = InitSpec("chain", {"steps": ["torch_default", "lsuv"]})
    plan = initialize_(model, spec, seed=0, forward=lambda: model(x))
    assert float(model[0].bias.detach().abs().max()) > 0.01
    found = stds(model, lambda: model(x))
    assert all(abs(std - 1) < 1e-5 for std in found[:-1])
    assert measured(plan).after < 1e-5


def test_query_key_and_value_with_their_biases():
    torch.manual_seed(0)
    attend, head, x = (
        nn.MultiheadAttention(16, 2, batch_first=True),
        nn.Linear(16, 2),
        noise(8, 5, 16),
    )
    model = nn.ModuleList([attend, head])
    with torch.no_grad():
        attend.in_proj_bias.normal_(0, 0.3)
    keep = InitSpec("lsuv", overrides={"*bias": "keep"})
    initialize_(model, keep, seed=0, forward=lambda: head(attend(x, x, x)[0]))
    assert float(attend.in_proj_bias.detach().std()) > 0.1
    with torch.no_grad():
        out = F.linear(x, attend.in_proj_weight, attend.in_proj_bias)
    assert all(abs(float(each.std(correction=0)) - 1) < 1e-5 for each in out.chunk(3, -1))


def test_a_bias_that_leaves_no_room():
    model, x = biased(), noise(32, 3, 8, 8)
    with torch.no_grad():
        model[0].bias.copy_(torch.arange(8.0))
    plan = lsuv_keeping_biases(model, lambda: model(x))
    assert measured(plan).after > 1  # said, not hidden
    out = F.conv2d(x, model[0].weight.detach())
    assert float(out.std(correction=0)) == pytest.approx(1, abs=1e-5)


def lsuv_keeping_biases(model, forward):
    spec = InitSpec("lsuv", {"accept": "always"}, overrides={"*.bias": "keep"})
    return initialize_(model, spec, seed=0, forward=forward)


@pytest.mark.parametrize("wrap", [spectral_norm, orthogonal])
def test_a_parametrization_that_sets_the_scale_is_left_out_and_named(wrap):
    torch.manual_seed(0)
    model = nn.Sequential(wrap(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2))
    x = noise(64, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = lsuv(model, lambda: model(x), accept="always")
    assert "not calibrated: 0.weight" in measured(plan).why
    model.eval()
    # The layers behind it are calibrated to what it really gives.
    assert float(model[:3](x).detach().std(correction=0)) == pytest.approx(1, abs=1e-4)


def test_a_forward_pass_that_is_vectorized():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    x = noise(64, 8)
    plan = lsuv(model, lambda: torch.vmap(model)(x))
    assert "no output of 0.weight is seen" in measured(plan).why


@pytest.mark.parametrize("scheme", ["lsuv", "channel_norm"])
def test_a_model_that_is_all_output_layer(scheme):
    model, x = nn.Linear(8, 2), noise(64, 8)
    plan = initialize_(model, scheme, seed=0, forward=lambda: model(x))
    assert "nothing to calibrate" in plan.calibrations[0].why


def test_the_default_dtype_is_not_that_of_the_factors():
    torch.manual_seed(0)
    model, x = nn.MultiheadAttention(16, 2, batch_first=True).bfloat16(), torch.randn(8, 5, 16)

    def forward():
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)  # as a Trainer does in bf16-true
        try:
            return model(x.bfloat16(), x.bfloat16(), x.bfloat16())
        finally:
            torch.set_default_dtype(before)

    plan = initialize_(model, InitSpec("lsuv", {"accept": "always"}), seed=0, forward=forward)
    assert plan.calibrations[0].after < 0.02
