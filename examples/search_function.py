"""Search the init of a plain PyTorch training loop: `python -m examples.search_function`."""

from collections.abc import Callable

import torch
from torch import nn

from examples.digits import Digits
from lightning_init import Axis, Outcome, SearchResult, Space, Trial, initialize_, search_init

DATA = Digits()
DATA.setup("fit")
(TRAIN_X, TRAIN_Y), (VAL_X, VAL_Y) = DATA.train[:], DATA.val[:]


def network() -> nn.Sequential:
    """Fifteen layers of tanh, as PyTorch builds them."""
    layers = [part for _ in range(14) for part in (nn.Linear(64, 64), nn.Tanh())]
    return nn.Sequential(*layers, nn.Linear(64, 10))


def evaluate(trial: Trial, report: Callable[[int, float], bool]) -> Outcome:
    """One short training; the same seed gives the same weights and the same batches."""
    torch.manual_seed(trial.seed)
    model = network()
    initialize_(model, trial.spec, seed=trial.seed, forward=lambda: model(TRAIN_X[:64]))
    optimizer = torch.optim.SGD(model.parameters(), lr=trial.config["lr"], momentum=0.9)
    batches = torch.Generator().manual_seed(trial.seed)
    curve = []
    for step in range(1, trial.steps + 1):
        rows = torch.randint(len(TRAIN_X), (64,), generator=batches)
        loss = nn.functional.cross_entropy(model(TRAIN_X[rows]), TRAIN_Y[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        curve.append((step, loss.item()))
        if step % 10 == 0 and report(step, loss.item()):
            return Outcome(None, tuple(curve), "pruned")
    with torch.no_grad():
        accuracy = (model(VAL_X).argmax(1) == VAL_Y).float().mean().item()
    return Outcome(accuracy, tuple(curve))


def main(trials: int = 20) -> SearchResult:
    """Search, and print what was found."""
    space = Space(
        ("xavier_normal", "orthogonal", "kaiming_normal"),
        {"lr": Axis(0.003, 0.3, log=True, current=0.03)},
    )
    result = search_init(
        evaluate, space, trials=trials, steps=60, mode="max", monitor="accuracy", lr_key="lr"
    )
    for line in (*result.lines(), result.verdict()):
        print(line)
    return result


if __name__ == "__main__":
    main()
