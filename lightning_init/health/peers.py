"""The rule on one weight among its like: the same tensor of every block has one scale."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from statistics import median
from typing import NamedTuple

from lightning_init.architecture.readings import Readings, StepReading, WeightReading
from lightning_init.health.findings import Cause, Finding, Severity, found
from lightning_init.health.places import and_more, masked, masked_once, matrices
from lightning_init.health.registry import Factor, detector

_FEW = 3  # peers, the weight among them, below which a median says nothing


class Compared(NamedTuple):
    """A weight beside the median of its peers, what they are called, and who they are."""

    weight: WeightReading
    ratio: float
    peers: str
    family: list[WeightReading]


@detector(
    order=18,
    explains=(
        *("forward_growth", "backward_growth", "initial_loss", "uneven_gradients"),
        *("update_ratio", "frozen_layers", "dead_units", "saturated_units", "saturated_attention"),
        *("loss_flat", "loss_blow_up", "loss_oscillates", "collapsed_samples"),
    ),
)
def peer_scale(
    readings: Readings, *, warn_ratio: Factor = 4.0, error_ratio: Factor = 6.0
) -> Iterator[Finding]:
    """A weight whose rms before the first step is not that of its peers over the depth.

    Peers have the same shape and the same name but for one number (for all numbers, where fewer
    than three do): the last layers of all branches are peers, the two layers of a branch are not.
    A weight that a plan drew is compared with its plan instead (`scheme_audit`), loaded weights and
    zeros are not compared.

    Args:
        readings: What was measured.
        warn_ratio: Ratio to the peers' median, either way, from which it is a warning.
        error_ratio: Ratio from which it is an error.
    """
    for reading in readings.steps[:1]:
        if reading.step != 0:
            return
        odd = [one for one in _compared(reading) if max(one.ratio, 1 / one.ratio) > warn_ratio]
        if not odd:
            return
        weight, ratio, peers, family = max(odd, key=lambda one: abs(math.log(one.ratio)))
        factor = max(ratio, 1 / ratio)
        severity: Severity = "error" if factor > error_ratio else "warning"
        limit = error_ratio if severity == "error" else warn_ratio
        usual = median(one.rms for one in family)
        names = [weight.name, *(one.weight.name for one in odd if one.weight is not weight)]
        cause = Cause(
            "init scale",
            f"it was drawn {factor:.3g} times too {'large' if ratio > 1 else 'small'}, or code "
            "that ran later wrote it",
            f'draw it like its peers: overrides={{"{weight.name}": {{"strategy": "normal", '
            f'"params": {{"std": {usual:.3g}}}}}}}',
        )
        yield found(
            "peer_scale", severity, weight.name, 0, factor, limit,
            f"{and_more(names, 'tensor')} has rms {weight.rms:.3g}, x{ratio:.3g} the median "
            f"{usual:.3g} of its {len(family)} peers {peers} (limit x{limit:g} "
            "either way)",
            [cause],
        )  # fmt: skip
        return


def _compared(reading: StepReading) -> list[Compared]:
    families: dict[tuple[str, tuple[int, ...]], list[WeightReading]] = defaultdict(list)
    judged = [
        weight
        for weight in matrices(reading)
        if weight.rms > 0 and not weight.trained and not math.isfinite(weight.expected_std)
    ]
    for weight in judged:
        for pattern in {*masked_once(weight.name), masked(weight.name)}:
            families[pattern, weight.shape].append(weight)
    found = []
    for weight in judged:
        names = [n for n in masked_once(weight.name) if len(families[n, weight.shape]) >= _FEW]
        ratios = []
        for name in names or [masked(weight.name)]:
            family = families[name, weight.shape]
            if len(family) >= _FEW:
                ratio = weight.rms / median(one.rms for one in family)
                ratios.append(Compared(weight, ratio, name, family))
        # It is odd only if it is so among all of its peers.
        found += [min(ratios, key=lambda one: abs(math.log(one.ratio)))] if ratios else []
    return found
