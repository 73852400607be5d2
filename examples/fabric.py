"""The same under Lightning Fabric, on any device and precision: `python -m examples.fabric`."""

import torch
from lightning.fabric import Fabric
from torch.nn.functional import cross_entropy

from examples.digits import Digits, DigitsMLP
from lightning_init import Report, audit, initialize_

LOOKS = (1, 10, 100)  # steps after which the health is looked at
SIGNS = ["non_finite", "dead_units", "forward_growth", "backward_growth"]  # of any step


def main(
    strategy: str = "orthogonal", steps: int = 300, accelerator: str = "cpu"
) -> tuple[list[Report], float]:
    """Train 30 layers of tanh; returns the reports and the validation accuracy."""
    fabric = Fabric(accelerator=accelerator, devices=1)
    fabric.seed_everything(1)
    data = Digits()
    data.setup("fit")
    net = DigitsMLP(depth=30).net  # any nn.Module
    x, y = data.train[:64]
    # Before `fabric.setup`: all processes draw the same, and what it wraps or shards is drawn.
    plan = initialize_(net, strategy, seed=1, forward=lambda: net(x))
    fabric.print(plan)

    optimizer = torch.optim.SGD(net.parameters(), lr=0.03, momentum=0.9)
    model, optimizer = fabric.setup(net, optimizer)
    loader = fabric.setup_dataloaders(data.train_dataloader())
    x, y = fabric.to_device((x, y))
    # After it: what is read has the device and the precision of the training.
    reports = [audit(net, lambda: cross_entropy(model(x), y), plan=plan)]
    fabric.print(reports[0])
    if reports[0].errors:
        return reports, 0.0

    step = 0
    while step < steps:
        for images, labels in loader:
            optimizer.zero_grad()
            fabric.backward(cross_entropy(model(images), labels))
            fabric.clip_gradients(model, optimizer, max_norm=1.0)
            optimizer.step()
            step += 1
            if step in LOOKS:  # weights, gradients and random state stay as they are
                reports.append(audit(net, lambda: cross_entropy(model(x), y), detectors=SIGNS))
                fabric.print(f"after step {step}: {reports[-1].verdict()}")

    images, labels = fabric.to_device(data.val[:])
    with torch.no_grad():
        accuracy = (model(images).argmax(1) == labels).float().mean().item()
    fabric.print(f"after step {step}: validation accuracy {accuracy:.3f}")
    return reports, accuracy


if __name__ == "__main__":
    main()
