"""Every test runs without a global seed; what third parties warn about is named here."""

from pathlib import Path

import pytest

THIRD_PARTY = (
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",  # lightning, torch 2.13
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning",  # lightning's CLI and ours, 4.49
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            for line in THIRD_PARTY:
                item.add_marker(pytest.mark.filterwarnings(line))


@pytest.fixture(autouse=True)
def _no_global_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
