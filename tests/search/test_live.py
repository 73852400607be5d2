"""Progress: a picture on a terminal, few lines in a file; both within 80 columns."""

import io
from contextlib import suppress

import pytest
from rich.console import Console

from lightning_init.search import live as module
from lightning_init.search.live import Live, picture
from lightning_init.search.loop import State

LONG = "trial 17, 12 s: orthogonal(gain=1.2345, role:embedding=normal(std=0.02)) and so on, and on"


def console(terminal: bool) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=terminal, width=80, highlight=False, _environ={}
    )


def said(console: Console) -> str:
    return console.file.getvalue()


def shown(state: State) -> list[str]:
    screen = console(False)
    screen.print(picture(state))
    return [line.rstrip() for line in said(screen).splitlines()]


def test_a_picture_tells_all_within_80_columns():
    state = State("screening", 12, 40, "best val_loss 0.21 (orthogonal)", 125.4, (LONG, ""))
    head, best, first, second = shown(state)
    assert head.startswith("screening ")
    assert head.endswith(" 12/40 2:05 left")
    assert best == "  best val_loss 0.21 (orthogonal)"
    assert first.startswith("  worker 1: trial 17, 12 s: orthogonal(gain=1.2345,")
    assert first.endswith("…")
    assert second == "  worker 2: idle"
    assert max(map(len, (head, best, first, second))) <= 80


def test_what_is_not_known_yet_is_left_out():
    [head] = shown(State("sweep", 0, 7))
    assert head.endswith(" 0/7")
    assert "left" not in head


def test_many_workers_are_counted():
    lines = shown(State("sweep", 1, 100, workers=("x",) * 64))
    assert lines[-1] == "  and 48 more workers"
    assert len(lines) == 18


@pytest.mark.parametrize(
    ("running", "wanted"),
    [
        (1, "finishing 1 running trial (7 s at most); Ctrl-C again ends at once"),
        (3, "finishing 3 running trials (7 s at most); Ctrl-C again ends at once"),
    ],
)
def test_a_search_that_ends_says_what_it_waits_for(running, wanted):
    assert shown(State("sweep", 1, 9, stopping=7.3, running=running))[-1] == wanted
    screen = console(False)
    with Live(screen) as live:
        for left in (7.3, 6.0, 5.5):
            live(State("sweep", 1, 9, stopping=left, running=running))
    assert said(screen).splitlines() == [wanted, "sweep 1/9 in 0:00"]


def test_in_a_file_there_is_a_line_for_each_tenth_and_one_at_the_end():
    screen = console(False)
    with Live(screen) as live:
        for done in range(101):
            live(State("screening", done, 100, f"best {done}" if done else "", 100.0 - done))
        live(State("confirming", 0, 5))
    lines = said(screen).splitlines()
    assert lines[0] == "screening 0/100, 1:40 left"
    assert lines[1] == "screening 10/100, best 10, 1:30 left"
    assert len(lines) == 13
    assert lines[10] == "screening 100/100 in 0:00, best 100"
    assert lines[11:] == ["confirming 0/5", "confirming 0/5 in 0:00"]


def test_in_a_file_silence_is_broken(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    screen = console(False)
    with Live(screen) as live:
        for second in range(0, 200, 10):
            now[0] = float(second)
            live(State("screening", 1, 100))
    assert said(screen).splitlines() == ["screening 1/100"] * 3 + ["screening 1/100 in 3:10"]


def test_on_a_terminal_the_picture_goes_and_the_cursor_comes_back():
    screen = console(True)
    with suppress(KeyboardInterrupt), Live(screen) as live:
        live(State("screening", 3, 9, "best 1", 10.0, ("trial 3, 1 s: keep",)))
        raise KeyboardInterrupt
    text = said(screen)
    assert "\x1b[?25l" in text, "hidden"
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "and shown again"
    assert text.splitlines()[-1].endswith("screening 3/9 in 0:00, best 1")


@pytest.mark.parametrize(
    ("seconds", "wanted"), [(0.4, "0:00"), (59.6, "1:00"), (61, "1:01"), (3661, "1:01:01")]
)
def test_times(seconds, wanted):
    assert shown(State("x", 1, 2, left=seconds))[0].endswith(f"{wanted} left")
