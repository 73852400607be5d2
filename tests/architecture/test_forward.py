"""Forward passes of every kind are observed; those that fail say where, and change nothing."""

import copy
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_init import analyze, make_plan
from lightning_init.architecture.trace import ForwardError
from tests.zoo import noise


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return x + self.b(self.a(x).relu())


class Net(nn.Module):
    def __init__(self, run=lambda block, x: block(x)):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head, self.run = nn.Linear(8, 2), run

    def forward(self, x):
        for block in self.blocks:
            x = self.run(block, x)
        return self.head(x)


def facts(model, forward):
    return [
        (i.usage.nonlinearity, i.usage.branch, i.usage.is_output, i.usage.depth, i.usage.calls)
        for i in analyze(model, forward)
    ]


EXPECTED = facts(plain_net := Net(), lambda: plain_net(noise(4, 8)))


def test_what_is_expected():
    weights = EXPECTED[::2]
    assert weights == [
        ("relu", -1, False, 1, 1),
        ("linear", 0, False, 2, 1),
        ("relu", -1, False, 3, 1),
        ("linear", 1, False, 4, 1),
        ("linear", -1, True, 5, 1),
    ]


class Swish(torch.autograd.Function):
    """A function of the user's own, whose inside is no call of PyTorch's overridable ones."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad


@pytest.mark.parametrize(
    "run",
    [
        lambda block, x: checkpoint(block, x, use_reentrant=False),
        lambda block, x: checkpoint(block, x.requires_grad_(), use_reentrant=True),
        lambda block, x: torch.func.functional_call(block, dict(block.named_parameters()), (x,)),
        lambda block, x: Swish.apply(block(x)),
        lambda block, x: F.linear(x, block.b.weight[:0].new_zeros(8, 8)) * 0 + block(x),
    ],
    ids=["checkpoint", "reentrant checkpoint", "functional_call", "autograd.Function", "extra"],
)
def test_ways_to_call_a_block(run):
    model = Net(run)
    assert facts(model, lambda: model(noise(4, 8))) == EXPECTED


@dataclass
class Batch:
    x: torch.Tensor


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m(noise(4, 8)),
        lambda m: {"loss": (m(Batch(noise(4, 8)).x), None)},
        lambda m: m(noise(4, 8)).argmax(-1).tolist(),  # nothing that can be differentiated
        lambda m: m(noise(4, 8)).shape[:0] or None,
    ],
    ids=["tensor", "dataclass and dict", "integers", "nothing"],
)
@pytest.mark.parametrize("mode", ["train", "eval", "no_grad", "inference", "autocast"])
def test_results_and_modes(call, mode):
    model = Net().train(mode == "train")

    def forward():
        if mode == "autocast":
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return call(model)
        with (
            torch.inference_mode()
            if mode == "inference"
            else torch.set_grad_enabled(mode != "no_grad")
        ):
            return call(model)

    assert facts(model, forward) == EXPECTED
    assert model.training == (mode == "train")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["torch.compile", "in place", "after a run"])
def test_compiled_models_show_their_python_code(how):
    model = Net()
    if how == "in place":
        model.compile(backend="eager")
    called = model if how == "in place" else torch.compile(model, backend="eager")
    if how == "after a run":
        called(noise(4, 8))
    assert facts(called, lambda: called(noise(4, 8))) == EXPECTED


def test_on_meta():
    model, x = Net().to("meta"), noise(4, 8).to("meta")
    assert facts(model, lambda: model(x)) == EXPECTED


def unchanged(model, attempt):
    """Whether an attempt fails as it should and leaves the model as it was."""
    before = copy.deepcopy(model.state_dict())
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    fastpath, rng = torch.backends.mha.get_fastpath_enabled(), torch.get_rng_state()
    with pytest.raises(ForwardError) as error:
        attempt()
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    assert torch.backends.mha.get_fastpath_enabled() == fastpath
    assert torch.equal(torch.get_rng_state(), rng)
    assert not torch.nn.modules.module._global_forward_pre_hooks
    assert not torch.nn.modules.module._global_forward_hooks
    return str(error.value)


def test_a_batch_that_does_not_fit():
    model = Net()
    said = unchanged(model, lambda: make_plan(model, "auto", forward=lambda: model(noise(4, 9))))
    assert "the forward pass failed in blocks.0.a (Linear), at linear: RuntimeError: mat1" in said
    assert "forward=lambda: model(batch)" in said


def test_an_error_of_python():
    model = Net(lambda block, x: block(x["pixels"]))
    said = unchanged(model, lambda: analyze(model, lambda: model({"image": noise(4, 8)})))
    assert "failed in the model (Net): KeyError: 'pixels'" in said


def test_an_error_before_the_model():
    model = Net()
    said = unchanged(model, lambda: analyze(model, lambda: {}["batch"]))
    assert "the forward pass failed: KeyError: 'batch'" in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a device that is not there")
def test_a_device_that_is_not_there():
    model = Net(lambda block, x: block(x.to("cuda")))
    said = unchanged(model, lambda: analyze(model, lambda: model(noise(4, 8))))
    assert "failed in the model (Net), at to:" in said


def test_shapes_that_depend_on_data():
    model = Net(lambda block, x: block(x[x.sum(1) > 0])).to("meta")
    x = noise(4, 8).to("meta")
    with pytest.raises(ForwardError, match=r"in the model \(Net\), at getitem"):
        analyze(model, lambda: model(x))
    real = Net(lambda block, x: block(x[x.sum(1) > 0]))
    assert [fact[:1] for fact in facts(real, lambda: real(noise(64, 8)))] == [
        fact[:1] for fact in EXPECTED
    ]


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_script_does_not_show_its_calls():
    model = torch.jit.trace(Block(), noise(4, 8), check_trace=False)
    with pytest.raises(ForwardError, match="before it is scripted"):
        analyze(model, lambda: model(noise(4, 8)))


def test_errors_that_the_model_catches_are_its_own():
    def run(block, x):
        try:
            return block(x @ noise(3, 3))
        except RuntimeError:
            return block(x)

    model = Net(run)
    assert facts(model, lambda: model(noise(4, 8))) == EXPECTED
