"""Parameter groups: every trainable parameter once, at the learning rate that it is meant to have."""

import lightning as L
import pytest
import torch
from torch import nn

from lightning_init import add_branch_scales_, initialize_, make_plan, param_groups, remove_norms_
from tests.zoo import ZOO, noise


def fixup_net():
    module, forward = ZOO["bottleneck_cnn"]()
    remove_norms_(module)
    add_branch_scales_(module, "fixup", forward=forward)
    return module, forward


def by_name(groups):
    return {group["name"]: group for group in groups}


@pytest.mark.parametrize("model", [*ZOO])
@pytest.mark.parametrize("known", [False, True])
def test_every_trainable_parameter_is_in_one_group(model, known):
    module, forward = ZOO[model]()
    next(module.parameters()).requires_grad_(False)
    plan = make_plan(module, "keep", forward=forward) if known else None
    groups = param_groups(module, plan, 0.1, heads=2.0, decay_vectors=False)
    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in module.parameters() if p.requires_grad)
    order = {id(p): i for i, p in enumerate(module.parameters())}
    for group in groups:
        places = [order[id(p)] for p in group["params"]]
        assert places == sorted(places)
        assert len(group["names"]) == len(places) > 0
        named = dict(module.named_parameters(remove_duplicate=False))
        raw = {name.replace("parametrizations.", "") for name in named}
        assert all(
            n in named or f"{n}.original1" in raw or f"{n}.original" in raw for n in group["names"]
        )


def test_fixup_s_scalars_learn_at_a_tenth_without_decay():
    module, _ = fixup_net()
    groups = by_name(param_groups(module, None, 0.1, weight_decay=5e-4))
    assert list(groups) == ["weights", "scales"]
    added = [name for name, _ in module.named_parameters() if "branch_" in name]
    assert groups["scales"]["names"] == added
    assert groups["scales"]["lr"] == pytest.approx(0.01)
    assert groups["scales"]["weight_decay"] == 0
    assert groups["weights"]["lr"] == 0.1
    assert groups["weights"]["weight_decay"] == 5e-4
    assert by_name(param_groups(module, None, 0.1, scales=0.5))["scales"]["lr"] == 0.05


def test_scales_that_a_model_has_of_its_own():
    for model, names in (
        ("rezero", ["1.resweight", "2.resweight"]),
        ("layer_scale", [f"{i}.gamma_{k}" for i in (1, 2) for k in (1, 2)]),
    ):
        module, forward = ZOO[model]()
        plan = make_plan(module, "keep", forward=forward)
        assert by_name(param_groups(module, plan, 0.1))["scales"]["names"] == names


def test_a_layer_s_bias_is_no_scalar_even_if_it_is_one_number():
    model = nn.Sequential(nn.Linear(4, 1), nn.Tanh(), nn.Linear(1, 1))
    plan = make_plan(model, "keep", forward=lambda: model(noise(2, 4)))
    for each in (None, plan):
        assert [group["name"] for group in param_groups(model, each, 0.1)] == ["weights"]


def test_heads_vectors_and_lora():
    module, forward = ZOO["residual_cnn"]()
    plan = make_plan(module, "auto", forward=forward)
    groups = by_name(param_groups(module, plan, 0.1, heads=0.5, decay_vectors=False))
    assert groups["heads"]["names"] == ["head.weight"]  # its bias does not decay
    assert groups["heads"]["lr"] == 0.05
    assert groups["vectors"]["weight_decay"] == 0
    assert all(p.ndim == 1 for p in groups["vectors"]["params"])
    assert all(p.ndim > 1 for p in groups["weights"]["params"])
    groups = by_name(param_groups(module, plan, 0.1, heads=0.5))
    assert groups["heads"]["names"] == ["head.weight", "head.bias"]
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["0"], r=2)
    adapted = peft.get_peft_model(nn.Sequential(nn.Linear(4, 4)), config)
    groups = by_name(param_groups(adapted, None, 0.1, lora_up=16.0))
    assert {name: len(group["params"]) for name, group in groups.items()} == {
        "weights": 1,
        "lora_up": 1,
    }
    assert groups["lora_up"]["lr"] == pytest.approx(1.6)
    assert "lora_B" in groups["lora_up"]["names"][0]


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_optimizers_take_the_groups(kind):
    module, forward = fixup_net()
    initialize_(module, "fixup", seed=0, forward=forward)
    optimizer = kind(param_groups(module, None, 1e-3), lr=1e-3)
    optimizer.zero_grad()
    (forward() - 1).square().mean().backward()
    before = module.head.bias.detach().clone()
    optimizer.step()
    assert not torch.equal(module.head.bias, before)
    twin = kind(param_groups(module, None, 1e-3), lr=1e-3)
    twin.load_state_dict(optimizer.state_dict())
    assert [group["lr"] for group in twin.param_groups] == [1e-3, pytest.approx(1e-4)]


class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net, forward = fixup_net()
        self.plan = initialize_(self.net, "fixup", seed=0, forward=forward)

    def training_step(self, batch):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(param_groups(self.net, self.plan, 0.05), momentum=0.9)
        return {
            "optimizer": optimizer,
            "lr_scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4),
        }


def test_in_a_lightning_module(tmp_path):
    module = Module()
    data = torch.utils.data.TensorDataset(noise(16, 3, 8, 8), torch.arange(16) % 5)
    trainer = L.Trainer(
        max_steps=4,
        accelerator="cpu",
        logger=L.pytorch.loggers.CSVLogger(tmp_path),
        callbacks=[L.pytorch.callbacks.LearningRateMonitor()],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(module, torch.utils.data.DataLoader(data, 8))
    scale = module.net.blocks[0].conv3.branch_bias_out
    assert scale.item() != 0
    assert {"lr-SGD/weights", "lr-SGD/scales"} <= set(trainer.callbacks[0].lrs)


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        ({"lr": 0.0}, "`lr > 0` must hold, but got lr=0.0"),
        ({"lr": float("nan")}, "`lr > 0`"),
        ({"lr": 0.1, "scales": -1.0}, "`scales > 0`"),
        ({"lr": 0.1, "weight_decay": -0.1}, "`weight_decay >= 0`"),
    ],
)
def test_numbers_out_of_range(arguments, wrong):
    with pytest.raises(ValueError, match=wrong):
        param_groups(nn.Linear(2, 2), None, **arguments)


def test_a_plan_of_another_model_is_refused():
    plan = make_plan(nn.Linear(2, 2), "keep")
    with pytest.raises(ValueError, match=r"the plan does not know '0\.weight'"):
        param_groups(nn.Sequential(nn.Linear(2, 2)), plan, 0.1)
