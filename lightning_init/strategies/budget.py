"""How long a scheme that learns may take, and the one line that says where it is."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self

_EVERY = 0.1  # seconds between two drawings of the line
_BAR = 20  # characters


class Budget:
    """Counts steps until they or the seconds are used up.

    While it does, one line of stderr shows how far it is, if that is a terminal and this is the
    first process of the machine; nothing is left of it afterwards.

    Attributes:
        done: Steps that were started.
        said: What the line says besides.

    Args:
        title: Who works.
        steps: Most steps.
        seconds: After so many no step is started; the first one always is.

    Example:
        >>> with Budget("metainit", steps=3, seconds=60) as budget:
        ...     steps = list(budget)
        >>> steps, str(budget)
        ([0, 1, 2], '3 of 3 steps')
    """

    def __init__(self, title: str, steps: int, seconds: float) -> None:
        self.title, self.steps, self.seconds = title, steps, seconds
        self.done, self.said, self.late = 0, "", False
        # A Trainer starts further processes with their number in the environment.
        first = os.environ.get("LOCAL_RANK", "0") == "0"
        self._shown = first and sys.stderr is not None and sys.stderr.isatty()
        self._drawn = -_EVERY
        self._start = 0.0

    def __enter__(self) -> Self:
        self._start = time.monotonic()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._shown:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()

    def __iter__(self) -> Iterator[int]:
        for step in range(self.steps):
            spent = time.monotonic() - self._start
            if step and spent > self.seconds:
                self.late = True
                return
            self._show(spent)
            self.done += 1
            yield step

    def __str__(self) -> str:
        late = f", stopped after {self.seconds:g} s" if self.late else ""
        return f"{self.done} of {self.steps} steps{late}"

    def _show(self, spent: float) -> None:
        if not self._shown or spent - self._drawn < _EVERY:
            return
        self._drawn = spent
        full = _BAR * self.done // self.steps
        bar = "#" * full + "." * (_BAR - full)
        line = f"{self.title} [{bar}] {self.done}/{self.steps}, {spent:.0f} s  {self.said}"
        sys.stderr.write(f"\r\033[K{line[: shutil.get_terminal_size().columns - 1]}")
        sys.stderr.flush()
