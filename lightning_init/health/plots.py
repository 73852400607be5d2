"""The plots that people look at, as plotly's plain data: no library is needed to make them.

Each function takes reports by name (one, or several to compare) and returns a figure, or None
where nothing was measured for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any

from lightning_init.architecture.readings import Histogram, LayerReading, StepReading, WeightReading
from lightning_init.health.figures import (
    Figure,
    axis,
    course,
    courses,
    layer_ticks,
    layout_of,
    level,
    note_at,
    shade,
    ticks_of,
)
from lightning_init.health.layers import shared_prefix

if TYPE_CHECKING:
    from lightning_init.health.report import Report

Reports = Mapping[str, "Report"]
_ROWS = 48  # bins of a heat map


def distribution(report: Report) -> Figure | None:
    """Outputs of each layer over depth as a heat map, before and after the nonlinearity."""
    layers = _first(report).layers
    before = [(i, layer.histogram) for i, layer in enumerate(layers) if layer.histogram]
    after = [
        (i, layer.after.histogram)
        for i, layer in enumerate(layers)
        if layer.after and layer.after.histogram
    ]
    panels = [(t, h) for t, h in (("output of the layer", before), ("after it", after)) if h]
    if not panels:
        return None
    labels = layer_ticks(layers)
    data, layout = [], layout_of("layer, input to loss", "", labels)
    layout["annotations"] = []
    for index, (title, rows) in enumerate(panels, start=1):
        mark = "" if index == 1 else str(index)
        histograms = [histogram for _, histogram in rows]
        own, low, high = _range(histograms)
        centres = [low + (high - low) * (i + 0.5) / _ROWS for i in range(_ROWS)]
        columns = [_rebinned(h, low, high, own) for h in histograms]
        data.append(
            {
                "type": "heatmap",
                "x": [i + 1 for i, _ in rows],
                "y": centres,
                "z": [list(values) for values in zip(*columns, strict=True)],
                "xaxis": f"x{mark}",
                "yaxis": f"y{mark}",
                "colorscale": [[0, "#ffffff"], [0.15, "#c6dbef"], [0.5, "#4292c6"], [1, "#08306b"]],
                "zmin": 0,
                "zmax": 1,
                "showscale": False,
                "hovertemplate": "layer %{x}<br>%{y:.3g}<extra></extra>",
            }
        )
        left, right = (index - 1) / len(panels), index / len(panels)
        gap = 0.04 if len(panels) > 1 else 0
        domain = [left + gap * (index > 1), right - gap * (index < len(panels))]
        layout[f"xaxis{mark}"] = dict(layout["xaxis"]) | {"domain": domain, "anchor": f"y{mark}"}
        unit = "in units of the layer's own std" if own else "value"
        layout[f"yaxis{mark}"] = axis(unit) | {"anchor": f"x{mark}"}
        layout["annotations"].append(
            note_at(f"<b>{title}</b>", sum(domain) / 2, 1.0, "center", "bottom")
        )
    return {"data": data, "layout": layout}


def spread(reports: Reports) -> Figure | None:
    """Std of each layer before and after its nonlinearity, beside what is expected."""
    data: list[dict[str, Any]] = []
    for index, (name, report) in enumerate(reports.items()):
        layers = _first(report).layers
        at = range(1, len(layers) + 1)
        said = f"{name}: " if name else ""
        data += [
            course(f"{said}std", at, [one.std for one in layers], index),
            course(
                f"{said}after the nonlinearity",
                at,
                [one.after.std if one.after else math.nan for one in layers],
                index,
                "dash",
            ),
            course(f"{said}expected", at, [one.expected_rms for one in layers], index, "dot"),
        ]
    return courses(data, _longest(reports), "layer, input to loss", "standard deviation")


def gradients(reports: Reports) -> Figure | None:
    """Gradient norm of each layer's output and of its weight."""
    data = []
    for index, (name, report) in enumerate(reports.items()):
        reading = _first(report)
        norms = {w.module or w.name.rpartition(".")[0]: w for w in reading.weights[::-1]}
        matrices = {
            w.module or w.name.rpartition(".")[0]: w for w in reading.weights if _is_matrix(w)
        }
        at = range(1, len(reading.layers) + 1)
        said = f"{name}: " if name else ""
        of_weights = [
            w.grad_rms * math.sqrt(w.numel) if (w := (norms | matrices).get(one.name)) else math.nan
            for one in reading.layers
        ]
        data += [
            course(f"{said}output", at, [one.grad_norm for one in reading.layers], index),
            course(f"{said}weight", at, of_weights, index, "dash"),
        ]
    return courses(data, _longest(reports), "layer, input to loss", "norm of the gradient")


def chi(reports: Reports) -> Figure | None:
    """Growth of the squared gradient norm per layer, towards the input: 1 is the edge of chaos."""
    data, longest = [], 0
    for index, (name, report) in enumerate(reports.items()):
        chain = [
            (i, one.grad_norm)
            for i, one in enumerate(_first(report).layers, start=1)
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
        figure["layout"]["annotations"] = [
            note_at("1: the edge of chaos; above, gradients grow towards the input", 0, 1.0)
            | {"yref": "y", "y": 0.0}
        ]
    return figure


def attention(reports: Reports) -> Figure | None:
    """Entropy of each softmax over attention logits: 1 is uniform, 0 is a single key."""
    data = []
    names: list[str] = []
    for index, (name, report) in enumerate(reports.items()):
        softmaxes = _first(report).attentions
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
        known = _first(report).losses
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


def over_time(report: Report) -> Figure | None:
    """Std of each layer by step, as a heat map of its change since the first."""
    steps = [reading for reading in report.readings.steps if reading.layers]
    if len(steps) < 3:
        return None
    layers = steps[0].layers
    start = {one.name: one.std for one in layers}
    rows = []
    for reading in steps:
        now = {one.name: one.std for one in reading.layers}
        rows.append([_doublings(now.get(one.name, math.nan), start[one.name]) for one in layers])
    layout = layout_of("layer, input to loss", "step", layer_ticks(layers))
    data = {
        "type": "heatmap",
        "x": list(range(1, len(layers) + 1)),
        "y": [reading.step for reading in steps],
        "z": rows,
        "zmid": 0,
        "zmin": -3,
        "zmax": 3,
        "colorscale": [[0, "#2166ac"], [0.5, "#f7f7f7"], [1, "#b2182b"]],
        "colorbar": {"title": {"text": "doublings"}},
        "hovertemplate": "layer %{x}, step %{y}: 2^%{z:.2f}<extra></extra>",
    }
    return {"data": [data], "layout": layout}


def _first(report: Report) -> StepReading:
    return report.readings.steps[0] if report.readings.steps else StepReading(0)


def _is_matrix(weight: WeightReading) -> bool:
    if weight.role:
        return weight.role in ("weight", "recurrent", "embedding")
    return weight.name.endswith("weight") and weight.std > 0


def _doublings(now: float, before: float) -> float | None:
    if not (now > 0 and before > 0 and math.isfinite(now) and math.isfinite(before)):
        return None
    return math.log2(now / before)


def _range(histograms: Sequence[Histogram]) -> tuple[bool, float, float]:
    """The values that all share: their own unless scales are far apart, then stds."""
    widths = [h.high - h.low for h in histograms]
    typical = median(widths)
    if max(widths) < 30 * typical and min(widths) > typical / 30:
        return False, min(h.low for h in histograms), max(h.high for h in histograms)
    return True, -4.0, 4.0


def _rebinned(given: Histogram, low: float, high: float, own: bool) -> list[float]:
    """Densities on common bins, the largest 1."""
    size = (given.high - given.low) / len(given.shares)
    centres = [given.low + size * (i + 0.5) for i in range(len(given.shares))]
    if own:
        mean = sum(s * c for s, c in zip(given.shares, centres, strict=True))
        var = sum(s * (c - mean) ** 2 for s, c in zip(given.shares, centres, strict=True))
        scale = math.sqrt(var) or 1.0
        size, centres = size / scale, [c / scale for c in centres]
    wide = (high - low) / _ROWS
    found = [0.0] * _ROWS
    for share, centre in zip(given.shares, centres, strict=True):
        # A bin that is wider than those of the plot is spread over all that it covers.
        first = (centre - size / 2 - low) / wide
        last = (centre + size / 2 - low) / wide
        for index in range(max(0, math.floor(first)), min(_ROWS, math.ceil(last))):
            inside = min(last, index + 1) - max(first, index)
            found[index] += share * inside / (last - first)
    top = max(found) or 1.0
    return [round(value / top, 4) for value in found]


def _longest(reports: Reports) -> Sequence[LayerReading]:
    return max((_first(report).layers for report in reports.values()), key=len)
