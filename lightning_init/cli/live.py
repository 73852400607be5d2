"""How a search goes, while it goes: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lightning_init.search.loop import State


class Live:
    """Shows the state of a search.

    Args:
        console: Where.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[text]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, Any] = {}
        self._said: dict[str, int] = {}

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._bar.stop()

    def __call__(self, state: State) -> None:
        """Show it."""
        phase, done, total, text = state.phase, state.done, state.total, state.best
        if phase not in self._tasks:
            self._tasks[phase] = self._bar.add_task(phase, total=total, text=text)
        self._bar.update(self._tasks[phase], completed=done, total=total, text=text)
        tenth = done * 10 // max(1, total)
        if not self._console.is_terminal and tenth > self._said.get(phase, -1):
            self._said[phase] = tenth
            self._console.print(f"{phase} {done}/{total} {text}".rstrip())
