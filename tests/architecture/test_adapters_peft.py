"""Models adapted by peft: what is found, and what an initialization leaves as it is."""

import copy
import warnings

import pytest
import torch
from torch import nn

from lightning_init import analyze, initialize_, make_plan
from lightning_init.architecture.adapters import adapter_tensors
from tests.architecture.test_adapters import DOWN, UP, fans, roles


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.fc = nn.Embedding(20, 64), nn.Linear(64, 24)
        self.conv, self.head = nn.Conv1d(24, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, tokens):
        hidden = self.fc(self.table(tokens)).relu()
        return self.head(self.conv(hidden.transpose(1, 2)).mean(2))


def adapted(config, net=Net, **arguments):
    peft = pytest.importorskip("peft")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        return peft.get_peft_model(net(), getattr(peft, config)(**arguments))


def shortened(found):
    return {name.replace("base_model.model.", ""): role for name, role in found.items()}


def test_lora_of_peft():
    model = adapted("LoraConfig", r=4, target_modules=["table", "fc", "conv"])
    assert shortened(roles(model)) == {
        "table.lora_embedding_A.default": DOWN,
        "table.lora_embedding_B.default": UP,
        "fc.lora_A.default.weight": DOWN,
        "fc.lora_B.default.weight": UP,
        "conv.lora_A.default.weight": DOWN,
        "conv.lora_B.default.weight": UP,
    }
    seen = {name.removeprefix("base_model.model."): i for i in analyze(model) for name in i.names}
    expected = {
        "table.lora_embedding_A.default": (1, 4),
        "table.lora_embedding_B.default": (4, 64),
        "fc.lora_A.default.weight": (64, 4),
        "fc.lora_B.default.weight": (4, 24),
        "conv.lora_A.default.weight": (72, 12),
        "conv.lora_B.default.weight": (4, 8),
    }
    assert {name: fans(seen[name]) for name in expected} == expected
    assert seen["fc.base_layer.weight"].role == seen["conv.base_layer.weight"].role == "weight"
    assert seen["table.base_layer.weight"].role == "embedding"
    assert {i.flags for name, i in seen.items() if "base_layer" in name} == {frozenset({"frozen"})}


def test_two_adapters_on_one_layer_are_two_pairs():
    peft = pytest.importorskip("peft")
    model = adapted("LoraConfig", r=4, target_modules=["fc"])
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["fc"]))
    found = shortened(roles(model))
    assert found["fc.lora_A.second.weight"] == DOWN
    assert found["fc.lora_B.second.weight"] == UP
    assert fans(analyze(model)["base_model.model.fc.lora_B.second.weight"]) == (2, 24)


OTHERS = {
    "DoRA": ("LoraConfig", {"use_dora": True}, {"lora_magnitude_vector.default.weight"}),
    "biased": ("LoraConfig", {"lora_bias": True}, {"lora_B.default.bias"}),
    "IA3": ("IA3Config", {"feedforward_modules": ["fc"]}, {"ia3_l.default"}),
    "AdaLoRA": (
        "AdaLoraConfig",
        {"init_r": 6, "target_r": 4, "total_step": 100},
        {"lora_E.default", "ranknum.default"},
    ),
    "LoHa": ("LoHaConfig", {}, {f"hada_w{i}_{j}.default" for i in "12" for j in "ab"}),
    "VeRA": ("VeraConfig", {"r": 4}, {"vera_lambda_b.default", "vera_lambda_d.default"}),
    "OFT": ("OFTConfig", {"oft_block_size": 4}, {"oft_R.default.weight"}),
    "norm tuning": (
        "LNTuningConfig",
        {},
        {"ln_tuning_layers.default.weight", "ln_tuning_layers.default.bias"},
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_tuners_of_peft(name):
    config, arguments, unknown = OTHERS[name]
    model = adapted(config, target_modules=["fc"], **arguments)
    found = shortened(roles(model))
    assert {k for k, role in found.items() if role is None} == {f"fc.{k}" for k in unknown}
    pairs = {role for role in found.values() if role is not None}
    assert pairs == ({DOWN, UP} if "Lora" in config else set())
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {f"base_model.model.{name}" for name in found} >= trained


def gpt2():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=1, n_embd=16, n_head=2, vocab_size=30, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def test_gpt2s_own_layer_and_prompts():
    lora = adapted("LoraConfig", gpt2, r=4, target_modules=["c_attn"], task_type="CAUSAL_LM")
    where = "base_model.model.transformer.h.0.attn.c_attn"
    assert roles(lora) == {
        f"{where}.lora_A.default.weight": DOWN,
        f"{where}.lora_B.default.weight": UP,
    }
    seen = analyze(lora)
    assert fans(seen[f"{where}.lora_A.default.weight"]) == (16, 4)
    assert fans(seen[f"{where}.lora_B.default.weight"]) == (4, 48)
    assert seen[f"{where}.base_layer.weight"].role == "weight"
    prompts = adapted("PrefixTuningConfig", gpt2, num_virtual_tokens=3, task_type="CAUSAL_LM")
    assert roles(prompts) == {"prompt_encoder.default.embedding.weight": None}


def llama():
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 32, "intermediate_size": 48, "vocab_size": 30}
    heads = {"num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**size, **heads))


def test_a_tuner_that_declares_nothing():
    model = adapted(
        "AdaptionPromptConfig", llama, adapter_len=3, adapter_layers=1, task_type="CAUSAL_LM"
    )
    assert roles(model) == {name: None for name, p in model.named_parameters() if p.requires_grad}


class Adapted(nn.Module):
    """A model inside which an adapted one is a part."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(5, 3)

    def forward(self, tokens):
        return self.head(self.encoder(tokens))


@pytest.mark.parametrize("config", ["LoraConfig", "IA3Config", "LoHaConfig"])
@pytest.mark.parametrize("strategy", ["kaiming_normal", "auto", "gpt2"])
def test_an_adapted_model_keeps_every_bit_but_its_new_head(config, strategy):
    extra = {"feedforward_modules": ["fc"]} if config == "IA3Config" else {"r": 4}
    model = Adapted(adapted(config, target_modules=["fc"], modules_to_save=["head"], **extra))
    before = copy.deepcopy(model.state_dict())
    tokens = torch.randint(0, 20, (6, 7), generator=torch.Generator().manual_seed(0))
    old = model.encoder.base_model.model.head.original_module(torch.ones(8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = initialize_(model, strategy, seed=3, forward=lambda: model(tokens))
    drawn = {entry.info.name for entry in plan if entry.written}
    saved = "encoder.base_model.model.head.modules_to_save.default"
    assert drawn == {"head.weight", "head.bias", f"{saved}.weight", f"{saved}.bias"}
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == drawn
    reasons = {entry.info.name: entry.distribution.reason for entry in plan if not entry.written}
    for name, parameter in model.named_parameters():
        if name in adapter_names(model):
            assert reasons[name] == "adapter"
        elif not parameter.requires_grad:
            assert reasons[name] == "frozen"
    assert torch.equal(model.encoder.base_model.model.head.original_module(torch.ones(8)), old)
    assert "adapter" in plan.hint()


def adapter_names(model):
    found = adapter_tensors(model)
    return {name for name, parameter in model.named_parameters() if id(parameter) in found}


def test_an_adapted_model_alone_stays_as_it_is():
    model = adapted("LoraConfig", r=4, target_modules=["fc", "table", "conv"])
    before = copy.deepcopy(model.state_dict())
    plan = initialize_(model, "kaiming_normal", seed=0)
    assert not any(entry.written for entry in plan)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_scope_writes_adapters_by_name():
    model = adapted("LoraConfig", r=4, target_modules=["fc"])
    plan = make_plan(model, "kaiming_normal", scope=["*.fc.base_layer.*"])
    assert [e.info.name for e in plan if e.written] == [
        "base_model.model.fc.base_layer.weight",
        "base_model.model.fc.base_layer.bias",
    ]
