"""`lightning-init plan`: what would happen to every tensor, and why."""

from __future__ import annotations

import json
from collections.abc import Sequence

from lightning_init.cli.options import configured_spec, job_for, one_batch, spec_from
from lightning_init.search.job import Job
from lightning_init.strategies.plan import Plan
from lightning_init.strategies.spec import InitSpec


def run(arguments: Sequence[str]) -> int:
    """Print the plan for a configuration's model; writes nothing.

    Args:
        arguments: LightningCLI's, and the options below.

    Returns:
        0.
    """
    job = job_for("plan", arguments)
    name = job.config.get("strategy")
    spec = spec_from(name) if name else configured_spec(job) or InitSpec("auto")
    plan = _plan(job, spec)
    if other := job.config.get("diff"):
        print(f"{spec.strategy} -> {other}\n{plan.diff(_plan(job, spec_from(other)))}")
    elif job.config.get("json"):
        print(json.dumps(plan.to_dict(), indent=1))
    else:
        print(plan)
    return 0


def _plan(job: Job, spec: InitSpec) -> Plan:
    plan = one_batch(job, spec, monitor_steps=0, loss_steps=0).plan
    if plan is None:
        raise ValueError("nothing was planned: the model's weights count as trained")
    return plan
