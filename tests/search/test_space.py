"""The flat space: shared axes, recipes, legal specs, and axes as text."""

from pathlib import Path

import optuna
import pytest
import torch
import yaml
from hypothesis import given, settings, strategies as st

from lightning_init import Axis, InitSpec, make_plan
from lightning_init.search.axis import around
from lightning_init.search.space import PARTS, STRATEGY, Space
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


FACTOR = Axis(0.1, 10.0, log=True)
SCALED = Space(("orthogonal", "lsuv"), {"lr": around(0.1)}, scales={"all": FACTOR, "head": FACTOR})


def test_scales_go_on_top_of_every_strategy_but_not_of_keep():
    start = SCALED.recipes()[0]
    for name in SCALED.names:
        point = {**start, STRATEGY: name, "scale.all": 0.5, "scale.head": 3.0}
        base = SCALED.spec({**start, STRATEGY: name})
        assert base.strategy == name, "scales of 1 are none"
        spec = SCALED.spec(point)
        if name == "keep":
            assert spec == InitSpec("keep")
            continue
        steps = [base, InitSpec("rescaled", {"scale": 0.5, "head": 3.0})]
        assert spec == InitSpec("chain", {"steps": steps})
        assert InitSpec.from_dict(yaml.safe_load(yaml.safe_dump(spec.to_dict()))) == spec


def test_what_is_compared_with_is_never_gated_and_its_scaled_sisters_are():
    start = SCALED.recipes()[0]
    assert not SCALED.gated({**start, "scale.all": 3.0})  # keep all the same
    assert not SCALED.gated({**start, STRATEGY: "auto"})
    assert SCALED.gated({**start, STRATEGY: "auto", "scale.all": 3.0})
    assert SCALED.gated({**start, STRATEGY: "orthogonal"})


def test_recipes_are_unscaled_also_where_the_range_leaves_1_out():
    space = Space(("orthogonal",), scales={"head": Axis(0.01, 0.1, log=True)})
    assert (space.axes["scale.head"].low, space.axes["scale.head"].high) == (0.01, 1.0)
    assert {point["scale.head"] for point in space.recipes()} == {1.0}
    assert [space.spec(point) for point in space.recipes()] == [
        InitSpec(name) for name in ("keep", "auto", "orthogonal")
    ]


def test_a_global_scale_replaces_the_one_of_each_strategy():
    assert "scale" in Space(("torch_default",)).axes
    assert "scale" not in Space(("torch_default",), scales={"all": FACTOR}).axes


def test_a_scaled_chain_stays_flat():
    made = InitSpec("chain", {"steps": ["orthogonal", "lsuv"]})
    space = Space(
        (made, InitSpec("normal", overrides={"role:head": "zeros"})), scales={"head": FACTOR}
    )
    first, second = (
        space.spec({**space.recipes()[0], STRATEGY: name, "scale.head": 2.0})
        for name in space.names[2:]
    )
    assert [step.strategy for step in first.params["steps"]] == ["orthogonal", "lsuv", "rescaled"]
    assert [step.strategy for step in second.params["steps"]] == ["normal", "rescaled"]
    assert second.params["steps"][0].overrides == {"role:head": InitSpec("zeros")}


@pytest.mark.parametrize("part", PARTS)
def test_every_part_can_be_a_scale(part):
    space = Space(("torch_default",), scales={part: FACTOR})
    point = {**space.recipes()[2], f"scale.{part}": 0.5}
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
    if part in ("all", "head"):
        plan = make_plan(model, space.spec(point), forward=lambda: model(torch.ones(1, 4)))
        was = make_plan(model, "torch_default")
        assert plan["1.weight"].std == pytest.approx(0.5 * was["1.weight"].std)


def test_narrowed_ranges():
    ranges = {"orthogonal": {"gain": Axis(1.5, 1.8, log=True)}, "normal": {"scale": FACTOR}}
    space = Space(("orthogonal", "kaiming_normal", "normal"), ranges=ranges)
    assert (space.axes["orthogonal.gain"].low, space.axes["orthogonal.gain"].high) == (1.5, 1.8)
    assert space.axes["kaiming_normal.gain"].low == 0.5
    assert space.axes["normal.scale"].high == 10.0, "a parameter that is not searched otherwise"
    recipe = next(p for p in space.recipes() if p[STRATEGY] == "orthogonal")
    assert recipe["orthogonal.gain"] == pytest.approx((1.5 * 1.8) ** 0.5)  # 1 lies outside
    assert space.spec(recipe).params == {"gain": recipe["orthogonal.gain"]}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"scales": {"heads": FACTOR}}, "unknown part of a model 'heads': did you mean 'head'"),
        ({"scales": {"head": 3}}, r"scales\['head'\] must be an Axis"),
        ({"ranges": {"lsuv": {}}}, "ranges: unknown strategy 'lsuv'"),
        ({"ranges": {"normal": {"sdt": FACTOR}}}, "unknown parameter 'sdt': did you mean 'std'"),
        ({"ranges": {"normal": {"std": Axis(1, 99)}}}, "`0.0001 <= std <= 10` must hold"),
        ({"config": {"std": FACTOR}}, "'std' is the name of an axis"),
    ],
)
def test_what_is_not_legal_is_named_with_its_neighbour(arguments, says):
    with pytest.raises(ValueError, match=says):
        Space(("normal",), **arguments)


@st.composite
def spaces(draw):
    """Spaces with names, specs, labels, narrowed ranges, scales and axes."""
    names = draw(st.lists(st.sampled_from(EVERYONE), max_size=4, unique=True))
    spec = InitSpec("chain", {"steps": ["orthogonal", InitSpec("lsuv", {"scale": 0.5})]})
    specs = draw(
        st.sampled_from([(), (spec,), ("mine.yaml",), (InitSpec("normal", {"std": 0.1}),)])
    )
    narrowed = {}
    for name in names:
        numbers = {k: p.range for k, p in get(name).parameters.items() if p.range}
        if draw(st.booleans()) and numbers:
            key = draw(st.sampled_from(sorted(numbers)))
            limits, kind = numbers[key], get(name).parameters[key].kind
            if limits.low < limits.high:
                log = draw(st.booleans()) and limits.low > 0
                whole = kind is int
                narrowed[name] = {key: Axis(limits.low, limits.high, log, whole=whole)}
    parts = draw(st.lists(st.sampled_from(PARTS), max_size=3, unique=True))
    config = {"model.lr": around(0.1), "model.act": Axis(choices=("a", None, 1, True))}
    return Space(
        (*names, *specs),
        draw(st.sampled_from([{}, config])),
        {"mine.yaml": spec},
        {part: draw(st.sampled_from([FACTOR, Axis(choices=(0.1, 3))])) for part in parts},
        narrowed,
    )


@settings(deadline=None)
@given(spaces())
def test_a_space_as_plain_data_comes_back(space):
    data = yaml.safe_load(yaml.safe_dump(space.to_dict(), sort_keys=False))
    back = Space.from_dict(data)
    assert back == space
    assert list(back.axes.items()) == list(space.axes.items())
    assert back.recipes() == space.recipes()
    assert back.to_dict() == space.to_dict()


FILE = """
strategies:
- orthogonal
- he_normal: {gain: [0.8, 1.5], mode: [fan_in]}
- normal:
    std: {low: 0.01, high: 0.1, log: false}
- strategy: chain
  params: {steps: [orthogonal, lsuv]}
- mine.yaml
axes:
  model.init_args.lr: {low: 1e-3, high: 1e-1, log: true}
  model.init_args.width: [16, 64]
  model.init_args.act: [tanh, relu]
scales:
  head:
  residual: [0.1, 1.0]
"""


def test_a_file(tmp_path):
    (tmp_path / "space.yaml").write_text(FILE)
    InitSpec("lsuv", {"scale": 0.5}, seed=3).save(tmp_path / "mine.yaml")
    space = Space.load(tmp_path / "space.yaml")
    label = "chain(orthogonal, lsuv)"
    wanted = ("keep", "auto", "orthogonal", "kaiming_normal", "normal", label, "mine.yaml")
    assert space.names == wanted
    axes = space.axes
    assert axes["kaiming_normal.gain"] == Axis(0.8, 1.5, log=True), "logarithmic as declared"
    assert axes["mode"].choices == ("fan_in",)
    assert axes["std"] == Axis(0.01, 0.1)
    assert axes["model.init_args.lr"] == Axis(0.001, 0.1, log=True)
    assert axes["model.init_args.width"] == Axis(16, 64, whole=True)
    assert axes["model.init_args.act"].choices == ("tanh", "relu")
    assert axes["scale.head"] == Axis(0.1, 10.0, log=True, current=1.0)
    assert axes["scale.residual"] == Axis(0.1, 1.0, current=1.0)
    assert space.fixed["mine.yaml"] == InitSpec("lsuv", {"scale": 0.5})
    space.save(tmp_path / "again.yaml")
    assert Space.load(tmp_path / "again.yaml") == space


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("strategy: [a]", "unknown key of a space 'strategy': did you mean 'strategies'"),
        ("strategies: [orthogonl]", "unknown strategy 'orthogonl': did you mean 'orthogonal'"),
        (
            "strategies: [orthogonal: {gian: [1, 2]}]",
            "unknown parameter 'gian': did you mean 'gain'",
        ),
        (
            "strategies: [orthogonal: {gain: [1, 9]}]",
            "`0.5 <= gain <= 2` must hold, but got gain=9",
        ),
        ("strategies: [orthogonal: {gain: [2, 1]}]", "parameter 'gain': finite `low < high`"),
        ("strategies: [{strategy: normal, param: 1}]", "unknown key in an init spec 'param'"),
        ("strategies: normal", "strategies must be a list"),
        ("scales: {haed: [0.1, 1]}", "unknown part of a model 'haed': did you mean 'head'"),
        (
            "axes: {lr: {lo: 1, high: 2}}",
            "axes: lr: unknown key of an axis 'lo': did you mean 'low'",
        ),
        ("axes: {lr: }", r"axes: lr: an axis is \[low, high\]"),
        ("axes: [lr]", "axes must be a mapping"),
        ("- a", "a space must be a mapping"),
        ("a: [", "is not YAML"),
    ],
)
def test_mistakes_in_a_file_name_what_is_legal(tmp_path, text, says):
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=says) as caught:
        Space.load(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_names_its_neighbour(tmp_path):
    (tmp_path / "space.yaml").write_text(FILE)
    with pytest.raises(FileNotFoundError, match=r"did you mean '.*space.yaml'"):
        Space.load(tmp_path / "spaces.yaml")


def test_gp_samples_every_axis_together():
    """Optuna's GP works on the intersection of what all trials had: a flat space is all of it."""
    config = {"lr": around(0.1), "act": Axis(choices=("tanh", "relu")), "n": Axis(1, 9, whole=True)}
    space = Space(("orthogonal", "lsuv", "qk_scaled", "chrono"), config, scales={"head": FACTOR})
    distributions = {name: axis.distribution for name, axis in space.axes.items()}
    study = optuna.create_study(sampler=optuna.samplers.GPSampler(seed=0, n_startup_trials=4))
    for point in space.recipes():
        study.enqueue_trial(point)
    for _ in range(8):
        trial = study.ask(distributions)
        space.spec(trial.params).build()
        study.tell(trial, abs(trial.params["lr"] - 0.3))
    found = optuna.search_space.intersection_search_space(study.trials)
    assert found == distributions
    relative = study.sampler.infer_relative_search_space(study, study.trials[-1])
    wide = {name for name, axis in distributions.items() if not axis.single()}
    assert set(relative) == wide
    sampled = [trial for trial in study.trials if "fixed_params" not in trial.system_attrs]
    assert len(sampled) == 2
    for trial in sampled:
        assert set(trial.params) == set(distributions)


def test_the_file_of_the_documentation_is_one(tmp_path):
    text = Path("docs/search.md").read_text(encoding="utf-8")
    yaml_block = next(b for b in text.split("```yaml\n")[1:] if b.startswith("strategies:"))
    (tmp_path / "space.yaml").write_text(yaml_block.partition("```")[0])
    space = Space.load(tmp_path / "space.yaml")
    assert space.names == (*("keep", "auto", "orthogonal", "kaiming_normal"), space.names[-1])
    assert (space.axes["scale.head"].low, space.axes["scale.head"].high) == (0.1, 10.0)
    assert space.axes["model.init_args.act"].choices == ("tanh", "relu")
