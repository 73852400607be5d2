"""The flat space: shared axes, recipes, legal specs, and axes as text."""

import math

import pytest
from hypothesis import given, strategies as st

from lightning_init import InitSpec
from lightning_init.search.space import STRATEGY, Axis, Space, around, parse_axis
from lightning_init.strategies.registry import entries, get

EVERYONE = tuple(entry.name for entry in entries() if entry.name != "chain")
WIDE = Space(EVERYONE, {"model.init_args.lr": around(0.03)})


def value_of(axis: Axis) -> st.SearchStrategy[object]:
    if axis.choices:
        return st.sampled_from(axis.choices)
    if axis.whole:
        return st.integers(int(axis.low), int(axis.high))
    return st.floats(axis.low, axis.high)


POINTS = st.fixed_dictionaries({name: value_of(axis) for name, axis in WIDE.axes.items()})


@given(POINTS, st.sampled_from(WIDE.strategies))
def test_every_point_is_a_legal_spec(point, name):
    spec = WIDE.spec({**point, STRATEGY: name})
    assert spec.strategy == name
    spec.build()
    assert InitSpec.from_dict(spec.to_dict()) == spec
    assert WIDE.overrides(point) == {"model.init_args.lr": point["model.init_args.lr"]}
    for key, value in spec.params.items():
        assert value == point[WIDE._axis_name(name, get(name).parameters[key])]


@pytest.mark.parametrize("name", EVERYONE)
def test_a_strategy_with_its_defaults_is_bare(name):
    point = next(point for point in WIDE.recipes() if point[STRATEGY] == name)
    assert WIDE.spec(point) == InitSpec(name)


def test_equal_declarations_share_an_axis_and_others_do_not():
    names = [name for name in EVERYONE if "gain" in get(name).parameters]
    shared = Space(("xavier_normal", "xavier_uniform"))
    assert set(shared.axes) == {STRATEGY, "gain"}
    for one in names:
        for two in names:
            same = get(one).parameters["gain"].range == get(two).parameters["gain"].range
            axes = Space((one, two)).axes
            assert ("gain" in axes) == same
            assert (f"{one}.gain" in axes) == (not same)


def test_different_ranges_stay_apart():
    apart = [e for e in entries() if e.name in ("normal", "uniform", "truncated_normal")]
    stds = {e.name: e.parameters["std"] for e in apart if "std" in e.parameters}
    axes = Space(tuple(stds)).axes
    for name, parameter in stds.items():
        axis = axes.get("std") or axes[f"{name}.std"]
        low, high = parameter.range.search or (parameter.range.low, parameter.range.high)
        assert (axis.low, axis.high) == (low, high)


def test_recipes_begin_with_keep_then_auto_at_the_users_values():
    space = Space(("orthogonal", "auto"), {"lr": around(0.03), "width": Axis(choices=(32, 64))})
    recipes = space.recipes()
    assert [point[STRATEGY] for point in recipes] == ["keep", "auto", "orthogonal"]
    for point in recipes:
        assert (point["lr"], point["width"]) == (0.03, 32)
        assert set(point) == set(space.axes)


def test_keep_is_always_in_and_once():
    assert Space(("orthogonal",)).strategies == ("keep", "orthogonal")
    assert Space(("orthogonal", "keep")).strategies == ("keep", "orthogonal")
    assert "keep" in Space().strategies
    assert set(Space().strategies) == {"keep", *(e.name for e in entries() if e.search)}


def test_aliases_are_the_same_strategy():
    assert Space(("he_normal", "kaiming_normal")).strategies == ("keep", "kaiming_normal")


def test_an_unknown_strategy_is_named_with_its_neighbours():
    with pytest.raises(
        ValueError, match=r"unknown strategy 'orthogonl': did you mean 'orthogonal'"
    ):
        Space(("orthogonl",))


def test_a_learning_rate_spans_two_decades_around_the_users():
    axis = around(0.03)
    assert (axis.low, axis.high) == pytest.approx((0.003, 0.3))
    assert axis.log
    assert axis.start == 0.03


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr=0.001:0.1", Axis(0.001, 0.1)),
        ("lr=1e-3:1e-1:log", Axis(0.001, 0.1, log=True)),
        ("width=16:128", Axis(16, 128, whole=True)),
        ("width=16:128:log", Axis(16, 128, log=True, whole=True)),
        ("width=16:128.5", Axis(16, 128.5)),
        ("act=tanh,relu", Axis(choices=("tanh", "relu"))),
        ("width=32,64.5", Axis(choices=(32, 64.5))),
        ("bias=true,false", Axis(choices=(True, False))),
        ("one=3", Axis(choices=(3,))),
        ("shift=-1:1", Axis(-1, 1, whole=True)),
    ],
)
def test_axes_as_text(text, expected):
    key, axis = parse_axis(text)
    assert key == text.partition("=")[0]
    assert axis == expected
    assert [type(c) for c in axis.choices] == [type(c) for c in expected.choices]


@pytest.mark.parametrize(
    "text",
    [
        *("", "lr", "lr=", "=1:2", "lr=1:2:3", "lr=1:2:lin", "lr=a:b", "lr=2:1", "lr=1:1"),
        *("lr=0:1:log", "lr=1:2:log:log", "lr=:1", "lr=nan:1", "lr=0:inf", "lr=1,", "lr=a,,b"),
    ],
)
def test_bad_text_names_the_three_forms(text):
    with pytest.raises(ValueError, match=r"--axis must be KEY=LOW:HIGH, .* but got ") as caught:
        parse_axis(text)
    assert repr(text) in str(caught.value)


def test_an_interval_starts_in_its_middle():
    assert Axis(1, 3).start == 2
    assert Axis(1, 100, log=True).start == 10
    assert Axis(1, 4, whole=True).start in (2, 3)
    assert isinstance(Axis(1, 4, whole=True).start, int)
    assert Axis(0, 1, current=0.0).start == 0.0


@pytest.mark.parametrize(
    "axis", [*WIDE.axes.values(), Axis(1, 64, whole=True, log=True), Axis(choices=(1, "a"))]
)
def test_the_start_is_inside_the_distribution(axis):
    assert axis.distribution._contains(axis.distribution.to_internal_repr(axis.start))


def test_the_distribution_has_the_axis_scale():
    assert Axis(0.1, 10, log=True).distribution.log
    assert not Axis(0.1, 10).distribution.log
    whole = Axis(1, 8, whole=True).distribution
    assert (whole.low, whole.high, whole.step) == (1, 8, 1)
    assert math.isclose(Axis(0.1, 10, log=True).distribution.high, 10)


def test_specs_are_candidates_as_they_are():
    made = InitSpec("chain", {"steps": ["orthogonal", "lsuv"]}, seed=3)
    space = Space((made, "orthogonal"))
    assert space.names == ("keep", "chain(orthogonal, lsuv)", "orthogonal")
    assert set(space.axes) == {"strategy", "gain"}
    point = {"strategy": "chain(orthogonal, lsuv)", "gain": 1.5}
    assert space.spec(point) == InitSpec("chain", {"steps": ["orthogonal", "lsuv"]})
    assert space.spec({**point, "strategy": "orthogonal"}).params == {"gain": 1.5}
    assert [r["strategy"] for r in space.recipes()] == list(space.names)
    named = Space(("a.yaml", "orthogonal"), fixed={"a.yaml": made})
    assert named.names == ("keep", "a.yaml", "orthogonal")
    assert named.spec({"strategy": "a.yaml"}).strategy == "chain"
