"""Findings in words, as a colleague would say them, in 80 columns of plain text."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence

from lightning_init.architecture.readings import (
    AttentionReading,
    BaselineReading,
    InputReading,
    StepReading,
)
from lightning_init.health.findings import Finding
from lightning_init.health.layers import WIDTH, number

_TEXTBOOK = (
    "* beyond a textbook limit (std 0.1 to 5, |max| 1000, gradient 1e-5): most healthy networks "
    "break one somewhere, so no verdict rests on it"
)


def finding(one: Finding, index: int | None, report: str = "") -> list[str]:
    r"""A finding in lines: what, where, its causes each with its fix, what it explains.

    Args:
        one: The finding.
        index: Its number in the report, from 1; None if it stands alone.
        report: The report's name, where there are several.

    Example:
        >>> fact = Finding("rule", "error", "fc", 0, 9.0, 3.0, "it is 9", "lr", "a smaller lr")
        >>> print("\n".join(finding(fact, 1)))
        [1] ERROR rule at fc, step 0: it is 9
            likely cause: lr
            fix: a smaller lr
    """
    drawn = f" ({one.scheme})" if one.scheme else ""
    mark = "" if index is None else f"[{index}] "
    head = f"{mark}{one.severity.upper()} {one.detector} at {one.where}{drawn}, step {one.step}"
    head = f"{report} {head}".strip()
    found = wrapped(f"{head}: {one.message}", "", "    ")
    causes = list(reasons(one))
    for cause, fix in causes:
        mark = "- " if len(causes) > 1 else ""
        found += wrapped(f"{'' if mark else 'likely cause: '}{cause}", f"    {mark}", "      ")
        found += wrapped(f"fix: {fix}", "      " if mark else "    ", "      ")
    if one.consequences:
        found += wrapped(f"explains: {explained(one)}", "    ", "      ")
    if one.reference:
        found += wrapped(f"see: {one.reference}", "    ", "      ")
    return found


def reasons(one: Finding) -> Sequence[tuple[str, str]]:
    """Each likely cause with its own fix, the likeliest first.

    Example:
        >>> fact = Finding(
        ...     "rule", "error", "fc", 0, 9.0, 3.0, "it is 9", "1. lr: it is 1; 2. data: std 70",
        ...     "1. lr=0.1; 2. scale it", causes=("lr", "data"))
        >>> reasons(fact)
        [('lr: it is 1', 'lr=0.1'), ('data: std 70', 'scale it')]
    """
    causes, fixes = _parts(one.likely_cause, one), _parts(one.remedy, one)
    if len(causes) != len(fixes):
        return [(one.likely_cause, one.remedy)]
    return list(zip(causes, fixes, strict=True))


def explained(one: Finding) -> str:
    """The consequences, by rule and place.

    Example:
        >>> late = Finding("loss_flat", "warning", "loss", 9, 1.0, 0.9, "", "", "")
        >>> fact = Finding("rule", "error", "fc", 0, 9.0, 3.0, "", "", "", consequences=(late,))
        >>> explained(fact)
        'loss_flat at loss (step 9)'
    """
    every = list(dict.fromkeys(_consequences(one)))
    more = f" and {len(every) - 6} more" if len(every) > 6 else ""
    return ", ".join(every[:6]) + more


def notes(reading: StepReading, table: str) -> list[str]:
    """What the table has no row for: inputs, attention, and what its stars and titles mean."""
    found = []
    for given in reading.inputs[:3]:
        found += wrapped(input_note(given))
    if reading.attentions:
        found += wrapped(attention_note(reading.attentions))
    if " expected " in table:
        found += wrapped(
            "expected: rms of the output, biases aside, for weights as drawn on the input that came"
        )
    if "*" in table:
        found += wrapped(_TEXTBOOK)
    return found


def input_note(given: InputReading) -> str:
    """What a first layer takes, in one line."""
    if not given.finite:
        return f"input of {given.name}: holds NaN or infinity"
    text = f"input of {given.name}: mean {number(given.mean)}, std {number(given.std)}"
    text += f", |max| {number(given.absmax)}"
    if given.spread > 10:
        text += f", stds of its features x{number(given.spread)} apart"
    return text


def attention_note(attentions: Sequence[AttentionReading]) -> str:
    """All softmaxes over logits in one line."""
    low = min(one.entropy for one in attentions)
    high = max(one.entropy for one in attentions)
    largest = max(one.logit_max for one in attentions)
    count = len(attentions)
    return (
        f"attention ({count} softmax{'es' * (count > 1)}): entropy {low:.2f} to {high:.2f} of "
        f"uniform, logits up to {number(largest)}"
    )


def baseline_note(twin: BaselineReading) -> str:
    """What a shallow model reached, beside what the user's did.

    Example:
        >>> baseline_note(BaselineReading({0: 2.3, 9: 2.2}, {0: 2.4, 9: 0.3}, 64))
        'baseline, 10 steps: loss 2.4 -> 0.3 with one hidden layer of 64 units, 2.3 -> 2.2 with the model'
    """
    steps = sorted(twin.deep.keys() & twin.shallow.keys())
    if not steps:
        return "baseline: no step was trained"
    first, last = steps[0], steps[-1]

    def course(losses: Mapping[int, float]) -> str:
        return f"{losses[first]:.4g} -> {losses[last]:.4g}"

    return (
        f"baseline, {last - first + 1} steps: loss {course(twin.shallow)} with one hidden layer of "
        f"{twin.width} units, {course(twin.deep)} with the model"
    )


def wrapped(text: str, first: str = "", rest: str = "  ") -> list[str]:
    """Lines of at most 80 characters; a word that is longer stays whole, to be copied."""
    return textwrap.wrap(
        " ".join(text.split()),
        WIDTH,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _parts(text: str, one: Finding) -> list[str]:
    """`1. this; 2. that` as `findings.found` joins it, taken apart again."""
    rest = text
    parts: list[str] = []
    for index in range(len(one.causes), 1, -1):
        before, mark, part = rest.rpartition(f"; {index}. ")
        if not mark:
            return [text]
        rest, parts = before, [part, *parts]
    return [re.sub(r"^1\. ", "", rest) if len(one.causes) > 1 else rest, *parts]


def _consequences(one: Finding) -> list[str]:
    found = []
    for late in one.consequences:
        step = f" (step {late.step})" if late.step != one.step else ""
        found += [f"{late.detector} at {late.where}{step}", *_consequences(late)]
    return found
