"""A report, or several beside each other, as one HTML file that opens without a network."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from lightning_init.architecture.readings import LayerReading
from lightning_init.health import heatmaps, plots
from lightning_init.health.findings import Finding
from lightning_init.health.layers import flat, number
from lightning_init.health.marks import Mark, marks
from lightning_init.health.sheet import document, section
from lightning_init.health.words import attention_note, explained, input_note, reasons

if TYPE_CHECKING:
    from lightning_init.health.report import Report

_HEAD = (
    *("layer", "kind", "mean", "std", "expected rms", "|max|"),
    *("after", "flat", "gradient rms", "verdict"),
)


def page(reports: Mapping[str, Report]) -> str:
    """The page of reports by name: verdicts, findings, plots, every layer.

    Args:
        reports: At least one; a single one may have the name `""`.

    Returns:
        HTML with plotly's script inside, once.

    Raises:
        ImportError: If plotly is not installed.
    """
    names = [name for name in reports if name]
    title = " | ".join(names) or "lightning_init"
    body = [f"<h1>Health{': ' + html.escape(title) if names else ''}</h1>"]
    for name, report in reports.items():
        body += _said(name, report)
    body += _figures(reports)
    for name, report in reports.items():
        body += _layers(name, report)
    return document(f"Health: {title}", body)


def _said(name: str, report: Report) -> Iterator[str]:
    worst = report.worst.severity if report.worst else "healthy"
    said = f"<b>{html.escape(name)}</b>: " if name else ""
    yield f"<p class='verdict {worst}'>{said}{html.escape(report.summary())}</p>"
    for line in report.remarks():
        yield f"<p class='note'>{html.escape(line)}</p>"
    for index, finding in enumerate(report.findings, start=1):
        yield from _finding(index, finding)


def _finding(index: int, one: Finding) -> Iterator[str]:
    drawn = f" ({html.escape(one.scheme)})" if one.scheme else ""
    yield f"<div class='finding {one.severity}'><p><b>[{index}] {one.severity.upper()} "
    yield f"{one.detector}</b> at <code>{html.escape(one.where)}</code>{drawn}, step {one.step}: "
    yield f"{html.escape(one.message)}</p><p>Likely cause, and what to do:</p><ol>"
    for cause, fix in reasons(one):
        yield f"<li>{html.escape(cause)}<br>Fix: {html.escape(fix)}</li>"
    yield "</ol>"
    if one.consequences:
        yield f"<p>It explains: {html.escape(explained(one))}</p>"
    if one.reference:
        yield f"<p class='note'>{html.escape(one.reference)}</p>"
    yield "</div>"


def _figures(reports: Mapping[str, Report]) -> Iterator[str]:
    yield from section(
        "Scale over depth",
        "Std of each layer's output, of what its nonlinearity makes of it, and what is expected of "
        "weights as they were drawn. Level is healthy; a slope is a signal that explodes or fades.",
        plots.spread(reports),
    )
    for name, report in reports.items():
        yield from section(
            f"Distribution of the outputs{f', {name}' if name else ''}",
            "A column per layer, the densest value dark. Mass at both ends is saturation, a single "
            "dark line at zero is death.",
            heatmaps.distribution(report),
        )
    yield from section(
        "Gradient by layer",
        "Norm of the loss gradient with respect to each layer's output and weight.",
        plots.gradients(reports),
    )
    yield from section(
        "Edge of chaos",
        "chi: growth of the squared gradient norm from a layer to the one before it. Below 1 "
        "(dashed) gradients vanish on the way to the input, above 1 they explode.",
        plots.chi(reports),
    )
    yield from section(
        "Attention",
        "Entropy of the attention weights over that of uniform ones: near 0 a softmax saturates.",
        plots.attention(reports),
    )
    yield from section("Loss", "Training loss of the watched steps.", plots.losses(reports))
    for name, report in reports.items():
        of = f", {name}" if name else ""
        yield from section(
            f"Size of the updates{of}",
            "Norm of an update over the norm of the weight, from the input (dark) to the loss "
            "(light). About 1e-3 is usual after the first steps.",
            plots.updates(report),
        )
        yield from section(
            f"Scale over time{of}",
            "Std of each layer's output against its first value: red has grown, blue has shrunk.",
            heatmaps.over_time(report),
        )


def _layers(name: str, report: Report) -> Iterator[str]:
    if not report.layers:
        return
    first = report.first
    yield f"<h2>Layers{f', {html.escape(name)}' if name else ''}</h2>"
    for given in first.inputs[:3]:
        yield f"<p class='note'>{html.escape(input_note(given))}</p>"
    if first.attentions:
        yield f"<p class='note'>{html.escape(attention_note(first.attentions))}</p>"
    said = marks(report.findings, report.layers)
    rows = [_cells(layer, said.get(layer.name)) for layer in report.layers]
    used = [index for index in range(len(_HEAD)) if any(row[index] for row in rows)]
    titles = "".join(f"<th>{_HEAD[index]}</th>" for index in used)
    yield f"<div class='wide'><table><thead><tr>{titles}</tr></thead><tbody>"
    for layer, row in zip(report.layers, rows, strict=True):
        mark = said.get(layer.name)
        cells = "".join(f"<td>{html.escape(row[index])}</td>" for index in used)
        yield f"<tr class='{mark.severity if mark else ''}'>{cells}</tr>"
    yield "</tbody></table></div>"


def _cells(layer: LayerReading, mark: Mark | None) -> Sequence[str]:
    after = f"{layer.after.function} {number(layer.after.std)}" if layer.after else ""
    return (
        layer.name,
        layer.kind,
        *map(number, (layer.mean, layer.std, layer.expected_rms, layer.absmax)),
        after,
        flat(layer),
        number(layer.grad_rms),
        str(mark) if mark else "ok" if layer.finite else "not finite",
    )
