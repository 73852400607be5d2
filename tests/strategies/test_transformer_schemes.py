"""gpt2, small and wang, and attention scaled by heads or by queries and keys: every constant."""

import math

import pytest
import torch
from torch import nn

from lightning_init import InitSpec, initialize_, make_plan
from lightning_init.strategies.distributions import Keep, Normal, Uniform
from lightning_init.strategies.needs import NotYetError, UnsuitableError
from tests.zoo import ZOO


def planned(model, name, **params):
    module, forward = ZOO[model]()
    return make_plan(module, InitSpec(name, params), forward=forward)


def test_gpt2_uniform_has_the_std_of_the_normal():
    plan = planned("gpt2", "gpt2", shape="uniform")
    inner, end = (plan[f"transformer.h.0.mlp.{n}.weight"] for n in ("c_fc", "c_proj"))
    assert isinstance(inner, Uniform)
    assert inner.high == -inner.low == pytest.approx(0.02 * 3**0.5, rel=1e-9)
    assert end.high == pytest.approx(0.02 * 3**0.5 / 2, rel=1e-9)  # 2 blocks, 4 additions
    assert inner.std == pytest.approx(0.02, rel=1e-9)
    assert planned("gpt2", "gpt2")["transformer.h.0.mlp.c_proj.weight"] == Normal(0.01)


def test_gpt2_positions_of_the_first_code():
    plan = planned("gpt2", "gpt2", position=0.5)
    assert plan["transformer.wpe.weight"].std == pytest.approx(0.01)
    assert plan["transformer.wte.weight"].std == pytest.approx(0.02)
    assert planned("gpt2", "gpt2")["transformer.wpe.weight"].std == 0.02


def decoder(width, layers):
    model = ZOO["nanogpt"]()[0].__class__(layers, width)
    return model, lambda: model(torch.zeros(1, 4, dtype=torch.long))


@pytest.mark.parametrize(("width", "layers"), [(16, 3), (64, 5), (32, 24)])
def test_small_and_wang_are_the_formulas_of_gpt_neox(width, layers):
    model, forward = decoder(width, layers)
    small, ends = math.sqrt(2 / (5 * width)), 2 / layers / math.sqrt(width)
    plan = make_plan(model, "wang", forward=forward)
    for name in ("h.0.attn.in_proj_weight", "h.1.fc.weight", "wte.weight", "wpe.weight"):
        assert plan[name].std == pytest.approx(small, rel=1e-9), name
    for name in ("h.0.attn.out_proj.weight", "h.1.proj.weight"):
        assert plan[name].std == pytest.approx(ends, rel=1e-9), name
    everywhere = make_plan(model, "small", forward=forward)
    for name in ("h.0.attn.out_proj.weight", "h.1.proj.weight", "h.1.fc.weight", "wte.weight"):
        assert everywhere[name].std == pytest.approx(small, rel=1e-9), name
    assert everywhere["h.0.fc.bias"].std == everywhere["h.0.fc.bias"].mean == 0


def test_the_same_as_transformers_own_functions():
    xlstm = pytest.importorskip("transformers.models.xlstm.modeling_xlstm")
    plan = make_plan(*[(m := decoder(128, 4))[0], "wang"], forward=m[1])
    for made, name in [
        (xlstm.small_init_method(128), "h.2.fc.weight"),
        (xlstm.wang_init_method(4, 128), "h.2.proj.weight"),
    ]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            weight = made(torch.empty(512, 128))
        slack = 5 / math.sqrt(2 * weight.numel())
        assert plan[name].std == pytest.approx(float(weight.std()), rel=slack)


class Stages(nn.Module):
    """Two stages of different width, one after the other."""

    def __init__(self):
        super().__init__()

        def stage(width, layers):
            layer = nn.TransformerEncoderLayer(width, 2, 3 * width, batch_first=True)
            return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

        self.patches, self.wide = nn.Linear(6, 40), stage(40, 2)
        self.bridge, self.narrow = nn.Linear(40, 24), stage(24, 3)
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        return self.head(self.narrow(self.bridge(self.wide(self.patches(x)))))


def test_each_stage_has_its_own_width_and_all_have_the_layers_of_the_stream():
    model = Stages()
    plan = make_plan(model, "wang", forward=lambda: model(torch.randn(2, 5, 6)))

    def small(width):
        return pytest.approx((2 / (5 * width)) ** 0.5, rel=1e-9)

    assert plan["wide.layers.0.linear1.weight"].std == small(40)
    assert plan["wide.layers.0.linear2.weight"].std == pytest.approx(2 / (5 * 40**0.5))
    assert plan["narrow.layers.0.self_attn.in_proj_weight"].std == small(24)
    assert plan["narrow.layers.0.linear2.weight"].std == pytest.approx(2 / (5 * 24**0.5))
    assert plan["patches.weight"].std == small(40)
    assert plan["bridge.weight"].std == small(24)  # by what it writes to
    assert plan["head.weight"].std == small(24)  # by what it reads from


def test_layers_are_those_of_the_decoder_not_all_additions():
    plan = planned("t5", "wang")  # 2 layers in each stack; 4 and 6 additions; width 16
    for name in (
        "encoder.block.0.layer.1.DenseReluDense",
        "decoder.block.0.layer.2.DenseReluDense",
    ):
        assert plan[f"{name}.wo.weight"].std == pytest.approx(2 / (2 * 4))
        assert plan[f"{name}.wi.weight"].std == pytest.approx((2 / 80) ** 0.5)


def test_small_without_a_stream_goes_by_the_layer():
    plan = make_plan(nn.Linear(50, 20), "small")
    assert plan["weight"].std == pytest.approx((2 / 250) ** 0.5)
    assert "small wants a forward pass" in str(plan)


def test_wang_needs_branches():
    with pytest.raises(UnsuitableError, match=r"wang needs residual branches.*'small'"):
        planned("relu_mlp", "wang")
    with pytest.raises(NotYetError, match="wang needs a forward pass"):
        make_plan(nn.Linear(2, 2), "wang")


OUT = {
    "encoder": ("layers.0.self_attn.out_proj.weight", 2),
    "gpt2": ("transformer.h.0.attn.c_proj.weight", 2),
    "llama": ("model.layers.0.self_attn.o_proj.weight", 4),
    "fused_gpt": ("h.0.attn.c_proj.weight", 4),
    "t5": ("decoder.block.0.layer.1.EncDecAttention.o.weight", 2),
}


@pytest.mark.parametrize("model", OUT)
def test_attention_scaled_divides_the_output_by_the_root_of_the_heads(model):
    name, heads = OUT[model]
    steps = {"steps": ["normal", "attention_scaled"]}
    plan = planned(model, "chain", **steps)
    assert plan[name].std == pytest.approx(0.02 / heads**0.5, rel=1e-9)
    changed = [e.info.name for e in plan if isinstance(e.distribution, Normal)]
    rest = [n for n in changed if plan[n].std != 0.02]
    assert all("attn" in n.lower() or "attention" in n.lower() for n in rest)
    assert len(rest) == sum(
        e.info.usage.attention == "out" and e.info.role == "weight" for e in plan if e.info.usage
    )


QK = {
    "encoder": ("layers.0.self_attn.in_proj_weight", 0),
    "gpt2": ("transformer.h.0.attn.c_attn.weight", 1),
    "fused_gpt": ("h.0.attn.c_attn.weight", 0),
}


@pytest.mark.parametrize("model", QK)
def test_qk_scaled_in_a_fused_matrix(model):
    name, axis = QK[model]
    module, forward = ZOO[model]()
    steps = {"steps": ["normal", {"strategy": "qk_scaled", "params": {"factor": 0.25}}]}
    plan = initialize_(module, InitSpec("chain", steps), seed=0, forward=forward)
    stds = [part.std for _, part in plan[name].parts]
    assert stds == pytest.approx([0.005, 0.005, 0.02])
    thirds = dict(module.named_parameters())[name].detach().chunk(3, axis)
    for drawn, std in zip(thirds, (0.005, 0.005, 0.02), strict=True):
        assert float(drawn.std()) == pytest.approx(std, rel=5 / math.sqrt(2 * drawn.numel()))


def test_qk_scaled_in_separate_matrices_of_grouped_queries():
    plan = planned("llama", "chain", steps=["normal", "qk_scaled"])
    for part, std in {"q": 0.5**0.5, "k": 0.5**0.5, "v": 1, "o": 1}.items():
        assert plan[f"model.layers.0.self_attn.{part}_proj.weight"].std == pytest.approx(0.02 * std)


def test_the_default_of_qk_scaled_is_what_torch_draws():
    """torch draws q|k|v as one 3E x E matrix: Xavier times 1/sqrt(2), exactly, in E."""
    width = 256
    layer = nn.TransformerEncoderLayer(width, 4, 32, batch_first=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer.self_attn._reset_parameters()
    query = layer.self_attn.in_proj_weight.detach()[:width]
    plan = make_plan(
        layer,
        InitSpec("chain", {"steps": ["xavier_uniform", "qk_scaled"]}),
        forward=lambda: layer(torch.ones(1, 3, width)),
    )
    found = plan["self_attn.in_proj_weight"].parts[0][1]
    assert found.std == pytest.approx(float(query.std()), rel=5 / math.sqrt(2 * query.numel()))


def test_logits_have_the_square_of_the_factor():
    width, heads, factor = 256, 4, 0.5
    layer = nn.TransformerEncoderLayer(width, heads, 32, batch_first=True)
    steps = ["xavier_normal", {"strategy": "qk_scaled", "params": {"factor": factor}}]
    spec = InitSpec("chain", {"steps": steps})
    initialize_(layer, spec, seed=0, forward=lambda: layer(torch.ones(1, 3, width)))
    q, k, _ = layer.self_attn.in_proj_weight.detach().chunk(3)
    x, y = torch.randn(2, 200, width, generator=torch.Generator().manual_seed(0))
    a, b = (x @ q.T)[:, : width // heads], (y @ k.T)[:, : width // heads]
    logits = (a @ b.T) / math.sqrt(width // heads)
    assert float(logits.std()) == pytest.approx(factor**2, rel=0.1)


@pytest.mark.parametrize("name", ["attention_scaled", "qk_scaled"])
def test_without_attention_there_is_nothing_to_scale(name):
    with pytest.raises(UnsuitableError, match=f"{name} needs attention.*'auto'"):
        planned("residual_mlp", name)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("gpt2", {"shape": "triangular"}),
        ("gpt2", {"position": 0.0}),
        ("qk_scaled", {"factor": 0}),
        ("mimetic", {"alpha1": 0.0}),
        ("mimetic", {"beta2": 3.0}),
        ("deepnorm", {"kind": "decoder-only"}),
        ("tfixup", {"layers": 3}),
    ],
)
def test_bad_arguments(name, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        InitSpec(name, bad).build()


@pytest.mark.parametrize("name", ["small", "wang", "attention_scaled", "qk_scaled"])
def test_scale_doubles_every_std(name):
    plans = [planned("fused_gpt", name, scale=scale) for scale in (1.0, 2.0)]
    for one, two in zip(*plans, strict=True):
        if not isinstance(one.distribution, Keep):
            assert two.distribution.std == pytest.approx(2 * one.distribution.std), one.info.name
