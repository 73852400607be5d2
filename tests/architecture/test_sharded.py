"""Tensors that are whole in one process."""

import torch
from torch import nn

from lightning_init.architecture.gathered import gathered
from lightning_init.architecture.sharded import fill_, is_sharded, kind_of, local, whole


def test_a_plain_tensor_is_whole() -> None:
    weight = nn.Parameter(torch.arange(4.0))
    assert not is_sharded(weight)
    assert whole(weight).data_ptr() == local(weight).data_ptr() == weight.data_ptr()
    assert not whole(weight).requires_grad
    fill_(weight, torch.ones(4, dtype=torch.float64))
    assert bool((weight == 1).all())
    assert weight.dtype is torch.float32


def test_each_tensor_comes_once_in_the_order_of_names() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(2), nn.Linear(2, 2))
    net[2].weight = net[0].weight
    assert [names for names, _ in gathered(net)] == [
        ("0.bias",),
        ("0.weight", "2.weight"),
        ("2.bias",),
    ]


def test_the_class_of_a_module() -> None:
    assert kind_of(nn.Linear(1, 1)) is nn.Linear
