"""The options of every command: one table for `--help`, for a quick check, and for the parser.

Only the standard library is needed to answer `--help` and a mistake in an option; what needs the
user's model (its metrics, its configuration's keys) is checked when that is known. To add an
option, add a line to the table.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning_init.architecture.arguments import unknown

_WIDTH = 80
# LightningCLI's own: they reach its parser as they are.
_THEIRS = ("config", "model", "data", "trainer", "optimizer", "lr_scheduler", "seed_everything")
FULL = "all"  # `--help all` lists LightningCLI's options too


@dataclass(frozen=True, slots=True)
class Flag:
    """One option of a command, or an argument by position.

    Attributes:
        name: `--confirm-seeds`; without dashes an argument by position.
        help: What it is for, in a few words.
        kind: `bool` is a switch.
        default: None where the command finds it out.
        choices: Legal values, empty for any.
        kinds: Legal values of a list with commas, each perhaps with `=NUMBER`.
        least: The smallest legal number.
        many: Whether it can be given several times.
        group: The heading in the help.
        shows: The value in the help.
    """

    name: str
    help: str
    kind: type = str
    default: Any = None
    choices: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    least: float | None = None
    many: bool = False
    group: str = "options"
    shows: str = ""

    @property
    def by_position(self) -> bool:
        """Whether it has no dashes."""
        return not self.name.startswith("-")

    @property
    def spellings(self) -> tuple[str, ...]:
        """With underscores as the configuration has it, and with dashes as people type it."""
        under = self.name if self.by_position else f"--{self.name[2:].replace('-', '_')}"
        return tuple(dict.fromkeys((under, self.name)))

    def check(self, text: str) -> None:
        """Refuse a value that cannot be.

        Raises:
            ValueError: If it is not of the kind, not among the choices, or too small.
        """
        if self.choices and text not in self.choices:
            raise ValueError(f"{self.name}: {unknown('value', text, self.choices)}")
        for item in text.split(",") if self.kinds else ():
            kind = item.strip().partition("=")[0]
            if kind not in self.kinds:
                raise ValueError(f"{self.name}: {unknown(self.name[2:], kind, self.kinds)}")
        if self.kind not in (int, float):
            return
        what = "a whole number" if self.kind is int else "a number"
        try:
            number = self.kind(text)
        except ValueError:
            raise ValueError(f"{self.name} must be {what}, but got {text!r}") from None
        if self.least is not None and not number >= self.least:
            raise ValueError(f"`{self.name} >= {self.least:g}` must hold, but got {text}")


def _spec(help: str) -> Flag:
    return Flag("--strategy", help, shows="NAME|FILE")


_JSON = Flag("--json", "print JSON", bool)
_BUDGET, _SPACE, _GOAL, _RUN = "budget", "what is tried", "what is best", "running"

FLAGS: dict[str, tuple[Flag, ...]] = {
    "list": (
        Flag("what", "what to list", default="all", choices=("strategies", "detectors", "all")),
        _JSON,
        Flag("--markdown", "as a table in Markdown", bool),
    ),
    "plan": (
        _spec("how weights are drawn (auto)"),
        Flag("--diff", "another one to compare with", shows="NAME|FILE"),
        _JSON,
    ),
    "audit": (
        Flag(
            "--strategy",
            "repeatable, then side by side (keep)",
            many=True,
            shows="NAME|FILE",
        ),
        Flag(
            "--baseline",
            "train it, and one hidden layer beside it on the same batches: is depth worse?",
            bool,
        ),
        Flag("--steps", "training steps with --baseline (100)", int, least=1),
        Flag("--out", "FILE.json, FILE.html (with the plots), or a folder for both", shows="PATH"),
        _JSON,
    ),
    "search": (
        Flag("--trials", "in all; the same command goes on", int, 40, least=1, group=_BUDGET),
        Flag(
            "--steps",
            "training steps of a trial (max_steps, at most 200)",
            int,
            least=1,
            group=_BUDGET,
        ),
        Flag("--confirm-seeds", "fresh paired seeds", int, 5, least=2, group=_BUDGET),
        Flag(
            "--confirm-steps",
            "training steps of a confirmation run, at least --steps (--steps)",
            int,
            least=1,
            group=_BUDGET,
        ),
        Flag("--seed", "of the screening; confirmation takes the next", int, 0, group=_BUDGET),
        Flag("--sampler", "gp pays from 50 trials", str, "tpe", ("tpe", "gp"), group=_BUDGET),
        Flag("--no-pruning", "let slow trials run to their end", bool, group=_BUDGET),
        Flag(
            "--strategies",
            "names, or files with an init spec, with commas; keep is always in",
            group=_SPACE,
            shows="A,B,...",
        ),
        Flag(
            "--axis",
            "KEY=LOW:HIGH[:log] or KEY=a,b,c; repeatable",
            many=True,
            group=_SPACE,
            shows="KEY=...",
        ),
        Flag("--lr-key", "the learning rate's key (found if single)", group=_SPACE, shows="KEY"),
        Flag(
            "--monitor",
            "metric (the checkpoint callback's, else val_loss, else the training loss)",
            group=_GOAL,
            shows="NAME",
        ),
        Flag("--mode", "which is better (by name)", choices=("min", "max"), group=_GOAL),
        Flag(
            "--workers",
            "processes (one per GPU, else one per core); 0: none",
            int,
            least=0,
            group=_RUN,
        ),
        Flag("--storage", "a database instead of the run's own file", group=_RUN, shows="URL"),
        Flag("--out", "run folder (lightning_init_runs/<config name>)", group=_RUN, shows="FOLDER"),
    ),
}


def add_flags(parser: Any, command: str) -> None:
    """Add a command's options to a jsonargparse parser.

    Args:
        parser: An ArgumentParser of jsonargparse, also LightningCLI's.
        command: A key of the table.
    """
    for flag in FLAGS[command]:
        if flag.kind is bool:
            parser.add_argument(*flag.spellings, action="store_true", help=flag.help)
            continue
        literal: Any = Literal  # of choices that are known only when the program runs
        kind: Any = literal[flag.choices] if flag.choices else flag.kind
        more: dict[str, Any] = {"default": flag.default}
        if flag.by_position:
            more["nargs"] = "+" if flag.many else "?"
        elif flag.many:
            more = {"action": "append"}
        elif flag.default is None:
            kind = kind | None
        parser.add_argument(*flag.spellings, type=kind, help=flag.help, **more)


def answer(command: str, arguments: Sequence[str], about: str) -> str | None:
    """Refuse mistakes in a command's own options, or answer `--help`, without anything heavy.

    Args:
        command: A key of the table.
        arguments: What follows the command.
        about: The command in a few words.

    Returns:
        The help if it is asked for, else None.

    Raises:
        ValueError: If an option is unknown or its value cannot be.
    """
    own = {spelling: flag for flag in FLAGS[command] for spelling in flag.spellings}
    takes_config = command not in ("list", "report")
    positions = [flag for flag in FLAGS[command] if flag.by_position]
    given = _Tokens(arguments)
    names: set[str] = set()
    for token in given:
        name, equals, value = token.partition("=")
        names.add(name)
        if name in ("-h", "--help"):
            return None if given.peek == FULL else help_of(command, about)
        if name in own and name.startswith("-"):
            _value(given, own[name], name, value if equals else None)
        elif takes_config and _is_theirs(name):
            value = value if equals else given.take()
            if name in ("--config", "-c"):
                _exists(value)
        elif name.startswith("-"):
            # A command line of the user's own may have any options.
            if "--cli" not in own or not any(t.startswith("--cli") for t in arguments):
                legal = [flag.name for flag in FLAGS[command] if not flag.by_position]
                more = ["--config", "--help"] if takes_config else ["--help"]
                raise ValueError(unknown("option", name, [*legal, *more]))
            given.take()
        elif positions:
            positions[0].check(token)
            positions = positions if positions[0].many else positions[1:]
        else:
            hint = ": a configuration goes after --config" if token.endswith("ml") else ""
            raise ValueError(f"unexpected argument {token!r}{hint}")
    if takes_config and not any(n in ("-c", "--cli") or _is_theirs(n) for n in names):
        raise ValueError(
            "no model: pass --config FILE with `model:` (class_path, init_args) as your "
            "LightningCLI takes it"
        )
    return None


def help_of(command: str, about: str) -> str:
    """The help of a command, at most 80 columns wide."""
    takes_config = command not in ("list", "report")
    given = " --config FILE" if takes_config else ""
    by_position = "".join(
        f" {f.name}..." if f.many else f" [{f.name}]" for f in FLAGS[command] if f.by_position
    )
    parser = argparse.ArgumentParser(
        prog=f"lightning-init {command}",
        usage=f"lightning-init {command}{by_position}{given} [options]",
        description=f"{about[:1].upper()}{about[1:]}.",
        formatter_class=_Formatter,
        add_help=False,
        epilog=f"--help {FULL} lists the options of LightningCLI too." if takes_config else None,
    )
    groups: dict[str, Any] = {}
    if takes_config:
        theirs = parser.add_argument_group("your configuration, as LightningCLI takes it")
        theirs.add_argument("--config", metavar="FILE", help="repeatable; later ones win")
        theirs.add_argument("--model.KEY", metavar="VALUE", help="also --data.KEY, --trainer.KEY")
    for flag in FLAGS[command]:
        if flag.group not in groups:
            groups[flag.group] = parser.add_argument_group(flag.group)
        text = flag.help.replace("%", "%%")
        if flag.default is not None:
            text += f" ({flag.default})"
        if flag.kind is bool:
            groups[flag.group].add_argument(flag.name, action="store_true", help=text)
        else:
            shows = flag.shows or "|".join(flag.choices) or {int: "N", float: "X"}.get(flag.kind)
            if flag.by_position:
                shows, text = flag.name, "; ".join(t for t in (shows, text) if t)
            groups[flag.group].add_argument(flag.name, metavar=shows, help=text)
    return parser.format_help().rstrip()


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        width = min(_WIDTH, shutil.get_terminal_size((_WIDTH, 24)).columns)
        super().__init__(prog, max_help_position=28, width=max(40, width))


class _Tokens:
    """Arguments one by one; a value can be taken off ahead of its turn."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._rest = list(arguments)

    def __iter__(self) -> Iterator[str]:
        while self._rest:
            yield self._rest.pop(0)

    @property
    def peek(self) -> str:
        return self._rest[0] if self._rest else ""

    def take(self) -> str:
        """The next one if it is no option, else nothing."""
        return self._rest.pop(0) if self._rest and not self.peek.startswith("--") else ""


def _is_theirs(name: str) -> bool:
    return name in ("-c", "--print_config") or name[2:].partition(".")[0].rstrip("+") in _THEIRS


def _value(given: _Tokens, flag: Flag, name: str, value: str | None) -> None:
    if flag.kind is bool:
        if value is not None:
            raise ValueError(f"{name} takes no value, but got {value!r}")
        return
    text = given.take() if value is None else value
    if not text:
        what = flag.shows or "|".join(flag.choices) or "a value"
        raise ValueError(f"{name} needs {what}")
    flag.check(text)


def _exists(path: str) -> None:
    if not path:
        raise ValueError("--config needs FILE")
    if not Path(path).is_file():
        there = [str(found) for found in sorted(Path(path).parent.glob("*.y*ml"))]
        raise ValueError(unknown("configuration file", path, there))
