"""How much to search, and how to judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lightning_init.search.statistics import Mode


@dataclass(frozen=True, slots=True)
class Goal:
    """What a value of a trial is called, and whether smaller or larger is better."""

    name: str = "metric"
    mode: Mode = "min"

    def __post_init__(self) -> None:
        if self.mode not in ("min", "max"):
            raise ValueError(f"mode must be min or max, but got {self.mode!r}")


@dataclass(frozen=True, slots=True)
class Budget:
    """How much to search and how to judge.

    Attributes:
        trials: Trials in the screening, all sessions together.
        steps: Training steps of each.
        seed: Of the sampler and of every screening trial.
        confirm_seeds: Fresh seeds for the best few and the baseline.
        confirm_steps: Training steps of each confirmation run, at least `steps`; 0 for `steps`.
        top: How many are confirmed.
        goals: What each value of an outcome is; the first decides where one has to.
        sampler: `tpe` or `gp`.
        pruning: Whether trials that train slower than half of the others are ended early.
        lr_key: The configuration key that is the learning rate, `""` for none.
        identity: What must be the same for a study to go on.
        longest_steps: Where nothing learns, trials are made longer, up to this; 0 for never.
        too_short: Steps with which the search began, and nothing learned.
    """

    trials: int = 40
    steps: int = 200
    seed: int = 0
    confirm_seeds: int = 5
    confirm_steps: int = 0
    top: int = 3
    goals: tuple[Goal, ...] = (Goal(),)
    sampler: Literal["tpe", "gp"] = "tpe"
    pruning: bool = True
    lr_key: str = ""
    identity: str = ""
    longest_steps: int = 0
    too_short: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, least in (("trials", 1), ("steps", 1), ("confirm_seeds", 2), ("top", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name} >= {least}` must hold, but got {getattr(self, name)}")
        if self.sampler not in ("tpe", "gp"):
            raise ValueError(f"sampler must be tpe or gp, but got {self.sampler!r}")
        if self.longest_steps < 0:
            raise ValueError(f"`longest_steps >= 0` must hold, but got {self.longest_steps}")
        if self.confirm_steps and self.confirm_steps < self.steps:
            raise ValueError(
                f"`confirm_steps >= steps` must hold, but got {self.confirm_steps} < {self.steps}"
            )

    @staticmethod
    def longer(steps: int, job_steps: int | None) -> int:
        """Three times the steps of a trial, but no more than the job itself has.

        Args:
            steps: Of a trial.
            job_steps: Of the user's own job, None if it is not known.

        Example:
            >>> Budget.longer(200, None), Budget.longer(200, 450), Budget.longer(200, 100)
            (600, 450, 200)
        """
        return max(steps, 3 * steps if job_steps is None else min(3 * steps, job_steps))

    def to_dict(self) -> dict[str, Any]:
        """Plain data; `from_dict` reads it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Budget:
        """The budget in plain data."""
        goals = tuple(Goal(**goal) for goal in data["goals"])
        return cls(**{**data, "goals": goals, "too_short": tuple(data.get("too_short", ()))})

    @property
    def mode(self) -> Mode:
        """The first goal's."""
        return self.goals[0].mode

    @property
    def monitor(self) -> str:
        """The first goal's name."""
        return self.goals[0].name

    @property
    def horizon(self) -> int:
        """Training steps of a confirmation run."""
        return self.confirm_steps or self.steps
