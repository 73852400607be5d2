"""`lightning-init audit`: one batch forward and backward, before anything is trained."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from lightning_init.callbacks.baseline import ShallowBaseline
from lightning_init.cli.options import configured_spec, job_for, spec_from, watched
from lightning_init.health.compare import Comparison
from lightning_init.health.report import Report
from lightning_init.search.job import ConfigError, Job
from lightning_init.strategies.spec import InitSpec

_STEPS = 100


def run(arguments: Sequence[str]) -> int:
    """Print layers, findings and verdict of a strategy, or of several side by side.

    Args:
        arguments: LightningCLI's, and the options below.

    Returns:
        1 if there is a finding of severity error in any of them, else 0.
    """
    job = job_for("audit", arguments)
    specs = _specs(job)
    _steps(job)
    out = _out(job)
    reports = {name: _audited(job, name, spec) for name, spec in specs.items()}
    found = Comparison(reports)
    if job.config.get("json"):
        print(json.dumps(found.to_dict(), indent=1))
    elif len(reports) == 1:
        (name,) = reports
        print(f"lightning_init audit: {name}\n{reports[name]}")
    else:
        print(f"lightning_init audit: {', '.join(reports)}\n{found}")
    for path in out:
        found.save(path)
    return int(any(report.errors for report in reports.values()))


def _specs(job: Job) -> dict[str, InitSpec]:
    names = list(dict.fromkeys(job.config.get("strategy") or []))
    if names:
        return {name: spec_from(name) for name in names}
    spec = configured_spec(job) or InitSpec("keep")
    return {spec.strategy: spec}


def _out(job: Job) -> list[Path]:
    """The files to write; that they can be is known before anything runs."""
    text = job.config.get("out")
    if not text:
        return []
    path = Path(text)
    if path.suffix.lower() in (".json", ".html", ".htm"):
        if not path.parent.is_dir():
            raise ConfigError(f"--out: there is no folder {path.parent}")
        return _writable([path])
    if path.suffix or path.is_file():
        raise ConfigError(f"--out must end in .json or .html, or name a folder, but got {text!r}")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out: the folder {path} cannot be made ({error.strerror})") from error
    return _writable([path / "audit.json", path / "audit.html"])


def _writable(paths: list[Path]) -> list[Path]:
    for path in paths:
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise ConfigError(f"--out: {path} cannot be written: no permission")
    return paths


def _audited(job: Job, name: str, spec: InitSpec) -> Report:
    steps = _steps(job)
    twin = ShallowBaseline()
    others = [twin] if job.config.get("baseline") else []
    seen = watched(job, spec, steps, *others, monitor_steps=steps, loss_steps=steps)
    if seen.report is None:
        raise ValueError(f"{name}: the batch could not be audited")
    return twin.judged(seen.report) if others else seen.report


def _steps(job: Job) -> int:
    """One batch, or as many steps as the baseline trains."""
    steps: int | None = job.config.get("steps")
    if steps is None:
        return _STEPS if job.config.get("baseline") else 1
    if not job.config.get("baseline"):
        raise ConfigError("--steps goes with --baseline: an audit reads one batch")
    if steps < 20:
        raise ConfigError(f"`--steps >= 20` must hold, but got {steps}: fewer tell nothing")
    return steps
