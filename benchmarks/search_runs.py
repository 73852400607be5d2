"""Trainings that are stored, and what two rows of them say: shared by the benchmarks of search.

A result is stored under everything that it depends on: task, init, learning rate, seed, steps, the
code of the tasks and the versions of torch, Lightning and this package. After a change of an
initializer's code remove `.benchmarks/search`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import optuna
import torch
from scipy.stats import t as student

from benchmarks.search_tasks import Fit, quiet, run, tasks

ROOT = Path(__file__).parents[1]
PACKAGE, PAGE = ROOT / "lightning_init", ROOT / "docs" / "search_measured.md"


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def sd(values: Sequence[float]) -> float:
    middle = mean(values)
    return math.sqrt(sum((value - middle) ** 2 for value in values) / (len(values) - 1))


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and the 95 % t interval's ends."""
    half = float(student.ppf(0.975, len(values) - 1)) * sd(values) / math.sqrt(len(values))
    return mean(values), mean(values) - half, mean(values) + half


def _sources() -> str:
    parts = ("search", "strategies")
    files = sorted(one for part in parts for one in (PACKAGE / part).glob("*.py"))
    return hashlib.sha256(b"".join(one.read_bytes() for one in files)).hexdigest()


SOURCES = _sources()  # changes with the code of the search and of the initializers


def processes(count: int) -> ProcessPoolExecutor:
    """Processes of one thread each."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.search_tasks"])
    return ProcessPoolExecutor(count, context, _begin)


def _begin() -> None:
    torch.set_num_threads(1)
    quiet()


def ahead(calls: Sequence[Callable[[], object]], workers: int) -> None:
    """Make what is stored, at once; what calls it later finds it."""
    if workers > 1 and len(calls) > 1:
        with processes(workers) as pool:
            for waiting in [pool.submit(call) for call in calls]:
                waiting.result()


def cached(fits: Iterable[Fit], cache: Path, workers: int = 0) -> dict[Fit, float]:
    """The metric of each training, capped at the task's worst; trained where it is not stored."""
    found, missing = {}, []
    folder = cache / "search"
    folder.mkdir(parents=True, exist_ok=True)
    for fit in dict.fromkeys(fits):
        path = folder / f"{fit.key}.json"
        if path.exists():
            found[fit] = json.loads(path.read_text())["metric"]
        else:
            missing.append(fit)

    def keep(fit: Fit, result: dict[str, Any]) -> None:
        part = folder / f"{fit.key}.{os.getpid()}"
        part.write_text(json.dumps(result))
        part.replace(folder / f"{fit.key}.json")
        found[fit] = result["metric"]

    if workers > 1 and len(missing) > 1:
        with processes(workers) as pool:
            for fit, result in zip(missing, pool.map(run, missing), strict=True):
                keep(fit, result)
    else:
        for index, fit in enumerate(missing, start=1):
            keep(fit, run(fit))
            if index % 25 == 0:
                print(f"{fit.task}: {index} of {len(missing)}", file=sys.stderr, flush=True)
    worst = {key: task.worst for key, task in tasks().items()}
    return {
        fit: worst[fit.task] if metric is None else min(metric, worst[fit.task])
        for fit, metric in found.items()
    }


def write(name: str, text: str, page: Path = PAGE) -> None:
    """Replace what stands between the markers of that name."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    head, rest = page.read_text().split(begin)
    page.write_text(f"{head}{begin}\n{text}\n{end}{rest.split(end)[1]}")


def script(
    name: str, doc: str, report: Callable[[argparse.Namespace], str], **numbers: tuple[int, str]
) -> None:
    """Run a benchmark with the options that all of them have, and some numbers of its own."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one task, little: does it run?")
    parser.add_argument("--only", default="", help="tasks whose key has this in it")
    for option, (default, text) in numbers.items():
        parser.add_argument(f"--{option}", type=int, default=default, help=text)
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread")
    parser.add_argument("--write", action="store_true", help=f"into docs/{PAGE.name}")
    parser.add_argument("--cache", type=Path, default=ROOT / ".benchmarks")
    args = parser.parse_args()
    torch.set_num_threads(1)
    quiet()
    began = time.perf_counter()
    text = report(args)
    print(text)
    if args.write:
        write(name, text)
    print(
        f"\n{time.perf_counter() - began:.0f} s, PyTorch {torch.__version__}, Lightning "
        f"{pl.__version__}, Optuna {optuna.__version__}"
    )
