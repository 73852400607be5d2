"""The plan: one decision per tensor, readable before any weight changes.

Every parameter has exactly one distribution; leaving a tensor alone is a decision too, `Keep`,
with its reason. `planning.make_plan` makes a plan, `apply.apply_` carries it out.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Generator, Tensor, nn

from lightning_init.architecture.arguments import unknown
from lightning_init.architecture.params import ParamInfo, Role
from lightning_init.strategies.calibration import Calibration
from lightning_init.strategies.distributions import Calibrated, Distribution, Keep
from lightning_init.strategies.loaded import Grown, Loaded
from lightning_init.strategies.registry import Calibrator

Forward = Callable[[], object]

TRAINED = "trained or loaded"
CUSTOMIZED = "customized by the model"


@dataclass(frozen=True, slots=True)
class PlanEntry:
    """One tensor and what it will be drawn from."""

    info: ParamInfo
    distribution: Distribution

    @property
    def written(self) -> bool:
        """Whether the tensor is drawn, not kept."""
        return not isinstance(self.distribution, Keep)

    @property
    def key(self) -> tuple[str, ...]:
        """The names that the generator is made from, the first ones of tensors that share it."""
        shared: tuple[str, ...] = getattr(self.distribution, "key", ())
        return shared or self.info.names

    def drawn(self, generator: Generator) -> Tensor:
        """A draw, in float32 on the CPU; a padding row is 0 unless it is loaded."""
        value = self.distribution.sample(self.info.shape, generator)
        loaded = isinstance(self.distribution, (Loaded, Grown))
        if self.info.padding_idx is not None and not loaded:
            value[self.info.padding_idx].zero_()
        return value


@dataclass(frozen=True)
class Plan:
    """Every tensor's distribution; prints as one screen.

    Attributes:
        entries: One per tensor, in registration order.
        calibrate_: The calibration that is still to come, None if none is.
        traced: Whether a forward pass was observed.
        meta_buffers: Buffers that were on the meta device, whose values no plan knows.
        notes: What is worth knowing besides, a sentence each.
        calibrations: What the calibration did, once it is done.
        buffers: Values of buffers that are written with the parameters, by name.

    Example:
        >>> from lightning_init import make_plan
        >>> plan = make_plan(nn.Linear(4, 2), "kaiming_normal")
        >>> round(plan["weight"].std, 4), plan["bias"].mean
        (0.7071, 0.0)
    """

    entries: tuple[PlanEntry, ...]
    calibrate_: Calibrator | None = None
    traced: bool = False
    meta_buffers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    calibrations: tuple[Calibration, ...] = ()
    buffers: Mapping[str, Loaded] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Distribution:
        """The distribution of a tensor, by any of its names."""
        for entry in self.entries:
            if name in entry.info.names:
                return entry.distribution
        names = [name for entry in self.entries for name in entry.info.names]
        raise KeyError(unknown("parameter", name, names))

    def __iter__(self) -> Iterator[PlanEntry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __getstate__(self) -> dict[str, Any]:
        # A calibration is a function of the strategy: it does not travel, and says so.
        return {**self.__dict__, "calibrate_": self.calibrate_ and _left_behind}

    def where(self, condition: Callable[[ParamInfo], bool]) -> Plan:
        """The plan for the tensors that fulfil a condition; the others are not in it."""
        return replace(self, entries=tuple(e for e in self.entries if condition(e.info)))

    def groups(self) -> list[tuple[str, tuple[PlanEntry, ...]]]:
        """Entries that differ only in the numbers of their names, labelled `12 x h.*.weight`."""
        found: dict[tuple[object, ...], list[PlanEntry]] = {}
        for entry in self.entries:
            pattern = re.sub(r"\d+", "*", entry.info.name)
            evidence = _BRANCH.sub("branch *", entry.info.evidence)
            # Calibrated tensors are alike although data gave each a std of its own.
            calibrated = isinstance(entry.distribution, Calibrated)
            drawn = "calibrated" if calibrated else str(entry.distribution)
            reason = entry.distribution.reason
            if isinstance(entry.distribution, (Loaded, Grown)):  # it ends with a name
                reason = _NUMBER.sub(".*", reason)
            key = (pattern, entry.info.shape, drawn, reason, evidence)
            found.setdefault(key, []).append(entry)
        return [
            (f"{len(es)} x {key[0]}" if len(es) > 1 else es[0].info.name, tuple(es))
            for key, es in found.items()
        ]

    def summary(self) -> str:
        """How many tensors and parameters there are, and how many are drawn, kept, unknown."""
        total = sum(entry.info.numel for entry in self.entries)
        drawn = [entry for entry in self.entries if entry.written]
        share = sum(entry.info.numel for entry in drawn)
        strange = sum(
            entry.info.role is Role.OTHER and "companion" not in entry.info.flags
            for entry in self.entries
        )
        seen = (
            ""
            if self.traced or not drawn
            else "; no forward pass seen, so residual branches are unknown"
        )
        return (
            f"{len(self.entries)} tensors, {total:,} parameters: {len(drawn)} tensors drawn "
            f"({share:,} parameters), {len(self.entries) - len(drawn)} kept, "
            f"{strange} unrecognized{seen}"
        )

    def hint(self) -> str:
        """How to write what was left alone, `""` if nothing was."""
        reasons = {e.distribution.reason for e in self.entries if not e.written}
        left = [
            why
            for why in ("frozen", "adapter", TRAINED)
            if any(reason == why or reason.startswith(f"{why}:") for reason in reasons)
        ]
        hints = []
        if left:
            hints.append(f'{", ".join(left)}: scope="all", or their names, writes them')
        if CUSTOMIZED in reasons:
            hints.append(f"{CUSTOMIZED}: naming a strategy instead of auto writes them")
        return "; ".join(hints)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "summary": self.summary(),
            "calibration_to_come": self.calibrate_ is not None,
            "notes": list(self.notes),
            "buffers": {name: value.reason for name, value in self.buffers.items()},
            "calibrations": [each.to_dict() for each in self.calibrations],
            "entries": [
                {
                    "name": entry.info.name,
                    "names": list(entry.info.names),
                    "shape": list(entry.info.shape),
                    "role": str(entry.info.role),
                    "provenance": entry.info.provenance,
                    "flags": sorted(entry.info.flags),
                    "draw": str(entry.distribution),
                    "std": _number(entry.distribution.std),
                    "mean": _number(entry.distribution.mean),
                    "reason": entry.distribution.reason,
                    "evidence": entry.info.evidence,
                }
                for entry in self.entries
            ],
        }

    def diff(self, other: Plan) -> str:
        """The tensors on which two plans of one model disagree, a line each."""
        lines = []
        theirs = {entry.info.names: entry.distribution for entry in other.entries}
        for label, entries in self.groups():
            different = [e for e in entries if theirs.get(e.info.names) != e.distribution]
            if different:
                first = different[0]
                there = theirs.get(first.info.names, "absent")
                lines.append(f"{label}: {first.distribution} -> {there}")
        ours = {entry.info.names for entry in self.entries}
        lines += [
            f"{entry.info.name}: absent -> {entry.distribution}"
            for entry in other.entries
            if entry.info.names not in ours
        ]
        return "\n".join(lines) or "no difference"

    def __str__(self) -> str:
        lines = [self.summary()]
        for label, entries in self.groups():
            first = entries[0]
            shape = "x".join(map(str, first.info.shape)) or "scalar"
            line = f"  {label} ({shape}): {first.distribution} [{first.distribution.reason}]"
            lines.append(f"{line} {_evidence(entries)}".rstrip())
        if self.calibrate_ is not None:
            lines.append("  then calibrated on one batch")
        if self.buffers:
            kinds = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in self.buffers))
            lines.append(f"  {len(self.buffers)} buffers loaded with them ({kinds})")
        lines += [str(each) for each in self.calibrations]
        lines += [f"note: {note}" for note in self.notes]
        if hint := self.hint():
            lines.append(f"kept: {hint}")
        return "\n".join(lines)


_BRANCH = re.compile(r"branch \d+")
_NUMBER = re.compile(r"\.\d+(?=\.)")


def _evidence(entries: tuple[PlanEntry, ...]) -> str:
    """What was seen of a group; of its branches the first and the last."""
    if entries[0].info.evidence == entries[0].distribution.reason:
        return ""
    branches = [e.info.usage.branch + 1 for e in entries if e.info.usage]
    if len(set(branches)) < 2:
        return entries[0].info.evidence
    several = f"branches {min(branches)} to {max(branches)}"
    return _BRANCH.sub(several, entries[0].info.evidence)


def _left_behind(model: nn.Module, plan: Plan, forward: Forward) -> None:
    """What stands for the calibration of a plan that was sent to another process."""
    del model, plan, forward
    raise ValueError(
        "this plan was pickled, and its calibration does not travel: call make_plan(model, ...) "
        "here"
    )


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def settled(
    plan: Plan,
    entries: dict[tuple[str, ...], Distribution],
    calibrations: tuple[Calibration, ...],
) -> Plan:
    """The plan after its calibration: with the given distributions, nothing more to come."""
    return dataclasses.replace(
        plan,
        calibrate_=None,
        calibrations=calibrations,
        entries=tuple(
            PlanEntry(e.info, entries.get(e.info.names, e.distribution)) for e in plan.entries
        ),
    )
