"""Short trainings on scikit-learn's digits: does a net learn at all from its initialization?"""

import functools

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn


@functools.cache
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """1400 images of 64 pixels to train on and 397 to test with, standardized."""
    found = load_digits()
    x, y = torch.tensor(found.data, dtype=torch.float32), torch.tensor(found.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = ((x - x.mean()) / x.std())[order], y[order]
    return x[:1400], y[:1400], x[1400:], y[1400:]


def accuracy(model: nn.Module, shape: tuple[int, ...] = (64,)) -> float:
    _, _, x, y = digits()
    model.eval()
    with torch.no_grad():
        return float((model(x.view(-1, *shape)).argmax(1) == y).float().mean())


def train(
    model: nn.Module, steps: int, lr: float, shape: tuple[int, ...] = (64,), momentum: float = 0.9
) -> float:
    """Accuracy after SGD with batches of 64 and gradients clipped to norm 1."""
    x, y, _, _ = digits()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    picks = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(steps):
        at = torch.randint(len(x), (64,), generator=picks)
        loss = F.cross_entropy(model(x[at].view(-1, *shape)), y[at])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return accuracy(model, shape)


def gradient_ratio(model: nn.Module, shape: tuple[int, ...] = (64,)) -> float:
    """Gradient norm of the second matrix over that of the last but one."""
    x, y, _, _ = digits()
    F.cross_entropy(model(x[:256].view(-1, *shape)), y[:256]).backward()
    norms = [p.grad.norm() for p in model.parameters() if p.ndim > 1]
    model.zero_grad()
    return float(norms[1] / norms[-2])


def mlp(depth: int, activation: type[nn.Module], width: int = 64) -> nn.Sequential:
    """`depth` hidden layers and a head."""
    layers = [m for _ in range(depth) for m in (nn.Linear(width, width), activation())]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def cnn(depth: int, activation: type[nn.Module], **conv: object) -> nn.Sequential:
    """Plain 3 x 3 convolutions with 16 channels on 8 x 8 pixels, and a head on all of them."""
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Conv2d(16 if i else 1, 16, 3, padding=1, **conv), activation()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 64, 10))
