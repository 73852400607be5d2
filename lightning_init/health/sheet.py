"""What our pages look like: one file with style, script and figures, readable without a network."""

from __future__ import annotations

import html
import importlib
import json
import warnings
from collections.abc import Iterable, Iterator

from lightning_init.health.figures import Figure

_STYLE = """
:root{color-scheme:light}
body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1.5rem;
color:#222;background:#fff}
h1{margin-bottom:.3rem}h2{margin-top:2.5rem;margin-bottom:.2rem}h3{margin:1.2rem 0 .2rem}
.note{color:#555;margin:.2rem 0}
.verdict{padding:.7rem 1rem;border-left:5px solid #3a7;background:#f2f8f4}
.verdict.error,.finding.error{border-color:#b2182b;background:#fdf3f2}
.verdict.warning,.finding.warning{border-color:#c77700;background:#fdf8ef}
.finding{padding:.5rem 1rem;margin:.8rem 0;border-left:5px solid #888;background:#f6f6f6;
break-inside:avoid}
.finding p{margin:.3rem 0}.finding ol{margin:.3rem 0;padding-left:1.4rem}
.figure{break-inside:avoid;width:100%}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.85rem;font-variant-numeric:tabular-nums}
th,td{padding:.15rem .5rem;text-align:right;border-bottom:1px solid #ddd;white-space:nowrap}
th:first-child,td:first-child,th.said,td.said{text-align:left}thead th{border-bottom:2px solid #999}
tr.error td{background:#fdf3f2}tr.warning td{background:#fdf8ef}
code{background:#f0f0f0;padding:.05rem .3rem}
pre{background:#f0f0f0;padding:.6rem .8rem;overflow-x:auto}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,20rem),1fr));gap:.5rem}
.grid .figure{min-width:0}.key{white-space:nowrap;margin-right:.6rem}
.tall{max-height:36rem;overflow-y:auto}.tall thead th{position:sticky;top:0;background:#fff}
table.sorted th{cursor:pointer}th[aria-sort=ascending]::after{content:" ▲"}
th[aria-sort=descending]::after{content:" ▼"}
table.said td.said{white-space:normal;overflow-wrap:break-word;min-width:9rem}
.facts td{white-space:normal;overflow-wrap:anywhere}.facts{width:auto}
.facts th,.facts td{text-align:left;vertical-align:top}
summary{cursor:pointer}details p{margin:.4rem 0}
@media(max-width:40rem){body{padding:0 .7rem;margin:1rem auto}h1{font-size:1.5rem}}
@media print{body{margin:0;max-width:none;font-size:12px}.tall{max-height:none}.verdict,.finding{border:1px solid #999;
border-left-width:5px}}
"""
_DRAW = """
for (const one of document.querySelectorAll(".figure")) {
  const figure = JSON.parse(one.querySelector("script").textContent);
  const config = {responsive: true, displaylogo: false, ...figure.config};
  if (innerWidth < 640) config.displayModeBar = false;
  Plotly.newPlot(one, figure.data, figure.layout, config);
}
"""


def document(title: str, body: Iterable[str], script: str = "") -> str:
    """A whole page, with plotly's script inside, once.

    Args:
        title: Of the window, as plain text.
        body: Lines of HTML.
        script: Of the page's own, run after the figures are drawn.

    Returns:
        HTML that loads nothing.

    Raises:
        ImportError: If plotly is not installed.
    """
    try:
        with warnings.catch_warnings():  # it adds filters of its own for good
            plotly = importlib.import_module("plotly.offline").get_plotlyjs()
    except ImportError:
        raise ImportError("a page with plots needs plotly: pip install plotly") from None
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width,initial-scale=1'>",
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>",
        *body,
        f"<script>{plotly}</script><script>{_DRAW}{script}</script>",
        "</body></html>",
    ]
    return "\n".join(parts)


def section(title: str, note: str, figure: Figure | None) -> Iterator[str]:
    """A figure under its title, nothing where there is none."""
    if figure is not None:
        yield f"<h2>{html.escape(title)}</h2><p class='note'>{html.escape(note)}</p>"
        yield drawing(figure)


def drawing(figure: Figure) -> str:
    """The element in which a figure is drawn; its data wait there as JSON."""
    data = json.dumps(figure, allow_nan=False).replace("<", "\\u003c")
    return f"<div class='figure'><script type='application/json'>{data}</script></div>"
