"""The user's LightningCLI configuration: parsed once, built as often as wanted.

A `Job` is the same parser that `python main.py fit --config config.yaml` uses, so a trial builds
model, data and Trainer by the same calls in the same order as the later `fit`, and with the same
seed it trains the same weights.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_init.architecture.arguments import unknown
from lightning_init.search.keys import every_item, lists_of, unknown_key, with_lists
from lightning_init.search.mistakes import ConfigError as ConfigError, one_line
from lightning_init.search.own_cli import PLAIN, Recipe, recipe_from
from lightning_init.search.parsed import Asked, Built, parse

_KEYS = ("seed_everything", "trainer", "model", "data", "optimizer", "lr_scheduler")
_FIT_ONLY = ("ckpt_path", "weights_only")  # a trial begins with a fresh init

# What a short fit on one device needs of a Trainer: nothing but the training.
SHORT: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "devices": 1,
    "num_nodes": 1,
    "strategy": "auto",
}


class Job:
    """A parsed configuration that builds fresh objects.

    Args:
        arguments: Command-line arguments (`--config file --model.init_args.lr=0.1 ...`), or a
            configuration as nested plain data.
        add_options: Adds a command's own options to the parser.
        prog: The command, for `--help`.
        description: What the command does, for `--help`.
        cli: The user's own LightningCLI, as `recipe_from` takes it; `""` for Lightning's.

    Attributes:
        cli: As given.
        dropped: Keys of the configuration's files that only another LightningCLI knows.

    Raises:
        ConfigError: If the configuration does not fit.
    """

    def __init__(
        self,
        arguments: Sequence[str] | Mapping[str, Any],
        add_options: Callable[[LightningArgumentParser], None] | None = None,
        prog: str = "lightning-init",
        description: str | None = None,
        cli: str | Recipe = "",
    ) -> None:
        recipe = recipe_from(cli) if isinstance(cli, str) and cli else cli or PLAIN
        assert isinstance(recipe, Recipe)
        self.cli = cli
        self.dropped: list[str] = []
        self._own = recipe.is_own
        given = dict(arguments) if isinstance(arguments, Mapping) else self._clean(arguments)
        self._cli = parse(recipe, Asked(given, add_options, prog, description))

    @property
    def config(self) -> Namespace:
        """As parsed, with the command's options."""
        return self._cli.inner

    def plain(self) -> dict[str, Any]:
        """The resolved configuration as nested plain data, without the command's options."""
        parser = self._cli.inner_parser
        try:
            text = parser.dump(self.config, skip_none=False, format="yaml", skip_validation=True)
        except yaml.representer.RepresenterError as error:
            raise ConfigError(
                f"{error.args[-1]!r} in the configuration cannot be written as YAML, and "
                "LightningCLI's own fit fails on it too; for callbacks.Timer write trainer.max_time"
            ) from error
        left = {*self._cli.options, *_FIT_ONLY, "config"}
        data = yaml.safe_load(text)
        return {key: v for key, v in data.items() if key not in left and v is not None}

    def build(
        self,
        seed: int,
        config: Mapping[str, Any],
        callbacks: Sequence[pl.Callback],
        **trainer: Any,
    ) -> Built:
        """Fresh model, data and Trainer, as LightningCLI makes them after `seed_everything`.

        Args:
            seed: Seeds everything first.
            config: Dotted keys -> values that replace the configuration's; linked keys follow.
                An entry of a list is named by its number, `trainer.callbacks.0.init_args.every`.
            callbacks: Added after the configuration's own that are not about files and bars.
            trainer: Arguments that replace the configuration's.

        Returns:
            Model, data module (None if the model brings its data) and Trainer.
        """
        if any(key not in self.config for key in config):
            plain = self.plain()
            known = dict(every_item(plain))
            for key in config:
                if key not in self.config and key not in known:
                    raise ConfigError(unknown_key(key, plain))
            config = with_lists(config, lists_of(config, plain))
        chosen = self._cli.with_values({**config, "seed_everything": seed})
        pl.seed_everything(seed, workers=True, verbose=False)
        return self._cli.make(chosen, callbacks, trainer)

    def learning_rates(self) -> dict[str, float]:
        """The learning rates in the configuration, by dotted key; those in lists if no others."""
        plain = self.plain()
        rates = {
            key: float(value)
            for key, value in every_item(plain)
            if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
        }
        inner = {key for key in rates if lists_of([key], plain)}
        outer = {key: value for key, value in rates.items() if key not in inner}
        listed = {k: v for k, v in rates.items() if k in inner and not k.startswith("trainer.")}
        for known in (outer, listed):
            for names in ("lr|learning_rate", "(max|peak|base|initial|init)_(lr|learning_rate)"):
                found = {k: v for k, v in known.items() if re.fullmatch(rf"(.*\.)?({names})", k)}
                if found:
                    return found
        return {}

    def monitored(self) -> tuple[str, str] | None:
        """Metric and mode that the configuration's ModelCheckpoint, else EarlyStopping, watches."""
        callbacks = self.plain().get("trainer", {}).get("callbacks") or []
        found: dict[str, tuple[str, str]] = {}
        for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
            name = str(callback.get("class_path", "")).rpartition(".")[2]
            init = callback.get("init_args") or {}
            if init.get("monitor"):
                found.setdefault(name, (str(init["monitor"]), str(init.get("mode", "min"))))
        return found.get("ModelCheckpoint") or found.get("EarlyStopping")

    def _clean(self, arguments: Sequence[str]) -> list[str]:
        """Configuration files as `fit` prints them: unwrapped, without keys of `fit` alone."""
        cleaned: list[str] = []
        waiting = False
        for argument in arguments:
            flag, equals, value = argument.partition("=")
            if waiting or (flag in ("--config", "-c") and equals):
                path = argument if waiting else value
                waiting = False
                cleaned.append(self._config_argument(path))
            elif flag in ("--config", "-c"):
                waiting = True
            else:
                cleaned.append(argument)
        return [*cleaned, "--config"] if waiting else cleaned

    def _config_argument(self, path: str) -> str:
        data = read_yaml(path)
        wrapped = data.get("fit")
        inner: dict[str, Any] = wrapped if isinstance(wrapped, dict) else data
        kept = {
            key: value
            for key, value in inner.items()
            if (self._own and key not in _FIT_ONLY) or key.rstrip("+") in _KEYS
        }
        gone = [key for key in inner if key not in kept and key not in _FIT_ONLY]
        if not kept:
            raise ConfigError(
                f"{path} is not a LightningCLI configuration: it has "
                f"{', '.join(map(str, data)) or 'no keys'}, but needs `model:` with class_path"
            )
        self.dropped += gone
        return f"--config={path}" if kept == data else f"--config={yaml.safe_dump(kept)}"


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        ConfigError: If there is no such file or it holds something else.
    """
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        there = [str(p) for p in sorted(Path(path).parent.glob("*.y*ml"))]
        raise ConfigError(unknown("configuration file", str(path), there)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {one_line(error)}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {one_line(error)}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold `model:`, `data:`, ... but holds {data!r:.60}")
    return data


def require_data(model: pl.LightningModule, data: pl.LightningDataModule | None) -> None:
    """Make sure that there is something to train on.

    Raises:
        ConfigError: If neither the configuration nor the model brings training data.
    """
    source = model if data is None else data
    if not is_overridden("train_dataloader", source):
        raise ConfigError(
            "no training data: add `data:` with class_path to the configuration, or give the "
            "model a train_dataloader"
        )


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C in a fit be a KeyboardInterrupt: Lightning makes an exit with code 1 of it."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, before)  # Lightning ignores it from then on
        raise KeyboardInterrupt from None


def validates(model: pl.LightningModule, data: pl.LightningDataModule | None) -> bool:
    """Whether there is a validation step and data for it."""
    source = model if data is None else data
    return is_overridden("validation_step", model) and is_overridden("val_dataloader", source)
