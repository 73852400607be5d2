"""What it costs to look at a model: GPT-2 with 124 million parameters, one short sample, the CPU.

    python benchmarks/analyze.py [--tokens 32] [--repeats 5]

Prints the best of several runs of one forward pass, of `analyze` and of `make_plan` under
`scope="untrained"`, and each as a ratio to the forward pass.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table

from lightning_init import analyze, make_plan


def best(call: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of several runs, after one that warms up."""
    call()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import GPT2Config, GPT2LMHeadModel

        model = GPT2LMHeadModel(GPT2Config()).eval()
    tokens = torch.randint(0, 50257, (1, args.tokens))

    def forward() -> object:
        return model(tokens).logits

    one = best(forward, args.repeats)
    seen = best(lambda: analyze(model, forward), args.repeats)
    planned = best(lambda: make_plan(model, "gpt2", forward=forward), args.repeats)
    table = Table("what", "seconds", "forward passes", "budget")
    table.add_row("one forward pass", f"{one:.3f}", "1.0", "")
    table.add_row("analyze", f"{seen:.3f}", f"{seen / one:.1f}", f"{1.5 * one + 0.5:.3f} s")
    more = f"{planned - seen:.3f} s more"
    table.add_row("make_plan", f"{planned:.3f}", f"{planned / one:.1f}", f"{more} (3 s)")
    total = sum(p.numel() for p in model.parameters())
    Console().print(f"GPT-2, {total / 1e6:.0f} M parameters, {torch.get_num_threads()} threads")
    Console().print(table)


if __name__ == "__main__":
    main()
