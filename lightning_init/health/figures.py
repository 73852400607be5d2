"""How a figure looks: lines, axes, ticks and notes as plotly's plain data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightning_init.architecture.readings import LayerReading
from lightning_init.health.labels import shared_prefix, shorten

Figure = dict[str, Any]

# Okabe & Ito (2008): apart for the colour-blind; dashes and markers keep them apart on paper.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKS = ("circle", "diamond", "square", "triangle-up", "x", "cross")
_GREY = "#777777"


def course(
    name: str,
    x: Iterable[int],
    y: Sequence[float],
    index: int,
    dash: str = "solid",
    marks: bool = True,
    shape: int | None = None,
) -> dict[str, Any]:
    """One line with a colour and a marker of its own, so that it is told apart on paper, too."""
    color = COLORS[index % len(COLORS)]
    return {
        "type": "scatter",
        "name": name,
        "x": list(x),
        "y": [value if math.isfinite(value) else None for value in y],
        "mode": "lines+markers" if marks else "lines",
        "line": {"color": color, "dash": dash, "width": 2},
        "marker": {
            "color": color,
            "symbol": _MARKS[(index if shape is None else shape) % len(_MARKS)],
            "size": 5,
        },
        "hovertemplate": "%{x}: %{y:.3g}",
    }


def courses(
    data: Sequence[dict[str, Any]],
    layers: Sequence[LayerReading],
    x: str,
    y: str,
    *,
    log: bool = True,
) -> Figure | None:
    """A figure of those lines that have points; zeros have no place on a logarithmic axis.

    Args:
        data: The lines.
        layers: What the ticks of the x axis name, none for numbers.
        x: Title of the x axis.
        y: Title of the y axis.
        log: Whether the y axis is logarithmic.

    Returns:
        None if there is no point at all.
    """
    kept = []
    for line in data:
        if log:
            line = line | {"y": [value if value and value > 0 else None for value in line["y"]]}
        if any(value is not None for value in line["y"]):
            kept.append(line)
    if not kept:
        return None
    layout = layout_of(x, y, layer_ticks(layers) if layers else {})
    if log:
        # The power of ten alone is enough: 0.0001 and its like take the room of the plot.
        values = [value for line in kept for value in line["y"] if value]
        folds = math.log10(max(values) / min(values))
        near = {"dtick": "D2", "tickformat": ".2~g"}
        # A power of ten alone is enough: 0.0001 and its like take the room of the plot.
        far = {"dtick": max(1, math.ceil(folds / 8)), "exponentformat": "power"}
        if folds > 0.5:
            layout["yaxis"] |= {"type": "log"} | (near if folds < 1.5 else far)
        else:  # a logarithmic axis would have one tick
            layout["yaxis"]["rangemode"] = "tozero"
    layout["showlegend"] = len(kept) > 1
    layout["height"] += 16 * (len(kept) // 4)  # the legend takes none of the plot's room
    return {"data": kept, "layout": layout}


def layout_of(x: str, y: str, ticks: Mapping[str, Any]) -> dict[str, Any]:
    """What all figures share."""
    return {
        "height": 400,
        "margin": {"l": 70, "r": 40, "t": 30, "b": 80},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#222222"},
        "xaxis": axis(x) | dict(ticks),
        "yaxis": axis(y),
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "hovermode": "closest",
        "modebar": {"orientation": "v"},
    }


def axis(title: str) -> dict[str, Any]:
    """One axis."""
    return {
        "title": {"text": title},
        "gridcolor": "#e5e5e5",
        "linecolor": "#999999",
        "zeroline": False,
        "ticks": "outside",
        "automargin": True,
    }


def layer_ticks(layers: Sequence[LayerReading]) -> dict[str, Any]:
    """Names of layers as ticks."""
    return ticks_of([layer.name for layer in layers])


def ticks_of(names: Sequence[str], most: int = 16) -> dict[str, Any]:
    """Some of the names below an axis; all of them are in the table."""
    prefix, count = shared_prefix(names), len(names)
    chosen: Iterable[int] = range(count)
    if count > most:
        chosen = sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})
    return {
        "tickvals": [i + 1 for i in chosen],
        "ticktext": [shorten(names[i][len(prefix) :], 18) for i in chosen],
        "tickangle": -40,
        "range": [0.5, count + 0.5],
    }


def level(y: float) -> dict[str, Any]:
    """A dashed horizontal line."""
    line = {"color": _GREY, "dash": "dash", "width": 1}
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y, "line": line}


def note_at(text: str, x: float, y: float, xanchor: str = "left", yanchor: str = "bottom") -> Any:
    """A remark inside of the plot; x and y in shares of its width and height."""
    return {
        "text": text,
        "xref": "paper",
        "yref": "paper",
        "x": x,
        "y": y,
        "xanchor": xanchor,
        "yanchor": yanchor,
        "showarrow": False,
        "font": {"color": "#555555", "size": 12},
    }


def shade(share: float) -> str:
    """From dark blue (near the input) to orange (near the loss)."""
    ends = (8, 48, 107), (230, 130, 20)
    mixed = [round(a + (b - a) * share) for a, b in zip(*ends, strict=True)]
    return f"rgb({mixed[0]},{mixed[1]},{mixed[2]})"
