"""What a parser's error means for the one who typed: one line, closest legal name first."""

from __future__ import annotations

import inspect
import pkgutil
import re
from collections.abc import Iterable
from importlib import import_module
from types import ModuleType

import lightning.pytorch as pl
from jsonargparse import ArgumentParser

from lightning_init.architecture.arguments import unknown

_KEY = r'Parser key "(?P<key>[^"]+)"'
_NO_MODEL = (
    "no model: pass --config FILE with `model:` (class_path, init_args) as your LightningCLI "
    "takes it, or --model package.Class before --config"
)


class ConfigError(ValueError):
    """A configuration that does not fit; the text is one line and says what is legal."""


def one_line(error: BaseException) -> str:
    """An error's text on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def explain(error: BaseException, parser: ArgumentParser) -> str:
    """An error of the configuration's parser in plain words.

    Args:
        error: What the parser raised.
        parser: The parser, for the legal names.

    Returns:
        One line: what is wrong, what was received, what is legal.
    """
    text = one_line(error)
    if re.search(r"arguments are required: model\b", text):
        return _NO_MODEL
    if found := re.search(r"[Uu]nrecognized arguments: (--?[^\s=]+)", text):
        return unknown("option", found[1], _options(parser, found[1]))
    if found := re.search(r"Group '(\w+)' does not accept option '(\w+)'", text):
        return f"{found[1]}: {unknown('argument', found[2], _arguments(pl.Trainer))}"
    where = found["key"] if (found := re.match(_KEY, text)) else ""
    if found := re.search(r"Problem with given class_path '([^']+)': (.*)", text):
        return f"{where}: {_inside(found[1], _without_union(found[2]))}"
    rest = _without_union(text)
    return _expected(rest) or rest


def _inside(path: str, problem: str) -> str:
    if found := re.search(r"Option '([^']+)' is not accepted", problem):
        if path in ("lightning.LightningModule", "lightning.LightningDataModule"):
            return (
                "there is no class_path: write class_path and init_args, or name the class "
                "before the file: --model package.Class --config FILE, or your own LightningCLI: "
                "--cli train.py:main"
            )
        return f"{path} has no such thing: {unknown('argument', found[1], _arguments_of(path))}"
    if found := re.search(r"module '([^']+)' has no attribute '([^']+)'", problem):
        return unknown("class or module", f"{found[1]}.{found[2]}", _members(found[1]))
    return f"{path}: {_expected(problem) or problem}"


def _expected(text: str) -> str | None:
    """`Expected a <class 'int'>. Got value: abc` in plain words."""
    found = re.search(rf"{_KEY}: Expected an? (?P<what>.+?)\. Got value: (?P<got>.*)", text)
    if found is None:
        return None
    key, what, got = found["key"], found["what"], found["got"]
    if choices := re.findall(r"Literal\[(.*)\]", what):
        legal = re.findall(r"'([^']*)'", choices[0])
        return f"{key}: {unknown('value', got, legal)}"
    plain = re.sub(r"<class '([\w.]+)'>", r"\1", what)
    return f"{key} must be {plain}, but got {got!r}"


def _without_union(text: str) -> str:
    """Drop what jsonargparse says of the alternatives that were not meant."""
    text = re.sub(r"Does not validate against any of the Union subtypes.*?Errors: - ", "", text)
    text = re.sub(r" - Expected a <class 'NoneType'>.*", "", text)
    return re.sub(r" Given value type: .*", "", text)


def _options(parser: ArgumentParser, typed: str) -> Iterable[str]:
    """The options that may have been meant: the Trainer's many only if they were."""
    every = [option for action in parser._actions for option in action.option_strings]
    inner = typed.startswith(("--trainer.", "--model.", "--data."))
    return [  # a link is listed beside the options, without dashes
        o
        for o in every
        if o.startswith("-")
        and not o.endswith(".help")
        and (inner or not o.startswith("--trainer."))
    ]


def _arguments(kind: object) -> list[str]:
    assert callable(kind)
    return [name for name in inspect.signature(kind).parameters if name not in ("args", "kwargs")]


def _arguments_of(path: str) -> list[str]:
    module, _, name = path.rpartition(".")
    kind = getattr(import_module(module), name, None) if module else None
    return _arguments(kind) if callable(kind) else []


def _members(path: str) -> list[str]:
    """Lightning classes and submodules of a module, with the module's name."""
    module: ModuleType = import_module(path)
    classes = [
        f"{path}.{name}"
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and issubclass(value, (pl.LightningModule, pl.LightningDataModule))
    ]
    inner = [
        f"{path}.{found.name}" for found in pkgutil.iter_modules(getattr(module, "__path__", ()))
    ]
    return [*classes, *inner]
