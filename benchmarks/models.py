"""The models that `auto.py` trains: common architectures on real data, as one would write them.

Every entry gives a model that returns its loss for a batch. The data are the handwritten digits
and the diabetes study of scikit-learn, and Python's own documentation as text.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from sklearn.datasets import load_diabetes, load_digits
from torch import Tensor, nn

Data = tuple[Tensor, Tensor]
LENGTH, TEXT = 32, 200_000


@cache
def digits() -> Data:
    x, y = load_digits(return_X_y=True)
    x = torch.tensor(x, dtype=torch.float32)
    return (x - x.mean()) / x.std(), torch.tensor(y)


@cache
def diabetes() -> Data:
    x, y = load_diabetes(return_X_y=True)
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)
    return (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()


@cache
def text() -> Data:
    joined = "".join(topics.values())[:TEXT]
    index = {c: i for i, c in enumerate(sorted(set(joined)))}
    codes = torch.tensor([index[c] for c in joined])
    windows = codes[: len(codes) // (LENGTH + 1) * (LENGTH + 1)].view(-1, LENGTH + 1)
    return windows[:, :-1], windows[:, 1:]


def symbols() -> int:
    return int(text()[0].max()) + 1


class Classifier(nn.Module):
    """A network on rows of pixels, images (1, 8, 8) or sequences of 8 rows."""

    def __init__(self, net: nn.Module, view: tuple[int, ...]) -> None:
        super().__init__()
        self.net, self.view = net, view

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        out = self.net(x.view(len(x), *self.view))
        return F.cross_entropy(out, y)


class Regressor(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(self.net(x).squeeze(1), y)


class LanguageModel(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.net(x).flatten(0, 1), y.flatten())


def mlp(depth: int, activation: type[nn.Module], width: int = 64, norm: bool = False) -> nn.Module:
    layers: list[nn.Module] = [nn.Linear(64, width)]
    for _ in range(depth - 1):
        layers += [nn.LayerNorm(width)] * norm + [activation(), nn.Linear(width, width)]
    return nn.Sequential(*layers, activation(), nn.Linear(width, 10))


def cnn(norm: bool) -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in ((1, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(before, after, 3, padding=1)]
        layers += [nn.BatchNorm2d(after)] * norm + [nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


class Residual(nn.Module):
    def __init__(self, body: nn.Module, after: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.after = body, after or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.after(x + self.body(x))


def resnet(norm: bool, blocks: int = 6, width: int = 16) -> nn.Module:
    def block() -> nn.Module:
        one, two = (nn.Conv2d(width, width, 3, padding=1, bias=not norm) for _ in range(2))
        n = (nn.BatchNorm2d(width), nn.BatchNorm2d(width)) if norm else (nn.Identity(),) * 2
        return Residual(nn.Sequential(one, n[0], nn.ReLU(), two, n[1]), nn.ReLU())

    stem = nn.Conv2d(1, width, 3, padding=1)
    body = [block() for _ in range(blocks)]
    return nn.Sequential(
        stem, nn.ReLU(), *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)
    )


def residual_mlp(blocks: int = 8, width: int = 64) -> nn.Module:
    body = [
        Residual(nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)))
        for _ in range(blocks)
    ]
    return nn.Sequential(*body, nn.Linear(width, 10))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], layers: int = 1) -> None:
        super().__init__()
        self.rnn = kind(8, 48, num_layers=layers, batch_first=True)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class CharLSTM(nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.table = nn.Embedding(symbols(), width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, symbols())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.table(x))[0])


class Encoder(nn.Module):
    """A transformer on the rows of an image, with a learned table of positions."""

    def __init__(self, norm_first: bool, layers: int = 3, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Linear(8, width)
        self.positions = nn.Parameter(torch.zeros(1, 8, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=norm_first
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.stem(x) + self.positions).mean(1))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, -1).transpose(1, 2)
            for part in self.qkv(self.ln_1(x)).chunk(3, -1)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.ln_2(x))))


class GPT(nn.Module):
    def __init__(self, layers: int = 4, width: int = 64, tied: bool = True) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(symbols(), width), nn.Embedding(LENGTH, width)
        self.h = nn.Sequential(*(Block(width, 4) for _ in range(layers)))
        self.ln_f, self.head = nn.LayerNorm(width), nn.Linear(width, symbols(), bias=False)
        if tied:
            self.head.weight = self.wte.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.wte(x) + self.wpe(torch.arange(x.shape[1]))
        return self.head(self.ln_f(self.h(x)))


class HuggingFace(nn.Module):
    """A causal language model of transformers, as its library initializes it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import transformers

        sizes = {"vocab_size": symbols(), "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
        if name == "gpt2":
            config = transformers.GPT2Config(
                n_embd=64, n_layer=3, n_head=4, n_positions=64, **sizes
            )
        else:
            config = transformers.LlamaConfig(
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=2,
                **sizes,
            )
        self.model = transformers.AutoModelForCausalLM.from_config(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).logits


def _images(net: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: Classifier(net(), (1, 8, 8))


def _rows(net: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: Classifier(net(), (8, 8))


def _pixels(net: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: Classifier(net(), (64,))


def _text(net: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: LanguageModel(net())


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Data]]] = {
    "relu mlp, 3 layers": (_pixels(lambda: mlp(3, nn.ReLU)), digits),
    "relu mlp, 12 layers": (_pixels(lambda: mlp(12, nn.ReLU)), digits),
    "gelu mlp with norm": (_pixels(lambda: mlp(6, nn.GELU, norm=True)), digits),
    "tanh mlp, 10 layers": (_pixels(lambda: mlp(10, nn.Tanh)), digits),
    "selu mlp, 8 layers": (_pixels(lambda: mlp(8, nn.SELU)), digits),
    "residual mlp, no norm": (_pixels(residual_mlp), digits),
    "regression mlp": (
        lambda: Regressor(nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 1))),
        diabetes,
    ),
    "plain cnn": (_images(lambda: cnn(False)), digits),
    "cnn with batch norm": (_images(lambda: cnn(True)), digits),
    "resnet": (_images(lambda: resnet(True)), digits),
    "resnet, no norm": (_images(lambda: resnet(False)), digits),
    "lstm on rows": (_rows(lambda: Recurrent(nn.LSTM)), digits),
    "gru on rows, 2 layers": (_rows(lambda: Recurrent(nn.GRU, 2)), digits),
    "rnn on rows": (_rows(lambda: Recurrent(nn.RNN)), digits),
    "char lstm": (_text(CharLSTM), text),
    "encoder, post-norm": (_rows(lambda: Encoder(False)), digits),
    "encoder, pre-norm": (_rows(lambda: Encoder(True)), digits),
    "char gpt, tied": (_text(GPT), text),
    "char gpt, untied": (_text(lambda: GPT(tied=False)), text),
    "GPT-2 of transformers": (_text(lambda: HuggingFace("gpt2")), text),
    "Llama of transformers": (_text(lambda: HuggingFace("llama")), text),
}
