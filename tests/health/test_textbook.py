"""The textbook's limits, by name, each from both sides; never without being asked."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lightning_init import audit
from lightning_init.health.registry import entries, examine, rules
from tests.health.made import IN, OUT, after, at, layer, only, step, weight
from tests.zoo import ZOO

FINE = {"std": 1.0, "absmax": 3.0, "grad_rms": 1e-3}


def read(**facts: Any) -> Any:
    return at(step(layers=[layer("a", **FINE), layer("b", **FINE | facts)]))


def of_weights(*norms: float, **facts: Any) -> Any:
    return at(
        step(
            weights=[
                weight(f"{i}.weight", numel=1, grad_rms=n, **facts) for i, n in enumerate(norms)
            ]
        )
    )


@pytest.mark.parametrize(
    ("name", "inside", "outside", "where"),
    [
        ("textbook_std", read(std=5 * IN), read(std=5 * OUT), "b"),
        ("textbook_std", read(std=0.1 / IN), read(std=0.1 / OUT), "b"),
        ("textbook_magnitude", read(absmax=1e3 * IN), read(absmax=1e3 * OUT), "b"),
        ("textbook_gradient", read(grad_rms=1e-5 / IN), read(grad_rms=1e-5 / OUT), "b"),
        ("textbook_gradient", of_weights(1.0, 1e-5 / IN), of_weights(1.0, 1e-5 / OUT), "1.weight"),
        ("textbook_gradient_ratio", of_weights(1.0, 0.01 / IN), of_weights(1.0, 0.01 / OUT), "1.weight"),
        ("textbook_loss", at(loss=[2.0] * 10 + [1.99]), at(loss=[2.0] * 11), "loss"),
        ("textbook_loss", at(loss=[2.0] * 10), at(loss=[2.0, *[1.0] * 9, 2.1]), "loss"),
        (
            "textbook_saturation",
            read(after=after("tanh", saturated=0.5 * IN)),
            read(after=after("tanh", saturated=0.5 * OUT)),
            "b",
        ),
        ("textbook_zeros", read(after=after(zeros=0.7 * IN)), read(after=after(zeros=0.7 * OUT)), "b"),
        ("textbook_update", of_weights(1.0, update=0.1 * IN), of_weights(1.0, update=0.1 * OUT), "0.weight"),
        ("textbook_update", of_weights(1.0, update=1e-4 / IN), of_weights(1.0, update=1e-4 / OUT), "0.weight"),
    ],
)  # fmt: skip
def test_limits(name: str, inside: Any, outside: Any, where: str) -> None:
    assert only(name, inside) is None
    found = only(name, outside)
    assert found is not None
    assert (found.severity, found.where) == ("error", where)
    assert "absolute limit" in found.likely_cause


def test_what_was_not_read_is_not_judged() -> None:
    nan = math.nan
    nothing = layer(std=nan, absmax=nan, grad_rms=nan, after=after(zeros=nan, saturated=nan))
    readings = at(
        step(layers=[nothing], weights=[weight(grad_rms=nan, update=nan)]), loss=[nan] * 12
    )
    assert examine(readings, profile="textbook") == ()
    assert examine(at(), profile="textbook") == ()


def test_the_profile_is_used_on_request_only() -> None:
    names = {entry.name for entry in entries("textbook")}
    assert len(names) == 8
    assert all(name.startswith("textbook_") for name in names)
    assert not names & set(rules())
    assert set(rules(profile="textbook")) == names
    assert set(rules(["textbook_std"])) == {"textbook_std"}


def test_it_fires_on_a_healthy_transformer() -> None:
    model, forward = ZOO["gpt2"]()
    fired = {finding.detector for finding in audit(model, forward, profile="textbook").findings}
    assert "textbook_std" in fired
    assert audit(model, forward).errors == ()
