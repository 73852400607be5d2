"""One-pass LSUV against PyPI's `lsuv`, which runs a model twice per layer: the calibration alone.

    python benchmarks/lsuv_speed.py [--repeats 5] [--slow 2] [--batch 16] [--size 64] [--only 18]
        [--device cuda]

ResNets of the usual shapes on random images, one thread. Both begin with the same orthogonal
weights (not timed), in evaluation mode as `lsuv` works, on the same batch; it asks for a std within
0.1, ours within 1e-5. `calibrated` is the pass that scales; `verified` adds one that measures what
was reached; `gated` is all of `calibrate_`: two readings with their gradients, the copies of the
weights that it may put back, and leaving no trace. Runs take turns; the fastest of each counts.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from collections import Counter
from collections.abc import Callable

import torch
from lsuv.lsuvinit import LSUVinit
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification

from lightning_init import InitSpec, apply_, calibrate_, make_plan
from lightning_init.strategies.lsuv import Deviations, Unit
from lightning_init.strategies.passes import changed, shown, targets

RESNETS = {
    "ResNet-18": ResNetConfig(
        layer_type="basic", depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512]
    ),
    "ResNet-50": ResNetConfig(depths=[3, 4, 6, 3]),
    "ResNet-101": ResNetConfig(depths=[3, 4, 23, 3]),
}
GOALS = {"ResNet-18": 14, "ResNet-50": 45, "ResNet-101": 75}


PASSES: Counter[str] = Counter()


class Logits(nn.Module):
    """A model of transformers that returns a tensor, and counts its passes."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.net = ResNetForImageClassification(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        PASSES["forward"] += 1
        return self.net(x).logits


def timed(call: Callable[[nn.Module], object], model: nn.Module) -> tuple[float, int]:
    """Seconds and forward passes on a copy of a model."""
    own = copy.deepcopy(model)
    PASSES.clear()
    wait()
    began = time.perf_counter()
    call(own)
    wait()
    return time.perf_counter() - began, PASSES["forward"]


def wait() -> None:
    """Let a GPU finish."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--slow", type=int, default=2, help="runs of PyPI's lsuv")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--only", default="")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    x = torch.randn(args.batch, 3, args.size, args.size, generator=torch.Generator().manual_seed(0))
    x = x.to(args.device)
    table = Table("model", "what", "ms", "forwards", "largest |std - 1|", "faster", "goal")
    for name, config in RESNETS.items():
        if args.only not in name:
            continue
        model = Logits(config).eval().to(args.device)
        spec = InitSpec("lsuv", {"accept": "always", "include_head": True})
        plan = make_plan(model, spec, forward=lambda: model(x))  # noqa: B023
        apply_(model, plan, seed=0)

        def listed(own: nn.Module) -> list:
            return targets(own, plan, include_head=True)  # noqa: B023

        def calibrated(own: nn.Module) -> None:
            changed(lambda: own(x), listed(own), Unit)

        def verified(own: nn.Module) -> None:
            calibrated(own)
            with torch.no_grad():
                shown(lambda: own(x), listed(own), Deviations())

        calls = {
            "PyPI's lsuv": lambda own: LSUVinit(
                own, x, do_orthonorm=False, verbose=False, device=args.device
            ),
            "calibrated": calibrated,
            "verified": verified,
            "gated": lambda own: calibrate_(own, plan, lambda: own(x)),  # noqa: B023
            "one forward": lambda own: torch.no_grad()(own)(x),
        }
        found: dict[str, list[tuple[float, int]]] = {key: [] for key in calls}
        for turn in range(args.repeats):
            for key, call in calls.items():
                if key != "PyPI's lsuv" or turn < args.slow:
                    found[key].append(timed(call, model))
        slow = min(found["PyPI's lsuv"])[0]
        for key, call in calls.items():
            seconds, passes = min(found[key])
            own, off = copy.deepcopy(model), Deviations()
            call(own)
            with torch.no_grad():
                shown(lambda: own(x), listed(own), off)  # noqa: B023
            goal = f"{GOALS[name]}" if key in ("calibrated", "verified") else ""
            reached = "" if key == "one forward" else f"{off.largest:.1e}"
            ms, faster = f"{1e3 * seconds:.1f}", f"{slow / seconds:.1f}"
            table.add_row(name, key, ms, f"{passes}", reached, faster, goal)
    place = torch.cuda.get_device_name() if args.device != "cpu" else "the CPU"
    Console().print(f"batch {args.batch} at {args.size} px, fastest of {args.repeats}, on {place}")
    Console().print(table)


if __name__ == "__main__":
    main()
