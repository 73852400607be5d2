"""What metainit and gradinit share: what they need, what they leave alone, how they end."""

import io
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrizations import weight_norm

from lightning_init import InitSpec, calibrate_, initialize_, make_plan
from lightning_init.strategies.distributions import Constant, Normal
from lightning_init.strategies.needs import UnsuitableError
from lightning_init.strategies.registry import Strategy
from tests.zoo import ZOO, ids, noise

SCHEMES = ["metainit", "gradinit"]
by_name = pytest.mark.parametrize("scheme", SCHEMES)
LABELS = torch.arange(16) % 5


def spec(scheme, **params):
    return InitSpec(scheme, {"steps": 4, "accept": "always", **params})


def mlp(dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(12, 32), nn.Tanh(), nn.Dropout(dropout), nn.Linear(32, 24), nn.Tanh(),
        nn.Linear(24, 5),
    )  # fmt: skip


def loss_of(model):
    return F.cross_entropy(model(noise(16, 12)), LABELS)


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(model, before):
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@by_name
def test_a_plan_needs_no_loss_but_carrying_it_out_does(scheme):
    model = mlp()
    before = state(model)
    assert make_plan(model, scheme).calibrate_ is not None
    with pytest.raises(ValueError, match="pass forward="):
        initialize_(model, scheme, seed=0)
    assert same(model, before)


BAD = {
    "None": (lambda model: {}.get(loss_of(model)), "forward() gave None"),
    "logits": (
        lambda model: model(noise(16, 12)),
        "needs a loss, one number, but forward() gave a tensor of shape (16, 5) and type "
        "torch.float32: pass forward=lambda: loss(model(x), y), or the nearest scheme that applies "
        "is 'lsuv'. Nothing has been changed",
    ),
    "dict": (lambda model: {"logits": model(noise(16, 12))}, "a dict with the keys logits"),
    "number": (lambda model: float(loss_of(model).detach()), "gave a float"),
    "integer": (lambda model: model(noise(16, 12)).argmax(), "type torch.int64"),
    "detached": (lambda model: loss_of(model).detach(), "has no graph"),
    "no_grad": (torch.no_grad()(loss_of), "has no graph"),
    "another": (
        lambda model: (model(noise(16, 12)).detach() * torch.ones((), requires_grad=True)).sum(),
        "depends on no parameter",
    ),
    "nan": (lambda model: loss_of(model) * torch.nan, "is nan: draw smaller weights"),
}


@by_name
@pytest.mark.parametrize("case", BAD)
def test_what_is_no_loss_is_refused_and_nothing_is_changed(scheme, case):
    model = mlp()
    before = state(model)
    forward, text = BAD[case]
    with pytest.raises(UnsuitableError) as caught:
        initialize_(model, spec(scheme), seed=0, forward=lambda: forward(model))
    assert text in str(caught.value)
    assert str(caught.value).startswith(scheme)
    assert same(model, before)


@by_name
@pytest.mark.parametrize("case", ["mapping", "one element"])
def test_a_loss_in_a_mapping_or_with_a_dimension_is_a_loss(scheme, case):
    one, two = mlp(), mlp()
    given = {"mapping": lambda: {"loss": loss_of(two)}, "one element": lambda: loss_of(two)[None]}
    initialize_(one, spec(scheme), seed=0, forward=lambda: loss_of(one))
    initialize_(two, spec(scheme), seed=0, forward=given[case])
    assert same(one, two.state_dict())


@by_name
def test_nothing_to_scale(scheme):
    model = mlp()
    steps = {"steps": [InitSpec("constant"), spec(scheme)]}
    before = state(model)
    with pytest.raises(UnsuitableError, match="draws none that is trained, not 0"):
        initialize_(model, InitSpec("chain", steps), seed=0, forward=lambda: loss_of(model))
    assert same(model, before)


class Once(torch.autograd.Function):
    """Has no second derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0].cos()


class Sine(nn.Module):
    def forward(self, x):
        return Once.apply(x)


class Flash(nn.Module):
    """Insists on a kernel of attention whose gradient has none."""

    def forward(self, x):
        x = x.view(2, 8, 1, 8).transpose(1, 2)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(x, x, x).reshape(16, 8)


@by_name
@pytest.mark.parametrize(
    ("layer", "why"), [(Sine, "@once_differentiable"), (Flash, "flash_attention")]
)
def test_a_layer_without_second_derivatives_is_named_as_the_reason(scheme, layer, why):
    model = nn.Sequential(nn.Linear(12, 8), layer(), nn.LazyLinear(5))
    before = model[0].weight.clone()
    params = spec(scheme, gamma=1e-6) if scheme == "gradinit" else spec(scheme)
    with pytest.raises(UnsuitableError) as caught:
        initialize_(model, params, seed=0, forward=lambda: loss_of(model))
    assert f"{scheme} differentiates several times" in str(caught.value)
    assert why in str(caught.value)
    assert torch.equal(model[0].weight, before)
    assert type(model[2]) is nn.LazyLinear


@by_name
@pytest.mark.parametrize("within", ["initialize_", "calibrate_"])
def test_an_interrupt_leaves_the_weights_from_before(scheme, within):
    model = mlp()
    calls = []

    def forward():
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return loss_of(model)

    before = state(model)
    if within == "initialize_":
        with pytest.raises(KeyboardInterrupt):
            initialize_(model, spec(scheme, steps=50), seed=0, forward=forward)
    else:
        plan = make_plan(model, spec(scheme, steps=50))
        with pytest.raises(KeyboardInterrupt):
            calibrate_(model, plan, forward)
    assert len(calls) == 9
    assert same(model, before)


class Clock:
    """Each look at it takes a second."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1
        return self.now


@by_name
@pytest.mark.parametrize(("seconds", "done"), [(0.5, 1), (3, 3), (1000, 6)])
def test_the_seconds_end_it(scheme, seconds, done, monkeypatch):
    model = mlp()
    monkeypatch.setattr("lightning_init.strategies.budget.time.monotonic", Clock())
    params = spec(scheme, steps=6, seconds=seconds)
    plan = initialize_(model, params, seed=0, forward=lambda: loss_of(model))
    late = f", stopped after {seconds:g} s" if done < 6 else ""
    assert plan.calibrations[0].passes.startswith(f"{done} of 6 steps{late}, ")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@by_name
def test_a_terminal_sees_one_line_that_goes_away_and_a_file_nothing(scheme, monkeypatch, capsys):
    monkeypatch.setattr("lightning_init.strategies.budget.time.monotonic", Clock())
    monkeypatch.setenv("COLUMNS", "60")
    screen = Terminal()
    with monkeypatch.context() as patch:
        patch.setattr("sys.stderr", screen)
        model = mlp()
        initialize_(model, spec(scheme), seed=0, forward=lambda: loss_of(model))
    drawn = screen.getvalue().split("\r\033[K")
    assert drawn[0] == drawn[-1] == ""
    assert len(drawn) == 2 + 4
    assert drawn[3].startswith(f"{scheme} [##########..........] 2/4, 3 s")
    assert all(len(line) < 60 and "\n" not in line for line in drawn)
    for rank in ("", "1"):
        with monkeypatch.context() as patch:
            if rank:
                patch.setenv("LOCAL_RANK", rank)
                patch.setattr("sys.stderr", screen := Terminal())
            initialize_(model := mlp(), spec(scheme), seed=0, forward=partial(loss_of, model))
            assert not rank or screen.getvalue() == ""
    assert capsys.readouterr() == ("", "")


@by_name
def test_same_seed_same_bits_and_the_global_random_state_is_untouched(scheme):
    found = []
    for _ in range(2):
        model = mlp(dropout=0.3)
        torch.manual_seed(7)  # what dropout draws depends on it
        rng = torch.get_rng_state()
        plan = initialize_(model, spec(scheme), seed=3, forward=partial(loss_of, model))
        assert torch.equal(torch.get_rng_state(), rng)
        found.append((state(model), plan.calibrations))
    assert found[0][1] == found[1][1]
    assert same(model, found[0][0])


@by_name
def test_the_objective_sees_the_same_dropout_in_every_step(scheme):
    model = mlp(dropout=0.5)
    seen = []

    def forward():
        drop = F.dropout(torch.ones(50), 0.5)
        seen.append(drop.tolist())
        return loss_of(model)

    initialize_(model, spec(scheme), seed=0, forward=forward)
    assert len(seen) > 5
    assert all(mask == seen[1] for mask in seen[1:])  # the first one is that of the plan
    assert model.training


@by_name
@pytest.mark.parametrize("training", [True, False])
def test_buffers_mode_and_gradients_stay(scheme, training):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5)).train(
        training
    )
    modes = []

    def forward():
        modes.append(model.training)
        return loss_of(model)

    model[0].weight.grad = torch.ones(8, 12)
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    initialize_(model, spec(scheme), seed=0, forward=forward)
    assert set(modes) == {training}
    assert all(torch.equal(b, buffers[n]) for n, b in model.named_buffers())
    assert bool((model[0].weight.grad == 1).all())
    assert all(p.grad is None for n, p in model.named_parameters() if n != "0.weight")


@by_name
def test_zeros_frozen_weights_and_for_metainit_biases_stay_as_drawn(scheme):
    model = mlp()
    model[3].weight.requires_grad_(False)
    frozen = model[3].weight.clone()

    def drawn(info):
        if info.role == "bias":
            return Constant(0.1, reason="not 0")
        return Constant(0.0, reason="0") if info.name == "5.weight" else Normal(0.3)

    start = Strategy(drawn, InitSpec(scheme, spec(scheme).params).build().calibrate_)
    plan = initialize_(model, start, seed=0, forward=lambda: loss_of(model))
    assert torch.equal(model[3].weight, frozen)
    assert bool((model[5].weight == 0).all())
    assert isinstance(plan["5.weight"], Constant)
    # Behind a weight of zeros nothing but the last bias has a gradient.
    assert isinstance(plan["5.bias"], Constant) == (scheme == "metainit")
    assert bool((model[5].bias == 0.1).all()) == (scheme == "metainit")


@by_name
def test_a_frozen_weight_that_the_plan_writes_is_not_scaled(scheme):
    model, twin = mlp(), mlp()
    for each in (model, twin):
        each[3].weight.requires_grad_(False)
    initialize_(model, spec(scheme), seed=0, scope="all", forward=lambda: loss_of(model))
    initialize_(twin, InitSpec("chain"), seed=0, scope="all", forward=lambda: loss_of(twin))
    assert torch.equal(model[3].weight, twin[3].weight)
    assert not torch.equal(model[0].weight, twin[0].weight)


@by_name
def test_a_chain_decides_what_it_starts_from_and_alone_it_is_the_table(scheme):
    model = mlp()
    alone = make_plan(model, scheme, forward=lambda: loss_of(model))
    below = make_plan(model, InitSpec("chain"), forward=lambda: loss_of(model))
    assert [e.distribution for e in alone] == [e.distribution for e in below]
    steps = {"steps": [InitSpec("orthogonal"), spec(scheme)]}
    chained = make_plan(model, InitSpec("chain", steps))
    plain = make_plan(model, "orthogonal")
    assert [e.distribution for e in chained] == [e.distribution for e in plain]
    assert chained.calibrate_ is not None


@by_name
def test_autocast_inside_of_the_forward_pass_changes_nothing(scheme):
    """Double backward in bfloat16 would be noise."""
    one, two = mlp(), mlp()

    def mixed():
        with torch.autocast("cpu", torch.bfloat16):
            return loss_of(two)

    assert not torch.equal(loss_of(two), mixed())
    params = spec(scheme)
    initialize_(one, params, seed=0, forward=lambda: loss_of(one))
    initialize_(two, params, seed=0, forward=mixed)
    assert same(one, two.state_dict())


@by_name
def test_what_counts_on_autocast_to_join_two_types_still_runs(scheme):
    model = mlp()

    def forward():
        with torch.autocast("cpu", torch.bfloat16):
            return F.cross_entropy(model(noise(16, 12).bfloat16()), LABELS)

    plan = initialize_(model, spec(scheme), seed=0, forward=forward)
    assert plan.calibrations[0].after < plan.calibrations[0].before


@by_name
def test_a_tied_tensor_is_scaled_once(scheme):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.mid = nn.Embedding(10, 8), nn.Linear(8, 8)
            self.head = nn.Linear(8, 10, bias=False)
            self.head.weight = self.table.weight

        def forward(self, x):
            return self.head(torch.tanh(self.mid(self.table(x))))

    model, twin = Tied(), Tied()
    forward = lambda: F.cross_entropy(model(ids(64)), ids(64).roll(1))  # noqa: E731
    params = {"steps": 1, "lr": 0.01, "accept": "always"}
    initialize_(model, InitSpec(scheme, params), seed=0, forward=forward)
    initialize_(twin, InitSpec("chain"), seed=0, forward=lambda: twin(ids(64)))
    assert model.head.weight is model.table.weight
    factor = float((model.table.weight / twin.table.weight).detach().mean())
    norm = float(twin.table.weight.detach().norm())
    one_step = 0.01 if scheme == "gradinit" else 0.01 / norm
    assert abs(factor - 1) == pytest.approx(one_step, rel=1e-3)


@by_name
def test_a_weight_norm_is_scaled_as_a_whole(scheme):
    def built(wrap):
        torch.manual_seed(0)
        return nn.Sequential(wrap(nn.Linear(12, 8)), nn.Tanh(), nn.Linear(8, 5))

    normed, bare = built(weight_norm), built(lambda layer: layer)
    for model in (normed, bare):
        initialize_(model, spec(scheme), seed=0, forward=partial(loss_of, model))
    assert torch.allclose(normed[0].weight, bare[0].weight, rtol=1e-5, atol=1e-7)
    assert torch.equal(normed[2].weight, bare[2].weight)


@by_name
def test_recurrent_layers_leave_cudnn_and_others_do_not(scheme):
    torch.manual_seed(0)
    rnn = nn.LSTM(4, 6, batch_first=True)
    head = nn.Linear(6, 5)
    model = nn.ModuleList([rnn, head])
    seen = []

    def forward():
        seen.append(torch.backends.cudnn.enabled)
        return F.cross_entropy(head(rnn(noise(16, 3, 4))[0][:, -1]), LABELS)

    before = torch.backends.cudnn.enabled
    plan = initialize_(model, spec(scheme), seed=0, forward=forward)
    assert False in seen
    assert torch.backends.cudnn.enabled == before
    assert plan.calibrations[0].after < plan.calibrations[0].before


@by_name
def test_gpt2_tied_with_fused_attention(scheme):
    transformers = pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = transformers.GPT2Config(
            vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2,
            attn_implementation="sdpa", attn_pdrop=0.0,  # else torch takes the math kernel anyway
        )  # fmt: skip
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(config)
    x = ids(4, 12, below=50)
    before = float(model.transformer.wte.weight.detach().norm())
    plan = initialize_(
        model, spec(scheme, lr=0.01, steps=8), seed=0, forward=lambda: model(input_ids=x, labels=x)
    )
    (done,) = plan.calibrations
    assert done.after < done.before
    assert model.lm_head.weight is model.transformer.wte.weight
    assert float(model.lm_head.weight.detach().norm()) != before
    assert model.training


@by_name
def test_another_batch_in_each_call_is_fine(scheme):
    model, calls = mlp(), []

    def forward():
        calls.append(1)
        rows = (torch.arange(8) + len(calls)) % 16
        return F.cross_entropy(model(noise(16, 12)[rows]), LABELS[rows])

    plan = initialize_(model, spec(scheme), seed=0, forward=forward)
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert plan.calibrations[0].after <= plan.calibrations[0].before


@by_name
def test_the_gate_takes_a_result_back(scheme, monkeypatch):
    model, twin = mlp(), mlp()
    monkeypatch.setattr("lightning_init.strategies.gate.worse", lambda before, after: "it is worse")
    params = InitSpec(scheme, {"steps": 4})
    plan = initialize_(model, params, seed=0, forward=lambda: loss_of(model))
    initialize_(twin, InitSpec("chain"), seed=0, forward=lambda: loss_of(twin))
    assert "taken back: it is worse" in str(plan)
    assert same(model, twin.state_dict())
    assert plan.calibrations[0].after < plan.calibrations[0].before


@by_name
@pytest.mark.parametrize("name", ["plain_cnn", "encoder", "swiglu", "layer_scale"])
def test_models_of_the_zoo(scheme, name):
    model, forward = ZOO[name]()

    def loss():
        out = forward()
        return out.float().square().mean() + out.float().tanh().mean()

    plan = initialize_(model, spec(scheme), seed=0, forward=loss)
    assert plan.calibrations[0].after <= plan.calibrations[0].before
    assert all(bool(p.isfinite().all()) for p in model.parameters())


@by_name
def test_spectral_norm_leaves_nothing_to_scale(scheme):
    model, forward = ZOO["spectral_normed"]()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UnsuitableError, match="free to be scaled"):
        initialize_(model, spec(scheme), seed=0, forward=lambda: forward().square().mean())
    assert same(model, before)
