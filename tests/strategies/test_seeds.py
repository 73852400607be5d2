"""Which seed is used, and what a tensor's generator depends on."""

import subprocess
import sys

import pytest
import torch

from lightning_init.strategies.seeds import generator_for, resolve_seed


@pytest.fixture(autouse=True)
def _no_global_seed(monkeypatch):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)


def test_a_given_seed_wins(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    assert resolve_seed(3) == (3, "given")
    assert resolve_seed(0) == (0, "given")


def test_then_seed_everything(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        assert resolve_seed(None) == (5, "seed_everything")


@pytest.mark.parametrize("seed", [0, 11, 2**32 - 1])
def test_then_manual_seed(seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.rand(3)
        assert resolve_seed(None) == (seed, "torch.manual_seed")


def test_else_the_system_draws_one():
    """In a process that nobody seeded: never silently 0, and another one each time."""
    code = (
        "from lightning_init.strategies.seeds import resolve_seed\n"
        "a, b = resolve_seed(None), resolve_seed(None)\n"
        "print(a.source == b.source == 'drawn from the system', a.value != b.value,"
        " 0 <= a.value < 2**63)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["True", "True", "True"]


def test_a_seed_that_is_not_a_number_in_the_environment_is_not_one(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        assert resolve_seed(None) == (4, "torch.manual_seed")


def test_generators_depend_on_seed_and_name_only():
    def draw(seed, *names):
        return torch.rand(4, generator=generator_for(seed, names)).tolist()

    assert draw(0, "a") == draw(0, "a")
    assert draw(0, "a") != draw(1, "a")
    assert draw(0, "a") != draw(0, "b")
    assert draw(1, "1.a") != draw(11, ".a")
    assert draw(0, "a", "b") == draw(0, "b", "a") == draw(0, "a")
    assert draw(2**63 - 1, "a") != draw(0, "a")


def test_streams_of_many_names_are_independent():
    first = torch.stack(
        [torch.randn(64, generator=generator_for(0, (f"h.{i}.weight",))) for i in range(200)]
    )
    correlation = torch.corrcoef(first)
    off = correlation[~torch.eye(200, dtype=torch.bool)]
    assert float(off.abs().max()) < 0.6
    assert float(off.std()) == pytest.approx(64**-0.5, rel=0.05)
