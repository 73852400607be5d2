"""A fit that ends in any hook, by an error, Ctrl-C or a pruned trial, leaves nothing of ours.

The hooks are those of Lightning's own classes, so a new one is walked too.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import lightning.pytorch as pl
import optuna
import pytest
from torch.nn.modules import module as torch_module

from lightning_init import HealthMonitor, InitCallback
from tests.callbacks import nets
from tests.callbacks.told import CALLBACK, run

MADE: dict[str, Callable[[], pl.Callback]] = {
    "init": lambda: InitCallback("orthogonal", seed=1, verbose=False),
    "calibrated": lambda: InitCallback("lsuv", seed=1, verbose=False),
    "rescue": lambda: InitCallback("orthogonal", seed=1, on_unhealthy="rescue", verbose=False),
    "monitor": lambda: HealthMonitor(verbose=False),
}
TOGETHER = [
    ("init", "configure_model"),
    ("monitor", ""),
    ("rescue", "setup"),
    ("calibrated", ""),
    ("rescue", "configure_model"),
    ("init", "setup"),
]
ERRORS = [ArithmeticError, KeyboardInterrupt, optuna.TrialPruned]
Tell = Callable[[str, Any], None]


class Saves(pl.Callback):
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.save_checkpoint("last.ckpt")


@pytest.fixture(autouse=True)
def _interrupts() -> Iterator[None]:
    """Lightning ignores the signal after the first one."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint to go on from."""
    folder = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fitted(lambda *_: None, "init", "")[0].save_checkpoint("first.ckpt")
    return str(folder / "first.ckpt")


def fitted(tell: Tell, made: str, late: str, path: str = "") -> Any:
    """Fit with one of ours between two callbacks that tell, from a checkpoint or anew."""
    arguments = {"max_epochs": 2 if path else 1}
    fit = {"ckpt_path": path, "weights_only": False} if path else {}
    ours = [MADE[made](), Saves()]
    return run(tell, *ours, both_sides=True, late=late, arguments=arguments, **fit)


@cache
def counted(made: str, late: str, path: str = "") -> dict[str, int]:
    """Hook -> how often it is called in a fit that ends well, in order of their first calls."""
    calls: Counter[str] = Counter()
    fitted(lambda name, _: calls.update([name]), made, late, path)
    return dict(calls)


def left(*owners: Any) -> list[str]:
    """What is still on a module, or anything else: hooks, replaced methods, objects of ours."""
    found = []
    for owner in owners:
        if hasattr(owner, "named_modules"):
            found += nets.hooks(owner)
            parts = dict(owner.named_modules())
        else:
            parts = {type(owner).__name__: owner}
        for name, part in parts.items():
            for key, value in vars(part).items():
                kind = getattr(type(part), key, None)
                if callable(value) and callable(kind) and not isinstance(kind, type):
                    found.append(f"{name}.{key} replaced")
                source = getattr(value, "__module__", "") or ""
                if source.startswith("lightning_init") and key != "_lightning_init":
                    found.append(f"{name}.{key} of ours")
    for key, value in vars(torch_module).items():
        if key.startswith("_global_") and isinstance(value, dict) and value:
            found.append(key)
    return found


def stopped(made: str, late: str, hook: str, call: int, error: Any, path: str) -> bool:
    """Stop a fit in a call of a hook; whether it was, and nothing was left."""
    calls: Counter[str] = Counter()
    seen: list[Any] = []

    def tell(name: str, owner: Any) -> None:
        if owner not in seen:
            seen.append(owner)
        calls[name] += 1
        if name == hook and calls[name] == call:
            raise error("on purpose")

    try:
        trainer, _ = fitted(tell, made, late, path)
        ended = False
        seen.append(trainer)
    except (error, SystemExit):
        ended = True
    trainers = [t for each in seen if (t := getattr(each, "_trainer", None)) is not None]
    found = left(*seen, *trainers)
    assert found == [], (made, late, hook, call, error)
    return ended


def hooks_of(title: str, first: str) -> list[tuple[str, str]]:
    """The hooks of callback, module, data or strategy, each with what its fit goes on from."""
    fresh, resumed = counted(*TOGETHER[0]), counted(*TOGETHER[0], first)
    names = dict.fromkeys([*fresh, *resumed])
    return [(name, "" if name in fresh else first) for name in names if name.startswith(title)]


@pytest.mark.case(36)
@pytest.mark.parametrize("title", ["callback.", "last.", "module.", "data.", "strategy."])
def test_nothing_is_left_after_an_end_in_any_hook(title: str, first: str) -> None:
    hooks = hooks_of(title, first)
    assert len(hooks) >= 8
    order = list(counted(*TOGETHER[0]))
    early = order[: order.index("strategy.setup")]
    for index, (hook, path) in enumerate(hooks):
        picked = TOGETHER if hook in early else [TOGETHER[index % 6], TOGETHER[(index + 3) % 6]]
        for offset, (made, late) in enumerate(picked):
            error = ERRORS[(index + offset) % 3]
            calls = counted(made, late, path)[hook]
            assert stopped(made, late, hook, calls, error, path), (hook, made, late)
            if calls > 1 and not offset:
                stopped(made, late, hook, 1, error, path)


@pytest.mark.case(36)
def test_every_hook_of_a_callback_is_walked(first: str) -> None:
    walked = {name.partition(".")[2] for name, _ in hooks_of("last.", first)}
    others = {name for name in CALLBACK if "test" in name or "predict" in name}
    assert walked | others | {"on_exception"} == set(CALLBACK)


@pytest.mark.case(36)
@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize("hook", ["module.training_step", "last.setup", "module.configure_model"])
def test_nothing_is_left_after_an_error_on_the_way_out(made: str, hook: str) -> None:
    """A callback after ours that fails in `on_exception`; the first error is its context."""
    calls: Counter[str] = Counter()
    seen: list[Any] = []
    last = counted(made, "configure_model")[hook]

    def tell(name: str, owner: Any) -> None:
        seen.append(owner)
        calls[name] += 1
        if (name, calls[name]) == (hook, last):
            raise ArithmeticError
        if name == "last.on_exception":
            raise LookupError

    with pytest.raises(LookupError) as caught:
        fitted(tell, made, "configure_model")
    assert isinstance(caught.value.__context__, ArithmeticError)
    assert left(*dict.fromkeys(seen)) == []


@pytest.mark.case(36)
@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize("hook", ["module.on_after_backward", "last.setup"])
def test_what_an_earlier_callback_keeps_from_us_goes_with_the_next_fit(
    made: str, hook: str
) -> None:
    """One that fails in `on_exception` before ours is told: Lightning tells nobody after it."""
    seen: list[Any] = []
    calls: Counter[str] = Counter()

    def tell(name: str, owner: Any) -> None:
        seen.append(owner)
        calls[name] += 1
        if name == "callback.on_exception":
            raise LookupError
        if name == hook and (calls[name] == 2 or hook == "last.setup"):
            raise ArithmeticError

    with pytest.raises(LookupError):
        fitted(tell, made, "configure_model")
    module = next(one for one in seen if isinstance(one, pl.LightningModule))
    ours = next(one for one in module.trainer.callbacks if isinstance(one, type(MADE[made]())))
    assert bool(nets.hooks(module)) is not (made == "monitor" and hook == "last.setup")
    hook = ""
    nets.trainer(ours, max_steps=1).fit(module, nets.ordered(), nets.ordered(1800))
    assert left(module) == []
