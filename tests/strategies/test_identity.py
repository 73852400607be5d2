"""ZerO and the identity: against SciPy's Hadamard matrices, torch.nn.init, and the paper's ranks."""

import math

import pytest
import torch
import torch.nn.functional as F
from scipy.linalg import hadamard
from torch import nn

from lightning_init import InitSpec, ParamInfo, Role, initialize_, make_plan
from lightning_init.strategies.distributions import Constant, Keep
from lightning_init.strategies.layout import Layout
from lightning_init.strategies.patterns import Pattern, sum_of_hadamard
from lightning_init.strategies.registry import get
from tests.strategies.small_scale import accuracy, digits
from tests.zoo import ZOO


def zero(out, inner, shift=0):
    """Algorithm 1, by SciPy."""
    if out <= inner:
        return torch.eye(out, inner)
    m = math.ceil(math.log2(out))
    return torch.tensor(hadamard(2**m)[:out, :inner]).float() * 2 ** (-(m - shift) / 2)


@pytest.mark.parametrize("constant", ["orthonormal", "printed"])
@pytest.mark.parametrize(
    ("out", "inner"), [(4, 4), (3, 5), (8, 4), (48, 20), (5, 4), (2, 1), (65, 64), (1000, 7)]
)
def test_matrices_are_those_of_scipy(out, inner, constant):
    layer = nn.Linear(inner, out)
    initialize_(layer, InitSpec("zero_hadamard", {"constant": constant}), seed=0)
    expected = zero(out, inner, constant == "printed")
    assert torch.allclose(layer.weight.detach(), expected, rtol=1e-6, atol=0)
    assert not layer.bias.any()


@pytest.mark.parametrize("kernel", [1, 3, 4])
@pytest.mark.parametrize(("inner", "out", "groups"), [(4, 4, 1), (4, 12, 2), (12, 4, 1)])
def test_kernels_have_the_matrix_at_the_centre(inner, out, groups, kernel):
    layer = nn.Conv2d(inner, out, kernel, groups=groups)
    initialize_(layer, "zero_hadamard", seed=0)
    weight = layer.weight.detach().clone()
    for block in weight[:, :, kernel // 2, kernel // 2].chunk(groups):
        assert torch.allclose(block, zero(out // groups, inner // groups))
    weight[:, :, kernel // 2, kernel // 2] = 0
    assert not weight.any()


def test_a_transposed_convolution_and_gpt2s_layer_have_it_transposed():
    layer = nn.ConvTranspose2d(4, 8, 3)
    initialize_(layer, "zero_hadamard", seed=0)
    assert torch.allclose(layer.weight[:, :, 1, 1].detach().T, zero(8, 4))
    module, forward = ZOO["gpt2"]()
    plan = initialize_(module, "zero_hadamard", seed=0, forward=forward)
    tensors = dict(module.named_parameters())
    stored = next(e.info for e in plan if e.info.name.endswith("mlp.c_fc.weight"))
    inner, out = stored.shape
    assert out > inner
    assert torch.allclose(tensors[stored.name].detach().T, zero(out, inner))


def test_each_gate_has_its_own():
    lstm = nn.LSTM(3, 8)
    initialize_(lstm, "zero_hadamard", seed=0)
    for gate in lstm.weight_ih_l0.detach().chunk(4):
        assert torch.allclose(gate, zero(8, 3))
    for gate in lstm.weight_hh_l0.detach().chunk(4):
        assert torch.equal(gate, torch.eye(8))


@pytest.mark.parametrize("name", ["zero_hadamard", "identity"])
def test_no_seed_matters(name):
    one, two = (ZOO["residual_cnn"](seed) for seed in (0, 1))
    initialize_(one[0], name, seed=0, forward=one[1])
    initialize_(two[0], name, seed=1, forward=two[1])
    pairs = zip(one[0].parameters(), two[0].parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("rows", [1, 2, 3, 31, 32, 33, 100])
def test_mean_and_std_are_exact(rows):
    for columns in (1, 2, 3, 16, 31, 33, 64):
        assert sum_of_hadamard(rows, columns) == hadamard(128)[:rows, :columns].sum()
        for kind in ("identity", "repeated identity", "hadamard"):
            for layout in (Layout((rows, columns)), Layout((columns, rows, 3), taps=1)):
                law = Pattern(layout, kind, 0.7)
                drawn = law.sample(layout.shape, torch.Generator()).double()
                assert law.mean == pytest.approx(float(drawn.mean()), abs=1e-6)
                assert law.std == pytest.approx(float(drawn.std(correction=0)), abs=1e-6)


def test_a_table_of_fifty_thousand_rows_fits():
    """A square Hadamard matrix of that size would take 17 GB."""
    layout = Layout((50_000, 64))
    drawn = Pattern(layout, "hadamard").sample(layout.shape, torch.Generator())
    small = torch.tensor(hadamard(64)).float()
    assert torch.equal(drawn[:64], small)
    assert torch.equal(drawn[49_984:], small[:16])
    wide = Layout((5, 40_000))
    rows = Pattern(wide, "hadamard").sample(wide.shape, torch.Generator())
    assert torch.equal(rows[:, 39_936:], torch.tensor(hadamard(64)).float()[:5])


def test_tables():
    free = ParamInfo(("t",), (50, 16), Role.EMBEDDING, 1, 16)
    tied = ParamInfo(("t", "h"), (50, 16), Role.EMBEDDING, 1, 16, flags=frozenset({"tied"}))
    rule = get("zero_hadamard").build({}).initializer
    assert isinstance(rule(free), Keep)
    assert rule(tied).std == pytest.approx(2**-3, rel=0.02)
    assert get("zero_hadamard").build({"tables": True}).initializer(free) == rule(tied)


def test_residual_branches_end_in_zero_and_blocks_are_the_identity():
    module, forward = ZOO["residual_mlp"]()
    plan = initialize_(module, "zero_hadamard", seed=0, forward=forward)
    ends = [e for e in plan if e.info.usage.ends_branch and e.info.role is Role.WEIGHT]
    assert ends
    assert all(e.distribution == Constant(0.0) for e in ends)


def test_attention_in_a_branch_is_silent_by_its_values_and_can_learn():
    for model in ("nanogpt", "grouped_attention", "fused_gpt"):
        module, forward = ZOO[model]()
        initialize_(module, "zero_hadamard", seed=0, forward=forward)
        plan = make_plan(module, "zero_hadamard", forward=forward, scope="all")
        attends = [e for e in plan if e.info.role is Role.WEIGHT and e.info.usage.attention]
        texts = {e.info.name: str(e.distribution) for e in attends}
        assert any("key|value constant 0" in t or t == "constant 0" for t in texts.values()), texts
        forward().float().square().mean().backward()
        tensors = dict(module.named_parameters())
        for entry in attends:
            grad = tensors[entry.info.name].grad
            if entry.info.usage.attention in ("value", "query|key|value"):
                assert grad.abs().max() > 0, entry.info.name


def test_a_branch_that_a_scale_silences_keeps_its_last_layer():
    module, forward = ZOO["rezero"]()
    plan = make_plan(module, "zero_hadamard", forward=forward)
    ends = [e for e in plan if e.info.role is Role.WEIGHT and e.info.usage.ends_branch]
    assert ends
    assert all(e.distribution.std > 0 for e in ends)


@pytest.mark.parametrize("name", ["zero_hadamard", "identity"])
def test_equal_layers_side_by_side_are_named(name):
    for model, word in (("experts", "experts.0"), ("stacked_experts", "matrices in")):
        module, forward = ZOO[model]()
        notes = make_plan(module, name, forward=forward).notes
        assert len(notes) == 1
        assert word in notes[0]
        assert notes[0] in str(make_plan(module, name, forward=forward))
    for model in ("swiglu", "nanogpt", "lstm", "residual_cnn", "highway"):
        module, forward = ZOO[model]()
        assert make_plan(module, name, forward=forward).notes == ()


def test_equal_experts_learn_the_same_as_the_note_says():
    module, forward = ZOO["stacked_experts"]()
    initialize_(module, "identity", seed=0, forward=forward)
    weight = dict(module.named_parameters())["layers.0.w_in"]
    assert torch.equal(weight[0], weight[1])


@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (7, 2)])
def test_identity_against_torch(shape):
    layer = nn.Linear(shape[1], shape[0])
    initialize_(layer, InitSpec("identity", {"gain": 0.5}), seed=0)
    assert torch.equal(layer.weight.detach(), 0.5 * nn.init.eye_(torch.empty(shape)))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("taps", [1, 3, 5])
@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
def test_dirac_against_torch(kind, taps, groups):
    layer = kind(4, 6, taps, groups=groups)
    initialize_(layer, "dirac", seed=0)
    expected = nn.init.dirac_(torch.empty_like(layer.weight), groups)
    assert torch.equal(layer.weight.detach(), expected)
    x = torch.randn(2, 4, *[7] * (layer.weight.ndim - 2))
    padded = getattr(F, f"conv{x.ndim - 2}d")(x, layer.weight, padding=taps // 2, groups=groups)
    both = min(6, 4) // groups
    passed = padded.detach().view(2, groups, 6 // groups, -1)[:, :, :both]
    assert torch.allclose(passed, x.view(2, groups, 4 // groups, -1)[:, :, :both])


@pytest.mark.parametrize("shape", [(4, 4), (3, 8), (7, 2)])
def test_a_repeated_identity_leaves_no_unit_dead(shape):
    layer = nn.Linear(shape[1], shape[0])
    initialize_(layer, InitSpec("identity", {"fill": "repeat", "gain": 2.0}), seed=0)
    weight, short = layer.weight.detach(), min(shape)
    for i in range(shape[0]):
        for j in range(shape[1]):
            assert weight[i, j] == (2.0 if i % short == j % short else 0.0)
    assert bool((weight != 0).any(0).all())
    assert bool((weight != 0).any(1).all())


def test_scale_is_a_factor_on_the_diagonal():
    layer = nn.Linear(4, 4)
    initialize_(layer, InitSpec("identity", {"scale": 3.0, "gain": 0.5}), seed=0)
    assert torch.equal(layer.weight.detach(), 1.5 * torch.eye(4))


def test_bad_input():
    with pytest.raises(ValueError, match="gain"):
        InitSpec("identity", {"gain": 0.0})
    with pytest.raises(ValueError, match="fill"):
        InitSpec("identity", {"fill": "noise"})
    with pytest.raises(ValueError, match="constant"):
        InitSpec("zero_hadamard", {"constant": 2})
    with pytest.raises(ValueError, match="shape"):
        Pattern(Layout((2, 2)), "identity").sample((3, 3), torch.Generator())


def trained(strategy, seed):
    """The paper's experiment (figure 3): 32 inputs, 128 hidden units, and what was learnt."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        *(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()),
        *(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)),
    )
    initialize_(model, strategy, seed=seed)
    start = model[4].weight.detach().clone()
    x, y, _, _ = digits()
    keep = x.var(0).topk(32).indices
    picks = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(600):
        at = torch.randint(len(x), (64,), generator=picks)
        loss = F.cross_entropy(model(x[at][:, keep]), y[at])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    learnt = model[4].weight.detach() - start
    rank = int((torch.linalg.svdvals(learnt.double()) > 1e-4).sum())
    return rank, float(loss.detach()), accuracy(nn.Sequential(Columns(keep), model))


class Columns(nn.Module):
    def __init__(self, keep):
        super().__init__()
        self.keep = keep

    def forward(self, x):
        return x[:, self.keep]


@pytest.mark.slow
def test_hadamard_rows_break_the_rank_limit_of_the_identity():
    rank, loss, right = trained("zero_hadamard", 0)
    again, same, _ = trained("zero_hadamard", 1)
    assert (again, same) == (rank, loss)  # no randomness at all
    limited, _, fine = trained("identity", 0)
    free, _, good = trained("kaiming_normal", 0)
    assert limited <= 32 < rank < free
    assert min(right, fine, good) > 0.9
