"""Ctrl-C once: running trials finish; twice, or after their time: at once. Nothing told is lost."""

import signal
import time
from collections import deque

import optuna
import pytest

from lightning_init import Space, search_init
from lightning_init.search.executors import Answer
from lightning_init.search.interrupts import Stop
from lightning_init.search.journal import open_storage
from lightning_init.search.loop import Loop, State
from lightning_init.search.trial import Outcome, Trial
from lightning_init.strategies.spec import InitSpec
from tests.search.fakes import Recorded, valley

both = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@both
def test_the_first_asks_the_second_interrupts(number):
    before = signal.getsignal(number)
    with Stop(10.0) as stop:
        assert not stop.asked
        assert stop.left is None
        signal.raise_signal(number)
        assert stop.asked
        assert not stop.overdue
        assert 9.0 < stop.left <= 10.0
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


@both
def test_where_trials_run_here_the_first_interrupts(number):
    with Stop(None), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)


def test_what_is_held_is_done_to_its_end():
    done = []

    def held(stop: Stop) -> None:
        with stop.held():
            signal.raise_signal(signal.SIGINT)
            done.append(1)
        done.append(2)

    with Stop(None) as stop, pytest.raises(KeyboardInterrupt):
        held(stop)
    assert done == [1]
    with Stop(10.0) as stop:
        held(stop)  # the first only asks
        with pytest.raises(KeyboardInterrupt):
            held(stop)
    assert done == [1, 1, 2, 1]


def test_an_error_in_what_is_held_is_not_hidden():
    def fails(stop: Stop) -> None:
        with stop.held():
            signal.raise_signal(signal.SIGINT)
            raise RuntimeError

    with Stop(None) as stop, pytest.raises(RuntimeError):
        fails(stop)


class Fake:
    """Two workers; trials end when told to."""

    overlaps = True

    def __init__(self) -> None:
        self.running: deque[int] = deque()
        self.acts: dict[int, object] = {}
        self.looks = 0

    @property
    def idle(self) -> int:
        return 2 - len(self.running)

    def submit(self, job: int, trial: Trial) -> None:
        self.running.append(job)

    @property
    def doing(self) -> tuple[str, ...]:
        return tuple(map(str, self.running))

    def next(self, report, seconds=None) -> Answer | None:
        self.looks += 1
        act = self.acts.get(self.looks, self.end)
        return act()

    def end(self) -> Answer:
        return Answer(self.running.popleft(), Outcome(1.0))

    def crash(self) -> Answer:
        return Answer(self.running.popleft(), None, "its worker process died (SIGTERM)")

    def interrupted(self) -> Answer:
        signal.raise_signal(signal.SIGINT)
        return self.end()

    def wait(self) -> None:
        time.sleep(0.001)


class Fixed:
    """A phase of ten trials that writes down what it is told."""

    phase, best = "screening", ""

    def __init__(self) -> None:
        self.asked, self.told, self.given_up = 0, [], 0

    done = property(lambda self: len(self.told))
    total = 10

    def next(self):
        if self.asked == self.total:
            return None
        self.asked += 1
        return self.asked, Trial(InitSpec("keep"), {}, 0, 1)

    def report(self, job, step, value) -> bool:
        return False

    def finish(self, job, answer) -> None:
        self.told.append((job, answer.outcome is not None))

    def give_up(self) -> None:
        self.given_up += 1


def looped(executor: Fake, work: Fixed, grace: float = 10.0, **more) -> list[State]:
    states: list[State] = []
    with Stop(grace) as stop:
        loop = Loop(lambda: executor, stop, states.append, lambda *news: None, **more)
        loop.run(work)
    return states


def test_without_trouble_every_trial_is_told():
    work = Fixed()
    looped(Fake(), work)
    assert work.told == [(job, True) for job in range(1, 11)]
    assert work.given_up == 0


def test_after_the_first_what_runs_is_finished_and_nothing_begun():
    executor, work, states = Fake(), Fixed(), []
    executor.acts = {3: executor.interrupted}
    with pytest.raises(KeyboardInterrupt), Stop() as stop:
        Loop(lambda: executor, stop, states.append, lambda *news: None).run(work)
    assert work.told == [(1, True), (2, True), (3, True), (4, True)]
    assert work.asked == 4
    assert work.given_up == 1
    stopping = [(state.running, state.stopping) for state in states if state.stopping is not None]
    assert stopping[0][0] == 1
    assert 9.0 < stopping[0][1] <= 10.0


def test_what_dies_while_everything_ends_has_had_no_try():
    executor, work = Fake(), Fixed()
    executor.acts = {3: executor.interrupted, 4: executor.crash}
    with pytest.raises(KeyboardInterrupt):
        looped(executor, work)
    assert work.told == [(1, True), (2, True), (3, True)]
    assert work.given_up == 1


def test_what_takes_longer_than_it_is_given_is_handed_back():
    executor, work = Fake(), Fixed()
    executor.acts = dict.fromkeys(range(2, 10**6), executor.wait)
    executor.acts[1] = executor.interrupted
    with pytest.raises(KeyboardInterrupt):
        looped(executor, work, grace=0.05)
    assert work.told == [(1, True)]
    assert work.given_up == 1
    assert list(executor.running) == [2]


def test_the_next_is_asked_for_while_others_run():
    class Seen(Fake):
        def next(self, report, seconds=None):
            counts.append(work.asked)
            return super().next(report, seconds)

    for ahead, wanted in ((False, [2, 3, 4]), (True, [3, 4, 5])):
        counts: list[int] = []
        work = Fixed()
        looped(Seen(), work, ahead=ahead)
        assert counts[:3] == wanted
        assert work.told == [(job, True) for job in range(1, 11)]


def stored(path, name="search"):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with open_storage(path) as storage:
        return optuna.load_study(study_name=name, storage=storage).trials


@pytest.mark.parametrize("at", [1, 2, 5])
@pytest.mark.parametrize("method", ["tell", "set_user_attr"])
def test_interrupted_while_telling_what_was_found_is_kept(tmp_path, monkeypatch, at, method):
    """In this process, where the first Ctrl-C interrupts at once."""
    owner = optuna.Study if method == "tell" else optuna.Trial
    real, calls = getattr(owner, method), []

    def interrupted(self, *args, **kwargs):
        calls.append(args)
        if len(calls) == at:
            signal.raise_signal(signal.SIGINT)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(owner, method, interrupted)
    evaluate = Recorded(tmp_path, valley)
    arguments = {"trials": 8, "steps": 5, "confirm_seeds": 2, "storage": tmp_path / "j"}
    space = Space(("orthogonal", "normal"))
    with pytest.raises(KeyboardInterrupt):
        search_init(evaluate, space, **arguments)
    monkeypatch.undo()
    trials = stored(tmp_path / "j")
    done = [trial for trial in trials if trial.state.name == "COMPLETE"]
    assert len(done) == len(evaluate.calls) >= 1, "each that was run is told"
    assert "RUNNING" not in {trial.state.name for trial in trials}
    search_init(evaluate, space, **arguments)
    assert len([t for t in stored(tmp_path / "j") if t.state.name == "COMPLETE"]) == 8
