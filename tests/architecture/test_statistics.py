"""What the values of one tensor tell, on draws and trained tensors of known origin."""

import pytest
import torch
from torch import nn

from benchmarks.provenance_models import PATTERNS, hadamard, sinusoids
from lightning_init.architecture.layers import Default
from lightning_init.architecture.statistics import (
    has_drifted,
    has_structure,
    is_constant,
    is_known_draw,
    is_pattern,
    looks_default,
    part,
)
from tests.zoo import noise

DRAWS = {
    "normal": lambda w: nn.init.normal_(w),
    "narrow": lambda w: nn.init.normal_(w, std=1e-4),
    "uniform": lambda w: nn.init.uniform_(w, -1, 1),
    "truncated": lambda w: nn.init.trunc_normal_(w),
    "orthogonal": lambda w: nn.init.orthogonal_(w),
    "kaiming": lambda w: nn.init.kaiming_uniform_(w, a=5**0.5),
}
SHAPES = [(8, 8), (16, 64), (200, 12), (64, 64), (100, 300), (32, 16, 3, 3), (600, 20), (9, 2000)]


@pytest.mark.parametrize("name", DRAWS)
def test_independent_draws_have_no_structure(name):
    """48 draws of each kind, 288 together, and not one false alarm."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for _ in range(6):
            for shape in SHAPES:
                assert not has_structure(DRAWS[name](torch.empty(shape))), shape


@pytest.mark.parametrize(
    "spoil",
    [
        lambda w: w + w[:, :1],
        lambda w: w + 0.3 * noise(128, 1) @ noise(1, 128),
        lambda w: w * torch.linspace(0.2, 2, 128)[:, None],
        lambda w: w * torch.linspace(0.2, 2, 128),
        lambda w: w**3,
        lambda w: w + torch.linspace(-1, 1, 128),
    ],
)
def test_structure_is_found(spoil):
    draw = torch.randn(128, 128, generator=torch.Generator().manual_seed(5))
    assert not has_structure(draw)
    assert has_structure(spoil(draw))


def test_structure_is_not_a_question_for_small_constant_or_meta_tensors():
    for tensor in (torch.ones(64, 64), torch.zeros(64, 64), torch.randn(7, 900).cumsum(1)):
        assert not has_structure(tensor)
    assert not has_structure(torch.empty(64, 64, device="meta"))
    assert not has_structure(torch.arange(4096).view(64, 64))


BOUND = Default("uniform", 0.1)


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("name", PATTERNS)
def test_what_people_set_or_draw_has_no_structure(name):
    shape, draw = PATTERNS[name]
    for _ in range(20):
        weight = torch.empty(shape)
        draw(weight)
        assert not has_structure(weight)


SET = {
    "identity": torch.eye(16),
    "scaled, partial": 0.3 * torch.eye(16, 40),
    "permutation": torch.eye(16)[torch.randperm(16, generator=torch.Generator().manual_seed(0))],
    "dirac": nn.init.dirac_(torch.empty(12, 6, 3, 3), groups=2),
    "zero": torch.zeros(9, 9),
    "constant": torch.full((9, 9), 0.1),
    "equal rows": torch.arange(1.0, 17.0).log().expand(32, 16),
    "equal columns": torch.arange(16.0)[:, None].expand(16, 32),
}


@pytest.mark.parametrize("name", SET)
def test_patterns(name):
    assert is_pattern(SET[name])


def test_tables_of_signs_and_sines_are_patterns():
    weight = torch.empty(64, 128)
    hadamard(weight)
    assert is_pattern(weight)
    assert not is_pattern(weight * torch.linspace(0.9, 1, 64)[:, None])
    sinusoids(weight)
    assert is_pattern(weight)
    assert not is_pattern(weight + 0.01 * noise(64, 128))
    assert not is_pattern(weight[1:])


@pytest.mark.parametrize(
    "weight",
    [
        torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).sign(),
        torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).clamp(-1, 1).round(),
        torch.eye(16) + torch.eye(16).roll(1, 0),
        torch.diag(torch.linspace(0.5, 1, 16)),
        noise(16, 16),
        noise(16, 1) @ noise(1, 16),
    ],
    ids=["binary", "ternary", "two a row", "unequal", "noise", "rank one"],
)
def test_few_values_alone_are_no_pattern(weight):
    """Binary and ternary networks are trained."""
    assert not is_pattern(weight)


def test_a_pattern_that_was_trained_is_none():
    weight = torch.eye(64) + 0.3 * noise(64, 1) @ noise(1, 64) / 8
    assert not is_pattern(weight)
    assert has_structure(weight)
    sparse = nn.init.sparse_(torch.empty(100, 64), 0.3)
    assert has_structure(sparse * torch.linspace(0.3, 2, 64))
    assert has_structure(sparse**3)
    padded = noise(100, 64) * torch.linspace(0.3, 2, 64)
    padded[0] = 0  # one zero in every column, but that is a padding row
    assert has_structure(padded)
    signs = noise(100, 1).sign() @ noise(1, 64).sign()  # equal rows and columns, but one direction
    spike = noise(100, 64) + 0.5 * signs
    assert has_structure(spike)
    spike[0] = 0
    assert has_structure(spike)


@pytest.mark.parametrize("shape", [(64, 128), (128, 64), (32, 16, 3, 3)])
@pytest.mark.parametrize("size", [0.01, 0.03, 0.1])
def test_a_blurred_default_has_drifted(shape, size):
    fan_in = torch.empty(shape)[0].numel()
    default = Default("uniform", fan_in**-0.5)
    for _ in range(10):
        draw = torch.empty(shape).uniform_(-default.value, default.value)
        assert not has_drifted(draw, default)
        moved = draw + size * default.value * torch.randn(shape)
        assert has_drifted(moved, default)
        assert not looks_default(moved, default)


@pytest.mark.parametrize("draw", [
    lambda w: w.uniform_(-0.1005, 0.1005),
    lambda w: w.uniform_(-0.102, 0.102),
    lambda w: w.uniform_(-0.11, 0.11),
    lambda w: w.uniform_(-0.3, 0.3),
    lambda w: w.normal_(0, 0.1 / 3**0.5),
    lambda w: nn.init.trunc_normal_(w, std=0.06, a=-0.12, b=0.12),
    lambda w: nn.init.trunc_normal_(w, std=0.1, a=-0.1, b=0.1),
    lambda w: nn.init.orthogonal_(w, 0.577),
    lambda w: w.uniform_(-0.1, 0.1).view(-1)[:3].fill_(0.13),
])  # fmt: skip
def test_other_draws_have_not_drifted(draw):
    for _ in range(20):
        weight = torch.empty(100, 100)
        draw(weight)
        assert not has_drifted(weight, BOUND)
    for _ in range(300):  # few entries beyond the bound prove nothing
        assert not has_drifted(torch.empty(100, 100).uniform_(-0.1001, 0.1001), BOUND)
    assert not has_drifted(weight, Default("normal", 0.1))
    assert not has_drifted(weight, None)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0] * 8, True),
        ([0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0], True),
        ([0.0] * 7 + [1e-6], False),
        ([0.0, 0.0, 0.0, 1e-6], False),
        ([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], False),
        ([0.0, 1.0], False),
        ([], False),
    ],
)
def test_constants_block_by_block(values, expected):
    assert is_constant(torch.tensor(values)) is expected


KNOWN = {
    "kaiming_normal": nn.init.kaiming_normal_,
    "kaiming_uniform": nn.init.kaiming_uniform_,
    "xavier_normal": nn.init.xavier_normal_,
    "xavier_uniform": nn.init.xavier_uniform_,
    "orthogonal": nn.init.orthogonal_,
    "normal": lambda w: nn.init.normal_(w, std=0.02),
    "uniform": lambda w: nn.init.uniform_(w, -0.05, 0.05),
    "truncated": lambda w: nn.init.trunc_normal_(w, std=0.02, a=-0.04, b=0.04),
    "sparse": lambda w: nn.init.sparse_(w, 0.2),
    "zero": nn.init.zeros_,
}


@pytest.mark.parametrize("shape", [(10, 384), (256, 128), (512, 512)])
@pytest.mark.parametrize("name", KNOWN)
def test_the_draws_of_torch_are_known(name, shape):
    for _ in range(10):
        weight = torch.empty(shape)
        KNOWN[name](weight)
        assert is_known_draw(weight, shape[1], shape[0])


def test_other_draws_are_unknown():
    for std in (0.0091, 0.0101, 0.013, 0.033, 0.17):
        assert not is_known_draw(std * torch.randn(512, 512), 512, 512)
    assert not is_known_draw(0.02 * torch.randn(512, 512) + 0.001, 512, 512)
    assert not is_known_draw(0.02 * torch.randn(512, 512) ** 3 / 15**0.5, 512, 512)
    assert not is_known_draw(torch.zeros(8), 8, 8)
    padded = 0.0091 * torch.randn(512, 512)
    padded[0] = 0  # no `sparse_`, though every column has one zero
    assert not is_known_draw(padded, 512, 512)


def test_every_row_of_a_large_table_may_be_looked_at():
    table = torch.arange(1001.0)[:, None].expand(1001, 600)
    rows = part(table)
    assert rows.shape == (512, 512)
    assert rows[0, 0] == 0
    assert rows[-1, 0] == 1000
    assert part(torch.zeros(5)[:, None]).shape == (5, 1)
