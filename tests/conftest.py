"""Every test runs on one thread and without a global seed; what ran on what is written down.

Small models run faster on one thread than on two, and shared machines then agree.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from lightning_init.search.isolated import keep_loaders
from tests.cases import CASES

Ran = Callable[..., None]

# For scripts that tests start: beside another test, threads of two wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where the results of cases and combinations go."""
    parser.addoption("--compatibility", metavar="FILE", help="write what ran on what as JSON")


def device() -> str:
    """The machine's accelerator as a reader knows it: CPU, or the GPU's model, as in H100."""
    return model(torch.cuda.get_device_name()) if torch.cuda.is_available() else "CPU"


def model(name: str) -> str:
    """A GPU's name without its maker, socket and memory."""
    return re.split(r"[ -](?=PCI[eE]|SXM|NVL|\d+GB)", name.removeprefix("NVIDIA "))[0]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    put_back = keep_loaders()
    yield
    put_back()  # a fit may have ended while Lightning asked for a loader
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _cases(request: pytest.FixtureRequest) -> None:
    for mark in request.node.iter_markers("case"):
        for number in mark.args:
            assert number in CASES
            request.node.user_properties.append(("case", number))


@pytest.fixture
def ran(record_property: Callable[[str, object], None]) -> Ran:
    """Say that a whole fit ran, once it has: `ran("ddp_spawn", "bf16-mixed", "whole module")`."""

    def note(
        strategy: str, precision: str = "32-true", compiled: str = "", on: str = "CPU"
    ) -> None:
        record_property("ran", [strategy, precision, compiled, on])

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Count the facts of the zoo that the analysis knows; write what ran on what."""
    _write_compatibility(terminalreporter)
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


def _write_compatibility(terminalreporter: pytest.TerminalReporter) -> None:
    path = terminalreporter.config.getoption("--compatibility")
    if not path:
        return
    cases: dict[int, dict[str, str]] = {}
    combinations = set()
    for outcome, reports in terminalreporter.stats.items():
        for report in reports:
            # A test that is skipped says so at its call or, by a mark, at its setup.
            if getattr(report, "when", "") == "teardown" or not hasattr(report, "user_properties"):
                continue
            for key, value in report.user_properties:
                name = report.nodeid.partition("[")[0]
                if key == "case" and outcome in ("passed", "failed", "error", "skipped"):
                    old = cases.setdefault(value, {}).get(name, outcome)
                    worst = ("failed", "error", "passed", "skipped")
                    cases[value][name] = min(old, outcome, key=worst.index)
                if key == "ran" and outcome == "passed":
                    combinations.add(tuple(value))
    data = {
        "device": device(),
        "torch": torch.__version__.partition("+")[0],
        "cases": {str(number): dict(sorted(cases[number].items())) for number in sorted(cases)},
        "ran": sorted(combinations),
    }
    Path(path).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
