"""lightning_init: apply, watch and search weight initializations.

The names below are the public ones. They are imported on first use, so that the core (analyze,
plan, apply, audit) needs torch only and loads neither lightning nor optuna.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_init.architecture.analyze import analyze as analyze
    from lightning_init.architecture.arguments import Range as Range
    from lightning_init.architecture.params import (
        Architecture as Architecture,
        ParamInfo as ParamInfo,
        Role as Role,
        Usage as Usage,
    )
    from lightning_init.architecture.quadrature import (
        activation_chi as activation_chi,
        activation_gain as activation_gain,
    )
    from lightning_init.callbacks.init import InitCallback as InitCallback
    from lightning_init.callbacks.monitor import HealthMonitor as HealthMonitor
    from lightning_init.cli.mixin import SearchMixin as SearchMixin
    from lightning_init.health.audit import audit as audit
    from lightning_init.health.compare import Comparison as Comparison
    from lightning_init.health.findings import Cause as Cause, Finding as Finding
    from lightning_init.health.registry import detector as detector
    from lightning_init.health.report import Report as Report
    from lightning_init.health.shallow import shallow_baseline as shallow_baseline
    from lightning_init.search.axis import Axis as Axis
    from lightning_init.search.board import Board as Board
    from lightning_init.search.compare import compare_specs as compare_specs
    from lightning_init.search.result import SearchResult as SearchResult
    from lightning_init.search.session import Workers as Workers
    from lightning_init.search.space import Space as Space
    from lightning_init.search.study import search_init as search_init
    from lightning_init.search.trial import Outcome as Outcome, Trial as Trial
    from lightning_init.search.tuner import InitTuner as InitTuner
    from lightning_init.strategies.apply import (
        apply_ as apply_,
        calibrate_ as calibrate_,
        initialize_ as initialize_,
    )
    from lightning_init.strategies.auto import recommend as recommend
    from lightning_init.strategies.groups import param_groups as param_groups
    from lightning_init.strategies.plan import Plan as Plan
    from lightning_init.strategies.planning import make_plan as make_plan
    from lightning_init.strategies.registry import (
        Strategy as Strategy,
        strategy as strategy,
    )
    from lightning_init.strategies.spec import InitSpec as InitSpec
    from lightning_init.strategies.structure import (
        add_branch_scales_ as add_branch_scales_,
        remove_norms_ as remove_norms_,
    )

_HOMES = {
    "activation_chi": "architecture.quadrature",
    "activation_gain": "architecture.quadrature",
    "analyze": "architecture.analyze",
    "Architecture": "architecture.params",
    "ParamInfo": "architecture.params",
    "Role": "architecture.params",
    "Usage": "architecture.params",
    "InitCallback": "callbacks.init",
    "HealthMonitor": "callbacks.monitor",
    "SearchMixin": "cli.mixin",
    "audit": "health.audit",
    "Comparison": "health.compare",
    "Cause": "health.findings",
    "Finding": "health.findings",
    "detector": "health.registry",
    "Report": "health.report",
    "shallow_baseline": "health.shallow",
    "InitTuner": "search.tuner",
    "Outcome": "search.trial",
    "Trial": "search.trial",
    "compare_specs": "search.compare",
    "Board": "search.board",
    "SearchResult": "search.result",
    "Axis": "search.axis",
    "Space": "search.space",
    "search_init": "search.study",
    "Workers": "search.session",
    "apply_": "strategies.apply",
    "calibrate_": "strategies.apply",
    "initialize_": "strategies.apply",
    "recommend": "strategies.auto",
    "param_groups": "strategies.groups",
    "Plan": "strategies.plan",
    "make_plan": "strategies.planning",
    "Range": "architecture.arguments",
    "Strategy": "strategies.registry",
    "strategy": "strategies.registry",
    "InitSpec": "strategies.spec",
    "add_branch_scales_": "strategies.structure",
    "remove_norms_": "strategies.structure",
}

__all__ = sorted(_HOMES)
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'lightning_init' has no attribute {name!r}")
    value = getattr(import_module(f"lightning_init.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
