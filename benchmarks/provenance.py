"""How often the origin of weights is told wrongly, from their values alone.

    python -m benchmarks.provenance

Every group is a set of models of known origin, stripped of all exact markers. A false positive is
an untrained tensor that is called pretrained (so it is kept); a false negative is a trained tensor
that is called fresh or custom (so it may be overwritten). The last rows put the obvious other
test, Kolmogorov-Smirnov against the layer's own `reset_parameters`, beside it in the same run.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator

import torch
from torch import nn

from benchmarks.provenance_models import Case, fresh, huggingface, patterns
from benchmarks.provenance_trained import beside, light, pretrained
from lightning_init import analyze
from lightning_init.architecture.judge import examine

STEPS = (1, 3, 10, 30, 100, 300, 1000)


def ours(model: nn.Module) -> dict[str, str]:
    """What `examine` says of each tensor."""
    return {info.name: info.provenance for info in examine(model, analyze(model).params)}


def by_kolmogorov_smirnov(model: nn.Module) -> dict[str, str]:
    """Fresh where the values could come from `reset_parameters` (p > 0.01), else pretrained."""
    from scipy.stats import ks_2samp

    other = copy.deepcopy(model)
    able = set()
    for prefix, module in other.named_modules():
        reset = getattr(module, "reset_parameters", None) or getattr(
            module, "_reset_parameters", None
        )
        if callable(reset):
            reset()
            able |= {f"{prefix}.{name}" for name, _ in module.named_parameters(recurse=False)}
    found = {}
    for (name, mine), reference in zip(model.named_parameters(), other.parameters(), strict=True):
        a, b = mine.detach().flatten().numpy(), reference.detach().flatten().numpy()
        step = max(1, a.size // 100_000)
        same = name in able and ks_2samp(a[::step], b[::step]).pvalue > 0.01
        found[name] = "fresh" if same else "pretrained"
    return found


def cases(missing: list[str], seed: int) -> Iterator[Case]:
    """All models, one at a time; what is not installed goes to `missing`."""
    yield from fresh(range(seed, seed + 4))
    yield from patterns(range(seed, seed + 4))
    yield from huggingface(range(seed, seed + 2))
    for case in pretrained():
        if isinstance(case, str):
            missing.append(case)
        else:
            yield case
    yield from beside(range(seed, seed + 4))
    yield from light(STEPS, range(seed, seed + 2))


def counts(case: Case, found: dict[str, str], seconds: float) -> Counter[str]:
    """Verdicts and mistakes on one model."""
    counted = Counter[str]({"microseconds": round(seconds * 1e6)})
    for name, verdict in found.items():
        trained = name.startswith(case.trained)
        counted["n"] += 1
        counted["trained"] += trained
        counted[verdict] += 1
        counted["positive"] += not trained and verdict == "pretrained"
        counted["negative"] += trained and verdict != "pretrained"
    return counted


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="the first of the seeds, default 0")
    seed = parser.parse_args().seed
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    began, missing = time.perf_counter(), list[str]()
    rows: dict[str, Counter[str]] = defaultdict(Counter)
    totals: dict[str, Counter[str]] = defaultdict(Counter)
    for case in cases(missing, seed):
        for method, tell in (("this package", ours), ("KS test", by_kolmogorov_smirnov)):
            start = time.perf_counter()
            found = tell(case.model)
            counted = counts(case, found, time.perf_counter() - start)
            totals[method].update(counted)
            if method == "this package":
                rows[case.group].update(counted)
    header = f"{'weights of known origin':36}{'tensors':>8}{'fresh':>7}{'custom':>7}{'pretr.':>7}"
    print(f"{header}{'false +':>9}{'false -':>9}{'ms each':>9}")
    for group, row in rows.items():
        if "|" not in group:
            print(line(group, row))
    for method, row in totals.items():
        print(line(f"all, also those below: {method}", row))
    ours_, theirs = totals["this package"], totals["KS test"]
    print(
        "the KS test beside this package, in this run: "
        + ", ".join(
            f"{name} {theirs[key]} / {ours_[key]} = x{theirs[key] / max(ours_[key], 1):.1f}"
            for name, key in (("false +", "positive"), ("false -", "negative"))
        )
        + f", time x{theirs['microseconds'] / ours_['microseconds']:.1f}"
    )
    steps = "".join(f"{step:>7}" for step in STEPS)
    print(f"\n{'false - by steps of light training':44}{steps}")
    for net in dict.fromkeys(group.split("|")[0] for group in rows if "|" in group):
        each = [rows[f"{net}|{step}"] for step in STEPS]
        print(f"{net:44}" + "".join(f"{row['negative'] / row['trained']:7.0%}" for row in each))
    for name in missing:
        print(f"left out: {name} is not installed")
    print(f"\n{time.perf_counter() - began:.0f} s")


def line(group: str, row: Counter[str]) -> str:
    """One row; rates are per tensor to which they can happen."""
    told = "".join(f"{row[key]:>7}" for key in ("fresh", "custom", "pretrained"))
    untrained = row["n"] - row["trained"]
    plus = f"{row['positive'] / untrained:9.1%}" if untrained else f"{'':>9}"
    minus = f"{row['negative'] / row['trained']:9.1%}" if row["trained"] else f"{'':>9}"
    return f"{group:36}{row['n']:>8}{told}{plus}{minus}{row['microseconds'] / row['n'] / 1e3:9.2f}"


if __name__ == "__main__":
    main()
