"""The study's file survives kills: torn tails, left locks, second owners."""

import multiprocessing as mp
from pathlib import Path

import optuna
import pytest

from lightning_init.search.journal import BusyError, open_storage, repair


@pytest.fixture(autouse=True)
def _quiet_optuna():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def study_in(storage) -> optuna.Study:
    return optuna.create_study(study_name="s", storage=storage, load_if_exists=True)


def add(path: Path, *values: float) -> None:
    with open_storage(path) as storage:
        for value in values:
            study_in(storage).add_trial(optuna.create_trial(value=value))


def values(path: Path) -> list[float]:
    with open_storage(path) as storage:
        return [trial.value for trial in study_in(storage).trials]


@pytest.mark.slow
def test_a_journal_torn_at_any_byte_of_its_last_record_opens_again(tmp_path):
    whole = tmp_path / "whole"
    add(whole, 1.0, 2.0, 3.0)
    data = whole.read_bytes()
    last = data.rstrip(b"\n").rfind(b"\n") + 1
    assert len(data) - last > 50
    for end in range(last, len(data)):
        path = tmp_path / str(end) / "study.journal"
        path.parent.mkdir()
        path.write_bytes(data[:end])
        assert values(path) == [1.0, 2.0], end
        add(path, 4.0, 5.0)
        assert values(path) == [1.0, 2.0, 4.0, 5.0], end
        backup = path.with_name("study.journal.bak")
        if end == last:
            assert not backup.exists(), "nothing was torn"
        else:
            assert backup.read_bytes() == data[:end]


def test_a_whole_journal_is_left_alone(tmp_path):
    path = tmp_path / "j"
    add(path, 1.0)
    before = path.read_bytes()
    assert not repair(path)
    assert path.read_bytes() == before
    assert not repair(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


def test_a_file_without_any_whole_line_becomes_empty(tmp_path):
    path = tmp_path / "j"
    path.write_bytes(b'{"op_code": 0, "wor')
    assert repair(path)
    assert path.read_bytes() == b""
    assert values(path) == []


@pytest.mark.parametrize("suffix", [".lock", ".lock.rename1234"])
def test_a_lock_left_behind_is_removed(tmp_path, suffix):
    path = tmp_path / "j"
    add(path, 1.0)
    lock = path.with_name(f"j{suffix}")
    lock.touch()
    with open_storage(path) as storage:
        assert not lock.exists()
        study_in(storage).add_trial(optuna.create_trial(value=2.0))
    assert values(path) == [1.0, 2.0]
    assert not list(tmp_path.glob("j.lock*"))


def test_two_owners_in_one_process_are_refused(tmp_path):
    path = tmp_path / "run" / "j"
    refused = pytest.raises(BusyError, match=r"another search is running in .*run.*--out")
    with open_storage(path), refused, open_storage(path):
        pass
    add(path, 1.0)
    assert values(path) == [1.0]


def _holds(path: Path, ready, done) -> None:
    with open_storage(path):
        ready.set()
        done.wait(60)


@pytest.mark.slow
def test_another_process_is_refused_until_it_ends(tmp_path):
    context, path = mp.get_context("spawn"), tmp_path / "j"
    ready, done = context.Event(), context.Event()
    other = context.Process(target=_holds, args=(path, ready, done), daemon=True)
    other.start()
    try:
        assert ready.wait(60)
        with pytest.raises(BusyError):
            add(path, 1.0)
        other.kill()  # the lock goes with its owner, however it ends
        other.join(30)
        add(path, 1.0)
        assert values(path) == [1.0]
    finally:
        other.kill()
        other.join(30)


def test_another_owner_does_not_repair_or_unlock(tmp_path):
    path = tmp_path / "j"
    with open_storage(path):
        path.write_bytes(b"half a li")
        lock = path.with_name("j.lock")
        lock.touch()
        with pytest.raises(BusyError), open_storage(path):
            pass
        assert path.read_bytes() == b"half a li"
        assert lock.exists()


def test_none_is_memory():
    with open_storage(None) as storage:
        assert isinstance(storage, optuna.storages.InMemoryStorage)
        assert study_in(storage).trials == []


def test_a_url_is_a_database(tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    for value in (1.0, 2.0):
        with open_storage(url) as storage:
            study_in(storage).add_trial(optuna.create_trial(value=value))
    with open_storage(url) as storage:
        assert [trial.value for trial in study_in(storage).trials] == [1.0, 2.0]
    assert (tmp_path / "study.db").exists()
