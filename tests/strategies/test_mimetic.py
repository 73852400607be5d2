"""Mimetic attention: whole products against an SVD of our own, for every layout of the matrices."""

import dataclasses
import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

from lightning_init import InitSpec, apply_, initialize_, make_plan
from lightning_init.strategies import factors
from lightning_init.strategies.distributions import Keep
from lightning_init.strategies.factors import Factor, _seed
from lightning_init.strategies.needs import UnsuitableError
from lightning_init.strategies.seeds import generator_for
from tests.zoo import ZOO

SEED = 3


def target(key, product, head, width, alpha, beta):
    """alpha Z + beta I, made again from the seed, the names and nothing else."""
    seed = _seed(generator_for(SEED, key).initial_seed(), product, head)
    noise = torch.randn(width, width, generator=torch.Generator().manual_seed(seed)) / width**0.5
    return (alpha * noise + beta * torch.eye(width)).numpy()


def off(found, wanted):
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


def matrices(tensors, layout):
    """Query, key, value and output as (outputs, inputs), whatever the model's layout."""
    return [m.detach().numpy() for m in layout(tensors)]


def separate(*names):
    return lambda t: [t[name] for name in names]


def fused(qkv, out, axis=0):
    def split(t):
        whole, last = (t[qkv], t[out]) if axis == 0 else (t[qkv].T, t[out].T)
        return *whole.chunk(3), last

    return split


def interleaved(qkv, out, heads):
    def split(t):
        whole = t[qkv].reshape(heads, 3, -1, t[qkv].shape[1])
        return *(whole[:, i].reshape(-1, t[qkv].shape[1]) for i in range(3)), t[out]

    return split


vit = "vit.layers.1.attention."
LAYOUTS = {
    "encoder": (
        fused("layers.1.self_attn.in_proj_weight", "layers.1.self_attn.out_proj.weight"),
        "layers.1.self_attn.in_proj_weight",
        2,
    ),
    "vit": (
        separate(*(f"{vit}{p}_proj.weight" for p in "qkvo")),
        f"{vit}q_proj.weight",
        2,
    ),
    "bert": (
        separate(
            *(f"bert.encoder.layer.1.attention.self.{p}.weight" for p in ("query", "key", "value")),
            "bert.encoder.layer.1.attention.output.dense.weight",
        ),
        "bert.encoder.layer.1.attention.self.query.weight",
        2,
    ),
    "gpt2": (
        fused("transformer.h.1.attn.c_attn.weight", "transformer.h.1.attn.c_proj.weight", axis=1),
        "transformer.h.1.attn.c_attn.weight",
        2,
    ),
    "interleaved_attention": (
        interleaved("1.attn.query_key_value.weight", "1.attn.dense.weight", 2),
        "1.attn.query_key_value.weight",
        2,
    ),
    "parallel_block": (
        separate(*(f"1.attn.{p}.weight" for p in "qkvo")),
        "1.attn.q.weight",
        2,
    ),
}


@pytest.mark.parametrize("model", LAYOUTS)
@pytest.mark.parametrize("betas", [(0.7, 0.4), (-0.5, -0.3)])
def test_whole_products_are_what_they_should_be(model, betas):
    layout, key, heads = LAYOUTS[model]
    module, forward = ZOO[model]()
    spec = InitSpec("mimetic", {"beta1": betas[0], "beta2": betas[1]})
    plan = initialize_(module, spec, seed=SEED, forward=forward)
    q, k, v, out = matrices(dict(module.named_parameters()), layout)
    width, rank = q.shape[1], q.shape[0] // heads
    # x W_v W_out with W = weight^T: the product is the transposed one
    wanted = target((key,), "value out", 0, width, 0.4, -betas[1])
    assert off((out @ v).T, wanted) < 1e-5
    assert off(out @ v, wanted) > 0.1  # the transposed one would not do
    for head in range(heads):
        rows = slice(head * rank, (head + 1) * rank)
        wanted = target((key,), "query key", head, width, 0.7, betas[0])
        u, s, vh = scipy.linalg.svd(wanted)
        best = u[:, :rank] * s[:rank] @ vh[:rank]
        assert off(q[rows].T @ k[rows], best) < 1e-5
        # the singular values are shared evenly
        assert scipy.linalg.svdvals(q[rows]) == pytest.approx(np.sqrt(s[:rank]), rel=1e-4)
        assert scipy.linalg.svdvals(k[rows]) == pytest.approx(np.sqrt(s[:rank]), rel=1e-4)
    assert "mimetic" in str(plan)


def test_heads_and_layers_have_noise_of_their_own():
    module, forward = ZOO["vit"]()
    initialize_(module, "mimetic", seed=SEED, forward=forward)
    t = dict(module.named_parameters())
    q, k = (t[f"vit.layers.1.attention.{p}_proj.weight"] for p in "qk")
    first, second = (q[rows].T @ k[rows] for rows in (slice(0, 8), slice(8, 16)))
    assert not torch.allclose(first, second, atol=0.05)
    products = [
        t[f"vit.layers.{i}.attention.o_proj.weight"] @ t[f"vit.layers.{i}.attention.v_proj.weight"]
        for i in (0, 1)
    ]
    assert not torch.allclose(*products, atol=0.05)


def layer(width=192, heads=3):
    model = nn.TransformerEncoderLayer(width, heads, 64, dropout=0.0, batch_first=True)
    return model, lambda: model(torch.ones(1, 4, width))


def test_the_diagonals_that_the_paper_shows():
    model, forward = layer()
    plan = initialize_(model, "mimetic", seed=0, forward=forward)
    q, k, v = model.self_attn.in_proj_weight.detach().chunk(3)
    out = model.self_attn.out_proj.weight.detach()
    assert float((out @ v).diagonal().mean()) == pytest.approx(-0.4, abs=0.02)
    noise = (out @ v) + 0.4 * torch.eye(192)
    assert float(noise.std()) == pytest.approx(0.4 / math.sqrt(192), rel=0.02)
    heads = [q[i : i + 64].T @ k[i : i + 64] for i in (0, 64, 128)]
    for product in heads:  # 0.7 is cut to what 64 of 192 singular values hold
        assert float(product.diagonal().mean()) == pytest.approx(0.39, abs=0.03)
    for part in (q, k):
        drawn = plan["self_attn.in_proj_weight"].parts[0][1]
        assert float(part.square().mean().sqrt()) == pytest.approx(drawn.std, rel=0.01)
        assert abs(float(part.mean())) < 5 * drawn.std / math.sqrt(part.numel())


def test_each_tensor_alone_draws_its_half():
    whole, forward = layer(32, 4)
    initialize_(whole, "mimetic", seed=1, forward=forward)
    alone, forward = layer(32, 4)
    initialize_(alone, "mimetic", seed=1, forward=forward, scope="self_attn.out_proj.weight")
    assert torch.equal(alone.self_attn.out_proj.weight, whole.self_attn.out_proj.weight)
    other, forward = layer(32, 4)
    initialize_(other, "mimetic", seed=2, forward=forward)
    assert not torch.equal(other.self_attn.out_proj.weight, whole.self_attn.out_proj.weight)


def test_a_draw_does_not_depend_on_threads():
    model, forward = layer(64, 2)
    threads = torch.get_num_threads()
    found = []
    for number in (1, 2):
        torch.set_num_threads(number)
        try:
            initialize_(model, "mimetic", seed=1, forward=forward)
        finally:
            torch.set_num_threads(threads)
        found.append(model.self_attn.in_proj_weight.detach().clone())
    assert torch.equal(*found)


def test_scale_multiplies_every_factor():
    model, forward = layer(32, 4)
    plans = [
        make_plan(model, InitSpec("mimetic", {"scale": scale}), forward=forward) for scale in (1, 2)
    ]
    for name in ("self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight"):
        assert plans[1][name].std == pytest.approx(2 * plans[0][name].std, rel=1e-12)
    drawn = [
        p["self_attn.out_proj.weight"].sample((32, 32), torch.Generator().manual_seed(1))
        for p in plans
    ]
    assert torch.allclose(2 * drawn[0], drawn[1])


def test_everything_else_is_as_below():
    model, forward = layer(32, 4)
    plan = make_plan(model, "mimetic", forward=forward)
    auto = make_plan(model, "auto", forward=forward)
    assert plan["linear1.weight"] == auto["linear1.weight"]
    chained = make_plan(model, InitSpec("chain", {"steps": ["normal", "mimetic"]}), forward=forward)
    assert chained["linear1.weight"].std == 0.02
    assert chained["self_attn.out_proj.weight"] == plan["self_attn.out_proj.weight"]


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("grouped_attention", "several query heads share"),
        ("llama", "several query heads share"),
        ("cross_attention", "inputs and outputs differ in width"),
        ("relu_mlp", "attention"),
    ],
)
def test_attention_without_square_products_is_refused(model, why):
    module, forward = ZOO[model]()
    before = {name: p.clone() for name, p in module.named_parameters()}
    with pytest.raises(UnsuitableError, match=why) as error:
        initialize_(module, "mimetic", seed=0, forward=forward)
    assert error.value.nearest == ("auto" if model == "relu_mlp" else "attention_scaled")
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())


class Bare(nn.Module):
    """Two attentions, one after the other, without residual branches."""

    def __init__(self):
        super().__init__()
        self.first = nn.MultiheadAttention(16, 2, batch_first=True)
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16, bias=False) for _ in range(4))

    def forward(self, x):
        x = self.first(x, x, x, need_weights=False)[0]
        q, k, v = (f(x).unflatten(-1, (4, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return self.o(y.transpose(1, 2).flatten(-2))


def test_attentions_outside_of_branches_go_by_their_module():
    model = Bare()
    initialize_(model, "mimetic", seed=SEED, forward=lambda: model(torch.ones(1, 3, 16)))
    first = model.first.out_proj.weight @ model.first.in_proj_weight[32:]
    second = model.o.weight @ model.v.weight
    for product, key in ((first, "first.in_proj_weight"), (second, "q.weight")):
        wanted = target((key,), "value out", 0, 16, 0.4, -0.4)
        assert off(product.detach().numpy().T, wanted) < 1e-5


def test_attention_to_another_sequence_stays_as_below():
    module, forward = ZOO["t5"]()
    plan = make_plan(module, "mimetic", forward=forward)
    below = make_plan(module, "attention_scaled", forward=forward)
    name = "decoder.block.1.layer.1.EncDecAttention.v.weight"
    assert plan[name] == below[name]
    assert isinstance(plan["decoder.block.1.layer.0.SelfAttention.v.weight"], Factor)
    assert "leaves 2 attentions: it attends to another sequence" in str(plan)


def test_positions_are_spoken_of():
    module, forward = ZOO["nanogpt"]()
    assert "sinusoidal" in str(make_plan(module, "mimetic", forward=forward))
    module, forward = layer(32, 4)
    assert "sinusoidal" not in str(make_plan(module, "mimetic", forward=forward))


def test_a_computed_weight_shares_its_randomness_too():
    plain, forward = ZOO["vit"]()
    initialize_(plain, "mimetic", seed=1, forward=forward)
    model, forward = ZOO["vit"]()
    attention = model.vit.layers[0].attention
    torch.nn.utils.parametrizations.weight_norm(attention.o_proj)
    initialize_(model, "mimetic", seed=1, forward=forward)
    wanted = plain.vit.layers[0].attention.o_proj.weight
    assert torch.allclose(attention.o_proj.weight, wanted, atol=1e-6)


def test_a_factor_says_what_cannot_be():
    with pytest.raises(ValueError, match="rank=9 and width=8"):
        Factor("query key", "left", 8, 9, 1, 0.7, 0.7, 0, ("q",))
    factor = Factor("query key", "left", 8, 4, 2, 0.7, -0.7, 0, ("q",))
    assert str(factor) == "query factor of 0.7 Z - 0.7 I, 2 heads of rank 4"
    with pytest.raises(ValueError, match=r"drawn for shape \(8, 8\), but got shape \(8, 4\)"):
        factor.sample((8, 4), torch.Generator())


def test_frozen_matrices_stay():
    model, forward = layer(32, 4)
    model.self_attn.out_proj.weight.requires_grad_(False)
    plan = make_plan(model, "mimetic", forward=forward)
    assert isinstance(plan["self_attn.out_proj.weight"], Keep)


def test_two_factors_take_one_decomposition_on_any_number_of_threads(monkeypatch):
    model, forward = layer(32, 4)
    plan = make_plan(model, "mimetic", forward=forward)
    drawn, before, made = [], torch.get_num_threads(), []
    real = factors._factors
    monkeypatch.setattr(factors, "_WAITING", {})
    monkeypatch.setattr(factors, "_factors", lambda *of: made.append(of) or real(*of))
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            apply_(model, plan, seed=SEED)
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
        drawn.append([p.detach().clone() for p in model.parameters()])
    assert all(map(torch.equal, *drawn))
    assert len(made) == 2 * (4 + 1)  # each time one per head, one for value and output
    assert not factors._WAITING


def test_a_factor_without_its_other_half_is_the_same(monkeypatch):
    query = Factor("query key", "left", 24, 6, 2, 0.7, 0.7, 0, ("q",))
    key = dataclasses.replace(query, side="right")
    generator = torch.Generator().manual_seed(5)
    first, second = query.sample((12, 24), generator), query.sample((12, 24), generator)
    waited = key.sample((12, 24), generator)
    monkeypatch.setattr(factors, "_WAITING", {})
    assert torch.equal(first, second)
    assert torch.equal(waited, key.sample((12, 24), generator))
    for seed in range(9):
        query.sample((12, 24), torch.Generator().manual_seed(seed))
    assert len(factors._WAITING) == 2  # bounded
