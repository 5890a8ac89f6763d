"""What callbacks do at the end of each step is in the graph of the step, with EMA as the case in point."""

import warnings

import pytest
import torch
from small_nets import Y as TARGETS
from small_nets import declared, furthest, inputs, network

import fitkit
from fitkit.engine.devices import can_compile
from fitkit.parts.callback import Callback
from fitkit.parts.callbacks import EMA
from fitkit.session import run

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Dynamo|.*does not support|.*online softmax"),
    pytest.mark.skipif(bool(can_compile()), reason=can_compile() or "there is one"),
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FITKIT_CACHE", str(tmp_path / "cache"))


def train(compiled, kind="mlp", callbacks=(), strict=True):
    """Return the trainer of 54 steps: 5 of 10 samples an epoch, and a ragged one."""
    spec = {
        "optimizer": declared("AdamW"),
        "fit": {
            "epochs": 9,
            "batch_size": 10,
            "device": "cpu",
            "precision": "fp32",
            "compile": compiled,
            "check_data": False,
        },
    }
    data = {"train": (inputs(kind), TARGETS), "val": (inputs(kind), TARGETS)}
    with warnings.catch_warnings():
        warnings.simplefilter("error" if strict else "default", UserWarning)  # a step that is no graph
        trainer = fitkit.build(spec, model=network(kind), data=data, callbacks=callbacks)
        trainer.fit()
    return trainer


class MaxNorm(Callback):
    """Keeps the rows of each matrix at a norm of at most `most`, as Keras's constraint of this name does."""

    def __init__(self, most=0.5):
        self.most = most

    def on_train_begin(self, trainer):
        self.weights = [p for p in trainer.model.parameters() if p.ndim == 2]

    @torch.no_grad()
    def after_update(self):
        for weight in self.weights:
            norms = torch.linalg.vector_norm(weight, dim=1, keepdim=True)
            weight.mul_((self.most / (norms + 1e-7)).clamp(max=1.0))


def largest(model):
    """Return the largest norm of a row of any matrix."""
    return max(float(p.detach().norm(dim=1).max()) for p in model.parameters() if p.ndim == 2)


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_averages_in_compiled_steps_are_those_of_eager_ones_several_steps_a_call(kind):
    eager = train(False, kind, [EMA(decay=0.9)])
    compiled = train(True, kind, [EMA(decay=0.9)])
    assert compiled.tier.steps > 1 or kind == "cnn"
    assert furthest(compiled.model, eager.model) <= 1e-5
    assert compiled.history["val_loss"] == pytest.approx(eager.history["val_loss"], rel=1e-4)
    plain = train(False, kind)
    assert furthest(plain.model, eager.model) > 1e-3  # the averages are something else than the weights


def test_a_kept_graph_moves_the_averages_of_the_run_it_is_in_and_another_decay_is_another_graph(tmp_path):
    spec = {
        "data": "iris",
        "model": {"mlp": {"hidden": [8]}},
        "callbacks": {"EMA": {"decay": 0.9}},
        "fit": {"epochs": 12, "batch_size": 20, "device": "cpu", "compile": True},
    }
    graphs = tmp_path / "cache" / "graphs"
    first = fitkit.build(spec)
    first.fit()
    kept = {path.name for path in graphs.iterdir()}
    assert kept
    again = fitkit.build(spec)
    again.fit()
    assert {path.name for path in graphs.iterdir()} == kept
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True))
    other = {**spec, "callbacks": {"EMA": {"decay": 0.5}}}
    trainer = fitkit.build(other)
    trainer.fit()
    assert len(list(graphs.iterdir())) == 2 * len(kept)
    eager = fitkit.build({**other, "fit": {**spec["fit"], "compile": False}})
    eager.fit()
    assert furthest(trainer.model, eager.model) <= 1e-5


def test_a_callback_of_the_user_s_own_is_in_the_graph_and_leaves_none_behind(tmp_path):
    one, other = train(False, callbacks=[MaxNorm()]), train(True, callbacks=[MaxNorm()])
    assert furthest(other.model, one.model) <= 1e-5 and other.compiled == "whole steps"
    assert largest(other.model) <= 0.5001
    assert not list((tmp_path / "cache").glob("graphs/*"))  # a graph with code that may change is not kept
    assert furthest(train(False).model, one.model) > 1e-3


class Counting(MaxNorm):
    """Does in Python what a graph would do once."""

    calls = 0

    def after_update(self):
        super().after_update()
        self.calls += 1


def test_a_callback_that_changes_more_than_tensors_is_called_in_every_step():
    eager, compiled = Counting(), Counting()
    one = train(False, callbacks=[eager])
    with pytest.warns(UserWarning, match="cannot be one graph, .* changes what it does from step to step"):
        other = train(True, callbacks=[compiled], strict=False)
    assert furthest(other.model, one.model) <= 1e-5
    assert eager.calls == compiled.calls == 54


def test_a_limit_that_changes_between_two_epochs_is_in_the_next_graph():
    def run(compiled):
        callback, largest_of = MaxNorm(0.7), []

        def lower(trainer):
            largest_of.append(largest(trainer.model))
            callback.most = 0.7 if trainer.epoch < 4 else 0.2

        train(compiled, callbacks=[callback, fitkit.LambdaCallback(on_epoch_end=lower)])
        return largest_of

    eager, compiled = run(False), run(True)
    assert compiled == pytest.approx(eager, rel=1e-5)
    assert compiled[3] > 0.6 and compiled[4] <= 0.2001


class Otherwise(EMA):
    """Moves its averages to another place once it is compiled, as a wrong compiler would."""

    __module__ = EMA.__module__  # taken for code of fitkit's, whose graphs are checked

    def after_update(self):
        super().after_update()
        if torch.compiler.is_compiling():
            for average in self.averages:
                average.mul_(1.5)


def test_a_graph_that_moves_averages_otherwise_is_found_out_and_they_are_put_back(monkeypatch):
    monkeypatch.setattr("fitkit.parts.callbacks.Otherwise", Otherwise, raising=False)  # where pickle looks for it
    eager = train(False, callbacks=[EMA(decay=0.9)])
    with pytest.warns(UserWarning, match=r'another step than the eager one: "Otherwise of \d.\w+" is off by'):
        compiled = train(True, callbacks=[Otherwise(decay=0.9)], strict=False)
    assert compiled._train_step.refused
    assert furthest(compiled.model, eager.model) <= 1e-5


@pytest.mark.parametrize("stop", [5, 14, 21])
def test_averages_of_a_killed_run_go_on_to_the_same_bits(stop, tmp_path):
    spec = fitkit.load_spec(
        {
            "data": "iris",
            "model": {"mlp": {"hidden": [8], "dropout": 0.2}},
            "callbacks": {"EMA": {"decay": 0.9}},
            "fit": {"epochs": 5, "batch_size": 13, "device": "cpu", "compile": True},
        }
    )

    class Killed(BaseException):
        pass

    def kill(trainer):
        if trainer.step >= stop:
            raise Killed

    def go(folder, resume=False, then=lambda trainer: None):
        callbacks = [fitkit.LambdaCallback(on_tick=then)]
        return run(spec, out=folder, resume=resume, callbacks=callbacks, every_steps=3)[1].model

    whole = go(tmp_path / "whole")
    with pytest.raises(Killed):
        go(tmp_path / "cut", then=kill)
    resumed = go(tmp_path / "cut", resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


class Plain(Callback):
    """An average without torch.no_grad, and a limit."""

    def on_train_begin(self, trainer):
        self.weights = list(trainer.model.parameters())
        self.averages = [weight.detach().clone() for weight in self.weights]
        self.losses = []

    def after_update(self):
        for average, weight in zip(self.averages, self.weights, strict=True):
            weight.clamp_(-0.3, 0.3)
            average.lerp_(weight, 0.1)

    def on_epoch_end(self, trainer):
        self.losses.append(trainer.row["loss"])


def test_no_gradient_is_taken_of_what_a_callback_does_and_its_notes_make_no_new_graph():
    eager, compiled = Plain(), Plain()
    one, other = train(False, callbacks=[eager]), train(True, callbacks=[compiled])
    assert furthest(other.model, one.model) <= 1e-5 and other.compiled == "whole steps"
    for callback in (eager, compiled):
        assert not any(average.requires_grad for average in callback.averages) and len(callback.losses) == 9
    torch.testing.assert_close(compiled.averages, eager.averages, rtol=1e-4, atol=1e-6)
    assert sum(map(len, other._train_step.graphs.values())) == 1
