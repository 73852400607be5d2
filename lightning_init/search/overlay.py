"""The winner as a LightningCLI configuration to put after the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lightning_init.search.keys import nested, with_lists
from lightning_init.strategies.spec import spec_in

if TYPE_CHECKING:
    from lightning_init.search.result import SearchResult


def overlay(result: SearchResult) -> dict[str, Any]:
    """Seed, changed configuration keys, and the callback with the init."""
    best = result.best
    init = {key: value for key, value in best.spec.to_dict().items() if key != "seed"}
    callback = {"class_path": "lightning_init.InitCallback", "init_args": init}
    config = {} if best.is_baseline else nested(with_lists(best.config, result.lists))
    data = {"seed_everything": best.runs[0].seed, **config}
    trainer = data.setdefault("trainer", {})
    if isinstance(listed := trainer.get("callbacks"), list):
        # the list is said as a whole already, and an init of the user's own is not the winner's
        others = [one for one in listed if spec_in({"trainer": {"callbacks": [one]}}) is None]
        trainer["callbacks"] = [*others, callback]
    else:
        trainer["callbacks+"] = [callback]
    return data


def text(result: SearchResult, path: Path) -> str:
    """The file: what it is, how to use it, how to get a run of the search again."""
    seeds = ", ".join(str(run.seed) for run in result.best.runs)
    said = [
        result.verdict(),
        f"Use it as a second configuration: fit --config <yours> --config {path}",
        f"Each of the confirmation seeds {seeds} gives that run again: --seed_everything N "
        f"--trainer.max_steps {result.steps} (unless EarlyStopping, which trials leave out, ends it)",
    ]
    head = "".join(f"# {line}\n" for line in said)
    return head + yaml.safe_dump(result.overlay(), sort_keys=False)
