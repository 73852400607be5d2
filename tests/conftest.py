"""Every test runs on one thread and without a global seed.

Small models run faster on one thread than on two, and shared machines then agree.
"""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Count the facts of the zoo that the analysis knows: per model, per kind, in total."""
    found: dict[str, dict[str, list[int]]] = {"model": {}, "kind": {}, "total": {}}
    for reports in terminalreporter.stats.values():
        for report in reports:
            for key, value in getattr(report, "user_properties", ()):
                if key != "truth" or report.when != "call":
                    continue
                model, kind, matching, facts = value
                for group, name in (("model", model), ("kind", kind), ("total", "all")):
                    counts = found[group].setdefault(name, [0, 0])
                    counts[0] += matching
                    counts[1] += facts
    if not found["total"]:
        return
    terminalreporter.section("facts of the zoo that match the truth")
    for group, table in found.items():
        for name, (matching, facts) in sorted(table.items()):
            mark = "" if matching == facts else f"  {facts - matching} wrong"
            terminalreporter.line(f"{group:6} {name:24} {matching:6} of {facts:6}{mark}")
