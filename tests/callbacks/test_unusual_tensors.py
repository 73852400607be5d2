"""Weights of unusual kinds in a whole fit: padding rows, scalars, nothing at all, complex, sparse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_init import InitCallback, initialize_
from tests.callbacks import nets
from tests.callbacks.nets import Digits, Metered, mlp
from tests.callbacks.watching import first, fitted, reading

SCHEMES = ["auto", "orthogonal", "normal", "lsuv"]


def quiet(strategy: str, **given: Any) -> InitCallback:
    return InitCallback(strategy, seed=3, verbose=False, **given)


class Words(Digits):
    """Reads a digit as 64 words of a small vocabulary."""

    def __init__(self, sparse: bool = False) -> None:
        super().__init__(nn.Linear(16, 10))
        self.table = nn.Embedding(17, 16, padding_idx=3, sparse=sparse)

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        return F.cross_entropy(self.net(self.table((x * 16).long()).mean(1)), y)


@pytest.mark.case(45)
@pytest.mark.parametrize("strategy", SCHEMES)
@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_the_row_of_padding_stays_zero(strategy: str, precision: str) -> None:
    module = Words()
    with torch.no_grad():
        module.table.weight[3] = 0.5  # as a draw over the whole table leaves it
    callback, start = fitted(module, quiet(strategy, scope="all"), max_steps=3, precision=precision)
    assert callback.plan is not None
    (written,) = [entry.written for entry in callback.plan if entry.info.name == "table.weight"]
    assert written == (strategy in ("auto", "normal"))  # the others are of matrices that multiply
    if written:
        assert not start.weights["table.weight"][3].any()
        assert not module.table.weight[3].any()  # nor has it moved
    others = [row for index, row in enumerate(start.weights["table.weight"]) if index != 3]
    assert all(row.any() for row in others)


class Odd(Digits):
    """Numbers, an empty matrix and a matrix on the module itself."""

    def __init__(self) -> None:
        super().__init__(mlp())
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.temperature = nn.Parameter(torch.tensor([2.0]))
        self.nothing = nn.Parameter(torch.empty(0, 4))
        self.mixes = nn.Parameter(torch.randn(10, 10, generator=torch.Generator().manual_seed(0)))

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        out = self.net(x) * self.scale / self.temperature
        return F.cross_entropy(out @ self.mixes + self.nothing.sum(), y)


@pytest.mark.case(46, 49)
@pytest.mark.parametrize("strategy", SCHEMES)
@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_numbers_and_nothing_and_a_matrix_on_the_module_itself(
    strategy: str, precision: str
) -> None:
    module = Odd()
    callback, start = fitted(module, quiet(strategy), max_steps=3, precision=precision)
    assert start.weights["nothing"].shape == (0, 4)
    assert float(start.weights["scale"]) == 1.0
    assert float(start.weights["temperature"]) == 2.0
    made = Odd()
    if strategy != "lsuv":  # which looks at another batch
        x, y = first(1)[0]
        initialize_(made, strategy, seed=3, forward=lambda: made.loss((x, y)))
        dtype = start.weights["scale"].dtype
        cast = {key: value.to(dtype) for key, value in nets.weights(made).items()}
        assert nets.same(start.weights, cast)
    redrawn = not torch.equal(start.weights["mixes"].float(), Odd().mixes.to(module.dtype).float())
    assert redrawn == (strategy != "auto")  # what a module draws itself is its own under auto
    read = {weight.name: weight for weight in reading(callback, 2).weights}
    assert {"scale", "temperature", "mixes"} < set(read)
    assert all(read[name].grad_rms > 0 for name in ("scale", "temperature", "mixes"))
    assert callback.report is not None
    assert callback.report.blind == ()


class Waves(Digits):
    """Mixes frequencies by complex matrices."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(64, 10))
        self.mixes = nn.Linear(33, 33, dtype=torch.cfloat)
        self.filter = nn.Parameter(torch.randn(33, dtype=torch.cfloat))

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        waves = self.mixes(torch.fft.rfft(x)) * self.filter
        return F.cross_entropy(self.net(torch.fft.irfft(waves, n=64)), y)


@pytest.mark.case(47)
@pytest.mark.parametrize("clip", [None, 1e-3])
def test_complex_weights_train_as_without_the_callback(clip: float | None) -> None:
    def run(*callbacks: Any) -> Digits:
        nets.seed_all(4)
        module = Waves()
        nets.fit(module, *callbacks, max_steps=6, gradient_clip_val=clip)
        return module

    callback = quiet("keep")
    plain, module = run(), run(callback)
    assert nets.same(nets.weights(plain), nets.weights(module))
    assert callback.report is not None
    assert callback.report.blind == ()
    weights = {weight.name: weight for weight in reading(callback, 2).weights}
    assert weights["net.weight"].grad_rms > 0


@pytest.mark.case(47)
def test_a_scheme_of_real_numbers_says_so_of_complex_weights_and_leaves_them_to_a_scope() -> None:
    module = Waves()
    before = nets.weights(module)
    with pytest.raises(ValueError, match=r"mixes\.weight .* complex: this scheme draws real"):
        nets.fit(module, quiet("orthogonal"))
    assert nets.same(nets.weights(module), before)
    _, start = fitted(module, quiet("orthogonal", scope=["net.*"]))
    rows = start.weights["net.weight"]
    assert torch.allclose(rows @ rows.T, torch.eye(10), atol=1e-5)
    assert torch.equal(start.weights["mixes.weight"], before["mixes.weight"])
    assert torch.equal(start.weights["filter"], before["filter"])


class Attends(Digits):
    def __init__(self) -> None:
        super().__init__(nn.Linear(8, 10))
        self.attends = nn.MultiheadAttention(8, 2, batch_first=True)

    def loss(self, batch: Any) -> Tensor:
        x = batch[0].view(-1, 8, 8)
        return F.cross_entropy(self.net(self.attends(x, x, x)[0].mean(1)), batch[1])


@pytest.mark.case(48)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_queries_keys_and_values_are_three_matrices(precision: str) -> None:
    callback, start = fitted(Attends(), quiet("orthogonal"), max_steps=3, precision=precision)
    packed = start.weights["attends.in_proj_weight"]
    parts = packed.chunk(3)
    for part in parts:
        assert torch.allclose(part @ part.T, torch.eye(8), atol=1e-5)
    assert not torch.allclose(parts[0], parts[1])
    assert not start.weights["attends.in_proj_bias"].any()
    read = {weight.name: weight for weight in reading(callback, 2).weights}
    assert read["attends.in_proj_weight"].update > 0
    _, start = fitted(Attends(), quiet("xavier_normal"))
    std = float(start.weights["attends.in_proj_weight"].std())  # fans of 8 and 8, not of 24
    assert std == pytest.approx((2 / 16) ** 0.5, rel=0.15)


@pytest.mark.case(50)
@pytest.mark.parametrize("strategy", SCHEMES)
def test_metrics_neither_count_what_is_looked_at_nor_are_drawn(strategy: str) -> None:
    class Counts(Metered):
        samples = 0

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 0:  # of the training, or of whoever looks first
                assert self.means["loss"].weight == 0
            return super().training_step(batch, batch_idx)

    module = Counts()
    callback, _ = fitted(module, quiet(strategy), max_steps=3)
    assert module.means["loss"].weight == 3
    assert callback.plan is not None
    assert [e.info.name for e in callback.plan] == [n for n, _ in module.named_parameters()]


class Sparse(Words):
    def __init__(self, sparse: bool, optimizer: str) -> None:
        super().__init__(sparse)
        self.optimizer = optimizer
        self.automatic_optimization = optimizer != "SparseAdam"

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.automatic_optimization:
            return self.loss(batch)
        optimizers = self.optimizers()
        for each in optimizers:
            each.zero_grad()
        self.manual_backward(self.loss(batch))
        for each in optimizers:
            each.step()
        return None

    def configure_optimizers(self) -> Any:
        if self.optimizer == "SGD":
            return torch.optim.SGD(self.parameters(), lr=0.1)
        kind = torch.optim.SparseAdam if self.table.sparse else torch.optim.Adam
        return [kind(self.table.parameters()), torch.optim.Adam(self.net.parameters())]


@pytest.mark.case(51)
@pytest.mark.parametrize("optimizer", ["SGD", "SparseAdam"])
def test_a_sparse_gradient_is_read_like_the_dense_one(optimizer: str) -> None:
    """Every word of a batch is there many times: its entries must be summed, and before a norm."""

    def run(sparse: bool) -> tuple[InitCallback, Sparse]:
        nets.seed_all(1)
        module = Sparse(sparse, optimizer)
        callback, _ = fitted(module, quiet("orthogonal", scope="all"), max_steps=-1, max_epochs=1,
                             limit_train_batches=3)  # fmt: skip
        return callback, module

    (one, module), (two, dense) = run(True), run(False)
    assert module.table.weight.grad is not None
    assert module.table.weight.grad.is_sparse
    for step in (0, 1, 2):
        for sparse, plain in zip(
            reading(one, step).weights, reading(two, step).weights, strict=True
        ):
            assert sparse.name == plain.name
            assert sparse.grad_rms == pytest.approx(plain.grad_rms, rel=1e-4, nan_ok=True)
            assert sparse.update == pytest.approx(plain.update, rel=1e-3, nan_ok=True)
    assert reading(one, 1).weights[-1].name == "table.weight"
    assert reading(one, 1).weights[-1].grad_rms > 0
    assert torch.allclose(module.table.weight, dense.table.weight, atol=1e-4)
