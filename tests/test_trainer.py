"""The loop: what a Trainer made by hand or by a spec does, epoch by epoch."""

import copy
import math

import pytest
import torch
from torch import nn

import fitkit
from fitkit.engine.batches import ArrayBatches
from fitkit.engine.seeds import derive, order
from fitkit.errors import FitkitError, SpecError, TrainingError

X = torch.linspace(-1, 1, 60).reshape(20, 3)
Y = torch.arange(20) % 3


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3))


def spec(**fit):
    return {"splits": {"random": {"val": 0.25}}, "fit": {"epochs": 3, "batch_size": 4, "device": "cpu", **fit}}


def build(declared=None, **more):
    return fitkit.build(declared or spec(), model=net(), data=(X, Y), **more)


def test_a_trainer_can_be_built_by_hand_from_plain_torch_parts():
    parts = build()
    model = net()
    train = ArrayBatches(X, Y, batch_size=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = fitkit.Trainer(model=model, objective=parts.objective, optimizer=optimizer, train=train)
    history = trainer.fit()
    assert type(trainer.model) is nn.Sequential
    assert len(history) == 10 and history.columns == ("loss", "accuracy", "lr", "epoch_seconds")


def test_from_fit_to_the_optimizer_step_are_at_most_four_frames(monkeypatch):
    import traceback

    depths = []
    step = torch.optim.SGD.step

    def look(self, *args, **kwargs):
        ours = [frame for frame in traceback.extract_stack() if "/fitkit/" in frame.filename.replace("\\", "/")]
        depths.append([frame.name for frame in ours])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", look)
    build({**spec(), "optimizer": {"SGD": 0.1}}).fit()
    frames = depths[-1][depths[-1].index("fit") :]
    assert frames == ["fit", "_epoch", "_train_epoch", "__call__"]


def test_max_steps_ends_the_run_at_that_step_and_is_the_schedule_s_horizon():
    trainer = build({**spec(max_steps=6, epochs=100), "schedule": "linear", "optimizer": {"SGD": {"lr": 1.0}}})
    history = trainer.fit()
    assert trainer.step == 6 and history.stopped == "max_steps 6 reached"
    assert history.last["lr"] == pytest.approx(1 - 5 / 6)
    assert not math.isnan(history.last["val_loss"])


def test_max_time_ends_the_run_after_a_step():
    trainer = build({**spec(), "fit": {"max_time": 1e-9, "batch_size": 4}})
    history = trainer.fit()
    assert trainer.step == 1 and history.stopped.startswith("max_time")


def test_without_epochs_max_steps_alone_decides():
    trainer = build({"splits": {"random": {"val": 0}}, "fit": {"max_steps": 23, "batch_size": 20}})
    assert len(trainer.fit()) == 23


def test_eval_every_leaves_the_other_epochs_unmeasured_and_evaluates_the_last():
    history = build(spec(epochs=5, eval_every=2)).fit()
    assert [math.isnan(value) for value in history["val_loss"]] == [True, False, True, False, False]


def test_a_trainer_runs_once():
    trainer = build()
    trainer.fit()
    with pytest.raises(FitkitError, match="has run already"):
        trainer.fit()


def test_a_loss_that_is_not_finite_ends_the_fit_with_the_best_weights_and_the_history():
    declared = {**spec(epochs=50), "optimizer": {"SGD": {"lr": 1e30}}, "loss": "mse_loss"}
    model = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))
    with pytest.raises(TrainingError, match="loss") as caught:
        fitkit.Model(model).fit(declared, data=(X * 100, X[:, 0] * 100))
    assert caught.value.history is not None


def test_the_order_of_an_epoch_depends_on_seed_and_epoch_alone():
    rows = torch.arange(50)
    first = order(rows, 3, 1)
    torch.manual_seed(123)
    assert torch.equal(order(rows, 3, 1), first)
    assert not torch.equal(order(rows, 3, 2), first) and not torch.equal(order(rows, 4, 1), first)
    assert torch.equal(first.sort().values, rows)


def test_derived_seeds_do_not_repeat():
    seeds = {derive(seed, purpose, n) for seed in range(5) for purpose in range(5) for n in range(200)}
    assert len(seeds) == 5 * 5 * 200 and all(0 <= seed < 2**63 for seed in seeds)


def test_two_runs_of_a_spec_are_the_same_to_the_bit_and_another_seed_is_not():
    runs = []
    for seed in (0, 0, 1):
        model = net()
        fitkit.Model(model).fit({**spec(), "seed": seed}, data=(X, Y))
        runs.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("model", ["mlp", "transformer"])
def test_bf16_autocast_trains_and_keeps_float32_weights(model):
    declared = {
        "data": {"digits": "rows" if model == "transformer" else "flat"},
        "model": {model: {"hidden": [32]} if model == "mlp" else {"width": 32, "depth": 1}},
        "optimizer": {"AdamW": {"lr": 3e-3}},
        "fit": {"epochs": 2, "precision": "bf16", "device": "cpu"},
    }
    trainer = fitkit.build(declared)
    history = trainer.fit()
    assert history["loss"][1] < history["loss"][0]
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    full = fitkit.fit(declared, overrides={"fit.precision": "fp32"})
    assert history.last["val_accuracy"] == pytest.approx(full.last["val_accuracy"], abs=0.1)


def test_compiling_from_a_path_with_a_space_is_refused_with_the_reason(monkeypatch):
    monkeypatch.setattr(torch, "__file__", "/my folder/torch/__init__.py")
    with pytest.raises(SpecError, match="path holds a space"):
        build(spec(compile=True))


@pytest.mark.skipif(" " in torch.__file__, reason="torch.compile does not work from a path with a space")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_compiled_fit_agrees_with_an_eager_one():
    torch.compiler.reset()
    weights = []
    for compiled in (False, True):
        model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))
        torch.manual_seed(0)
        nn.init.normal_(model[0].weight), nn.init.normal_(model[2].weight)
        with torch.no_grad():
            model[0].bias.zero_(), model[2].bias.zero_()
        history = fitkit.Model(model).fit(spec(compile=compiled), data=(X, Y))
        weights.append((copy.deepcopy(model.state_dict()), history))
    assert list(weights[0][0]) == list(weights[1][0])  # no "_orig_mod." in the names
    for name, tensor in weights[0][0].items():
        torch.testing.assert_close(tensor, weights[1][0][name], rtol=1e-4, atol=1e-6)
    assert weights[0][1].last["val_loss"] == pytest.approx(weights[1][1].last["val_loss"], rel=1e-4)


def test_a_schedule_that_needs_a_horizon_says_so_when_there_is_none():
    declared = {"splits": {"random": {"val": 0}}, "schedule": "cosine", "fit": {"max_time": 1}}
    with pytest.raises(SpecError, match="how long the run is"):
        build(declared)


def test_reduce_lr_on_plateau_may_stand_under_schedule_too():
    trainer = build({**spec(), "schedule": {"ReduceLROnPlateau": {"patience": 1}}})
    assert [type(callback).__name__ for callback in trainer.callbacks] == ["TerminateOnNaN", "ReduceLROnPlateau"]
    trainer.fit()


def test_the_plan_can_be_printed():
    assert "train 15, val 5" in str(build()) and "AdamW" in str(build())
