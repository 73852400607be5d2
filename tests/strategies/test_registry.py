"""The catalogue: names, aliases, validation and plugins."""

import math
from typing import Annotated, Literal

import pytest

from lightning_init import InitSpec, Range, Strategy, strategy
from lightning_init.architecture.arguments import unknown
from lightning_init.strategies import registry
from lightning_init.strategies.distributions import Normal
from lightning_init.strategies.initializers import keep
from lightning_init.strategies.registry import entries, get


@pytest.fixture
def own_registry(monkeypatch):
    """Whatever a test registers is gone afterwards."""
    registry.load_plugins()
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    monkeypatch.setattr(registry, "_ALIASES", dict(registry._ALIASES))


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("he_normal", "kaiming_normal"),
        ("he_uniform", "kaiming_uniform"),
        ("glorot_normal", "xavier_normal"),
        ("glorot_uniform", "xavier_uniform"),
    ],
)
def test_aliases_are_the_same_object(alias, name):
    assert get(alias) is get(name)
    assert InitSpec(alias) == InitSpec(name)
    assert InitSpec(alias).strategy == name


def test_every_entry_has_a_catalogue_text():
    names = [entry.name for entry in entries()]
    assert len(names) == len(set(names))
    for entry in entries():
        if not entry.function.__module__.startswith("lightning_init."):
            continue
        assert entry.summary
        assert "\n" not in entry.summary
        assert "scale" in entry.parameters
        for parameter in entry.parameters.values():
            assert parameter.check(parameter.default, entry.name) == parameter.default
            if parameter.range and parameter.range.search:
                low, high = parameter.range.search
                assert parameter.range.low <= low < high <= parameter.range.high
        text = entry.function.__doc__
        for name in entry.parameters:
            if name != "scale" or "scale" in entry.function.__annotations__:
                assert f"{name}:" in text, f"{entry.name} does not document {name}"


def test_references_are_one_line():
    assert get("gpt2").references.startswith("Radford et al. (2019)")
    assert "\n" not in get("gpt2").references
    assert get("keep").references == ""


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("kaiming_norml", "kaiming_normal"),
        ("xavier", "xavier_normal"),
        ("ortogonal", "orthogonal"),
        ("glorot_unifrom", "glorot_uniform"),
        ("GPT2", None),
    ],
)
def test_an_unknown_name_gives_the_closest_first(typed, meant):
    with pytest.raises(ValueError, match=f"unknown strategy '{typed}'") as caught:
        get(typed)
    text = str(caught.value)
    legal = text.partition("Legal are ")[2].split(", ")
    assert set(legal) == {*registry._REGISTRY, *registry._ALIASES}
    if meant:
        assert f"did you mean {meant!r}" in text or legal[0].startswith("xavier")
        assert meant in legal[:3]


def test_unknown_without_legal_names():
    assert unknown("thing", "a", []) == "unknown thing 'a': Legal are none"


@pytest.mark.parametrize(
    ("name", "params", "text"),
    [
        ("kaiming_normal", {"gain": 2.01}, r"`0.5 <= gain <= 2` must hold, but got gain=2.01"),
        ("kaiming_normal", {"gain": 0.49}, r"kaiming_normal: parameter 'gain'"),
        ("kaiming_normal", {"mode": "fan_inn"}, r"did you mean 'fan_in'"),
        ("kaiming_normal", {"mode": 1}, r"unknown value '1'.*Legal are fan_in, fan_out"),
        ("kaiming_normal", {"gian": 1}, r"unknown parameter 'gian': did you mean 'gain'"),
        ("normal", {"std": "wide"}, r"'std' must be a finite number, but got 'wide'"),
        ("normal", {"std": True}, r"must be a finite number, but got True"),
        ("normal", {"std": None}, r"but got None"),
        ("normal", {"std": [0.1]}, r"but got \[0.1\]"),
        ("normal", {"std": math.nan}, r"but got nan"),
        ("normal", {"std": math.inf}, r"but got inf"),
        ("normal", {"scale": 0}, r"`0.001 <= scale <= 1000` must hold"),
        ("keep", {"scale": 2}, r"`1 <= scale <= 1` must hold"),
        ("lsuv", {"include_head": 1}, r"must be true or false, but got 1"),
        ("lsuv", {"include_head": "yes"}, r"must be true or false"),
    ],
)
def test_illegal_parameters(name, params, text):
    with pytest.raises(ValueError, match=text):
        InitSpec(name, params)


@pytest.mark.parametrize(("given", "value"), [("1e-3", 0.001), ("0.5", 0.5), (1, 1.0), (0.5, 0.5)])
def test_numbers_may_be_text(given, value):
    """YAML 1.1 reads 1e-3 as a string."""
    found = InitSpec("normal", {"std": given}).params["std"]
    assert found == value
    assert type(found) is float


def test_bounds_are_legal():
    assert get("kaiming_normal").check({"gain": 0.5}) == {"gain": 0.5}
    assert get("kaiming_normal").check({"gain": 2}) == {"gain": 2.0}


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Range(2.0, 1.0), "`low <= high`"),
        (lambda: Range(0.0, 1.0, log=True), "`low > 0` if log"),
        (lambda: Range(math.nan, 1.0), "`low <= high`"),
    ],
)
def test_illegal_ranges(make, text):
    with pytest.raises(ValueError, match=text):
        make()


@pytest.mark.usefixtures("own_registry")
class TestRegistering:
    def test_a_users_scheme_is_a_full_member(self):
        @strategy(aliases=("mine_too",))
        def mine(
            gain: Annotated[float, Range(0.5, 2.0)] = 1.0,
            depth: Annotated[int, Range(1, 9)] = 3,
            kind: Literal["a", "b"] = "a",
            flag: bool = False,
        ) -> Strategy:
            """N(0, gain^2)."""
            return Strategy(lambda info: Normal(gain * depth))

        assert mine(2.0).initializer(None) == Normal(6.0)
        assert get("mine_too") is get("mine")
        assert get("mine") in entries()
        made = InitSpec("mine", {"gain": "1.5", "depth": 2.0, "scale": 2}).build()
        assert made.initializer(None) == Normal(6.0)
        with pytest.raises(ValueError, match=r"'depth' must be a whole number, but got 2\.5"):
            InitSpec("mine", {"depth": 2.5})
        with pytest.raises(ValueError, match=r"`1 <= depth <= 9`"):
            InitSpec("mine", {"depth": 10})

    def test_a_name_that_is_taken_is_refused(self):
        def kaiming_normal() -> Strategy:
            return Strategy(keep)

        known = get("kaiming_normal")
        with pytest.raises(
            ValueError, match=r"called 'kaiming_normal' exists.*strategies.variance"
        ):
            strategy(kaiming_normal)
        assert get("kaiming_normal") is known

    def test_an_alias_that_is_taken_is_refused(self):
        def fresh_name() -> Strategy:
            return Strategy(keep)

        for alias in ("he_normal", "orthogonal"):
            with pytest.raises(ValueError, match=f"called {alias!r} exists already"):
                strategy(aliases=(alias,))(fresh_name)
        with pytest.raises(ValueError, match="unknown strategy"):
            get("fresh_name")

    def test_a_reloaded_module_replaces_its_own_entry(self):
        def again() -> Strategy:
            return Strategy(keep)

        strategy(again)
        first = get("again")
        strategy(again)
        assert get("again") is not first
        assert [e.name for e in entries()].count("again") == 1

    def test_signatures_that_yaml_cannot_hold_are_refused(self):
        def no_default(gain: float) -> Strategy:
            return Strategy(keep)

        def wrong_type(gains: list = ()) -> Strategy:
            return Strategy(keep)

        with pytest.raises(TypeError, match="no_default: argument 'gain' needs a default"):
            strategy(no_default)
        with pytest.raises(
            TypeError, match="argument 'gains' must be float, int, bool, str or a Literal"
        ):
            strategy(wrong_type)

    def test_plugins_are_loaded_from_the_entry_points_once(self, monkeypatch):
        loads = []

        class Point:
            def load(self):
                loads.append(1)

                def from_plugin() -> Strategy:
                    """A plugin's scheme."""
                    return Strategy(keep)

                strategy(from_plugin)

        groups = []
        monkeypatch.setattr(
            registry, "entry_points", lambda group: groups.append(group) or [Point()]
        )
        registry.load_plugins.cache_clear()
        assert get("from_plugin").summary == "A plugin's scheme"
        assert "from_plugin" in [entry.name for entry in entries()]
        assert (groups, loads) == (["lightning_init.plugins"], [1])
