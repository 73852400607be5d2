"""Recurrent nets, and torch's own transformer layers."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo_basic import Built, ids, noise


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


class ProjectedLSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 8, num_layers=2, bidirectional=True, proj_size=4, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0].mean(1))


def bi_lstm() -> Built:
    model = ProjectedLSTM()
    return model, lambda: model(noise(4, 7, 6))


class GRUTagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 6)
        self.gru = nn.GRU(6, 8, num_layers=2, bidirectional=True, batch_first=True, dropout=0.1)
        self.hidden = nn.Linear(16, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.hidden(self.gru(self.table(x))[0])))


def gru() -> Built:
    model = GRUTagger()
    return model, lambda: model(ids(4, 7))


class CellLoop(nn.Module):
    """A recurrence that is unrolled in Python, layer norm inside."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(6, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 8)
        for step in x.unbind(1):
            state = self.norm(self.cell(step, state))
        return self.head(state)


def gru_cell() -> Built:
    model = CellLoop()
    return model, lambda: model(noise(4, 5, 6))


class Seq2Seq(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Linear(6, 16), nn.Embedding(10, 16)
        layer = nn.TransformerDecoderLayer(16, 2, 32, activation="gelu", batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, 2, norm=nn.LayerNorm(16))
        self.head = nn.Linear(16, 10)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        x = self.decoder(self.target(target), self.source(source), tgt_mask=mask)
        return self.head(x)


def decoder() -> Built:
    model = Seq2Seq()
    return model, lambda: model(noise(4, 5, 6), ids(4, 6))


def norm_first_encoder() -> Built:
    layer = nn.TransformerEncoderLayer(16, 2, 32, norm_first=True, batch_first=True)
    model = nn.Sequential(
        nn.Linear(6, 16),
        nn.TransformerEncoder(layer, 2, nn.LayerNorm(16), enable_nested_tensor=False),
        nn.Linear(16, 3),
    )
    return model, lambda: model(noise(4, 5, 6))


class CrossAttention(nn.Module):
    """Learned queries look at inputs of other widths: separate matrices in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(0.1 * torch.randn(3, 16))
        self.attn = nn.MultiheadAttention(16, 4, kdim=6, vdim=10, batch_first=True)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 3)

    def forward(self, keys: Tensor, values: Tensor) -> Tensor:
        queries = self.queries.expand(len(keys), -1, -1)
        x = self.attn(queries, keys, values)[0]
        return self.head(self.norm(x))


def cross_attention() -> Built:
    model = CrossAttention()
    return model, lambda: model(noise(4, 5, 6), noise(4, 5, 10))
