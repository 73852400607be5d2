"""Every zoo model, described exactly: with a forward pass and by module types alone."""

import json
import math
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

from lightning_init import analyze
from lightning_init.architecture.params import ParamInfo
from tests.zoo import ZOO, noise

# name: role, fan_in, fan_out, blocks | depth, nonlinearity, ends branch, is_output, calls
WITH_FORWARD = {
    "relu_mlp": """
        0.weight: weight 12 32 1 | 1 relu - - 1
        0.bias: bias 12 nan 1 | 1 relu - - 1
        3.weight: weight 32 24 1 | 2 relu - - 1
        3.bias: bias 32 nan 1 | 2 relu - - 1
        5.weight: weight 24 5 1 | 3 linear - output 1
        5.bias: bias 24 nan 1 | 3 linear - output 1
    """,
    "tanh_mlp": """
        0.weight: weight 16 16 1 | 1 tanh - - 1
        10.weight: weight 16 16 1 | 6 tanh - - 1
        20.weight: weight 16 16 1 | 11 tanh - - 1
        22.weight: weight 16 3 1 | 12 linear - output 1
    """,
    "selu_mlp": """
        0.weight: weight 12 32 1 | 1 selu - - 1
        3.weight: weight 32 5 1 | 2 linear - output 1
    """,
    "plain_cnn": """
        first.weight: weight 27 72 1 | 1 relu - - 1
        first.bias: bias 27 nan 1 | 1 relu - - 1
        second.weight: weight 72 27 1 | 2 relu - - 1
        head.weight: weight 12 5 1 | 3 linear - output 1
    """,
    "residual_cnn": """
        stem.weight: weight 27 72 1 | 1 relu - - 1
        blocks.0.conv1.weight: weight 72 72 1 | 2 relu - - 1
        blocks.0.bn1.weight: norm_scale nan nan 1 | 2 relu - - 1
        blocks.0.conv2.weight: weight 72 72 1 | 3 linear 0 - 1
        blocks.0.bn2.weight: norm_scale nan nan 1 | 3 linear 0 - 1
        blocks.0.bn2.bias: norm_shift nan nan 1 | 3 linear 0 - 1
        blocks.2.conv1.weight: weight 72 72 1 | 6 relu - - 1
        blocks.2.conv2.weight: weight 72 72 1 | 7 linear 2 - 1
        blocks.2.bn2.weight: norm_scale nan nan 1 | 7 linear 2 - 1
        head.weight: weight 8 5 1 | 8 linear - output 1
    """,
    "lstm": """
        table.weight: embedding 1 6 1 | 0 linear - - 1
        lstm.weight_ih_l0: weight 6 8 4 | 1 tanh - - 1
        lstm.weight_hh_l0: recurrent 8 8 4 | 1 tanh - - 1
        lstm.bias_ih_l0: bias nan nan 4 | 1 tanh - - 1
        lstm.weight_ih_l1: weight 8 8 4 | 2 tanh - - 1
        lstm.weight_hh_l1: recurrent 8 8 4 | 2 tanh - - 1
        head.weight: weight 8 3 1 | 3 linear - output 1
    """,
    "encoder": """
        layers.0.self_attn.in_proj_weight: weight 16 16 3 | 1 linear - - 1
        layers.0.self_attn.in_proj_bias: bias 16 nan 3 | 1 linear - - 1
        layers.0.self_attn.out_proj.weight: weight 16 16 1 | 2 linear 0 - 1
        layers.0.linear1.weight: weight 16 32 1 | 3 relu - - 1
        layers.0.linear2.weight: weight 32 16 1 | 4 linear 1 - 1
        layers.0.norm1.weight: norm_scale nan nan 1 | 2 linear - - 1
        layers.0.norm2.bias: norm_shift nan nan 1 | 4 linear - - 1
        layers.1.self_attn.out_proj.bias: bias 16 nan 1 | 6 linear 2 - 1
        layers.1.linear2.weight: weight 32 16 1 | 8 linear 3 output 1
    """,
    "nanogpt": """
        wte.weight: embedding 1 16 1 | 0 linear - output 2
        wpe.weight: position 1 16 1 | 0 linear - - 1
        h.0.ln_1.weight: norm_scale nan nan 1 | 0 linear - - 1
        h.0.attn.in_proj_weight: weight 16 16 3 | 1 linear - - 1
        h.0.attn.out_proj.weight: weight 16 16 1 | 2 linear 0 - 1
        h.0.fc.weight: weight 16 64 1 | 3 gelu - - 1
        h.0.proj.weight: weight 64 16 1 | 4 linear 1 - 1
        h.2.attn.out_proj.weight: weight 16 16 1 | 10 linear 4 - 1
        h.2.proj.bias: bias 64 nan 1 | 12 linear 5 - 1
        ln_f.weight: norm_scale nan nan 1 | 12 linear - - 1
    """,
    "depthwise": """
        0.weight: weight 9 9 8 | 1 silu - - 1
        2.weight: weight 8 16 1 | 2 silu - - 1
        3.weight: norm_scale nan nan 1 | 2 silu - - 1
        5.weight: weight 36 9 4 | 3 linear - output 1
    """,
    "generator": """
        0.weight: weight 24 128 1 | 1 leaky_relu - - 1
        2.weight: weight 16 32 2 | 2 leaky_relu - - 1
        4.weight: weight 36 27 1 | 3 tanh - output 1
    """,
    "padded": """
        table.weight: embedding 1 8 1 | 0 linear - - 1
        bag.weight: embedding 1 8 1 | 0 linear - - 1
        head.weight: weight 8 2 1 | 1 linear - output 1
    """,
    "functional": """
        first: weight 8 16 1 | 1 relu - - 1
        shift: bias nan nan 1 | 1 relu - - 1
        second: weight 16 3 1 | 2 linear - output 1
        temperature: other nan nan 1 | 2 linear - - 1
    """,
    "gpt2": """
        transformer.wte.weight: embedding 1 16 1 | 0 linear - output 2
        transformer.wpe.weight: position 1 16 1 | 0 linear - - 1
        transformer.h.0.ln_1.weight: norm_scale nan nan 1 | 0 linear - - 1
        transformer.h.0.attn.c_proj.weight: weight 16 16 1 | 2 linear 0 - 1
        transformer.h.0.mlp.c_fc.weight: weight 16 64 1 | 3 gelu - - 1
        transformer.h.0.mlp.c_proj.weight: weight 64 16 1 | 4 linear 1 - 1
        transformer.h.1.mlp.c_proj.bias: bias 64 nan 1 | 8 linear 3 - 1
    """,
    "bert": """
        bert.embeddings.word_embeddings.weight: embedding 1 16 1 | 0 linear - - 1
        bert.encoder.layer.0.attention.self.query.weight: weight 16 16 1 | 1 linear - - 1
        bert.encoder.layer.0.attention.output.dense.weight: weight 16 16 1 | 2 linear 0 - 1
        bert.encoder.layer.0.intermediate.dense.weight: weight 16 32 1 | 3 gelu - - 1
        bert.encoder.layer.1.output.dense.weight: weight 32 16 1 | 8 linear 3 - 1
        bert.pooler.dense.weight: weight 16 16 1 | 9 tanh - - 1
        classifier.weight: weight 16 2 1 | 10 linear - output 1
    """,
}
BRANCHES = {"residual_cnn": 3, "encoder": 4, "nanogpt": 6, "gpt2": 4, "bert": 4}
OTHERS = {"functional": {"temperature"}}


def fans(info: ParamInfo) -> str:
    return f"{info.role} {info.fan_in:g} {info.fan_out:g} {info.blocks}"


def used(info: ParamInfo) -> str:
    usage = info.usage
    assert usage is not None
    assert usage.ends_branch == (usage.branch >= 0)
    branch = usage.branch if usage.ends_branch else "-"
    output = "output" if usage.is_output else "-"
    return f"{usage.depth} {usage.nonlinearity} {branch} {output} {usage.calls}"


def rows(text: str) -> dict[str, str]:
    return dict(line.strip().split(": ") for line in text.strip().splitlines())


@pytest.mark.parametrize("name", WITH_FORWARD)
def test_described_with_a_forward_pass(name):
    model, forward = ZOO[name]()
    seen = analyze(model, forward)
    expected = rows(WITH_FORWARD[name])
    assert {key: f"{fans(seen[key])} | {used(seen[key])}" for key in expected} == expected
    assert seen.num_branches == BRANCHES.get(name, 0)
    assert seen.traced
    assert {i.name for i in seen if i.role == "other"} == OTHERS.get(name, set())
    assert {i.usage.num_branches for i in seen if i.usage} == {seen.num_branches}


@pytest.mark.parametrize("name", WITH_FORWARD)
def test_exactly_the_listed_layers_end_branches_and_are_outputs(name):
    """Nothing ends a branch beside the last layer of each branch (and the norm behind it)."""
    model, forward = ZOO[name]()
    seen = analyze(model, forward)
    matrices = [i for i in seen if i.role == "weight" and i.usage.ends_branch]
    assert [i.usage.branch for i in matrices] == list(range(seen.num_branches))
    outputs = [i.name for i in seen if i.role == "weight" and i.usage.is_output]
    tied_head = name in ("nanogpt", "gpt2")
    assert len(outputs) == (0 if tied_head else 1)


@pytest.mark.parametrize("name", ZOO)
def test_module_types_alone_give_the_same_roles_and_fans(name):
    model, forward = ZOO[name]()
    alone, seen = analyze(model), analyze(model, forward)
    assert [i.names for i in alone] == [i.names for i in seen]
    assert not alone.traced
    assert alone.num_branches == 0
    assert all(info.usage is None for info in alone)
    for one, two in zip(alone, seen, strict=True):
        if two.parts:  # fused matrices are told apart by their use only
            assert (one.role, one.fan_in) == (two.role, two.fan_in)
        elif one.role == "embedding" != two.role:  # and so are tables
            assert two.role in ("position", "other")
        elif two.layer:
            assert fans(one) == fans(two)
        else:
            assert one.role == "other", "a bare parameter is known by its use only"


def test_activation_modules_are_suggested_without_a_forward_pass():
    suggested = {n: analyze(ZOO[n]()[0])["0.weight"] for n in ("relu_mlp", "tanh_mlp", "selu_mlp")}
    assert [i.activation for i in suggested.values()] == ["relu", "tanh", "selu"]
    assert analyze(ZOO["relu_mlp"]()[0])["5.weight"].activation == "linear"
    assert analyze(ZOO["lstm"]()[0])["lstm.weight_hh_l1"].activation == "tanh"


@pytest.mark.parametrize(
    ("name", "traits"),
    [
        ("relu_mlp", {"relu"}),
        ("plain_cnn", {"relu", "convolution"}),
        ("residual_cnn", {"relu", "convolution", "norm"}),
        ("lstm", {"recurrence"}),
        ("encoder", {"attention", "norm", "relu"}),
        ("nanogpt", {"attention", "norm", "gelu", "tied table"}),
        ("gpt2", {"attention", "norm", "gelu", "tied table"}),  # its GELU is written out
        ("padded", set()),
    ],
)
def test_traits_of_the_whole_model_are_on_every_entry(name, traits):
    model, forward = ZOO[name]()
    assert {info.traits for info in analyze(model, forward)} == {frozenset(traits)}


def test_tied_tensors_are_one_entry_under_all_their_names():
    model, forward = ZOO["nanogpt"]()
    seen = analyze(model, forward)
    assert seen["wte.weight"] is seen["head.weight"]
    assert seen["head.weight"].names == ("wte.weight", "head.weight")
    assert seen["head.weight"].flags == {"tied"}
    assert len(seen) == len(list(model.parameters()))
    with pytest.raises(KeyError, match=r"no parameter is called 'head\.bias'"):
        _ = seen["head.bias"]


def test_a_head_tied_to_a_table_is_a_table_whichever_is_registered_first():
    model = nn.ModuleDict({"head": nn.Linear(8, 20, bias=False), "table": nn.Embedding(20, 8)})
    model["table"].weight = model["head"].weight
    assert fans(analyze(model)["head.weight"]) == "embedding 1 8 1"


def test_padding_rows_are_known():
    model, _ = ZOO["padded"]()
    seen = analyze(model)
    assert (seen["table.weight"].padding_idx, seen["bag.weight"].padding_idx) == (3, 0)
    assert seen["head.weight"].padding_idx is None


def test_a_shared_layer_counts_its_calls():
    layer = nn.Linear(8, 8)
    model = nn.ModuleList([layer])
    x = noise(2, 8)
    seen = analyze(model, lambda: layer(layer(layer(x).relu()).relu()))
    assert (seen["0.weight"].usage.calls, seen["0.weight"].usage.depth) == (3, 1)


def test_an_unused_parameter_has_no_usage():
    model = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    seen = analyze(model, lambda: model[0](noise(2, 4)))
    assert seen["0.weight"].usage is not None
    assert seen["1.weight"].usage is None


def test_a_forward_that_runs_another_model_is_an_error():
    model, other = nn.Linear(4, 4), nn.Linear(4, 4)
    with pytest.raises(ValueError, match=r"used none of the model's parameters.*forward=lambda"):
        analyze(model, lambda: other(noise(2, 4)))


@pytest.mark.parametrize(
    ("layer", "name", "expected"),
    [
        (nn.Linear(7, 5), "weight", (7, 5, 1)),
        (nn.Bilinear(3, 4, 5), "weight", (12, 20, 1)),
        (nn.Conv1d(6, 9, 5), "weight", (30, 45, 1)),
        (nn.Conv2d(64, 64, 3, groups=64), "weight", (9, 9, 64)),
        (nn.Conv2d(64, 128, 3, groups=4), "weight", (144, 288, 4)),
        (nn.Conv3d(2, 4, (1, 2, 3), stride=(1, 2, 1)), "weight", (12, 12, 1)),
        (nn.Conv2d(8, 8, 3, dilation=2), "weight", (72, 72, 1)),
        (nn.ConvTranspose2d(128, 32, 3), "weight", (1152, 288, 1)),
        (nn.ConvTranspose2d(128, 32, 4, stride=2), "weight", (512, 512, 1)),
        (nn.ConvTranspose2d(8, 12, 4, stride=2, groups=2), "weight", (16, 96, 2)),
        (nn.Embedding(30, 7), "weight", (1, 7, 1)),
        (nn.GRU(5, 6), "weight_ih_l0", (5, 6, 3)),
        (nn.GRU(5, 6, bidirectional=True), "weight_hh_l0_reverse", (6, 6, 3)),
        (nn.RNN(5, 6), "weight_hh_l0", (6, 6, 1)),
        (nn.LSTM(5, 6, proj_size=4), "weight_hh_l0", (4, 6, 4)),
        (nn.LSTM(5, 6, proj_size=4), "weight_hr_l0", (6, 4, 1)),
        (nn.LSTM(5, 6, num_layers=2, bidirectional=True), "weight_ih_l1", (12, 6, 4)),
        (nn.LSTMCell(5, 6), "weight_ih", (5, 6, 4)),
        (nn.GRUCell(5, 6), "weight_hh", (6, 6, 3)),
        (nn.MultiheadAttention(12, 3), "in_proj_weight", (12, 12, 3)),
        (nn.MultiheadAttention(12, 3), "out_proj.weight", (12, 12, 1)),
        (nn.MultiheadAttention(12, 3, kdim=5, vdim=7), "q_proj_weight", (12, 12, 1)),
        (nn.MultiheadAttention(12, 3, kdim=5, vdim=7), "k_proj_weight", (5, 12, 1)),
        (nn.MultiheadAttention(12, 3, kdim=5, vdim=7), "v_proj_weight", (7, 12, 1)),
    ],
    ids=lambda value: str(value)[:48],
)
def test_fans_and_blocks_of_layer_types(layer, name, expected):
    info = analyze(layer)[name]
    assert (info.fan_in, info.fan_out, info.blocks) == expected


@pytest.mark.parametrize(
    ("layer", "roles"),
    [
        (nn.LayerNorm(4), {"weight": "norm_scale", "bias": "norm_shift"}),
        (nn.RMSNorm(4), {"weight": "norm_scale"}),
        (nn.GroupNorm(2, 4), {"weight": "norm_scale", "bias": "norm_shift"}),
        (nn.InstanceNorm1d(4, affine=True), {"weight": "norm_scale", "bias": "norm_shift"}),
        (nn.SyncBatchNorm(4), {"weight": "norm_scale", "bias": "norm_shift"}),
        (nn.PReLU(), {"weight": "other"}),
        (nn.EmbeddingBag(4, 2), {"weight": "embedding"}),
        (nn.MultiheadAttention(4, 1, add_bias_kv=True), {"bias_k": "bias", "bias_v": "bias"}),
        (nn.RNNCell(2, 3), {"weight_ih": "weight", "weight_hh": "recurrent", "bias_hh": "bias"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_roles_of_layer_types(layer, roles):
    seen = analyze(layer)
    assert {name: str(seen[name].role) for name in roles} == roles


class Bare(nn.Module):
    """Bare parameters, used by the function that is given."""

    def __init__(self, use, **shapes):
        super().__init__()
        self.use = use
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))


@pytest.mark.parametrize(
    ("use", "shape", "expected"),
    [
        (lambda w: F.linear(noise(2, 7), w), (5, 7), "weight 7 5 1"),
        (lambda w: F.conv2d(noise(1, 8, 9, 9), w), (6, 8, 3, 3), "weight 72 54 1"),
        (lambda w: F.conv2d(noise(1, 8, 9, 9), w, stride=3), (6, 8, 3, 3), "weight 72 6 1"),
        (
            lambda w: F.conv2d(noise(1, 8, 9, 9), w, None, 1, 0, 1, 4),
            (8, 2, 3, 3),
            "weight 18 18 4",
        ),
        (lambda w: F.conv1d(noise(1, 8, 9), weight=w, groups=2), (6, 4, 3), "weight 12 9 2"),
        (
            lambda w: F.conv_transpose2d(noise(1, 8, 9, 9), w, stride=(2, 1)),
            (8, 6, 4, 4),
            "weight 64 96 1",
        ),
        (
            lambda w: F.conv_transpose1d(noise(1, 8, 9), w, stride=2, groups=2),
            (8, 3, 4),
            "weight 8 12 2",
        ),
        (lambda w: F.embedding(torch.tensor([0, 1]), w), (9, 4), "embedding 1 4 1"),
        (lambda w: F.layer_norm(noise(2, 7), (7,), w), (7,), "norm_scale nan nan 1"),
        (lambda w: noise(2, 7) * w, (7,), "other nan nan 1"),
    ],
)
def test_a_bare_parameter_gets_the_role_of_the_operation(use, shape, expected):
    model = Bare(use, w=shape)
    assert fans(analyze(model, lambda: model.use(model.w))["w"]) == expected


def test_bare_bias_and_norm_shift():
    model = Bare(None, w=(5, 7), b=(5,), scale=(5,), shift=(5,))

    def forward():
        hidden = F.linear(noise(2, 7), model.w, model.b)
        return F.layer_norm(hidden, (5,), model.scale, model.shift)

    roles = {i.name: str(i.role) for i in analyze(model, forward)}
    assert roles == {"w": "weight", "b": "bias", "scale": "norm_scale", "shift": "norm_shift"}


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        (lambda m: m.weight.requires_grad_(False), "frozen"),
        (lambda m: m.to("meta"), "meta"),
        (lambda m: setattr(m, "weight", nn.Parameter(m.weight.to(torch.cfloat))), "complex"),
        (lambda m: nn.utils.parametrizations.weight_norm(m), "parametrized"),
        (lambda m: nn.utils.parametrizations.spectral_norm(m), "parametrized"),
        (lambda m: prune.l1_unstructured(m, "weight", 0.5), "parametrized"),
        (
            lambda m: setattr(
                m, "weight", nn.Parameter(m.weight.detach().to(torch.int8), requires_grad=False)
            ),
            "quantized",
        ),
    ],
)
def test_flags(change, flag):

    model = nn.Linear(4, 4)
    change(model)
    flagged = {flag for info in analyze(model) if "weight" in info.name for flag in info.flags}
    assert flag in flagged
    assert not analyze(nn.Linear(4, 4))["weight"].flags


@pytest.mark.parametrize(
    "layer", [nn.LazyLinear(4), nn.LazyConv2d(4, 3), nn.LazyConvTranspose1d(4, 3)], ids=str
)
def test_lazy_layers_are_flagged_and_stay_lazy(layer):
    model = nn.Sequential(layer)
    shape = (2, 3, 8) if isinstance(layer, nn.LazyConvTranspose1d) else (2, 3, 8, 8)
    unseen, seen = analyze(model), analyze(model, lambda: model(noise(*shape)))
    assert unseen["0.weight"].flags == seen["0.weight"].flags == {"lazy"}
    assert unseen["0.weight"].shape == ()
    assert len(seen["0.weight"].shape) == len(shape) - (
        2 if len(shape) == 4 and "Linear" in str(layer) else 0
    )
    assert nn.parameter.is_lazy(layer.weight)
    assert type(layer).__name__.startswith("Lazy")
    model(noise(*shape))  # still works


def test_adapters_are_flagged():
    model = nn.ModuleDict({"lora_A": nn.Linear(4, 2), "base": nn.Linear(4, 4)})
    seen = analyze(model)
    assert "adapter" in seen["lora_A.weight"].flags
    assert not seen["base.weight"].flags


@pytest.mark.parametrize("name", ZOO)
def test_prints_and_turns_into_json(name):
    model, forward = ZOO[name]()
    seen = analyze(model, forward)
    data = json.loads(json.dumps(seen.to_dict(), allow_nan=False))
    assert [tuple(row["names"]) for row in data["params"]] == [info.names for info in seen]
    lines = str(seen).splitlines()
    assert len(lines) == len(seen) + 1
    total = sum(p.numel() for p in model.parameters())
    assert lines[0] == f"{len(seen)} tensors, {total:,} parameters, seen by one forward pass"
    assert all(math.isnan(i.fan_in) or i.fan_in > 0 for i in seen)
    assert asdict(seen)["num_branches"] == seen.num_branches
