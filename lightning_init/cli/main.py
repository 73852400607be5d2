"""`lightning-init <command>`: find the command, turn every error into one line.

To add a command, write its file beside this one with a function `run(arguments) -> exit code` and
add a line to the table below. Nothing heavy is imported before the command is known.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from lightning_init.cli.quick import answer

COMMANDS = {
    "list": "strategies and detectors, with parameters, ranges and references",
    "plan": "what would happen to every tensor, and why; changes nothing",
    "audit": "one batch forward and backward; exit code 1 on an error",
    "search": "find the best init by short trials; resumable",
    "report": "one HTML file with the plots of a run, also while it goes on",
    "compare": "given inits against the model as it is, paired, on fresh seeds",
}
_USAGE = "usage: lightning-init <command> [options] [--debug]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Without the program's name; None takes the process's.

    Returns:
        0 done, 1 findings of severity error, 2 usage, 130 interrupted.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    if not given or given[0] in ("-h", "--help"):
        print(_help())
        return 0
    if given[0] == "--version":
        from lightning_init import __version__

        print(f"lightning-init {__version__}")
        return 0
    command, *rest = given
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return _fail(f"unknown command {command!r}: {hint}Legal are {', '.join(COMMANDS)}")
    try:
        if text := answer(command, rest, COMMANDS[command]):
            print(text)
            return 0
    except ValueError as error:
        if debug:
            raise
        return _fail(str(error))
    # `python -m` would do that: the classes that a configuration names live in this folder.
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    return guarded(lambda: int(import_module(f"lightning_init.cli.{command}").run(rest)), debug)


def guarded(act: Callable[[], int], debug: bool = False) -> int:
    """Run a command and turn every error into one line and an exit code.

    Args:
        act: The command.
        debug: Whether an error is raised as it is.
    """
    try:
        return act()
    except KeyboardInterrupt:
        print("lightning-init: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader (`| head`) has seen enough
        sys.stdout = None  # nothing is left to flush
        return 0
    except Exception as error:
        if debug:
            raise
        text = " ".join(str(error).split())
        kind = type(error).__name__
        # A mistake in the arguments speaks for itself; anything else says what kind it is.
        ours = type(error).__module__.startswith("lightning_init.")
        known = ours or isinstance(error, (ValueError, FileNotFoundError))
        return _fail(text if known and text else f"{kind}: {text} (--debug shows where)")


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [_USAGE, "", "commands:", *lines, "", "lightning-init <command> --help tells its options"]
    )


def _fail(text: str) -> int:
    print(f"lightning-init: {text}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
