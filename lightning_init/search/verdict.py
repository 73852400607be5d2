"""What a result says in sentences; every number of theirs is in the result itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lightning_init.search.candidates import Candidate, Run, label, short
from lightning_init.search.decision import LIKELY, level_for, steadier
from lightning_init.search.keys import leaf
from lightning_init.search.lengthen import learned
from lightning_init.search.space import scheme
from lightning_init.search.statistics import FEW, Comparison, most_failures, pairs_for
from lightning_init.search.sweep import rates_text
from lightning_init.strategies.spec import InitSpec

if TYPE_CHECKING:
    from lightning_init.search.result import SearchResult

_STILL = 0.2  # of keep's distance: a winner that travels less may have grown lazy


def verdict(result: SearchResult) -> str:
    """One sentence: the winner and by how much, or that no difference was found."""
    best, goals = result.best, result.goals
    seeds = len(result.baseline.runs)
    if best.is_baseline and (said_instead := _nothing_to_compare(result)):
        return said_instead
    if best.is_baseline:
        return (
            f"no difference found: keep your init (nothing beats keep by more than the noise "
            f"of {seeds} seeds){_unhealthy(result.baseline.runs)}"
        )
    found = result.versus(best)
    if math.isnan(found[0].gain):
        return f"{best.label} wins: keep has no finite {result.monitor} on any seed"
    said = [
        _gained(goal.name, one, own)
        for goal, one, own in zip(goals, found, result.owns, strict=True)
    ]
    if best.kind == "tuned":
        key = result.rate_key
        return (
            f"the gain is the learning rate's: keep your init, set {leaf(key)}="
            f"{short(best.config[key])} ({'; '.join(said)})"
        )
    return f"{best.label} wins: {'; '.join(said)}"


def _nothing_to_compare(result: SearchResult) -> str:
    """Why there is no winner where `keep` or the others fail; `""` if that is not it."""
    others = [one for one in result.candidates if one.kind != "tuned"]
    ran = [one for one, found in zip(result.candidates, result.comparisons, strict=True) if found.n]
    seeds = len(result.baseline.runs)
    if not result.own.n:
        why = next((run.reason for run in result.baseline.runs if run.reason), "no reason known")
        rest = (
            "and nothing else trains reliably"
            if ran
            else "nor has anything else that was tried: look for the cause outside of the init"
        )
        return (
            f"undecided: keep has no {result.monitor} on any of {seeds} seeds ({why}), {rest}; "
            "best.yaml is keep, as you have it, not a recommendation"
        )
    if any(one in ran for one in others):
        return steadier(result.baseline, result.candidates, result.comparisons)
    stopped = "failed on every seed" if others else "failed in the screening"
    return f"nothing to compare: every init but keep {stopped}: keep your init"


def _unhealthy(runs: Sequence[Run]) -> str:
    """A warning where every run has an error that the metric does not show."""
    errors = [
        [one["message"] for one in run.info.get("findings", ()) if one["severity"] == "error"]
        for run in runs
    ]
    if not all(errors):
        return ""
    return f"; but keep is unhealthy on every seed, and nothing better was found: {errors[0][0]}"


def lines(result: SearchResult) -> list[str]:
    """All that is said under the table, a sentence each."""
    return [
        *_whose(result),
        *([result.stability.text] if result.stability else []),
        *_facts(result),
        *_sensitivity(result),
        *_failures([*result.candidates, result.baseline]),
        *_without(result),
        *_few(result),
        *_crashes(result),
        *_taken_back(result),
        *_nothing_learned(result),
        *_undecided(result),
    ]


def spread(found: Comparison) -> str:
    """A mean with its standard deviation, as far as there are any."""
    if math.isnan(found.mean):
        return "none"
    sd = "" if math.isnan(found.sd) else f" ± {short(found.sd)}"
    return f"{short(found.mean)}{sd}"


def interval(found: Comparison) -> str:
    """A gain with its interval."""
    if math.isnan(found.gain):
        return "no pair"
    if math.isnan(found.low):
        return f"{found.gain:+.3g} ({'one pair' if found.pairs == 1 else 'no interval'})"
    return f"{found.gain:+.3g} [{found.low:+.3g}, {found.high:+.3g}]"


def _gained(name: str, one: Comparison, own: Comparison) -> str:
    return (
        f"{name} {one.mean:.4g} against {own.mean:.4g}, better by {one.gain:.3g} "
        f"[{one.low:.3g}, {one.high:.3g}], in {round(one.wins * 100)} % of {one.n} pairs"
    )


def _whose(result: SearchResult) -> Iterator[str]:
    """Whether the gain is the learning rate's or the init's."""
    decision = result.decision
    beaten, rate, init = decision.beaten, decision.rate, decision.init
    key = result.rate_key
    if beaten is None:
        return
    if not key:
        own = result.baseline.config
        other = [name for name, value in beaten.config.items() if own.get(name) != value]
        if other:
            yield f"{beaten.label} also sets {', '.join(other)}: part of the gain may be theirs"
        return
    same = beaten.config.get(key) == result.baseline.config.get(key)
    if rate is None:
        if not same:
            yield (
                f"keep's own learning rate is the best of those tried for it: the gain of "
                f"{beaten.label} is the init's"
            )
        return
    if init is None:  # keep at another learning rate has the best mean
        return
    tuned = next(one for one in result.candidates if one.kind == "tuned")
    parts = (
        f"gain of {beaten.label}: learning rate {interval(rate)} ({tuned.label} against keep), "
        f"init {interval(init)} (against {tuned.label})"
    )
    if result.best is tuned:
        yield f"{parts}: no init is shown to beat keep at its own best learning rate"
    elif not decision.shown and same:
        yield f"{parts}: a learning rate of {short(tuned.config[key])} alone may do as well"
    elif not decision.shown:
        yield f"{parts}: how much is the learning rate's is not clear"
    elif rate.low > 0:
        yield f"{parts}: both gain"
    else:
        yield f"{parts}: the gain is the init's"


def _facts(result: SearchResult) -> Iterator[str]:
    """How far the weights went, and how much better training data are met than others."""
    two = [result.baseline] if result.best.is_baseline else [result.best, result.baseline]
    distance = {one.label: _mean(one.runs, "distance") for one in two}
    gap = {one.label: _mean(one.runs, "gap") for one in two}
    if any(value is not None for value in distance.values()):
        yield f"distance travelled from init: {_each(distance)}"
    if any(value is not None for value in gap.values()):
        yield f"train/validation gap of the metric: {_each(gap)}"
    far = [distance[one.label] for one in two]
    if len(far) == 2 and far[0] is not None and far[1] and far[0] < _STILL * far[1]:
        yield (
            f"{result.best.label} hardly moves from its init: weights that start too large train "
            "quickly but learn no features; look at the validation metric of the whole job"
        )


def _each(values: dict[str, float | None]) -> str:
    return ", ".join(
        f"{name} {short(value)}" for name, value in values.items() if value is not None
    )


def _mean(runs: Sequence[Run], name: str) -> float | None:
    found = [run.info.get(name) for run in runs]
    done = [float(value) for value in found if isinstance(value, (int, float))]
    done = [value for value in done if math.isfinite(value)]
    return sum(done) / len(done) if done else None


def _sensitivity(result: SearchResult) -> Iterator[str]:
    """The learning rates that are about as good as the best."""
    two = [result.baseline] if result.best.is_baseline else [result.best, result.baseline]
    names = [label(one.spec, one.config, without=result.rate_key) for one in two]
    said = [
        f"{name} {text}"
        for name in dict.fromkeys(names)
        if (text := rates_text(result.rates, result.mode, name)) is not None
    ]
    if said:
        yield f"learning rates within 5 % of the best: {'; '.join(said)}"


def _failures(everyone: Sequence[Candidate]) -> Iterator[str]:
    for one in everyone:
        failed = [run for run in one.runs if run.metric is None]
        if failed:
            reasons = "; ".join(dict.fromkeys(run.reason for run in failed))
            yield f"{one.label}: {len(failed)} of {len(one.runs)} seeds failed: {reasons}"


def _without(result: SearchResult) -> Iterator[str]:
    """What the search cannot say anything about, and why."""
    found: dict[str, str] = {}
    for trial in result.trials:
        if trial["spec"] is None:
            continue
        name = scheme(InitSpec.from_dict(trial["spec"]))
        found.setdefault(name, trial["reason"])
        if trial["metric"] is not None:
            found[name] = ""
    for name, reason in found.items():
        if reason:
            yield f"no result for {name}: {reason}"


def _few(result: SearchResult) -> Iterator[str]:
    """What so few seeds cannot tell."""
    if any(found.pairs == FEW for found in result.comparisons):
        yield (
            f"an interval from {FEW} pairs of runs is not to be trusted, nor is what it decides: "
            "5 seeds are usual"
        )
    best = result.best
    if not best.is_baseline and all(run.metric is not None for run in best.runs):
        bound = most_failures(0, len(best.runs))
        yield (
            f"{best.label} failed on 0 of {len(best.runs)} seeds, which excludes a failure rate "
            f"above {100 * bound:.0f} % and no lower one (95 %)"
        )


def _crashes(result: SearchResult) -> Iterator[str]:
    """How many trials of the screening crashed twice: a bug, or too little memory or time."""
    found = [t["reason"] for t in result.trials if t["state"] == "COMPLETE"]
    crashed = [reason for reason in found if reason.startswith("crashed: ")]
    if crashed:
        reasons = "; ".join(dict.fromkeys(reason.removeprefix("crashed: ") for reason in crashed))
        yield f"{len(crashed)} of {len(found)} screening trials crashed, twice each: {reasons}"


def _taken_back(result: SearchResult) -> Iterator[str]:
    """Whose calibration made the model worse, so that its weights are those it began with."""
    for one in result.candidates:
        back = [str(run.info["calibration"]) for run in one.runs if run.info.get("calibration")]
        if back:
            yield f"{one.label}: in {len(back)} of {len(one.runs)} runs {back[0]}"


def _nothing_learned(result: SearchResult) -> Iterator[str]:
    """Trials that are too short to tell anything apart say nothing of the inits."""
    if result.note:
        yield result.note
    curves = [trial["curve"] for trial in result.trials if trial["metric"] is not None]
    if learned(curves) is False:
        yield (
            "no trial has learned anything yet: no training loss fell by more than the noise, so "
            "inits cannot be told apart: pass longer --steps"
        )


def promising(result: SearchResult) -> tuple[Candidate, Comparison, int] | None:
    """Who is probably better, but not by more than the noise, and how many seeds may tell."""
    if not result.best.is_baseline or len(result.goals) > 1:
        return None
    level = level_for(len(result.candidates), 1)
    own = sum(run.metric is None for run in result.baseline.runs)
    for one, found in zip(result.candidates, result.comparisons, strict=True):
        if found.failures <= own and found.chance >= LIKELY:
            pairs = pairs_for(found, level)
            if pairs is not None:
                # some more where runs have failed: those seeds give no pair
                return one, found, math.ceil(pairs * len(one.runs) / found.pairs)
    return None


def _undecided(result: SearchResult) -> Iterator[str]:
    if (known := promising(result)) is not None:
        one, found, pairs = known
        yield (
            f"undecided: {one.label} is better in {round(found.wins * found.pairs)} of "
            f"{found.pairs} pairs (P {found.chance:.2f}), which may be noise: the same command "
            f"with {result.seeds_option} {pairs} may tell, and runs only what is new"
        )
