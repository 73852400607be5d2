"""The development set: 51 small published networks whose trainings are labelled, failing or not.

Keras layers are built in PyTorch: its initializers, its Adam (epsilon 1e-7), batches in shuffled
epochs. The labels are those of the set's own trainings of 300 epochs, by seed; here the first 50
steps of the same training are watched, from other draws of the same distributions.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.health_runs import Record, Run, judge, share, stored

STEPS = 50


class Exponential(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(x)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "exponential": Exponential,
}


def draw_(tensor: Tensor, spec: dict[str, Any] | None, fans: tuple[int, int]) -> None:
    """As the Keras initializer of that description does."""
    given = {"fn": "Zeros"} if spec is None else spec
    kind = given["fn"]
    if kind in ("Zeros", "Constant"):  # the constant is 0 unless it is said
        nn.init.constant_(tensor, given.get("value", 0.0))
    elif kind == "Ones":
        nn.init.ones_(tensor)
    elif kind == "RandomUniform":
        nn.init.uniform_(tensor, -0.05, 0.05)
    elif kind == "RandomNormal":
        nn.init.normal_(tensor, 0.0, 0.05)
    elif kind == "TruncatedNormal":
        nn.init.trunc_normal_(tensor, 0.0, 0.05, -0.1, 0.1)
    else:
        fan = {"fan_in": fans[0], "fan_out": fans[1], "fan_avg": sum(fans) / 2}[given["mode"]]
        variance = given["scale"] / max(1.0, fan)
        if given["distribution"] == "uniform":
            nn.init.uniform_(tensor, -math.sqrt(3 * variance), math.sqrt(3 * variance))
        else:
            std = math.sqrt(variance) / 0.87962566103423978
            nn.init.trunc_normal_(tensor, 0.0, std, -2 * std, 2 * std)


class Network(nn.Module):
    """The layer list, and the loss that its last activation asks for."""

    def __init__(self, layers: list[dict[str, Any]]) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        width = 2
        for layer in layers:
            if layer["fn"] == "Dense":
                units = layer["units"]
                dense = nn.Linear(width, units)
                draw_(dense.weight, layer.get("kernel_initializer"), (width, units))
                # Keras takes the one dimension of a bias for both fans.
                draw_(dense.bias, layer.get("bias_initializer"), (units, units))
                modules.append(dense)
                width = units
            name = layer["args"][0] if layer["fn"] == "Activation" else layer.get("activation")
            if name:
                modules.append(ACTIVATIONS[name]())
        self.net = nn.Sequential(*modules)
        self.probabilities = isinstance(modules[-1], nn.Sigmoid)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        out = self.net(x)
        if not bool(out.isfinite().all()):  # torch's function raises where Keras gives NaN
            return out.sum() * torch.nan
        if out.shape[1] == 1:
            return F.binary_cross_entropy(out[:, 0], y)
        if self.probabilities:  # Keras: outputs are divided by their sum, then -log
            out = (out / out.sum(1, keepdim=True)).clamp(1e-7, 1 - 1e-7)
            return F.nll_loss(out.log(), y)
        return F.cross_entropy(out, y)


def data(folder: Path, name: str) -> tuple[Tensor, Tensor]:
    import numpy as np

    with np.load(folder / f"{name}.npz") as file:
        x, y = torch.tensor(file["x"], dtype=torch.float32), torch.tensor(file["y"])
    return (x, y.argmax(1)) if y.ndim == 2 else (x, y.float())


def runs(folder: Path) -> Iterator[tuple[Run, str]]:
    """Each run with its label."""
    specs = json.loads((folder / "specs.json").read_text())
    with (folder / "outcomes.csv").open() as file:
        labels = {(r["dataset"], r["name"], r["dup"], r["seed"]): r for r in csv.DictReader(file)}
    for spec in specs:
        x, y = data(folder, spec["dataset"])
        size = 256 if spec["dataset"] == "blob" else 128
        for seed in (0, 1):
            key = (spec["dataset"], spec["name"], str(spec["dup"]), str(seed))
            order = torch.Generator().manual_seed(seed)
            epochs = [torch.randperm(len(x), generator=order).split(size) for _ in range(STEPS)]
            batches = [(x[part], y[part]) for epoch in epochs for part in epoch][:STEPS]
            run = Run(
                "devset " + " ".join(key),
                spec["dataset"],
                lambda layers=spec["layers"]: Network(layers),
                batches.__getitem__,
                lambda parameters: torch.optim.Adam(parameters, lr=1e-3, eps=1e-7),
                STEPS,
                seed=seed,
                watched=STEPS,
            )
            yield run, labels[key]["outcome"]


def records(folder: Path, cache: Path) -> list[tuple[Record, str]]:
    labelled = list(runs(folder))
    found = stored((run for run, _ in labelled), cache)
    return list(zip(found, (label for _, label in labelled), strict=True))


def counts(
    labelled: list[tuple[Record, str]], chosen: Any = None, *severities: str
) -> dict[str, int]:
    """Per data set: failing runs that were flagged, and others that were."""
    found = {f"{part} {label}": 0 for part in ("blob", "circle") for label in ("fail", "ok")}
    for record, label in labelled:
        if judge(record, chosen, until=STEPS).first(*(severities or ("error",))):
            found[f"{record.family} {label}"] += 1
    return found


def report(folder: Path, cache: Path, verbose: bool = False) -> str:
    """The table."""
    labelled = records(folder, cache)
    lines = ["| runs | flagged as errors | errors or warnings |", "|---|---|---|"]
    errors, both = counts(labelled), counts(labelled, None, "error", "warning")
    for key in errors:
        part, label = key.split()
        of = sum(record.family == part and has == label for record, has in labelled)
        name = f"{part}, {'failing' if label == 'fail' else 'that learn'}"
        lines.append(f"| {name} | {share(errors[key], of)} | {share(both[key], of)} |")
    if verbose:
        for record, label in labelled:
            print(f"{label:4s} {record.name}")
            for step, finding in judge(record, until=STEPS).findings:
                print(f"       {step:3d} {finding.severity} {finding.detector} {finding.where}")
    return "\n".join(lines)
