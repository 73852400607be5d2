"""`--help` and mistakes in an option, answered before anything heavy is imported.

Only the standard library is needed; what needs the user's model (its metrics, its configuration's
keys) is checked when that is known.
"""

from __future__ import annotations

import argparse
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning_init.architecture.arguments import unknown
from lightning_init.cli.flags import FLAGS, Flag

_WIDTH = 80
# LightningCLI's own: they reach its parser as they are.
_THEIRS = ("config", "model", "data", "trainer", "optimizer", "lr_scheduler", "seed_everything")
FULL = "all"  # `--help all` lists LightningCLI's options too


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


def help_of(command: str, about: str, prog: str = "lightning-init") -> str:
    """The help of a command, at most 80 columns wide."""
    takes_config = command not in ("list", "report")
    given = " --config FILE" if takes_config else ""
    by_position = "".join(
        f" {f.name}..." if f.many else f" [{f.name}]" for f in FLAGS[command] if f.by_position
    )
    parser = argparse.ArgumentParser(
        prog=f"{prog} {command}",
        usage=textwrap.fill(
            f"{prog} {command}{by_position}{given} [options]",
            _columns() - len("usage: "),
            subsequent_indent=" " * len("usage: "),
        ),
        description=f"{about[:1].upper()}{about[1:]}.",
        formatter_class=_Formatter,
        add_help=False,
        epilog=f"--help {FULL} lists the options of LightningCLI too." if takes_config else None,
    )
    groups: dict[str, Any] = {}
    if takes_config:
        theirs = parser.add_argument_group("your configuration, as LightningCLI takes it")
        theirs.add_argument("--config", metavar="FILE", help="repeatable; later ones win")
        groups[str(theirs.title)] = theirs
        theirs.add_argument("--model.KEY", metavar="VALUE", help="also --data.KEY, --trainer.KEY")
    for flag in FLAGS[command]:
        if flag.name == "--cli" and prog != "lightning-init":
            continue  # the program is the user's own
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
        super().__init__(prog, max_help_position=28, width=_columns())


def _columns() -> int:
    return max(40, min(_WIDTH, shutil.get_terminal_size((_WIDTH, 24)).columns))


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
