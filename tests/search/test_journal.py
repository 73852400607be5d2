"""The study's file survives kills: torn tails, left locks, second owners."""

import multiprocessing as mp
import os
import shutil
import socket
import time
from pathlib import Path

import optuna
import pytest

from lightning_init.search.journal import _BETWEEN, BusyError, LostError, open_storage, repair
from lightning_init.search.owner import Owner


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
        # All but the line's end is a record.
        left = [1.0, 2.0, 3.0] if end == len(data) - 1 else [1.0, 2.0]
        assert values(path) == left, end
        add(path, 4.0, 5.0)
        assert values(path) == [*left, 4.0, 5.0], end
        backup = path.with_name("study.journal.bak")
        if end == last:
            assert not backup.exists(), "nothing was torn"
        else:
            assert backup.read_bytes() == data[:end]


@pytest.mark.parametrize(
    "tail", [b"\0" * 40, b"\0" * 40 + b"\n", b'{"op_code": 4, "wor\n', b"17\n"]
)
def test_a_tail_that_is_no_record_is_cut_off(tmp_path, tail):
    path = tmp_path / "j"
    add(path, 1.0, 2.0)
    before = path.read_bytes()
    path.write_bytes(before + tail)
    assert repair(path)
    assert path.read_bytes() == before
    assert (tmp_path / "j.bak").read_bytes() == before + tail


@pytest.mark.parametrize("how", ["deleted", "replaced", "folder"])
def test_a_journal_that_is_taken_away_is_missed_at_once(tmp_path, how):
    path = tmp_path / "run" / "j"

    def lose(study: optuna.Study) -> None:
        if how == "folder":
            shutil.rmtree(path.parent)
        else:
            path.rename(tmp_path / "elsewhere")
        if how == "replaced":
            shutil.copyfile(tmp_path / "elsewhere", path)
        study.add_trial(optuna.create_trial(value=2.0))

    with open_storage(path) as storage:
        study = study_in(storage)
        study.add_trial(optuna.create_trial(value=1.0))
        with pytest.raises(LostError, match=r"run.j was deleted or replaced.*--out"):
            lose(study)
    assert path.exists() == (how == "replaced"), "nothing is begun anew"
    if how == "deleted":
        (tmp_path / "elsewhere").rename(path)
        assert values(path) == [1.0]


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


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'study.db'}"


def test_a_database_has_one_owner_too(url):
    refused = pytest.raises(BusyError, match=rf"process {os.getpid()} on .*--storage")
    with open_storage(url), refused, open_storage(url):
        pass
    with open_storage(url) as storage:  # it has been given back
        assert study_in(storage).trials == []


@pytest.mark.parametrize(
    ("host", "pid", "age", "free"),
    [
        (socket.gethostname(), 2**22 + 1, 1.0, True),  # no such process
        (socket.gethostname(), os.getppid(), 1.0, False),
        (socket.gethostname(), os.getppid(), 90.0, True),  # its number is another's now
        ("elsewhere", 1, 1.0, False),
        ("elsewhere", 1, 90.0, True),
    ],
)
def test_an_owner_that_is_gone_does_not_keep_a_database(url, host, pid, age, free):
    with open_storage(url) as storage:
        record = {"who": "x", "host": host, "pid": pid, "time": time.time() - age}
        held = storage.get_study_id_from_name("owner")
    storage.set_study_user_attr(held, "owner", record)
    if free:
        with open_storage(url):
            pass
        return
    with pytest.raises(BusyError), open_storage(url):
        pass
    assert storage.get_study_user_attrs(held)["owner"] == record, "left as it is"


def test_an_owner_gives_signs_of_life(url, monkeypatch):
    monkeypatch.setattr("lightning_init.search.owner._BEAT", 0.01)
    storage = optuna.storages.RDBStorage(url)
    with Owner(storage) as owner:
        first = owner._record()["time"]
        end = time.monotonic() + 60
        while owner._record()["time"] == first:
            assert time.monotonic() < end


def test_optunas_numbers_of_what_lies_between_begin_and_end_of_a_trial():
    from optuna.storages.journal._storage import JournalOperation

    names = {JournalOperation(number).name for number in _BETWEEN}
    assert names == {
        "SET_TRIAL_PARAM",
        "SET_TRIAL_INTERMEDIATE_VALUE",
        "SET_TRIAL_USER_ATTR",
        "SET_TRIAL_SYSTEM_ATTR",
    }


def test_the_disk_is_waited_for_when_a_trial_begins_or_ends(tmp_path, monkeypatch):
    waits = []
    with open_storage(tmp_path / "j") as storage:
        study = study_in(storage)
        monkeypatch.setattr("lightning_init.search.journal.os.fsync", waits.append)
        trial = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
        assert len(waits) == 1
        for step in range(20):
            trial.report(1.0, step)
        trial.set_user_attr("reason", "")
        assert len(waits) == 1
        study.tell(trial, 1.0)
        assert len(waits) == 2
