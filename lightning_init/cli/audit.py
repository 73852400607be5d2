"""`lightning-init audit`: one batch forward and backward, before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from lightning_init.callbacks.display import render
from lightning_init.cli.options import configured_spec, job_for, one_batch, spec_from
from lightning_init.strategies.spec import InitSpec


def run(arguments: Sequence[str]) -> int:
    """Print layers and verdict for one or more strategies.

    Args:
        arguments: LightningCLI's, and the options below.

    Returns:
        1 if there is a finding of severity error, else 0.
    """
    job = job_for("audit", arguments, _options)
    names: list[str] = job.config.get("strategy") or []
    specs = [spec_from(name) for name in names] or [configured_spec(job) or InitSpec("keep")]
    found: dict[str, Any] = {}
    broken = False
    for name, spec in zip(names or [specs[0].strategy], specs, strict=True):
        seen = one_batch(job, spec, monitor_steps=1, loss_steps=1)
        if seen.report is None or seen.plan is None:
            raise ValueError(f"{name}: the batch could not be audited")
        broken |= bool(seen.report.errors)
        found[name] = seen.report.to_dict()
        if not job.config.get("json"):
            print(render(seen.plan, seen.report, f"lightning_init audit: {name}"))
            print("\n".join([*seen.report.blind, seen.report.verdict()]))
    text = json.dumps(found, indent=1)
    if job.config.get("json"):
        print(text)
    if out := job.config.get("out"):
        Path(out).write_text(text, encoding="utf-8")
    return int(broken)


def _options(parser: LightningArgumentParser) -> None:
    parser.add_argument(
        "--strategy", action="append", type=str, help="name or file; repeatable; default keep"
    )
    parser.add_argument("--out", type=str | None, help="a JSON file for the reports")
    parser.add_argument("--json", action="store_true", help="print JSON")
