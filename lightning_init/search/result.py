"""What a search found, and whether it is better than leaving the model alone."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna

from lightning_init.callbacks.init import InitCallback
from lightning_init.search import overlay, verdict
from lightning_init.search.budget import Goal
from lightning_init.search.candidates import Candidate
from lightning_init.search.decision import Decision, against, decide, level_for, preference
from lightning_init.search.plain import plain
from lightning_init.search.stability import Stability, stability
from lightning_init.search.statistics import Comparison, Mode
from lightning_init.search.sweep import Rates
from lightning_init.strategies.spec import InitSpec

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

FILES = ("best.yaml", "results.json", "report.html")


@dataclass(frozen=True)
class SearchResult:
    """The confirmed candidates, compared with `keep` on the same seeds.

    Attributes:
        baseline: The as-built model, `keep`.
        best: The winner: a candidate that beats the baseline by more than the noise, else the
            baseline.
        candidates: What was confirmed, best mean first.
        goals: What each value of a run is called, and its direction.
        versus_keep: For each candidate, goal by goal, against the baseline.
        owns: The baseline's own statistics, goal by goal.
        trials: All screening trials as plain data.
        steps: Training steps of each run.
        study: The Optuna study of the screening, or of the comparison.
        decision: Why `best` is recommended, and whose the gain is.
        rates: Label without the learning rate -> (learning rate, metric or None), in order.
        stability: Whether the order is the same after the screening's steps and after `steps`;
            None if both are the same.
        rate_key: The configuration key that is the learning rate, `""` for none.
        note: What came between, as that trials were made longer; `""` for nothing.
        lists: The user's own lists that keys of the configuration reach into.
        seeds_option: What sets the number of seeds.
    """

    baseline: Candidate
    best: Candidate
    candidates: tuple[Candidate, ...]
    goals: tuple[Goal, ...]
    versus_keep: tuple[tuple[Comparison, ...], ...]
    owns: tuple[Comparison, ...]
    trials: tuple[dict[str, Any], ...]
    steps: int
    study: optuna.Study = field(repr=False)
    decision: Decision = field(repr=False)
    rates: Mapping[str, Rates] = field(default_factory=dict, repr=False)
    stability: Stability | None = None
    rate_key: str = ""
    note: str = ""
    lists: Mapping[str, list[Any]] = field(default_factory=dict, repr=False)
    seeds_option: str = field(default="--confirm-seeds", repr=False)

    @classmethod
    def judge(
        cls,
        baseline: Candidate,
        candidates: Sequence[Candidate],
        trials: tuple[dict[str, Any], ...],
        *,
        goals: Sequence[Goal],
        steps: int,
        study: optuna.Study,
        screened: int = 0,
        rates: Mapping[str, Rates] | None = None,
        rate_key: str = "",
        note: str = "",
        lists: Mapping[str, list[Any]] | None = None,
        seeds_option: str = "--confirm-seeds",
    ) -> SearchResult:
        """Compare and choose, see `decide`.

        Args:
            baseline: The as-built model with its runs.
            candidates: The others, with runs on the same seeds.
            trials: The screening trials as plain data.
            goals: What each value of a run is.
            steps: Training steps of each run.
            study: Where the trials are.
            screened: Training steps of a screening trial, 0 if there was none.
            rates: What the sweep of learning rates found.
            rate_key: The configuration key that is the learning rate.
            note: What came between.
            lists: The user's own lists that keys of the configuration reach into.
            seeds_option: What sets the number of seeds.
        """
        goals = tuple(goals)
        level = level_for(len(candidates), len(goals))
        compared = [(one, against(one, baseline, goals, level)) for one in candidates]
        compared.sort(key=lambda pair: preference(pair[0], pair[1], goals))
        ordered = tuple(one for one, _ in compared)
        decision = decide(baseline, ordered, goals, rate_key)
        return cls(
            baseline=baseline,
            best=decision.best,
            candidates=ordered,
            goals=goals,
            versus_keep=tuple(found for _, found in compared),
            owns=against(baseline, baseline, goals, 0.95),
            trials=trials,
            steps=steps,
            study=study,
            decision=decision,
            rates=rates or {},
            stability=_stability([baseline, *ordered], (screened, steps), goals[0].mode),
            rate_key=rate_key,
            note=note,
            lists=lists or {},
            seeds_option=seeds_option,
        )

    @property
    def mode(self) -> Mode:
        """Whether a smaller or larger first goal is better."""
        return self.goals[0].mode

    @property
    def monitor(self) -> str:
        """What the first goal is called."""
        return self.goals[0].name

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """One per candidate, against the baseline, in the first goal."""
        return tuple(found[0] for found in self.versus_keep)

    @property
    def own(self) -> Comparison:
        """The baseline's own statistics in the first goal."""
        return self.owns[0]

    @property
    def results(self) -> tuple[dict[str, Any], ...]:
        """One row per screening trial, as plain data."""
        return self.trials

    def versus(self, one: Candidate) -> tuple[Comparison, ...]:
        """A candidate against the baseline, goal by goal."""
        return self.versus_keep[self.candidates.index(one)]

    def suggestion(self) -> InitSpec | None:
        """The winner's init, None if nothing beats `keep` by more than the noise."""
        return None if self.best.is_baseline else self.best.spec

    def verdict(self) -> str:
        """One sentence: the winner and by how much, or that no difference was found."""
        return verdict.verdict(self)

    def lines(self) -> list[str]:
        """All that is said under the table, a sentence each."""
        return verdict.lines(self)

    def heads(self, goal: int = 0) -> tuple[str, ...]:
        """The heads of `rows`."""
        name = self.goals[goal].name
        return ("init", f"{name}, mean ± sd", "better by [95 %]", "P", "failed")

    def rows(self, goal: int = 0) -> list[tuple[str, ...]]:
        """The confirmed candidates and `keep` as text, for one goal.

        Args:
            goal: Its number, from 0.

        Returns:
            Name, mean and spread, difference to `keep`, probability of being better, failures.
        """
        pairs = [
            *(
                (one, found[goal])
                for one, found in zip(self.candidates, self.versus_keep, strict=True)
            ),
            (self.baseline, self.owns[goal]),
        ]
        found: list[tuple[str, ...]] = []
        for one, versus in pairs:
            failed = f"{versus.failures} of {len(one.runs)}" if versus.failures else "0"
            name = f"{one.label} (winner)" if one is self.best else one.label
            keep = one.is_baseline
            difference = "baseline" if keep else verdict.interval(versus)
            chance = "" if keep or math.isnan(versus.chance) else f"{versus.chance:.2f}"
            found.append((name, verdict.spread(versus), difference, chance, failed))
        return found

    def to_callback(self, **arguments: Any) -> InitCallback:
        """The callback that applies the winner."""
        return InitCallback.from_spec(self.best.spec, **arguments)

    def overlay(self) -> dict[str, Any]:
        """The winner as a LightningCLI configuration to put after the user's own."""
        return overlay.overlay(self)

    def plot(self) -> Figure:
        """The loss curves of the confirmation runs, as a plotly figure."""
        from lightning_init.search.confirmed import curves

        with warnings.catch_warnings():  # plotly adds filters of its own for good
            from plotly.graph_objects import Figure

            return Figure(curves(self))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return plain(self)

    @classmethod
    def load(cls, folder: str | Path, storage: str | None = None) -> SearchResult:
        """The result of a search from what its folder holds; runs nothing.

        Args:
            folder: The run's folder.
            storage: The database, where the search was not kept in the folder.

        Raises:
            ValueError: If there is no search, or if it has not ended.
        """
        from lightning_init.search.study import read_back

        return read_back(folder, storage)

    def save(self, folder: str | Path, names: Sequence[str] = FILES) -> None:
        """Write the winner, all the numbers, and the page.

        Args:
            folder: Made if it does not exist.
            names: What the three files are called; `""` leaves one out.
        """
        from lightning_init.search.overview import Overview
        from lightning_init.search.page import page

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        winner, numbers, shown = names
        if winner:
            path = folder / winner
            path.write_text(overlay.text(self, path), encoding="utf-8")
        results = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        (folder / numbers).write_text(results, encoding="utf-8")
        text = page(Overview.of(self, folder if winner else ""), folder.name)
        (folder / shown).write_text(text, encoding="utf-8")


def _stability(
    everyone: Sequence[Candidate], steps: tuple[int, int], mode: Mode
) -> Stability | None:
    early, late = steps
    if not 0 < early < late:
        return None
    return stability(
        [one.label for one in everyone],
        [[run.reading(early) for run in one.runs] for one in everyone],
        [one.metrics for one in everyone],
        steps,
        mode,
    )
