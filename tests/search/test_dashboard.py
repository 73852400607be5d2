"""optuna-dashboard on a search's own file, asked in this process without a port."""

import json
import shutil
import warnings
from io import BytesIO

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from lightning_init import search_init
from lightning_init.search.space import Space, around
from tests.search.fakes import LR, half_unhealthy

dashboard = pytest.importorskip("optuna_dashboard", reason="pip install optuna-dashboard")


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """GET a path of the dashboard on a copy of a search's journal."""
    folder = tmp_path_factory.mktemp("search")
    space = Space(("orthogonal", "normal", "uniform"), {LR: around(0.01)})
    search_init(
        half_unhealthy, space, trials=14, steps=20, confirm_seeds=2,
        monitor="val_loss", storage=folder / "study.journal",
    )  # fmt: skip
    shutil.copyfile(folder / "study.journal", folder / "copy.journal")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the dashboard's own, about what it supports
        app = dashboard.wsgi(JournalStorage(JournalFileBackend(str(folder / "copy.journal"))))

    def get(path, query=""):
        told = []
        environ = {
            "REQUEST_METHOD": "GET", "PATH_INFO": path, "QUERY_STRING": query,
            "SERVER_NAME": "local", "SERVER_PORT": "80", "SERVER_PROTOCOL": "HTTP/1.1",
            "wsgi.version": (1, 0), "wsgi.url_scheme": "http", "wsgi.input": BytesIO(),
            "wsgi.errors": BytesIO(), "wsgi.multithread": False, "wsgi.multiprocess": False,
            "wsgi.run_once": True, "HTTP_ACCEPT_ENCODING": "identity",
        }  # fmt: skip
        answer = app(environ, lambda status, headers, *_: told.append(status))
        body = b"".join(answer)
        if hasattr(answer, "close"):
            answer.close()
        assert told == ["200 OK"], (path, told, body[:300])
        return body

    get.folder = folder
    return get


def studies(ask):
    listed = json.loads(ask("/api/studies"))["study_summaries"]
    return {one["study_name"]: one["study_id"] for one in listed}


def test_the_page_opens(ask):
    assert b"<html" in ask("/dashboard/")


def test_the_screening_and_the_confirmation_are_listed(ask):
    assert {"search", "confirm"} <= studies(ask).keys()


def test_a_trial_has_its_parameters_values_and_reason(ask):
    found = json.loads(ask(f"/api/studies/{studies(ask)['search']}", "after=0"))
    study = optuna.load_study(
        study_name="search",
        storage=JournalStorage(JournalFileBackend(str(ask.folder / "study.journal"))),
    )
    known = study.get_trials()
    assert [one["number"] for one in found["trials"]] == [trial.number for trial in known]
    for one, trial in zip(found["trials"], known, strict=True):
        assert one["state"].lower() == trial.state.name.lower()
        assert {p["name"] for p in one["params"]} == trial.params.keys()
        attrs = {attr["key"]: attr["value"] for attr in one["user_attrs"]}
        assert attrs["reason"] == trial.user_attrs["reason"]
        if not trial.user_attrs["reason"]:
            assert one["values"] == trial.values
            assert LR in {p["name"] for p in one["params"]}
    assert sum(t.user_attrs["reason"] == "activations vanish" for t in known) >= 2


def test_losses_on_the_way_are_the_dashboards_intermediate_values(ask):
    found = json.loads(ask(f"/api/studies/{studies(ask)['search']}", "after=0"))
    first = found["trials"][0]["intermediate_values"]
    assert [one["step"] for one in first] == [1, 2, 3]
    assert first[0]["value"] > first[1]["value"] > first[2]["value"]


def test_the_importances_of_the_axes_come_back(ask):
    found = json.loads(ask(f"/api/studies/{studies(ask)['search']}/param_importances"))
    names = {one["name"] for one in found["param_importances"][0]}
    assert {"strategy", LR} <= names
