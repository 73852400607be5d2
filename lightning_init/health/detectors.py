"""The rules. Each is a pure function of readings; limits are arguments.

Rules that raise an error are scale-free (growth per layer, loss against chance), exact (weights
against the plan that drew them) or unarguable (NaN). The textbook's absolute limits are the profile
`textbook`: they fire on most healthy networks.
"""

from lightning_init.health import (
    attention,
    baseline,
    course,
    gradients,
    growth,
    inputs,
    mismatch,
    norms,
    numbers,
    peers,
    planned,
    plateau,
    samples,
    start,
    textbook,
    units,
    updates,
)

BUILT_IN = (
    *(numbers, planned, growth, start, course),
    *(inputs, peers, units, attention, samples, gradients, textbook),
    *(mismatch, norms, updates, plateau, baseline),
)
