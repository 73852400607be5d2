"""Writes the tables of the documentation anew: python docs/catalogue.py."""

from pathlib import Path

from lightning_init.cli.list import catalogue, markdown

DOCS = Path(__file__).parent
PAGES = {"strategies": DOCS / "schemes.md", "detectors": DOCS / "detectors" / "README.md"}


def written(page: str, table: str) -> str:
    """A page with this table between its marks."""
    before, begin, rest = page.partition("<!-- catalogue -->\n")
    _, end, after = rest.partition("\n<!-- end -->")
    return before + begin + table + end + after


if __name__ == "__main__":
    for what, path in PAGES.items():
        table = markdown(catalogue()[what])
        path.write_text(written(path.read_text(encoding="utf-8"), table), encoding="utf-8")
