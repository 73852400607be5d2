"""Ctrl-C once ends a search cleanly, twice at once; SIGTERM is like the first."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self


class Stop:
    """Turns the first interruption into a wish, the second into a KeyboardInterrupt.

    Args:
        grace: Seconds that running trials get to finish after the first; None where trials run in
            this process, then the first interrupts at once.

    Example:
        >>> with Stop() as stop:
        ...     signal.raise_signal(signal.SIGINT)
        ...     stop.asked
        True
    """

    def __init__(self, grace: float | None = 10.0) -> None:
        self.grace = grace
        self._since: float | None = None
        self._held = self._due = False
        self._before: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        """Whether it is to end."""
        return self._since is not None

    @property
    def left(self) -> float | None:
        """Seconds that running trials still have; None while nobody wants it to end."""
        if self._since is None:
            return None
        return max(0.0, (self.grace or 0.0) - (time.monotonic() - self._since))

    @property
    def overdue(self) -> bool:
        """Whether running trials have had their time."""
        return self.left == 0.0

    @contextmanager
    def held(self) -> Iterator[None]:
        """What is done in here is done to its end, whoever interrupts."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._due:
            self._due = False
            raise KeyboardInterrupt

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._asked)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _asked(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if not self.asked and self.grace is not None:
            self._since = time.monotonic()
        elif self._held:
            self._due = True
        else:
            raise KeyboardInterrupt
