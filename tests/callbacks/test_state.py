"""What a checkpoint knows of the initialization, and what a resumed run does with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_init import InitCallback, InitSpec, initialize_
from lightning_init.strategies.apply import fingerprint
from tests.callbacks import nets
from tests.callbacks.nets import AtStart, Digits, mlp

EVERY_TYPE = InitSpec(
    "chain",
    {"steps": [InitSpec("orthogonal", {"gain": 1.5}), InitSpec("lsuv", {"scale": 0.9})]},
    {"role:bias": InitSpec("normal", {"std": 0.01}), "net.4.*": "xavier_uniform"},
    seed=2**62,
)


def saved(*callbacks: InitCallback, path: str = "last.ckpt", **arguments: Any) -> str:
    nets.fit(Digits(mlp()), *callbacks, **arguments).save_checkpoint(path)
    return path


def plain(value: object) -> bool:
    """Whether it is made of what JSON has."""
    if isinstance(value, dict):
        return all(type(key) is str and plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(plain, value))
    return value is None or type(value) in (str, int, float, bool)


@pytest.mark.case(43)
@pytest.mark.parametrize(
    ("strategy", "scope"),
    [
        (EVERY_TYPE, "all"),
        ("auto", ["net.0.*", "net.2.weight"]),
        ("auto", ("net.2.*",)),
        (InitSpec("orthogonal", {"gain": float(torch.tensor(0.5))}), {"net.0.*", "net.4.*"}),
        (lambda info: __import__("lightning_init").make_plan(mlp(), "normal")["0.weight"], "all"),
    ],
    ids=["every type of parameter", "list", "tuple", "set", "function"],
)
def test_a_checkpoint_loads_with_weights_only(strategy: Any, scope: Any, said: list[str]) -> None:
    first = InitCallback(strategy, scope=scope)
    path = saved(first)
    state = torch.load(path, weights_only=True)
    [mine] = state["lightning_init"]
    assert plain(mine)
    assert mine["fingerprint"] == first.fingerprint
    assert first.plan is not None
    if isinstance(strategy, InitSpec):
        assert InitSpec.from_dict(mine["spec"]) == first.spec
    resumed, start = InitCallback(strategy, scope=scope), AtStart()
    trainer = nets.trainer(resumed, start, max_steps=6)
    trainer.fit(Digits(mlp()), nets.ordered(), ckpt_path=path)
    assert trainer.global_step == 6
    assert nets.same(
        start.weights, {k: v for k, v in state["state_dict"].items() if k in start.weights}
    )
    assert resumed.fingerprint == first.fingerprint
    assert resumed.plan is None
    assert any(
        "the checkpoint's weights are kept, nothing is watched; it started from" in text
        and str(first.fingerprint)[:12] in text
        for text in said
    )


@pytest.mark.case(43)
def test_what_a_run_started_from_goes_through_several_resumed_runs() -> None:
    first = InitCallback("orthogonal", seed=3)
    path = saved(first, max_steps=2)
    for steps in (4, 6):
        again = InitCallback("orthogonal", seed=8)
        trainer = nets.trainer(again, max_steps=steps)
        trainer.fit(Digits(mlp()), nets.ordered(), ckpt_path=path)
        trainer.save_checkpoint(path := f"{steps}.ckpt")
        [state] = torch.load(path, weights_only=True)["lightning_init"]
        assert (state["seed"], state["fingerprint"]) == (3, first.fingerprint)
        assert again.fingerprint == first.fingerprint
    module = Digits(mlp())
    initialize_(module, **{"strategy": InitSpec.from_dict(state["spec"]), "seed": state["seed"],
                           "forward": lambda: module.loss(next(iter(nets.ordered())))})  # fmt: skip
    assert fingerprint(module) == state["fingerprint"]


@pytest.mark.case(43)
def test_a_run_goes_on_without_the_callback_and_with_one_that_was_not_there() -> None:
    path = saved(InitCallback("orthogonal"))
    nets.trainer(max_steps=5).fit(Digits(mlp()), nets.ordered(), ckpt_path=path)
    bare = saved(path="bare.ckpt", max_steps=2)
    assert "lightning_init" not in torch.load(bare, weights_only=True)
    late = InitCallback("orthogonal")
    nets.trainer(late, max_steps=5).fit(Digits(mlp()), nets.ordered(), ckpt_path=bare)
    assert late.fingerprint is None
    assert late.plan is None


@pytest.mark.case(43)
@pytest.mark.parametrize("broken", [None, 3, "text", [], [3], [{}], [{"scope": "untrained"}]])
def test_a_foreign_entry_of_that_name_stops_nobody(broken: object) -> None:
    path = saved(InitCallback("orthogonal"))
    state = {**torch.load(path, weights_only=True), "lightning_init": broken}
    torch.save(state, "other.ckpt")
    callback = InitCallback("orthogonal")
    nets.trainer(callback, max_steps=5).fit(Digits(mlp()), nets.ordered(), ckpt_path="other.ckpt")
    assert callback.fingerprint is None


@pytest.mark.case(43)
def test_callbacks_of_separate_scopes_keep_their_states_apart() -> None:
    scopes = (["net.0.*"], ["net.2.*", "net.4.*"])
    first, last = (InitCallback("normal", {"std": 0.1 * (i + 1)}, seed=i, scope=scope)
                   for i, scope in enumerate(scopes))  # fmt: skip
    path = saved(first, last)
    states = torch.load(path, weights_only=True)["lightning_init"]
    assert [(each["scope"], each["seed"]) for each in states] == list(
        zip(scopes, (0, 1), strict=True)
    )
    # Whatever the order: by scope.
    ours = [InitCallback("keep", scope=scope) for scope in reversed(scopes)]
    nets.trainer(*ours, max_steps=4).fit(Digits(mlp()), nets.ordered(), ckpt_path=path)
    assert [each.origin.known.seed for each in ours] == [1, 0]
    assert {each.fingerprint for each in ours} == {first.fingerprint}


def told() -> dict[str, Any]:
    return json.loads(Path("out/init.json").read_text())


def test_init_json_tells_all_callbacks_of_a_trainer() -> None:
    first = InitCallback("normal", scope=["net.0.*"], save_init="a/first.safetensors")
    last = InitCallback("lsuv", seed=4, scope=["net.2.*"], save_init="a/last.safetensors")
    module, start = Digits(mlp()), AtStart()
    nets.fit(module, first, last, start, default_root_dir="out")
    data = told()
    restored = Digits(mlp())
    restored.load_state_dict(start.weights)
    assert data["fingerprint"] == fingerprint(restored) == first.fingerprint == last.fingerprint
    assert (data["spec"], data["scope"], data["seed"]) == (
        {"strategy": "lsuv", "seed": 4}, ["net.2.*"], 4,
    )  # fmt: skip
    [other] = data["also"]
    assert (other["spec"], other["scope"]) == ({"strategy": "normal"}, ["net.0.*"])
    drawn = [
        [entry["name"] for entry in each["plan"]["entries"] if "outside scope" not in entry["reason"]]
        for each in (other, data)
    ]  # fmt: skip
    assert drawn == [["net.0.weight", "net.0.bias"], ["net.2.weight", "net.2.bias"]]
    assert Path("a/first.safetensors").read_bytes() == Path("a/last.safetensors").read_bytes()


def test_one_watches_for_all_and_knows_what_each_has_drawn() -> None:
    first = InitCallback("kaiming_normal", scope=["net.0.*", "net.2.*"])
    last = InitCallback("xavier_normal", scope=["net.4.*"], seed=4)
    nets.fit(Digits(mlp()), first, last, max_steps=2)
    assert first.report is last.report is not None
    assert first.monitor.record.steps == ()
    assert last.monitor.plan is not None
    assert all(entry.written for entry in last.monitor.plan)
    assert first.plan is not None
    assert last.monitor.plan["net.0.weight"] == first.plan["net.0.weight"]
    with pytest.warns(UserWarning, match="in place of this earlier one.*give 'raise' to the Init"):
        nets.fit(Digits(mlp()), InitCallback("normal", scope="net.0.*", on_unhealthy="raise"), last)
