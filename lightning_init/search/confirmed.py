"""Figures of the confirmation, as plotly's plain data: the same seeds for all, failures shown."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_init.health.figures import COLORS, Figure, layout_of
from lightning_init.search.candidates import Candidate, Run
from lightning_init.search.plots import log_scale, plain, scale_of
from lightning_init.search.result import SearchResult
from lightning_init.search.statistics import Comparison, Mode
from lightning_init.search.sweep import Rates

_KEEP = "#555555"
FAILED = "#B2182B"
_DASHES = ("solid", "dash", "dot", "dashdot")  # what is alike is still seen to be two
_WIDE = 40  # characters of a label beside an axis
_NEAR = 0.05  # of the best: as good, to the eye
Point = tuple[float, str, str]  # x, the row, what is said of it


def forest(result: SearchResult, goal: int = 0) -> Figure | None:
    """Each candidate's paired difference to `keep`: interval, mean, a dot per seed.

    Args:
        result: What was confirmed.
        goal: Which goal, from 0.
    """
    name, mode = result.goals[goal].name, result.goals[goal].mode
    rows = [
        (
            wrapped(f"{index}.\u00a0{one.label}"),
            found[goal],
            paired(one, result.baseline, mode, goal),
        )
        for index, (one, found) in enumerate(
            zip(result.candidates, result.versus_keep, strict=True), 1
        )
    ][::-1]
    known = [gain for *_, pairs in rows for _, gain in pairs if gain is not None]
    if not known:
        return None
    ends = [end for _, c, _ in rows for end in (c.low, c.high) if math.isfinite(end)]
    low, high = min([0.0, *known, *ends]), max([0.0, *known, *ends])
    beside = low - 0.06 * (high - low or 1.0)
    dots: list[Point] = []
    failed: list[Point] = []
    for said, _, pairs in rows:
        for run, gain in pairs:
            if gain is not None:
                dots.append((gain, said, f"seed {run.seed}: {gain:+.4g}"))
            else:
                failed.append((beside, said, f"seed {run.seed}: {_why(run)}"))
    ring = {"color": "#ffffff", "width": 1}
    data = [
        _intervals([(said, c) for said, c, _ in rows], "mean and interval"),
        _points(dots, "one seed", {"color": COLORS[5], "size": 7, "line": ring}),
    ]
    if failed:
        marker = {"color": FAILED, "size": 9, "symbol": "x"}
        data.append(_points(failed, "no pair: it or keep failed", marker))
    layout = layout_of(f"gain over keep in {plain(name)} →", "", {})
    order = [said for said, *_ in rows]
    layout["yaxis"] |= {
        "type": "category",
        "categoryarray": order,
        "range": [-0.6, len(rows) - 0.4],
    }
    layout |= {"shapes": [_zero()], "height": 170 + 42 * len(rows)}
    return {"data": data, "layout": layout}


def paired(
    one: Candidate, other: Candidate, mode: Mode, goal: int = 0
) -> list[tuple[Run, float | None]]:
    """How much better each run is than the other's on its seed; None if either has no metric."""
    sign = -1.0 if mode == "min" else 1.0
    theirs = {run.seed: run.value(goal) for run in other.runs}
    found: list[tuple[Run, float | None]] = []
    for run in one.runs:
        mine, base = run.value(goal), theirs.get(run.seed)
        found.append((run, None if mine is None or base is None else sign * (mine - base)))
    return found


def curves(result: SearchResult) -> Figure | None:
    """Training loss of each candidate: mean over seeds, and the band of all of them."""
    data: list[dict[str, Any]] = []
    everyone = [result.baseline, *result.candidates]
    for index, one in enumerate(everyone):
        color = _KEEP if index == 0 else COLORS[(index - 1) % len(COLORS)]
        data += _band(one, cut(one.label), f"{index}", {"color": color, "dash": _DASHES[index % 4]})
    points = [y for line in data for y in line["y"] if y is not None]
    if not points:
        return None
    layout = layout_of("step", "training loss", {})
    layout["yaxis"] |= scale_of(points) or _fall(data)
    layout["height"] = 420 + 20 * len(everyone)
    return {"data": data, "layout": layout}


def _band(one: Candidate, name: str, group: str, look: dict[str, str]) -> list[dict[str, Any]]:
    """A candidate's band, its mean, and every run that is shorter than the others."""
    color = look["color"]
    drawn = [run for run in one.runs if run.curve]
    last = max((run.curve[-1][0] for run in drawn), default=0)
    whole = [
        dict(run.curve) for run in drawn if run.curve[-1][0] == last and run.metric is not None
    ]
    found: list[dict[str, Any]] = []
    steps = sorted(set.intersection(*(set(c) for c in whole))) if whole else []
    shared: dict[str, Any] = {"type": "scatter", "mode": "lines", "x": steps, "legendgroup": group}
    for _ in range(bool(len(whole) > 1 and steps)):
        edge = shared | {"line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
        found.append(edge | {"y": [min(c[step] for c in whole) for step in steps]})
        found.append(
            edge
            | {
                "y": [max(c[step] for c in whole) for step in steps],
                "fill": "tonexty", "fillcolor": f"rgba({_rgb(color)},.15)",
            }
        )  # fmt: skip
    if steps:
        mean = [sum(c[step] for c in whole) / len(whole) for step in steps]
        text = f"{name}, mean of {len(whole)}: %{{y:.4g}}<extra></extra>"
        found.append(
            shared | {"name": name, "y": mean, "line": look | {"width": 2}, "hovertemplate": text}
        )
    for position, run in enumerate(one.runs):
        if run.metric is not None and run.curve and run.curve[-1][0] == last:
            continue
        if not run.curve:
            continue
        found.append(
            {
                "type": "scatter", "mode": "lines+markers", "legendgroup": group,
                "x": [step for step, _ in run.curve], "y": [value for _, value in run.curve],
                "name": f"{name}: failed" if not steps else name,
                "showlegend": not steps and position == 0,
                "line": {"color": color, "width": 1, "dash": "dot"},
                "marker": {
                    "symbol": "x", "color": FAILED,
                    "size": [0] * (len(run.curve) - 1) + [9],
                },
                "hovertemplate": f"seed {run.seed} failed, step %{{x}}: %{{y:.4g}}<extra></extra>",
            }
        )  # fmt: skip
    return found


def parts(result: SearchResult) -> Figure | None:
    """How much of the gain over `keep` is the learning rate's, and how much the init's."""
    decision = result.decision
    if decision.rate is None or decision.init is None or decision.beaten is None:
        return None
    rows = [
        ("both:<br>it - keep", result.versus(decision.beaten)[0]),
        ("the init's:<br>it - keep at its best", decision.init),
        ("the learning rate's:<br>keep at its best - keep", decision.rate),
    ]
    rows = [(said, found) for said, found in rows if math.isfinite(found.gain)]
    if not rows:
        return None
    layout = layout_of(f"gain in {plain(result.monitor)} →", "", {})
    layout |= {"showlegend": False, "height": 130 + 42 * len(rows), "shapes": [_zero()]}
    layout["yaxis"] |= {"type": "category", "range": [-0.6, len(rows) - 0.4]}
    return {"data": [_intervals(rows, "")], "layout": layout}


def rates(known: Mapping[str, Rates], goal: str, mode: Mode) -> Figure | None:
    """The metric over the learning rate; within 5 % of an init's own best the dots are full."""
    data: list[dict[str, Any]] = []
    points = [y for pairs in known.values() for _, y in pairs if y is not None]
    if not points:
        return None
    for index, (label, pairs) in enumerate(known.items()):
        color = _KEEP if index == 0 else COLORS[(index - 1) % len(COLORS)]
        ordered = sorted(pairs)
        values = [y for _, y in ordered if y is not None]
        best = (min if mode == "min" else max)(values, default=math.nan)
        full = [y is not None and abs(y - best) <= _NEAR * abs(best) for _, y in ordered]
        data.append(
            {
                "type": "scatter", "mode": "lines+markers", "name": cut(label),
                "x": [x for x, _ in ordered], "y": [y for _, y in ordered],
                "connectgaps": False,
                "line": {"color": color, "width": 1.5, "dash": _DASHES[index % 4]},
                "marker": {
                    "color": [color if one else "#ffffff" for one in full], "size": 9,
                    "line": {"color": color, "width": 1.5},
                },
                "hovertemplate": "lr %{x:.3g}: %{y:.4g}",
            }
        )  # fmt: skip
        failed = [x for x, y in ordered if y is None]
        if failed:
            data.append(
                {
                    "type": "scatter", "mode": "markers", "name": f"{cut(label)}: failed",
                    "x": failed, "y": [0.02 + 0.04 * index] * len(failed), "yaxis": "y2",
                    "marker": {"symbol": "x", "color": color, "size": 9},
                    "hovertemplate": "lr %{x:.3g}: failed<extra></extra>",
                }
            )  # fmt: skip
    layout = layout_of("learning rate", plain(goal), {})
    layout["xaxis"] |= log_scale(x for pairs in known.values() for x, _ in pairs)
    layout["yaxis"] |= scale_of(points)
    layout["yaxis2"] = {"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True}
    return {"data": data, "layout": layout}


def cut(label: str, width: int = _WIDE) -> str:
    """A label in at most `width` characters, its end cut, without markup for plotly."""
    return plain(label if len(label) <= width else f"{label[: width - 1]}…")


def wrapped(label: str, width: int = 24) -> str:
    """A label beside an axis: at most three lines, without markup for plotly."""
    lines = textwrap.wrap(label, width, max_lines=3, placeholder="…", break_on_hyphens=False)
    return "<br>".join(cut(line) for line in lines)


def _intervals(rows: Sequence[tuple[str, Comparison]], name: str) -> dict[str, Any]:
    known = [(said, found) for said, found in rows if math.isfinite(found.gain)]
    line = _points(
        [(c.gain, said, f"mean {c.gain:+.4g}{_ends(c)}") for said, c in known],
        name,
        {"color": "#222222", "size": 10, "symbol": "diamond"},
    )
    margin = [c.high - c.gain if math.isfinite(c.high) else 0.0 for _, c in known]
    return line | {"error_x": {"type": "data", "array": margin, "thickness": 2, "width": 6}}


def _ends(found: Comparison) -> str:
    return f" [{found.low:+.3g}, {found.high:+.3g}]" if math.isfinite(found.low) else ""


def _points(points: Sequence[Point], name: str, marker: Any) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "markers", "name": name, "marker": marker,
        "x": [x for x, _, _ in points], "y": [y for _, y, _ in points],
        "text": [text for _, _, text in points], "hovertemplate": "%{text}<extra></extra>",
    }  # fmt: skip


def _why(run: Run) -> str:
    if run.metric is not None:
        return "keep failed"
    reason = run.reason if len(run.reason) < 90 else f"{run.reason[:89]}…"
    return "failed" + (f": {plain(reason)}" if reason else "")


def _zero() -> dict[str, Any]:
    line = {"color": "#777777", "dash": "dash", "width": 1}
    return {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": 0, "x1": 0, "line": line}


def _fall(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A logarithmic axis for losses that fall to a fifth and further."""
    known = [y for line in lines for y in line["y"] if y is not None]
    if min(known) <= 0 or max(known) < 5 * min(known):
        return {}
    return log_scale(known)


def _rgb(color: str) -> str:
    return ",".join(str(int(color[at : at + 2], 16)) for at in (1, 3, 5))
