"""Writing weights: in place, each from its own seed, all or nothing."""

import copy

import pytest
import torch
from torch import nn

from lightning_init import InitSpec, apply_, initialize_, make_plan
from lightning_init.architecture.names import named_tensors
from lightning_init.strategies.apply import fingerprint
from lightning_init.strategies.distributions import Normal, Uniform
from lightning_init.strategies.initializers import keep
from lightning_init.strategies.matrices import Orthogonal
from tests.zoo import ZOO, ids


def values(model):
    return {names[0]: tensor.detach().clone() for names, tensor in named_tensors(model)}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("name", ["relu_mlp", "residual_cnn", "nanogpt", "lstm"])
def test_tensors_are_written_in_place(name):
    model, _ = ZOO[name]()
    before = {n: (id(p), p.data_ptr(), p.dtype) for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    initialize_(model, "orthogonal", seed=0)
    assert before == {n: (id(p), p.data_ptr(), p.dtype) for n, p in model.named_parameters()}
    assert all(p.requires_grad and p.is_leaf for p in model.parameters())
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}


def test_what_is_written_is_the_distributions_draw():
    model, _ = ZOO["relu_mlp"]()
    plan = initialize_(model, "kaiming_normal", seed=5)
    tensor = model[0].weight
    assert float(tensor.detach().std()) == pytest.approx(plan["0.weight"].std, rel=0.15)
    big = nn.Linear(600, 900)
    plan = initialize_(big, "kaiming_normal", seed=5)
    slack = 5 / (2 * big.weight.numel()) ** 0.5
    assert float(big.weight.detach().std()) == pytest.approx(plan["weight"].std, rel=slack)
    assert bool((big.bias == 0).all())


def test_the_same_seed_gives_the_same_weights_and_another_gives_others():
    one, two, three = (ZOO["nanogpt"](k)[0] for k in range(3))
    for model, seed in ((one, 7), (two, 7), (three, 8)):
        initialize_(model, "normal", seed=seed)
    assert same(values(one), values(two))
    differing = [k for k, v in values(one).items() if not torch.equal(v, values(three)[k])]
    assert set(differing) == {k for k, v in values(one).items() if v.std() > 0}
    assert fingerprint(one) == fingerprint(two) != fingerprint(three)


def test_layers_of_equal_shape_get_different_draws():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    initialize_(model, "normal", seed=0)
    assert not torch.equal(model[0].weight, model[1].weight)


class Named(nn.Module):
    def __init__(self, *names):
        super().__init__()
        for name in names:
            self.add_module(name, nn.Linear(16, 16))


@pytest.mark.parametrize("strategy", ["normal", "orthogonal", "truncated_normal", "xavier_uniform"])
def test_order_and_neighbours_do_not_matter(strategy):
    """Adding, removing or reordering layers moves no other tensor."""
    models = [
        Named("a", "b", "c"),
        Named("c", "b", "a"),
        Named("b"),
        Named("x", "b", "y", "a", "c"),
    ]
    for model in models:
        initialize_(model, strategy, seed=3)
    reference = values(models[0])
    for model in models[1:]:
        found = values(model)
        shared = reference.keys() & found.keys()
        assert shared
        assert all(torch.equal(reference[key], found[key]) for key in shared)


@pytest.mark.parametrize("strategy", ["normal", "orthogonal", "truncated_normal", "xavier_uniform"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_precision_does_not_change_the_draw(strategy, dtype):
    single = nn.Linear(40, 30)
    other = nn.Linear(40, 30, dtype=dtype)
    initialize_(single, strategy, seed=1)
    initialize_(other, strategy, seed=1)
    assert other.weight.dtype == dtype
    assert torch.equal(other.weight, single.weight.to(dtype))


@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, lambda m: torch.compile(m, backend="eager"), lambda m: m],
    ids=["data parallel", "compile", "bare"],
)
def test_wrappers_do_not_change_the_draw(wrap):
    plain, wrapped = nn.Sequential(nn.Linear(8, 8)), nn.Sequential(nn.Linear(8, 8))
    initialize_(plain, "normal", seed=0)
    initialize_(wrap(wrapped), "normal", seed=0)
    assert torch.equal(plain[0].weight, wrapped[0].weight)


def test_the_global_random_state_is_neither_read_nor_moved():
    model, forward = ZOO["nanogpt"]()
    found = []
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            initialize_(model, "lsuv", seed=0, forward=forward)
            assert torch.equal(before, torch.get_rng_state())
            found.append(values(model))
    assert same(*found)


def test_a_tied_tensor_is_written_once():
    model, _ = ZOO["nanogpt"]()
    version = model.wte.weight._version
    plan = initialize_(model, "orthogonal", seed=0)
    assert model.wte.weight is model.head.weight
    assert model.wte.weight._version == version + 1
    assert plan["head.weight"] is plan["wte.weight"]
    assert plan["head.weight"] == Normal(0.25)


def test_a_tied_tensors_draw_does_not_depend_on_which_name_comes_first():
    def tied(*order):
        layers = {"wte": nn.Embedding(20, 8), "head": nn.Linear(8, 20, bias=False)}
        layers["head"].weight = layers["wte"].weight
        return nn.ModuleDict({key: layers[key] for key in order})

    one, two = tied("wte", "head"), tied("head", "wte")
    for model in (one, two):
        initialize_(model, "normal", seed=0)
    assert torch.equal(one["wte"].weight, two["wte"].weight)


def test_frozen_tensors_stay_unless_named():
    model, _ = ZOO["relu_mlp"]()
    model[0].requires_grad_(False)
    before = values(model)
    plan = initialize_(model, "normal", seed=0)
    assert torch.equal(before["0.weight"], model[0].weight)
    assert plan["0.weight"].reason.startswith("frozen")
    assert not torch.equal(before["3.weight"], model[3].weight)
    initialize_(model, "normal", seed=0, scope="0.*")
    assert not torch.equal(before["0.weight"], model[0].weight)
    assert not model[0].weight.requires_grad


@pytest.mark.parametrize("strategy", ["normal", "uniform", "truncated_normal", "constant", "bert"])
def test_padding_rows_are_zero(strategy):
    model, _ = ZOO["padded"]()
    with torch.no_grad():
        model.table.weight.fill_(9)
    params = {"value": 1.0} if strategy == "constant" else {}
    initialize_(model, InitSpec(strategy, params), seed=0)
    assert bool((model.table.weight[3] == 0).all())
    assert bool((model.bag.weight[0] == 0).all())
    assert int((model.table.weight.abs().sum(1) == 0).sum()) == 1


def test_a_padding_row_counted_from_the_end():
    model = nn.Embedding(10, 4, padding_idx=-2)
    initialize_(model, "normal", seed=0)
    assert (model.weight.abs().sum(1) == 0).nonzero().tolist() == [[8]]


def foreign(model):
    return {
        "another model": make_plan(ZOO["tanh_mlp"]()[0], "normal"),
        "another shape": make_plan(nn.Sequential(nn.Linear(3, 3)), "normal"),
        "one layer more": make_plan(
            nn.Sequential(*copy.deepcopy(model), nn.Linear(5, 5)), "normal"
        ),
    }


@pytest.mark.parametrize("which", ["another model", "another shape", "one layer more"])
def test_a_foreign_plan_is_refused_before_anything_changes(which):
    model, _ = ZOO["relu_mlp"]()
    before = values(model)
    with pytest.raises(ValueError, match=r"does not fit this model.*call make_plan\(model"):
        apply_(model, foreign(model)[which], seed=0)
    assert same(before, values(model))


def test_a_plan_with_a_wrong_orthogonal_shape_is_refused_before_anything_changes():
    model, _ = ZOO["relu_mlp"]()
    rule = lambda i: Orthogonal((2, 2)) if i.name == "5.weight" else Normal(1.0)  # noqa: E731
    before = values(model)
    with pytest.raises(ValueError, match=r"5.weight has shape \(5, 24\).*is for \(2, 2\)"):
        initialize_(model, rule, seed=0)
    assert same(before, values(model))


def test_applying_a_plan_that_calibrates_warns():
    model, forward = ZOO["relu_mlp"]()
    plan = make_plan(model, "lsuv", forward=forward)
    with pytest.warns(UserWarning, match=r"only drawn.*calibrate_\(model, plan, forward\) next"):
        apply_(model, plan, seed=0)


def test_a_strategy_that_needs_a_batch_says_so_before_it_writes():
    model, _ = ZOO["relu_mlp"]()
    before = values(model)
    with pytest.raises(ValueError, match=r"calibrates on data: pass forward=lambda"):
        initialize_(model, "lsuv", seed=0)
    assert same(before, values(model))


def test_the_seed_of_a_spec_counts_unless_one_is_given():
    models = [nn.Linear(8, 8) for _ in range(3)]
    initialize_(models[0], InitSpec("normal", seed=4))
    initialize_(models[1], "normal", seed=4)
    initialize_(models[2], InitSpec("normal", seed=4), seed=5)
    assert torch.equal(models[0].weight, models[1].weight)
    assert not torch.equal(models[0].weight, models[2].weight)


def test_draws_are_stable_across_releases():
    """The bits are part of the contract: a saved seed must give the same weights later."""
    model = nn.Linear(3, 2)
    initialize_(model, lambda i: Uniform(0.0, 1.0), seed=0)
    generator = torch.Generator().manual_seed(_key("0|weight"))
    assert torch.equal(model.weight, torch.rand(2, 3, generator=generator))


def _key(text):
    import hashlib

    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def test_keep_changes_nothing_at_all():
    model, _ = ZOO["bert"]()
    before, versions = values(model), [p._version for p in model.parameters()]
    initialize_(model, "keep", seed=0)
    initialize_(model, keep, seed=0)
    assert same(before, values(model))
    assert versions == [p._version for p in model.parameters()]


def test_buffers_and_modes_stay():
    model, forward = ZOO["residual_cnn"]()
    model.blocks.eval()
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    initialize_(model, "auto", seed=0, forward=forward)
    assert all(torch.equal(b, buffers[n]) for n, b in model.named_buffers())
    assert not model.blocks.training
    assert model.training


def test_training_goes_on_after_a_draw():
    model, _ = ZOO["lstm"]()
    initialize_(model, "auto", seed=0, forward=lambda: model(ids(4, 7)))
    model(ids(4, 7)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_frozen_copy_that_no_longer_equals_is_named():
    student = nn.Linear(8, 8)
    model = nn.ModuleDict(
        {"student": student, "teacher": copy.deepcopy(student).requires_grad_(False)}
    )
    with pytest.warns(
        UserWarning, match=r"teacher.weight is kept \(frozen\), but was a copy of stu"
    ):
        initialize_(model, "orthogonal", seed=0)
