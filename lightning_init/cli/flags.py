"""The options of every command: one table for the parser, for `--help` and for a quick check.

To add an option, add a line to the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lightning_init.architecture.arguments import unknown


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
_CLI = Flag(
    "--cli",
    "your own LightningCLI: the function or script that makes it",
    group="your configuration, as LightningCLI takes it",
    shows="FILE.py[:NAME]",
)
OBJECTIVES = ("last", "area", "steps_to", "gap", "pruned", "ensemble")
_BUDGET, _SPACE, _GOAL, _RUN = "budget", "what is tried", "what is best", "running"

FLAGS: dict[str, tuple[Flag, ...]] = {
    "list": (
        Flag("what", "what to list", default="all", choices=("strategies", "detectors", "all")),
        _JSON,
        Flag("--markdown", "as a table in Markdown", bool),
    ),
    "plan": (
        _CLI,
        _spec("how weights are drawn (auto)"),
        Flag("--diff", "another one to compare with", shows="NAME|FILE"),
        _JSON,
    ),
    "audit": (
        _CLI,
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
        _CLI,
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
            "training steps of a confirmation run (3 times --steps, at most your job's)",
            int,
            least=1,
            group=_BUDGET,
        ),
        Flag(
            "--longest-steps",
            "where nothing learns, trials begin anew, longer, up to this (3 times --steps, at most "
            "your job's); 0: never",
            int,
            least=0,
            group=_BUDGET,
        ),
        Flag("--seed", "of the screening; confirmation takes the next", int, 0, group=_BUDGET),
        Flag("--sampler", "gp pays from 50 trials", str, "tpe", ("tpe", "gp"), group=_BUDGET),
        Flag("--no-pruning", "let slow trials run to their end", bool, group=_BUDGET),
        Flag(
            "--strategies",
            "names, or files with an init spec, with commas; keep and auto are always in "
            "(those that apply to your model)",
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
        Flag(
            "--scale",
            "factor on std: all, head, residual, embedding, ...; =LOW:HIGH[:log] or =a,b,c "
            "(0.1:10:log); repeatable",
            many=True,
            group=_SPACE,
            shows="PART",
        ),
        Flag(
            "--space",
            "a YAML file with strategies, axes and scales; the options above go before it",
            group=_SPACE,
            shows="FILE",
        ),
        Flag("--lr-key", "the learning rate's key (found if single)", group=_SPACE, shows="KEY"),
        Flag(
            "--monitor",
            "metric (the checkpoint callback's, else val_loss, else the training loss)",
            group=_GOAL,
            shows="NAME",
        ),
        Flag(
            "--objective",
            "read off it; steps_to=TARGET, pruned=SPARSITY, ensemble=K; several with commas (last)",
            kinds=OBJECTIVES,
            many=True,
            group=_GOAL,
            shows="KIND",
        ),
        Flag("--mode", "which is better (by name)", choices=("min", "max"), group=_GOAL),
        Flag(
            "--workers",
            "processes (one per GPU, else one per core); 0: none",
            int,
            least=0,
            group=_RUN,
        ),
        Flag(
            "--trial-timeout",
            "a trial that takes longer is ended, and tried once more",
            float,
            least=1,
            group=_RUN,
            shows="SECONDS",
        ),
        Flag("--isolate", "a fresh process for each trial", bool, group=_RUN),
        Flag("--storage", "a database instead of the run's own file", group=_RUN, shows="URL"),
        Flag("--out", "run folder (lightning_init_runs/<config name>)", group=_RUN, shows="FOLDER"),
    ),
    "report": (
        Flag("run", "its folder, lightning_init_runs/NAME"),
        Flag("--out", "the page (RUN/report.html)", shows="FILE.html"),
        Flag("--storage", "the database, where the search was not kept in RUN", shows="URL"),
    ),
}

_SHARED = (
    *("--monitor", "--objective", "--mode", "--workers", "--storage", "--out"),
    *("--trial-timeout", "--isolate", "--cli"),
)
FLAGS["compare"] = (
    Flag(
        "specs",
        "a strategy's name, an init spec's file, or an overlay such as best.yaml",
        many=True,
    ),
    Flag("--seeds", "fresh paired seeds", int, 8, least=2, group=_BUDGET),
    Flag(
        "--steps", "training steps of a run (max_steps, at most 200)", int, least=1, group=_BUDGET
    ),
    *(flag for flag in FLAGS["search"] if flag.name in _SHARED),
)


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
        if flag.by_position and flag.many:
            more = {"nargs": "+"}  # the parser asks for at least one, so there is no default
        elif flag.by_position:
            more["nargs"] = "?"
        elif flag.many:
            more = {"action": "append"}
        elif flag.default is None:
            kind = kind | None
        parser.add_argument(*flag.spellings, type=kind, help=flag.help, **more)
