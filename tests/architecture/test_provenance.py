"""Fresh, custom or trained: decided from markers and values, without false alarms."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_init import analyze, initialize_, make_plan
from lightning_init.architecture.judge import examine
from lightning_init.architecture.names import named_tensors
from lightning_init.architecture.provenance import record_of
from tests.zoo import BARE, TRANSFORMERS, ZOO, ids


def provenance(model):
    return {info.name: info.provenance for info in examine(model, analyze(model).params)}


LAYERS = {
    "Linear": lambda: nn.Linear(64, 48),
    "Linear, wide": lambda: nn.Linear(700, 600),
    "Linear, tiny": lambda: nn.Linear(2, 1),
    "Bilinear": lambda: nn.Bilinear(6, 7, 8),
    "Conv1d": lambda: nn.Conv1d(8, 16, 5),
    "Conv2d": lambda: nn.Conv2d(16, 32, 3),
    "Conv3d": lambda: nn.Conv3d(2, 4, 3),
    "Conv2d, grouped": lambda: nn.Conv2d(16, 32, 3, groups=4),
    "Conv2d, depthwise": lambda: nn.Conv2d(32, 32, 3, groups=32),
    "ConvTranspose1d": lambda: nn.ConvTranspose1d(8, 4, 4, stride=2),
    "ConvTranspose2d": lambda: nn.ConvTranspose2d(16, 8, 4, stride=2),
    "ConvTranspose2d, grouped": lambda: nn.ConvTranspose2d(16, 8, 4, groups=4),
    "Embedding": lambda: nn.Embedding(60, 16),
    "Embedding, padded": lambda: nn.Embedding(60, 16, padding_idx=-1),
    "EmbeddingBag": lambda: nn.EmbeddingBag(60, 16, padding_idx=0),
    "MultiheadAttention": lambda: nn.MultiheadAttention(32, 4),
    "MultiheadAttention, kdim": lambda: nn.MultiheadAttention(32, 4, kdim=20, vdim=24),
    "MultiheadAttention, bias_kv": lambda: nn.MultiheadAttention(64, 4, add_bias_kv=True),
    "RNN": lambda: nn.RNN(8, 16),
    "LSTM": lambda: nn.LSTM(8, 16, num_layers=2, bidirectional=True),
    "LSTM, projected": lambda: nn.LSTM(8, 16, proj_size=6),
    "GRU": lambda: nn.GRU(8, 16),
    "LSTMCell": lambda: nn.LSTMCell(8, 16),
    "LayerNorm": lambda: nn.LayerNorm(16),
    "RMSNorm": lambda: nn.RMSNorm(16),
    "GroupNorm": lambda: nn.GroupNorm(4, 16),
    "BatchNorm2d": lambda: nn.BatchNorm2d(16),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(16, affine=True),
    "TransformerEncoderLayer": lambda: nn.TransformerEncoderLayer(32, 4, 64),
    "TransformerDecoderLayer": lambda: nn.TransformerDecoderLayer(32, 4, 64),
    "bfloat16": lambda: nn.Linear(64, 48, dtype=torch.bfloat16),
    "float64": lambda: nn.Linear(64, 48, dtype=torch.float64),
}


@pytest.mark.parametrize("name", LAYERS)
def test_untouched_layers_are_fresh(name):
    for seed in range(25):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = LAYERS[name]()
        assert set(provenance(model).values()) == {"fresh"}, seed


@pytest.mark.parametrize("name", sorted(set(ZOO) - BARE - TRANSFORMERS))
def test_untouched_models_are_fresh(name):
    for seed in range(5):
        model, _ = ZOO[name](seed)
        assert set(provenance(model).values()) == {"fresh"}, seed


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_models_that_initialize_themselves_are_custom_not_trained(name):
    for seed in range(5):
        model, _ = ZOO[name](seed)
        found = provenance(model)
        assert "pretrained" not in found.values(), seed
        assert {v for k, v in found.items() if "bias" in k and "Norm" in k} <= {"fresh"}
        table = next(k for k in found if "wte" in k or "word_embeddings" in k)
        assert found[table] == "custom"


def test_a_head_tied_to_a_table_is_fresh_whichever_values_it_has():
    for first in ("table", "head"):
        table, head = nn.Embedding(60, 16), nn.Linear(16, 60, bias=False)
        shared = table.weight if first == "table" else head.weight
        table.weight = head.weight = shared
        assert set(provenance(nn.ModuleList([table, head])).values()) == {"fresh"}


CUSTOM = {
    "kaiming": nn.init.kaiming_normal_,
    "xavier": nn.init.xavier_uniform_,
    "orthogonal": nn.init.orthogonal_,
    "narrow": lambda w: nn.init.normal_(w, std=0.02),
    "truncated": lambda w: nn.init.trunc_normal_(w, std=0.02),
    "2 % wider": lambda w: nn.init.uniform_(w, -1.02 * 64**-0.5, 1.02 * 64**-0.5),
    "half": lambda w: w.data.mul_(0.5),
    "zero": nn.init.zeros_,
    "constant": lambda w: nn.init.constant_(w, 0.1),
    "one entry": lambda w: w.data.view(-1)[:1].fill_(0.13),
    "shifted": lambda w: w.data.sub_(0.05).clamp_(-(64**-0.5), 64**-0.5),
}


@pytest.mark.parametrize("name", CUSTOM)
@pytest.mark.parametrize("seed", range(4))
def test_a_users_own_init_is_custom(name, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 4))
        CUSTOM[name](model[0].weight)
    found = provenance(model)
    assert found.pop("0.weight") == "custom"
    assert set(found.values()) == {"fresh"}


def test_custom_biases_norms_and_tables():
    model = nn.ModuleDict(
        {"head": nn.Linear(8, 4), "norm": nn.LayerNorm(8), "table": nn.Embedding(30, 8)}
    )
    nn.init.constant_(model["head"].bias, -2.0)
    nn.init.zeros_(model["norm"].weight)
    nn.init.normal_(model["table"].weight, std=0.02)
    found = provenance(model)
    assert [k for k, v in found.items() if v == "custom"] == [
        "head.bias",
        "norm.weight",
        "table.weight",
    ]


def test_custom_weights_are_kept_by_auto_and_written_by_name():
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 4))
    nn.init.normal_(model[0].weight, std=0.3)
    plan = make_plan(model, "auto")
    assert plan["0.weight"].reason.startswith("customized by the model")
    assert [entry.written for entry in plan] == [False, True, True, True]
    assert all(entry.written for entry in make_plan(model, "auto", scope="all"))
    assert all(entry.written for entry in make_plan(model, "kaiming_normal"))


def test_loaders_flag_is_believed():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    model[0].weight._is_hf_initialized = True
    assert analyze(model)["0.weight"].provenance == "pretrained"
    assert analyze(model)["1.weight"].provenance == "fresh"
    assert make_plan(model, "xavier_normal")["0.weight"].reason.startswith("trained or loaded")
    assert make_plan(model, "xavier_normal")["1.weight"].std > 0


def test_batch_norm_counts_training():
    model, forward = ZOO["residual_cnn"]()
    forward()
    exact = analyze(model)
    assert exact["blocks.0.bn1.weight"].provenance == "pretrained"
    assert exact["blocks.0.conv1.weight"].provenance == "fresh", "analyze uses exact markers only"


def test_our_own_draw_is_fresh_until_somebody_writes_it():
    model, _ = ZOO["relu_mlp"]()
    initialize_(model, "orthogonal", seed=0)
    assert set(provenance(model).values()) == {"fresh"}
    nn.init.normal_(model[0].weight)
    assert provenance(model)["0.weight"] == "custom"
    assert provenance(model)["3.weight"] == "fresh"


def test_the_record_is_not_in_the_state_dict_and_says_when_training_was_seen():
    model, _ = ZOO["relu_mlp"]()
    initialize_(model, "orthogonal", seed=0)
    assert not [key for key in model.state_dict() if "lightning_init" in key]
    record_of(model).trained = True
    assert set(provenance(model).values()) == {"pretrained"}
    assert set(provenance(copy.deepcopy(model)).values()) == {"pretrained"}
    assert set(provenance(pickle.loads(pickle.dumps(model))).values()) == {"pretrained"}


def test_a_copy_forgets_the_record_of_tensors_it_does_not_have():
    """Version counters start again in a copy, so a loaded weight could pass for our own draw."""
    model = nn.Linear(64, 48)
    initialize_(model, "orthogonal", seed=0)
    for duplicate in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        while duplicate.weight._version < model.weight._version:
            duplicate.load_state_dict({k: 3 * v for k, v in model.state_dict().items()})
        assert provenance(duplicate)["weight"] != "fresh"


def train(model, steps, optimizer, lr):
    """A few classes that depend on a low-dimensional part of the input."""
    generator = torch.Generator().manual_seed(0)
    steps_of = optimizer(model.parameters(), lr=lr)
    teacher = torch.randn(32, 4, generator=generator)
    for _ in range(steps):
        x = torch.randn(64, 32, generator=generator)
        steps_of.zero_grad()
        F.cross_entropy(model(x), (x @ teacher).argmax(1)).backward()
        steps_of.step()
    return model


def net(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)
        )


def trained(model):
    found = provenance(model)
    return {found[name] for name in ("0.weight", "2.weight", "4.weight")}


@pytest.mark.parametrize(
    ("optimizer", "lr"),
    [(torch.optim.SGD, 0.1), (torch.optim.Adam, 1e-3), (torch.optim.AdamW, 1e-3)],
)
@pytest.mark.parametrize("ours", [False, True])
def test_a_model_that_took_a_few_steps_is_trained(optimizer, lr, ours):
    for seed in range(3):
        model = net(seed)
        if ours:
            initialize_(model, "kaiming_normal", seed=seed)
        train(model, 8, optimizer, lr)
        assert trained(model) == {"pretrained"}, seed
        plan = make_plan(model, "orthogonal")
        assert not any(entry.written for entry in plan if entry.info.role == "weight")


@pytest.mark.parametrize(("optimizer", "lr"), [(torch.optim.SGD, 0.1), (torch.optim.Adam, 3e-3)])
def test_a_trained_model_is_recognized_after_copies_and_loading(optimizer, lr):
    for seed in range(3):
        model = train(net(seed), 200, optimizer, lr)
        loaded = net(seed + 100)
        loaded.load_state_dict(model.state_dict())
        for other in (copy.deepcopy(model), loaded, pickle.loads(pickle.dumps(model))):
            assert trained(other) == {"pretrained"}, seed


def test_frozen_statistics_do_not_hide_a_trained_batch_norm_net():
    model, forward = ZOO["residual_cnn"]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(6):
        optimizer.zero_grad()
        forward().square().mean().backward()
        optimizer.step()
    assert set(provenance(model).values()) == {"pretrained"}


def test_a_trained_table_in_a_recurrent_model():
    model, _ = ZOO["lstm"]()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(6):
        optimizer.zero_grad()
        F.cross_entropy(model(ids(8, 7)), torch.zeros(8, dtype=torch.long)).backward()
        optimizer.step()
    assert set(provenance(model).values()) == {"pretrained"}


def test_examining_writes_nothing():
    model, _ = ZOO["nanogpt"]()
    before = [(p.clone(), p._version) for _, p in named_tensors(model)]
    examine(model, analyze(model).params)
    for (values, version), (_, parameter) in zip(before, named_tensors(model), strict=True):
        assert torch.equal(values, parameter)
        assert version == parameter._version
