"""A run's folder as it is seen: read from a copy, so that a search may be writing it meanwhile."""

from __future__ import annotations

import difflib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from lightning_init.search.budget import Budget
from lightning_init.search.database import open_database
from lightning_init.search.journal import repair
from lightning_init.search.overview import Overview
from lightning_init.search.records import row
from lightning_init.search.result import SearchResult
from lightning_init.search.space import Space
from lightning_init.search.study import JOURNAL

RUNS = Path("lightning_init_runs")


@contextmanager
def rebuilt(folder: str | Path, storage: str | None = None) -> Iterator[Overview]:
    """What there is to see of a run, finished or not; changes nothing in it.

    Args:
        folder: The run's.
        storage: The database, where the search was not kept in the folder.

    Yields:
        The overview; its study is gone afterwards.

    Raises:
        FileNotFoundError: If there is no such folder, or no search in it.
        ValueError: If the search has no trial yet.
    """
    folder = Path(folder)
    if storage is None and not (folder / JOURNAL).is_file():
        raise FileNotFoundError(_no_run(folder))
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place)
        if storage is None:
            shutil.copyfile(folder / JOURNAL, copy / JOURNAL)
            repair(copy / JOURNAL)  # a search may be writing its next line
        yield _overview(folder, copy, storage)


def _overview(folder: Path, copy: Path, storage: str | None) -> Overview:
    opened = _open(copy / JOURNAL, storage)
    if "search" not in {one.study_name for one in opened.get_all_studies()}:
        raise ValueError(
            f"no search has begun in {folder}; a comparison there has its page in compare.html"
        )
    study = optuna.load_study(study_name="search", storage=opened)
    if not {"budget", "space"} <= study.user_attrs.keys():
        raise ValueError(f"the search in {folder} has not begun: start it again")
    budget = Budget.from_dict(study.user_attrs["budget"])
    trials = study.get_trials(deepcopy=False)
    ended = (TrialState.COMPLETE, TrialState.PRUNED)
    if not any(trial.state in ended for trial in trials):
        raise ValueError(f"no trial of the search in {folder} has ended yet")
    try:
        return Overview.of(SearchResult.load(copy, storage), folder)
    except ValueError:  # it has not ended
        space = Space.from_dict(study.user_attrs["space"])
        rows = tuple(row(space, trial) for trial in trials)
        return Overview.unfinished(rows, study, budget, _runs(opened))


def _open(journal: Path, storage: str | None) -> BaseStorage:
    if storage is None:
        return JournalStorage(JournalFileBackend(str(journal)))
    return open_database(storage, exists=True)


def _runs(opened: BaseStorage) -> int:
    """Confirmation runs that are stored."""
    if "confirm" not in {one.study_name for one in opened.get_all_studies()}:
        return 0
    return len(optuna.load_study(study_name="confirm", storage=opened).get_trials(deepcopy=False))


def _no_run(folder: Path) -> str:
    """What is wrong, and the runs there are, the closest first."""
    there = "holds no search" if folder.is_dir() else "is no folder"
    places = {folder.parent, folder, RUNS}
    known = sorted({str(path.parent) for place in places for path in place.glob(f"*/{JOURNAL}")})
    if not known:
        return f"{folder} {there} (no {JOURNAL}); `lightning-init search --config ...` makes one"
    close = difflib.get_close_matches(str(folder), known, n=1, cutoff=0.6)
    close = close or [one for one in known if Path(one).name == folder.name][:1]
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{folder} {there} (no {JOURNAL}): {hint}There are {', '.join(known[:8])}"
