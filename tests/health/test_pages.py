"""Each detector has a page in the documentation, and each page a detector."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lightning_init.cli.list import page_of
from lightning_init.health.registry import Entry, entries

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "detectors"


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.name)
def test_each_detector_has_a_page_that_says_what_to_do(entry: Entry) -> None:
    text = (ROOT / page_of(entry.name, entry.profile)).read_text(encoding="utf-8")
    assert entry.name in text
    # The page that the textbook's rules share points to the rules to be used instead.
    for part in ("symptom", "cause", "fix") if entry.profile == "default" else ():
        assert part in text.lower(), part


def test_each_page_has_a_detector() -> None:
    known = {Path(page_of(entry.name, entry.profile)).name for entry in entries()}
    assert {path.name for path in FOLDER.iterdir()} == known | {"README.md"}


def test_links_between_the_pages_lead_somewhere() -> None:
    for page in FOLDER.iterdir():
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (FOLDER / target).exists(), (page.name, target)
