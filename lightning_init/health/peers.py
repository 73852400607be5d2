"""The rule on one weight among its like: the same tensor of every block has one scale."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from statistics import median

from lightning_init.architecture.readings import Readings, WeightReading
from lightning_init.health.findings import Cause, Finding, Severity, found
from lightning_init.health.places import and_more, masked, matrices
from lightning_init.health.registry import Factor, detector


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

    Peers have the same shape and the same name but for numbers; a weight that a plan drew is
    compared with its plan instead (`scheme_audit`), loaded weights and zeros are not compared.

    Args:
        readings: What was measured.
        warn_ratio: Ratio to the peers' median, either way, from which it is a warning.
        error_ratio: Ratio from which it is an error.
    """
    for reading in readings.steps[:1]:
        if reading.step != 0:
            return
        families: dict[tuple[str, tuple[int, ...]], list[WeightReading]] = defaultdict(list)
        for weight in matrices(reading):
            if weight.rms > 0 and not weight.trained and not math.isfinite(weight.expected_std):
                families[masked(weight.name), weight.shape].append(weight)
        odd = [
            (weight, weight.rms / median(one.rms for one in family), family)
            for family in families.values()
            if len(family) >= 3
            for weight in family
        ]
        odd = [one for one in odd if max(one[1], 1 / one[1]) > warn_ratio]
        if not odd:
            return
        weight, ratio, family = max(odd, key=lambda one: abs(math.log(one[1])))
        factor = max(ratio, 1 / ratio)
        severity: Severity = "error" if factor > error_ratio else "warning"
        limit = error_ratio if severity == "error" else warn_ratio
        usual = median(one.rms for one in family)
        names = [weight.name, *(one.name for one, _, _ in odd if one is not weight)]
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
            f"{usual:.3g} of its {len(family)} peers {masked(weight.name)} (limit x{limit:g} "
            "either way)",
            [cause],
        )  # fmt: skip
        return
