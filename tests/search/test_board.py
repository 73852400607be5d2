"""What TensorBoard itself reads from the board of a search."""

import math
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

from lightning_init import InitSpec, Outcome, Trial, search_init
from lightning_init.search.board import Board
from tests.search.fakes import LR, SPACE, valley


def trial(**changes):
    spec = InitSpec("orthogonal", {"gain": 1.25})
    return Trial(**{"spec": spec, "config": {LR: 0.02}, "seed": 5, "steps": 3, **changes})


def runs(folder):
    """Run -> hyperparameters and metrics, as the hparams tab lists them."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(folder))
    context = backend_context.Context(SimpleNamespace(data_provider=provider))
    ctx = RequestContext()
    tags = context.hparams_metadata(ctx, "")
    experiment = context.experiment_from_metadata(ctx, "", True, tags, [])
    wanted = [one.name for one in experiment.metric_infos]
    request = api_pb2.ListSessionGroupsRequest(
        slice_size=1000,
        allowed_statuses=[api_pb2.STATUS_SUCCESS],
        col_params=[api_pb2.ColParams(metric=name) for name in wanted],
    )
    answer = list_session_groups.Handler(ctx, context, "", request).run()
    found = {}
    for group in answer.session_groups:
        values = {name: _value(value) for name, value in group.hparams.items()}
        metrics = {one.name.tag: one.value for one in group.metric_values}
        (session,) = group.sessions
        found[session.name] = (values, metrics)
    return found, {one.name for one in experiment.hparam_infos}


def _value(value):
    kind = value.WhichOneof("kind")
    return getattr(value, kind) if kind else None


def events(folder):
    accumulator = EventAccumulator(str(folder)).Reload()
    scalars = {
        tag: [(e.step, round(e.value, 6)) for e in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }
    (text,) = accumulator.Tensors("health/text_summary")
    return scalars, text.tensor_proto.string_val[0].decode()


def test_a_trial_with_all_it_came_to(tmp_path):
    finding = {"detector": "dead_units", "severity": "warning", "where": "net.1", "step": 0}
    info = {"findings": [{**finding, "message": "60 % are dead"}], "calibration": "lsuv: diverged"}
    curve = ((1, 3.0), (2, math.inf), (3, 1.5))
    outcome = Outcome(0.5, curve, "", 1.5, info, (7.0,), ((2, 0.9),))
    Board(tmp_path / "tb", ("val_loss", "gap"))("screening", 4, trial(), outcome)
    scalars, text = events(tmp_path / "tb" / "screening" / "0004-orthogonal-3steps")
    assert scalars == {
        "metric/val_loss": [(3, 0.5)],
        "metric/gap": [(3, 7.0)],
        "loss": [(1, 3.0), (3, 1.5)],
        "reading/val_loss": [(2, 0.9)],
        "seconds": [(3, 1.5)],
    }
    assert "not stopped" in text
    assert "calibration taken back: lsuv: diverged" in text
    assert "**warning dead_units at net.1, step 0**: 60 % are dead" in text


def test_the_hparams_tab_has_every_trial_with_keys_of_its_own(tmp_path):
    board = Board(tmp_path / "tb")
    board("screening", 0, trial(spec=InitSpec("keep")), Outcome(2.0))
    board("screening", 1, trial(), Outcome(1.0))
    board("screening", 2, trial(spec=InitSpec("normal")), Outcome(None, reason="it vanishes"))
    found, names = runs(tmp_path / "tb")
    assert names == {"strategy", "gain", LR, "seed", "steps"}
    values, metrics = found["screening/0001-orthogonal-3steps"]
    assert values == {"strategy": "orthogonal", "gain": 1.25, LR: 0.02, "seed": 5, "steps": 3}
    assert metrics["metric/metric"] == 1.0
    assert found["screening/0000-keep-3steps"][1]["metric/metric"] == 2.0
    stopped = found["screening/0002-normal-3steps"]
    assert stopped[0]["strategy"] == "normal"
    assert "metric/metric" not in stopped[1]
    assert "stopped: it vanishes" in events(tmp_path / "tb" / "screening" / "0002-normal-3steps")[1]


def test_a_search_is_written_once(tmp_path):
    def find(trials):
        return search_init(
            valley, SPACE, trials=trials, steps=5, confirm_seeds=2, top=1,
            storage=tmp_path / "study.journal", seen=Board(tmp_path / "tb"),
        )  # fmt: skip

    find(4)
    files = sorted(path for path in (tmp_path / "tb").rglob("*") if path.is_file())
    screened = sorted(path.name for path in (tmp_path / "tb" / "screening").iterdir())
    assert [name[:4] for name in screened] == ["0000", "0001", "0002", "0003"]
    find(4)
    assert files == sorted(path for path in (tmp_path / "tb").rglob("*") if path.is_file())
    find(6)
    assert len(list((tmp_path / "tb" / "screening").iterdir())) == 6
    found, _ = runs(tmp_path / "tb")
    assert len(found) == len({path.parent for path in (tmp_path / "tb").rglob("events*")})
    assert not list(tmp_path.glob(".tb*"))


def test_what_is_alike_at_three_digits_is_two_runs(tmp_path):
    board = Board(tmp_path)
    for rate in (0.0100001, 0.0100002):
        for seed in (1, 2):
            board("confirming", 0, trial(config={LR: rate}, seed=seed), Outcome(rate))
            board("confirming", 7, trial(config={LR: rate}, seed=seed), Outcome(rate))
    assert len(list((tmp_path / "confirming").iterdir())) == 4


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def broken(self, *arguments):
        raise OSError("no space left")

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_text", broken)
    with pytest.raises(OSError, match="no space left"):
        Board(tmp_path / "tb")("screening", 0, trial(), Outcome(1.0))
    assert not list(tmp_path.rglob("events*"))
