"""`lightning-init report`: of a run that has ended, that goes on, that was killed, of none."""

import re
import shutil

import pytest

from lightning_init import Outcome, search_init
from lightning_init.cli.main import main
from lightning_init.search.journal import open_storage
from tests.search.fakes import LR, SPACE, AtCall, Recorded, interrupt, valley


def run_of(folder, trouble=None):
    """A search in a folder, interrupted where there is trouble."""
    folder.mkdir(parents=True, exist_ok=True)
    evaluate = valley if trouble is None else Recorded(folder, valley, trouble)
    arguments = {"trials": 8, "steps": 10, "confirm_seeds": 2, "lr_key": LR}
    try:
        result = search_init(evaluate, SPACE, **arguments, storage=folder / "study.journal")
    except KeyboardInterrupt:
        return None
    result.save(folder)
    return result


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "ended"
    return folder, run_of(folder)


def test_the_page_of_a_run_is_made_again(ended, tmp_path, capsys):
    folder, result = ended
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert main(["report", str(folder), "--out", str(tmp_path / "again.html")]) == 0
    assert capsys.readouterr().out.startswith(result.verdict())
    assert (tmp_path / "again.html").read_bytes() == before["report.html"]
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before


def test_it_replaces_the_page_in_the_folder(ended, capsys):
    folder, _ = ended
    page = (folder / "report.html").read_text()
    (folder / "report.html").unlink()
    assert main(["report", str(folder)]) == 0
    assert (folder / "report.html").read_text() == page
    assert str(folder / "report.html") in capsys.readouterr().out


def test_a_search_may_be_writing_the_study(ended, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(ended[0], folder)
    with (folder / "study.journal").open("ab") as file:
        file.write(b'{"op_code": 5, "worker_id": "abc", "tri')
    before = (folder / "study.journal").read_bytes()
    assert main(["report", str(folder)]) == 0
    assert (folder / "study.journal").read_bytes() == before


def test_a_run_that_another_process_has_open(ended, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(ended[0], folder)
    with open_storage(folder / "study.journal"):
        assert main(["report", str(folder)]) == 0


@pytest.mark.parametrize(
    ("call", "there"),
    [
        (5, "4 of 8 trials of the screening, nothing is confirmed"),
        (8, "7 of 8 trials of the screening, nothing is confirmed"),
    ],
)
def test_a_run_that_was_interrupted_in_the_screening(tmp_path, capsys, call, there):
    assert run_of(tmp_path / "run", AtCall(call, interrupt)) is None
    assert main(["report", str(tmp_path / "run")]) == 0
    assert there in capsys.readouterr().out
    text = (tmp_path / "run" / "report.html").read_text()
    assert f"not finished: {there}" in text
    assert "<h2>Confirmation" not in text
    table = text.split("<h2>Each trial</h2>")[1]
    came = re.findall(r"<td>(healthy|unfinished|crashed)</td>", table.split("</table>")[0])
    assert came == ["healthy"] * (call - 1) + ["unfinished"]


def test_a_run_that_was_interrupted_in_the_confirmation(tmp_path, capsys):
    class Late:
        def __call__(self, trial, before):
            if trial.seed == 2:
                interrupt()

    assert run_of(tmp_path / "run", Late()) is None
    assert main(["report", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert re.search(r"8 of 8 trials of the screening, \d+ runs? of the confirmation", said)
    assert run_of(tmp_path / "run") is not None
    assert main(["report", str(tmp_path / "run")]) == 0
    assert "not finished" not in capsys.readouterr().out


def test_no_trial_has_ended(tmp_path, capsys):
    assert run_of(tmp_path / "run", AtCall(1, interrupt)) is None
    assert main(["report", str(tmp_path / "run")]) == 2
    assert "no trial of the search" in capsys.readouterr().err


def test_all_crash(tmp_path, capsys):
    def evaluate(trial, report):
        if trial.spec.strategy != "keep":
            raise RuntimeError("out of luck")
        return Outcome(1.0)

    search_init(
        evaluate, SPACE, trials=3, steps=3, confirm_seeds=2, storage=tmp_path / "study.journal"
    ).save(tmp_path)
    assert main(["report", str(tmp_path)]) == 0
    assert "out of luck" in (tmp_path / "report.html").read_text()


def test_a_folder_that_is_none(ended, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ended[0], tmp_path / "lightning_init_runs" / "digits")
    assert main(["report", "lightning_init_runs/digts"]) == 2
    said = capsys.readouterr().err
    assert "lightning_init_runs/digts is no folder" in said
    assert "did you mean lightning_init_runs/digits?" in said
    assert main(["report", "digits"]) == 2
    assert "did you mean lightning_init_runs/digits?" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["report", "empty"]) == 2
    assert "empty holds no search (no study.journal)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no run: pass its folder"),
        (["{run}", "--out", "page.txt"], "--out must end in .html, but got 'page.txt'"),
        (["{run}", "--out", "no/page.html"], "--out: there is no folder no"),
        (["{run}", "--otu", "a.html"], "did you mean '--out'"),
    ],
)
def test_mistakes(ended, arguments, said, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *(text.format(run=ended[0]) for text in arguments)]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_database(tmp_path, capsys):
    url = f"sqlite:///{tmp_path}/study.db"
    result = search_init(valley, SPACE, trials=4, steps=5, confirm_seeds=2, storage=url)
    assert main(["report", str(tmp_path), "--storage", url]) == 0
    assert result.verdict() in capsys.readouterr().out
