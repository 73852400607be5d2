"""A search as one HTML file that opens without a network: verdict first, then what it rests on."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lightning_init.health.sheet import document, drawing, section
from lightning_init.search import confirmed, plots
from lightning_init.search.overview import Overview, Tried
from lightning_init.search.result import SearchResult

# A click on a head sorts by it; numbers as numbers, what is empty last.
_SORT = """
for (const head of document.querySelectorAll("table.sorted th")) {
  head.addEventListener("click", () => {
    const body = head.closest("table").tBodies[0], at = head.cellIndex;
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const one of head.parentNode.cells) one.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = row => row.cells[at].dataset.key ?? row.cells[at].textContent;
    const order = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const way = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return up ? way : -way;
    };
    body.append(...[...body.rows].sort(order));
  });
}
"""
_SEVERITIES = ("error", "warning", "info")
_LINES = 5  # remarks that are open
_DASH = "-"


def page(seen: Overview, title: str = "") -> str:
    """The whole report.

    Args:
        seen: What there is to see.
        title: Name of the run.

    Returns:
        HTML with plotly's script inside, once (5 MB); it loads nothing.
    """
    what = "Init search" if seen.trials or seen.result is None else "Init comparison"
    name = f"{what}{': ' + title if title else ''}"
    body = [f"<h1>{html.escape(name)}</h1>", *_verdict(seen)]
    if seen.result is not None:
        body += _confirmation(seen.result)
    if seen.trials:
        body += _screening(seen)
        body += _table(seen)
    body += _facts(seen)
    return document(name, body, _SORT)


def _verdict(seen: Overview) -> Iterator[str]:
    result = seen.result
    if result is None:
        yield f"<p class='verdict warning'>{html.escape(seen.missing)}</p>"
    else:
        known = "warning" if result.best.is_baseline and result.own.failures else "healthy"
        yield f"<p class='verdict {known}'>{html.escape(result.verdict())}</p>"
    first, rest = seen.lines[:_LINES], seen.lines[_LINES:]
    if first:
        yield f"<ul class='note'>{_items(first)}</ul>"
    if rest:
        yield f"<details class='note'><summary>{len(rest)} more remarks</summary>"
        yield f"<ul>{_items(rest)}</ul></details>"
    if seen.commands:
        typed = html.escape("\n".join(seen.commands))
        yield f"<p>What to type next:</p><pre>{typed}</pre>"


def _items(lines: Sequence[str]) -> str:
    return "".join(f"<li>{html.escape(line)}</li>" for line in lines)


def _confirmation(result: SearchResult) -> Iterator[str]:
    seeds = ", ".join(str(run.seed) for run in result.baseline.runs)
    yield "<h2>Confirmation on fresh seeds</h2>"
    yield (
        f"<p class='note'>Each runs {result.steps} steps on the seeds {html.escape(seeds)}, which "
        "were not used for choosing. The difference to <code>keep</code> is that on the same seed; "
        "positive is better. The intervals hold for all candidates together. P is the probability "
        "of being better.</p>"
    )
    if not result.candidates:
        yield "<p>There was nobody to confirm: no other trial was healthy.</p>"
    for goal in range(len(result.goals)):
        yield "<div class='wide'><table><thead><tr>"
        yield "".join(f"<th>{html.escape(name)}</th>" for name in result.heads(goal))
        yield "</tr></thead><tbody>"
        for row in result.rows(goal):
            cells = "".join(f"<td>{html.escape(_plain(cell))}</td>" for cell in row)
            yield f"<tr>{cells}</tr>"
        yield "</tbody></table></div>"
        drawn = confirmed.forest(result, goal)
        if drawn is not None:
            yield drawing(drawn)
        elif result.candidates:
            yield "<p>There is no seed on which both a candidate and keep have a metric.</p>"
    beaten = result.decision.beaten
    yield from section(
        "The learning rate's part, and the init's",
        f"It: {beaten.label if beaten else ''}. At its best: as built, at the learning rate that "
        "was found best for that.",
        confirmed.parts(result),
    )
    yield from section(
        "Loss of the confirmed runs",
        "Training loss per step: mean over the seeds, and the band between the lowest and the "
        "highest of them. A run that failed is dotted and ends in a cross.",
        confirmed.curves(result),
    )
    yield from section(
        "How far the learning rate may be off",
        f"{result.monitor} over the learning rate. Full dots are within 5 % of that init's best.",
        confirmed.rates(result.rates, result.monitor, result.mode),
    )


def _screening(seen: Overview) -> Iterator[str]:
    goal = seen.goals[0]
    came = ", ".join(f"{count} {kind}" for kind, count in seen.counts.items())
    lanes = " The lanes below hold those that do not count." if len(seen.counts) > 1 else ""
    yield from section(
        "Trials in order",
        f"{goal.name} ({'smaller' if goal.mode == 'min' else 'larger'} is better) of each trial of "
        f"the screening, all with one seed: {came}.{lanes}",
        plots.history(seen),
    )
    for figure in plots.pareto(seen):
        note = "What no other trial beats in every goal is on the front."
        yield from section("Pareto front", note, figure)
    none = sorted({one.strategy for one in seen.trials if one.strategy} - _healthy(seen))
    left = f" No healthy trial: {', '.join(none)}." if none else ""
    boxes = plots.strategies(seen)
    yield from section("Per strategy", f"The healthy trials, best median on top.{left}", boxes)
    if boxes is None:
        yield "<h2>Per strategy</h2><p>No trial was healthy: nothing compares.</p>"
    yield "<h2>What mattered</h2>"
    weights = plots.importance(seen)
    if weights is None:
        yield (
            "<p>Too few different healthy trials to tell which axis matters: from about "
            f"{plots.FEW} on it can be told.</p>"
        )
    else:
        yield (
            "<p class='note'>How much of the differences between good and other trials each axis "
            "explains (PED-ANOVA). Rough below 50 trials.</p>"
        )
        yield drawing(weights)
    yield from _slices(seen)


def _healthy(seen: Overview) -> set[str]:
    return {one.strategy for one in seen.trials if one.metric is not None}


def _slices(seen: Overview) -> Iterator[str]:
    found = plots.slices(seen)
    if not found:
        return
    yield "<h2>Axis by axis</h2><p class='note'>The healthy trials over each axis that they use. "
    drawn = {line["name"] for _, figure in found for line in figure["data"]}
    signs = {"circle": "●", "diamond": "◆", "square": "■", "triangle-up": "▲", "star": "★"}
    for name, (color, symbol) in plots.palette(seen).items():
        if name in drawn:
            yield f"<span class='key'><span style='color:{color}'>{signs.get(symbol, '⬢')}</span> "
            yield f"{html.escape(name)}</span> "
    yield "</p><div class='grid'>"
    for _, figure in found:
        yield drawing(figure)
    yield "</div>"


def _table(seen: Overview) -> Iterator[str]:
    head = ("#", "init", "came to", *(goal.name for goal in seen.goals), "seconds", "health")
    yield "<h2>Each trial</h2><p class='note'>A click on a head sorts; health opens.</p>"
    yield "<div class='wide tall'><table class='sorted said'><thead><tr>"
    for name in head:
        side = " class='said'" if name in ("init", "health") else ""
        yield f"<th{side}>{html.escape(name)}</th>"
    yield "</tr></thead><tbody>"
    for one in seen.trials:
        yield _row(one, len(seen.goals))
    yield "</tbody></table></div>"


def _row(one: Tried, goals: int) -> str:
    worst = {"unhealthy": "error", "crashed": "error", "pruned": "warning"}.get(one.kind, "")
    values = [*one.values, *[None] * (goals - len(one.values))]
    cells = [
        f"<td>{one.number}</td><td class='said'>{html.escape(one.label)}</td><td>{one.kind}</td>",
        *(_number(value) for value in values),
        _number(one.seconds, ".1f"),
        f"<td class='said' data-key='{_rank(one)}'>{_health(one)}</td>",
    ]
    return f"<tr class='{worst}'>{''.join(cells)}</tr>"


def _number(value: float | None, form: str = ".4g") -> str:
    if value is None:
        return f"<td data-key=''>{_DASH}</td>"
    return f"<td data-key='{value!r}'>{format(value, form)}</td>"


def _rank(one: Tried) -> int:
    """The worst first."""
    counts = [_count(one.findings, name) for name in _SEVERITIES]
    return -(bool(one.reason) * 10**6 + counts[0] * 10**4 + counts[1] * 100 + counts[2])


def _count(findings: Sequence[Mapping[str, Any]], severity: str) -> int:
    return sum(one.get("severity") == severity for one in findings)


def _health(one: Tried) -> str:
    counts = [(name, _count(one.findings, name)) for name in _SEVERITIES]
    parts = [
        f"{count} {name}{'s' if count > 1 and name != 'info' else ''}"
        for name, count in counts
        if count
    ]
    said = ", ".join(parts) or ("ok" if one.kind == "healthy" else one.reason or _DASH)
    if one.reason and not parts:
        said = one.reason if len(one.reason) <= 60 else f"{one.reason[:59]}…"
    inside = []
    if one.reason:
        inside.append(f"<p><b>Stopped:</b> {html.escape(one.reason)}</p>")
    if one.calibrated:
        inside.append(f"<p><b>Calibration taken back:</b> {html.escape(one.calibrated)}</p>")
        said += ", calibration taken back"
    inside += map(_finding, one.findings)
    if not inside:
        return html.escape(said)
    return f"<details><summary>{html.escape(said)}</summary>{''.join(inside)}</details>"


def _finding(one: Mapping[str, Any]) -> str:
    def text(key: str) -> str:
        return html.escape(str(one.get(key) or ""))

    fix = f"<br>Fix: {text('remedy')}" if one.get("remedy") else ""
    return (
        f"<p><b>{text('severity').upper()} {text('detector')}</b> at <code>{text('where')}</code>, "
        f"step {text('step') or 0}: {text('message')}{fix}</p>"
    )


def _facts(seen: Overview) -> Iterator[str]:
    if not seen.facts:
        return
    yield "<h2>Surroundings</h2><table class='said facts'><tbody>"
    for name, value in seen.facts:
        yield f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
    yield "</tbody></table>"


def _plain(cell: str) -> str:
    """Statistics that do not exist are a dash."""
    return _DASH if cell == "none" else cell
