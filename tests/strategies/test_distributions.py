"""Each distribution draws what it says: exact moments, shape of the law, singular values."""

import math

import pytest
import scipy.stats
import torch

from lightning_init.strategies.distributions import (
    Calibrated,
    Constant,
    Keep,
    Normal,
    TruncatedNormal,
    Uniform,
)
from lightning_init.strategies.matrices import Orthogonal

N = 400_000
CONTINUOUS = {
    "normal": (Normal(0.3), scipy.stats.norm(0, 0.3)),
    "normal with mean": (Normal(0.3, 1.5), scipy.stats.norm(1.5, 0.3)),
    "uniform": (Uniform(-0.2, 0.6), scipy.stats.uniform(-0.2, 0.8)),
    "uniform from std": (Uniform.from_std(0.1), scipy.stats.uniform(-0.1 * 3**0.5, 0.2 * 3**0.5)),
}
for cut in (1.0, 2.0, 3.0):
    unit = scipy.stats.truncnorm(-cut, cut)
    CONTINUOUS[f"cut at {cut}"] = (
        TruncatedNormal(0.02, mean=0.5, cut=cut),
        scipy.stats.truncnorm(-cut, cut, loc=0.5, scale=0.02 / unit.std()),
    )


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_moments_are_exact(name):
    ours, theirs = CONTINUOUS[name]
    assert ours.std == pytest.approx(theirs.std(), rel=1e-12)
    assert ours.mean == pytest.approx(theirs.mean(), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_draws_follow_the_law(name):
    ours, theirs = CONTINUOUS[name]
    draw = ours.sample((N,), generator()).double()
    assert float(draw.std()) == pytest.approx(ours.std, rel=5 / math.sqrt(2 * N))
    assert scipy.stats.kstest(draw.numpy(), theirs.cdf).pvalue > 1e-3
    wrong = (draw - draw.mean()) * 1.02 + draw.mean()
    assert scipy.stats.kstest(wrong.numpy(), theirs.cdf).pvalue < 1e-3, "2 % would be seen"


def test_a_truncated_normal_stays_inside_its_cut():
    law = TruncatedNormal(1.0)
    assert law.parent_std == pytest.approx(1 / 0.8796256610342398, rel=1e-12)
    draw = law.sample((N,), generator())
    assert bool(draw.isfinite().all())
    assert 0.999 * 2 * law.parent_std < float(draw.abs().max()) <= 2 * law.parent_std * (1 + 1e-6)


@pytest.mark.parametrize(
    "law",
    [Normal(0.1), Uniform(-1, 1), TruncatedNormal(0.1), Constant(2.0), Orthogonal((4, 6), 1.5)],
)
def test_scaled_multiplies_the_std_and_keeps_mean_and_reason(law):
    from dataclasses import replace

    law = replace(law, reason="because")
    scaled = law.scaled(3.0)
    assert scaled.std == pytest.approx(3 * law.std)
    assert scaled.mean == law.mean
    assert scaled.reason == "because"
    shape = getattr(law, "shape", (4, 6))
    one, three = law.sample(shape, generator(1)), scaled.sample(shape, generator(1))
    assert torch.allclose(three - law.mean, 3 * (one - law.mean), atol=1e-6)


@pytest.mark.parametrize(
    "law", [Normal(0.1), Uniform(-1, 1), TruncatedNormal(0.1), Constant(2.0), Orthogonal((4, 6))]
)
def test_draws_are_float32_on_the_cpu_and_follow_the_generator_only(law):
    before = torch.get_rng_state()
    one, same, other = (law.sample((4, 6), generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert (one.dtype, one.device.type, one.shape) == (torch.float32, "cpu", (4, 6))
    assert torch.equal(one, same)
    assert torch.equal(one, other) == isinstance(law, Constant)


def test_a_reason_does_not_distinguish_two_distributions():
    assert Normal(0.1, reason="a") == Normal(0.1, reason="b")
    assert Normal(0.1) != Normal(0.2)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Normal(-1.0), "`std >= 0` must hold"),
        (lambda: Normal(math.nan), "got std=nan"),
        (lambda: TruncatedNormal(math.inf), "be finite"),
        (lambda: TruncatedNormal(1.0, cut=0.0), "`cut > 0` must hold, but got cut=0.0"),
        (lambda: Uniform(1.0, 0.0), "`low <= high` must hold"),
        (lambda: Uniform.from_std(-1.0), "std=-1.0"),
        (lambda: Orthogonal((4,)), "2 or more dimensions"),
        (lambda: Orthogonal((4, 4), gain=-1.0), "`gain >= 0`"),
        (lambda: Orthogonal((4, 4), blocks=3), "`blocks` must divide the first dimension"),
        (lambda: Orthogonal((4, 4)).sample((4, 5), generator()), r"drawn for shape \(4, 4\)"),
    ],
)
def test_illegal_values_fail_where_they_are_written(make, text):
    with pytest.raises(ValueError, match=text):
        make()


@pytest.mark.parametrize("law", [Keep("frozen"), Calibrated(1.0, 0.0)])
def test_what_is_not_drawn_refuses_to_be(law):
    with pytest.raises(TypeError, match="drawn"):
        law.sample((2,), generator())


def test_a_kept_tensor_has_no_known_statistics():
    assert math.isnan(Keep("frozen").std)
    assert math.isnan(Keep("frozen").mean)


@pytest.mark.parametrize(
    ("shape", "blocks"),
    [((8, 8), 1), ((8, 20), 1), ((20, 8), 1), ((24, 8), 3), ((32, 8), 4), ((16, 2, 3, 3), 4)],
)
@pytest.mark.parametrize("gain", [1.0, 1.5])
def test_every_singular_value_of_every_block_is_the_gain(shape, blocks, gain):
    law = Orthogonal(shape, gain, blocks)
    draw = law.sample(shape, generator()).flatten(1)
    parts = draw.chunk(blocks)
    for block in parts:
        assert torch.allclose(torch.linalg.svdvals(block), torch.tensor(gain), atol=2e-6)
    rms = float(draw.square().mean().sqrt())
    assert law.std == pytest.approx(rms, rel=1e-6)
    if blocks > 1:
        assert not torch.allclose(parts[0], parts[1], atol=1e-2), "blocks are independent"


def test_square_matrices_are_haar_distributed():
    """Entries, trace and determinant as scipy's Haar sampler has them."""
    size, draws = 4, 3000
    source = generator()
    law = Orthogonal((size, size))
    ours = torch.stack([law.sample((size, size), source) for _ in range(draws)])
    theirs = torch.from_numpy(scipy.stats.ortho_group.rvs(size, draws, random_state=0))
    for statistic in (
        lambda w: w.diagonal(dim1=1, dim2=2).sum(1),
        lambda w: w[:, 0, 0],
        lambda w: w[:, 3, 3],
        lambda w: (w @ w).diagonal(dim1=1, dim2=2).sum(1),
    ):
        one, two = statistic(ours.double()).numpy(), statistic(theirs).numpy()
        assert scipy.stats.ks_2samp(one, two).pvalue > 1e-3
    positive = float((torch.linalg.det(ours) > 0).double().mean())
    assert positive == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(draws))
    trace_squared = float(ours.diagonal(dim1=1, dim2=2).sum(1).square().mean())
    assert trace_squared == pytest.approx(1.0, abs=0.15)  # raw QR without sign fix has 2.2


@pytest.mark.parametrize("shape", [(256, 256), (300, 700)])
def test_orthogonal_draws_do_not_depend_on_the_number_of_threads(shape):
    threads = torch.get_num_threads()
    law = Orthogonal(shape)
    try:
        found = []
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            found.append(law.sample(shape, generator()))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("law", [Normal(0.1), Uniform(-1, 1), TruncatedNormal(0.1)])
def test_long_draws_do_not_depend_on_the_number_of_threads(law):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = law.sample((300_001,), generator())
        torch.set_num_threads(4)
        assert torch.equal(one, law.sample((300_001,), generator()))
    finally:
        torch.set_num_threads(threads)


def test_empty_shapes():
    for law in (Normal(0.1), Uniform(-1, 1), TruncatedNormal(0.1), Constant(1.0)):
        assert law.sample((0, 3), generator()).shape == (0, 3)
