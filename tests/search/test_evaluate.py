"""A trial is an ordinary fit: the same numbers, and an honest reason when there are none."""

import math
import signal

import lightning.pytorch as pl
import pytest
import torch
import yaml

from examples.digits import Digits, DigitsMLP
from lightning_init import InitCallback, InitSpec
from lightning_init.search.evaluate import TRAIN_LOSS, JobEvaluate
from lightning_init.search.executors import InProcess
from lightning_init.search.job import SHORT, ConfigError, Job
from lightning_init.search.objectives import Objective
from lightning_init.search.pool import Pool
from lightning_init.search.trial import Outcome, Trial
from lightning_init.strategies.apply import fingerprint
from tests.search.models import Net

LR = "model.init_args.lr"
STEPS = 30
SMALL = {
    "model": {"class_path": "tests.search.models.Net"},
    "data": {"class_path": "tests.search.models.Data"},
    "trainer": {"accelerator": "cpu"},
}


def digits(depth: int = 4, **trainer: object) -> dict:
    return {
        "model": {"class_path": "examples.digits.DigitsMLP", "init_args": {"depth": depth}},
        "data": {"class_path": "examples.digits.Digits"},
        "trainer": {"accelerator": "cpu", "gradient_clip_val": 1.0, **trainer},
    }


@pytest.fixture
def evaluator(tmp_path):
    def make(config: dict, monitor: str = "val_loss") -> JobEvaluate:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        return JobEvaluate(Job(["--config", str(path)]).plain(), (Objective("last", monitor),))

    return make


def go_on(step: int, value: float) -> bool:
    return False


def trial(strategy: str = "xavier_normal", config: dict | None = None, **more) -> Trial:
    spec = InitSpec(strategy, more.pop("params", {}))
    return Trial(spec, config or {}, **{"seed": 3, "steps": STEPS, **more})


@pytest.mark.parametrize(("strategy", "seed"), [("xavier_normal", 3), ("keep", 3), ("lsuv", 4)])
def test_a_trial_is_an_ordinary_fit_bit_for_bit(evaluator, strategy, seed):
    found = evaluator(digits())(trial(strategy, {LR: 0.02}, seed=seed), go_on)

    pl.seed_everything(seed, workers=True, verbose=False)
    model, data = DigitsMLP(depth=4, lr=0.02), Digits()
    init = InitCallback(strategy, verbose=False)
    settings = {**SHORT, "accelerator": "cpu", "gradient_clip_val": 1.0, "max_steps": STEPS}
    trainer = pl.Trainer(callbacks=[init], **settings)
    trainer.fit(model, data)
    [metrics] = trainer.validate(model, data, verbose=False)

    assert found.metric == metrics["val_loss"]
    assert found.info["init_fingerprint"] == init.fingerprint
    assert found.info["final_fingerprint"] == fingerprint(model)
    assert found.info["steps"] == trainer.global_step == STEPS
    assert found.reason == ""


def test_what_ran_before_does_not_matter(evaluator):
    evaluate = evaluator(digits())
    first = evaluate(trial(), go_on)
    evaluate(trial("orthogonal", {LR: 0.1}, seed=9), go_on)
    torch.rand(17)
    again = evaluate(trial(), go_on)
    assert (again.metric, again.curve, again.info) == (first.metric, first.curve, first.info)
    other = evaluate(trial(seed=4), go_on)
    assert other.metric != first.metric
    assert other.info["init_fingerprint"] != first.info["init_fingerprint"]


@pytest.mark.slow
def test_a_worker_process_gives_the_same_bit_for_bit(evaluator):
    evaluate = evaluator(digits())
    here, pool = InProcess(evaluate), Pool(evaluate, workers=2)
    try:
        for job in range(2):
            for executor in (here, pool) if job else (pool,):
                executor.submit(job, trial(seed=3 + job))
        answers = {answer.job: answer for answer in (pool.next(silent), pool.next(silent))}
    finally:
        pool.close()
    there = answers[1].outcome
    assert there is not None, answers[1].crash
    torch.set_num_threads(there.info["threads"])
    same = here.next(silent).outcome
    assert same.metric == there.metric
    assert same.curve == there.curve
    assert same.info == there.info


def silent(job: int, step: int, value: float) -> bool:
    return False


def test_an_unhealthy_init_is_stopped_early_with_a_reason(evaluator):
    evaluate = evaluator(digits(depth=30))
    tiny = trial("normal", params={"std": 1e-4}, steps=100)
    found = evaluate(tiny, go_on)
    assert found.metric is None
    assert found.info["steps"] < 20
    assert "step" in found.reason
    assert any(word in found.reason for word in ("vanish", "gradient", "signal")), found.reason


def test_an_ungated_trial_runs_to_its_end(evaluator):
    evaluate = evaluator(digits(depth=30))
    for spec in (trial("keep", gated=False), trial("normal", params={"std": 1e-4}, gated=False)):
        found = evaluate(spec, go_on)
        assert found.info["steps"] == STEPS
        assert found.metric == pytest.approx(math.log(10), abs=0.05)
        assert found.reason == ""


def test_a_healthy_init_is_not_stopped(evaluator):
    found = evaluator(digits(depth=30))(trial("auto", steps=60), go_on)
    assert found.info["steps"] == 60
    assert found.reason == ""


def test_training_that_diverges_has_no_metric_and_says_so(evaluator):
    evaluate = evaluator({**SMALL, "trainer": {"accelerator": "cpu"}})
    found = evaluate(trial("keep", {LR: 1e4}, gated=False), go_on)
    assert found.metric is None
    assert "val_loss is" in found.reason
    assert evaluate(trial("xavier_normal", {LR: 1e4}), go_on).metric is None


def test_steps_are_optimizer_steps_also_with_accumulation(evaluator):
    found = evaluator(digits(accumulate_grad_batches=3))(trial(steps=7), go_on)
    assert found.info["steps"] == 7
    assert len(found.curve) == 21
    assert found.curve[0][1] == pytest.approx(math.log(10), rel=0.3), "not divided by three"


def test_a_metric_that_is_not_logged_names_those_that_are(evaluator):
    with pytest.raises(ConfigError, match=r"--monitor: unknown metric 'val_acuracy'.*val_acc"):
        evaluator(digits(), "val_acuracy")(trial(steps=2), go_on)


@pytest.mark.parametrize("monitor", ["val_acc", "train_loss"])
def test_any_logged_metric_can_be_watched(evaluator, monitor):
    found = evaluator(digits(), monitor)(trial(), go_on)
    assert 0 < found.metric < 3
    if monitor == "train_loss":
        assert found.metric == found.curve[-1][1]


@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader`:UserWarning")
def test_without_validation_the_end_of_the_training_loss_counts(evaluator):
    bare = {"class_path": "tests.search.models.Bare"}
    sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05}}
    found = evaluator({**SMALL, "model": bare, "optimizer": sgd}, TRAIN_LOSS)(
        trial(steps=29), go_on
    )
    tail = [value for _, value in found.curve[-2:]]
    assert found.metric == pytest.approx(sum(tail) / 2, rel=1e-12)
    assert [step for step, _ in found.curve] == list(range(1, 30))


def test_losses_are_reported_about_twenty_times_and_a_yes_stops(evaluator):
    seen = []

    def stop_at_ten(step: int, value: float) -> bool:
        seen.append((step, value))
        return step >= 10

    evaluate = evaluator(SMALL)
    quiet = []
    found = evaluate(trial(steps=60, gated=False), lambda *point: quiet.append(point) or False)
    assert found.reason == ""
    assert 18 <= len(quiet) <= 22
    stopped = evaluate(trial(steps=60, gated=False), stop_at_ten)
    assert stopped.reason == "pruned"
    assert stopped.metric is None
    assert stopped.info["steps"] == seen[-1][0] == 10
    assert set(seen) <= set(stopped.curve)


def test_it_leaves_no_files(evaluator, tmp_path, monkeypatch):
    evaluate = evaluator(SMALL)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    evaluate(trial(), go_on)
    assert sorted(tmp_path.rglob("*")) == before


def test_ctrl_c_in_a_fit_is_a_keyboard_interrupt(evaluator, monkeypatch):
    def interrupted(self, batch):
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(Net, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluator(SMALL)(trial("keep"), go_on)
    assert signal.getsignal(signal.SIGINT) is before, "Lightning would ignore a second one"


def test_the_specs_own_seed_is_ignored(evaluator):
    evaluate = evaluator(SMALL)
    one = evaluate(Trial(InitSpec("orthogonal", seed=1), {}, 3, 5), go_on)
    two = evaluate(Trial(InitSpec("orthogonal", seed=2), {}, 3, 5), go_on)
    assert one.info["init_fingerprint"] == two.info["init_fingerprint"]


def test_an_outcome_has_a_finite_metric_or_none():
    assert Outcome(1.5).metric == 1.5
    assert Outcome(None).reason == ""
    for bad in (math.nan, math.inf, -math.inf):
        assert Outcome(bad).metric is None
        assert Outcome(bad).reason == f"the metric is {bad}"
        assert Outcome(bad, reason="mine").reason == "mine"


@pytest.mark.parametrize("strategy", ["fixup", "warm_start"])
def test_a_scheme_that_cannot_serve_the_model_is_an_outcome_with_its_reason(evaluator, strategy):
    found = evaluator(digits())(trial(strategy), go_on)
    assert found.metric is None
    assert found.reason.startswith(f"{strategy} needs ")


class TalksToItsLogger(Net):
    """As users do: pictures and texts go to the experiment itself."""

    def training_step(self, batch):
        loss = super().training_step(batch)
        self.logger.experiment.add_scalar("mine", loss, self.global_step)
        self.logger.log_metrics({"mine": float(loss)})
        return loss


def test_a_model_that_talks_to_its_logger_is_no_crash(evaluator, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    talks = {"class_path": "tests.search.test_evaluate.TalksToItsLogger"}
    evaluate = evaluator({**SMALL, "model": talks})
    before = sorted(tmp_path.rglob("*"))
    found = evaluate(trial(), go_on)
    assert found.metric == evaluator(SMALL)(trial(), go_on).metric
    assert sorted(tmp_path.rglob("*")) == before, "it keeps nothing"
