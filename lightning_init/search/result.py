"""What a search found, and whether it is better than leaving the model alone."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import yaml

from lightning_init.callbacks.init import InitCallback
from lightning_init.search.candidates import Candidate, short
from lightning_init.search.keys import nested
from lightning_init.search.statistics import Comparison, Mode, compare
from lightning_init.strategies.spec import InitSpec

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True)
class SearchResult:
    """The confirmed candidates, compared with `keep` on the same seeds.

    Attributes:
        baseline: The as-built model, `keep`.
        best: The winner: a candidate that beats the baseline by more than the noise, else the
            baseline.
        candidates: What was confirmed, best mean first.
        comparisons: One per candidate, against the baseline.
        own: The baseline's own statistics.
        trials: All screening trials as plain data.
        mode: Whether a smaller or larger metric is better.
        monitor: What the metric is called.
        steps: Training steps of each run.
        study: The Optuna study of the screening.
    """

    baseline: Candidate
    best: Candidate
    candidates: tuple[Candidate, ...]
    comparisons: tuple[Comparison, ...]
    own: Comparison
    trials: tuple[dict[str, Any], ...]
    mode: Mode
    monitor: str
    steps: int
    study: optuna.Study = field(repr=False)

    @classmethod
    def judge(
        cls,
        baseline: Candidate,
        candidates: tuple[Candidate, ...],
        trials: tuple[dict[str, Any], ...],
        *,
        mode: Mode,
        monitor: str,
        steps: int,
        study: optuna.Study,
    ) -> SearchResult:
        """Compare and choose.

        The interval of each candidate is widened for the number of candidates (Bonferroni), so
        that picking the best of them is not mistaken for being better.
        """
        level = 1 - 0.05 / max(1, len(candidates))
        own = compare(baseline.metrics, baseline.metrics, mode)
        compared = [(c, compare(c.metrics, baseline.metrics, mode, level)) for c in candidates]
        sign = 1 if mode == "min" else -1

        def rank(pair: tuple[Candidate, Comparison]) -> tuple[int, float]:
            mean = pair[1].mean
            return pair[1].failures, math.inf if math.isnan(mean) else sign * mean

        compared.sort(key=rank)
        winners = [one for one, against in compared if against.better(own.failures)]
        return cls(
            baseline=baseline,
            best=winners[0] if winners else baseline,
            candidates=tuple(one for one, _ in compared),
            comparisons=tuple(against for _, against in compared),
            own=own,
            trials=trials,
            mode=mode,
            monitor=monitor,
            steps=steps,
            study=study,
        )

    @property
    def results(self) -> tuple[dict[str, Any], ...]:
        """One row per screening trial, as plain data."""
        return self.trials

    def suggestion(self) -> InitSpec | None:
        """The winner's init, None if nothing beats `keep` by more than the noise."""
        return None if self.best.is_baseline else self.best.spec

    def verdict(self) -> str:
        """One sentence: the winner and by how much, or that no difference was found."""
        if self.best.is_baseline:
            return (
                f"no difference found: keep your init (nothing beats keep by more than the noise "
                f"of {len(self.baseline.runs)} seeds)"
            )
        won = self.comparisons[self.candidates.index(self.best)]
        if math.isnan(won.gain):
            return f"{self.best.label} wins: keep has no finite {self.monitor} on any seed"
        return (
            f"{self.best.label} wins: {self.monitor} {won.mean:.4g} against {self.own.mean:.4g}, "
            f"better by {won.gain:.3g} [{won.low:.3g}, {won.high:.3g}], "
            f"in {round(won.wins * 100)} % of {won.n} pairs"
        )

    def rows(self) -> list[tuple[str, ...]]:
        """The confirmed candidates and `keep` as text: mean, spread, difference, failures."""
        pairs = [*zip(self.candidates, self.comparisons, strict=True), (self.baseline, self.own)]
        found: list[tuple[str, ...]] = []
        for one, against in pairs:
            difference = "baseline" if one.is_baseline else _interval(against)
            failed = f"{against.failures} of {len(one.runs)}" if against.failures else "0"
            label = f"{one.label} (winner)" if one is self.best else one.label
            spread = f"{short(against.mean)} ± {short(against.sd)}"
            found.append((label, spread, difference, failed))
        return found

    def to_callback(self, **arguments: Any) -> InitCallback:
        """The callback that applies the winner."""
        return InitCallback.from_spec(self.best.spec, **arguments)

    def overlay(self) -> dict[str, Any]:
        """The winner as a LightningCLI configuration to put after the user's own."""
        init: dict[str, Any] = {"strategy": self.best.spec.strategy}
        if self.best.spec.params:
            init["params"] = dict(self.best.spec.params)
        if self.best.spec.overrides:
            init["overrides"] = {k: s.to_dict() for k, s in self.best.spec.overrides.items()}
        callback = {"class_path": "lightning_init.InitCallback", "init_args": init}
        config = {} if self.best.is_baseline else nested(self.best.config)
        data = {"seed_everything": self.best.runs[0].seed, **config}
        data.setdefault("trainer", {})["callbacks+"] = [callback]
        return data

    def plot(self) -> Figure:
        """The loss curves of the confirmation runs, as a plotly figure."""
        from plotly.graph_objects import Figure

        from lightning_init.search.confirmed import curves

        return Figure(curves(self))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "monitor": self.monitor,
            "mode": self.mode,
            "steps": self.steps,
            "verdict": self.verdict(),
            "winner": _candidate(self.best, None),
            "baseline": _candidate(self.baseline, self.own),
            "candidates": [
                _candidate(one, against)
                for one, against in zip(self.candidates, self.comparisons, strict=True)
            ],
            "trials": list(self.trials),
        }

    def save(self, folder: str | Path) -> None:
        """Write `best.yaml`, `results.json` and `report.html`.

        Args:
            folder: Made if it does not exist.
        """
        from lightning_init.search.overview import Overview
        from lightning_init.search.page import page

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        seeds = ", ".join(str(run.seed) for run in self.best.runs)
        head = (
            f"# {self.verdict()}\n"
            f"# Use it as a second configuration: fit --config <yours> --config {folder}/best.yaml\n"
            f"# Each of the confirmation seeds {seeds} gives that run again: --seed_everything N\n"
        )
        text = head + yaml.safe_dump(self.overlay(), sort_keys=False)
        (folder / "best.yaml").write_text(text, encoding="utf-8")
        results = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        (folder / "results.json").write_text(results, encoding="utf-8")
        (folder / "report.html").write_text(
            page(Overview.of(self, folder), folder.name), encoding="utf-8"
        )


def _candidate(one: Candidate, against: Comparison | None) -> dict[str, Any]:
    data: dict[str, Any] = {
        "trial": one.number,
        "label": one.label,
        "spec": one.spec.to_dict(),
        "config": dict(one.config),
        "runs": [
            {
                "seed": run.seed,
                "metric": run.metric,
                "reason": run.reason,
                "curve": [list(point) for point in run.curve],
                **run.info,
            }
            for run in one.runs
        ],
    }
    if against is not None:
        names = ("n", "failures", "mean", "sd", "gain", "low", "high", "wins")
        data["statistics"] = {name: _finite(getattr(against, name)) for name in names}
    return data


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _interval(against: Comparison) -> str:
    if math.isnan(against.gain):
        return "no pair"
    return f"{against.gain:+.3g} [{against.low:+.3g}, {against.high:+.3g}]"
