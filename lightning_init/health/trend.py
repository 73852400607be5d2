"""Layers that follow each other through the depth, and how a signal changes from one to the next."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

from lightning_init.architecture.readings import LayerReading, StepReading

Chain = list[tuple[str, float]]


def forward_chain(reading: StepReading) -> Chain:
    """Root mean squares of the outputs that follow each other and that no norm sets anew.

    What flattens most of its input has a scale of its own: the chain starts after it.
    """
    layers = [one for one in reading.layers if one.group]
    while layers and layers[0].after is not None and layers[0].after.saturated > 0.5:
        layers = layers[1:]
    return _chain(layers, lambda layer: math.nan if layer.rescaled else layer.rms)


def backward_chain(reading: StepReading) -> Chain:
    """Gradient norms from the loss backwards; all 0 comes from a zero head."""
    layers = [one for one in reading.layers if one.group]
    return _chain(layers, lambda layer: layer.grad_norm)[::-1]


def short_chain(reading: StepReading) -> Chain:
    """The same for a net of two or three layers, each of which takes what the last one gave.

    It starts with the data and, since a small head is no fault, ends with the last layer only
    if that is the largest of all.
    """
    layers = reading.layers
    if not 2 <= len(layers) <= 4 or any(one.rescaled for one in layers):
        return []
    if any(not math.isfinite(one.input_rms) or one.input_rms <= 0 for one in layers):
        return []
    for one, after in pairwise(layers):  # parallel layers do not follow each other
        if after.input_rms > 2 * _given(one):
            return []
    chain = [("the data", layers[0].input_rms), *_chain(list(layers), lambda layer: layer.rms)]
    if len(chain) != len(layers) + 1:
        return []
    return chain if chain[-1][1] >= max(rms for _, rms in chain) else chain[:-1]


def gains(reading: StepReading) -> Chain:
    """By how much the weights of the hidden layers of a plain net enlarge what they take.

    Biases hide that a signal vanishes: what they add is the same for every sample. Empty if norms
    or skip paths set the scale anew.
    """
    if any(one.role == "norm_scale" for one in reading.weights):
        return []
    if not all(math.isfinite(one.expected_rms) for one in reading.layers):
        return []  # blocks, attention, recurrent layers
    for one, after in pairwise(reading.layers):
        if one.rescaled or after.input_rms > 2 * _given(one):
            return []
    hidden = [one for one in reading.layers if not one.is_output and one.input_rms > 0]
    return [(one.name, one.expected_rms / one.input_rms) for one in hidden if one.expected_rms > 0]


def _given(layer: LayerReading) -> float:
    """What a layer gives to the next."""
    return layer.rms if layer.after is None else max(layer.rms, layer.after.rms)


def strays(reading: StepReading, chain: Chain, limit: float) -> Iterator[tuple[str, str, float]]:
    """Neighbours whose values are a factor apart that the layer itself makes: (one, next, ratio)."""
    layers = {one.name: one for one in reading.layers}
    for (before, low), (name, high) in pairwise(chain):
        if 1 / limit <= high / low <= limit:
            continue
        # A tanh between the two may do it: then the layer's own factor is usual.
        taken = layers[name].input_rms
        own = high / taken if taken > 0 and math.isfinite(taken) else high / low
        if not 2 / limit <= own <= limit / 2:
            yield before, name, high / low


def growth(values: list[float]) -> float:
    """Factor per step: the least-squares slope of the logarithms.

    Example:
        >>> growth([1.0, 3.0, 9.0])
        3.0000000000000004
    """
    n = len(values)
    logs = [math.log(value) for value in values]
    middle, mean = (n - 1) / 2, sum(logs) / n
    slope = sum((i - middle) * (log - mean) for i, log in enumerate(logs))
    return math.exp(slope / sum((i - middle) ** 2 for i in range(n)))


def _chain(layers: list[LayerReading], value: Callable[[LayerReading], float]) -> Chain:
    """Layers with a positive, finite value, in execution order.

    Exact zeros come from layers that are zero by design (the last of a branch, a zero head).
    """
    return [
        (layer.name, value(layer))
        for layer in layers
        if math.isfinite(value(layer)) and value(layer) > 0
    ]
