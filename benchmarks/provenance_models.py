"""Untrained models for `benchmarks.provenance`: as their layers draw them, and as users do."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import init


@dataclass(frozen=True)
class Case:
    """A model, and the beginnings of the names of its trained tensors: `("",)` is all of them."""

    group: str
    model: nn.Module
    trained: tuple[str, ...] = ()


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


def fresh(seeds: Iterable[int]) -> Iterator[Case]:
    """Torch's own layers, untouched and drawn again by `torch.nn.init`."""
    for seed in seeds:
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


def patterns(seeds: Iterable[int]) -> Iterator[Case]:
    """One tensor that somebody drew or set, beside layers as built."""
    for seed in seeds:
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


def huggingface(seeds: Iterable[int]) -> Iterator[Case]:
    """Architectures that initialize themselves, from a configuration."""
    if importlib.util.find_spec("transformers") is None:
        return
    import transformers

    transformers.logging.set_verbosity_error()
    for seed in seeds:
        torch.manual_seed(seed)
        for name, arguments in HF.items():
            config = getattr(transformers, f"{name}Config")(**arguments)
            model = getattr(transformers, f"{name}Model")(config)
            yield Case(f"transformers, {len(HF)} kinds", model)
