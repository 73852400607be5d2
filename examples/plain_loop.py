"""Initialize, audit and look at the first steps in a plain loop: `python -m examples.plain_loop`."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from examples.digits import Digits, DigitsMLP
from lightning_init import Report, audit, initialize_

LOOKS = (1, 10, 100)  # steps after which the health is looked at
SIGNS = ["non_finite", "dead_units", "forward_growth", "backward_growth"]  # of any step


def main(strategy: str = "orthogonal", steps: int = 300) -> tuple[list[Report], float]:
    """Train 30 layers of tanh; returns the reports and the validation accuracy."""
    torch.manual_seed(1)
    data = Digits()
    data.setup("fit")
    net = DigitsMLP(depth=30).net  # any nn.Module
    optimizer = torch.optim.SGD(net.parameters(), lr=0.03, momentum=0.9)
    x, y = data.train[:64]

    plan = initialize_(net, strategy, seed=1, forward=lambda: net(x))  # in place
    print(plan)
    reports = [audit(net, lambda: cross_entropy(net(x), y), plan=plan)]
    print(reports[0])
    if reports[0].errors:
        return reports, 0.0

    step = 0
    while step < steps:
        for images, labels in data.train_dataloader():
            loss = cross_entropy(net(images), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            step += 1
            if step in LOOKS:  # weights, gradients and random state stay as they are
                reports.append(audit(net, lambda: cross_entropy(net(x), y), detectors=SIGNS))
                print(f"after step {step}: {reports[-1].verdict()}")

    images, labels = data.val[:]
    with torch.no_grad():
        accuracy = (net(images).argmax(1) == labels).float().mean().item()
    print(f"after step {step}: validation accuracy {accuracy:.3f}")
    return reports, accuracy


if __name__ == "__main__":
    main()
