"""The example of a rescue does what it says; the others run as snippets of the docs."""

from pathlib import Path
from types import ModuleType

import pytest

from examples import fabric, plain_loop, rescue, search_function, tuner


@pytest.mark.slow
def test_a_rescued_network_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trainer, callback = rescue.main()
    assert callback.report is not None
    assert [attempt.findings == () for attempt in callback.report.attempts] == [False, True]
    assert float(trainer.callback_metrics["val_acc"]) > 0.5


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning",
)
def test_the_tuner_finds_an_init_with_which_the_network_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trainer, found = tuner.main()
    assert found.suggestion() is not None
    assert found.monitor == "val_acc"
    assert float(trainer.callback_metrics["val_acc"]) > 0.5


@pytest.mark.slow
def test_a_plain_loop_is_searched(capsys: pytest.CaptureFixture[str]) -> None:
    result = search_function.main(trials=8)
    assert result.suggestion() is not None
    assert result.own.mean < 0.5 < result.versus(result.best)[0].mean
    assert {run.seed for run in result.baseline.runs} == {1, 2, 3, 4, 5}
    assert result.verdict() in capsys.readouterr().out
    assert len(Path(search_function.__file__).read_text().splitlines()) <= 60


@pytest.mark.slow
@pytest.mark.parametrize("example", [plain_loop, fabric], ids=["plain loop", "Fabric"])
def test_a_loop_of_ones_own_is_initialized_audited_and_looked_at(example: ModuleType) -> None:
    reports, accuracy = example.main()
    assert [report.errors for report in reports] == [()] * 4
    assert accuracy > 0.9
    broken, _ = example.main("keep", steps=1)
    assert [report.errors[0].detector for report in broken] == ["backward_growth"]
    assert len(Path(str(example.__file__)).read_text().splitlines()) <= 60


@pytest.mark.slow
def test_a_look_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    _, looked = plain_loop.main(steps=23)
    monkeypatch.setattr(plain_loop, "LOOKS", ())
    assert plain_loop.main(steps=23)[1] == looked
    assert fabric.main(steps=23)[1] == looked
