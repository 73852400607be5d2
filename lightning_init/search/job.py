"""The user's LightningCLI configuration: parsed once, built as often as wanted.

A `Job` is the same parser that `python main.py fit --config config.yaml` uses, so a trial builds
model, data and Trainer by the same calls in the same order as the later `fit`, and with the same
seed it trains the same weights.
"""

from __future__ import annotations

import re
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from jsonargparse import ArgumentError, Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_init.architecture.arguments import unknown
from lightning_init.search.keys import dotted_items, dotted_keys
from lightning_init.search.mistakes import explain, one_line

# Only the training itself matters in a short fit: no files, no bars, nothing that ends it early.
_DROPPED = (
    *("ModelCheckpoint", "OnExceptionCheckpoint", "EarlyStopping", "LearningRateFinder"),
    *("BatchSizeFinder", "LearningRateMonitor", "DeviceStatsMonitor", "ThroughputMonitor"),
    *("ModelSummary", "RichModelSummary", "ProgressBar", "TQDMProgressBar", "RichProgressBar"),
    *("Timer", "InitCallback", "HealthMonitor"),
)
_FIT_ONLY = ("ckpt_path", "weights_only")  # printed by `fit --print_config`, not ours


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


class ConfigError(ValueError):
    """A configuration that does not fit; the text is one line and says what is legal."""


class Job(LightningCLI):
    """A parsed configuration that builds fresh objects.

    Args:
        arguments: Command-line arguments (`--config file --model.init_args.lr=0.1 ...`), or a
            configuration as nested plain data.
        add_options: Adds a command's own options to the parser.

    Raises:
        ConfigError: If the configuration does not fit.
    """

    def __init__(
        self,
        arguments: Sequence[str] | Mapping[str, Any],
        add_options: Callable[[LightningArgumentParser], None] | None = None,
        prog: str = "lightning-init",
        description: str | None = None,
    ) -> None:
        self._add_options = add_options
        self.dropped: list[str] = []
        given = dict(arguments) if isinstance(arguments, Mapping) else self._clean(arguments)
        try:
            super().__init__(
                save_config_callback=None,
                parser_kwargs={
                    "exit_on_error": False,
                    "prog": prog,
                    "usage": f"{prog} --config FILE [options]",
                    "description": description,
                },
                seed_everything_default=True,
                args=given,
                run=False,
            )
        except ArgumentError as error:
            raise ConfigError(explain(error, self.parser)) from error

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the command's own options."""
        if self._add_options is not None:
            self._add_options(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse without looking at the process's own command line."""
        parsed = parser.parse_object(args) if isinstance(args, dict) else parser.parse_args(args)
        self.config = parsed

    def _set_seed(self) -> None:
        """Nothing is built yet: `build` seeds."""

    def instantiate_classes(self) -> None:
        """Nothing is built while parsing."""

    def plain(self) -> dict[str, Any]:
        """The resolved configuration as nested plain data, without the command's options."""
        text = self.parser.dump(self.config, skip_none=False, format="yaml", skip_validation=True)
        data = yaml.safe_load(text)
        kept = ("seed_everything", "trainer", "model", "data", "optimizer", "lr_scheduler")
        return {key: data[key] for key in kept if data.get(key) is not None}

    def build(
        self,
        seed: int,
        config: Mapping[str, Any],
        callbacks: Sequence[pl.Callback],
        **trainer: Any,
    ) -> tuple[pl.LightningModule, pl.LightningDataModule | None, pl.Trainer]:
        """Fresh model, data and Trainer, as LightningCLI makes them after `seed_everything`.

        Args:
            seed: Seeds everything first.
            config: Dotted keys -> values that replace the configuration's.
            callbacks: Added after the configuration's own that are not about files and bars.
            trainer: Arguments that replace the configuration's.

        Returns:
            Model, data module (None if the model brings its data) and Trainer.
        """
        chosen = self.config.clone()
        for key, value in config.items():
            if key not in chosen:
                raise ConfigError(unknown("configuration key", key, dotted_keys(self.plain())))
            chosen[key] = value
        chosen["trainer.callbacks"] = _kept_callbacks(chosen.get("trainer.callbacks"))
        for key, value in trainer.items():
            chosen[f"trainer.{key}"] = value
        pl.seed_everything(seed, workers=True, verbose=False)
        self.config_init = self.parser.instantiate_classes(chosen)
        self.datamodule = self._get(self.config_init, "data")
        self.model = self._get(self.config_init, "model")
        if self.model is None:
            raise ConfigError("the configuration has no `model:`; give one with class_path")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._add_configure_optimizers_method_to_model(None)
        settings = dict(self._get(self.config_init, "trainer", default={}))
        settings["callbacks"] = [*(settings.get("callbacks") or []), *callbacks]
        return self.model, self.datamodule, pl.Trainer(**settings)

    def logged_metrics(self) -> tuple[str, ...]:
        """What the module logs, found by training and validating one batch of a throw-away model.

        Raises:
            ConfigError: If there is no training data.
        """
        model, data, trainer = self.build(0, {}, [], **SHORT, max_steps=1, limit_val_batches=1)
        require_data(model, data)
        with interruptible():
            trainer.fit(model, datamodule=data)
            logged: dict[str, Any] = dict(trainer.callback_metrics)
            if validates(model, data):
                for found in trainer.validate(model, datamodule=data, verbose=False):
                    logged.update(dict.fromkeys(found))
        return tuple(logged)

    def learning_rates(self) -> dict[str, float]:
        """The learning rates in the configuration, by dotted key."""
        found = {}
        for key, value in dotted_items(self.plain()):
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
            if number and re.fullmatch(r"(.*\.)?(lr|learning_rate)", key):
                found[key] = float(value)
        return found

    def monitored(self) -> tuple[str, str] | None:
        """Metric and mode that the configuration's ModelCheckpoint or EarlyStopping watch."""
        callbacks = self.plain().get("trainer", {}).get("callbacks") or []
        for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
            name = str(callback.get("class_path", "")).rpartition(".")[2]
            init = callback.get("init_args") or {}
            if name in ("ModelCheckpoint", "EarlyStopping") and init.get("monitor"):
                return str(init["monitor"]), str(init.get("mode", "min"))
        return None

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
        legal = ("seed_everything", "trainer", "model", "data", "optimizer", "lr_scheduler")
        kept = {key: value for key, value in inner.items() if key.rstrip("+") in legal}
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


def _kept_callbacks(callbacks: Any) -> list[Any] | None:
    if callbacks is None:
        return None
    listed = callbacks if isinstance(callbacks, list) else [callbacks]

    def name(callback: Namespace) -> str:
        return str(callback.get("class_path", "")).rpartition(".")[2]

    return [callback for callback in listed if name(callback) not in _DROPPED]
