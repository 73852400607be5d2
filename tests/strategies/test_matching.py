"""Which tensor of a file is which tensor of a model: the cases of the field, by name and shape."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from lightning_init.architecture.names import named_tensors
from lightning_init.strategies.matching import computed, match


def shapes(state):
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def targets(model):
    return [(names, tuple(tensor.shape)) for names, tensor in named_tensors(model)]


class Wrapped(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model


@pytest.fixture(scope="module")
def bert():
    transformers = pytest.importorskip("transformers")

    def config(**changes):
        small = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
        small |= {"intermediate_size": 128, "vocab_size": 500}
        return transformers.BertConfig(**(small | changes))

    return transformers, config


def test_names_of_the_field(bert):
    transformers, config = bert
    base = transformers.BertModel(config())
    state, classifier = base.state_dict(), transformers.BertForSequenceClassification(config())
    table = [  # state, model, matched, of equal shape, prefixes
        (state, base, 55, 55, ("", "")),
        (state, classifier, 55, 55, ("", "bert.")),
        (state, Wrapped(classifier), 55, 55, ("", "model.bert.")),
        (Wrapped(base).state_dict(), base, 55, 55, ("model.", "")),
        ({f"module._orig_mod.{k}": v for k, v in state.items()}, base, 55, 55, ("module.", "")),
        (state, transformers.BertModel(config(num_hidden_layers=6)), 55, 55, ("", "")),
        (state, transformers.BertModel(config(vocab_size=700)), 55, 54, ("", "")),
        (state, transformers.BertModel(config(hidden_size=48)), 55, 3, ("", "")),
        (classifier.state_dict(), base, 55, 55, ("bert.", "")),
    ]
    for state, model, matched, same, prefixes in table:
        found = match(shapes(state), targets(model))
        assert len(found.found) == matched
        own = {name: shape for names, shape in targets(model) for name in names}
        assert sum(tuple(state[old].shape) == own[new] for new, old in found.found.items()) == same
        assert (found.source, found.target) == prefixes
        # Each pair is called the same behind its prefix.
        for new, old in found.found.items():
            old = old.replace("_orig_mod.", "")
            assert new.removeprefix(found.target) == old.removeprefix(found.source)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapters_of_peft(bert):
    peft = pytest.importorskip("peft")
    transformers, config = bert
    base = transformers.BertModel(config())
    adapted = peft.get_peft_model(
        copy.deepcopy(base), peft.LoraConfig(target_modules=["query", "value"])
    )
    assert len(match(shapes(base.state_dict()), targets(adapted)).found) == 55
    back = match(shapes(adapted.state_dict()), targets(base))
    assert len(back.found) == 55
    query = "encoder.layer.0.attention.self.query"
    assert back.found[f"{query}.weight"] == f"base_model.model.{query}.base_layer.weight"


def test_an_unrelated_model_shares_few_names(bert):
    transformers, config = bert
    small = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    vit = transformers.ViTModel(
        transformers.ViTConfig(**small, intermediate_size=128, image_size=32, patch_size=8)
    )
    found = match(shapes(vit.state_dict()), targets(transformers.BertModel(config())))
    assert len(found.found) < 6


def test_layers_keep_their_numbers_where_shapes_are_equal():
    net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(5)))
    found = match(shapes(net.state_dict()), targets(net)).found
    assert all(new == old for new, old in found.items())
    shorter = match(shapes(net[:3].state_dict()), targets(net)).found
    assert sorted(shorter) == sorted(f"{i}.{k}" for i in range(3) for k in ("weight", "bias"))


def test_a_tied_tensor_is_found_under_either_name():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
            self.head.weight = self.table.weight

    for name in ("table.weight", "head.weight"):
        assert match({name: (10, 4)}, targets(Tied())).found == {"table.weight": name}


def test_old_names_of_layer_norm():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    donor = {"0.weight": (4, 4), "0.bias": (4,), "1.gamma": (4,), "1.beta": (4,)}
    found = match(donor, targets(model)).found
    assert (found["1.weight"], found["1.bias"]) == ("1.gamma", "1.beta")


def test_rename():
    model = nn.ModuleDict({"encoder": nn.Linear(4, 4), "fc": nn.Linear(4, 2)})
    donor = {"backbone.weight": (4, 4), "backbone.bias": (4,), "fc.weight": (2, 4)}
    assert len(match(donor, targets(model)).found) == 2
    found = match(donor, targets(model), "backbone=encoder").found
    assert found["encoder.weight"] == "backbone.weight"
    assert found["fc.weight"] == "fc.weight"
    inner = match({"a.blocks.0.w": (2,)}, [(("a.layers.0.w",), (2,))], "blocks = layers").found
    assert inner == {"a.layers.0.w": "a.blocks.0.w"}
    gone = match({"a.net.0.w": (2,), "b": (1,)}, [(("a.0.w",), (2,)), (("b",), (1,))], "net=")
    assert gone.found["a.0.w"] == "a.net.0.w"


@pytest.mark.parametrize(
    ("rename", "says"),
    [("backbon=encoder", "closest are backbone"), ("backbone", "must be pairs old=new")],
)
def test_a_rename_that_cannot_be_meant(rename, says):
    with pytest.raises(ValueError, match=says):
        match({"backbone.weight": (4, 4)}, [(("encoder.weight",), (4, 4))], rename)


def normed(layer):
    return parametrizations.weight_norm(layer)


def normed_before(layer):
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(layer)


def spectral(layer):
    layer = parametrizations.spectral_norm(layer, n_power_iterations=30)
    layer(torch.randn(2, 6))
    return layer.eval()


def spectral_before(layer):
    layer = nn.utils.spectral_norm(layer)
    for _ in range(30):
        layer(torch.randn(2, 6))
    return layer.eval()


def pruned(layer):
    return prune.l1_unstructured(layer, "weight", 0.5)


@pytest.mark.parametrize("wrap", [normed, normed_before, spectral, spectral_before, pruned])
def test_computed_weights_are_computed_from_the_file(wrap):
    torch.manual_seed(0)
    layer = wrap(nn.Linear(6, 5))
    layer(torch.randn(2, 6))
    found = computed(layer.state_dict())
    assert sorted(found) == ["bias", "weight"]
    assert torch.allclose(found["weight"], layer.weight, atol=1e-6)


def test_weight_norm_along_another_dimension():
    for dim in (0, 1):
        layer = parametrizations.weight_norm(nn.Conv1d(3, 4, 2), dim=dim)
        assert torch.allclose(computed(layer.state_dict())["weight"], layer.weight, atol=1e-6)
