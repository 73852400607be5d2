"""The defaults of the schemes are the values that their authors use."""

import pytest

from lightning_init import InitSpec, make_plan
from lightning_init.strategies.branch_scales import layerscale_value
from lightning_init.strategies.registry import get
from tests.zoo import ZOO

PUBLISHED = {
    # GPT-2 and BERT: N(0, 0.02^2), of which BERT cuts two standard deviations
    "gpt2": {"std": 0.02, "shape": "normal", "position": 1.0},
    "bert": {"std": 0.02},
    # Trockman & Kolter (2023), as their ports have it
    "mimetic": {"alpha1": 0.7, "beta1": 0.7, "alpha2": 0.4, "beta2": 0.4},
    # fairseq's gain of query and key
    "qk_scaled": {"factor": 2**-0.5},
    "skip_gain": {"gain": 2**0.5},
    # Gers et al. (2000), Jozefowicz et al. (2015)
    "recurrent": {"forget_bias": 1.0, "gain": 1.0},
    "siren": {"w0": 30.0},
    "skipinit": {"value": 0.0},
    # the code in the paper's appendix
    "metainit": {"steps": 500, "lr": 0.1, "momentum": 0.9, "eps": 1e-5},
    # the authors' command line and scripts; lr is between 1e-3 and 1e-1 there
    "gradinit": {"steps": 390, "eta": 0.1, "gamma": 1.0, "min_scale": 0.01, "grad_clip": 1.0},
    "lsuv": {"scale": 1.0, "include_head": False},
    "orthogonal": {"gain": 1.0},
    "delta_orthogonal": {"gain": 1.0},
    "kaiming_normal": {"gain": 1.0, "mode": "fan_in"},
    "kaiming_uniform": {"gain": 1.0, "mode": "fan_in"},
    "xavier_normal": {"gain": 1.0},
    "xavier_uniform": {"gain": 1.0},
    "lecun_normal": {"gain": 1.0},
    "lecun_uniform": {"gain": 1.0},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_defaults(name):
    parameters = get(name).parameters
    found = {key: parameters[key].default for key in PUBLISHED[name]}
    assert found == PUBLISHED[name]


@pytest.mark.parametrize(
    ("layers", "value"),
    [(2, 0.1), (18, 0.1), (19, 1e-5), (24, 1e-5), (25, 1e-6), (36, 1e-6)],
)
def test_layer_scale_by_depth(layers, value):
    assert layerscale_value(layers) == value


@pytest.mark.parametrize("kind", ["auto", "encoder", "decoder"])
def test_the_alpha_that_deepnorm_asks_for(kind):
    model, forward = ZOO["encoder"]()  # N = 2: (2 N)^(1/4)
    plan = make_plan(model, InitSpec("deepnorm", {"kind": kind}), forward=forward)
    assert f"with alpha {4**0.25:.4g}" in plan.notes[0]
