"""The example of a rescue does what it says; the others run as snippets of the docs."""

from pathlib import Path

import pytest

from examples import rescue, search_function, tuner


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
