import math

import pytest
import torch
from fake_trainer import NAN, FakeTrainer, checkpointed, fit, series
from torch import nn

from fitkit.errors import SpecError, TrainingError
from fitkit.parts.callback import Callback, LambdaCallback, TrainerLike, followers, overridden
from fitkit.parts.callbacks import EMA, EarlyStopping, ModelCheckpoint, ReduceLROnPlateau, TerminateOnNaN, callbacks
from fitkit.parts.trackers import trackers

# --- hooks


def test_only_hooks_that_somebody_overrides_are_called_and_in_order():
    seen = []
    first = LambdaCallback(on_epoch_end=lambda trainer: seen.append(("first", trainer.epoch)))

    class Second(Callback):
        def on_epoch_end(self, trainer):
            seen.append(("second", trainer.epoch))

    pair = [first, Callback(), Second()]
    assert len(overridden(pair, "on_epoch_end")) == 2
    assert overridden(pair, "on_step_end") == []
    FakeTrainer(series("loss", [1, 1]), pair).fit()
    assert seen == [("first", 1), ("second", 1), ("first", 2), ("second", 2)]


def made(name):
    """Build a callback from its defaults; skip where a library is missing that the tests do not ask for."""
    if name == "WandB":
        pytest.importorskip("wandb")
    return {**callbacks, **trackers}[name].factory()


def test_no_built_in_callback_but_ema_costs_anything_in_a_step():
    built = [made(name) for name in {**callbacks, **trackers} if name != "WandB"]
    assert overridden(built, "on_step_end") == []
    assert [type(callback) for callback in followers(built)] == [EMA]


def test_a_lambda_callback_takes_hooks_only_and_no_spec_can_name_it():
    with pytest.raises(TypeError):
        LambdaCallback(on_batch_end=print)
    assert "LambdaCallback" not in {**callbacks, **trackers}


@pytest.mark.parametrize("name", sorted({**callbacks, **trackers}))
def test_every_callback_is_built_from_its_defaults_remembers_json_and_says_whether_it_writes(name):
    entry = {**callbacks, **trackers}[name]
    callback = made(name)
    assert entry.summary.endswith(".") and entry.arguments.keys() >= set(entry.defaults())
    callback.load_state_dict(checkpointed(callback)[0])
    assert callback.writes_files is (name in {"ModelCheckpoint", "CSVLogger", "TensorBoard", "MLflow", "WandB"})
    assert hasattr(callback, "monitor") == hasattr(callback, "mode") == ("monitor" in entry.arguments)


@pytest.mark.parametrize("name", ["ModelCheckpoint", "CSVLogger", *trackers])
def test_a_callback_that_writes_asks_for_a_run_folder_before_training(name):
    with pytest.raises(SpecError, match="has no run folder: give it out="):
        fit(made(name), series("val_loss", [1]))


@pytest.mark.parametrize("factory", [EarlyStopping, ReduceLROnPlateau, ModelCheckpoint])
def test_a_monitor_that_no_column_bears_is_an_error_before_training(factory, tmp_path):
    with pytest.raises(SpecError, match=r'monitors "val_los", .* Did you mean "val_loss"\? It measures val_loss\.'):
        fit(factory(monitor="val_los"), series("val_loss", [1]), out=tmp_path)


# --- EarlyStopping


@pytest.mark.parametrize("patience", [1, 2, 5])
def test_a_constant_column_stops_the_run_exactly_patience_epochs_after_the_first(patience):
    trainer = fit(EarlyStopping(patience=patience), series("val_loss", [1.0] * 20))
    assert trainer.epoch == 1 + patience
    assert trainer.stopped == (f"val_loss has not improved since epoch 1, 1 (EarlyStopping, patience {patience})")


@pytest.mark.parametrize(
    "values, arguments, last",
    [
        ([5, 3, 4, 2, 6], {"patience": 2}, 5),  # 4 and 6 are not two in a row
        ([5, 3, 4, 2, 6], {"patience": 1}, 3),
        ([5, 3, 4, 2, 6, 6], {"patience": 2}, 6),
        ([5, 3, 4, 2, 6], {"patience": 1, "mode": "max"}, 2),
        ([5, 4.5, 4.4, 4.3, 4.2], {"patience": 3, "min_delta": 1.0}, 4),  # small steps do not add up to one
        ([5, 4, 3, 2], {"patience": 1, "min_delta": 1.0}, 2),  # exactly min_delta is no improvement
        ([5, 4, 3, 2], {"patience": 2, "baseline": 3.0}, 2),
        ([5, 2, 3, 3, 3], {"patience": 2, "baseline": 3.0}, 4),
        ([9, 9, 1, 5, 5, 5, 5], {"patience": 2, "start_from_epoch": 3}, 6),
        ([1, NAN, None, 1, NAN, 1, 1], {"patience": 2}, 6),  # what was not measured is not counted
        ([NAN, 3, NAN, 2, 4, NAN, 4, 4], {"patience": 2}, 7),
        ([math.inf, 1, 1, 1], {"patience": 2}, 4),
        ([math.inf] * 5, {"patience": 2}, 2),
        ([-math.inf, 1, 1, 1, 1], {"patience": 2}, 4),
    ],
)
def test_early_stopping_ends_a_scripted_series_at_the_right_epoch(values, arguments, last):
    trainer = fit(EarlyStopping(**arguments), series("val_loss", values))
    assert trainer.epoch == last


def test_a_row_without_the_column_is_an_epoch_that_did_not_measure_it():
    trainer = fit(EarlyStopping(patience=1), [{"val_loss": 1, "loss": 1}, {"val_loss": 1, "loss": 1}])
    assert trainer.epoch == 2
    trainer.row, trainer.stopped = {"loss": 1.0}, ""
    trainer.call("on_epoch_end")
    assert trainer.stopped == ""


def test_a_series_that_keeps_improving_is_never_stopped():
    assert fit(EarlyStopping(patience=1), series("val_loss", [5, 4, 3])).stopped == ""


def test_early_stopping_takes_the_direction_of_the_column():
    rising = [0.1, 0.2, 0.3, 0.3]
    assert fit(EarlyStopping(monitor="val_accuracy", patience=1), series("val_accuracy", rising)).epoch == 4
    assert fit(EarlyStopping(patience=1), series("val_loss", rising)).epoch == 2


def test_the_reason_to_stop_names_the_baseline_that_was_never_reached():
    trainer = fit(EarlyStopping(patience=2, baseline=0.5), series("val_loss", [1, 1, 1]))
    assert trainer.stopped == (
        "val_loss has not improved in any epoch, the baseline is 0.5 (EarlyStopping, patience 2)"
    )


@pytest.mark.parametrize("cut", range(1, 7))
@pytest.mark.parametrize(
    "make",
    [lambda: EarlyStopping(patience=3), lambda: ReduceLROnPlateau(patience=2, cooldown=1, factor=0.5)],
)
def test_a_resumed_run_counts_on_where_it_was(make, cut):
    rows = series("val_loss", [5, 3, 4, 2, 6, 7, 8, 9, 10, 11])
    whole = fit(make(), rows)
    before = FakeTrainer(rows[:cut], [make()]).fit()
    state, _ = checkpointed(before.callbacks[0])
    after = FakeTrainer(rows, [make()], epoch=cut, lr_factor=before.lr_factor)
    after.call("on_train_begin")
    after.callbacks[0].load_state_dict(state)
    after.epochs(first=cut)
    assert (after.epoch, after.stopped) == (whole.epoch, whole.stopped)
    assert before.lrs + after.lrs == whole.lrs


@pytest.mark.parametrize("make", [lambda: EarlyStopping(patience=2), lambda: ReduceLROnPlateau(patience=1, cooldown=5)])
def test_a_second_fit_with_the_same_callback_starts_afresh(make):
    callback = make()
    rows = series("val_loss", [3, 4, 4, 4])
    first, second = fit(callback, rows), fit(callback, rows)
    assert (first.epoch, first.lrs) == (second.epoch, second.lrs)


# --- ReduceLROnPlateau


@pytest.mark.parametrize(
    "values, arguments, lrs",
    [
        ([1] * 7, {"patience": 2}, [1, 1, 1, 0.5, 0.5, 0.25, 0.25]),
        ([1] * 4, {"patience": 1}, [1, 1, 0.5, 0.25]),
        ([1] * 8, {"patience": 1, "cooldown": 2}, [1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]),
        ([5, 3, 4, 2, 6, 6, 6], {"patience": 2}, [1, 1, 1, 1, 1, 1, 0.5]),
        ([1, NAN, 1, None, 1, NAN], {"patience": 2}, [1, 1, 1, 1, 1, 0.5]),  # nothing stale is counted
        ([1] * 6, {"patience": 1, "min_lr": 0.3}, [1, 1, 0.5, 0.3, 0.3, 0.3]),
        ([1] * 4, {"patience": 1, "min_lr": 2.0}, [1, 1, 1, 1]),  # a floor never raises the lr
        ([1, 0.95, 0.9, 0.85], {"patience": 2, "min_delta": 0.2}, [1, 1, 1, 0.5]),
        ([1, 2, 3, 4], {"patience": 1, "mode": "max"}, [1, 1, 1, 1]),
    ],
)
def test_the_lr_drops_exactly_where_it_should(values, arguments, lrs):
    trainer = fit(ReduceLROnPlateau(factor=0.5, **arguments), series("val_loss", values))
    assert trainer.lrs == lrs


def test_an_accuracy_that_rises_is_no_plateau():
    trainer = fit(ReduceLROnPlateau(monitor="val_accuracy", patience=1), series("val_accuracy", [0.1, 0.2, 0.3]))
    assert trainer.lrs == [1, 1, 1]


@pytest.mark.parametrize("patience, cooldown", [(1, 0), (2, 0), (3, 2)])
def test_the_drops_are_those_of_torch_whose_patience_is_one_less(patience, cooldown):
    values = [4, 3, 3, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1]
    ours = fit(ReduceLROnPlateau(patience=patience, cooldown=cooldown, min_delta=0), series("val_loss", values)).lrs
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, patience=patience - 1, cooldown=cooldown, threshold=0, eps=0
    )
    lrs = []
    for value in values:
        lrs.append(optimizer.param_groups[0]["lr"])
        theirs.step(value)
    assert ours == pytest.approx(lrs, rel=1e-12)


def test_the_floor_holds_for_every_param_group():
    trainer = FakeTrainer(series("val_loss", [1, 1]), [ReduceLROnPlateau(patience=1, min_lr=0.05)])
    trainer.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": 0.1})
    trainer.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": 0.0})
    assert trainer.fit().lr_factor == 0.5


# --- TerminateOnNaN


@pytest.mark.parametrize("bad", [NAN, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_with_advice(bad):
    with pytest.raises(TrainingError) as caught:
        fit(TerminateOnNaN(), series("loss", [1, bad, 1]), steps=3)
    message = str(caught.value)
    assert f'"loss" is {bad} in epoch 2, since one of the steps 4 to 6.' in message
    assert all(word in message for word in ("lr", "clip_norm", "fp32"))
    assert len(caught.value.history) == 1


def test_a_validation_loss_that_was_not_measured_ends_nothing():
    fit(TerminateOnNaN(), [{"loss": 1.0, "val_loss": NAN}] * 2)


def test_the_fake_trainer_has_all_that_the_protocol_names():
    trainer = FakeTrainer(series("loss", [1]), [])
    names = {name for name in (*vars(TrainerLike), *TrainerLike.__annotations__) if not name.startswith("_")}
    assert all(hasattr(trainer, name) for name in names)
