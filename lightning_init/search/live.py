"""How a search goes, while it goes: a picture on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live as Screen
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lightning_init.search.loop import State

_BAR = 20  # columns
_SILENCE = 60.0  # seconds after which a line is due even if little was done
_SHOWN = 16  # workers; the others are counted


class Live:
    """Shows the state of a search; use it as `progress` inside of `with`.

    Args:
        console: Where.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._screen = Screen(console=console, transient=True, refresh_per_second=4)
        self._state: State | None = None
        self._began = self._spoke = time.monotonic()
        self._tenth = -1
        self._stopping = False
        self._note = ""

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._screen.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._screen.stop()
        self._end()

    def __call__(self, state: State) -> None:
        """Show it."""
        if self._state is not None and self._state.phase != state.phase:
            self._end()
        elif self._state is not None and self._state.note != state.note:
            self._end()  # the same phase again, for another reason
        if state.note != self._note:
            self._note = state.note
            self._console.print(state.note, markup=False, soft_wrap=True)
        if self._state is None:
            self._began, self._tenth = time.monotonic(), -1
        self._state = state
        if self._console.is_terminal:
            self._screen.update(picture(state))
        else:
            self._line(state)

    def _line(self, state: State) -> None:
        now, tenth = time.monotonic(), state.done * 10 // max(1, state.total)
        if state.stopping is not None:
            if not self._stopping:
                self._stopping = True
                self._console.print(_farewell(state), soft_wrap=True)
        elif state.done < state.total and (tenth > self._tenth or now - self._spoke > _SILENCE):
            self._tenth, self._spoke = tenth, now
            self._console.print(_sentence(state), markup=False, soft_wrap=True)

    def _end(self) -> None:
        """The last word on a phase stays."""
        state, self._state = self._state, None
        if state is None:
            return
        took = _clock(time.monotonic() - self._began)
        best = f", {state.best}" if state.best else ""
        text = f"{state.phase} {state.done}/{state.total} in {took}{best}"
        self._console.print(text, markup=False, soft_wrap=True)


def picture(state: State) -> RenderableType:
    """A phase as a bar, the best so far, and a line for each worker."""
    head = Table.grid(padding=(0, 1))
    for _ in range(4):
        head.add_column(no_wrap=True)
    bar = ProgressBar(total=max(1, state.total), completed=state.done, width=_BAR)
    left = "" if state.left is None else f"{_clock(state.left)} left"
    head.add_row(state.phase, bar, f"{state.done}/{state.total}", left)
    lines: list[RenderableType] = [head]
    if state.best:
        lines.append(_short(f"  {state.best}"))
    for number, doing in enumerate(state.workers[:_SHOWN], start=1):
        lines.append(_short(f"  worker {number}: {doing or 'idle'}", "dim"))
    if len(state.workers) > _SHOWN:
        lines.append(_short(f"  and {len(state.workers) - _SHOWN} more workers", "dim"))
    if state.stopping is not None:
        lines.append(Text(_farewell(state), "bold"))
    return Group(*lines)


def _short(text: str, style: str = "") -> Text:
    return Text(text, style, no_wrap=True, overflow="ellipsis")


def _sentence(state: State) -> str:
    parts = [f"{state.phase} {state.done}/{state.total}", state.best]
    if state.left is not None:
        parts.append(f"{_clock(state.left)} left")
    return ", ".join(part for part in parts if part)


def _farewell(state: State) -> str:
    several = "s" if state.running != 1 else ""
    return (
        f"finishing {state.running} running trial{several} ({state.stopping or 0:.0f} s at most); "
        "Ctrl-C again ends at once"
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
