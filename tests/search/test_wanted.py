"""The space that options, a file and the user's configuration come to."""

import pytest
from jsonargparse import Namespace

from lightning_init import Axis, InitSpec
from lightning_init.search.job import ConfigError, Job
from lightning_init.search.look import look
from lightning_init.search.wanted import wanted
from tests.search.models import Net

LR, WIDTH, DEPTH = "model.init_args.lr", "model.init_args.width", "model.init_args.depth"


@pytest.fixture(scope="module")
def job():
    return Job(["--config", "configs/digits.yaml"])


@pytest.fixture(scope="module")
def ask(job):
    architecture = look(job).architecture
    return lambda **options: wanted(job, Namespace(**options), architecture)


def test_without_options_the_space_is_what_applies_and_the_learning_rate(ask):
    space, lr_key, notes = ask()
    assert "lsuv" in space.names
    assert "fixup" not in space.names
    assert lr_key == LR
    assert set(space.config) == {LR}
    assert space.config[LR].high == pytest.approx(100 * space.config[LR].low)
    assert len(notes) == 1
    assert "fixup" in notes[0]
    assert space.scales == {}


def test_every_axis_begins_at_the_users_value_and_keep_with_it(ask, job):
    lr, width = job.plain()["model"]["init_args"]["lr"], job.plain()["model"]["init_args"]["width"]
    space, _, notes = ask(axis=[f"{LR}=1e-4:10:log", f"{WIDTH}={width * 2}:{width * 4}"])
    assert {point[LR] for point in space.recipes()} == {lr}
    assert {point[WIDTH] for point in space.recipes()} == {width}
    assert space.recipes()[0]["strategy"] == "keep"
    assert space.config[LR] == Axis(1e-4, 10, log=True, current=lr)
    assert space.config[WIDTH].low == width
    assert f"widened to hold your own {width}" in notes[0]


def test_a_value_that_no_axis_can_hold_is_said(ask):
    space, _, notes = ask(axis=["trainer.limit_train_batches=0.1:10:log"])
    assert space.recipes()[0]["trainer.limit_train_batches"] == 1.0
    assert "trainer.limit_train_batches is None in your configuration" in notes[0]
    space, _, notes = ask(axis=["trainer.limit_train_batches=1.0,null"])
    assert space.recipes()[0]["trainer.limit_train_batches"] is None
    assert "limit_train_batches" not in notes[0]


def test_scales(ask):
    space, _, _ = ask(scale=["head", "all=0.5:2:log", "head=1:4"], strategies="orthogonal")
    assert space.scales["all"] == Axis(0.5, 2, log=True, current=1.0)
    assert space.scales["head"] == Axis(1, 4, current=1.0), "no whole numbers; the last one counts"


FILE = """
strategies: [orthogonal: {gain: [0.9, 1.1]}, lsuv, mine.yaml]
axes: {model.init_args.lr: [0.5, 0.6], model.init_args.width: [16, 64]}
scales: {head: , all: [0.5, 2.0]}
"""


def test_the_command_line_goes_before_the_file(ask, tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(FILE)
    InitSpec("normal", {"std": 0.1}).save(tmp_path / "mine.yaml")
    space, _, _ = ask(space=str(path))
    assert space.names == ("keep", "auto", "orthogonal", "lsuv", "mine.yaml")
    assert space.fixed["mine.yaml"] == InitSpec("normal", {"std": 0.1})
    assert (space.axes["gain"].low, space.axes["gain"].high) == (0.9, 1.1)
    assert list(space.scales) == ["head", "all"]
    assert space.config[LR].high == 0.6
    space, _, _ = ask(
        space=str(path), strategies="orthogonal,normal", axis=[f"{LR}=0.7:0.8"], scale=["head=1:2"]
    )
    assert space.names == ("keep", "auto", "orthogonal", "normal")
    assert space.ranges["orthogonal"]["gain"].high == 1.1
    assert space.config[LR].high == 0.8
    assert WIDTH in space.config
    assert space.scales["head"].high == 2.0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"strategies": "fixup"}, "--strategies: fixup needs residual branches"),
        ({"strategies": "orthogonl"}, "did you mean 'orthogonal'"),
        ({"strategies": "absent.yaml"}, "no init spec at absent.yaml"),
        ({"scale": ["haed"]}, "--scale: unknown part of a model 'haed': did you mean 'head'"),
        ({"scale": ["residual"]}, "unknown part of this model 'residual': Legal are all, head"),
        ({"scale": ["head=1:2:3"]}, "--scale must be KEY=LOW:HIGH"),
        ({"scale": ["head=0:2"]}, "`0.001 <= scale <= 1000` must hold, but got scale=0"),
        ({"axis": ["model.init_args.lrr=1:2"]}, "did you mean 'model.init_args.lr'"),
        ({"axis": ["lr"]}, "--axis must be KEY=LOW:HIGH"),
        ({"lr_key": "model.init_args.width"}, "unknown learning rate"),
        ({"space": "absent.yaml"}, "--space absent.yaml: unknown file with a space"),
    ],
)
def test_mistakes_name_the_option_and_what_is_legal(ask, options, says):
    with pytest.raises(ConfigError) as caught:
        ask(**options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


class Odd(Net):
    def __init__(self, eta: float = 0.25) -> None:
        super().__init__(lr=eta)


def test_a_learning_rate_may_have_any_name_if_the_user_says_so(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        "model: {class_path: tests.search.test_wanted.Odd}\n"
        "data: {class_path: tests.search.models.Data}\ntrainer: {accelerator: cpu}\n"
    )
    job, key = Job(["--config", str(path)]), "model.init_args.eta"
    space, lr_key, _ = wanted(job, Namespace(lr_key=key), look(job).architecture)
    assert lr_key == key
    assert space.config[key].current == 0.25


def test_a_mistake_in_a_file_names_the_file(ask, tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text("strategis: [normal]")
    with pytest.raises(ConfigError, match=f"--space {path}: .*did you mean 'strategies'"):
        ask(space=str(path))
