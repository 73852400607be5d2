"""Several InitCallbacks in one Trainer: the last one that means a tensor decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from lightning.pytorch.cli import LightningCLI

from lightning_init import InitCallback, InitSpec, initialize_
from lightning_init.callbacks.actions import UnhealthyError
from lightning_init.callbacks.several import shared
from tests.callbacks import nets
from tests.callbacks.nets import BuiltInConfigureModel, Digits, Model, mlp
from tests.callbacks.test_placement import direct, quiet, started


def test_of_overlapping_callbacks_the_last_wins(said: list[str]) -> None:
    first, last = quiet("constant"), quiet("orthogonal")
    found = started(Digits(mlp()), first, last)
    assert nets.same(found, nets.weights(direct(mlp(), "orthogonal")))
    assert first.plan is None
    assert last.plan is not None
    assert any("yields to InitCallback('orthogonal')" in text for text in said)


def test_callbacks_of_separate_scopes_both_apply(said: list[str]) -> None:
    first = quiet("constant", scope=["net.0.*"])
    found = started(Digits(mlp()), first, quiet("orthogonal", scope="net.2.*"))
    assert (found["net.0.weight"] == 0).all()
    assert nets.same(
        found["net.2.weight"], nets.weights(direct(mlp(), "orthogonal"))["net.2.weight"]
    )
    assert not any("yields" in text for text in said)


def test_patterns_that_can_mean_the_same_name() -> None:
    for one, two, expected in (
        ("untrained", "all", None),
        (["net.0.*"], "untrained", None),
        ("all", ["net.*"], ["net.*"]),
        (["net.*"], ["net.*"], None),
        (["net.0.weight"], ["net.*"], None),
        (["net.0.*"], ["n*.0.*"], None),
        (["net.*"], ["net.0.weight", "head.*"], ["net.0.weight"]),
        (["net.*"], ["*.bias"], ["*.bias"]),
        (["*.weight"], ["*.bias"], []),
        (["net.1.*"], ["net.10.*"], []),
        (["net.?.*"], ["net.10.*"], []),
        (["net.[01].*"], ["net.1.*"], ["net.1.*"]),
        ("net.*.weight", "net.2.*", ["net.2.*"]),
        (["role:bias"], ["net.0.*"], ["net.0.*"]),
    ):
        assert shared(one, two) == expected, (one, two)


def function(info: Any) -> Any:
    return InitSpec("orthogonal").build().initializer(info)


@pytest.mark.parametrize(
    "strategy", ["orthogonal", function, "lsuv"], ids=["name", "function", "data"]
)
@pytest.mark.parametrize("kind", [Digits, BuiltInConfigureModel])
def test_a_broad_one_leaves_to_a_later_one_what_that_one_means(
    strategy: Any, kind: Any, said: list[str]
) -> None:
    narrow = quiet("normal", scope=["net.2.*"])
    module = kind() if kind is BuiltInConfigureModel else kind(mlp())
    found = started(module, quiet(strategy), narrow)
    expected = nets.weights(direct(mlp(), "orthogonal" if strategy is function else strategy))
    for name in ("net.2.weight", "net.2.bias"):
        expected[name] = nets.weights(direct(mlp(), "normal"))[name]
    if strategy == "lsuv":  # what comes after a layer that is drawn anew is calibrated before
        assert nets.same(found["net.0.weight"], expected["net.0.weight"])
        assert nets.same(found["net.2.weight"], expected["net.2.weight"])
    else:
        assert nets.same(found, expected)
    assert any("leaves net.2.* to InitCallback('normal')" in text for text in said)


def test_wrappers_of_several_callbacks_all_come_off(monkeypatch: pytest.MonkeyPatch) -> None:
    scopes: list[Any] = [["net.0.*"], ["net.2.*"], ["net.4.*"]]
    calls = [quiet("xavier_normal", scope=scope) for scope in scopes]
    module = BuiltInConfigureModel()
    found = started(module, *calls)
    assert nets.hooks(module) == []
    assert nets.same(found, nets.weights(direct(mlp(), "xavier_normal")))
    # A fit that ends without a word leaves them; the next one takes them off.
    module = BuiltInConfigureModel()
    for call in calls:
        monkeypatch.setattr(call, "on_exception", lambda *args: None)
    stop = nets.AtStart()
    monkeypatch.setattr(stop, "setup", Mock(side_effect=ValueError("now")))
    with pytest.raises(ValueError, match="now"):
        nets.fit(module, *calls, stop)
    assert ".configure_model" in nets.hooks(module)
    fresh = [quiet("xavier_normal", scope=scope) for scope in scopes]
    assert nets.same(started(module, *fresh), found)
    assert nets.hooks(module) == []


def test_of_three_each_leaves_what_is_left_to_it() -> None:
    scopes: list[Any] = ["untrained", ["net.2.*", "net.4.*"], ["net.4.*"]]
    calls = [
        quiet(InitSpec("normal", {"std": 0.1 * (i + 1)}), scope=s) for i, s in enumerate(scopes)
    ]
    found = started(Digits(mlp()), *calls)
    for i, name in enumerate(("net.0", "net.2", "net.4")):
        expected = Digits(mlp())
        initialize_(expected, InitSpec("normal", {"std": 0.1 * (i + 1)}), seed=3)
        assert nets.same(found[f"{name}.weight"], nets.weights(expected)[f"{name}.weight"])


def test_a_rescue_draws_only_what_is_its_own() -> None:
    broad = InitCallback("constant", on_unhealthy="rescue", ladder=["xavier_normal"], verbose=False)
    narrow = InitCallback("normal", scope=["net.4.*"], on_unhealthy="rescue",
                          ladder=["kaiming_normal"], verbose=False)  # fmt: skip
    with pytest.raises(UnhealthyError, match=r"dead_units at net\.0"):  # the last one watches
        nets.fit(Digits(mlp()), broad, narrow)
    assert narrow.report is not None
    assert [attempt.spec for attempt in narrow.report.attempts] == [
        {"strategy": "normal"}, {"strategy": "kaiming_normal"}
    ]  # fmt: skip


# A user's own callback, and that of a search's best.yaml after it


BEST = """
trainer:
  callbacks+:
  - class_path: lightning_init.InitCallback
    init_args: {{strategy: orthogonal, params: {{gain: 1.5}}, seed: 4{more}}}
"""
OWN = """
trainer:
  accelerator: cpu
  logger: false
  max_steps: 2
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  default_root_dir: out
  limit_val_batches: 1
  callbacks:
  - class_path: lightning_init.InitCallback
    init_args: {strategy: xavier_normal, seed: 2}
  - class_path: tests.callbacks.nets.AtStart
"""


@pytest.mark.parametrize("more", ["", ", scope: [net.0.*]"], ids=["whole", "a part"])
@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
def test_best_yaml_after_a_users_own_callback(
    more: str, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["main.py"])
    Path("own.yaml").write_text(OWN)
    Path("best.yaml").write_text(BEST.format(more=more))
    made = LightningCLI(
        Model, args=["fit", "--config", "own.yaml", "--config", "best.yaml"],
        save_config_callback=None, seed_everything_default=7,
    )  # fmt: skip
    trainer = made.trainer
    [start] = [c for c in trainer.callbacks if isinstance(c, nets.AtStart)]
    own, best = (c for c in trainer.callbacks if isinstance(c, InitCallback))
    what = "leaves net.0.* to" if more else "yields to"
    assert [text for text in said if "yields" in text or "leaves" in text] == [
        f"lightning_init: InitCallback('xavier_normal') {what} InitCallback('orthogonal'), which comes "
        "later in the list of callbacks"
    ]
    expected = Model()
    with torch.no_grad():
        initialize_(expected, "xavier_normal", seed=2)
    scope: Any = ["net.0.*"] if more else "all"
    initialize_(expected, InitSpec("orthogonal", {"gain": 1.5}), seed=4, scope=scope)
    assert nets.same(start.weights, nets.weights(expected))
    assert (own.plan is None) == (not more)
    assert best.report is not None
