"""Compiled runs do what eager ones do where torch's compiler, or a graph that is kept, could know better."""

import warnings

import numpy
import pytest
import torch
from torch import nn

import fitkit
from fitkit.engine import whole_step
from fitkit.engine.devices import can_compile
from fitkit.parts.callbacks import EarlyStopping
from fitkit.session import run

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Dynamo|.*does not support|.*online softmax"),
    pytest.mark.skipif(bool(can_compile()), reason=can_compile() or "there is one"),
]

TIERS = {
    "eager": {"compile": False},
    "model and loss": {"compile": True, "out_of_memory": "halve"},
    "whole steps": {"compile": True},
}
tiers = pytest.mark.parametrize("tier", TIERS)
compiled_tiers = pytest.mark.parametrize("tier", ["model and loss", "whole steps"])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FITKIT_CACHE", str(tmp_path / "cache"))


def train(spec, tier, model=None, data=None, callbacks=(), **options):
    """Return the trainer of a run in which nothing was compiled but what the tier says."""
    fit = {"device": "cpu", "precision": "fp32", **TIERS[tier], **options}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # a step that is no graph
        trainer = fitkit.build({**spec, "fit": fit}, model=model, data=data, callbacks=callbacks)
        trainer.fit()
    assert trainer.compiled == ("" if tier == "eager" else tier)
    return trainer


def furthest(one, other):
    pairs = zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    return max(float((a.double() - b).norm() / (b.double().norm() + 1e-9)) for a, b in pairs)


UNITS, STEPS = 64, 12  # 4 steps an epoch


class Masked(nn.Module):
    """The weight after dropout, for each sample: (B, 1) -> (B, UNITS)."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(UNITS))
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.weight).expand(len(x), -1) + 0 * x


def masked_run(tier, seed):
    """Return the trainer and the mask of each step, (STEPS, UNITS).

    The target lies far below, so each step takes lr * 2 / UNITS from what its mask keeps. As the rate doubles from step
    to step, the weight's binary digits are the masks.
    """
    data = {"train": (torch.zeros(32, 1), torch.full((32, UNITS), -1e6))}
    spec = {"seed": seed, "loss": "l1_loss", "optimizer": {"SGD": UNITS / 2}}
    options = {"epochs": 3, "batch_size": 8, **TIERS[tier]}
    trainer = fitkit.build({**spec, "fit": {"device": "cpu", **options}}, model=Masked(), data=data)
    trainer.schedule = lambda step: 2.0**step
    trainer.fit()
    assert trainer.compiled == ("" if tier == "eager" else tier)
    digits = (-trainer.model.weight.detach()).round().long()
    return trainer, digits >> torch.arange(STEPS)[:, None] & 1


@tiers
def test_the_masks_of_dropout_differ_between_steps_and_seeds_and_a_seed_gives_its_run_again(tier):
    first, masks = masked_run(tier, 0)
    assert first.step == STEPS and (tier != "whole steps" or first._train_step.steps > 1)
    assert 0.4 < masks.double().mean() < 0.6
    _, others = masked_run(tier, 1)
    assert len(torch.unique(torch.cat([masks, others]), dim=0)) == 2 * STEPS
    again, _ = masked_run(tier, 0)
    assert torch.equal(first.model.weight, again.model.weight)
    assert first.history["loss"] == again.history["loss"]


class Counting(nn.Module):
    """Keeps 0-d numbers that are written into in place: (B, 5) -> (B, 3)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(5, 3)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("steps", torch.tensor(0.0))
        self.register_buffer("mean", torch.tensor(0.0))

    def forward(self, x):
        x = self.layer(x)
        if self.training:
            self.steps.add_(1)
            self.mean.lerp_(x.detach().mean(), 0.1)
        return (x - self.mean) * self.scale + 0.01 * self.steps


@compiled_tiers
def test_what_a_model_writes_into_its_own_numbers_in_float64_is_not_lost(tier):
    """Torch 2.13 takes each 0-d float64 tensor for a Python number."""
    x = torch.randn(26, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    data, spec = {"train": (x, torch.arange(26) % 3)}, {"optimizer": {"SGD": 0.1}}
    eager, compiled = (
        train(spec, which, Counting().double(), data, epochs=3, batch_size=8) for which in ("eager", tier)
    )
    assert compiled.model.steps == compiled.step == 12
    assert furthest(compiled, eager) <= 1e-9


@pytest.fixture
def table(tmp_path):
    generator = numpy.random.default_rng(0)
    path = tmp_path / "table.npz"
    numpy.savez(path, x=generator.normal(size=(40, 5)).astype("float32"), y=numpy.arange(40) % 3)
    return path


def declared(table, transform="auto"):
    return {
        "data": {"npz": {"path": str(table), "transform": transform}},
        "splits": {"random": {"val": 0}},
        "model": [{"Linear": 8}, "Tanh", {"Dropout": 0.0}, {"Linear": "outputs"}],
        "optimizer": {"SGD": 0.1},
    }


def test_a_graph_that_was_kept_is_not_used_for_a_transform_of_another_shape(table):
    for transform in ("scale", {"scale": {"range": [-4.0, 4.0]}}):
        spec = declared(table, transform)
        eager, compiled = (train(spec, tier, epochs=2, batch_size=8) for tier in ("eager", "whole steps"))
        assert furthest(compiled, eager) <= 1e-5


def test_what_a_callback_changes_in_a_declared_model_is_in_the_next_epoch_s_graph(table):
    """Graphs of declared models are kept without guards."""

    def change(trainer):
        if trainer.epoch == 2:
            trainer.model[2].p = 1.0
        if trainer.epoch == 3:
            trainer.model[2].p = 0.0
            trainer.model[1].register_forward_hook(lambda module, inputs, output: 3 * output)

    callbacks = [fitkit.LambdaCallback(on_epoch_begin=change)]
    eager, compiled = (
        train(declared(table), tier, callbacks=callbacks, epochs=3, batch_size=8) for tier in ("eager", "whole steps")
    )
    assert furthest(compiled, eager) <= 1e-5


class Tempered(nn.Module):
    """(B, 4) -> (B, 3), divided by a number that is no parameter; `more` takes part once it is switched on."""

    def __init__(self):
        super().__init__()
        self.layer, self.more = nn.Linear(4, 3), nn.Linear(4, 3)
        self.temperature, self.on = 1.0, False

    def forward(self, x):
        y = self.layer(x) / self.temperature
        return y + self.more(x) if self.on else y


def tempered(tier, **hooks):
    torch.manual_seed(0)
    module = Tempered()
    spec = {"optimizer": {"Adam": 0.01}, "fit": {"epochs": 4, "batch_size": 8, "device": "cpu", **TIERS[tier]}}
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    watch = fitkit.LambdaCallback(**hooks)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # steps that are no graphs
        trainer = fitkit.build(spec, model=module, data={"train": (x, (x[:, 0] > 0).long())}, callbacks=[watch])
        trainer.fit()
    return trainer


def test_what_a_hook_of_the_user_changes_between_two_steps_is_in_the_next_step():
    def cool(trainer):
        trainer.model.temperature = 1.0 if trainer.step < 6 else 0.25

    eager, compiled = (tempered(tier, on_step_end=cool) for tier in ("eager", "whole steps"))
    assert furthest(compiled, eager) <= 1e-5


def test_a_parameter_that_comes_into_play_later_is_trained():
    def switch(trainer):
        trainer.model.on = trainer.epoch >= 3

    eager, compiled = (tempered(tier, on_epoch_begin=switch) for tier in ("eager", "whole steps"))
    assert furthest(compiled, eager) <= 1e-5
    torch.manual_seed(0)
    assert not torch.equal(compiled.model.more.weight, Tempered().more.weight)


class Layer(nn.Linear):
    """A user's own."""


@pytest.mark.parametrize("looks", ["once", "for a callback", "for a hook", "for a layer of the user's"])
def test_a_model_is_looked_at_again_in_each_epoch_only_where_code_of_the_user_s_runs(looks, monkeypatch):
    seen = []
    look = whole_step.signature
    monkeypatch.setattr(whole_step, "signature", lambda *given, **more: seen.append(1) or look(*given, **more))
    model = nn.Sequential(
        (Layer if looks == "for a layer of the user's" else nn.Linear)(3, 4), nn.Tanh(), nn.Linear(4, 2)
    )
    if looks == "for a hook":
        model[0].register_forward_hook(lambda module, given, output: output * 2)
    callbacks = [fitkit.LambdaCallback(on_epoch_end=lambda trainer: None)] if looks == "for a callback" else []
    spec = {"splits": {"random": {"val": 0}}, "callbacks": {"TerminateOnNaN": {}, "EMA": 0.5}}
    data = torch.randn(40, 3), torch.arange(40) % 2
    train(spec, "whole steps", model, data, callbacks, epochs=5, batch_size=10)
    assert len(seen) == (1 if looks == "once" else 4)  # the only call of the first epoch is eager


SCALE = {"by": 1.0}


class Scaled(nn.Module):
    """Multiplies by a number outside of the model, which each evaluation halves."""

    def forward(self, x):
        if not self.training:
            SCALE["by"] /= 2
            return x
        return x * SCALE["by"]


def test_a_number_outside_of_the_model_that_changes_between_epochs_is_in_the_next_graph():
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    data = {"train": (x, (x[:, 0] > 0).long()), "val": (x[:16], (x[:16, 0] > 0).long())}

    def losses(tier):
        SCALE["by"] = 1.0
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), Scaled(), nn.Tanh(), nn.Linear(8, 2))
        return train({"optimizer": {"SGD": 0.5}}, tier, model, data, epochs=3, batch_size=16, check_data=False).history[
            "loss"
        ]

    assert losses("whole steps") == pytest.approx(losses("eager"), rel=1e-5)


def test_a_hook_that_is_put_on_a_callback_of_fitkit_s_is_code_of_the_user_s():
    def losses(tier):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.LeakyReLU(), nn.Linear(4, 2))
        callback = EarlyStopping(monitor="loss", patience=50)

        def slope(trainer):
            model[1].negative_slope = 0.5 * trainer.epoch

        callback.on_epoch_end = slope
        data = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2
        spec = {"splits": {"random": {"val": 0}}, "optimizer": {"SGD": 0.5}}
        return train(spec, tier, model, data, [callback], epochs=4, batch_size=10, check_data=False).history["loss"]

    assert losses("whole steps") == pytest.approx(losses("eager"), rel=1e-5)


@pytest.mark.parametrize("tier", ["eager", "whole steps"])
def test_a_callback_that_draws_between_steps_goes_on_to_the_same_bits(tier, tmp_path):
    class Killed(BaseException):
        pass

    def go(folder, resume=False, stop=10**9):
        def noise(trainer):
            with torch.no_grad():
                for p in trainer.model.parameters():
                    p.add_(torch.randn_like(p) * 0.01)
            if trainer.step == stop:
                raise Killed

        spec = {"data": "iris", "model": {"mlp": {"hidden": [8]}}, "fit": {"epochs": 4, "device": "cpu", **TIERS[tier]}}
        callbacks = [fitkit.LambdaCallback(on_step_end=noise)]
        given = fitkit.load_spec(spec)
        return run(given, out=folder, resume=resume, callbacks=callbacks, every_steps=3)[1].model

    whole = go(tmp_path / "whole")
    with pytest.raises(Killed):
        go(tmp_path / "cut", stop=11)
    resumed = go(tmp_path / "cut", resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
