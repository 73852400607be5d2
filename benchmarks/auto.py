"""Is `auto` at least as good as the model as built? Short trainings, paired over seeds.

    python benchmarks/auto.py [--strategy NAME] [--steps 150] [--seeds 8] [--only TEXT]

For each model the learning rate is the best of four for the model AS BUILT (on seeds of its own),
so the comparison is on the baseline's ground. Both then train with the same data order per seed.
The score is the mean training loss over the second half of the steps. A row says `better` or
`not worse` if the 95 % confidence interval of the paired difference, in standard deviations of the
baseline over seeds, lies above 0 or above -0.5; `worse` if it lies below -0.5; else `undecided`.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student
from torch import nn

from lightning_init import initialize_

sys.path.insert(0, str(Path(__file__).parent))
from models import MODELS, Data

RATES = (3e-4, 1e-3, 3e-3, 1e-2)
BATCH = 64


def score(
    build: Callable[[], nn.Module], data: Data, strategy: str, seed: int, lr: float, steps: int
) -> float:
    """Mean loss over the second half of a short training."""
    torch.manual_seed(seed)
    model = build()
    order = torch.Generator().manual_seed(seed)
    x, y = data
    batches = [torch.randint(len(x), (BATCH,), generator=order) for _ in range(steps)]
    if strategy != "keep":
        first = batches[0]
        initialize_(model, strategy, seed=seed, forward=lambda: model(x[first], y[first]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    losses = []
    for batch in batches:
        loss = model(x[batch], y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    tail = losses[steps // 2 :]
    mean = sum(tail) / len(tail)
    return mean if math.isfinite(mean) else 1e3


def verdict(low: float, high: float) -> str:
    if low > 0:
        return "better"
    if low > -0.5:
        return "not worse"
    return "worse" if high < -0.5 else "undecided"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strategy", default="auto")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--only", default="")
    parser.add_argument("--lr-factor", type=float, default=1.0, help="off the baseline's best rate")
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("model", "lr", "as built", args.strategy, "ratio", "gain in sd [95 %]", "verdict")
    began = time.perf_counter()
    for name, (build, data) in MODELS.items():
        if args.only not in name:
            continue
        tuning = {
            lr: sum(score(build, data(), "keep", 1000 + s, lr, args.steps) for s in range(2))
            for lr in RATES
        }
        lr = min(tuning, key=tuning.__getitem__) * args.lr_factor
        pairs = [
            [score(build, data(), each, seed, lr, args.steps) for each in ("keep", args.strategy)]
            for seed in range(args.seeds)
        ]
        base, ours = torch.tensor(pairs, dtype=torch.float64).T
        gain = (base - ours) / base.std()
        half = float(gain.std() / math.sqrt(args.seeds) * student.ppf(0.975, args.seeds - 1))
        low, high = float(gain.mean()) - half, float(gain.mean()) + half
        row = (
            *(name, f"{lr:g}", f"{float(base.mean()):.4f}", f"{float(ours.mean()):.4f}"),
            *(f"{float(ours.mean() / base.mean()):.3f}", f"{low:+.2f} .. {high:+.2f}"),
            verdict(low, high),
        )
        table.add_row(*row)
        print(*row, sep=" | ", file=sys.stderr, flush=True)
    Console().print(table)
    print(f"{time.perf_counter() - began:.0f} s; ratio: loss of {args.strategy} / loss as built")


if __name__ == "__main__":
    main()
