"""Gradients of weights that are exactly 0 or far below the others, and attention that is shut."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from tests.health.made import IN, OUT, at, attends, layer, only, severity, step, weight

FLAT, FALLING = [2.3] * 12, [2.3 * 0.9**i for i in range(12)]
NAMES = ("a", "b", "c", "d", "e", "f")
LAYERS = [layer(name) for name in NAMES]


def grads(number: int, *values: float, **facts: Any) -> Any:
    weights = [
        weight(f"{name}.weight", grad_rms=value, **facts)
        for name, value in zip(NAMES, values, strict=True)
    ]
    return step(number, layers=LAYERS, weights=weights)


ONE, MOST, FIRST = (1, 1, 0, 1, 1, 1), (1, 0, 0, 0, 0, 1), (0, 0, 1, 1, 1, 1)


@pytest.mark.parametrize(
    ("values", "steps", "expected"),
    [
        (ONE, (0, 1), None),  # the first step does not count
        (ONE, (1, 2), "warning"),
        (ONE, (1,), None),
        (MOST, (1, 2), "error"),
        (FIRST, (1, 2), "error"),
        ((0, 1, 1, 1, 1, 1), (1, 2), "warning"),
        ((1, 0, 0, 0, 1, 1), (1, 2), "warning"),  # half
        ((math.nan,) * 6, (1, 2), None),  # no gradient was read
        ((1, math.nan, 1, 1, 1, 1), (1, 2), "warning"),
    ],
)
def test_zero_gradients(
    values: tuple[float, ...], steps: tuple[int, ...], expected: str | None
) -> None:
    found = only("zero_gradients", at(*(grads(number, *values) for number in steps)))
    assert (found.severity if found else None) == expected
    if found is not None:
        first = NAMES[next(i for i, value in enumerate(values) if not value > 0)]
        assert (found.where, found.step) == (f"{first}.weight", 2)
        assert ("missing" if math.isnan(values[1]) else "exactly 0") in found.message


def test_what_was_loaded_may_be_cut_off_on_purpose() -> None:
    nothing = (*(math.nan,) * 5, 1.0)
    cut = at(grads(1, *nothing), grads(2, *nothing))
    assert severity("zero_gradients", cut) == "error"
    assert severity("zero_gradients", replace(cut, trained=True)) == "warning"
    found = only("zero_gradients", cut)
    assert found is not None
    assert "frozen weights" in found.causes[:2]


def test_zeros_must_follow_each_other() -> None:
    fine = (1.0,) * 6
    assert severity("zero_gradients", at(grads(1, *MOST), grads(2, *fine), grads(3, *MOST))) is None


@pytest.mark.parametrize(
    "facts",
    [{"role": r} for r in ("bias", "embedding", "recurrent", "lora_up", "branch_scale", "other")]
    + [{"trainable": False}, {"module": "never.ran"}],
)
def test_what_may_have_no_gradient(facts: dict[str, Any]) -> None:
    odd = [replace(grads(n, *MOST), weights=grads(n, *MOST, **facts).weights) for n in (1, 2)]
    assert severity("zero_gradients", at(*odd)) is None


def test_experts_without_tokens() -> None:
    for name in ("moe.experts.3.up.weight", "layers.0.expert_1.up.weight"):
        quiet = weight(name, grad_rms=0.0)
        layers = [*LAYERS, layer(quiet.module)]
        steps = [
            step(n, layers=layers, weights=[*grads(n, *ONE).weights[:2], quiet]) for n in (1, 2)
        ]
        assert severity("zero_gradients", at(*steps)) is None


@pytest.mark.parametrize(
    ("factor", "count", "expected"),
    [
        (3e4 * IN, 2, None),
        (3e4 * OUT, 2, "warning"),
        (1e6 * IN, 3, "warning"),
        (1e6 * OUT, 1, "warning"),
        (1e6 * OUT, 2, "error"),
        (1e-9, 3, None),  # the upper side is usual
    ],
)
def test_uneven_gradients(factor: float, count: int, expected: str | None) -> None:
    values = (1.0, 1.0, 1 / factor, 1.0, 1.0, 1.0)
    found = only("uneven_gradients", at(*(grads(n, *values) for n in range(count))))
    assert (found.severity if found else None) == expected
    if found is not None:
        assert found.where == "c.weight"
        assert found.value == pytest.approx(factor)
        assert "gamma (scale) 1 and beta (shift) 0" in found.remedy


def test_gradients_are_relative_to_the_weights() -> None:
    step_ = grads(0, 1.0, 1.0, 1e-5, 1.0, 1.0, 1.0)
    assert severity("uneven_gradients", at(step_)) == "warning"
    small = [replace(w, std=1e-6) if w.name == "c.weight" else w for w in step_.weights]
    assert severity("uneven_gradients", at(replace(step_, weights=tuple(small)))) is None


@pytest.mark.parametrize(("number", "expected"), [(9, None), (10, "warning")])
def test_branches_that_begin_at_zero_need_some_steps(number: int, expected: str | None) -> None:
    first = grads(0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    shut = [replace(w, mean=0.0, std=0.0) if w.name == "d.weight" else w for w in first.weights]
    later = grads(number, 1.0, 1.0, 1e-5, 1.0, 1.0, 1.0)
    found = only("uneven_gradients", at(replace(first, weights=tuple(shut)), later))
    assert (found.severity if found else None) == expected


# attention


def attention(*entropies: float, loss: Any = None, **facts: Any) -> Any:
    numbers = (0, 5, 10)
    steps = [
        step(number, attentions=[attends(entropy=value, **facts)])
        for number, value in zip(numbers, entropies, strict=False)
    ]
    return at(*steps, loss=loss)


@pytest.mark.parametrize(
    ("entropies", "loss", "expected"),
    [
        ((0.3 * OUT,), None, None),
        ((0.3 * IN,), None, "info"),
        ((0.05 * OUT,), None, "info"),
        ((0.05 * IN,), None, "warning"),
        ((0.05 * IN, 0.9), FLAT, "warning"),
        ((0.05 * IN, 0.05 * IN), FLAT, "error"),
        ((0.05 * IN, 0.05 * IN), FALLING, "warning"),
        ((0.9, 0.05 * IN), FALLING, "warning"),
        ((math.nan,), None, None),
    ],
)
def test_saturated_attention(entropies: tuple[float, ...], loss: Any, expected: str | None) -> None:
    found = only("saturated_attention", attention(*entropies, loss=loss))
    assert (found.severity if found else None) == expected
    if found is not None:
        assert found.where == "h.0"
        assert found.causes[0] == ("attention scale" if found.step == 0 else "learning rate")
    assert severity("saturated_attention", attention(*entropies, loss=loss, keys=3.9)) is None


@pytest.mark.parametrize(
    ("last", "expected"),
    [(50 * OUT, "warning"), (50 * IN, None)],
)
def test_logits_that_grow(last: float, expected: str | None) -> None:
    steps = [step(n, attentions=[attends(logit_max=v)]) for n, v in ((0, 5.0), (20, last))]
    assert severity("saturated_attention", at(*steps)) == expected
    steady = [step(n, attentions=[attends(logit_max=last)]) for n in (0, 20)]
    assert severity("saturated_attention", at(*steady)) is None
    ratio = [
        severity(
            "saturated_attention",
            at(*(step(n, attentions=[attends(logit_max=v)]) for n, v in ((0, 20.0), (20, w)))),
        )
        for w in (80 * IN, 80 * OUT)
    ]
    assert ratio == [None, "warning"]
