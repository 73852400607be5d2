"""Heat maps over depth: how outputs are distributed, and how their scale moves with the steps.

Layers of one role stand beside each other, since what can be compared is the same layer of the
next block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from lightning_init.architecture.readings import Histogram
from lightning_init.health.figures import Figure, axis, layout_of, note_at, ticks_of
from lightning_init.health.labels import roles

if TYPE_CHECKING:
    from lightning_init.health.report import Report

_ROWS = 48  # bins of the values
_SPIKE = 8.0  # times the next densest bin, at most, that one bin stands out by


def distribution(report: Report) -> Figure | None:
    """Outputs of each layer over depth as a heat map, before and after the nonlinearity."""
    layers = [layer for _, members in roles(report.layers) for layer in members]
    before = [(layer.name, layer.histogram) for layer in layers if layer.histogram]
    after = [
        (layer.name, layer.after.histogram)
        for layer in layers
        if layer.after and layer.after.histogram
    ]
    panels = [
        (t, h) for t, h in (("output of the layer", before), ("after its nonlinearity", after)) if h
    ]
    if not panels:
        return None
    data, layout = [], layout_of("layer, input to loss", "", {})
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
                "x": list(range(1, len(rows) + 1)),
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
        ticks = ticks_of([name for name, _ in rows], 16 // len(panels))
        layout[f"xaxis{mark}"] = axis("layer, input to loss") | ticks
        layout[f"xaxis{mark}"] |= {"domain": domain, "anchor": f"y{mark}"}
        unit = "in units of the layer's own std" if own else "value"
        layout[f"yaxis{mark}"] = axis(unit) | {"anchor": f"x{mark}"}
        layout["annotations"].append(
            note_at(f"<b>{title}</b>", sum(domain) / 2, 1.0, "center", "bottom")
        )
    return {"data": data, "layout": layout}


def over_time(report: Report) -> Figure | None:
    """Std of each layer by step, as a heat map of its change since the first."""
    steps = [reading for reading in report.readings.steps if reading.layers]
    if len(steps) < 3:
        return None
    layers = [layer for _, members in roles(steps[0].layers) for layer in members]
    start = {one.name: one.std for one in layers}
    rows = []
    for reading in steps:
        now = {one.name: one.std for one in reading.layers}
        rows.append([_doublings(now.get(one.name, math.nan), start[one.name]) for one in layers])
    layout = layout_of("layer, input to loss", "step", ticks_of([layer.name for layer in layers]))
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
    """Densities on common bins, the largest 1, except that a spike is cut down."""
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
    # The zeros of a healthy relu would leave the rest white, as if its units were dead.
    *_, second, first_of_all = sorted(found)
    top = max(second, first_of_all / _SPIKE) or 1.0
    return [round(min(value / top, 1.0), 4) for value in found]
