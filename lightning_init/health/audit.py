"""One batch, forward and backward, before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from lightning_init.architecture.analyze import analyze
from lightning_init.architecture.histograms import with_histograms
from lightning_init.architecture.judge import judge
from lightning_init.architecture.names import check_forward, unwrap
from lightning_init.architecture.preserve import preserved
from lightning_init.architecture.probe import PlannedEntry, Probe
from lightning_init.architecture.provenance import exact_provenance
from lightning_init.architecture.readings import Readings, WeightReading
from lightning_init.architecture.sharded import any_sharded, is_flat
from lightning_init.architecture.trace import eager
from lightning_init.health.losses import LossWatch
from lightning_init.health.places import MATRICES
from lightning_init.health.registry import Profile, Rules, examine, rules
from lightning_init.health.report import Report

_REENTRANT = (
    "gradients at the start: the model recomputes activations with use_reentrant=True, which "
    "forbids reading them beside a training step; with use_reentrant=False they are read"
)


def audit(
    model: nn.Module,
    forward: Callable[[], object],
    *,
    plan: Iterable[PlannedEntry] | None = None,
    detectors: Rules | None = None,
    profile: Profile = "default",
) -> Report:
    """Read a model on one batch and judge it; weights, gradients, buffers, RNG stay as found.

    Args:
        model: The model, in the mode in which it will train.
        forward: A call without arguments that runs the model once and returns the scalar loss.
            If it returns anything else, only the forward pass is judged.
        plan: The plan that was applied: weights are then checked exactly against it.
        detectors: Names of the rules to use, or names with limits; None for all of the profile.
        profile: `"default"`, or `"textbook"` for absolute limits, which fire on most healthy nets.

    Returns:
        The report; `print(report)` shows the layers and the verdict.

    Raises:
        ValueError: If there is no such detector, limit or profile.
        Exception: Whatever `forward` raises, unless a layer before gave NaN or infinity: that is a
            finding, and the likely reason.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> x, y = torch.randn(16, 4), torch.randint(0, 3, (16,))
        >>> report = audit(model, lambda: nn.functional.cross_entropy(model(x), y))
        >>> report.worst is None or report.worst.detector != "non_finite"
        True
    """
    unwrap(model)  # which says what is no model
    check_forward(forward)
    used = rules(detectors, profile)
    probe = Probe(model, plan)
    try:
        with preserved(model), torch.enable_grad(), eager():
            probe.start(full=True, sample=True)
            loss, failure = None, None
            with LossWatch() as losses:
                try:
                    loss = forward()
                except Exception as error:
                    failure = error
            grads: dict[int, Tensor] = {}
            blind: tuple[str, ...] = ()
            readings = {}
            if isinstance(loss, Tensor) and loss.numel() == 1 and loss.is_floating_point():
                readings[0] = float(loss.detach())
                try:
                    grads = _gradients(model, loss)
                except RuntimeError as error:
                    if "use_reentrant" not in str(error):
                        raise
                    blind = (_REENTRANT,)
            samples = probe.samples
            reading = probe.step(0, grads=grads, losses=tuple(losses.readings))
        # A loss may refuse NaN: then what brought it about is the finding.
        fed = all(one.finite for one in reading.inputs)
        if failure is not None and fed and all(one.finite for one in reading.layers):
            raise failure
    finally:
        probe.stop()
    reading = replace(reading, layers=with_histograms(reading.layers, samples))
    if plan is None:
        reading = replace(reading, weights=_with_provenance(model, reading.weights))
    trained = any(weight.trained for weight in reading.weights)
    seen = Readings(
        (reading,),
        readings,
        trained=trained or bool(exact_provenance(unwrap(model))),
        bad_batches=() if all(given.finite for given in reading.inputs) else (0,),
        rows=losses.rows,
    )
    return Report(examine(seen, used), seen, blind)


def _with_provenance(
    model: nn.Module, weights: tuple[WeightReading, ...]
) -> tuple[WeightReading, ...]:
    """Which weights were loaded, where it matters: what does not learn may have learned before."""
    still = [one for one in weights if not one.trainable or math.isnan(one.grad_rms)]
    if not any(one.role in MATRICES and not one.trained for one in still):
        return weights
    bare = unwrap(model)
    verdicts = judge(bare, analyze(bare).params)
    loaded = {names for names, verdict in verdicts.items() if verdict.provenance == "pretrained"}
    return tuple(replace(one, trained=True) if one.names in loaded else one for one in weights)


def _gradients(model: nn.Module, loss: Tensor) -> dict[int, Tensor]:
    """Gradients without touching `.grad` or the hooks that data-parallel wrappers put there."""
    trainable = [p for p in unwrap(model).parameters() if p.requires_grad]
    if not loss.requires_grad or not trainable:
        return {}
    if any_sharded(trainable) or any(
        map(is_flat, trainable)
    ):  # gradients are summed over the processes on their way to `.grad`
        loss.backward()  # type: ignore[no-untyped-call]
        return {id(p): p.grad for p in trainable if p.grad is not None}
    found = torch.autograd.grad(loss, trainable, allow_unused=True)
    return {id(p): grad for p, grad in zip(trainable, found, strict=True) if grad is not None}
