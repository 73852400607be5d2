"""The tables of what ran where are what the tests' results say, and the results are of tests there are."""

from __future__ import annotations

import ast
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from docs.compatibility import RESULTS, cases, combinations, pages, written
from tests.cases import CASES
from tests.conftest import model

ROOT = Path(__file__).parent.parent


@cache
def marked() -> dict[str, set[int]]:
    """The cases of each test by its id without parameters, as its source says."""
    found: dict[str, set[int]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        named = {
            target.id: node.value
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        everywhere = numbers(named.get("pytestmark"), named)
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                own = [numbers(each, named) for each in node.decorator_list]
                name = f"{path.relative_to(ROOT).as_posix()}::{node.name}"
                found[name] = everywhere.union(*own)
    return found


def numbers(node: ast.AST | None, named: dict[str, ast.expr], told: bool = False) -> set[int]:
    """The integers in calls of `pytest.mark.case`, also through a name of the same file."""
    if node is None:
        return set()
    if told and isinstance(node, ast.Constant):
        return {node.value} if isinstance(node.value, int) else set()
    if told and isinstance(node, ast.Name):
        return numbers(named.get(node.id), named, told)
    here = isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.case"
    below = (numbers(each, named, told or here) for each in ast.iter_child_nodes(node))
    return set().union(*below)


@pytest.mark.parametrize("number", CASES)
def test_every_case_has_a_test(number: int) -> None:
    assert [name for name, found in marked().items() if number in found]


def test_there_are_no_other_cases() -> None:
    assert set().union(*marked().values()) == set(CASES)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_results_are_of_tests_that_show_the_case(path: Path) -> None:
    told = json.loads(path.read_text(encoding="utf-8"))["cases"]
    wrong = [
        (number, name)
        for number, tests in told.items()
        for name in tests
        if int(number) not in marked().get(name, set())
    ]
    assert wrong == []


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.name)
def test_the_pages_are_made_of_the_results(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == pages()[path], "run python -m docs.compatibility"


def test_what_surrounds_a_table_stays() -> None:
    page = "before\n<!-- a -->\nold\n<!-- end a -->\nafter\n"
    assert written(page, "a", "new") == page.replace("old", "new")
    empty = "before\n<!-- a -->\n<!-- end a -->\nafter\n"
    assert written(empty, "a", "new") == page.replace("old", "new")
    for wrong in ("before\n", "<!-- a -->\nold\nafter\n", "<!-- end a -->\n<!-- a -->\nold\n"):
        with pytest.raises(ValueError, match="needs the lines <!-- a --> and, later, <!-- end a"):
            written(wrong, "a", "new")


def test_tables() -> None:
    one: Any = {"device": "CPU", "cases": {"1": {"tests/a.py::t": "passed", "tests/b.py::u": "skipped"}},
           "ran": [["ddp", "64-true", "", "CPU"], ["ddp", "32-true", "in place", "CPU"]]}  # fmt: skip
    two: Any = {"device": "H100", "cases": {"1": {"tests/a.py::t": "failed"}, "2": {}},
           "ran": [["ddp", "64-true", "", "H100"]]}  # fmt: skip
    lines = combinations([one, two]).splitlines()
    assert lines[2:] == [
        "| ddp | no |  |  |  |  |  | CPU, H100 |",
        "| ddp | in place | CPU |  |  |  |  |  |",
    ]
    rows = cases([one, two]).splitlines()
    assert rows[2] == "| 1 | a model built in `__init__` | `a.py::t`<br>`b.py::u` | CPU |"
    assert len(rows) == 2 + len(CASES)
    one["cases"]["1"]["tests/c.py::v"] = "error"
    assert cases([one]).splitlines()[2].endswith("`c.py::v` |  |")


def test_a_gpu_is_named_as_a_reader_knows_it() -> None:
    for name, expected in (
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-40GB", "A100"),
        ("NVIDIA H100 PCIe", "H100"),
        ("Tesla V100-PCIE-16GB", "Tesla V100"),
        ("NVIDIA GeForce RTX 4090", "GeForce RTX 4090"),
        ("AMD Instinct MI300X", "AMD Instinct MI300X"),
    ):
        assert model(name) == expected
