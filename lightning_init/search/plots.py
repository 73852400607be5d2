"""Figures of the screening, as plotly's plain data: what was tried and what came of it.

Each function takes an `Overview` and returns a figure, or None where there is nothing to draw.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

import optuna

from lightning_init.health.figures import COLORS, Figure, layout_of
from lightning_init.search.overview import Kind, Overview, Tried
from lightning_init.search.space import STRATEGY

# Colour and marker of what came of a trial.
KINDS: dict[Kind, tuple[str, str]] = {
    "healthy": ("#0072B2", "circle"),
    "pruned": ("#E69F00", "triangle-down"),
    "unhealthy": ("#B2182B", "x"),
    "crashed": ("#222222", "square-x-open"),
    "unfinished": ("#999999", "circle-open"),
}
_SYMBOLS = ("circle", "diamond", "square", "triangle-up", "star", "hexagon")
_MOST = 12  # slices: more are not looked at
FEW = 8  # trials below which an importance is a guess


def history(seen: Overview) -> Figure | None:
    """The metric of each trial in order with the best so far; below, those without one."""
    healthy = [one for one in seen.trials if one.metric is not None]
    others = [one for one in seen.trials if one.metric is None]
    if not seen.trials:
        return None
    goal = seen.goals[0]
    data: list[dict[str, Any]] = []
    if healthy:
        pick = min if goal.mode == "min" else max
        best = list(accumulate((one.metric for one in healthy if one.metric is not None), pick))
        line = {"color": KINDS["healthy"][0], "width": 1.5, "shape": "hv"}
        data.append(_dots(healthy, [one.metric for one in healthy], "healthy"))
        data.append(
            {
                "type": "scatter", "mode": "lines", "name": "best so far", "line": line,
                "x": [*(one.number for one in healthy), seen.trials[-1].number],
                "y": [*best, best[-1]], "hovertemplate": "%{y:.4g}<extra>best so far</extra>",
            }
        )  # fmt: skip
    for kind in KINDS:
        ours = [one for one in others if one.kind == kind]
        if ours:
            data.append(_dots(ours, [kind] * len(ours), kind) | {"yaxis": "y2"})
    layout = layout_of("trial", plain(goal.name), {})
    layout["yaxis"] |= scale_of([one.metric for one in healthy if one.metric is not None])
    lanes = len({one.kind for one in others})
    if lanes and healthy:
        layout["yaxis"]["domain"] = [0.1 + 0.06 * lanes, 1]
    if lanes:
        top = 0.02 + 0.06 * lanes if healthy else 1
        layout["yaxis2"] = _lanes() | {"domain": [0, top]}
        layout["xaxis"]["anchor"] = "y2"
        layout["height"] = layout["height"] if healthy else 90 + 60 * lanes
    return {"data": data, "layout": layout}


def strategies(seen: Overview) -> Figure | None:
    """The metric of every healthy trial, by strategy, the best median on top."""
    groups: dict[str, list[Tried]] = {}
    for one in seen.trials:
        if one.metric is not None:
            groups.setdefault(one.strategy, []).append(one)
    if not groups:
        return None
    sign = 1 if seen.goals[0].mode == "min" else -1
    order = sorted(groups, key=lambda name: sign * _median(groups[name]), reverse=True)
    data = [_box(name, groups[name]) for name in order]
    layout = layout_of(plain(seen.goals[0].name), "", {})
    values = [one.metric for ours in groups.values() for one in ours if one.metric is not None]
    layout["xaxis"] |= scale_of(values)
    layout["yaxis"] |= {"type": "category"}
    layout |= {"showlegend": False, "height": 110 + 28 * len(order)}
    return {"data": data, "layout": layout}


def _box(name: str, trials: Sequence[Tried]) -> dict[str, Any]:
    return {
        "type": "box", "orientation": "h", "name": plain(name),
        "x": [one.metric for one in trials], "y": [plain(name)] * len(trials),
        "text": [_hover(one) for one in trials],
        "boxpoints": "all", "jitter": 0.4, "pointpos": 0, "line": {"width": 1},
        "marker": {"color": KINDS["healthy"][0], "size": 5}, "hoveron": "points",
        "hovertemplate": "%{text}<extra></extra>", "fillcolor": "rgba(0,114,178,.12)",
    }  # fmt: skip


def palette(seen: Overview) -> dict[str, tuple[str, str]]:
    """Colour and marker of each strategy, the same in every slice."""
    names = sorted({one.strategy for one in seen.trials if one.strategy})
    return {
        name: (COLORS[index % len(COLORS)], _SYMBOLS[index // len(COLORS) % len(_SYMBOLS)])
        for index, name in enumerate(names)
    }


def slices(seen: Overview) -> list[tuple[str, Figure]]:
    """The metric over each axis that varies, a colour for each strategy; the weightiest first."""
    looks, logarithmic, weight = palette(seen), seen.log_axes, importances(seen) or {}
    healthy = [one for one in seen.trials if one.metric is not None]
    values: dict[str, set[str]] = {}
    for one in healthy:
        for name, value in one.axes.items():
            values.setdefault(name, set()).add(str(value))
    varied = [name for name, different in values.items() if len(different) > 1]
    found = []
    for axis in sorted(varied, key=lambda name: -weight.get(name, 0.0))[:_MOST]:
        numeric = all(_is_number(one.axes[axis]) for one in healthy if axis in one.axes)
        data = []
        for strategy, (color, symbol) in looks.items():
            ours = [one for one in healthy if one.strategy == strategy and axis in one.axes]
            if ours:
                data.append(
                    {
                        "type": "scatter", "mode": "markers", "name": strategy,
                        "x": [one.axes[axis] if numeric else plain(str(one.axes[axis])) for one in ours],
                        "y": [one.metric for one in ours],
                        "text": [_hover(one) for one in ours],
                        "marker": {"color": color, "symbol": symbol, "size": 8, "opacity": 0.8},
                        "hovertemplate": "%{text}<extra></extra>",
                    }
                )  # fmt: skip
        layout = layout_of(plain(axis), plain(seen.goals[0].name), {})
        layout["yaxis"] |= _extent([one.metric for one in healthy if one.metric is not None])
        if not numeric:
            layout["xaxis"] |= {"type": "category"}
        elif axis in logarithmic:
            layout["xaxis"] |= log_scale(one.axes[axis] for one in healthy if axis in one.axes)
        layout |= {"showlegend": False, "height": 300}
        layout["margin"] = {"l": 60, "r": 15, "t": 15, "b": 50}
        bare = {"displayModeBar": False}  # it would take a third of the plot
        found.append((axis, {"data": data, "layout": layout, "config": bare}))
    return found


def importances(seen: Overview) -> dict[str, float] | None:
    """How much of the first goal each axis explains, None if there are too few trials.

    References:
        Watanabe, Bansal & Hutter (2023), PED-ANOVA, https://arxiv.org/abs/2304.10255
    """
    healthy = [one for one in seen.trials if one.metric is not None]
    if len(healthy) < FEW or len({one.metric for one in healthy}) < 3:
        return None
    study = optuna.create_study(direction="minimize" if seen.goals[0].mode == "min" else "maximize")
    known = {trial.number: trial for trial in seen.study.get_trials(deepcopy=False)}
    for one in healthy:
        # What a strategy ignores has no say: as a parameter of that trial it would be noise.
        names = [name for name in known[one.number].params if name in {*one.axes, STRATEGY}]
        study.add_trial(
            optuna.create_trial(
                value=one.metric,
                params={name: known[one.number].params[name] for name in names},
                distributions={name: known[one.number].distributions[name] for name in names},
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that they are rough is said beside them
        try:
            return optuna.importance.get_param_importances(study)
        except (ValueError, RuntimeError):
            return None  # the evaluator needs more variety than these trials have


def importance(seen: Overview) -> Figure | None:
    """The importances as bars, the largest on top."""
    found = importances(seen)
    if not found:
        return None
    kept = sorted(found.items(), key=lambda item: item[1])[-20:]
    names = ["the init" if name == STRATEGY else plain(name) for name, _ in kept]
    data = {
        "type": "bar", "orientation": "h", "x": [value for _, value in kept], "y": names,
        "marker": {"color": KINDS["healthy"][0]},
        "hovertemplate": "%{y}: %{x:.0%}<extra></extra>",
    }  # fmt: skip
    layout = layout_of("importance", "", {})
    layout["xaxis"] |= {"rangemode": "tozero", "tickformat": ".0%"}
    layout["yaxis"] |= {"type": "category"}
    layout |= {"showlegend": False, "height": 110 + 26 * len(kept)}
    return {"data": [data], "layout": layout}


def pareto(seen: Overview) -> list[Figure]:
    """Each further goal over the first; what no other trial beats in all goals is marked."""
    healthy = [one for one in seen.trials if one.metric is not None]
    if len(seen.goals) < 2 or not healthy:
        return []
    best = {trial.number for trial in seen.study.best_trials}
    found = []
    for index, goal in enumerate(seen.goals[1:], start=1):
        data = []
        for name, marked, color, symbol in (
            ("beaten in all goals", False, "#999999", "circle-open"),
            ("Pareto front", True, COLORS[1], "star"),
        ):
            ours = [one for one in healthy if (one.number in best) is marked]
            if ours:
                line = _dots(ours, [one.values[index] for one in ours], "healthy")
                line |= {"x": [one.metric for one in ours], "name": name}
                line["marker"] = {"color": color, "symbol": symbol, "size": 10 if marked else 7}
                data.append(line)
        first = seen.goals[0]
        layout = layout_of(
            f"{plain(first.name)} ({first.mode})", f"{plain(goal.name)} ({goal.mode})", {}
        )
        found.append({"data": data, "layout": layout})
    return found


def scale_of(values: Iterable[float]) -> dict[str, Any]:
    """A logarithmic axis where a linear one would hide most of the points."""
    known = sorted(values)
    if not known or known[0] <= 0 or known[-1] < 20 * known[len(known) // 2]:
        return {}
    return log_scale(known)


def log_scale(values: Iterable[float]) -> dict[str, Any]:
    """A logarithmic axis with ticks that are read, also where it spans less than a decade."""
    known = [value for value in values if value > 0] or [1.0, 10.0]
    low, high = min(known), max(known)
    folds = math.log10(high / low)
    if folds < 1:
        marks = sorted({float(f"{low * (high / low) ** (i / 3):.2g}") for i in range(4)})
        return {"type": "log", "tickvals": marks, "ticktext": [f"{mark:g}" for mark in marks]}
    if folds < 1.5:
        return {"type": "log", "dtick": "D2", "tickformat": ".2~g"}
    return {"type": "log", "dtick": max(1, math.ceil(folds / 8)), "exponentformat": "power"}


def _extent(values: Sequence[float]) -> dict[str, Any]:
    """The same range for figures beside each other, with room for the markers."""
    scale = scale_of(values)
    low, high = min(values), max(values)
    if scale:
        low, high = math.log10(low), math.log10(high)
    room = 0.06 * (high - low) or 0.5 * abs(high) or 1.0
    return scale | {"range": [low - room, high + room]}


def _dots(trials: Sequence[Tried], y: Sequence[Any], kind: Kind) -> dict[str, Any]:
    color, symbol = KINDS[kind]
    return {
        "type": "scatter", "mode": "markers", "name": kind,
        "x": [one.number for one in trials], "y": list(y),
        "text": [_hover(one) for one in trials],
        "marker": {"color": color, "symbol": symbol, "size": 8},
        "hovertemplate": "%{text}<extra></extra>",
    }  # fmt: skip


def _lanes() -> dict[str, Any]:
    return {
        "type": "category", "automargin": True, "showgrid": False, "linecolor": "#999999",
        "tickfont": {"size": 11}, "fixedrange": True,
    }  # fmt: skip


def _hover(one: Tried) -> str:
    parts = [f"trial {one.number}: {one.label}"]
    if one.values:
        parts.append(" / ".join(f"{value:.4g}" for value in one.values))
    if one.reason:
        cut = one.reason if len(one.reason) < 90 else f"{one.reason[:89]}…"
        parts.append(cut)
    return "<br>".join(map(plain, parts))


def plain(text: str) -> str:
    """A text in which plotly finds no markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _median(trials: Sequence[Tried]) -> float:
    values = sorted(one.metric for one in trials if one.metric is not None)
    return values[len(values) // 2]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
