"""How well health findings do: false alarms, planted faults, labelled trainings, time.

    python benchmarks/health.py healthy
    python benchmarks/health.py faults [--only MODEL]
    python benchmarks/health.py devset FOLDER

Trainings are stored under --cache and trained again only where they are not there; `--write` puts
the tables into `docs/health.md`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import health_devset, health_grid, health_planted  # noqa: E402

PAGE = ROOT / "docs" / "health.md"


def write(name: str, text: str) -> None:
    """Replace what stands between the markers of that name."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    page = PAGE.read_text()
    head, rest = page.split(begin)
    PAGE.write_text(f"{head}{begin}\n{text}\n{end}{rest.split(end)[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--cache", type=Path, default=ROOT / ".benchmarks")
    shared.add_argument("--write", action="store_true", help="into docs/health.md")
    shared.add_argument("--verbose", action="store_true", help="each run and what was found in it")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("healthy", parents=[shared], help="false alarms in runs that learn")
    faults = commands.add_parser("faults", parents=[shared], help="planted faults")
    faults.add_argument("--only", default="", help="models whose name has this in it")
    devset = commands.add_parser("devset", parents=[shared], help="labelled trainings")
    devset.add_argument("folder", type=Path, help="specs.json, outcomes.csv, blob.npz, circle.npz")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.command == "devset":
        text = health_devset.report(args.folder, args.cache, args.verbose)
    elif args.command == "faults":
        text = health_planted.report(args.cache, args.verbose, args.only)
    else:
        text = health_grid.report(args.cache, args.verbose)
    print(text)
    if args.write:
        write(args.command, text)


if __name__ == "__main__":
    main()
