"""The promises of `lightning-init search`, through the installed script, as a user meets them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import optuna
import pytest
import torch
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from examples.digits import DigitsMLP
from lightning_init.strategies.apply import fingerprint

ROOT = Path(__file__).parents[2]
CONFIG = "configs/digits.yaml"
SCRIPT = Path(sys.executable).with_name("lightning-init")
SEARCH = ["search", "--config", CONFIG, "--steps=60", "--confirm-steps=60"]
SEARCH += ["--strategies=xavier_normal,orthogonal"]
LIMIT = 180.0  # seconds; only a hanging process gets there

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the process table"),
]


@contextmanager
def started(*command: object, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A process in a group of its own; nothing of the group is left behind."""
    process = subprocess.Popen(
        [str(part) for part in command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def finish(*command: object, **environment: str) -> str:
    with started(*command, **environment) as process:
        text, _ = process.communicate(timeout=LIMIT)
        assert process.returncode == 0, text
        return text


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(session: int) -> list[int]:
    """Workers lead groups of their own, but stay in the session."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, found_in = entry.read_text().rpartition(")")[2].split()[:4]
            if int(found_in) == session and state != "Z":
                found.append(int(entry.parent.name))
    return found


def stored(folder: Path, tmp_path: Path, study: str = "search") -> list[optuna.trial.FrozenTrial]:
    """The trials in a copy of the journal, up to its last whole line."""
    data = (folder / "study.journal").read_bytes()
    copy = tmp_path / "copy.journal"
    copy.write_bytes(data[: data.rfind(b"\n") + 1])
    storage = JournalStorage(JournalFileBackend(str(copy)))
    names = [summary.study_name for summary in storage.get_all_studies()]
    return optuna.load_study(study_name=study, storage=storage).trials if study in names else []


def complete(folder: Path, tmp_path: Path, study: str = "search") -> dict[int, object]:
    if not (folder / "study.journal").exists():
        return {}
    return {
        trial.number: (trial.params, trial.value, trial.user_attrs, trial.datetime_complete)
        for trial in stored(folder, tmp_path, study)
        if trial.state.name == "COMPLETE"
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("search") / "run"
    finish(SCRIPT, *SEARCH, "--trials=5", "--confirm-seeds=3", f"--out={out}")
    return out


@pytest.fixture(scope="module")
def winner(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())["winner"]


def fit(folder: Path, out: Path, threads: int, *more: str, steps: int = 60) -> tuple[str, str]:
    """Fingerprints of init and final weights of an ordinary `fit` with the overlay."""
    command = (sys.executable, "-m", "examples.train", "fit", f"--config={CONFIG}")
    keep = "lightning.pytorch.callbacks.ModelCheckpoint"
    saved = {"class_path": keep, "init_args": {"every_n_train_steps": steps}}
    (out / "last.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks+": [saved]}}))
    finish(
        *command,
        f"--config={folder / 'best.yaml'}",
        f"--config={out / 'last.yaml'}",
        f"--trainer.max_steps={steps}",
        f"--trainer.default_root_dir={out}",
        *more,
        OMP_NUM_THREADS=str(threads),
    )
    [init] = out.rglob("init.json")
    [checkpoint] = out.rglob(f"*step={steps}.ckpt")
    state = torch.load(checkpoint, weights_only=False)
    model = DigitsMLP(depth=30)
    model.load_state_dict(state["state_dict"])
    assert state["global_step"] == steps
    return json.loads(init.read_text())["fingerprint"], fingerprint(model)


def test_three_files_are_written(folder, winner):
    overlay = yaml.safe_load((folder / "best.yaml").read_text())
    [callback] = overlay["trainer"]["callbacks+"]
    assert callback["class_path"] == "lightning_init.InitCallback"
    assert callback["init_args"]["strategy"] == winner["spec"]["strategy"] != "keep"
    assert overlay["seed_everything"] == 1
    assert overlay["model"]["init_args"] == {"lr": winner["config"]["model.init_args.lr"]}
    assert "<html" in (folder / "report.html").read_text()
    assert len({run["final_fingerprint"] for run in winner["runs"]}) == 3


@pytest.mark.parametrize("index", [0, 2])
def test_fit_with_the_overlay_is_the_confirmation_run(folder, winner, tmp_path, index):
    run = winner["runs"][index]
    seed = [] if index == 0 else [f"--seed_everything={run['seed']}"]
    init, final = fit(folder, tmp_path, run["threads"], *seed)
    assert init == run["init_fingerprint"]
    assert final == run["final_fingerprint"]


def test_the_init_does_not_depend_on_the_threads(folder, winner, tmp_path):
    init, _ = fit(folder, tmp_path, winner["runs"][0]["threads"] + 1, steps=1)
    assert init == winner["runs"][0]["init_fingerprint"]


def test_the_same_command_on_a_finished_run_runs_nothing(folder, tmp_path):
    before = [complete(folder, tmp_path, name) for name in ("search", "confirm")]
    results = (folder / "results.json").read_text()
    confirmed = len(json.loads(results)["candidates"]) + 1
    assert [len(trials) for trials in before] == [5, 3 * confirmed]
    finish(SCRIPT, *SEARCH, "--trials=5", "--confirm-seeds=3", f"--out={folder}")
    assert [complete(folder, tmp_path, name) for name in ("search", "confirm")] == before
    assert (folder / "results.json").read_text() == results


def test_killed_half_way_the_same_command_goes_on(tmp_path):
    out = tmp_path / "run"
    command = (SCRIPT, *SEARCH, "--trials=5", "--confirm-seeds=2", f"--out={out}")
    with started(*command) as process:
        wait_until(lambda: len(complete(out, tmp_path)) >= 2 or process.poll() is not None)
        process.kill()
        assert process.wait(LIMIT) == -signal.SIGKILL
        wait_until(lambda: not alive(process.pid))  # workers see that their parent is gone
    before = complete(out, tmp_path)
    assert 2 <= len(before) < 5
    finish(*command)
    after = complete(out, tmp_path)
    assert {number: after[number] for number in before} == before
    assert len(after) == 5
    assert {t.state.name for t in stored(out, tmp_path)} <= {"COMPLETE", "FAIL"}
    confirmed = len(json.loads((out / "results.json").read_text())["candidates"]) + 1
    assert len(complete(out, tmp_path, "confirm")) == 2 * confirmed
    assert not alive(process.pid)


@pytest.mark.parametrize(
    ("workers", "number"), [(0, signal.SIGINT), (2, signal.SIGINT), (2, signal.SIGTERM)]
)
def test_interrupted_it_says_so_and_goes_on(tmp_path, workers, number):
    out = tmp_path / "run"
    command = (SCRIPT, *SEARCH, "--trials=5", "--confirm-seeds=2", f"--out={out}")
    with started(*command, f"--workers={workers}") as process:
        wait_until(lambda: bool(complete(out, tmp_path)) or process.poll() is not None)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does: workers get it too
        else:
            os.kill(process.pid, number)  # as a scheduler does
        text, _ = process.communicate(timeout=LIMIT)
        assert process.returncode == 130, text
        assert "the same command goes on" in text
        assert "Traceback" not in text
        wait_until(lambda: not alive(process.pid))
    before = complete(out, tmp_path)
    assert 1 <= len(before) < 5
    assert "RUNNING" not in {t.state.name for t in stored(out, tmp_path)}
    if workers and number == signal.SIGINT:
        return  # going on is the same as after a kill
    finish(*command, f"--workers={workers}")
    after = complete(out, tmp_path)
    assert {number: after[number] for number in before} == before
    assert len(after) == 5
