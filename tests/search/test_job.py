"""Configurations as LightningCLI users have them: every form is read, every mistake explained."""

from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback

from lightning_init.search.job import SHORT, ConfigError, Job
from lightning_init.search.keys import nested
from lightning_init.strategies.apply import fingerprint
from tests.search.models import Alone, Bare, Data, Net

NET = {"class_path": "tests.search.models.Net", "init_args": {"width": 6}}
BARE = {"class_path": "tests.search.models.Bare"}
DATA = {"class_path": "tests.search.models.Data"}
BOTH = {"model": NET, "data": DATA}
CPU = {"accelerator": "cpu"}

pytestmark = pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader`:UserWarning")


class Peak(Net):
    def __init__(self, max_lr: float = 0.5) -> None:
        super().__init__(lr=max_lr)


class Counter(Callback):
    pass


@pytest.fixture
def write(tmp_path):
    def written(data: object, name: str = "config.yaml") -> str:
        path = tmp_path / name
        path.write_text(data if isinstance(data, str) else yaml.safe_dump(data, sort_keys=False))
        return str(path)

    return written


@pytest.fixture
def job(write):
    return lambda data, *more: Job(["--config", write(data), *more])


def built(job: Job, seed: int = 0, config: dict | None = None, **trainer):
    settings = {**SHORT, "max_steps": 3, "accelerator": "cpu", **trainer}
    return job.build(seed, config or {}, [], **settings)


def order(data: Data) -> list[float]:
    return [float(x[0][0, 0]) for x in data.train_dataloader()]


def test_a_plain_configuration(job):
    model, data, trainer = built(job({**BOTH, "trainer": {"max_epochs": 7}}))
    assert isinstance(model, Net)
    assert isinstance(data, Data)
    assert model.net[0].out_features == 6
    assert (trainer.max_epochs, trainer.max_steps) == (7, 3)


def test_nested_under_fit_it_is_unwrapped(job):
    wrapped = job({"fit": {**BOTH, "ckpt_path": None, "seed_everything": 4}})
    assert wrapped.plain() == job({**BOTH, "seed_everything": 4}).plain()
    assert wrapped.dropped == []


def test_a_printed_configuration_with_keys_of_the_users_own(job):
    printed = {
        **BOTH,
        "ckpt_path": None,
        "weights_only": None,
        "wandb_project": "x",
        "mine": {"a": 1},
    }
    read = job(printed)
    assert read.plain() == job(BOTH).plain()
    assert read.dropped == ["wandb_project", "mine"]


@pytest.mark.parametrize("form", ["--config={}", "--config {}", "-c {}", "-c={}"])
def test_every_way_to_pass_the_file(write, form):
    path = write({"fit": {**BOTH, "mine": 1}})
    read = Job(form.format(path).split())
    assert read.plain()["model"]["init_args"]["width"] == 6
    assert read.dropped == ["mine"]


def test_overrides_after_the_file_win_and_before_it_lose(write):
    path = write(BOTH)
    after = Job([f"--config={path}", "--model.init_args.width=9", "--trainer.max_steps=5"])
    assert after.plain()["model"]["init_args"]["width"] == 9
    assert after.plain()["trainer"]["max_steps"] == 5
    assert Job([f"--config={path}", "--model.width=9"]).plain()["model"]["init_args"]["width"] == 9


def test_of_several_files_the_last_wins(write):
    one, two = write(BOTH, "one.yaml"), write({"model": {"init_args": {"lr": 0.5}}}, "two.yaml")
    args = Job(["--config", one, "--config", two]).plain()["model"]["init_args"]
    assert (args["width"], args["lr"]) == (6, 0.5)


def test_a_class_bound_file_after_the_class_names(write):
    path = write({"model": {"width": 5}, "data": {"batch_size": 16}})
    names = ["--model", "tests.search.models.Net", "--data", "tests.search.models.Data"]
    model, data, _ = built(Job([*names, "--config", path]))
    assert model.net[0].out_features == 5
    assert data.batch_size == 16
    with pytest.raises(ConfigError, match=r"there is no class_path: .*--model package.Class"):
        Job(["--config", path])


def test_optimizer_and_schedule_of_the_configuration_are_attached(job):
    optimizer = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.25}}
    schedule = {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 2}}
    read = job({"model": BARE, "data": DATA, "optimizer": optimizer, "lr_scheduler": schedule})
    model, data, trainer = built(read, config={"optimizer.init_args.lr": 0.5}, max_steps=2)
    trainer.fit(model, datamodule=data)
    [attached] = trainer.optimizers
    assert isinstance(attached, torch.optim.Adam)
    assert attached.defaults["lr"] == 0.5
    assert isinstance(trainer.lr_scheduler_configs[0].scheduler, torch.optim.lr_scheduler.StepLR)
    assert read.learning_rates() == {"optimizer.init_args.lr": 0.25}


def test_learning_rates_are_found_by_name(job):
    assert job(BOTH).learning_rates() == {"model.init_args.lr": 0.1}
    both = {**BOTH, "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.3}}}
    assert job(both).learning_rates() == {"model.init_args.lr": 0.1, "optimizer.init_args.lr": 0.3}
    assert job({"model": BARE, "data": DATA}).learning_rates() == {}
    peak = {"model": {"class_path": f"{__name__}.Peak"}, "data": DATA}
    assert job(peak).learning_rates() == {"model.init_args.max_lr": 0.5}


@pytest.mark.parametrize(
    ("callbacks", "expected"),
    [
        ([], None),
        ([("LearningRateMonitor", {})], None),
        ([("ModelCheckpoint", {"monitor": "val_acc", "mode": "max"})], ("val_acc", "max")),
        ([("EarlyStopping", {"monitor": "val_loss"})], ("val_loss", "min")),
        ([("ModelCheckpoint", {}), ("EarlyStopping", {"monitor": "x"})], ("x", "min")),
        (
            [("EarlyStopping", {"monitor": "x"}), ("ModelCheckpoint", {"monitor": "y"})],
            ("y", "min"),
        ),
    ],
)
def test_the_monitored_metric(job, callbacks, expected):
    listed = [
        {"class_path": f"lightning.pytorch.callbacks.{name}", "init_args": args}
        for name, args in callbacks
    ]
    assert job({**BOTH, "trainer": {"callbacks": listed}}).monitored() == expected


def test_callbacks_about_files_bars_and_ending_are_dropped_and_others_kept(job):
    names = ["ModelCheckpoint", "LearningRateMonitor", "ModelSummary", "TQDMProgressBar"]
    listed = [{"class_path": f"lightning.pytorch.callbacks.{name}"} for name in names]
    stop = {
        "class_path": "lightning.pytorch.callbacks.EarlyStopping",
        "init_args": {"monitor": "x"},
    }
    ours = [{"class_path": f"lightning_init.{n}"} for n in ("InitCallback", "HealthMonitor")]
    mine = {"class_path": "tests.search.test_job.Counter"}
    decay = {
        "class_path": "lightning.pytorch.callbacks.GradientAccumulationScheduler",
        "init_args": {"scheduling": {0: 2}},
    }
    read = job({**BOTH, "trainer": {"callbacks": [*listed, stop, mine, *ours, decay]}})
    extra = Counter()
    _, _, trainer = read.build(0, {}, [extra], **SHORT, accelerator="cpu")
    kinds = [type(callback).__name__ for callback in trainer.callbacks]
    assert kinds == ["Counter", "GradientAccumulationScheduler", "Counter"]
    assert trainer.callbacks[-1] is extra


def test_each_build_is_fresh(job):
    read = job(
        {**BOTH, "trainer": {"callbacks": [{"class_path": "tests.search.test_job.Counter"}]}}
    )
    one, two = built(read), built(read)
    assert all(a is not b for a, b in zip(one, two, strict=True))
    assert one[2].callbacks[0] is not two[2].callbacks[0]
    assert {id(p) for p in one[0].parameters()}.isdisjoint(id(p) for p in two[0].parameters())


def test_the_seed_decides_weights_and_order(job):
    read = job(BOTH)
    found = []
    for seed in (3, 3, 4):
        model, data, _ = built(read, seed)
        found.append((fingerprint(model), order(data)))
    assert found[0] == found[1]
    assert found[0][0] != found[2][0]
    assert found[0][1] != found[2][1]


def test_a_build_changes_the_keys_it_is_told_and_not_the_configuration(job):
    read = job(BOTH)
    before = read.plain()
    model, _, trainer = built(
        read, config={"model.init_args.width": 12, "trainer.gradient_clip_val": 0.5}
    )
    assert model.net[0].out_features == 12
    assert trainer.gradient_clip_val == 0.5
    assert read.plain() == before
    assert built(read)[0].net[0].out_features == 6


def test_an_unknown_key_is_named_with_its_neighbour(job):
    with pytest.raises(
        ConfigError,
        match=r"unknown configuration key 'model.init_args.widht': did you mean 'model.init_args.width'",
    ):
        built(job(BOTH), config={"model.init_args.widht": 12})


def test_the_plain_configuration_builds_the_same(job):
    read = job({**BOTH, "seed_everything": 5, "trainer": {"gradient_clip_val": 0.5, **CPU}})
    again = Job(read.plain())
    assert again.plain() == read.plain()
    assert fingerprint(built(again, 2)[0]) == fingerprint(built(read, 2)[0])


def test_a_model_that_brings_its_data(job):
    model, data, _ = built(job({"model": {"class_path": "tests.search.models.Alone"}}))
    assert isinstance(model, Alone)
    assert data is None


def test_parsing_touches_neither_random_state_nor_command_line(job, monkeypatch):
    monkeypatch.setattr("sys.argv", ["pytest", "--model.init_args.width=99", "--nonsense"])
    before = torch.get_rng_state()
    read = job(BOTH)
    assert torch.equal(torch.get_rng_state(), before)
    assert read.plain()["model"]["init_args"]["width"] == 6


def test_a_bare_model_without_optimizer_is_built(job):
    assert isinstance(built(job({"model": BARE, "data": DATA}))[0], Bare)


def test_nested_is_the_way_back():
    assert nested({"a.b": 1, "a.c.d": 2, "e": 3}) == {"a": {"b": 1, "c": {"d": 2}}, "e": 3}


MISTAKES = {
    "not a mapping": ("[1, 2]", r"must hold `model:`, `data:`, \.\.\. but holds \[1, 2\]"),
    "empty": ("", r"must hold `model:`, `data:`, \.\.\. but holds None"),
    "not YAML": ("model: [1", r"config.yaml is not YAML: .*line 1"),
    "other keys only": ("foo: 1\nbar: 2", r"not a LightningCLI configuration: it has foo, bar,"),
    "no model": ({"data": DATA}, r"no model: pass --config FILE"),
    "unknown class": (
        {"model": {"class_path": "tests.search.models.Nett"}},
        r"model: .*'tests.search.models.Nett': did you mean 'tests.search.models.Net'",
    ),
    "unknown module": ({"model": {"class_path": "tests.serch.Net"}}, r"model: .*tests\.serch"),
    "unknown argument": (
        {"model": {**NET, "init_args": {"widht": 3}}},
        r"Net.*'widht': did you mean 'width'",
    ),
    "wrong type": (
        {"model": {**NET, "init_args": {"width": "wide"}}},
        r"width must be int, but got 'wide'",
    ),
    "wrong trainer key": (
        {**BOTH, "trainer": {"max_stepz": 3}},
        r"trainer: .*'max_stepz': did you mean 'max_steps'",
    ),
    "wrong trainer value": (
        {**BOTH, "trainer": {"max_steps": "many"}},
        r"trainer.max_steps must be int, but got 'many'",
    ),
    "wrong literal": (
        {
            "model": {
                "class_path": "examples.digits.DigitsMLP",
                "init_args": {"activation": "tanhh"},
            }
        },
        r"activation: unknown value 'tanhh': did you mean 'tanh'",
    ),
}


@pytest.mark.parametrize(("data", "text"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_that_says_what_is_legal(job, data, text):
    with pytest.raises(ConfigError, match=text) as caught:
        job(data)
    assert "\n" not in str(caught.value)


def test_a_missing_file_names_its_neighbours(write, tmp_path):
    write(BOTH, "config.yaml")
    with pytest.raises(
        ConfigError, match=r"unknown configuration file .*did you mean '.*config.yaml'"
    ):
        Job(["--config", str(tmp_path / "confg.yaml")])
    with pytest.raises(ConfigError, match="cannot be read"):
        Job(["--config", str(tmp_path)])


def test_a_wrong_option_names_the_right_one(write):
    with pytest.raises(
        ConfigError, match=r"--trainer.max_stepz.*did you mean '--trainer.max_steps'"
    ):
        Job(["--config", write(BOTH), "--trainer.max_stepz=3"])


def test_a_file_is_not_changed(write):
    path = write({"fit": {**BOTH, "mine": 1}})
    before = Path(path).read_bytes()
    Job(["--config", path])
    assert Path(path).read_bytes() == before


def test_what_lightning_itself_cannot_write_is_said_so(job):
    timer = {
        "class_path": "lightning.pytorch.callbacks.Timer",
        "init_args": {"duration": "00:00:10:00"},
    }
    read = job({**BOTH, "trainer": {"callbacks": [timer]}})
    with pytest.raises(ConfigError, match=r"own fit fails on it too; for callbacks\.Timer write"):
        read.plain()
