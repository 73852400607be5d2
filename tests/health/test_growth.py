"""Growth over the depth, short nets, jumps and peers: the place, the scheme and the causes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from lightning_init.architecture.readings import LayerReading
from lightning_init.health.registry import examine
from lightning_init.health.trend import growth
from tests.health.made import IN, OUT, after, at, data, layer, only, severity, step, weight


def net(*rms: float, taken: float = 1.0, **facts: Any) -> list[LayerReading]:
    """Layers of which each takes what the last one gave."""
    inputs = [taken, *rms]
    return [layer(str(i), rms=r, input_rms=inputs[i], **facts) for i, r in enumerate(rms)]


@pytest.mark.parametrize(
    ("rms", "fires"),
    [
        ((10 * OUT, 100 * OUT**2), True),  # two layers, from the data on
        ((10 * IN, 100 * IN**2), False),
        ((4.65 * OUT, 21.6, 100 * OUT**3), True),
        ((4.6, 21.2, 98.0), False),
        ((1 / 10.0, 1 / 100 / OUT**2, 0.001), True),  # the head is not part of what vanishes
        ((1 / 10.0, 1 / 100 / IN**2, 1e-9), False),
        ((1 / 10.0, 1e-9), False),
        ((1.0, 0.6, 11.0), False),
        ((1.0, 0.6, 0.6 * 20 * OUT), True),  # a jump
    ],
)
def test_short_nets_are_judged_from_the_data_on(rms: tuple[float, ...], fires: bool) -> None:
    found = only("forward_growth", at(step(layers=net(*rms))))
    assert (found is not None) is fires
    if found is not None:
        assert found.severity == "error"
        assert ("from the data to" in found.message) is (rms[0] != 1.0)
        assert found.where != "the data"
    assert severity("forward_growth", at(step(3, layers=net(*rms)))) is None
    assert severity("forward_growth", at(step(layers=net(*rms, rescaled=True)))) is None
    unknown = [replace(one, input_rms=math.nan) for one in net(*rms)]
    assert severity("forward_growth", at(step(layers=unknown))) is None


@pytest.mark.parametrize(
    ("gains", "fires"),
    [
        ((0.1 * IN, 0.1 * IN, 0.5), True),  # the head may be small, and does not count
        ((0.1 * OUT, 0.1 * OUT, 1e-3), False),  # 0.01 in all
        ((0.15 * IN,) * 4, True),
        ((0.15 * OUT,) * 4, False),
        ((0.01, 0.5), False),
    ],
)
def test_signals_that_vanish_below_the_biases(gains: tuple[float, ...], fires: bool) -> None:
    plain = [
        layer(
            str(i), rms=0.5, input_rms=0.5, expected_rms=0.5 * gain, is_output=i == len(gains) - 1
        )
        for i, gain in enumerate(gains)
    ]
    found = only("forward_growth", at(step(layers=plain)))
    assert (found is not None) is fires
    if found is not None:
        assert (found.severity, found.where) == ("error", "0")
        assert "outputs vanish" in found.message
        assert "bias" in found.message
        assert "1/sqrt(fan_in)" in found.remedy
    norm = weight("n.weight", role="norm_scale")
    for quiet in (
        step(layers=plain, weights=[norm]),
        step(1, layers=plain),
        step(layers=[replace(one, rescaled=True) for one in plain]),
        step(layers=[*plain, layer("block")]),  # a block: what it expects is not known
        step(layers=[plain[0], *(replace(one, input_rms=1.02) for one in plain[1:])]),  # skips
    ):
        assert severity("forward_growth", at(quiet)) is None


def test_parallel_layers_do_not_follow_each_other() -> None:
    towers = [replace(one, input_rms=100.0) for one in net(10.2, 104.1)]
    assert severity("forward_growth", at(step(layers=towers))) is None


def test_a_saturating_layer_does_not_make_the_next_one_jump() -> None:
    def chain(taken: float) -> Any:
        rms = [75.0, 0.5, 0.5, 0.5, 0.5]
        after_first = [75.0, taken, 0.4, 0.4, 0.4]
        return [
            layer(str(i), group="Linear", rms=r, input_rms=t)
            for i, (r, t) in enumerate(zip(rms, after_first, strict=True))
        ]

    assert severity("forward_growth", at(step(layers=chain(0.99)))) is None
    assert severity("forward_growth", at(step(layers=chain(75.0)))) == "error"


def test_a_chain_starts_after_what_is_flat() -> None:
    rms = [1e4, 1e2, 1.0, 1e-2, 1e-4]
    chain = [layer(str(i), group="Linear", rms=r) for i, r in enumerate(rms)]
    assert severity("forward_growth", at(step(layers=chain))) == "error"
    flat = [replace(one, after=after("tanh", saturated=0.5 * OUT)) for one in chain[:2]]
    assert severity("forward_growth", at(step(layers=[*flat, *chain[2:]]))) is None
    some = [replace(one, after=after("tanh", saturated=0.5 * IN)) for one in chain[:2]]
    assert severity("forward_growth", at(step(layers=[*some, *chain[2:]]))) == "error"


def test_the_scheme_is_named() -> None:
    chain = [layer(f"h.{i}", group="Block", rms=8.0**i) for i in range(6)]
    drawn = [
        weight("h.0.ln.weight", role="norm_scale", drawn="constant 1"),
        weight("h.0.fc.weight", drawn="normal, std 1"),
    ]
    found = only("forward_growth", at(step(layers=chain, weights=drawn)))
    assert found is not None
    assert (found.where, found.scheme) == ("h.0", "normal, std 1")
    assert "at h.0 (normal, std 1), step 0" in str(found)


@pytest.mark.parametrize(("std", "first"), [(1.0, "init scale"), (0.125, "architecture")])
def test_large_weights_or_unscaled_branches(std: float, first: str) -> None:
    chain = [layer(f"h.{i}", group="Block", rms=3.0**i) for i in range(8)]
    weights = [weight(f"h.{i}.fc.weight", std=std) for i in range(8)]
    found = only("forward_growth", at(step(layers=chain, weights=weights)))
    assert found is not None
    assert found.causes[0] == first
    if first == "init scale":
        assert "8/sqrt(fan_in): too large" in found.likely_cause
        assert "scale by 1/sqrt(fan_in), here std 0.12" in found.remedy
    else:
        assert "without residual scaling" in found.likely_cause


def test_thirty_dead_layers_after_an_exploding_one_are_one_finding() -> None:
    chain = [
        layer(str(i), group="Linear", rms=30.0 if i else 0.02, after=after(dead=float(i > 0)))
        for i in range(31)
    ]
    (root,) = examine(at(step(layers=chain)))
    assert (root.detector, root.where, root.severity) == ("forward_growth", "1", "error")
    (followed,) = root.consequences
    assert followed.detector == "dead_units"
    assert "after 1 (and 29 more layers)" in followed.message


def test_the_slope_against_least_squares() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = [1.0, 3.5, 2.0, 9.0, 30.0]
    slope = stats.linregress(range(5), [math.log(v) for v in values]).slope
    assert growth(values) == pytest.approx(math.exp(slope), rel=1e-12)


# peers


def peers(ratio: float, count: int = 5, **facts: Any) -> Any:
    like = [weight(f"h.{i}.fc.weight") for i in range(count - 1)]
    return at(step(weights=[*like, weight("h.9.fc.weight", **{"std": 0.125 * ratio} | facts)]))


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (4 * IN, None),
        (4 * OUT, "warning"),
        (6 * IN, "warning"),
        (6 * OUT, "error"),
        (1 / 4 / IN, None),
        (1 / 4 / OUT, "warning"),
        (1 / 6 / IN, "warning"),
        (1 / 6 / OUT, "error"),
        (0.0, None),  # zeros are meant
    ],
)
def test_one_weight_among_its_peers(ratio: float, expected: str | None) -> None:
    found = only("peer_scale", peers(ratio))
    assert (found.severity if found else None) == expected
    if found is not None:
        assert found.where == "h.9.fc.weight"
        assert f"x{ratio:.3g} the median 0.125 of its 5 peers h.#.fc.weight" in found.message
        assert '"params": {"std": 0.125}' in found.remedy


@pytest.mark.parametrize(
    "facts",
    [
        {"shape": (64, 32)},
        {"trained": True},
        {"expected_std": 1.25},
        {"role": "bias"},
        {"trainable": False},
    ],
)
def test_what_has_no_peers(facts: dict[str, Any]) -> None:
    assert severity("peer_scale", peers(100.0)) == "error"
    assert severity("peer_scale", peers(100.0, **facts)) is None
    assert severity("peer_scale", peers(100.0, count=2)) is None
    later = at(step(1, weights=peers(100.0).steps[0].weights))
    assert severity("peer_scale", later) is None


def test_the_last_layers_of_branches_are_peers_of_each_other() -> None:
    def blocks(tail: float, odd: float = 1.0) -> Any:
        sizes = [(i, j, 0.1 if j == 0 else tail) for i in range(6) for j in (0, 2)]
        weights = [
            weight(f"h.{i}.{j}.weight", std=size * (odd if (i, j) == (3, 2) else 1.0))
            for i, j, size in sizes
        ]
        return at(step(weights=weights))

    assert only("peer_scale", blocks(0.01)) is None  # scaled by 1/depth, say
    found = only("peer_scale", blocks(0.01, 10.0))
    assert found is not None
    assert found.where == "h.3.2.weight"
    assert "of its 6 peers h.#.2.weight" in found.message


def test_a_stray_weight_explains_what_it_does() -> None:
    chain = [layer(str(i), group="Linear", rms=1.0 if i < 3 else 50.0) for i in range(6)]
    readings = at(step(layers=chain, weights=peers(100.0).steps[0].weights, inputs=[data()]))
    (root,) = examine(readings)
    assert root.detector == "peer_scale"
    assert [one.detector for one in root.consequences] == ["forward_growth"]
