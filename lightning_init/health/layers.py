"""The layers as a table in plain text of 80 columns."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from lightning_init.architecture.readings import LayerReading
from lightning_init.health.labels import shared_prefix, shorten
from lightning_init.health.marks import Mark

WIDTH = 80
_ROWS = 36  # more layers than this are cut
_NAME = 18  # columns that a layer's name gets at least


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its header, and what it says of a layer.

    Attributes:
        header: Its title.
        cell: Text of one layer.
        values: Number of one layer, for the span of those that are left out; None for texts.
        group: Title over this column and its neighbours of the same group.
        spare: Whether it goes where 80 columns are too few; the first goes first.
    """

    header: str
    cell: Callable[[LayerReading], str]
    values: Callable[[LayerReading], float] | None = None
    group: str = ""
    spare: bool = False


def table(layers: Sequence[LayerReading], marks: Mapping[str, Mark]) -> list[str]:
    """A row per layer: its numbers, those expected, and the verdict.

    Args:
        layers: In execution order.
        marks: What the findings say of each; see `marks.marks`.

    Returns:
        Lines of at most 80 characters; columns that say nothing are left out. Of more than 36
        layers some in the middle are summed up, never one with a finding.
    """
    columns = [
        Column("mean", lambda one: number(one.mean), spare=True),
        Column("std", _std, lambda one: one.std),
        Column("expected", lambda one: number(one.expected_rms), spare=True),
        Column("|max|", _absmax),
        Column("after", _after),
        Column("flat", flat),
        Column("grad", _grad, lambda one: one.grad_rms),
        Column("verdict", lambda one: verdict(one, marks)),
    ]
    return grid(layers, columns, marks)


def grid(
    layers: Sequence[LayerReading], columns: Sequence[Column], keep: Collection[str]
) -> list[str]:
    """A table with names in front and 80 columns at most; see `table`.

    Args:
        layers: In execution order.
        columns: Those that say nothing of any layer are left out.
        keep: Names of layers that are not left out.
    """
    used = [c for c in columns if any(c.cell(layer) for layer in layers)]
    parts = list(cut(layers, keep))
    prefix = shared_prefix([layer.name for layer in layers])
    needed = max((len(layer.name) - len(prefix) for layer in layers), default=0)
    while _room(widths := [_width(parts, c) for c in used]) < min(needed, _NAME) and (
        gone := [c for c in used if c.spare]
    ):
        used.remove(gone[0])
    rows: list[tuple[str, list[str]]] = []
    for part, shown in parts:
        if shown:
            rows += [(one.name[len(prefix) :], [c.cell(one) for c in used]) for one in part]
        else:
            rows.append((f"... {len(part)} more", [_span(part, c) for c in used]))
    longest = max((len(name) for name, _ in rows), default=0)
    first = max(len("layer"), min(longest, _room(widths)))

    def line(name: str, cells: Sequence[str]) -> str:
        aligned = [
            f"{cell:<{wide}}" if column.header == "verdict" else f"{cell:>{wide}}"
            for cell, wide, column in zip(cells, widths, used, strict=True)
        ]
        return "  ".join([f"{shorten(name, first):<{first}}", *aligned]).rstrip()

    found = [f"names below {prefix}"] if prefix else []
    if any(c.group for c in used):
        found.append(_titles(used, widths, first))
    found.append(line("layer", [c.header for c in used]))
    return found + [line(name, cells) for name, cells in rows]


def _titles(used: Sequence[Column], widths: Sequence[int], first: int) -> str:
    text = " " * first
    for group, members in groupby(zip(used, widths, strict=True), key=lambda pair: pair[0].group):
        room = sum(width + 2 for _, width in members) - 2
        text += "  " + (f" {shorten(group, room - 4)} ".center(room, "-") if group else " " * room)
    return text.rstrip()


def _width(parts: Sequence[tuple[Sequence[LayerReading], bool]], column: Column) -> int:
    cells = [
        cell
        for part, shown in parts
        for cell in (map(column.cell, part) if shown else [_span(part, column)])
    ]
    return max(len(column.header), *map(len, cells)) if cells else len(column.header)


def _room(widths: Sequence[int]) -> int:
    """Characters that are left for names."""
    return WIDTH - sum(width + 2 for width in widths)


def cut(
    layers: Sequence[LayerReading], keep: Collection[str], rows: int = _ROWS
) -> Iterator[tuple[Sequence[LayerReading], bool]]:
    """Runs of layers, and whether each run is shown in full.

    Blocks (or single layers, without blocks) are left out as a whole, evenly over the depth; the
    first and the last stay, and every layer in `keep`.

    Example:
        >>> net = [LayerReading(str(i), "Linear", "", 0, 1, 1, 3, 0) for i in range(9)]
        >>> [(len(part), shown) for part, shown in cut(net, {"4"}, rows=5)]
        [(2, True), (2, False), (1, True), (2, False), (2, True)]
    """
    if len(layers) <= rows:
        yield layers, True
        return
    blocks = [_block(layer.name) for layer in layers]
    order = list(dict.fromkeys(blocks))
    size = len(layers) / len(order)
    wanted = max(2, int((rows - len(keep)) / size) // 2)
    step = (len(order) - 1) / (wanted - 1)
    chosen = {order[round(index * step)] for index in range(wanted)}
    chosen |= {order[0], order[-1]} | ({order[1], order[-2]} if size < 2 else set())
    shown = [b in chosen or layer.name in keep for b, layer in zip(blocks, layers, strict=True)]
    start = 0
    for end in range(1, len(layers) + 1):
        if end == len(layers) or shown[end] != shown[start]:
            # A line that says "one more" is no shorter than that one.
            yield layers[start:end], shown[start] or end - start == 1
            start = end


def number(value: float) -> str:
    """Three digits in at most eight characters; `""` for what was not measured.

    Example:
        >>> [number(x) for x in (0.5, 1234.5, 1.2345e-7, float("nan"), float("inf"))]
        ['0.5', '1234', '1.2e-7', '', 'inf']
    """
    if math.isnan(value):
        return ""
    if value == 0 or math.isinf(value):
        return f"{value:.0f}"
    if 0.01 <= abs(value) < 1e4:
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def textbook(layer: LayerReading) -> str:
    """Which of the textbook's absolute limits a layer breaks; a note, not a verdict.

    Example:
        >>> reading = LayerReading("fc", "Linear", "", 0.0, 0.05, 0.05, 0.2, 0.0, grad_rms=1e-3)
        >>> textbook(reading)
        'std<0.1'
    """
    notes = {
        "std>5": layer.std > 5,
        "std<0.1": layer.std < 0.1,
        "|max|>1000": layer.absmax > 1000,
        "grad<1e-5": layer.grad_rms < 1e-5,
    }
    return " ".join(note for note, broken in notes.items() if broken)


def flat(layer: LayerReading) -> str:
    """Units that are dead or outputs that are saturated, where there are any to speak of.

    Example:
        >>> flat(LayerReading("fc", "Linear", "", 0, 1, 1, 3, 0))
        ''
    """
    after = layer.after
    if after is None:
        return ""
    if after.dead >= 0.005:
        return f"{after.dead:.0%} dead"
    return f"{after.saturated:.0%} sat" if after.saturated >= 0.005 else ""


def _block(name: str) -> str:
    """The name up to its first number: `h.3` of `h.3.attn.c_attn`."""
    found = re.match(r"(?:.*?\.)?\d+(?=\.|$)", name)
    return found[0] if found else name


def _std(layer: LayerReading) -> str:
    return number(layer.std) + "*" * (layer.std > 5 or layer.std < 0.1)


def _grad(layer: LayerReading) -> str:
    return number(layer.grad_rms) + "*" * (layer.grad_rms < 1e-5)


def _absmax(layer: LayerReading) -> str:
    return f"{number(layer.absmax)}*" if layer.absmax > 1000 else ""


def _after(layer: LayerReading) -> str:
    return f"{layer.after.function} {number(layer.after.std)}" if layer.after else ""


def verdict(layer: LayerReading, marks: Mapping[str, Mark]) -> str:
    """What a layer's row says: the finding there, or that there is none."""
    if layer.name in marks:
        return str(marks[layer.name])
    return "ok" if layer.finite else "not finite"


def _span(layers: Sequence[LayerReading], column: Column) -> str:
    if column.header == "verdict":
        said = list(dict.fromkeys(map(column.cell, layers)))
        return said[0] if len(said) == 1 else f"{said[0]}, ..."
    if column.values is None:
        return ""
    known = [v for layer in layers if math.isfinite(v := column.values(layer))]
    ends = [
        f"{end:.0e}" if end and not 0.01 <= abs(end) < 100 else f"{end:.1g}" for end in _ends(known)
    ]
    return "..".join(
        dict.fromkeys(re.sub(r"e([+-])0?", lambda e: "e" + e[1].strip("+"), end) for end in ends)
    )


def _ends(values: list[float]) -> list[float]:
    return [min(values), max(values)] if values else []
