"""Small real models, one idea each: `ZOO[name]()` builds a model and a call that runs it once."""

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

Forward = Callable[[], object]
Built = tuple[nn.Module, Forward]


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def ids(*shape: int, below: int = 10) -> Tensor:
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(0))


def relu_mlp() -> Built:
    model = nn.Sequential(
        nn.Linear(12, 32),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(32, 24),
        nn.ReLU(),
        nn.Linear(24, 5),
    )
    return model, lambda: model(noise(16, 12))


def tanh_mlp(depth: int = 12) -> Built:
    layers: list[nn.Module] = []
    for _ in range(depth - 1):
        layers += [nn.Linear(16, 16), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(16, 3))
    return model, lambda: model(noise(16, 16))


def selu_mlp() -> Built:
    model = nn.Sequential(nn.Linear(12, 32), nn.SELU(), nn.AlphaDropout(0.1), nn.Linear(32, 5))
    return model, lambda: model(noise(16, 12))


class PlainCNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = self.second(x).relu()
        return self.head(x.mean((2, 3)))


def plain_cnn() -> Built:
    model = PlainCNN()
    return model, lambda: model(noise(4, 3, 8, 8))


class ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(x + self.bn2(self.conv2(y)))


class ResidualCNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(ResidualBlock(8), ResidualBlock(8), ResidualBlock(8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x).relu()).mean((2, 3)))


def residual_cnn() -> Built:
    model = ResidualCNN()
    return model, lambda: model(noise(4, 3, 8, 8))


class LSTMClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 6)
        self.lstm = nn.LSTM(6, 8, num_layers=2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.table(x))[0][:, -1])


def lstm() -> Built:
    model = LSTMClassifier()
    return model, lambda: model(ids(4, 7))


def encoder() -> Built:
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return model, lambda: model(noise(4, 6, 16))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, 2, batch_first=True)
        self.fc = nn.Linear(width, 4 * width)
        self.proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.proj(F.gelu(self.fc(self.ln_2(x))))


class NanoGPT(nn.Module):
    def __init__(self, layers: int = 3, width: int = 16) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(11, width), nn.Embedding(8, width)
        self.h = nn.ModuleList(Block(width) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width)
        self.head = nn.Linear(width, 11, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for block in self.h:
            x = block(x)
        return self.head(self.ln_f(x))


def nanogpt() -> Built:
    model = NanoGPT()
    return model, lambda: model(ids(4, 8))


def depthwise() -> Built:
    model = nn.Sequential(
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.SiLU(),
        nn.Conv2d(8, 16, 1),
        nn.GroupNorm(4, 16),
        nn.SiLU(),
        nn.Conv2d(16, 4, 3, groups=4),
    )
    return model, lambda: model(noise(4, 8, 8, 8))


def generator() -> Built:
    model = nn.Sequential(
        nn.ConvTranspose2d(6, 8, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1, groups=2),
        nn.LeakyReLU(0.2),
        nn.ConvTranspose2d(4, 3, 3, padding=1),
        nn.Tanh(),
    )
    return model, lambda: model(noise(2, 6, 4, 4))


class PaddedBag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8, padding_idx=3)
        self.bag = nn.EmbeddingBag(20, 8, padding_idx=0)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.table(x).mean(1) + self.bag(x))


def padded() -> Built:
    model = PaddedBag()
    return model, lambda: model(ids(4, 7))


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(0.1 * torch.randn(16, 8))
        self.shift = nn.Parameter(torch.zeros(16))
        self.second = nn.Parameter(0.1 * torch.randn(3, 16))
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(F.linear(x, self.first, self.shift))
        return F.linear(x, self.second) * self.temperature


def functional() -> Built:
    model = Functional()
    return model, lambda: model(noise(16, 8))


def gpt2() -> Built:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=20, n_positions=8, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config)
    return model, lambda: model(ids(2, 6)).logits


def bert() -> Built:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=8,
    )
    model = BertForSequenceClassification(config)
    return model, lambda: model(ids(2, 6)).logits


_BUILDERS: tuple[Callable[[], Built], ...] = (
    *(relu_mlp, tanh_mlp, selu_mlp, plain_cnn, residual_cnn, lstm, encoder, nanogpt),
    *(depthwise, generator, padded, functional, gpt2, bert),
)


def _seeded(build: Callable[[], Built]) -> Callable[[], Built]:
    def built(seed: int = 0) -> Built:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # transformers imports modules that use deprecated features of other packages
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            torch.manual_seed(seed)
            return build()

    return built


ZOO: dict[str, Callable[[], Built]] = {build.__name__: _seeded(build) for build in _BUILDERS}


def _legacy(function: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    def parametrized(layer: nn.Module, name: str = "weight") -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch calls the old forms deprecated
            return function(layer, name)

    return parametrized


class Doubled(nn.Module):
    """The smallest parametrization: the weight is twice its original."""

    def forward(self, original: Tensor) -> Tensor:
        return 2 * original

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight / 2


class Symmetric(nn.Module):
    """A parametrization that cannot be assigned to."""

    def forward(self, original: Tensor) -> Tensor:
        return original.triu() + original.triu(1).mT


def doubled(layer: nn.Module, name: str = "weight") -> nn.Module:
    return parametrize.register_parametrization(layer, name, Doubled())


def symmetric(layer: nn.Module, name: str = "weight") -> nn.Module:
    return parametrize.register_parametrization(layer, name, Symmetric())


def chained(layer: nn.Module, name: str = "weight") -> nn.Module:
    return doubled(nn.utils.parametrizations.weight_norm(layer, name), name)


# Ways to compute a weight from other tensors: those that can take any value, and the others.
EXACT: dict[str, Callable[..., nn.Module]] = {
    "weight_norm": nn.utils.parametrizations.weight_norm,
    "old weight_norm": _legacy(nn.utils.weight_norm),
    "doubled": doubled,
    "chained": chained,
}
INEXACT: dict[str, Callable[..., nn.Module]] = {
    "spectral_norm": nn.utils.parametrizations.spectral_norm,
    "old spectral_norm": _legacy(nn.utils.spectral_norm),
    "orthogonal": nn.utils.parametrizations.orthogonal,
    "pruning": lambda layer, name="weight": prune.l1_unstructured(layer, name, 0.5),
}
