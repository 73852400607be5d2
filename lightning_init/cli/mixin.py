"""`search` as a subcommand of the user's own LightningCLI, beside fit, validate, test, predict."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lightning_init.cli.main import COMMANDS, guarded
from lightning_init.cli.quick import FULL, help_of
from lightning_init.search.own_cli import Recipe, offer


class SearchMixin(LightningCLI):
    """Gives a LightningCLI the subcommand `search`; its other subcommands are unchanged.

    `python main.py search --config config.yaml --trials 40` takes the options of
    `lightning-init search` and of the class itself, and writes the same folder. Worker processes
    import the script again, so it makes the class under `if __name__ == "__main__":`.

    Example:
        >>> from lightning.pytorch.cli import LightningCLI
        >>> from lightning_init import SearchMixin
        >>> class CLI(SearchMixin, LightningCLI):
        ...     pass
    """

    _recipe: Recipe

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Remember how it is called: trials call it again."""
        recipe = Recipe(cls, args, kwargs)
        offer(recipe)
        made: Self = object.__new__(cls)
        made._recipe = recipe
        return made

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        super()._add_subcommands(parser, **kwargs)
        listed = parser._subcommands_action
        if listed is not None:  # so that `--help` names it; `parse_arguments` runs it
            own = LightningArgumentParser(description=COMMANDS["search"])
            listed.add_subcommand("search", own, help=COMMANDS["search"])

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse as ever, unless the subcommand is `search`: then run it and exit."""
        given = sys.argv[1:] if args is None else args
        runs = hasattr(self, "_subcommand_parsers") and isinstance(given, list)
        if runs and (rest := _after_search(given)) is not None:
            raise SystemExit(guarded(lambda: self._search(rest), "--debug" in rest))
        super().parse_arguments(parser, args)

    def _search(self, arguments: Sequence[str]) -> int:
        prog = Path(sys.argv[0]).name or "main.py"
        rest = [argument for argument in arguments if argument != "--debug"]
        if {"-h", "--help"} & set(rest) and FULL not in rest:
            print(help_of("search", COMMANDS["search"], prog))
            return 0
        from lightning_init.cli.search import run  # so that a `fit` does not wait for it

        return run(rest, self._recipe, prog)


def _after_search(given: Sequence[str]) -> list[str] | None:
    """The arguments without the subcommand, None if it is another one."""
    before: list[str] = []
    for index, argument in enumerate(given):
        if argument == "search":
            return [*before, *given[index + 1 :]]
        configures = argument.startswith(("--config", "-c"))
        if not configures and not (before and before[-1] in ("--config", "-c")):
            return None
        before.append(argument)
    return None
