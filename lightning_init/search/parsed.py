"""A LightningCLI, the user's own or Lightning's, that parses and builds only when it is told to.

The user's class is taken as it is, with a class of ours before and one behind it: the front one
keeps the constructor from building and running anything, the one behind changes the arguments that
reach LightningCLI itself.
"""

from __future__ import annotations

import argparse
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import yaml
from jsonargparse import ArgumentError, Namespace
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Checkpoint,
    DeviceStatsMonitor,
    EarlyStopping,
    LearningRateFinder,
    LearningRateMonitor,
    ModelSummary,
    ProgressBar,
    Timer,
)
from lightning.pytorch.callbacks.throughput_monitor import ThroughputMonitor
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_init.callbacks.init import InitCallback
from lightning_init.callbacks.monitor import HealthMonitor
from lightning_init.search.keys import nested
from lightning_init.search.mistakes import ConfigError, explain, one_line
from lightning_init.search.own_cli import Recipe

Built = tuple[pl.LightningModule, pl.LightningDataModule | None, pl.Trainer]

# Only the training itself matters in a short fit: no files, no bars, nothing that ends it early.
DROPPED = (
    *(Checkpoint, EarlyStopping, LearningRateFinder, BatchSizeFinder, LearningRateMonitor),
    *(DeviceStatsMonitor, ThroughputMonitor, ModelSummary, ProgressBar, Timer),
    *(InitCallback, HealthMonitor),
)


@dataclass(frozen=True)
class Asked:
    """What is parsed and how the parser speaks.

    Attributes:
        arguments: Command-line arguments, or nested plain data.
        add_options: Adds a command's own options to the parser.
        prog: The command, for `--help`.
        description: What the command does, for `--help`.
    """

    arguments: Sequence[str] | Mapping[str, Any]
    add_options: Callable[[LightningArgumentParser], None] | None
    prog: str
    description: str | None


class _Parsed(BaseException):
    """Ends the user's constructor where Lightning's would have built and run everything."""


class _Front(LightningCLI):
    """Before the user's class: nothing is built until `make`."""

    asked: Asked
    options: tuple[str, ...] = ()  # the command's own, as keys
    defaults: dict[str, Any]  # for the Trainer, as the user's class has them
    real: Callable[..., pl.Trainer]  # what makes it
    ours: Sequence[pl.Callback] = ()

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        if self.asked.add_options is not None:
            before = {action.dest for action in parser._actions}
            try:
                self.asked.add_options(parser)
            except (ArgumentError, argparse.ArgumentError, ValueError) as error:
                name = type(self).__name__
                raise ConfigError(
                    f"{name} has an option of the same name: {one_line(error)}"
                ) from error
            self.options = tuple({action.dest for action in parser._actions} - before)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        # Lightning's own would look at the process's command line too
        parsed = parser.parse_object(args) if isinstance(args, dict) else parser.parse_args(args)
        self.config = parsed

    def _parse_ckpt_path(self) -> None:
        """A trial begins with a fresh init."""

    def _set_seed(self) -> None:
        """Nothing is built yet."""

    def before_instantiate_classes(self) -> None:
        """Not while parsing."""

    def instantiate_classes(self) -> None:
        """Not while parsing."""

    def after_instantiate_classes(self) -> None:
        """Not while parsing."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Never."""

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[pl.Callback]) -> Any:
        # where the overlay `trainer: callbacks+:` of a best.yaml has them
        config["callbacks"] = [*_listed(config.get("callbacks")), *self.ours]
        return super()._instantiate_trainer(config, callbacks)

    def _add_configure_optimizers_method_to_model(self, subcommand: str | None) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            super()._add_configure_optimizers_method_to_model(subcommand)

    def _dump_config(self) -> None:
        # As LightningCLI does for `save_hyperparameters`, but for checking once more what has been
        # parsed: a third of what it takes to build a small model.
        if hasattr(self, "config_dump"):
            return
        text = self.parser.dump(
            self.config,
            skip_link_targets=False,
            skip_none=False,
            format="yaml",
            skip_validation=True,
        )
        self.config_dump = yaml.safe_load(text)
        if self.subcommand is not None:
            self.config_dump = self.config_dump[self.subcommand]

    def make(
        self, config: Namespace, callbacks: Sequence[pl.Callback], short: Mapping[str, Any]
    ) -> Built:
        """Everything afresh, by the user's own hooks in Lightning's order.

        Args:
            config: As parsed.
            callbacks: Added after those of the configuration.
            short: Arguments of the Trainer that replace the configuration's and the user's.
        """
        pristine, self.config = self.config, config
        self.ours = callbacks
        vars(self).pop("config_dump", None)  # of the last build; hyperparameters are read off it
        self.trainer_defaults = deepcopy(self.defaults)
        self.trainer_class = self._make_trainer
        self._short = short
        try:
            super().before_instantiate_classes()
            inner = self.inner
            logs = inner.get("trainer.logger") is not False
            for key, value in short.items():  # before a logger or profiler is made
                if f"trainer.{key}" in inner:
                    inner[f"trainer.{key}"] = value
            super().instantiate_classes()
            # hooks and steps that tell the logger something must find one; it keeps nothing
            self.trainer.logger = DummyLogger()
            super().after_instantiate_classes()
            if self.subcommand is not None and (before := getattr(self, "before_fit", None)):
                before()
            if not logs:
                self.trainer.loggers = []
            # what only concerns the file of a logger must not end a trial
            self.model._log_hyperparams = False
            _without_files(self.model)
            return self.model, self.datamodule, self.trainer
        finally:
            self.config, self.trainer_class, self.ours = pristine, self.real, ()
            for name in ("model", "datamodule", "trainer", "config_init"):
                vars(self).pop(name, None)  # a trial's model is gone with the trial

    @property
    def inner(self) -> Namespace:
        """The configuration without a subcommand around it."""
        found: Namespace = self.config.get(str(self.subcommand), self.config)
        return found

    @property
    def inner_parser(self) -> LightningArgumentParser:
        """The parser of `inner`."""
        return self._parser(self.subcommand)

    def with_values(self, values: Mapping[str, Any]) -> Namespace:
        """The configuration with some keys changed, checked, and what is linked to them too."""
        try:
            # On copies: the parser writes into what it is given. A subcommand by its own parser:
            # the outer one forgets which class an `init_args` without `class_path` belongs to.
            found: Namespace = self.inner_parser.parse_object(
                nested(values), self.inner.clone(), defaults=False
            )
        except ArgumentError as error:
            raise ConfigError(explain(error, self.inner_parser)) from error
        if self.subcommand is None:
            return found
        whole: Namespace = self.config.clone()
        whole[self.subcommand] = found
        return whole

    def _make_trainer(self, **config: Any) -> Any:
        ours = {id(one) for one in self.ours}
        every = [
            one
            for one in _listed(config.get("callbacks"))
            if id(one) in ours or not isinstance(one, DROPPED)
        ]
        return self.real(**{**config, **self._short, "callbacks": every})


class _Behind(LightningCLI):
    """Behind the user's class: what reaches LightningCLI is what is parsed here."""

    asked: Asked
    users: type[LightningCLI]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = inspect.signature(LightningCLI.__init__).bind(self, *args, **kwargs).arguments
        del given["self"]
        run = given.get("run", True)
        asked = self.asked
        speech = {
            "exit_on_error": False,
            "prog": asked.prog,
            "usage": f"{asked.prog} --config FILE [options]",
            "description": asked.description,
        }
        users = given.get("parser_kwargs") or {}
        main = {key: value for key, value in users.items() if key not in self.users.subcommands()}
        arguments: Any = asked.arguments
        if run:
            fit = {**users.get("fit", {}), **speech}
            given["parser_kwargs"] = {**main, "exit_on_error": False, "fit": fit}
            wrapped = isinstance(arguments, Mapping)
            arguments = {"subcommand": "fit", "fit": arguments} if wrapped else ["fit", *arguments]
        else:
            given["parser_kwargs"] = {**main, **speech}
        given.update(args=arguments, save_config_callback=None, save_config_kwargs=None)
        self.defaults = given.get("trainer_defaults") or {}
        self.real = given.get("trainer_class", pl.Trainer)
        super().__init__(**given)
        raise _Parsed


def parse(recipe: Recipe, asked: Asked) -> _Front:
    """The user's LightningCLI with its configuration parsed, and nothing built."""
    fit = recipe.kind.subcommands().get("fit", LightningCLI.subcommands()["fit"])
    kind = type(
        recipe.kind.__name__,
        (_Front, recipe.kind, _Behind) if recipe.kind is not LightningCLI else (_Front, _Behind),
        {"asked": asked, "subcommands": staticmethod(lambda: {"fit": fit}), "users": recipe.kind},
    )
    cli: Any = object.__new__(kind)
    try:
        cli.__init__(*recipe.args, **recipe.kwargs)
    except _Parsed:
        assert isinstance(cli, _Front)
        return cli
    except ArgumentError as error:
        parsers = getattr(cli, "_subcommand_parsers", {})
        raise ConfigError(explain(error, parsers.get("fit", cli.parser))) from error
    raise TypeError(f"{recipe.kind.__name__} calls no LightningCLI.__init__ through super()")


def kept(callbacks: Any) -> list[Any]:
    """Callbacks that are part of the training."""
    return [one for one in _listed(callbacks) if not isinstance(one, DROPPED)]


def _without_files(model: pl.LightningModule) -> None:
    """The module's own callbacks too without those about files, bars and ending."""
    if is_overridden("configure_callbacks", model):
        own = model.configure_callbacks
        model.configure_callbacks = lambda: kept(own())  # type: ignore[method-assign]


def _listed(callbacks: Any) -> list[Any]:
    if callbacks is None:
        return []
    return list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks]
