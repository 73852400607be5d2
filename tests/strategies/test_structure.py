"""Norms that go and scales that come: what changes, what stays, and what is refused."""

import copy
import pickle

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_init import Role, add_branch_scales_, analyze, initialize_, make_plan, remove_norms_
from lightning_init.architecture.params import Architecture, BranchInfo
from lightning_init.strategies.branch_scales import deepnorm_alphas, layerscale_value
from tests.zoo import ZOO, noise


def norms_of(model):
    named = ((name, type(module).__name__) for name, module in model.named_modules())
    return [name for name, kind in named if name and "Norm" in kind]


# remove_norms_


@pytest.mark.parametrize(
    "model",
    ["bottleneck_cnn", "resnet", "preactivation_cnn", "gpt2", "t5", "llama", "vit", "gemma_norm"],
)
def test_all_norms_go_and_the_model_runs_without(model):
    module, forward = ZOO[model]()
    before = {name: p.clone() for name, p in module.named_parameters()}
    expected = norms_of(module)
    assert remove_norms_(module) == expected
    assert norms_of(module) == []
    assert all(isinstance(module.get_submodule(name), nn.Identity) for name in expected)
    for mode in (True, False):
        module.train(mode)
        assert not any("norm" in info.traits for info in analyze(module, forward))
    after = dict(module.named_parameters())
    assert {n for n in before if n.rpartition(".")[0] not in expected} == set(after)
    assert all(torch.equal(before[name], p) for name, p in after.items())


def test_patterns_choose_norms():
    module, _ = ZOO["bottleneck_cnn"]()
    assert remove_norms_(module, "blocks.0.*") == [
        *("blocks.0.bn1", "blocks.0.bn2", "blocks.0.bn3", "blocks.0.downsample.1")
    ]
    assert "blocks.1.bn1" in norms_of(module)
    with pytest.raises(ValueError, match=r"no norm matches.*did you mean 'blocks\.1\.bn1'"):
        remove_norms_(module, ["blocks.2.bn1", "blocks.1.nb1"])
    assert "blocks.2.bn1" in norms_of(module)


class LayerNorm2d(nn.Module):
    """As timm and others write it: over the channels of an image."""

    def __init__(self, width):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return F.layer_norm(x.movedim(1, -1), self.gain.shape, self.gain).movedim(-1, 1)


class Rms(LayerNorm2d):
    """One whose name does not say what it is."""


def test_norms_of_your_own_go_by_their_class_or_by_name():
    def build():
        layers = (nn.Conv2d(3, 4, 1), LayerNorm2d(4), nn.Conv2d(4, 4, 1), Rms(4), nn.PReLU())
        return nn.Sequential(*layers)

    assert remove_norms_(build()) == ["1"]
    model = build()
    assert remove_norms_(model, names=["1", "3"]) == ["1", "3"]
    assert isinstance(model[3], nn.Identity)
    for name in ("2", "4"):  # a layer of PyTorch's is known to be no norm
        with pytest.raises(ValueError, match="no norm matches"):
            remove_norms_(build(), names=name)
    with pytest.raises(ValueError, match=r"no norm layers.*found by `names`"):
        remove_norms_(model)


def test_a_shared_norm_goes_everywhere_and_is_named_once():
    shared = nn.LayerNorm(4)
    model = nn.ModuleDict({"a": nn.Sequential(shared, nn.Linear(4, 4), shared), "b": shared})
    assert remove_norms_(model) == ["a.0"]
    assert norms_of(model) == []


class PreNorm(nn.Module):
    """Called a norm, but holds the layer behind it."""

    def __init__(self):
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(4), nn.Linear(4, 4)

    def forward(self, x):
        return self.fn(self.norm(x))


class GatedNorm(nn.Module):
    def forward(self, x, gate):
        return F.layer_norm(x, x.shape[-1:]) * gate


def test_what_is_no_norm_stays():
    model = nn.Sequential(PreNorm(), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    assert remove_norms_(model) == ["0.norm"]
    assert isinstance(model[0], PreNorm)


def test_what_cannot_be_removed_is_said_before_anything_changes():
    with pytest.raises(ValueError, match="itself a norm, LayerNorm"):
        remove_norms_(nn.LayerNorm(3))
    with pytest.raises(ValueError, match="no norm layers"):
        remove_norms_(nn.Linear(3, 3))
    model = nn.Sequential(nn.BatchNorm1d(4), GatedNorm())
    with pytest.raises(ValueError, match=r"1 \(GatedNorm\) takes more than one input.*Nothing has"):
        remove_norms_(model)
    assert isinstance(model[0], nn.BatchNorm1d)
    assert remove_norms_(model, "0") == ["0"]
    module, forward = ZOO["residual_cnn"]()
    add_branch_scales_(module, "skipinit", forward=forward)
    with pytest.raises(ValueError, match=r"bn2 carries a branch scale: call remove_norms_ before"):
        remove_norms_(module)


def test_trained_norms_go_only_by_name():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    model(noise(8, 4))
    with pytest.raises(ValueError, match=r"1 is trained.*names='1'"):
        remove_norms_(model)
    assert remove_norms_(model, "1") == ["1"]
    frozen = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False))
    frozen[1].running_mean.fill_(0.1)
    with pytest.raises(ValueError, match="1 is trained"):
        remove_norms_(frozen)
    moved = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64))
    with torch.no_grad():
        moved[1].weight.add_(0.1 * noise(64))
        moved[1].bias.add_(0.1 * noise(64))
    with pytest.raises(ValueError, match="1 is trained"):
        remove_norms_(moved)


def encoder(norm_first, layers=2, dropout=0.0):
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout, batch_first=True, norm_first=norm_first)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=not norm_first)


MASK = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 0, 1]]).bool()


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "padded"])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("change", ["norms", "scales"])
def test_the_fused_encoder_sees_the_change_in_evaluation(norm_first, mask, change):
    model, x = encoder(norm_first), noise(3, 5, 16)
    if change == "norms":
        remove_norms_(model)
    else:
        add_branch_scales_(model, "rezero", value=0.3, forward=lambda: model(x))
    valid = torch.ones(3, 5).bool() if mask is None else ~mask
    trained = model(x, src_key_padding_mask=mask)
    model.eval()
    with torch.no_grad():
        assert torch.allclose(model(x, src_key_padding_mask=mask)[valid], trained[valid], atol=1e-5)


def test_other_encoders_stay_fused():
    model = nn.ModuleDict({"one": encoder(False), "two": encoder(False)})
    assert len(remove_norms_(model, "one.*")) == 4
    found = [(e.use_nested_tensor, e.layers[0].activation_relu_or_gelu) for e in model.values()]
    assert found == [(False, 0), (True, 1)]


def test_an_encoder_of_layers_without_norms():
    layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)
    remove_norms_(layer)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    with torch.no_grad():
        assert model(noise(3, 5, 16)).isfinite().all()


# add_branch_scales_

ENDS = {
    "residual_cnn": [f"blocks.{i}.bn2" for i in range(3)],
    "preactivation_cnn": ["blocks.0.conv2", "blocks.1.conv2"],
    "bottleneck_cnn": [f"blocks.{i}.bn3" for i in range(3)],
    "inverted_residual": ["3.project.1", "4.project.1"],
    "residual_mlp": [f"down.{i}" for i in range(4)],
    "encoder": [f"layers.{i}.{end}" for i in range(2) for end in ("self_attn", "linear2")],
    "parallel_block": [f"{i}.{end}" for i in (1, 2) for end in ("attn.o", "mlp.c_proj")],
    "shared_block": ["block.attn.o", "block.mlp.c_proj"],
    "sparse_experts": ["layers.0", "layers.1"],
    "gpt2": [f"transformer.h.{i}.{end}.c_proj" for i in (0, 1) for end in ("attn", "mlp")],
    "vit": [f"vit.layers.{i}.{end}" for i in (0, 1) for end in ("attention.o_proj", "mlp.fc2")],
    "resnet": [
        f"resnet.encoder.stages.{s}.layers.{i}.layer.2.normalization"
        for s, i in ((0, 0), (0, 1), (1, 0))
    ],
}


@pytest.mark.parametrize("model", ENDS)
def test_the_scale_is_with_what_ends_the_branch(model):
    module, forward = ZOO[model]()
    before = list(module.state_dict())
    added = add_branch_scales_(module, "skipinit", forward=forward)
    assert added == [f"{name}.branch_scale" for name in ENDS[model]]
    assert [name for name in module.state_dict() if name not in added] == before
    seen = analyze(module, forward)
    for name in added:
        assert seen[name].role is Role.BRANCH_SCALE
        assert analyze(module)[name].role is Role.BRANCH_SCALE
        assert seen[name].usage.ends_branch
        assert module.get_parameter(name).tolist() == [0.0]


@pytest.mark.parametrize("model", ["residual_mlp", "norm_first_encoder", "gpt2", "bottleneck_cnn"])
def test_a_branch_of_scale_s_adds_s_times_what_it_added(model):
    """The first residual sum, observed from outside: x + s f(x)."""
    module, forward = ZOO[model]()
    module.eval()
    name = add_branch_scales_(module, "skipinit", value=1.0, forward=forward)[0]
    results = []
    host = module.get_submodule(name.rpartition(".")[0])
    host.register_forward_hook(lambda m, a, out: results.append(copy.deepcopy(out)))
    for s in (1.0, 0.3, 0.0):
        with torch.no_grad():
            module.get_parameter(name).fill_(s)
            forward()
    # The hook came after ours; `+=` overwrites what it saw.
    whole, third, none = (out[0] if isinstance(out, tuple) else out for out in results)
    assert torch.allclose(third, 0.3 * whole, atol=1e-6)
    assert not none.any()
    assert whole.any()


@pytest.mark.parametrize("scheme", ["skipinit", "rezero"])
def test_a_stack_of_zero_scales_is_the_identity(scheme):
    model, x = encoder(norm_first=True), noise(3, 5, 16)
    add_branch_scales_(model, scheme, forward=lambda: model(x))
    assert torch.equal(model(x), x)


class FixupBlock(nn.Module):
    """The reference's basic block, written from its description: biases, a scale, no norm."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.b1a, self.b1b, self.b2a, self.b2b = nn.Parameter(noise(4, 1)).unbind()
        self.scale = nn.Parameter(torch.tensor([1.7]))

    def forward(self, x):
        y = torch.relu(self.conv1(x + self.b1a) + self.b1b)
        return torch.relu(x + self.conv2(y + self.b2a) * self.scale + self.b2b)


class PlainBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, bias=False)

    def forward(self, x):
        return torch.relu(x + self.conv2(torch.relu(self.conv1(x))))


def test_fixup_is_the_block_of_its_authors():
    one, two, x = PlainBlock(), FixupBlock(), noise(2, 4, 5, 5)
    two.load_state_dict({**one.state_dict(), "scale": two.scale})
    plain = one(x)
    assert add_branch_scales_(one, "fixup", forward=lambda: one(x)) == [
        *("conv1.branch_bias_in", "conv1.branch_bias_out"),
        *("conv2.branch_scale", "conv2.branch_bias_in", "conv2.branch_bias_out"),
    ]
    assert torch.equal(one(x), plain)  # it starts without effect
    with torch.no_grad():
        one.conv1.branch_bias_in.copy_(two.b1a)
        one.conv1.branch_bias_out.copy_(two.b1b)
        one.conv2.branch_bias_in.copy_(two.b2a)
        one.conv2.branch_bias_out.copy_(two.b2b)
        one.conv2.branch_scale.copy_(two.scale)
    assert torch.allclose(one(x), two(x), atol=1e-6)
    seen = analyze(one, lambda: one(x))
    assert seen["conv1.weight"].usage.nonlinearity == "relu"  # past the bias in between
    assert seen.branches[0].layers == 2
    assert seen["conv1.branch_bias_in"].role is seen["conv2.branch_bias_out"].role is Role.BIAS


def test_fixup_biases_of_attention():
    x = noise(3, 5, 16)
    for named in (False, True):
        attention = nn.MultiheadAttention(16, 2, batch_first=True)

        def call(m=attention, named=named):
            return m(query=x, key=x, value=x) if named else m(x, x, x)

        before = call()[0]
        add_branch_scales_(attention, "fixup", forward=lambda call=call: x + call()[0])
        assert torch.allclose(call()[0], before, atol=1e-6)
        with torch.no_grad():
            attention.branch_bias_in.fill_(0.5)
            attention.branch_bias_out.fill_(0.25)
            attention.branch_scale.fill_(2.0)
        shifted = x + 0.5
        plain = nn.MultiheadAttention(16, 2, batch_first=True)
        plain.load_state_dict(attention.state_dict(), strict=False)
        expected = 2 * plain(shifted, shifted, shifted)[0] + 0.25
        assert torch.allclose(call()[0], expected, atol=1e-5)


def test_the_branch_is_a_sequential():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch = nn.Sequential(
                nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4), nn.Identity(), nn.Dropout(0.1)
            )

        def forward(self, x):
            return x + self.branch(x)

    model = nn.Sequential(Block(), Block())
    x = noise(2, 4)
    assert add_branch_scales_(model, "rezero", forward=lambda: model(x)) == [
        *("0.branch.2.branch_scale", "1.branch.2.branch_scale")
    ]


def test_removed_norms_host_nothing():
    module, forward = ZOO["bottleneck_cnn"]()
    remove_norms_(module)
    added = add_branch_scales_(module, "skipinit", forward=forward)
    assert added == [f"blocks.{i}.conv3.branch_scale" for i in range(3)]


def test_vectors_have_a_number_per_channel():
    for model, shape in (("residual_cnn", (8, 1, 1)), ("gpt2", (16,)), ("encoder", (16,))):
        module, forward = ZOO[model]()
        added = add_branch_scales_(module, "layerscale", forward=forward)
        assert {tuple(module.get_parameter(name).shape) for name in added} == {shape}
        values = torch.cat([module.get_parameter(name).flatten() for name in added])
        assert torch.equal(values, torch.full_like(values, 0.1))


@pytest.mark.parametrize(("layers", "value"), [(18, 0.1), (19, 1e-5), (24, 1e-5), (25, 1e-6)])
def test_layerscale_starts_by_depth(layers, value):
    assert layerscale_value(layers) == value
    if layers in (18, 25):
        model, x = encoder(norm_first=True, layers=layers), noise(1, 2, 16)
        add_branch_scales_(model, "layerscale", forward=lambda: model(x))
        found = model.layers[-1].linear2.branch_scale
        assert torch.allclose(found, torch.full((16,), value), rtol=1e-5)


def test_rezero_shares_a_scalar_per_layer_if_asked():
    model, x = encoder(norm_first=True), noise(1, 2, 16)
    added = add_branch_scales_(model, "rezero", forward=lambda: model(x), per_layer=True)
    assert len(added) == 4
    assert model.layers[0].self_attn.branch_scale is model.layers[0].linear2.branch_scale
    assert model.layers[1].self_attn.branch_scale is not model.layers[0].linear2.branch_scale
    names = [name for name, _ in model.named_parameters() if "branch_scale" in name]
    assert len(names) == 2
    twin = copy.deepcopy(model)
    assert twin.layers[0].self_attn.branch_scale is twin.layers[0].linear2.branch_scale
    module, forward = ZOO["residual_mlp"]()  # no attention: every branch is a layer
    add_branch_scales_(module, "rezero", forward=forward, per_layer=True)
    assert len({id(layer.branch_scale) for layer in module.down}) == 4


# DeepNorm and Admin


@pytest.mark.parametrize("layers", [1, 6, 18])
def test_deepnorm_is_post_ln_with_alpha(layers):
    """LN(alpha x + f(x)), written out, with alpha = (2N)^(1/4)."""
    model, x = encoder(norm_first=False, layers=layers), noise(3, 5, 16)
    plain = copy.deepcopy(model)
    for layer in (*model.layers, *plain.layers):
        layer.norm1.eps = layer.norm2.eps = 1e-12
    add_branch_scales_(model, "deepnorm", forward=lambda: model(x))
    alpha, y = (2 * layers) ** 0.25, x
    for layer in plain.layers:
        y = layer.norm1(alpha * y + layer.self_attn(y, y, y)[0])
        y = layer.norm2(alpha * y + layer.linear2(torch.relu(layer.linear1(y))))
    assert torch.allclose(model(x), y, atol=1e-4)
    scale = model.layers[0].linear2.branch_scale
    assert scale.item() == pytest.approx(1 / alpha)
    assert not scale.requires_grad
    plan = initialize_(model, "xavier_normal", seed=0, forward=lambda: model(x))
    assert str(plan["layers.0.linear2.branch_scale"]) == "keep"
    assert scale.item() == pytest.approx(1 / alpha)


def test_deepnorm_alphas_of_encoder_and_decoder():
    """N = 6, M = 12: figure 2 of the paper, computed by hand."""
    encoder = [BranchInfo(2, 0, attends=i % 2 == 0) for i in range(12)]
    decoder = [BranchInfo(2, 1, attends=i % 3 < 2, crosses=i % 3 == 1) for i in range(36)]
    both = deepnorm_alphas(Architecture((), 48, True, (*encoder, *decoder)))
    assert both == {0: pytest.approx(1.4807, rel=1e-4), 1: pytest.approx(2.4495, rel=1e-4)}
    alone = deepnorm_alphas(Architecture((), 12, True, tuple(encoder)))
    assert alone == {0: pytest.approx(1.8612, rel=1e-4)}
    perceptron = tuple(BranchInfo(2, 0) for _ in range(16))
    assert deepnorm_alphas(Architecture((), 16, True, perceptron)) == {0: pytest.approx(2.0)}


def test_deepnorm_on_a_model_with_both():
    model = nn.Transformer(16, 2, 2, 4, 32, 0.0, batch_first=True)
    x, y = noise(2, 5, 16), noise(2, 6, 16)
    add_branch_scales_(model, "deepnorm", forward=lambda: model(x, y))
    alphas = [
        1 / model.encoder.layers[0].self_attn.branch_scale.item(),
        *(
            1 / getattr(model.decoder.layers[3], name).branch_scale.item()
            for name in ("self_attn", "multihead_attn", "linear2")
        ),
    ]
    assert alphas == pytest.approx([0.81 * (2**4 * 4) ** (1 / 16), *[12**0.25] * 3], rel=1e-6)


def test_admin_is_a_vector_of_ones():
    model, x = encoder(norm_first=False), noise(3, 5, 16)
    before = model(x)
    added = add_branch_scales_(model, "admin", forward=lambda: model(x))
    assert torch.equal(model(x), before)
    assert {tuple(model.get_parameter(name).shape) for name in added} == {(16,)}
    assert all(model.get_parameter(name).requires_grad for name in added)


@pytest.mark.parametrize("scheme", ["deepnorm", "admin"])
@pytest.mark.parametrize(
    "model", ["gpt2", "residual_cnn", "preactivation_cnn", "rms_norm", "parallel_block", "t5"]
)
def test_post_ln_schemes_refuse_other_models(scheme, model):
    module, forward = ZOO[model]()
    with pytest.raises(ValueError, match=f"{scheme} is for Post-LN"):
        add_branch_scales_(module, scheme, forward=forward)
    assert not any("branch_scale" in name for name, _ in module.named_parameters())


# What a changed model survives


def changed():
    model, x = encoder(norm_first=True), noise(3, 5, 16)
    add_branch_scales_(model, "fixup", forward=lambda: model(x))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "branch" in name:
                parameter.add_(0.1)
    return model, x


@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda model: pickle.loads(pickle.dumps(model)),
        lambda model: torch.compile(model, backend="eager"),
    ],
    ids=["deepcopy", "pickle", "compile"],
)
def test_copies_compute_the_same(copied):
    model, x = changed()
    twin = copied(model)
    assert torch.allclose(twin(x), model(x), atol=1e-6)
    loss = twin(x).square().mean()
    loss.backward()
    grads = [p.grad for name, p in twin.named_parameters() if "branch" in name]
    assert len(grads) == 2 * 2 + 2 * 2 * 3
    assert all(grad is not None and bool(grad.abs().sum() > 0) for grad in grads)


def test_a_copy_has_parameters_of_its_own():
    model, x = changed()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if name.endswith("branch_scale"):
                parameter.zero_()
        assert not torch.allclose(twin(x), model(x))
        assert torch.allclose(model(x), changed_again(model)(x))


def changed_again(model):
    twin, x = encoder(norm_first=True), noise(3, 5, 16)
    add_branch_scales_(twin, "fixup", forward=lambda: twin(x))
    twin.load_state_dict(model.state_dict())
    return twin


class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), PlainMLP(), nn.LayerNorm(8), nn.Linear(8, 2))
        remove_norms_(self)
        add_branch_scales_(self, "fixup", forward=lambda: self(torch.ones(2, 4)))

    def forward(self, x):
        return self.net(x)


class PlainMLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


def test_a_lightning_module_that_changes_itself_loads_its_checkpoint(tmp_path):
    module, x = Module(), noise(3, 4)
    with torch.no_grad():
        module.net[1].down.branch_scale.fill_(0.7)
    trainer = L.Trainer(logger=False, enable_progress_bar=False, accelerator="cpu")
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    loaded = Module.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert torch.equal(loaded.to("cpu")(x), module(x))
    assert loaded.net[1].down.branch_scale.item() == pytest.approx(0.7)


def test_half_precision_stays_half():
    model, x = encoder(norm_first=True), noise(3, 5, 16)
    add_branch_scales_(model, "fixup", forward=lambda: model(x))
    model.bfloat16()
    assert model(x.bfloat16()).dtype is torch.bfloat16
    assert model.layers[0].linear2.branch_scale.dtype is torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert encoder(norm_first=True)(x).dtype is model.float()(x).dtype
    double = encoder(norm_first=True).double()
    add_branch_scales_(double, "layerscale", forward=lambda: double(x.double()))
    assert double.layers[0].linear2.branch_scale.dtype is torch.float64


def test_the_model_is_otherwise_as_it_was():
    model, x = encoder(norm_first=True, dropout=0.1), noise(3, 5, 16)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    add_branch_scales_(model, "skipinit", forward=lambda: model(x))
    assert torch.equal(torch.get_rng_state(), state)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert model.training


# By name, and errors


def test_names_choose_ends():
    module, forward = ZOO["gpt2"]()
    added = add_branch_scales_(module, "skipinit", forward=forward, names="*.mlp.c_proj")
    assert added == [f"transformer.h.{i}.mlp.c_proj.branch_scale" for i in (0, 1)]
    module, forward = ZOO["gpt2"]()
    with pytest.raises(ValueError, match=r"no end of a branch matches.*h\.1\.mlp\.c_proj"):
        add_branch_scales_(module, "skipinit", forward=forward, names="transformer.h.1.mlp.c_prj")
    added = add_branch_scales_(module, "layerscale", names=["*.c_proj"], value=0.1)
    assert len(added) == 4
    assert module.transformer.h[0].attn.c_proj.branch_scale.shape == (16,)


def test_fixup_of_some_branches():
    module, forward = ZOO["residual_mlp"]()
    added = add_branch_scales_(module, "fixup", forward=forward, names=["down.1"])
    assert {name.rpartition(".")[0] for name in added} == {"up.1", "down.1"}


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(2, 6, 3), (6, 1)),
        (nn.ConvTranspose2d(2, 6, 3), (6, 1, 1)),
        (nn.BatchNorm2d(6), (6, 1, 1)),
        (nn.Linear(2, 6), (6,)),
        (nn.LayerNorm((3, 6)), (6,)),
        (nn.MultiheadAttention(6, 2), (6,)),
    ],
)
def test_channels_of_a_layer_by_its_type(layer, shape):
    host = nn.ModuleDict({"layer": layer})
    add_branch_scales_(host, "admin", names="layer")
    assert tuple(layer.branch_scale.shape) == shape


def test_what_is_refused():
    module, forward = ZOO["relu_mlp"]()
    with pytest.raises(ValueError, match="rezero needs residual branches, but the forward pass"):
        add_branch_scales_(module, "rezero", forward=forward)
    module, forward = ZOO["residual_mlp"]()
    with pytest.raises(ValueError, match="unknown scheme 'fixupp': did you mean 'fixup'"):
        add_branch_scales_(module, "fixupp", forward=forward)
    with pytest.raises(ValueError, match="skipinit needs a forward pass"):
        add_branch_scales_(module, "skipinit")
    with pytest.raises(ValueError, match=r"fixup needs a forward pass .* not only where they end"):
        add_branch_scales_(module, "fixup", names="down.*")
    with pytest.raises(ValueError, match="layerscale needs a forward pass"):
        add_branch_scales_(module, "layerscale", names="down.*")
    with pytest.raises(ValueError, match="no module matches"):
        add_branch_scales_(module, "skipinit", names="dwn")
    with pytest.raises(TypeError, match="forward must be a call"):
        add_branch_scales_(module, "skipinit", forward=noise(2, 4))
    assert not any("branch" in name for name, _ in module.named_parameters())
    add_branch_scales_(module, "skipinit", forward=forward)
    with pytest.raises(ValueError, match=r"down\.0 has a branch scale already"):
        add_branch_scales_(module, "rezero", forward=forward)


def test_layers_that_are_no_modules_are_named():
    module, forward = ZOO["stacked_experts"]()
    with pytest.raises(ValueError, match=r"layer of residual branch 1 of 2 .* in layers\.0 uses"):
        add_branch_scales_(module, "fixup", forward=forward)

    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(noise(4, 4))

        def forward(self, x):
            return x + F.linear(x, self.weight)

    bare = Bare()
    with pytest.raises(ValueError, match=r"no module of its own: linear in the model uses bare"):
        add_branch_scales_(bare, "skipinit", forward=lambda: bare(noise(2, 4)))
    assert list(dict(bare.named_parameters())) == ["weight"]


def test_a_module_that_also_works_elsewhere_is_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return torch.tanh(self.layer(x + self.layer(x)))

    model = Twice()
    with pytest.raises(ValueError, match="layer ends residual branch 1, but is also used elsewh"):
        add_branch_scales_(model, "skipinit", forward=lambda: model(noise(2, 4)))


def test_lazy_models_run_first():
    model = nn.Sequential(nn.LazyLinear(4))
    with pytest.raises(ValueError, match="lazy layers: run it once"):
        add_branch_scales_(model, "skipinit", forward=lambda: model(noise(2, 4)))


def test_a_plan_of_a_changed_model_knows_what_was_added():
    module, forward = ZOO["resnet"]()
    remove_norms_(module)
    add_branch_scales_(module, "fixup", forward=forward)
    plan = make_plan(module, "kaiming_normal", forward=forward)
    assert ", 0 unrecognized" in plan.summary()
    added = {e.info.name: str(e.distribution) for e in plan if "branch" in e.info.name}
    assert {v for name, v in added.items() if "bias" in name} == {"constant 0"}
    assert {v for name, v in added.items() if "scale" in name} == {"keep"}
