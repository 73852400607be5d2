"""Adapters of every common layout are found, and nothing else is."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from lightning_init import analyze
from lightning_init.architecture.adapters import adapter_tensors
from tests.zoo import ZOO, noise

DOWN, UP = "lora_down", "lora_up"


def roles(model):
    """Name -> role of the tensors that belong to adapters, None for another family."""
    found = adapter_tensors(model)
    return {
        name: None if found[id(p)] is None else str(found[id(p)])
        for name, p in model.named_parameters()
        if id(p) in found
    }


def fans(info):
    return info.fan_in, info.fan_out


class Bare(nn.Linear):
    """litgpt and loralib: two parameters beside a frozen weight, (r, in) and (out, r)."""

    def __init__(self, size, out, rank=4):
        super().__init__(size, out)
        self.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(rank, size))
        self.lora_B = nn.Parameter(torch.zeros(out, rank))

    def forward(self, x):
        return super().forward(x) + x @ self.lora_A.T @ self.lora_B.T


class Transposed(nn.Module):
    """Hand-written the other way round, (in, r) and (r, out)."""

    def __init__(self, size, out, rank=4):
        super().__init__()
        self.base = nn.Linear(size, out)
        self.loraA = nn.Parameter(torch.randn(size, rank))
        self.loraB = nn.Parameter(torch.zeros(rank, out))

    def forward(self, x):
        return self.base(x) + x @ self.loraA @ self.loraB


class Kohya(nn.Module):
    def __init__(self, size, out, rank=4):
        super().__init__()
        self.org_module = nn.Linear(size, out).requires_grad_(False)
        self.lora_down = nn.Linear(size, rank, bias=False)
        self.lora_up = nn.Linear(rank, out, bias=False)

    def forward(self, x):
        return self.org_module(x) + self.lora_up(self.lora_down(x))


class Torchtune(nn.Module):
    """The attributes of torchtune's LoRALinear."""

    def __init__(self, size, out, rank=4):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out, size), requires_grad=False)
        self.lora_a = nn.Linear(size, rank, bias=False)
        self.lora_b = nn.Linear(rank, out, bias=False)
        self.magnitude = nn.Parameter(torch.ones(out))

    def adapter_params(self):
        return ["lora_a.weight", "lora_b.weight", "magnitude"]

    def forward(self, x):
        return F.linear(x, self.weight) * self.magnitude + self.lora_b(self.lora_a(x))


class LoRALinearLayer(nn.Module):
    """diffusers: the class says what it is, its layers are called down and up."""

    def __init__(self, size, out, rank=4):
        super().__init__()
        self.down, self.up = nn.Linear(size, rank, bias=False), nn.Linear(rank, out, bias=False)

    def forward(self, x):
        return self.up(self.down(x))


class Fused(nn.Module):
    """Several pairs on one module, told apart by the rest of the name."""

    def __init__(self, size, out, rank=4):
        super().__init__()
        self.q_lora_A, self.q_lora_B = nn.Linear(size, rank), nn.Linear(rank, out)
        self.lora_A_v, self.lora_B_v = nn.Linear(size, rank), nn.Linear(rank, out)

    def forward(self, x):
        return self.q_lora_B(self.q_lora_A(x)) + self.lora_B_v(self.lora_A_v(x))


class Delta(nn.Module):
    def __init__(self, out, size, rank=4):
        super().__init__()
        self.lora_A = nn.Parameter(torch.randn(rank, size))
        self.lora_B = nn.Parameter(torch.zeros(out, rank))

    def forward(self, weight):
        return weight + self.lora_B @ self.lora_A


def Parametrized(size, out):
    layer = nn.Linear(size, out).requires_grad_(False)
    parametrize.register_parametrization(layer, "weight", Delta(out, size))
    return layer


LAYOUTS = {
    Bare: {"lora_A": DOWN, "lora_B": UP},
    Transposed: {"loraA": DOWN, "loraB": UP},
    Kohya: {"lora_down.weight": DOWN, "lora_up.weight": UP},
    Torchtune: {"magnitude": None, "lora_a.weight": DOWN, "lora_b.weight": UP},
    LoRALinearLayer: {"down.weight": DOWN, "up.weight": UP},
    Fused: {
        "q_lora_A.weight": DOWN,
        "q_lora_B.weight": UP,
        "lora_A_v.weight": DOWN,
        "lora_B_v.weight": UP,
        **dict.fromkeys(["q_lora_A.bias", "q_lora_B.bias", "lora_A_v.bias", "lora_B_v.bias"]),
    },
    Parametrized: {
        "parametrizations.weight.0.lora_A": DOWN,
        "parametrizations.weight.0.lora_B": UP,
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("traced", [False, True])
def test_layouts_written_by_hand(layout, traced):
    model = nn.Sequential(layout(12, 20))
    assert roles(model) == {f"0.{name}": role for name, role in LAYOUTS[layout].items()}
    seen = analyze(model, (lambda: model(noise(3, 12))) if traced else None)
    for name, role in LAYOUTS[layout].items():
        info = seen[f"0.{name}"]
        assert "adapter" in info.flags
        if role is not None:
            assert info.role == role
            assert fans(info) == ((12, 4) if role == DOWN else (4, 20))
    others = {info.name for info in seen} - {f"0.{name}" for name in LAYOUTS[layout]}
    assert not [name for name in others if "adapter" in seen[name].flags]


def test_a_square_layer_is_read_as_libraries_store_it():
    seen = analyze(nn.Sequential(Bare(12, 12)))
    assert fans(seen["0.lora_A"]) == (12, 4)
    assert fans(seen["0.lora_B"]) == (4, 12)


def test_a_convolution_by_hand():
    model = nn.Module()
    model.lora_down, model.lora_up = nn.Conv2d(3, 2, 3, bias=False), nn.Conv2d(2, 8, 1, bias=False)
    seen = analyze(model)
    assert [str(info.role) for info in seen] == [DOWN, UP]
    assert fans(seen["lora_down.weight"]) == (27, 18)
    assert fans(seen["lora_up.weight"]) == (2, 8)


def test_the_table_of_loralib_is_a_table():
    model = nn.Embedding(30, 8)
    model.lora_A, model.lora_B = nn.Parameter(torch.zeros(4, 30)), nn.Parameter(torch.randn(8, 4))
    assert roles(model) == {"lora_A": DOWN, "lora_B": UP}
    assert analyze(model)["weight"].role == "embedding"


def named(*names):
    model = nn.Module()
    for name in names:
        setattr(model, name, nn.Linear(8, 4, bias=False))
    return model


class Flora(nn.Module):
    """No adapter: `lora` is no word of its own in this name."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 2), nn.Linear(2, 8)


class Reports(nn.Linear):
    """Methods of the same name that mean something else."""

    adapter_layer_names = "weight"

    def adapter_params(self, which):
        return ["weight"]


class Raises(nn.Linear):
    def adapter_params(self):
        raise RuntimeError("not built yet")


class Yields(nn.Linear):
    def adapter_params(self):
        return iter(self.parameters())


NEGATIVES = {
    "mlp": lambda: nn.Sequential(nn.Linear(16, 4), nn.Linear(4, 16)),
    "frozen + autoencoder": lambda: nn.Sequential(
        nn.Linear(32, 32).requires_grad_(False),
        nn.Linear(32, 4, bias=False),
        nn.Linear(4, 32, bias=False),
    ),
    "flora": lambda: named("flora_a", "flora_b"),
    "explora": lambda: named("explora_A", "explora_B"),
    "half a pair": lambda: named("lora_A"),
    "other halves": lambda: named("q_lora_A", "k_lora_B"),
    "longer words": lambda: named("lora_alpha", "lora_beta"),
    "up and down": lambda: named("down", "up"),
    "a and b": Flora,
    "a name that is text": lambda: Reports(4, 4),
    "a method that raises": lambda: Raises(4, 4),
    "a method that gives tensors": lambda: Yields(4, 4),
}


@pytest.mark.parametrize("name", NEGATIVES)
def test_what_is_no_adapter(name):
    assert roles(NEGATIVES[name]()) == {}


@pytest.mark.parametrize("name", ZOO)
def test_no_model_of_the_zoo_has_adapters(name):
    assert roles(ZOO[name]()[0]) == {}


def test_the_fans_of_tensors_that_no_name_can_tell_are_unknown():
    model = nn.Module()  # litgpt's fused query and value: three-dimensional, used by a convolution
    model.lora_A, model.lora_B = (
        nn.Parameter(torch.zeros(2, 4, 8)),
        nn.Parameter(torch.zeros(2, 8, 4)),
    )
    seen = analyze(model)
    assert [str(info.role) for info in seen] == [DOWN, UP]
    assert all(math.isnan(info.fan_in) for info in seen)
