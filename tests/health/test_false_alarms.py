"""No error in a healthy training: one of each kind of the grid in `benchmarks/health_grid.py`."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.health_grid import one_of_each
from benchmarks.health_runs import Run, judge, train

RUNS = [replace(run, steps=25) for run in one_of_each()]
PARTS = 22


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_no_error_where_it_learns(part: int) -> None:
    said = {}
    mine: list[Run] = RUNS[part::PARTS]
    for run in mine:
        record = train(run)
        assert not record.error
        assert record.readings.steps, record.blind
        if (first := judge(record).first("error")) is not None:
            said[run.name] = str(first[1])
    assert len(mine) >= 5
    assert not said
