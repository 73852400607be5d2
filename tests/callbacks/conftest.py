"""Every test runs in a folder of its own, without a global seed, and can read what was said."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.callbacks.nets import seed_all


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seed_all(0)


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What was printed through Lightning's logger."""
    texts: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            texts.append(record.getMessage())

    logger, ear = logging.getLogger("lightning.pytorch.utilities.rank_zero"), Ear()
    level = logger.level
    logger.addHandler(ear)
    logger.setLevel(logging.INFO)
    yield texts
    logger.setLevel(level)
    logger.removeHandler(ear)
