"""The default space: what applies to a model and little more; what the user names is checked."""

from typing import Annotated

import pytest
import torch
from torch import nn

from lightning_init import Axis, InitSpec, Range, Strategy, analyze, make_plan, strategy
from lightning_init.search.applicable import MOST, choose, refusal, space_for
from lightning_init.strategies import registry
from lightning_init.strategies.initializers import keep
from lightning_init.strategies.needs import UnsuitableError
from tests.zoo import ZOO


class Sine(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 32), nn.Linear(32, 32)])
        self.out = nn.Linear(32, 1)

    def forward(self, x):
        for layer in self.layers:
            x = torch.sin(30.0 * layer(x))
        return self.out(x)


def siren():
    model = Sine()
    return model, lambda: model(torch.ones(4, 2))


def deep_cnn():
    layers = [nn.Conv2d(3, 8, 3, padding=1)]
    layers += [m for _ in range(11) for m in (nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 16, 3))
    return model, lambda: model(torch.ones(2, 3, 4, 4))


MODELS = {**ZOO, "siren": siren, "deep_cnn": deep_cnn}
FIRST, LAST = ("keep", "auto"), ("torch_default",)


def seen(name):
    return analyze(*MODELS[name]())


# What somebody who knows the schemes would try, written down before the rules.
EXPERT = {
    "relu_mlp": "kaiming_normal orthogonal lsuv channel_norm",
    "tanh_mlp": "orthogonal lsuv channel_norm xavier_normal",
    "selu_mlp": "lecun_normal orthogonal lsuv channel_norm",
    "deep_cnn": "orthogonal lsuv channel_norm delta_orthogonal kaiming_normal",
    "residual_mlp": "fixup zero_gamma skip_gain orthogonal lsuv kaiming_normal",
    "residual_cnn": "zero_gamma skip_gain kaiming_normal",
    "resnet": "zero_gamma skip_gain kaiming_normal",
    "densenet": "kaiming_normal",
    "lstm": "recurrent chrono orthogonal xavier_normal",
    "gru_cell": "recurrent chrono orthogonal xavier_normal",
    "siren": "siren",
    "nanogpt": "gpt2 small deepnorm qk_scaled bert wang kaiming_normal",
    "encoder": "gpt2 small deepnorm qk_scaled bert wang kaiming_normal",
    "rezero": "gpt2 small deepnorm qk_scaled tfixup fixup skipinit zero_gamma kaiming_normal",
    "layer_scale": "gpt2 small deepnorm qk_scaled bert wang skipinit kaiming_normal",
}


@pytest.mark.parametrize("name", EXPERT)
def test_the_default_space_is_what_an_expert_would_try(name):
    space, notes = space_for(seen(name))
    assert space.names == (*FIRST, *EXPERT[name].split(), *LAST)
    assert len(notes) == 1
    assert notes[0].startswith("not tried: ")
    assert "\n" not in notes[0]


@pytest.mark.parametrize("name", MODELS)
def test_every_scheme_of_a_default_space_serves_the_model_and_they_are_few(name):
    model, forward = MODELS[name]()
    architecture = analyze(model, forward)
    space, _ = space_for(architecture)
    left = [each for names in choose(architecture).left.values() for each in names]
    assert not set(space.names) & set(left)
    assert len(left) == len(set(left))
    assert space.names[:2] == ("keep", "auto")
    assert 3 < len(space.names) <= MOST
    for strategy_name in space.names:
        make_plan(model, strategy_name, forward=forward)


@pytest.mark.parametrize(
    ("name", "left", "why"),
    [
        ("relu_mlp", "fixup", "no residual branches"),
        ("relu_mlp", "gpt2", "no attention"),
        ("nanogpt", "chrono", "no recurrent layers"),
        ("nanogpt", "lsuv", "has norm layers"),
        ("nanogpt", "orthogonal", "has norm layers"),
        ("residual_cnn", "fixup", "has norm layers"),
        ("residual_mlp", "skipinit", "no learned branch scales"),
        ("deep_cnn", "siren", "no sines"),
        ("plain_cnn", "delta_orthogonal", "no 10 layers in a row"),
    ],
)
def test_what_is_left_out_is_said_with_the_reason(name, left, why):
    assert left in choose(seen(name)).left[why]
    assert f"({why})" in choose(seen(name)).note


def test_without_a_forward_pass_the_space_says_what_is_missing():
    model, _ = ZOO["residual_mlp"]()
    space, notes = space_for(analyze(model))
    assert "fixup" not in space.names
    assert "no forward pass was seen" in notes[-1]


def test_what_the_user_names_is_all_that_is_tried():
    config, scales = {"lr": Axis(0.1, 1.0)}, {"head": Axis(0.1, 1.0, log=True)}
    ranges = {"orthogonal": {"gain": Axis(0.9, 1.1)}}
    spec = InitSpec("chain", {"steps": ["orthogonal", "lsuv"]})
    space, notes = space_for(seen("relu_mlp"), ("orthogonal", spec), config, scales, ranges=ranges)
    assert space.names == ("keep", "auto", "orthogonal", "chain(orthogonal, lsuv)")
    assert notes == ()
    assert space.config == config
    assert space.axes["gain"] == ranges["orthogonal"]["gain"]
    assert space.axes["scale.head"].low == 0.1


@pytest.mark.parametrize(
    ("name", "named", "says"),
    [
        ("relu_mlp", "fixup", "fixup needs residual branches, but the forward pass shows none"),
        ("relu_mlp", "deepnorm", "deepnorm needs residual branches"),
        ("nanogpt", "chrono", "chrono needs recurrent layers"),
        ("nanogpt", "skipinit", r"add_branch_scales_\(model, \"skipinit\""),
        (
            "relu_mlp",
            InitSpec("chain", {"steps": ["orthogonal", "zero_gamma"]}),
            "zero_gamma needs",
        ),
        ("relu_mlp", InitSpec("normal", overrides={"role:head": "siren"}), "siren needs layers"),
    ],
)
def test_a_strategy_that_cannot_serve_the_model_is_refused_before_any_trial(name, named, says):
    with pytest.raises(UnsuitableError, match=says) as caught:
        space_for(seen(name), (named,))
    assert "the nearest scheme that applies is" in str(caught.value)


def test_what_only_a_forward_pass_shows_is_not_refused_without_one():
    model, _ = ZOO["residual_mlp"]()
    assert refusal(InitSpec("fixup"), analyze(model)) == ""
    assert "fixup" in space_for(analyze(model), ("fixup",))[0].names


@pytest.mark.parametrize(
    ("name", "part", "legal"),
    [
        ("relu_mlp", "residual", "all, head"),
        ("nanogpt", "recurrent", "all, attention, embedding, head, position, residual"),
        ("relu_mlp", "haed", "did you mean 'head'"),
    ],
)
def test_a_scale_of_a_part_that_the_model_lacks_is_refused(name, part, legal):
    with pytest.raises(ValueError, match=f"unknown part of this model '{part}'") as caught:
        space_for(seen(name), scales={part: Axis(0.1, 10.0, log=True)})
    assert legal in str(caught.value)


def test_a_scheme_of_a_plugin_is_tried_where_it_applies():
    def mine(gain: Annotated[float, Range(0.5, 2.0)] = 1.0) -> Strategy:
        """Mine."""
        return Strategy(keep)

    try:
        strategy(needs=("branches",))(mine)
        assert "mine" in space_for(seen("residual_mlp"))[0].names
        assert "mine" not in space_for(seen("relu_mlp"))[0].names
    finally:
        del registry._REGISTRY["mine"]
