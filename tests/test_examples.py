"""The example of a rescue does what it says; the others run as snippets of the docs."""

from pathlib import Path

import pytest

from examples import rescue


@pytest.mark.slow
def test_a_rescued_network_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trainer, callback = rescue.main()
    assert callback.report is not None
    assert [attempt.findings == () for attempt in callback.report.attempts] == [False, True]
    assert float(trainer.callback_metrics["val_acc"]) > 0.5
