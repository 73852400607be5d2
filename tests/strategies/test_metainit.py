"""MetaInit: the gradient quotient, how norms move, and where it ends."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector

from lightning_init import InitSpec, initialize_
from lightning_init.strategies.gradient import Loss
from lightning_init.strategies.metainit import gradient_quotient
from tests.zoo import noise

LABELS = torch.arange(12) % 3


def small(act: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), act(), nn.Linear(5, 4), act(), nn.Linear(4, 3)).double()


def batch():
    x = noise(12, 4).double()
    x[:, 3] = 0  # a column of the first weight has no gradient
    return x


def task(model, x=None):
    x = batch() if x is None else x
    return lambda: F.cross_entropy(model(x), LABELS[: len(x)])


def dense_quotient(model, eps, weights=None):
    """As in the paper, with the whole Hessian."""
    parameters = dict(model.named_parameters())
    sizes = [p.numel() for p in parameters.values()]

    def loss(vector):
        parts = zip(parameters, vector.split(sizes), strict=True)
        values = {name: part.view_as(parameters[name]) for name, part in parts}
        return F.cross_entropy(functional_call(model, values, (batch(),)), LABELS)

    at = parameters_to_vector(weights or parameters.values()).detach().requires_grad_()
    (g,) = torch.autograd.grad(loss(at), at)
    hessian = torch.autograd.functional.hessian(loss, at.detach())
    sign = torch.where(g >= 0, 1.0, -1.0).double()
    return float(((g - hessian @ g) / (g + eps * sign) - 1).abs().mean())


@pytest.mark.parametrize("eps", [1e-5, 1e-2])
@pytest.mark.parametrize("act", [nn.Tanh, nn.ReLU])
def test_the_quotient_is_that_of_the_dense_hessian(act, eps):
    model = small(act)
    loss = Loss("metainit", model, task(model))
    found = gradient_quotient(loss, loss(), eps)
    assert found.item() == pytest.approx(dense_quotient(model, eps), rel=1e-9)
    assert found.item() > 0.05


def test_unused_parameters_do_not_count_and_no_curvature_is_no_change():
    model = small()
    loss = Loss("metainit", model, task(model))
    alone = gradient_quotient(loss, loss(), 1e-5).item()
    wider = nn.ModuleList([model, nn.Linear(50, 50)])
    loss = Loss("metainit", wider, task(model))
    assert gradient_quotient(loss, loss(), 1e-5).item() == alone
    line = nn.Linear(3, 1, bias=False)
    loss = Loss("metainit", line, lambda: line(torch.ones(1, 3)).sum())
    eps = 1e-3  # g = 1 and H = 0
    assert gradient_quotient(loss, loss(), eps).item() == pytest.approx(eps / (1 + eps))


def drawn(model, seed=0, scale=1.0, strategy="lecun_normal"):
    spec = InitSpec("chain", {"steps": [InitSpec(strategy, {"scale": scale})]})
    initialize_(model, spec, seed=seed)
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def metainit(model, forward, seed=0, scale=1.0, strategy="lecun_normal", **params):
    params = {"accept": "always", **params}
    steps = [InitSpec(strategy, {"scale": scale}), InitSpec("metainit", params)]
    return initialize_(model, InitSpec("chain", {"steps": steps}), seed=seed, forward=forward)


@pytest.mark.parametrize(("steps", "momentum"), [(1, 0.9), (3, 0.0), (4, 0.5)])
def test_norms_move_as_by_hand(steps, momentum):
    """Signs by finite differences of the dense quotient, moves as the paper has them."""
    model, lr = small(), 0.02
    start = drawn(model)
    names = [name for name, value in start.items() if value.ndim == 2]
    first = {name: float(start[name].norm()) for name in names}
    norms, moves = dict(first), dict.fromkeys(names, 0.0)

    def quotient(norms):
        values = {n: v * norms[n] / first[n] if n in norms else v for n, v in start.items()}
        return dense_quotient(model, 1e-5, list(values.values()))

    seen = [(quotient(norms), dict(norms))]
    for _ in range(steps):
        h = 1e-6
        slopes = {
            n: quotient({**norms, n: norms[n] + h}) - quotient({**norms, n: norms[n] - h})
            for n in names
        }
        for n in names:
            moves[n] = momentum * moves[n] - lr * math.copysign(1, slopes[n])
            norms[n] += moves[n]
        seen.append((quotient(norms), dict(norms)))
    best = min(seen, key=lambda pair: pair[0])
    assert best[1] != first, "the first step should help"

    twin = small()
    plan = metainit(twin, task(twin), steps=steps, momentum=momentum, lr=lr)
    for name in names:
        assert float(twin.get_parameter(name).detach().norm()) == pytest.approx(
            best[1][name], rel=1e-6
        )
    (done,) = plan.calibrations
    assert done.before == pytest.approx(seen[0][0], rel=1e-6)
    assert done.after == pytest.approx(best[0], rel=1e-6)
    assert done.passes == f"{steps} of {steps} steps, each 1 forward + 3 backward"


def test_directions_stay_and_norms_stay_positive():
    model = small().float()
    start = drawn(model, scale=0.01)  # norms of 0.01 to 0.02, and steps of 0.5
    plan = metainit(model, task(model, batch().float()), scale=0.01, steps=30, lr=0.5)
    factors = set()
    for name, value in model.named_parameters():
        value, before = value.detach(), start[name]
        if value.ndim == 1:
            assert torch.equal(value, before)
            continue
        factor = float((value * before).sum() / before.square().sum())
        assert factor > 0
        assert torch.allclose(value, factor * before, rtol=1e-5, atol=0)
        factors.add(round(factor, 4))
    assert len(factors) == 3
    assert plan.calibrations[0].after < plan.calibrations[0].before


def test_a_norm_at_most_halves_in_a_step():
    model = nn.Linear(1, 1, bias=False).double()
    model.weight.data.fill_(3.0)
    twin = nn.Linear(1, 1, bias=False).double()
    twin.weight.data.fill_(3.0)
    # L = w^4: g = 4 w^3, H = 12 w^2, and the quotient |Hg/g| = 12 w^2 falls down to 0
    forward = lambda: model(torch.ones(1, 1).double()).pow(4).sum()  # noqa: E731
    start = float(drawn(twin)["weight"].norm())
    metainit(model, forward, steps=5, lr=10.0, eps=1e-12)
    assert float(model.weight.detach().norm()) == pytest.approx(start / 2**5, rel=1e-6)


def test_a_move_that_was_cut_short_is_what_momentum_adds_to():
    model, eps, lr, momentum = nn.Linear(1, 1, bias=False).double(), 1e-5, 0.05, 0.9
    seen = []

    def forward():
        seen.append(abs(model.weight.item()))
        return model(torch.ones(1, 1).double()).pow(4).sum()

    metainit(model, forward, steps=12, lr=lr, momentum=momentum, eps=eps)
    quotient = lambda w: (48 * w**5 + eps) / (4 * w**3 + eps)  # noqa: E731
    norm = float(drawn(nn.Linear(1, 1, bias=False).double())["weight"].norm())
    move, cut, norms = 0.0, [], [norm]
    for _ in range(12):
        rises = quotient(norm + 1e-7) > quotient(norm - 1e-7)
        move = momentum * move - lr * (1 if rises else -1)
        cut.append(norm + move < norm / 2)
        moved = max(norm + move, norm / 2)
        norm, move = moved, moved - norm
        norms.append(norm)
    after = [norms[i + 1] > norms[i] for i in range(12)]
    assert any(cut)
    assert any(after[cut.index(True) :]), "it turns after having been cut short"
    first = next(i for i in range(len(seen)) if seen[i : i + 13] == pytest.approx(norms, rel=1e-5))
    assert first < 4, "the analysis and the gate come before"


def test_what_was_best_stays_not_what_came_last():
    model = small()
    start = drawn(model)
    plan = metainit(model, task(model), steps=1, lr=5.0)  # a step that is far too large
    assert all(torch.equal(p, start[n]) for n, p in model.named_parameters())
    assert plan.calibrations[0].after == plan.calibrations[0].before


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return torch.tensor(x, dtype=torch.float32)[order] / 16, torch.tensor(y)[order]


def deep_tanh():
    layers = [layer for _ in range(9) for layer in (nn.Linear(64, 64), nn.Tanh())]
    return nn.Sequential(*layers, nn.Linear(64, 10))


def fit(model, digits):
    x, y = digits
    return F.cross_entropy(model(x[:64]), y[:64])


def accuracy(model, digits, lr=0.03):
    x, y = digits
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        rows = torch.randint(0, 1400, (64,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    with torch.no_grad():
        return float((model(x[1400:]).argmax(1) == y[1400:]).float().mean())


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_vanishing_net_is_repaired_in_part(digits, seed):
    """At sigma_w = 0.4, 300 steps bring the quotient from 1.05 to 0.31, and signals fade less."""
    model, sigma = deep_tanh(), 0.4
    start = drawn(model, seed, sigma)
    forward = partial(fit, model, digits)
    plan = metainit(model, forward, seed, sigma, steps=300, momentum=0.5, accept="better")
    (done,) = plan.calibrations
    assert done.accepted
    assert done.before > 0.9
    assert done.after < 0.4
    for name, value in model.named_parameters():
        if value.ndim == 2:
            cosine = F.cosine_similarity(value.detach().flatten(), start[name].flatten(), dim=0)
            assert float(cosine) == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_a_critical_net_gets_its_weights_back(digits):
    """At sigma_w = 1 the quotient falls too, but 150 steps reach 0.4 to 0.5 instead of 0.95."""
    reached, seed = {}, 0
    for accept in ("always", "better"):
        model = deep_tanh()
        start = drawn(model, seed)
        plan = metainit(
            model, partial(fit, model, digits), seed, steps=300, momentum=0.5, accept=accept
        )
        (done,) = plan.calibrations
        assert done.after < done.before / 10
        assert done.accepted == (accept == "always")
        assert "outputs grow by e^-" in done.why
        same = [torch.equal(p, start[n]) for n, p in model.named_parameters() if p.ndim == 2]
        assert all(same) == (accept == "better")
        reached[accept] = accuracy(model, digits)
    assert reached["better"] > 0.85
    assert reached["always"] < 0.7
