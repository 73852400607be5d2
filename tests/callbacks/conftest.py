"""Every test runs in a folder of its own, without a global seed, and can read what was said."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.callbacks.nets import seed_all

THIRD_PARTY = (
    "ignore:You're resuming from a checkpoint that ended before the epoch ended",  # lightning
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",  # lightning, torch 2.13
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            for line in THIRD_PARTY:
                item.add_marker(pytest.mark.filterwarnings(line))


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seed_all(0)
    yield
    torch.set_num_threads(threads)


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
