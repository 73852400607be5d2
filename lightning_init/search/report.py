"""One HTML file with the plots people look at; it opens without a network."""

from __future__ import annotations

import html as markup
from typing import Any

import optuna
import plotly.graph_objects as go
import plotly.io
from plotly.colors import qualitative

from lightning_init.search.result import SearchResult
from lightning_init.search.space import STRATEGY

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;width:100%}td,th{padding:.3rem .6rem;text-align:left;
border-bottom:1px solid #ddd}td:not(:first-child){font-variant-numeric:tabular-nums}
.verdict{background:#eef5ee;padding:.8rem 1rem;border-left:4px solid #4a8}
h2{margin-top:2.5rem}code{background:#f4f4f4;padding:.1rem .3rem}
"""


def html(result: SearchResult) -> str:
    """The whole report as one page.

    Args:
        result: What the search found.

    Returns:
        HTML with plotly's script inside.
    """
    figures = [
        ("Loss of the confirmed runs", curves(result)),
        ("Trials in order", history(result)),
        ("Per strategy", per_strategy(result)),
        ("What mattered", importance(result)),
    ]
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width,initial-scale=1'>",
        f"<title>lightning_init search</title><style>{_STYLE}</style></head><body>",
        "<h1>Init search</h1>",
        f"<p class='verdict'>{markup.escape(result.verdict())}</p>",
        _table(result),
        f"<p>Each run trains {result.steps} steps. Intervals are of the paired difference to "
        "<code>keep</code> on seeds that were not used for choosing; positive is better.</p>",
    ]
    first = True
    for title, figure in figures:
        parts.append(f"<h2>{title}</h2>")
        if figure is None:
            parts.append("<p>Too few finished trials to tell.</p>")
            continue
        parts.append(
            plotly.io.to_html(
                figure, full_html=False, include_plotlyjs=first, config={"displaylogo": False}
            )
        )
        first = False
    parts += [_reasons(result), "</body></html>"]
    return "\n".join(parts)


def curves(result: SearchResult) -> go.Figure:
    """Training loss of each confirmed candidate, a line per seed."""
    figure = go.Figure()
    everyone = [result.baseline, *result.candidates]
    for index, one in enumerate(everyone):
        color = qualitative.Plotly[index % len(qualitative.Plotly)]
        for position, run in enumerate(one.runs):
            figure.add_scatter(
                x=[step for step, _ in run.curve],
                y=[value for _, value in run.curve],
                name=one.label,
                legendgroup=one.label,
                showlegend=position == 0,
                line={"color": color, "width": 1.5},
                opacity=0.7,
                hovertemplate=f"seed {run.seed}, step %{{x}}: %{{y:.4g}}",
            )
    return _laid_out(figure, "step", "training loss")


def history(result: SearchResult) -> go.Figure | None:
    """The metric of each trial in order, and the best so far."""
    if not any(row["metric"] is not None for row in result.trials):
        return None
    figure = optuna.visualization.plot_optimization_history(
        result.study, target_name=result.monitor
    )
    figure.update_layout(title=None)
    return _laid_out(figure, "trial", result.monitor)


def per_strategy(result: SearchResult) -> go.Figure | None:
    """The metric of every healthy trial, by strategy."""
    rows = [r for r in result.trials if r["spec"] and r["metric"] is not None and not r["reason"]]
    if not rows:
        return None
    figure = go.Figure()
    for name in sorted({row["spec"]["strategy"] for row in rows}):
        values = [row["metric"] for row in rows if row["spec"]["strategy"] == name]
        figure.add_box(y=values, name=name, boxpoints="all", jitter=0.4, pointpos=0)
    figure.update_layout(showlegend=False)
    return _laid_out(figure, "", result.monitor)


def importance(result: SearchResult) -> go.Figure | None:
    """How much of the metric each axis explains (PED-ANOVA)."""
    done = [row for row in result.trials if row["state"] == "COMPLETE"]
    if len(done) < 8 or len({row["value"] for row in done}) < 3:
        return None
    try:
        found = optuna.importance.get_param_importances(result.study)
    except (ValueError, RuntimeError):
        return None  # the evaluator needs more variety than these trials have
    names = list(found)[::-1]
    labels = [name if name == STRATEGY else name.rpartition(".init_args.")[2] for name in names]
    figure = go.Figure(go.Bar(x=[found[name] for name in names], y=labels, orientation="h"))
    return _laid_out(figure, "importance", "")


def _laid_out(figure: go.Figure, x: str, y: str) -> go.Figure:
    figure.update_layout(
        template="plotly_white",
        height=420,
        margin={"l": 60, "r": 20, "t": 20, "b": 50},
        xaxis_title=x,
        yaxis_title=y,
        legend={"orientation": "h", "y": -0.2},
    )
    return figure


def _table(result: SearchResult) -> str:
    head = result.heads()
    rows: list[tuple[Any, ...]] = list(result.rows())
    cells = ["".join(f"<td>{markup.escape(str(cell))}</td>" for cell in row) for row in rows]
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f"<table><tr>{''.join(f'<th>{markup.escape(name)}</th>' for name in head)}</tr>{body}</table>"


def _reasons(result: SearchResult) -> str:
    rows = [row for row in result.trials if row["reason"] and row["spec"]]
    if not rows:
        return ""
    items = "".join(
        f"<li>trial {row['number']}, {markup.escape(row['spec']['strategy'])}: "
        f"{markup.escape(row['reason'])}</li>"
        for row in rows
    )
    return f"<h2>Stopped trials</h2><ul>{items}</ul>"
