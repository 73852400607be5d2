"""The grid of healthy runs, and what is counted in it.

Limits were moved after errors were seen in it, over four passes, so its count is one of development.
After the first pass the slowest models were made smaller, and the squared-error targets of the zoo
were drawn within (-0.8, 0.8): a generator that ends in tanh had been told, rightly, that it cannot
reach targets beyond 1.

Healthy is a matter of outcome: a run counts if it learns, that is if the mean of its last ten losses
lies at least 2 % below that of its first three and, for a classifier, below chance; what does not
learn is left out and said. An error in a run that counts is a false alarm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import health_transformers as transformers
from benchmarks.health_models import FAMILIES, ByHeart
from benchmarks.health_runs import Batch, Record, Run, judge, mean, share, stored, wilson
from benchmarks.models import text

MARGIN = 0.98
# They run under `no_grad` or break autograd on purpose.
NOT_TRAINABLE = ("in_place", "out_argument")


def batches(data: tuple[Tensor, ...], size: int, seed: int) -> Callable[[int], Batch]:
    """Step -> rows drawn at random."""

    def batch(step: int) -> Batch:
        generator = torch.Generator().manual_seed(1000 * seed + step)
        rows = torch.randint(len(data[0]), (size,), generator=generator)
        return tuple(part[rows] for part in data)

    return batch


def adamw(lr: float) -> Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.AdamW(parameters, lr=lr)


def sgd(lr: float) -> Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=0.9)


def own(names: Iterable[str] = FAMILIES, settings: Iterable[int] = range(5)) -> Iterator[Run]:
    """Common networks: four settings each as built and drawn by `auto`, and a longer run."""
    for number, name in enumerate(FAMILIES):
        if name not in names:
            continue
        build, data, lr, depths = FAMILIES[name]
        for i in settings:
            width, depth = (32, 64, 128)[(i + number) % 3], depths[i % len(depths)]
            if any(word in name for word in ("char", "encoder", "group norm")):
                width //= 2  # these take longest
            size, dropout = (16, 64, 128, 32)[(i + number) % 4], (0.0, 0.1, 0.0, 0.3)[i % 4]
            size = min(size, 32) if data is text else size
            precision = "bf16-mixed" if (i + number) % 3 == 2 else "32-true"
            warmup = 20 * ((i + number // 2) % 2)
            plain = (i + number) % 5 == 4
            optimizer = sgd(10 * lr) if plain else adamw(lr)
            for strategy in ("keep", "auto") if i < 4 else ("keep",):
                words = (
                    *(name, f"{width} x {depth}", f"batch {size}", precision, f"drop {dropout}"),
                    *(f"warm-up {warmup}", "sgd" if plain else "adamw", strategy, f"seed {i}"),
                )
                yield Run(
                    ", ".join(words),
                    name,
                    lambda build=build, at=(width, depth, dropout): build(*at),
                    batches(data(), size, i),
                    optimizer,
                    50 if i < 4 else 150,
                    warmup,
                    precision,
                    strategy,
                    seed=i,
                )


def zoo() -> Iterator[Run]:
    """The models of the tests, as built and drawn by `auto`."""
    from tests.zoo import ZOO
    from tests.zoo_wild import WILD

    for name, build in {**ZOO, **WILD}.items():
        if name in NOT_TRAINABLE:
            continue
        for strategy in ("keep", "auto") if name in ZOO else ("keep",):
            yield Run(
                f"zoo {name}, {strategy}",
                f"zoo {name}",
                lambda build=build: ByHeart(build, 0),
                lambda _: (torch.zeros(1),),
                adamw(3e-3),
                strategy=strategy,
            )


def huggingface(settings: Iterable[int] = range(3)) -> Iterator[Run]:
    """Architectures of transformers: small, larger with warm-up in bf16, deeper drawn by `auto`."""
    for name in transformers.SPECS:
        for i in settings:
            width, layers = ((32, 2), (64, 3), (32, 4))[i]
            longer = transformers.SPECS[name][0] == "image"
            yield Run(
                f"transformers {name} {width} x {layers}, {('keep', 'bf16 warm-up', 'auto')[i]}",
                f"transformers {name}",
                lambda name=name, at=(width, layers): transformers.build(name, *at),
                batches(transformers.data(name), (16, 32, 16)[i], i),
                adamw((3e-3, 2e-3, 2e-3)[i]),
                60 if longer else 40,
                20 * (i == 1),
                "bf16-mixed" if i == 1 else "32-true",
                "auto" if i == 2 else "keep",
                seed=i,
            )


def grid() -> list[Run]:
    """All of it."""
    return [*own(), *zoo(), *huggingface()]


def one_of_each() -> list[Run]:
    """A run of each family: those that every build repeats."""
    return [
        *own(settings=(0,)),
        *(run for run in zoo() if run.strategy == "auto"),
        *huggingface(settings=(0,)),
    ]


def learns(record: Record) -> bool:
    """Whether a run counts as healthy."""
    if len(record.losses) < 20 or not all(math.isfinite(loss) for loss in record.losses):
        return False
    steps = record.readings.steps
    chances = [one.chance for one in steps[0].losses if one.exact] if steps else []
    ceiling = min([mean(record.losses[:3]), *chances[:1]])
    return mean(record.losses[-10:]) < MARGIN * ceiling


def report(cache: Path, verbose: bool = False) -> str:
    """The table."""
    records = list(stored(grid(), cache))
    healthy = [record for record in records if learns(record)]
    verdicts = {record.name: judge(record) for record in healthy}
    failed = [record for record in records if not learns(record)]
    lines = ["| runs | healthy | with an error | with a warning |", "|---|---|---|---|"]
    groups = {
        "common networks": lambda r: not r.family.startswith(("zoo", "transformers")),
        "zoo": lambda r: r.family.startswith("zoo"),
        f"{len(transformers.SPECS)} architectures of transformers": (
            lambda r: r.family.startswith("transformers")
        ),
        "all": lambda _: True,
    }
    for group, chosen in groups.items():
        mine = [record for record in healthy if chosen(record)]
        errors = sum(verdicts[r.name].first("error") is not None for r in mine)
        warned = sum(verdicts[r.name].first("error", "warning") is not None for r in mine)
        of = sum(map(chosen, records))
        lines.append(f"| {group}, {of} | {len(mine)} | {errors} | {share(warned, len(mine))} |")
    errors = sum(verdicts[r.name].first("error") is not None for r in healthy)
    high = 100 * wilson(errors, len(healthy))[1]
    lines.append(
        f"\n{errors} of {len(healthy)} healthy runs with an error: runs not seen before would "
        f"bound the share at {high:.1f} % (Wilson, 95 %). {len(failed)} runs did not learn and were left out."
    )
    if verbose:
        for record in failed:
            print(f"left out: {record.name}: {record.losses[:1]} .. {mean(record.losses[-10:]):.4g}"
                  f" {record.error[:200]}")  # fmt: skip
        for record in healthy:
            for step, finding in verdicts[record.name].findings:
                if finding.severity != "info":
                    print(f"{record.name}\n    step {step}: {finding}")
    return "\n".join(lines)
