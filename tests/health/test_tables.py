"""The table of the layers: 80 columns, nothing of a finding cut, comparisons side by side."""

from __future__ import annotations

import math

import pytest

from lightning_init.architecture.readings import (
    ActivationReading,
    AttentionReading,
    InputReading,
    LayerReading,
    Readings,
    StepReading,
)
from lightning_init.health.compare import Comparison
from lightning_init.health.findings import Cause, Finding, found
from lightning_init.health.layers import number
from lightning_init.health.marks import layer_of
from lightning_init.health.report import Report

LR = Cause("learning rate", "it is 1", "lr=0.1")
DATA = Cause("data scale", "std 70", "scale the data: (x - mean) / std")


def layer(name: str, std: float = 1.0, **more: object) -> LayerReading:
    return LayerReading(name, "Linear", "", 0.01, std, std, 3 * std, 0.0, grad_rms=1e-3, **more)


def report(layers: list[LayerReading], *findings: Finding, **more: object) -> Report:
    return Report(findings, Readings((StepReading(0, tuple(layers), **more),)))


def rows(text: str) -> dict[str, str]:
    return {line.split()[0]: line for line in text.splitlines() if line.strip()}


def test_each_number_is_there_and_beside_what_was_expected() -> None:
    tanh = ActivationReading("tanh", 0.0, 0.61, 0.61, 1.0, 0.0, saturated=0.34)
    relu = ActivationReading("relu", 0.4, 0.58, 0.7, 3.0, 0.5, dead=0.12)
    text = str(
        report(
            [layer("a", 1.234, expected_rms=0.5, after=tanh), layer("b", 0.2, after=relu)],
            inputs=(InputReading("a", 0.5, 70.0, 70.0, 255.0, spread=40.0),),
            attentions=(AttentionReading("b", 0.25, 31.0, 9.0, 8.0),),
        )
    )
    assert text.splitlines()[0].split() == [
        "layer", "mean", "std", "expected", "after", "flat", "grad", "verdict"
    ]  # fmt: skip
    first = ["a", "0.01", "1.23", "0.5", "tanh", "0.61", "34%", "sat", "1e-3", "ok"]
    assert rows(text)["a"].split() == first
    assert rows(text)["b"].split() == [
        "b",
        "0.01",
        "0.2",
        "relu",
        "0.58",
        "12%",
        "dead",
        "1e-3",
        "ok",
    ]
    assert "input of a: mean 0.5, std 70, |max| 255, stds of its features x40 apart" in text
    assert "attention (1 softmax): entropy 0.25 to 0.25 of uniform, logits up to 31" in text
    assert "expected: rms of the output" in text


def test_the_row_of_a_finding_names_it_and_its_consequences() -> None:
    late = found("dead_units", "error", "c.weight", 3, 1.0, 0.5, "dead", [LR])
    root = found("input_scale", "error", "a", 0, 70.0, 5.0, "the data are large", [DATA, LR])
    with_late = Finding(**{
        name: getattr(root, name) for name in root.__slots__ if name != "consequences"
    }, consequences=(late,))  # fmt: skip
    other = found("update_ratio", "warning", "b.bias", 9, 1.0, 0.1, "large", [LR])
    text = str(report([layer("a"), layer("b"), layer("c"), layer("d")], with_late, other))
    found_rows = rows(text)
    assert found_rows["a"].endswith("error [1]")
    assert found_rows["b"].endswith("warning [2]")
    assert found_rows["c"].endswith(" [1]")
    assert "error" not in found_rows["c"]
    assert found_rows["d"].endswith("ok")
    assert text[text.index("[1] ERROR") :].startswith(
        "[1] ERROR input_scale at a, step 0: the data are large\n"
        "    - data scale: std 70\n"
        "      fix: scale the data: (x - mean) / std\n"
        "    - learning rate: it is 1\n"
        "      fix: lr=0.1\n"
        "    explains: dead_units at c.weight (step 3)\n"
        "\n"
        "[2] WARNING update_ratio at b.bias, step 9: large\n"
        "    likely cause: learning rate: it is 1\n"
        "    fix: lr=0.1\n"
    )
    assert text.splitlines()[-1].startswith("unhealthy: 1 error, 1 warning; 4 layers read")


@pytest.mark.parametrize("count", [37, 200, 1000])
@pytest.mark.parametrize("pattern", ["net.{}", "model.layers.{}.mlp.up_proj"])
def test_many_layers_are_cut_but_never_that_of_a_finding(count: int, pattern: str) -> None:
    places = {1, count // 2, count - 3}
    names = [pattern.format(2 * index) for index in range(count)]
    layers = [layer(name, 0.5 + index / count) for index, name in enumerate(names)]
    several = [found("rule", "warning", names[i], 0, 9.0, 1.0, "x", [LR]) for i in sorted(places)]
    text = str(report(layers, *several))
    lines = text.splitlines()
    assert len([line for line in lines if "[" in line and "WARNING" not in line]) == len(places)
    table = lines[: lines.index("")]
    assert len(table) < 50
    assert max(map(len, lines)) <= 80
    shown = [line for line in table if line.split()[-1] == "ok" and "more" not in line]
    hidden = sum(int(line.split()[1]) for line in table if line.startswith("... "))
    assert len(shown) + len(places) + hidden == count, "each layer is shown or counted"
    prefix = table[0].removeprefix("names below ")
    assert f"\n{names[0].removeprefix(prefix)} " in text
    assert f"\n{names[-1].removeprefix(prefix)} " in text


def test_blocks_are_left_out_as_a_whole() -> None:
    parts = ("attn.qkv", "attn.out", "mlp.up", "mlp.down")
    names = [f"h.{block}.{part}" for block in range(24) for part in parts]
    text = str(report([layer(name) for name in names]))
    for block in range(24):
        assert sum(f"\n{block}.{part}" in text for part in parts) in (0, 4)


def test_a_layer_that_is_left_out_and_not_finite_is_said() -> None:
    layers = [layer(f"net.{i}") for i in range(100)]
    layers[41] = layer("net.41", math.nan)
    assert "ok, ..." in str(report(layers)) or "not finite" in str(report(layers))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (-0.0123, "-0.0123"), (0.0099, "9.9e-3"), (123.456, "123"), (9999.0, "9999"),
        (1e4, "1e4"), (-1.5e-30, "-1.5e-30"), (3.4e38, "3.4e38"), (math.inf, "inf"),
        (-math.inf, "-inf"), (math.nan, ""),
    ],
)  # fmt: skip
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text
    assert len(text) <= 8


def test_the_place_of_a_finding_may_be_a_tensor_or_no_layer() -> None:
    names = {"h.1", "h.1.fc"}
    assert layer_of("h.1.fc.weight", names) == "h.1.fc"
    assert layer_of("h.1.ln.weight", names) == "h.1"
    assert layer_of("h.11.fc", names) is None
    assert layer_of("loss", names) is None


def test_three_reports_are_compared_two_at_a_time() -> None:
    bad = found("rule", "error", "a", 0, 9.0, 1.0, "wrong", [LR])
    reports = {
        "one": report([layer("a", 0.5), layer("b")]),
        "a_long_name_of_a_file/best.yaml": report([layer("a", 50.0), layer("b")], bad),
        "three": report([layer("a")]),
    }
    comparison = Comparison(reports)
    text = str(comparison)
    assert max(map(len, text.splitlines())) <= 80
    tables = [line for line in text.splitlines() if line.startswith("layer")]
    assert [line.count("verdict") for line in tables] == [2, 1]
    assert rows(text.split("\n\n")[0])["a"].split() == [
        "a", "0.5", "1e-3", "ok", "50", "1e-3", "error", "[1]"
    ]  # fmt: skip
    assert "best.yaml [1] ERROR rule at a, step 0: wrong" in text
    assert text.splitlines()[-1].startswith("three: healthy")
    assert list(comparison.to_dict()) == list(reports)


def test_layers_that_one_model_has_not_are_said() -> None:
    both = Comparison({"deep": report([layer("a"), layer("b")]), "flat": report([layer("a")])})
    assert rows(str(both))["b"].split()[-2:] == ["not", "there"]


def test_a_long_word_is_not_broken() -> None:
    command = "x" * 90
    one = found("rule", "error", "a", 0, 9.0, 1.0, "wrong", [Cause("data", "why", command)])
    assert f"\n      {command}" in str(report([layer("a")], one))
