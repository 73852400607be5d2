"""Writes what ran on what, from the results of tests: python -m docs.compatibility.

The results come from `pytest --compatibility docs/compatibility/cpu.json`, and with a GPU from
`pytest tests/test_gpu.py tests/callbacks/test_gpu.py tests/search/test_gpu.py --compatibility
docs/compatibility/gpu.json`.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.cases import CASES

DOCS = Path(__file__).parent
RESULTS = sorted((DOCS / "compatibility").glob("*.json"))
README, PAGE = DOCS.parent / "README.md", DOCS / "compatibility.md"
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def combinations(results: Sequence[dict[str, list[list[str]]]]) -> str:
    """Strategy by precision, compiled or not: on what a whole fit ran."""
    found: dict[tuple[str, str], dict[str, set[str]]] = {}
    for result in results:
        for strategy, precision, compiled, on in result["ran"]:
            found.setdefault((strategy, compiled), {}).setdefault(precision, set()).add(on)
    rows = [
        [strategy, compiled or "no", *(", ".join(sorted(cells.get(p, ()))) for p in PRECISIONS)]
        for (strategy, compiled), cells in sorted(found.items())
    ]
    return table(["strategy", "compiled", *PRECISIONS], rows)


def cases(results: Sequence[dict[str, dict[str, dict[str, str]]]]) -> str:
    """Each case with its tests and where they passed, all that were not skipped."""
    rows = []
    for number, title in CASES.items():
        tests = [name for result in results for name in result["cases"].get(str(number), {})]
        passed = [
            str(result["device"])
            for result in results
            if (ended := set(result["cases"].get(str(number), {}).values())) >= {"passed"}
            and not ended & {"failed", "error"}
        ]
        names = [f"`{name.removeprefix('tests/')}`" for name in dict.fromkeys(tests)]
        rows.append([str(number), title, "<br>".join(names), ", ".join(dict.fromkeys(passed))])
    return table(["", "case", "tests", "passed on"], rows)


def written(page: str, name: str, text: str) -> str:
    """A page with this text between the marks of that name."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end {name} -->"
    if page.count(begin) != 1 or end not in page.partition(begin)[2]:  # what follows would be lost
        raise ValueError(f"a page needs the lines {begin.strip()} and, later, {end}")
    before, _, rest = page.partition(begin)
    return f"{before}{begin}{text}\n{end}{rest.partition(end)[2]}"


def pages() -> dict[Path, str]:
    """Each page as it should be."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in RESULTS]
    made = {
        README: [("combinations", combinations(results))],
        PAGE: [("cases", cases(results))],
    }
    found = {}
    for path, parts in made.items():
        found[path] = path.read_text(encoding="utf-8")
        for name, text in parts:
            found[path] = written(found[path], name, text)
    return found


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
