"""channel_norm: each output channel at mean 0 and std 1 on the batch, folded into the layer."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.overrides import TorchFunctionMode

from lightning_init import InitSpec, initialize_
from lightning_init.architecture.opened import OPENED
from lightning_init.architecture.operations import CONVOLUTIONS, kind
from tests.zoo import ZOO, noise


class Outputs(TorchFunctionMode):
    """(mean, std) per channel of what each layer gives, in double precision."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in OPENED:
            with self:
                return OPENED[func](*args, **(kwargs or {}))
        out = func(*args, **(kwargs or {}))
        if kind(func) in CONVOLUTIONS | {"linear", "addmm"}:
            feature = 1 if kind(func) in CONVOLUTIONS else -1
            rows = out.detach().double().movedim(feature, 0).flatten(1)
            self.found.append((rows.mean(1), rows.std(1, correction=0)))
        return out


def channels(model, forward):
    model.eval()
    with torch.no_grad(), Outputs() as outputs:
        forward()
    return outputs.found


def normalize(model, forward, seed=0, **params):
    return initialize_(model, InitSpec("channel_norm", params), seed=seed, forward=forward)


@pytest.mark.parametrize(
    "name", ["relu_mlp", "tanh_mlp", "plain_cnn", "depthwise", "encoder", "gpt2"]
)
def test_every_channel_has_mean_0_and_std_1(name):
    model, forward = ZOO[name]()
    plan = normalize(model, forward, accept="always")
    found = channels(model, forward)[:-1]
    assert len(found) >= 2
    tested = 0
    for mean, std in found:
        alive = std > 1e-3
        tested += int(alive.sum())
        assert float((std[alive] - 1).abs().max()) < 1e-5
        assert float(mean[alive].abs().max()) < 1e-5
    assert tested >= 0.9 * sum(len(mean) for mean, _ in found)
    (line,) = plan.calibrations
    assert line.after < 1e-5
    assert line.before > 0.1


def test_two_layers_of_the_paper():
    """Conv, ReLU, conv, as measured: |mean| of 2e-7 and |std - 1| of 6e-8 per channel."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(96, 3)
    )
    x = 3 * noise(64, 3, 8, 8) + 5
    normalize(model, lambda: model(x))
    for mean, std in channels(model, lambda: model(x))[:2]:
        assert float(mean.abs().max()) < 1e-6
        assert float((std - 1).abs().max()) < 1e-5


def test_the_numbers_are_those_of_the_paper():
    """g = 1 / std and b = -mean / std of t = w x, with w as drawn."""
    x = 2 * noise(64, 6) + 1
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    initialize_(model, InitSpec("normal", {"std": 0.05}), seed=3)
    drawn = model[0].weight.detach().clone()
    t = x @ drawn.T
    normalize(model, lambda: model(x), seed=3)
    assert torch.allclose(model[0].weight, drawn / t.std(0, correction=0)[:, None], rtol=1e-5)
    assert torch.allclose(model[0].bias, -t.mean(0) / t.std(0, correction=0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("how", ["parametrized", "hooked"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_weight_norm_takes_it_up(how):
    norm = weight_norm if how == "parametrized" else nn.utils.weight_norm
    model = nn.Sequential(norm(nn.Linear(6, 9)), nn.ReLU(), norm(nn.Linear(9, 4)), nn.Linear(4, 2))
    x = noise(64, 6) + 2
    normalize(model, lambda: model(x))
    for mean, std in channels(model, lambda: model(x))[:2]:
        assert float((std - 1).abs().max()) < 1e-5
        assert float(mean.abs().max()) < 1e-5


def test_the_target_and_the_head():
    model, forward = ZOO["plain_cnn"]()
    normalize(model, forward, scale=0.5, include_head=True, accept="always")
    for mean, std in channels(model, forward):
        assert float((std - 0.5).abs().max()) < 1e-5
        assert float(mean.abs().max()) < 1e-5
    model, forward = ZOO["plain_cnn"]()
    normalize(model, forward)
    assert float((channels(model, forward)[-1][1] - 1).abs().max()) > 1e-2


def test_without_a_bias_only_the_std_and_the_report_says_so():
    model = nn.Sequential(nn.Linear(6, 9, bias=False), nn.ReLU(), nn.Linear(9, 2))
    x = noise(64, 6) + 2
    plan = normalize(model, lambda: model(x))
    mean, std = channels(model, lambda: model(x))[0]
    assert float((std - 1).abs().max()) < 1e-5
    assert float(mean.abs().max()) > 0.1
    assert "no bias takes the means of 0.weight: only the std" in str(plan.calibrations[0])


def test_a_frozen_bias_stays():
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 2))
    nn.init.constant_(model[0].bias, 0.5)
    model[0].bias.requires_grad_(False)
    x = noise(64, 6) + 2
    normalize(model, lambda: model(x))
    assert bool((model[0].bias == 0.5).all())
    assert float((channels(model, lambda: model(x))[0][1] - 1).abs().max()) < 1e-5


def test_constant_channels_stay_as_drawn():
    class Half(nn.Module):
        """Whose second branch sees nothing but zeros."""

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(2, 4, 1, groups=2)
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.conv(x * torch.tensor([[1.0], [0.0]])).mean(-1))

    model, x = Half(), noise(32, 2, 5)
    spec = InitSpec("normal", {"std": 0.05})
    initialize_(model, spec, seed=1)
    drawn = model.conv.weight.detach().clone()
    plan = normalize(model, lambda: model(x), seed=1)
    assert torch.equal(model.conv.weight[2:], drawn[2:])
    assert not torch.equal(model.conv.weight[:2], drawn[:2])
    assert bool((model.conv.bias[2:] == 0).all())
    assert "2 constant channels as drawn" in plan.calibrations[0].why


def test_a_single_example_is_constant():
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 2))
    x = noise(6)
    plan = normalize(model, lambda: model(x))
    assert "9 constant channels" in plan.calibrations[0].why
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_what_it_makes_worse_is_taken_back():
    """A deep tanh net at unit variance is chaotic, channel by channel too."""
    torch.manual_seed(0)
    layers = [each for _ in range(60) for each in (nn.Linear(32, 32), nn.Tanh())]
    model = nn.Sequential(*layers, nn.Linear(32, 10))
    x, y = noise(128, 32), torch.arange(128) % 10
    spec = InitSpec("chain", {"steps": ["orthogonal", "channel_norm"]})
    forward = lambda: nn.functional.cross_entropy(model(x), y)  # noqa: E731
    plan = initialize_(model, spec, seed=0, forward=forward)
    assert not plan.calibrations[0].accepted
    values = torch.linalg.svdvals(model[20].weight.detach())
    assert torch.allclose(values, torch.ones(32), atol=1e-5)
    assert bool((model[20].bias == 0).all())


def test_on_top_of_what_a_chain_drew():
    model, forward = ZOO["relu_mlp"]()
    spec = InitSpec("chain", {"steps": ["orthogonal", "channel_norm"]})
    plan = initialize_(model, spec, seed=0, forward=forward)
    assert "orthogonal" in str(plan["5.weight"])
    assert float((channels(model, forward)[1][1] - 1).abs().max()) < 1e-5


def test_transposed_and_grouped_convolutions():
    model = nn.Sequential(
        nn.ConvTranspose2d(3, 6, 4, stride=2),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3, groups=2),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 4, 2, groups=2),
        nn.Flatten(),
        nn.LazyLinear(2),
    )
    x = noise(16, 3, 5, 5)
    plan = normalize(model, lambda: model(x))
    found = channels(model, lambda: model(x))
    for mean, std in found[:2]:
        assert float((std - 1).abs().max()) < 1e-5
        assert float(mean.abs().max()) < 1e-5
    assert "4.weight as drawn: channels not along one dimension" in plan.calibrations[0].why
