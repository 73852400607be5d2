"""The table of planted faults: does it hurt, is it flagged, when, and what is blamed.

A fault hurts by outcome. Its damage is how much higher the mean of the last twenty losses is than
that of the clean twin (same model, data order, optimizer and seed), as a share of what the twin
learned, averaged over two seeds; above 0.2, or where a loss is not finite, it hurts.
"""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path

from benchmarks.health_faults import FAULTS, HOSTS, Fault, runs
from benchmarks.health_runs import Record, Verdict, judge, mean, share, stored

HURTS, WITHIN, TAIL = 0.2, 20, 20


def damage(record: Record, clean: Record) -> float:
    """Share of the twin's progress that is lost; infinite where the loss is not finite."""
    end = mean(record.losses[-TAIL:])
    reached = mean(clean.losses[-TAIL:])
    if not math.isfinite(end) or len(record.losses) < len(clean.losses):
        return math.inf
    return (end - reached) / (mean(clean.losses[:3]) - reached)


class Row:
    """One fault in one host, over the seeds."""

    def __init__(self, host: str, fault: Fault) -> None:
        self.host, self.fault = host, fault
        self.damages: list[float] = []
        self.verdicts: list[Verdict] = []

    @property
    def hurts(self) -> bool:
        return mean(self.damages) > HURTS

    def flagged(self, *severities: str) -> bool:
        """By the given step in every seed."""
        return all(v.first(*severities, within=WITHIN) for v in self.verdicts)

    @property
    def named(self) -> bool:
        """Whether one of the first two causes of what was said first is right, in every seed."""
        said = [
            v.first("error", within=WITHIN) or v.first("error", "warning") for v in self.verdicts
        ]
        return all(one and set(one[1].causes[:2]) & set(self.fault.causes) for one in said)

    def cells(self) -> tuple[str, ...]:
        """Hurt, step, severity, detector, causes: of the first seed."""
        first = self.verdicts[0].first("error", within=WITHIN)
        first = first or self.verdicts[0].first("error", "warning")
        lost = "not finite" if math.isinf(mean(self.damages)) else f"{mean(self.damages):.2f}"
        if first is None:
            return (lost, "", "", "", "")
        step, finding = first
        return (lost, str(step), finding.severity, finding.detector, ", ".join(finding.causes[:2]))


def rows(cache: Path, only: str = "") -> list[Row]:
    hosts = [host for host in HOSTS if only in host]
    listed = list(runs(hosts))
    records = {
        record.name: record
        for record in stored((run for *_, run in listed), cache, enough=WITHIN + 5)
    }
    clean = {
        (host, plain, run.seed): records[run.name]
        for host, fault, plain, run in listed
        if not fault
    }
    found: dict[tuple[str, str], Row] = {}
    for host, fault, plain, run in listed:
        if fault is None:
            continue
        row = found.setdefault((host, fault.name), Row(host, fault))
        row.damages.append(damage(records[run.name], clean[host, plain, run.seed]))
        row.verdicts.append(judge(records[run.name]))
    return list(found.values())


def report(cache: Path, verbose: bool = False, only: str = "") -> str:
    """Three figures, a table by fault, and one with all."""
    all_rows = rows(cache, only)
    hurting = [row for row in all_rows if row.hurts]
    both = ("error", "warning")
    flagged = [row for row in hurting if row.flagged(*both)]
    harmless = [row for row in all_rows if not row.hurts]
    lines = [
        f"{len(FAULTS)} faults in {len(HOSTS)} models, {len(all_rows)} pairs, two seeds each; "
        f"{len(hurting)} really hurt.",
        "",
        "| of the pairs that hurt | share (95 % interval) |",
        "|---|---|",
        f"| flagged as an error within {WITHIN} steps, in both seeds | "
        f"{share(sum(row.flagged('error') for row in hurting), len(hurting))} |",
        f"| flagged as an error or a warning | {share(len(flagged), len(hurting))} |",
        f"| of those, the right cause among the first two | "
        f"{share(sum(row.named for row in flagged), len(flagged))} |",
        f"| of the pairs that do not hurt: flagged as an error | "
        f"{share(sum(row.flagged('error') for row in harmless), len(harmless))} |",
        "",
        "| fault | models | hurt | errors of those | with warnings | cause right | blamed first |",
        "|---|---|---|---|---|---|---|",
    ]
    for fault in FAULTS:
        mine = [row for row in all_rows if row.fault is fault]
        hurt = [row for row in mine if row.hurts]
        blamed: dict[str, int] = defaultdict(int)
        for row in hurt:
            blamed[row.cells()[4].split(", ")[0] or "nothing"] += 1
        said = ", ".join(f"{name} {n}" for name, n in sorted(blamed.items(), key=lambda x: -x[1]))
        lines.append(
            f"| {fault.name} | {len(mine)} | {len(hurt)} | {sum(r.flagged('error') for r in hurt)} "
            f"| {sum(r.flagged(*both) for r in hurt)} | {sum(r.named for r in hurt)} | {said} |"
        )
    lines += ["", "| model | fault | damage | hurts | step | severity | detector | causes |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for row in all_rows:
        lost, *rest = row.cells()
        hurts = "yes" if row.hurts else "no"
        lines.append(f"| {' | '.join((row.host, row.fault.name, lost, hurts, *rest))} |")
    if verbose:
        for row in hurting:
            if not (row.flagged("error") and row.named):
                print("MISSED" if not row.flagged("error") else "CAUSE ", row.host, "|",
                      row.fault.name, [round(d, 2) for d in row.damages])  # fmt: skip
                for verdict in row.verdicts[:1]:
                    for step, finding in sorted(verdict.findings, key=lambda one: one[0]):
                        print(f"    {step} {finding.severity} {finding.detector} {finding.where} "
                              f"{finding.value:.3g} {finding.causes}")  # fmt: skip
    return "\n".join(lines)
