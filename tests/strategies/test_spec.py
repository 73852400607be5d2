"""The spec: validation at construction, and YAML both ways."""

import math
import pickle

import pytest
import yaml
from hypothesis import given, settings, strategies as st

from lightning_init import InitSpec
from lightning_init.strategies.registry import entries

ROLES = ["role:weight", "role:embedding", "role:bias", "head.*", "*.weight", "net.0.bias", "ä[1]"]
BUILT_IN = [e for e in entries() if e.function.__module__.startswith("lightning_init.")]


def parameter_values(parameter):
    if parameter.choices:
        return st.sampled_from(parameter.choices)
    if parameter.converted:
        return st.just(parameter.default)
    if parameter.kind is str:
        return st.text(max_size=8)
    if parameter.kind is bool:
        return st.booleans()
    limits = parameter.range
    low, high = (limits.low, limits.high) if limits else (-1e6, 1e6)
    if parameter.kind is int:
        return st.integers(math.ceil(low), math.floor(high))
    return st.floats(low, high, allow_nan=False)


@st.composite
def plain_specs(draw):
    entry = draw(st.sampled_from(BUILT_IN))
    chosen = draw(st.sets(st.sampled_from(sorted(entry.parameters))))
    params = {name: draw(parameter_values(entry.parameters[name])) for name in sorted(chosen)}
    return InitSpec(entry.name, params)


@st.composite
def specs(draw):
    base = draw(plain_specs())
    overrides = draw(st.dictionaries(st.sampled_from(ROLES), plain_specs(), max_size=3))
    seed = draw(st.none() | st.integers(0, 2**63 - 1))
    return InitSpec(base.strategy, base.params, overrides, seed)


@settings(max_examples=150, deadline=None, database=None, derandomize=True)
@given(specs())
def test_yaml_round_trip(spec):
    again = InitSpec.from_dict(yaml.safe_load(yaml.safe_dump(spec.to_dict(), sort_keys=False)))
    assert again == spec
    assert hash(again) == hash(spec)
    assert list(again.overrides) == list(spec.overrides), "the order decides which one wins"
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert spec.build().initializer is not None


@settings(max_examples=100, deadline=None, database=None, derandomize=True)
@given(st.data())
def test_values_outside_their_range_are_refused(data):
    entry = data.draw(st.sampled_from(BUILT_IN))
    ranged = [p for p in entry.parameters.values() if p.range]
    parameter = data.draw(st.sampled_from(ranged))
    low, high = parameter.range.low, parameter.range.high
    outside = data.draw(
        st.floats(max_value=low, exclude_max=True, allow_nan=False)
        | st.floats(min_value=high, exclude_min=True, allow_nan=False)
    )
    with pytest.raises(ValueError, match=parameter.name):
        InitSpec(entry.name, {parameter.name: outside})


def test_files(tmp_path):
    spec = InitSpec("gpt2", {"std": 1e-3, "scale": 2}, {"role:embedding": "normal"}, seed=2**62)
    spec.save(tmp_path / "spec.yaml")
    assert InitSpec.load(tmp_path / "spec.yaml") == spec
    assert InitSpec.load(str(tmp_path / "spec.yaml")) == spec
    assert (tmp_path / "spec.yaml").read_text().startswith("strategy: gpt2\n")


@pytest.mark.parametrize("key", ["callbacks+", "callbacks"])
@pytest.mark.parametrize("as_list", [True, False])
def test_an_overlay_of_the_search(tmp_path, key, as_list):
    callback = {
        "class_path": "lightning_init.callbacks.init.InitCallback",
        "init_args": {
            "strategy": "normal",
            "params": {"std": "1e-3"},
            "seed": 4,
            "scope": "all",
            "monitor_steps": 10,
        },
    }
    other = {"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"}
    callbacks = [other, callback] if as_list else callback
    overlay = {"model": {"lr": 0.1}, "trainer": {"max_steps": 3, key: callbacks}}
    path = tmp_path / "best.yaml"
    path.write_text(yaml.safe_dump(overlay))
    assert InitSpec.load(path) == InitSpec("normal", {"std": 0.001}, seed=4)


def test_an_overlay_with_a_bare_callback_is_auto(tmp_path):
    path = tmp_path / "best.yaml"
    path.write_text("trainer: {callbacks+: [{class_path: lightning_init.InitCallback}]}")
    assert InitSpec.load(path) == InitSpec("auto")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", r"is not an init spec.*has NoneType"),
        ("- a\n", r"is not an init spec.*has list"),
        ("model: {lr: 1}\n", r"it needs the key `strategy`.*has keys \['model'\]"),
        ("trainer: {callbacks+: [{class_path: x.Y}]}\n", r"with an InitCallback"),
        ("trainer: 3\n", r"is not an init spec"),
        ("strategy: [\n", r"is not YAML"),
        (
            "strategy: normal\nparam: {std: 1}\n",
            r"unknown key in an init spec 'param': did you mean",
        ),
        ("strategy: normall\n", r"unknown strategy 'normall': did you mean 'normal'"),
        ("strategy: normal\nparams: {std: 99}\n", r"`0.0001 <= std <= 10` must hold"),
        ("strategy: normal\nparams: 3\n", r"params must be a mapping"),
        ("strategy: 3\n", r"strategy must be a name, but got 3"),
        (
            "strategy: auto\noverrides: {role:heads: keep}\n",
            r"unknown role 'heads': did you mean 'head'",
        ),
        ("strategy: auto\nseed: -1\n", r"`0 <= seed < 2\*\*63`"),
    ],
)
def test_files_that_are_no_spec_are_named_in_the_error(tmp_path, text, match):
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=match) as caught:
        InitSpec.load(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no init spec at .*none.yaml: write one with"):
        InitSpec.load(tmp_path / "none.yaml")


def test_a_binary_file_is_not_yaml(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ValueError, match="is not YAML"):
        InitSpec.load(tmp_path / "x.yaml")


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, "3", True])
def test_illegal_seeds(seed):
    with pytest.raises(ValueError, match=r"0 <= seed < 2\*\*63"):
        InitSpec("normal", seed=seed)


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        ({"role:heads": "keep"}, r"unknown role 'heads'"),
        ({"": "keep"}, r"an override's key must be a text"),
        ({3: "keep"}, r"must be a text, but got 3"),
        ({"a": 3}, r"override 'a' must be a strategy's name or a spec, but got 3"),
        ({"a": {"strategy": "normal", "seed": 3}}, r"may have `strategy` and `params` only"),
        ({"a": {"overrides": {"b": "keep"}}}, r"may have `strategy` and `params` only"),
        ({"a": "norml"}, r"unknown strategy 'norml'"),
        ("keep", r"overrides must be a mapping"),
    ],
)
def test_illegal_overrides(overrides, match):
    with pytest.raises(ValueError, match=match):
        InitSpec("normal", overrides=overrides)


def test_specs_are_values():
    one = InitSpec("he_normal", {"gain": 1})
    assert one == InitSpec("kaiming_normal", {"gain": 1.0})
    assert len({one, InitSpec("kaiming_normal", {"gain": 1.0}), InitSpec("normal")}) == 2
    assert InitSpec() == InitSpec("auto", None, None, None)
    with pytest.raises(AttributeError):
        one.strategy = "normal"


def test_only_what_was_said_is_written():
    assert InitSpec().to_dict() == {"strategy": "auto"}
    assert InitSpec("normal", {"std": "0.1"}, {"a": "keep"}, 0).to_dict() == {
        "strategy": "normal",
        "params": {"std": 0.1},
        "overrides": {"a": {"strategy": "keep"}},
        "seed": 0,
    }
