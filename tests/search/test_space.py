"""The flat space: shared axes, recipes, legal specs, and axes as text."""

import pytest
from hypothesis import given, strategies as st

from lightning_init import Axis, InitSpec
from lightning_init.search.axis import around
from lightning_init.search.space import STRATEGY, Space
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
    assert set(shared.axes) == {STRATEGY, "gain", "scale"}
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


def test_keep_and_auto_are_always_in_and_once():
    assert Space(("orthogonal",)).strategies == ("keep", "auto", "orthogonal")
    assert Space(("orthogonal", "auto", "keep")).strategies == ("keep", "auto", "orthogonal")
    assert set(Space().strategies) == {"keep", *(e.name for e in entries() if e.search)}


def test_aliases_are_the_same_strategy():
    assert Space(("he_normal", "kaiming_normal")).strategies == ("keep", "auto", "kaiming_normal")


def test_an_unknown_strategy_is_named_with_its_neighbours():
    with pytest.raises(
        ValueError, match=r"unknown strategy 'orthogonl': did you mean 'orthogonal'"
    ):
        Space(("orthogonl",))


@pytest.mark.parametrize(
    "axis", [*WIDE.axes.values(), Axis(1, 64, whole=True, log=True), Axis(choices=(1, "a"))]
)
def test_the_start_is_inside_the_distribution(axis):
    assert axis.distribution._contains(axis.distribution.to_internal_repr(axis.start))


def test_specs_are_candidates_as_they_are():
    made = InitSpec("chain", {"steps": ["orthogonal", "lsuv"]}, seed=3)
    space = Space((made, "orthogonal"))
    assert space.names == ("keep", "auto", "chain(orthogonal, lsuv)", "orthogonal")
    assert set(space.axes) == {"strategy", "gain", "scale"}
    point = {"strategy": "chain(orthogonal, lsuv)", "gain": 1.5}
    assert space.spec(point) == InitSpec("chain", {"steps": ["orthogonal", "lsuv"]})
    assert space.spec({**point, "strategy": "orthogonal"}).params == {"gain": 1.5}
    assert [r["strategy"] for r in space.recipes()] == list(space.names)
    named = Space(("a.yaml", "orthogonal"), fixed={"a.yaml": made})
    assert named.names == ("keep", "auto", "a.yaml", "orthogonal")
    assert named.spec({"strategy": "a.yaml"}).strategy == "chain"
