"""Writes the table of `docs/schemes.md` anew: python docs/catalogue.py."""

from pathlib import Path

from lightning_init.cli.list import catalogue, markdown

PAGE = Path(__file__).parent / "schemes.md"

if __name__ == "__main__":
    before, begin, rest = PAGE.read_text(encoding="utf-8").partition("<!-- catalogue -->\n")
    _, end, after = rest.partition("\n<!-- end -->")
    table = markdown(catalogue()["strategies"])
    PAGE.write_text(before + begin + table + end + after, encoding="utf-8")
