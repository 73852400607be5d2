"""A worker costs its own trial only: killed, too slow, out of memory, hung, mistaken."""

import multiprocessing as mp
import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

from lightning_init import Space, Workers, search_init
from lightning_init.search.executors import Answer, InProcess
from lightning_init.search.pool import Pool, StartError
from lightning_init.search.trial import Outcome, Trial
from lightning_init.strategies.spec import InitSpec
from tests.search.fakes import valley

ROOT = Path(__file__).parents[2]
needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


def trial(strategy: str, seed: int = 0) -> Trial:
    return Trial(InitSpec(strategy), {}, seed, 1)


@contextmanager
def pool_of(evaluate, workers=1, **arguments):
    pool = Pool(evaluate, workers, **arguments)
    try:
        yield pool
    finally:
        pool.close()


def answer_to(pool, job: int, asked: Trial) -> Answer:
    pool.submit(job, asked)
    answer = pool.next(lambda *news: False)
    assert answer.job == job
    return answer


def acts(trial: Trial, report: object) -> Outcome:
    """What happens is in the name of the init."""
    if trial.spec.strategy == "zeros":
        os.kill(os.getpid(), signal.SIGKILL)
    if trial.spec.strategy == "small":
        raise torch.OutOfMemoryError("CUDA out of memory")
    if trial.spec.strategy == "constant":
        raise MemoryError
    if trial.spec.strategy == "normal":
        raise RuntimeError("odd shapes")
    if trial.spec.strategy == "uniform":
        time.sleep(600)
    if trial.spec.strategy == "orthogonal":
        print("said by a worker")
        os._exit(3)
    return Outcome(1.0, info={"pid": os.getpid()})


@pytest.mark.slow
def test_each_misfortune_costs_one_trial_and_leaves_a_fresh_worker(tmp_path):
    log = tmp_path / "run" / "log.txt"
    with pool_of(acts, log=log, timeout=1.0) as pool:
        pid = answer_to(pool, 0, trial("keep")).outcome.info["pid"]
        said = {
            "zeros": "its worker process died (SIGKILL)",
            "orthogonal": "its worker process died (exit code 3)",
            "uniform": "it took longer than 1 s",
            "small": "OutOfMemoryError: CUDA out of memory",
            "constant": "MemoryError: MemoryError",
        }
        for job, (name, text) in enumerate(said.items(), start=1):
            answer = answer_to(pool, job, trial(name))
            assert (answer.outcome, answer.crash) == (None, text)
            assert not answer.user_error
            fresh = answer_to(pool, 10 * job, trial("keep")).outcome.info["pid"]
            assert fresh != pid
            pid = fresh
        answer = answer_to(pool, 7, trial("normal", seed=5))
        assert answer.crash == "RuntimeError: odd shapes"
        assert answer_to(pool, 8, trial("keep")).outcome.info["pid"] == pid, "nothing to replace"
    text = log.read_text()
    assert "trial 7, normal, seed 5, crashed:" in text
    assert "RuntimeError: odd shapes" in text
    assert 'raise RuntimeError("odd shapes")' in text
    assert "said by a worker" in text


@pytest.mark.slow
def test_a_worker_that_is_killed_while_idle_is_replaced_when_needed():
    with pool_of(acts) as pool:
        pid = answer_to(pool, 0, trial("keep")).outcome.info["pid"]
        os.kill(pid, signal.SIGKILL)
        assert answer_to(pool, 1, trial("keep")).outcome.info["pid"] != pid


@pytest.mark.slow
def test_a_worker_that_is_killed_before_it_has_begun_loses_nothing():
    with pool_of(acts) as pool:
        pool.submit(0, trial("keep"))
        pool._workers[0].process.kill()  # it still imports torch
        answer = pool.next(lambda *news: False)
        assert answer.outcome is not None


@pytest.mark.slow
def test_a_hung_worker_does_not_keep_the_search_from_ending():
    with pool_of(acts, workers=2) as pool:
        pool.submit(0, trial("uniform"))
        assert pool.next(lambda *news: False, 0.2) is None
        assert pool.idle == 1
        assert [bool(text) for text in pool.doing] == [True, False]
        processes = [worker.process for worker in pool._workers]
    assert not any(process.is_alive() for process in processes)


@pytest.mark.parametrize("arguments", [{"workers": 0}, {"timeout": 0.0}, {"timeout": -1.0}])
def test_a_pool_of_nobody_or_without_time_is_refused(arguments):
    with pytest.raises(ValueError, match=r"workers >= 1.*timeout > 0"):
        Pool(acts, **{"workers": 1, **arguments})


def test_here_too_a_crash_is_an_answer_and_its_traceback_in_the_log(tmp_path, capfd):
    log = tmp_path / "log.txt"
    here = InProcess(acts, log)
    for job, name in enumerate(("normal", "constant")):
        assert answer_to(here, job, trial(name)).outcome is None
    assert capfd.readouterr() == ("", "")
    assert "trial 0, normal, seed 0, crashed:" in log.read_text()
    assert "MemoryError" in log.read_text()


class Unloadable:
    """Pickles here, but not in a worker."""

    def __reduce__(self):
        return (_not_here, (os.getpid(),))

    def __call__(self, trial, report):
        raise AssertionError


def _not_here(pid: int) -> object:
    if os.getpid() == pid:
        return Unloadable()
    raise ImportError("no module named theirs")


@pytest.mark.slow
def test_a_function_that_a_worker_cannot_load_is_the_users_mistake(tmp_path):
    with pool_of(Unloadable(), log=tmp_path / "log.txt") as pool:
        answer = answer_to(pool, 0, trial("keep"))
    assert answer.user_error
    assert "cannot be loaded in a worker process: ImportError: no module named" in answer.crash
    assert "Traceback" in (tmp_path / "log.txt").read_text()


def script(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(text))
    return path


@pytest.mark.slow
def test_a_script_that_would_start_itself_again_is_told_how_to_guard(tmp_path):
    path = script(
        tmp_path,
        """
        from lightning_init import Space, search_init
        from tests.search.fakes import valley
        search_init(valley, Space(("orthogonal",)), trials=3, workers=1, storage="journal")
        """,
    )
    run = subprocess.run(
        [sys.executable, path],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert run.returncode == 1
    assert "StartError" in run.stderr.splitlines()[-1]
    assert 'if __name__ == "__main__":' in run.stderr.splitlines()[-1]
    assert run.stderr.count("Traceback") == 1


def dies_at_once() -> None:
    os._exit(4)


@pytest.mark.slow
def test_workers_that_never_start_end_the_search(monkeypatch):
    with pool_of(valley) as pool:
        monkeypatch.setattr("lightning_init.search.pool.serve", _ends)
        for worker in pool._workers:
            worker.process.kill()
            worker.process.join()
        pool.submit(0, trial("keep"))
        with pytest.raises(StartError, match=r"no worker process starts \(exit code 4\)"):
            pool.next(lambda *news: False)


def _ends(connection, place) -> None:
    os._exit(4)


@needs_proc
@pytest.mark.slow
def test_a_parent_that_is_killed_leaves_nobody_behind(tmp_path):
    """In the middle of a long fit, with a data loader of its own."""
    path = script(
        tmp_path,
        """
        import sys
        from lightning_init.search.pool import Pool
        from lightning_init.search.trial import Trial
        from lightning_init.strategies.spec import InitSpec
        from tests.search.test_pool import endless

        if __name__ == "__main__":
            pool = Pool(endless, 2)
            for job in range(2):
                pool.submit(job, Trial(InitSpec("keep"), {}, job, 1))
            while True:
                pool.next(lambda job, step, value: print("pid", int(value), flush=True))
        """,
    )
    parent = subprocess.Popen(
        [sys.executable, path],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        pids = [int(parent.stdout.readline().split()[1]) for _ in range(4)]
        assert len(set(pids)) == 4, "two workers, a data loader each"
        assert all(session_of(pid) == parent.pid for pid in pids)
    finally:
        parent.kill()
        parent.communicate()
    end = time.monotonic() + 60
    while left := in_session(parent.pid):
        assert time.monotonic() < end, left
        time.sleep(0.05)


def endless(trial: Trial, report) -> Outcome:
    from torch.utils.data import DataLoader

    loader = iter(DataLoader(range(10**9), num_workers=1, collate_fn=_pid_of))
    report(1, os.getpid())
    report(2, next(loader))
    x = torch.ones(64, 64)
    while True:
        x = x @ x / 64


def _pid_of(items: object) -> int:
    return os.getpid()


def session_of(pid: int) -> int | None:
    with suppress(OSError):
        state, _, _, session = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:4]
        return None if state == "Z" else int(session)
    return None


def in_session(session: int) -> list[int]:
    pids = [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if session_of(pid) == session]


@pytest.mark.slow
def test_a_search_with_a_fresh_process_for_each_trial(tmp_path):
    space = Space(("orthogonal",))
    found = [
        search_init(
            valley, space, trials=4, steps=3, confirm_seeds=2, workers=Workers(1, isolate=isolate)
        )
        for isolate in (False, True)
    ]
    assert found[0].to_dict() == found[1].to_dict()


def has_a_child(trial: Trial, report: object) -> Outcome:
    """As a data loader with a data set that cannot be pickled; the worker may end before it."""
    child = mp.Process(target=lambda: time.sleep(600 if trial.seed else 0))
    child.start()
    if trial.seed:
        os.kill(os.getpid(), signal.SIGKILL)
    child.join()
    return Outcome(float(child.exitcode))


@pytest.mark.skipif(mp.get_all_start_methods()[0] != "fork", reason="nothing is forked here")
def test_what_a_worker_starts_starts_as_it_does_in_fit():
    with pool_of(has_a_child) as pool:
        assert answer_to(pool, 0, trial("keep")).outcome.metric == 0
        pool.submit(1, trial("keep", seed=1))
        answers = (pool.next(lambda *news: False, seconds=5) for _ in range(4))
        lost = next(answer for answer in answers if answer is not None)
        assert "SIGKILL" in lost.crash
