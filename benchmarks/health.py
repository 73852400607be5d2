"""How well health findings do: false alarms, planted faults, labelled trainings, time.

    python benchmarks/health.py healthy
    python benchmarks/health.py faults [--only MODEL]
    python benchmarks/health.py devset FOLDER
    python benchmarks/health.py sensitivity FOLDER
    python benchmarks/health.py overhead [--device cuda] [--rounds 5] [--only MODEL]

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

from benchmarks import (  # noqa: E402
    health_devset,
    health_grid,
    health_overhead,
    health_planted,
    health_sensitivity,
)

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
    for name, text in (
        ("devset", "labelled trainings"),
        ("sensitivity", "what moving each limit by a quarter changes there"),
    ):
        labelled = commands.add_parser(name, parents=[shared], help=text)
        labelled.add_argument("folder", type=Path, help="specs.json, outcomes.csv and the data")
    overhead = commands.add_parser("overhead", parents=[shared], help="time")
    overhead.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    overhead.add_argument("--rounds", type=int, default=5)
    overhead.add_argument("--only", default="", help="models whose name has this in it")
    args = parser.parse_args()
    torch.set_num_threads(1)
    match args.command:
        case "devset":
            text = health_devset.report(args.folder, args.cache, args.verbose)
        case "sensitivity":
            text = health_sensitivity.report(args.folder, args.cache, args.verbose)
        case "faults":
            text = health_planted.report(args.cache, args.verbose, args.only)
        case "overhead":
            text = health_overhead.report(args.device, args.rounds, args.only)
        case _:
            text = health_grid.report(args.cache, args.verbose)
    print(text)
    if args.write:
        write(args.command, text)


if __name__ == "__main__":
    main()
