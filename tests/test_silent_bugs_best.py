"""Bugs that train without a complaint, at the end of an epoch: what is measured, when to stop, what is best."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from small_fit import each_step, labels, linear, numbers, overflow, same_bits, scaled, spec, state_of

import fitkit

DATA = {"train": (numbers(12, 4), labels(3, 12)), "val": (numbers(9, 4, seed=1), labels(3, 9, seed=1))}


@pytest.fixture
def scripted(monkeypatch):
    """Let the validation loss of the epochs be what a test says."""

    def script(*losses):
        values = dict(enumerate(losses, 1))
        monkeypatch.setattr(fitkit.Trainer, "evaluate", lambda t, batches: {"loss": values[t.epoch], "accuracy": 0.5})

    return script


def watched(wanted, *callbacks, module=None):
    """Fit, and return the history, the weights of each epoch's end from epoch 1, and those that the fit left."""
    module, states = module or linear(4, 3), {}
    keep = fitkit.LambdaCallback(on_evaluate_end=lambda t: states.update({t.epoch: state_of(t)}))
    trainer = fitkit.build(wanted, model=module, data=DATA, callbacks=[keep, *callbacks])
    try:
        trainer.fit()
    except (KeyboardInterrupt, fitkit.TrainingError):
        pass
    return trainer.history, states, module.state_dict()


def averages_by_hand(start, states, decay):
    average = {name: tensor.clone() for name, tensor in start.items()}
    for state in states:
        average = {name: decay * average[name] + (1 - decay) * state[name] for name in state}
    return average


def close(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], **tolerance)


def test_averages_are_those_of_the_formula_and_are_what_is_evaluated_kept_and_saved(tmp_path):
    """C14: val_loss is the averages', training goes on with the weights, and the files hold the averages."""
    module = linear(4, 3)
    start = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    callback, states = each_step(state_of)
    history = fitkit.Model(module).fit(
        spec(callbacks={"EMA": {"decay": 0.7}}), data=DATA, callbacks=[callback], out=tmp_path / "run"
    )
    assert len(states) == 3
    averages = averages_by_hand(start, states, 0.7)
    close(module.state_dict(), averages, rtol=1e-12, atol=1e-15)
    output = F.linear(DATA["val"][0], averages["0.weight"], averages["0.bias"])
    assert history["val_loss"] == pytest.approx([F.cross_entropy(output, DATA["val"][1]).item()], rel=1e-12)
    loaded = fitkit.load(tmp_path / "run", model=linear(4, 3))
    close(loaded.module.state_dict(), averages, rtol=1e-12, atol=1e-15)


def test_averages_do_not_change_what_is_trained():
    """C14: the swap for the evaluation is undone to the bit."""
    runs = []
    for callbacks in ({}, {"EMA": {"decay": 0.7}}):
        callback, states = each_step(state_of)
        fitkit.Model(linear(4, 3)).fit(spec(epochs=3, callbacks=callbacks), data=DATA, callbacks=[callback])
        runs.append(states)
    assert all(map(same_bits, *runs))


def test_averages_wait_while_a_step_is_skipped():
    """C14: an overflow of fp16 moves nothing."""
    module = linear(4, 3).float()
    overflow(module[0], at=2)
    start = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    callback, states = each_step(state_of)
    wanted = spec(callbacks={"EMA": {"decay": 0.7}})
    trainer = fitkit.build(wanted, model=module, data={"train": DATA["train"]}, callbacks=[callback])
    scaled(trainer, 8.0).fit()
    close(module.state_dict(), averages_by_hand(start, [states[0], states[2]], 0.7), rtol=1e-6, atol=1e-7)


def stop_in(epoch, error):
    def hook(trainer):
        if trainer.epoch == epoch:
            raise error

    return fitkit.LambdaCallback(on_step_end=hook)


STOPPED = {"EarlyStopping": {"monitor": "val_loss", "patience": 2}}
ENDS = {
    "all epochs": ({"epochs": 6}, [], 6),
    "early stopping": ({"epochs": 9, "callbacks": STOPPED}, [], 6),
    "max_steps at the end of an epoch": ({"epochs": 9, "max_steps": 15}, [], 5),
    "max_steps within an epoch": ({"epochs": 9, "max_steps": 17}, [], 6),
    "a callback's stop": (
        {"epochs": 9},
        [fitkit.LambdaCallback(on_epoch_end=lambda t: t.epoch == 5 and t.stop("so"))],
        5,
    ),
    "Ctrl-C": ({"epochs": 9}, [stop_in(6, KeyboardInterrupt())], 5),
    "a failure": ({"epochs": 9}, [stop_in(6, fitkit.TrainingError("so"))], 5),
}


@pytest.mark.parametrize(("fit", "callbacks", "epochs"), ENDS.values(), ids=ENDS)
def test_the_weights_of_the_best_epoch_are_left_whatever_ends_the_fit(scripted, fit, callbacks, epochs):
    """C16: not only when early stopping fires, and not one epoch late."""
    scripted(5, 3, 4, 2, 6, 7)
    history, states, left = watched(spec(**fit), *callbacks)
    assert len(history) == epochs
    assert history.best_epoch == 4
    assert same_bits(left, states[4])


def test_of_two_epochs_that_are_equally_good_the_first_is_best(scripted):
    """C16: the model and the history say the same."""
    scripted(5, 2, 2, 3)
    history, states, left = watched(spec(epochs=4))
    assert history.best_epoch == 2 == history.best("val_loss")["epoch"]
    assert same_bits(left, states[2])


@pytest.mark.parametrize(("monitor", "mode", "best"), [("val_accuracy", "auto", 2), ("val_loss", "min", 2)])
def test_the_best_epoch_is_that_of_the_monitor_in_its_direction(monkeypatch, monitor, mode, best):
    """C16: an accuracy is better when it is higher."""
    rows = [None, (5.0, 0.1), (3.0, 0.9), (6.0, 0.5)]
    monkeypatch.setattr(
        fitkit.Trainer, "evaluate", lambda t, batches: dict(zip(("loss", "accuracy"), rows[t.epoch], strict=True))
    )
    early = {"EarlyStopping": {"monitor": monitor, "mode": mode, "patience": 9}}
    history, states, left = watched(spec(epochs=3, callbacks=early))
    assert history.best_epoch == best
    assert same_bits(left, states[best])


def test_what_the_fit_leaves_evaluates_to_what_the_history_says():
    """C16: the best row is that of the weights in the model."""
    model = fitkit.Model(linear(4, 3))
    history = model.fit(spec(epochs=5, lr=2.0), data=DATA)
    assert history.best_epoch not in (None, 5)  # else this test would say nothing
    found, best = model.evaluate(DATA["val"]), history.best("val_loss")
    assert found["loss"] == pytest.approx(best["val_loss"], rel=1e-12)
    assert found["accuracy"] == best["val_accuracy"]


def test_monitoring_a_training_column_is_warned_of():
    """C16: it is taken while the weights still move."""
    with pytest.warns(UserWarning, match="EarlyStopping monitors loss, taken while the weights still move"):
        fitkit.build(spec(callbacks={"EarlyStopping": {"monitor": "loss"}}), model=linear(4, 3), data=DATA)


@pytest.mark.parametrize("script", [(math.nan, 3, math.nan, 2), (3, math.inf, math.nan, 2), (-math.inf, 3, 4, 2)])
def test_a_nan_or_an_infinity_is_never_best_and_hides_no_later_epoch(scripted, script):
    """C17: every comparison with a NaN is false."""
    scripted(*script)
    history, states, left = watched(spec(epochs=4))
    assert history.best_epoch == 4
    assert same_bits(left, states[4])


def test_a_nan_does_not_count_for_early_stopping_nor_resets_it(scripted):
    """C17: patience 2 ends two measured epochs after the best one."""
    scripted(math.nan, 3, math.nan, 4, math.nan, 5, 6)
    history, _, _ = watched(spec(epochs=7, callbacks=STOPPED))
    assert len(history) == 6 and history.best_epoch == 2


def test_a_run_whose_validation_loss_was_never_finite_fails(scripted):
    """C17: no epoch is best, so there is nothing to leave in the model as if it were."""
    scripted(math.nan, math.nan)
    trainer = fitkit.build(spec(epochs=2), model=linear(4, 3), data=DATA)
    with pytest.raises(fitkit.TrainingError, match="val_loss"):
        trainer.fit()


def test_a_training_loss_that_is_not_finite_ends_the_run_with_what_was_measured_before():
    """C17: and not with a model of NaNs."""
    bad = fitkit.LambdaCallback(on_epoch_begin=lambda t: t.epoch == 3 and t.model[0].weight.data.fill_(math.nan))
    module = linear(4, 3)
    with pytest.raises(fitkit.TrainingError, match='"loss" is nan in epoch 3') as error:
        fitkit.Model(module).fit(spec(epochs=9), data=DATA, callbacks=[bad])
    assert len(error.value.history) == 2
    assert all(parameter.isfinite().all() for parameter in module.parameters())


def plateau(**arguments):
    return {"ReduceLROnPlateau": {"factor": 0.5, "patience": 2, "min_delta": 0.0, **arguments}}


def test_the_learning_rate_drops_when_the_validation_loss_stays_where_it_is(scripted):
    """C18: after exactly `patience` epochs, on the validation loss and not the training loss."""
    scripted(5, 4, 4, 4, 4, 3, 3, 3, 3)
    history, _, _ = watched(spec(epochs=9, callbacks=plateau(monitor="val_loss")))
    assert history["lr"] == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05, 0.025])


def test_the_direction_of_a_plateau_is_that_of_its_metric(monkeypatch):
    """C18: an accuracy that rises is no plateau, one that falls is."""
    rises = [None, 0.1, 0.2, 0.3, 0.4, 0.3, 0.2, 0.1]
    monkeypatch.setattr(fitkit.Trainer, "evaluate", lambda t, batches: {"loss": 1.0, "accuracy": rises[t.epoch]})
    history, _, _ = watched(spec(epochs=7, callbacks=plateau(monitor="val_accuracy")))
    assert history["lr"] == pytest.approx([0.1] * 6 + [0.05])


def test_an_epoch_without_validation_feeds_no_stale_value_to_a_plateau(scripted):
    """C18: with validation every 2 epochs, patience 2 is 2 validations."""
    scripted(9, 4, 9, 4, 9, 4, 9, 4)
    history, _, _ = watched(spec(epochs=8, eval_every=2, callbacks=plateau(monitor="val_loss")))
    assert history["lr"] == pytest.approx([0.1] * 6 + [0.05] * 2)
    assert [math.isnan(loss) for loss in history["val_loss"]] == [True, False] * 4


def test_the_last_epoch_is_evaluated_whatever_ends_the_fit():
    """C16: `eval_every` says: and after the last."""
    stop = fitkit.LambdaCallback(on_step_end=lambda t: t.epoch == 3 and t.stop("so"))
    for fit, callbacks in (({"epochs": 3}, []), ({"epochs": 9, "max_steps": 7}, []), ({"epochs": 9}, [stop])):
        history, _, _ = watched(spec(eval_every=2, **fit), *callbacks)
        assert [math.isfinite(loss) for loss in history["val_loss"]] == [False, True, True]


def test_label_smoothing_is_in_the_training_loss_alone_and_changes_no_label():
    """C19: `val_loss` is the plain cross entropy, so that it can be compared between runs."""
    module, before = linear(4, 3), {part: y.clone() for part, (_, y) in DATA.items()}
    losses = [
        F.cross_entropy(module(DATA[part][0]), DATA[part][1], label_smoothing=smoothing).item()
        for part, smoothing in (("train", 0.3), ("val", 0.0))
    ]
    wanted = spec(lr=1e-300, loss={"cross_entropy": {"label_smoothing": 0.3}})
    history = fitkit.Model(module).fit(wanted, data=DATA)
    assert [history["loss"][0], history["val_loss"][0]] == pytest.approx(losses, rel=1e-12)
    assert all(torch.equal(DATA[part][1], before[part]) for part in DATA)


@pytest.mark.parametrize("patience", [1, 2, 5])
def test_a_constant_metric_stops_the_run_exactly_patience_epochs_after_the_first(scripted, patience):
    """C20: not one epoch later or earlier."""
    scripted(*[1.0] * 9)
    history, _, _ = watched(spec(epochs=9, callbacks={"EarlyStopping": {"patience": patience}}))
    assert len(history) == 1 + patience
    assert f"patience {patience}" in history.stopped


def test_the_training_loss_is_taken_while_the_weights_move_and_validation_at_the_end():
    """C29: so the two differ on the same rows; `evaluate` gives what can be compared with `val_loss`."""
    x, y = DATA["train"]
    seen = []
    look = fitkit.LambdaCallback(on_step_end=lambda t: seen.append(F.cross_entropy(t.model(x), y).item()))
    model = fitkit.Model(linear(4, 3))
    history = model.fit(spec(batch_size=12, epochs=2), data={"train": (x, y), "val": (x, y)}, callbacks=[look])
    assert history["val_loss"] == pytest.approx(seen, rel=1e-12)  # after the step of each epoch
    assert history["loss"][1] == pytest.approx(seen[0], rel=1e-12)  # before it
    assert model.evaluate((x, y))["loss"] == pytest.approx(seen[1], rel=1e-12)


def test_the_files_say_which_column_chose_the_best_epoch(tmp_path):
    """C16: summary and history agree."""
    history = fitkit.Model(linear(4, 3)).fit(spec(epochs=3), data=DATA, out=tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["monitor"], summary["best_epoch"]) == ("val_loss", history.best_epoch)
    assert summary["best"] == history.best("val_loss")
