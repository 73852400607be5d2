"""What planning and drawing cost beside a plain loop over `torch.nn.init`: GPT-2, 124 M parameters.

    python benchmarks/draw.py [--repeats 5] [--threads 2] [--device cuda]

For each scheme the loop draws the same distributions, tensor by tensor, with the function of
`torch.nn.init` (the std is given to it). `plan` is made with `scope="all"`, so that it holds no
test for trained weights; that of gpt2 runs one forward pass on 8 tokens. Prints the best of several
runs, the ratio, and the most memory that was held besides the model (Linux). On a GPU the loop draws
there, ours on the CPU, so that the weights are the same everywhere.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from lightning_init import apply_, make_plan
from lightning_init.strategies.distributions import Constant, Normal, TruncatedNormal, Uniform
from lightning_init.strategies.plan import Plan

SCHEMES = (
    *("normal", "uniform", "truncated_normal", "xavier_uniform", "xavier_normal"),
    *("kaiming_uniform", "kaiming_normal", "lecun_uniform", "lecun_normal", "gpt2", "bert"),
)


def plain_loop(model: nn.Module, plan: Plan) -> None:
    """What one would write by hand for the same distributions."""
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            match plan[name]:
                case Normal(std=std):
                    nn.init.normal_(tensor, std=std)
                case Uniform(low=low, high=high):
                    nn.init.uniform_(tensor, low, high)
                case TruncatedNormal() as law:
                    parent = law.parent_std
                    nn.init.trunc_normal_(tensor, std=parent, a=-2 * parent, b=2 * parent)
                case Constant(value=value):
                    nn.init.constant_(tensor, value)


def seconds(call: Callable[[], object], repeats: int) -> float:
    """The fastest of several runs."""
    times = []
    for _ in range(repeats):
        wait()
        began = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - began)
    return min(times)


def wait() -> None:
    """Let a GPU finish."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def extra_memory(call: Callable[[], object]) -> float:
    """The most MiB that a call holds beyond what was there before; NaN where Linux does not say."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        return float("nan")

    def read(key: str) -> float:
        line = next(line for line in status.read_text().splitlines() if line.startswith(key))
        return int(line.split()[1]) / 1024

    reset.write_text("5")
    before = read("VmRSS")
    call()
    return read("VmHWM") - before


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import GPT2Config, GPT2LMHeadModel

        model = GPT2LMHeadModel(GPT2Config()).eval().to(args.device)
    tokens = torch.randint(0, 50257, (1, 8), device=args.device)
    largest = max(p.numel() * p.element_size() for p in model.parameters()) / 2**20
    table = Table("scheme", "plain loop, s", "plan, s", "draw, s", "ratio", "extra MiB")
    for name in SCHEMES:
        forward = (lambda: model(tokens).logits) if name == "gpt2" else None
        plan = make_plan(model, name, forward=forward, scope="all")

        def ours(name: str = name, forward: Callable[[], object] | None = forward) -> None:
            apply_(model, make_plan(model, name, forward=forward, scope="all"), 0)

        loop = seconds(lambda plan=plan: plain_loop(model, plan), args.repeats)
        draw = seconds(lambda plan=plan: apply_(model, plan, 0), args.repeats)
        both = seconds(ours, args.repeats)
        more = extra_memory(ours)
        cells = (f"{loop:.2f}", f"{both - draw:.2f}", f"{draw:.2f}", f"{both / loop:.2f}")
        table.add_row(name, *cells, f"{more:.0f}")
    total = sum(p.numel() for p in model.parameters())
    Console().print(
        f"GPT-2, {total / 1e6:.0f} M parameters, largest tensor {largest:.0f} MiB, "
        f"{args.threads} threads, on {torch.cuda.get_device_name() if args.device != 'cpu' else 'the CPU'}; the ratio is to be at most 1.3"
    )
    Console().print(table)


if __name__ == "__main__":
    main()
