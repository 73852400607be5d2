"""The plots that people look at, as plotly's plain data: no library is needed to make them.

Each function takes reports by name (one, or several to compare) and returns a figure, or None
where nothing was measured for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from lightning_init.architecture.readings import LayerReading, WeightReading
from lightning_init.health.figures import (
    Figure,
    course,
    courses,
    level,
    note_at,
    shade,
    ticks_of,
)
from lightning_init.health.labels import roles, shared_prefix

if TYPE_CHECKING:
    from lightning_init.health.report import Report

Reports = Mapping[str, "Report"]
Value = Callable[[LayerReading], float]


def spread(reports: Reports) -> Figure | None:
    """Std of each layer before and after its nonlinearity, beside what is expected."""
    kinds: tuple[tuple[str, str, Value], ...] = (
        ("std", "solid", lambda one: one.std),
        ("after the nonlinearity", "dash", lambda one: one.after.std if one.after else math.nan),
        ("expected", "dot", lambda one: one.expected_rms),
    )
    data = [line for what, dash, value in kinds for line in _by_role(reports, what, dash, value)]
    return courses(data, _longest(reports), "layer, input to loss", "standard deviation")


def gradients(reports: Reports) -> Figure | None:
    """Gradient norm of each layer's output and of its weight."""
    data = _by_role(reports, "output", "solid", lambda one: one.grad_norm)
    for index, (name, report) in enumerate(reports.items()):
        weights: dict[str, float] = {}
        for one in sorted(report.first.weights, key=_is_matrix):  # a matrix before its bias
            owner = one.module or one.name.rpartition(".")[0]
            weights[owner] = one.grad_rms * math.sqrt(one.numel)
        data += _by_role(
            {name: report}, "weight", "dash", _of(weights), start=index, several=len(reports) > 1
        )
    return courses(data, _longest(reports), "layer, input to loss", "norm of the gradient")


def chi(reports: Reports) -> Figure | None:
    """Growth of the squared gradient norm per layer, towards the input: 1 is the edge of chaos."""
    data, longest = [], 0
    for index, (name, report) in enumerate(reports.items()):
        chain = [
            (i, one.grad_norm)
            for i, one in enumerate(report.first.layers, start=1)
            if one.group and math.isfinite(one.grad_norm) and one.grad_norm > 0
        ]
        growth = [(a / b) ** 2 for (_, a), (_, b) in pairwise(chain)]
        longest = max(longest, len(growth))
        data.append(course(f"{name or 'measured'}", [i for i, _ in chain[:-1]], growth, index))
    if longest < 2:
        return None
    figure = courses(data, _longest(reports), "layer, input to loss", "chi")
    if figure is not None:
        figure["layout"]["shapes"] = [level(1.0)]
    return figure


def attention(reports: Reports) -> Figure | None:
    """Entropy of each softmax over attention logits: 1 is uniform, 0 is a single key."""
    data = []
    names: list[str] = []
    for index, (name, report) in enumerate(reports.items()):
        softmaxes = report.first.attentions
        names = [one.name for one in softmaxes] or names
        at = range(1, len(softmaxes) + 1)
        data.append(course(name or "entropy", at, [one.entropy for one in softmaxes], index))
    figure = courses(
        data, _longest(reports), "attention, input to loss", "entropy / ln(keys)", log=False
    )
    if figure is not None:
        figure["layout"]["yaxis"]["range"] = [0, 1.05]
        figure["layout"]["xaxis"] |= ticks_of(names)
    return figure


def losses(reports: Reports) -> Figure | None:
    """Loss by step, beside chance and a shallow model where there was one."""
    data: list[dict[str, Any]] = []
    shapes: list[Any] = []
    notes: list[Any] = []
    for index, (name, report) in enumerate(reports.items()):
        loss, said = report.readings.loss, f"{name}: " if name else ""
        if len(loss) > 1:
            data.append(course(f"{said}loss", loss, list(loss.values()), index, marks=False))
        if (twin := report.readings.baseline) is not None:
            values = list(twin.shallow.values())
            data.append(
                course(f"{said}one hidden layer", twin.shallow, values, index, "dash", False)
            )
        known = report.first.losses
        if known and known[0].exact and not shapes:
            shapes = [level(known[0].chance)]
            notes = [note_at("knows nothing", 1, known[0].chance, "right") | {"yref": "y"}]
    figure = courses(data, (), "step", "loss", log=False)
    if figure is not None:
        figure["layout"] |= {"shapes": shapes, "annotations": notes}
    return figure


def updates(report: Report) -> Figure | None:
    """Norm of an update over the norm of the weight, by step, of up to ten matrices."""
    by_step: dict[str, dict[int, float]] = {}
    for reading in report.readings.steps:
        for weight in reading.weights:
            if _is_matrix(weight) and weight.update > 0:
                by_step.setdefault(weight.name, {})[reading.step] = weight.update
    names = list(by_step)
    if len(names) > 10:
        names = [names[round(i * (len(names) - 1) / 9)] for i in range(10)]
    prefix = shared_prefix(names)
    data = []
    for index, name in enumerate(names):
        share = index / max(1, len(names) - 1)
        line = course(name[len(prefix) :], by_step[name], list(by_step[name].values()), 0)
        line["line"]["color"] = line["marker"]["color"] = shade(share)
        data.append(line)
    figure = courses(data, (), "step", "update / weight")
    if figure is not None:
        figure["layout"]["shapes"] = [level(1e-3)]
    return figure


def _is_matrix(weight: WeightReading) -> bool:
    if weight.role:
        return weight.role in ("weight", "recurrent", "embedding")
    return weight.name.endswith("weight") and weight.std > 0


def _longest(reports: Reports) -> Sequence[LayerReading]:
    return max((report.first.layers for report in reports.values()), key=len)


def _of(known: Mapping[str, float]) -> Value:
    return lambda one: known.get(one.name, math.nan)


def _by_role(
    reports: Reports,
    what: str,
    dash: str,
    value: Value,
    *,
    start: int = 0,
    several: bool = False,
) -> list[dict[str, Any]]:
    """A line per role of layer: only the same layer of the next block compares."""
    found = []
    for index, (name, report) in enumerate(reports.items(), start=start):
        layers = report.first.layers
        at = {layer.name: place for place, layer in enumerate(layers, start=1)}
        groups = roles(layers)
        for number, (role, members) in enumerate(groups):
            parts = (name, role if len(groups) > 1 else "", what)
            # Colours tell reports apart where there are several, else roles.
            color = index if several or len(reports) > 1 else number
            found.append(
                course(
                    ": ".join(part for part in parts if part),
                    [at[one.name] for one in members],
                    [value(one) for one in members],
                    color,
                    dash,
                    shape=number,
                )
            )
    return found
