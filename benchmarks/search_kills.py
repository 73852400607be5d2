"""Kills during a search: workers and the parent at random moments, and what is left in the end.

    python -m benchmarks.search_kills [--quick] [--seed 0] [--folder FOLDER]

`lightning-init search` runs 100 trials of a small network on handwritten digits on two workers.
20 workers and 3 times the parent are killed (SIGKILL) at random moments while it screens; after a
killed parent the same command is typed again. Then: 100 finished trials, none twice, none RUNNING,
and no process left. Random moments are the point, so nothing is cached.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

ROOT = Path(__file__).parents[1]
DONE = ("COMPLETE", "PRUNED")  # pruned: ended early for good
CONFIG = "configs/digits_shallow.yaml"


@dataclass
class Kills:
    """What is to be done, and when next."""

    workers: int
    parents: int
    random: random.Random

    def pick(self) -> str:
        """Whom to kill next, evenly spread."""
        left = self.workers + self.parents
        return "parent" if self.random.random() < self.parents / left else "worker"


def command(folder: Path, trials: int) -> list[str]:
    options = [f"--trials={trials}", "--steps=100", "--confirm-seeds=2", "--workers=2"]
    program = [sys.executable, "-m", "lightning_init.cli.main", "search"]
    return [*program, f"--config={CONFIG}", f"--out={folder}", *options]


def start(folder: Path, trials: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command(folder, trials),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def in_session(session: int) -> Iterator[tuple[int, int]]:
    """Process and group of everything that a session still holds."""
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, group, found = entry.read_text().rpartition(")")[2].split()[:4]
            if int(found) == session and state != "Z":
                yield int(entry.parent.name), int(group)


def workers_of(session: int) -> list[int]:
    """Workers lead groups of their own."""
    return [pid for pid, group in in_session(session) if pid == group != session]


def trials_in(folder: Path, study: str = "search") -> list[optuna.trial.FrozenTrial]:
    """The trials in a copy of the journal, up to its last whole line."""
    path = folder / "study.journal"
    if not path.exists():
        return []
    data = path.read_bytes()
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / "copy.journal"
        copy.write_bytes(data[: data.rfind(b"\n") + 1])
        storage = JournalStorage(JournalFileBackend(str(copy)))
        names = [one.study_name for one in storage.get_all_studies()]
        return optuna.load_study(study_name=study, storage=storage).trials if study in names else []


def done_in(folder: Path) -> int:
    return sum(trial.state.name in DONE for trial in trials_in(folder))


def run(folder: Path, trials: int, kills: Kills, verbose: bool = True) -> list[int]:
    """Search to the end while killing; the sessions that there were."""
    total = kills.workers + kills.parents
    sessions = []
    process = start(folder, trials)
    sessions.append(process.pid)
    while process.poll() is None or kills.workers + kills.parents:
        if process.poll() is not None:
            assert process.stderr is not None
            raise AssertionError(f"it ended by itself: {process.stderr.read().decode()[-2000:]}")
        given = total - kills.workers - kills.parents
        due = kills.workers + kills.parents and done_in(folder) >= given * trials * 0.9 / total
        if due and (found := workers_of(process.pid)):
            time.sleep(kills.random.random())
            victim = kills.pick()
            if verbose:
                print(f"kill {given + 1} of {total}: {victim}, {done_in(folder)} done", flush=True)
            if victim == "worker":
                kills.workers -= 1
                with suppress(ProcessLookupError):
                    os.kill(kills.random.choice(found), signal.SIGKILL)
            else:
                kills.parents -= 1
                process.kill()
                process.wait()
                gone(process.pid, 30.0)
                process = start(folder, trials)
                sessions.append(process.pid)
        if not kills.workers + kills.parents:
            process.wait()
        time.sleep(0.05)
    if process.returncode:
        assert process.stderr is not None
        raise AssertionError(process.stderr.read().decode()[-2000:])
    return sessions


def gone(session: int, seconds: float) -> float:
    """Seconds until nothing of a session is left."""
    began = time.monotonic()
    while left := list(in_session(session)):
        if time.monotonic() - began > seconds:
            raise AssertionError(f"still there after {seconds:g} s: {left}")
        time.sleep(0.02)
    return time.monotonic() - began


def verdict(folder: Path, trials: int, sessions: list[int]) -> list[str]:
    """What must hold in the end, as lines `figure, target`."""
    found = trials_in(folder)
    states = Counter(trial.state.name for trial in found)
    # A second try that the parent's end cut off is queued again; it ends once.
    again = [t for t in found if "retry_of" in t.user_attrs and t.state.name in DONE]
    retries = Counter(t.user_attrs["retry_of"] for t in again)
    # One seed for all: what was told twice has the same parameters and the same losses.
    finished = [t for t in found if t.state.name in DONE and t.user_attrs.get("curve")]
    told = [(repr(t.params), repr(t.user_attrs["curve"])) for t in finished]
    runs = Counter(
        (t.user_attrs.get("candidate"), t.user_attrs.get("seed"))
        for t in trials_in(folder, "confirm")
    )
    left = [pid for session in sessions for pid, _ in in_session(session)]
    rows = [
        ("finished trials", sum(states[state] for state in DONE), trials),
        ("RUNNING or WAITING", states["RUNNING"] + states["WAITING"], 0),
        ("second tries that ended twice", sum(count > 1 for count in retries.values()), 0),
        ("told twice", len(told) - len(set(told)), 0),
        ("confirmation runs twice", sum(count > 1 for count in runs.values()), 0),
        ("processes left", len(left), 0),
    ]
    lines = [f"{name}: {figure} (target {target})" for name, figure, target in rows]
    bad = [line for line, (_, figure, target) in zip(lines, rows, strict=True) if figure != target]
    if bad:
        raise SystemExit("\n".join([*lines, f"FAILED: {'; '.join(bad)}"]))
    return [*lines, f"lost and queued again: {states['FAIL']}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="20 trials, 4 workers, 1 parent")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path, help="keep the run here")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    trials, workers, parents = (20, 4, 1) if options.quick else (100, 20, 3)
    with tempfile.TemporaryDirectory() as place:
        folder = options.folder or Path(place) / "run"
        began = time.monotonic()
        sessions = run(folder, trials, Kills(workers, parents, random.Random(options.seed)))
        for session in sessions:
            gone(session, 10.0)
        lines = verdict(folder, trials, sessions)
        print(f"{workers} workers and {parents} times the parent killed in {trials} trials,")
        print(f"{time.monotonic() - began:.0f} s")
        print("\n".join(lines))


if __name__ == "__main__":
    main()
