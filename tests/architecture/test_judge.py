"""Verdicts on whole models of known origin, without any marker."""

import copy

import pytest
import torch
from torch import nn

from benchmarks.provenance_models import Case, huggingface, patterns
from benchmarks.provenance_trained import HEADS, LIGHT, mlp, on_digits, unmarked
from lightning_init import analyze, make_plan
from lightning_init.architecture.judge import DOUBT, MARKED, SHOWN, judge
from tests.zoo import noise


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def verdicts(model):
    return {names[0]: found for names, found in judge(model, analyze(model).params).items()}


def provenance(model):
    return {name: verdict.provenance for name, verdict in verdicts(model).items()}


def trained(build, kind=torch.optim.AdamW, rate=1e-3, steps=300):
    *_, (_, model) = on_digits(build(), kind, rate, (steps,))
    return unmarked(build(), model.state_dict())


# Without biases, norms and sharp edges nothing tells of less; an LSTM's first steps are tiny.
LONG = {"mlp without biases, kaiming": 1000, "lstm as built": 30}


@pytest.mark.parametrize("name", LIGHT)
@pytest.mark.parametrize(("kind", "rate"), [(torch.optim.SGD, 0.1), (torch.optim.AdamW, 1e-3)])
def test_nets_that_took_a_few_steps(name, kind, rate):
    for seed in range(2):
        torch.manual_seed(seed)
        steps = LONG.get(name, 10)
        found = provenance(trained(LIGHT[name], kind, rate, steps))
        assert set(found.values()) == {"pretrained"}, seed
        assert "pretrained" not in provenance(LIGHT[name]()).values()


def test_models_of_transformers_are_not_taken_for_trained():
    pytest.importorskip("transformers")
    seen = 0
    for case in huggingface([0]):
        assert "pretrained" not in provenance(case.model).values(), type(case.model)
        seen += 1
    assert seen >= 11


def test_one_odd_tensor_is_custom():
    for case in patterns([0]):
        found = provenance(case.model)
        assert found.pop("set.weight") == "custom"
        found.pop("set.bias", None)  # zero: custom beside a default weight
        assert set(found.values()) == {"fresh"}


KEPT = {  # nothing shows that these are new
    "table as built": {"new.weight"},
    "kaiming, biases as built": {"new.weight", "new.bias"},
    "N(0, .02), no bias": {"new.weight"},
}


@pytest.mark.parametrize("name", HEADS)
def test_new_layers_beside_loaded_ones(name):
    for seed in range(3):
        torch.manual_seed(seed)
        model = nn.ModuleDict({"encoder": trained(mlp), "new": HEADS[name](128)})
        found = verdicts(model)
        assert {v[0] for k, v in found.items() if k.startswith("encoder")} == {"pretrained"}
        assert found["encoder.0.weight"] == found["encoder.2.weight"] == ("pretrained", SHOWN)
        kept = {k: v for k, v in found.items() if k.startswith("new") and v[0] == "pretrained"}
        assert kept == dict.fromkeys(KEPT.get(name, ()), ("pretrained", DOUBT))


def test_a_head_with_two_outputs():
    """Its biases are too few for statistics, but still zero."""
    model = nn.ModuleDict({"encoder": trained(mlp), "new": nn.Linear(128, 2)})
    nn.init.normal_(model["new"].weight, std=0.02)
    nn.init.zeros_(model["new"].bias)
    assert provenance(model)["new.weight"] == "custom"
    with torch.no_grad():
        model["new"].bias.copy_(torch.tensor([0.01, -0.01]))
    assert verdicts(model)["new.weight"] == ("pretrained", DOUBT)


def test_an_unknown_spread_beside_trained_weights_is_left_alone():
    """As MiniLM's pooler: Gaussian still, zero bias, but a std that no scheme has."""
    model = nn.ModuleDict({"encoder": trained(mlp), "pooler": nn.Linear(384, 384)})
    nn.init.zeros_(model["pooler"].bias)
    nn.init.normal_(model["pooler"].weight, std=0.0091)
    assert verdicts(model)["pooler.weight"] == ("pretrained", DOUBT)
    nn.init.normal_(model["pooler"].weight, std=0.01)
    assert verdicts(model)["pooler.weight"] == ("custom", "")


def test_loaded_word_vectors_do_not_make_the_rest_trained():
    """Where biases vouch for it; doubt stays on the side of keeping."""
    model = nn.ModuleDict({"words": nn.Embedding(300, 64), "body": mlp()})
    vectors = noise(300, 4) @ noise(4, 64) + 0.5 * torch.randn(300, 64)
    model["words"].weight.data.copy_(vectors)
    for layer in (model["body"][0], model["body"][2], model["body"][4]):
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    found = provenance(model)
    assert found.pop("words.weight") == "pretrained"
    assert set(found.values()) == {"custom"}


def test_a_frozen_table_of_filters_makes_nothing_trained():
    model = nn.ModuleDict({"body": nn.Linear(64, 32)})
    nn.init.kaiming_normal_(model["body"].weight)
    model.filters = nn.Parameter(torch.linspace(0, 9, 4096).view(64, 64).sin(), requires_grad=False)
    assert verdicts(model)["body.weight"] == ("custom", "")
    model.filters.requires_grad_(True)
    assert verdicts(model)["body.weight"] == ("pretrained", DOUBT)


def test_a_norm_nearby_vouches_for_a_layer_without_bias():
    """As in Llama's blocks."""
    block = nn.ModuleDict({"project": nn.Linear(64, 64, bias=False), "norm": nn.RMSNorm(64)})
    nn.init.normal_(block["project"].weight, std=0.02)
    model = nn.ModuleDict({"encoder": trained(mlp), "block": nn.ModuleDict({"inner": block})})
    assert verdicts(model)["block.inner.project.weight"] == ("custom", "")
    block["norm"].weight.data.mul_(torch.linspace(0.99, 1.01, 64))
    assert provenance(model)["block.inner.project.weight"] == "pretrained"


def test_one_output():
    model = nn.ModuleDict({"encoder": trained(mlp), "new": nn.Linear(128, 1)})
    nn.init.xavier_normal_(model["new"].weight)
    for value, expected in ((0.0, "custom"), (0.003, "pretrained")):
        nn.init.constant_(model["new"].bias, value)
        assert provenance(model)["new.weight"] == expected


def test_a_constant_bias_is_no_sign_of_training():
    model = nn.Linear(64, 16)
    nn.init.kaiming_normal_(model.weight)
    nn.init.constant_(model.bias, -4.6)
    assert set(provenance(model).values()) == {"custom"}


def test_norms_and_biases_that_people_draw():
    model = nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.Linear(64, 32))
    nn.init.normal_(model[0].weight, 0.0, 0.02)  # as DCGAN does
    nn.init.normal_(model[1].weight, 1.0, 0.02)
    nn.init.xavier_uniform_(model[2].weight)
    nn.init.normal_(model[2].bias, std=1e-6)  # as vision transformers do
    found = provenance(model)
    assert set(found.values()) == {"custom", "fresh"}
    assert found["1.weight"] == found["2.weight"] == "custom"
    nn.init.normal_(model[1].bias, 0.0, 0.02)  # a scale and a shift: that is what steps leave
    assert provenance(model)["1.weight"] == provenance(model)["0.weight"] == "pretrained"


def test_a_bias_at_the_classes_frequencies_is_custom():
    model = nn.Linear(64, 10)
    model.bias.data.copy_(torch.arange(1.0, 11.0).log() - 4)
    assert provenance(model) == {"weight": "fresh", "bias": "custom"}


def test_a_layer_whose_bias_has_moved_is_trained():
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32))
    for layer in (model[0], model[2]):
        nn.init.kaiming_normal_(layer.weight)
        nn.init.zeros_(layer.bias)
    assert set(provenance(model).values()) == {"custom"}
    model[0].bias.data.copy_(0.001 * noise(32))
    found = verdicts(model)
    assert found["0.weight"] == found["0.bias"] == ("pretrained", SHOWN)
    assert found["2.weight"] == found["2.bias"] == ("custom", ""), "its bias is zero still"


def test_an_embedding_that_moved_little_is_kept_with_its_model():
    model = nn.ModuleDict({"table": nn.Embedding(200, 32), "body": trained(mlp)})
    model["table"].weight.data.add_(0.02 * noise(200, 32))
    assert verdicts(model)["table.weight"] == ("pretrained", DOUBT)


def test_many_writes_by_a_scheme_are_no_steps():
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    for _ in range(6):
        nn.init.trunc_normal_(model[0].weight, std=0.02)
    nn.init.zeros_(model[0].bias)
    assert model[0].weight._version > 4
    assert "pretrained" not in provenance(model).values()
    with torch.no_grad():
        for _ in range(4):  # as an optimizer: the bias, too
            model[0].bias.add_(0.0)
    found = verdicts(model)
    assert found["0.weight"] == ("pretrained", SHOWN)
    assert found["2.weight"].provenance == "fresh"


class Tokens(nn.Module):
    """Learned tokens and positions: no bias that could tell of steps."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 64))
        self.positions = nn.Parameter(torch.zeros(1, 17, 64))


@pytest.mark.parametrize(("draws", "found"), [(2, "custom"), (3, "pretrained")])
def test_a_truncated_normal_in_five_writes_is_no_training(draws, found):
    model = Tokens()
    with torch.no_grad():
        for parameter in model.parameters():
            for _ in range(draws):  # as PyTorch up to 2.11 does it
                parameter.uniform_(-0.95, 0.95).erfinv_().mul_(0.02).add_(0.0).clamp_(-2, 2)
    assert set(provenance(model).values()) == {found}


def test_frozen_tensors_are_not_stepped_on():
    model = nn.Linear(64, 64)
    for _ in range(6):
        nn.init.trunc_normal_(model.weight, std=0.02)
        nn.init.zeros_(model.bias)
    assert provenance(model)["weight"] == "pretrained"
    assert provenance(model.requires_grad_(False))["weight"] == "custom"


@pytest.fixture
def classifier(tmp_path):
    """A head without a bias that the checkpoint lacks, beside an encoder that was loaded."""
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    size = {"n_embd": 64, "n_layer": 1, "n_head": 2, "vocab_size": 99, "n_positions": 16}
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    encoder = transformers.GPT2Model(transformers.GPT2Config(**size, **ends))
    for name, parameter in encoder.named_parameters():
        if "bias" in name:
            nn.init.normal_(parameter, std=0.03)
    encoder.save_pretrained(tmp_path)
    return transformers.GPT2ForSequenceClassification.from_pretrained(tmp_path)


def test_a_loader_says_what_the_checkpoint_lacked(classifier):
    found = verdicts(nn.ModuleDict({"model": classifier}))
    assert found.pop("model.score.weight") == ("custom", "")
    assert set(found.values()) == {("pretrained", MARKED)}
    plan = make_plan(classifier, "kaiming_normal")
    assert [e.info.name for e in plan if e.written] == ["score.weight"]
    assert plan["transformer.wte.weight"].reason == "trained or loaded: marked so"


def test_what_is_loaded_after_the_loader_is_not_new(classifier):
    classifier.load_state_dict(copy.deepcopy(classifier.state_dict()))
    assert verdicts(classifier)["score.weight"] == ("pretrained", DOUBT)


def test_layers_outside_of_a_loaders_model_are_not_called_missing(classifier):
    model = nn.ModuleDict({"model": classifier, "head": nn.Linear(64, 5, bias=False)})
    nn.init.normal_(model["head"].weight, std=0.02)
    assert verdicts(model)["head.weight"] == ("pretrained", DOUBT)


def test_the_names_of_what_is_trained_are_beginnings():
    assert "encoder.0.weight".startswith(Case("", nn.Identity(), ("encoder",)).trained)
    assert not "new.weight".startswith(Case("", nn.Identity()).trained)
