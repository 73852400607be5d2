"""Which seed a run uses: the given one, the spec's, the global one, or a new one that is told."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from lightning_init import InitCallback, InitSpec
from tests.callbacks import nets
from tests.callbacks.nets import AtStart, Digits, mlp


def used(callback: InitCallback) -> tuple[int, str, dict[str, torch.Tensor]]:
    nets.fit(Digits(mlp()), callback, start := AtStart(), default_root_dir="out", max_steps=1)
    data = json.loads(Path("out/init.json").read_text())
    return data["seed"], data["seed_source"], start.weights


def test_a_given_seed_decides_alone() -> None:
    torch.manual_seed(9)
    one = used(InitCallback("orthogonal", seed=4))
    torch.manual_seed(10)
    two = used(InitCallback(InitSpec("orthogonal", seed=4)))
    other = used(InitCallback(InitSpec("orthogonal", seed=5), seed=4))
    assert one[:2] == two[:2] == other[:2] == (4, "given")
    assert nets.same(one[2], two[2])
    assert nets.same(one[2], other[2])
    assert not nets.same(one[2], used(InitCallback("orthogonal", seed=5))[2])


def test_seed_everything() -> None:
    pl.seed_everything(11, verbose=False)
    seed, source, weights = used(InitCallback("orthogonal"))
    assert (seed, source) == (11, "seed_everything")
    torch.rand(5), np.random.rand(5), random.random()  # noqa: NPY002
    assert nets.same(weights, used(InitCallback("orthogonal"))[2])
    assert nets.same(weights, used(InitCallback("orthogonal", seed=11))[2])


def test_manual_seed() -> None:
    torch.manual_seed(12)
    assert used(InitCallback("orthogonal"))[:2] == (12, "torch.manual_seed")


def test_without_any_seed_a_new_one_is_drawn_told_and_good_for_a_repetition(
    said: list[str],
) -> None:
    torch.seed()  # the system's
    seed, source, weights = used(InitCallback("orthogonal"))
    assert source == "drawn from the system"
    assert any(re.search(rf"orthogonal, seed {seed} \(drawn from the system\)", t) for t in said)
    again = used(InitCallback("orthogonal"))
    assert again[0] != seed
    assert nets.same(weights, used(InitCallback("orthogonal", seed=seed))[2])


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, True, "1"])
def test_illegal_seeds(seed: object) -> None:
    with pytest.raises(ValueError, match="seed"):
        InitCallback("auto", seed=seed)
    with pytest.raises(ValueError, match="seed"):
        InitCallback(lambda info: None, seed=seed)
