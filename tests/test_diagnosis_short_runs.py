"""What is said of short runs, of runs on their way, and of those whose schedule took the learning rate away."""

import math

import pytest
import torch

import fitkit
from tests.test_diagnosis import GOOD, LINE, history_of

DROP = [1.138, 1.106, 1.077, 1.049, 1.023]  # of three classes, of which a constant prediction has 1.0986
ABOVE = [value + 0.15 for value in DROP]
VALUES = {"data": "diabetes", "splits": "random", "loss": "mse_loss", "optimizer": {"AdamW": {"lr": 0.03}}}
BROKEN = {"not_learning", "target_not_scaled"}


def values(loss, **more):
    """Return a history of a regression whose constant prediction has 6,000."""
    history = history_of({**VALUES, **more.pop("spec", {})}, classes=None, loss=loss, val_loss=loss, **more)
    history.baseline = {"loss": 6e3, "val_loss": 6e3}
    return history


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("loss", [DROP, ABOVE, [9.0 * value for value in DROP]])
def test_a_short_run_whose_loss_falls_every_epoch_is_not_called_broken(loss, epochs):
    found = history_of(classes=3, loss=loss[:epochs], val_loss=loss[:epochs]).diagnose()
    assert not BROKEN & set(found.names)
    assert "does not see its inputs" not in str(found)


@pytest.mark.parametrize("epochs", [1, 2, 3, 4])
def test_few_epochs_that_stand_still_tell_nothing_yet(epochs):
    assert not BROKEN & set(history_of(loss=[2.4] * epochs, val_loss=[2.4] * epochs).diagnose().names)
    assert not BROKEN & set(values([2e4] * epochs).diagnose().names)


def test_a_classifier_above_chance_that_falls_is_told_to_train_longer_or_faster_with_a_patch():
    [first, *_] = history_of(classes=3, loss=ABOVE[:4], val_loss=ABOVE[:4]).diagnose().findings
    assert (first.name, first.severity, first.patch) == ("train_longer", "warning", ("fit.epochs=40",))
    assert "from 1.288 to 1.199, and has not come below a constant prediction's 1.099 yet" in first.text
    [first, *_] = history_of(classes=3, loss=ABOVE, val_loss=ABOVE).diagnose().findings
    assert first.name == "learning_rate_too_low" and first.patch[0].startswith("optimizer.AdamW.lr=")


def test_a_learning_rate_near_zero_above_chance_is_too_low_though_val_loss_does_not_follow():
    loss = [2.4537, 2.4525, 2.4519, 2.4543, 2.4366, 2.4317]  # measured, of AdamW with 1e-6 on digits
    val = [2.331, 2.375, 2.401, 2.404, 2.403, 2.396]
    history = history_of({"optimizer": {"AdamW": {"lr": 1e-6}}}, loss=loss, val_loss=val)
    history.stopped = "val_loss has not improved for 5 epochs (EarlyStopping, patience 5)"
    [first, *_] = history.diagnose().findings
    assert first.name == "learning_rate_too_low" and first.patch == ("optimizer.AdamW.lr=1e-05",)


def test_a_loss_that_stands_still_at_chance_is_not_learning_from_five_epochs_on():
    assert history_of(loss=[2.31] * 5, val_loss=[2.31] * 5).diagnose().names == ("not_learning",)


def test_a_regression_that_is_on_its_way_to_the_mean_is_told_to_train_longer():
    [first, *_] = values([25175.0, 16321.0, 11016.0, 9457.0]).diagnose().findings  # measured, specs/diabetes.yaml
    assert (first.name, first.severity) == ("train_longer", "warning") and first.patch == ("fit.epochs=40",)


@pytest.mark.parametrize(("fall", "lr"), [(0, 0.3), (50, 0.3), (180, 0.278), (300, 0.157)])
def test_the_learning_rate_for_large_targets_comes_from_the_pace_and_is_raised_tenfold_at_most(fall, lr):
    # 0.03 (20,000 - 8.5 fall - 0.3 * 6,000) / fall / 10: the level at the end is the median of the last two
    [first, *_] = values([2e4 - fall * i for i in range(10)]).diagnose().findings
    assert first.name == "target_not_scaled"
    assert float(first.patch[0].partition("=")[2]) == pytest.approx(lr, rel=0.03)


@pytest.mark.parametrize("epochs", [2, 3, 4, 5, 8, 20])
def test_no_loss_falls_by_more_than_there_is(epochs):
    loss = [4.0 * 0.3**i for i in range(epochs)]
    for finding in history_of(loss=loss, val_loss=loss).diagnose().findings:
        shares = [part.rpartition(" ")[2] for part in finding.text.split(" % an epoch")[:-1]]
        assert all(float(share) < 100 for share in shares) and (epochs >= 4 or not shares)


def test_a_pace_is_a_share_of_where_it_was_measured_from():
    [first] = history_of(loss=[2.2, 1.9, 1.5, 1.1], val_loss=[2.1, 1.8, 1.4, 1.0]).diagnose().findings
    assert "falls by 22.2 % an epoch" in first.text  # 0.4 of 1.8, the first of the last three


def test_the_verdict_says_which_number_is_of_which_epoch():
    history = history_of(loss=GOOD, val_loss=[v + 0.03 for v in GOOD])
    history.best_epoch = 12
    verdict = history.diagnose().verdict
    assert verdict.endswith(f" in epoch 12 of 20; loss {GOOD[-1]:.4g} in the last.")
    history.best_epoch = 20
    assert history.diagnose().verdict.endswith(f"; loss {GOOD[-1]:.4g} in epoch 20 of 20.")
    assert history_of(loss=GOOD).diagnose().verdict == f"looks healthy: loss {GOOD[-1]:.4g} in epoch 20 of 20."


def test_a_val_loss_above_a_constant_predictions_is_said_to_be_above():
    assert (
        "val_loss 2.533, 10 % above a constant"
        in history_of(loss=[2.5], val_loss=[1.1 * math.log(10)]).diagnose().verdict
    )


def cosine(epochs, lr=0.001):
    return [lr * (1 + math.cos(math.pi * i / epochs)) / 2 for i in range(1, epochs + 1)]


def descent(rates, power):
    """Return a loss that falls from 2.3 as the sum of the rates raised to a power, by 0.3 in all."""
    sums = [sum(rates[:i]) for i in range(1, len(rates) + 1)]
    return [2.3 - 0.3 * (total / sums[-1]) ** power for total in sums]


def test_a_loss_that_stopped_before_the_schedule_did_is_no_matter_of_the_learning_rate():
    rates = cosine(20)
    steady, stopped = descent(rates, 1.0), descent(rates, 1.0)
    stopped[10:] = [stopped[10]] * 10
    found = history_of({"schedule": "cosine"}, loss=steady, val_loss=steady, lr=rates).diagnose().findings[0]
    assert found.name == "learning_rate_too_low" and "steadily" not in found.text
    assert "(lr 0.001), which the schedule had brought to 0 in the last," in found.text
    found = history_of({"schedule": "cosine"}, loss=stopped, val_loss=stopped, lr=rates).diagnose()
    assert "learning_rate_too_low" not in found.names and not found.healthy


def test_without_a_schedule_none_is_mentioned():
    assert "schedule" not in history_of(loss=LINE, val_loss=LINE).diagnose().findings[0].text


def test_one_of_a_thing_is_not_several():
    history = history_of(loss=[2.0], val_loss=[2.0], samples=(1, 1))
    assert "has 1 row." in str(history.diagnose())
    history.stopped = "failed: memory ran out"
    assert "failed after 1 epoch: " in history.diagnose().findings[0].text
    history.stopped = "failed: nan in the loss"
    assert "after 1 whole epoch (" in history.diagnose().findings[0].text
    assert "not finite in 1 epoch, first in epoch 2" in str(history_of(loss=[2.0, math.inf]).diagnose())


@pytest.mark.parametrize("epochs", [1, 5])
def test_a_fit_of_a_few_steps_on_classes_that_can_be_learnt_is_not_called_broken(epochs):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(400, 8, generator=draw)
    y = (x @ torch.randn(8, 3, generator=draw)).argmax(1)
    fit = {"epochs": epochs, "device": "cpu", "compile": False}
    found = fitkit.fit({"model": {"mlp": {"hidden": [16]}}, "fit": fit}, data=(x, y)).diagnose()
    assert not BROKEN & set(found.names)
    assert all(finding.patch for finding in found.findings if finding.severity == "warning")
