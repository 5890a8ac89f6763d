"""A step as one graph trains what eager steps train: for every optimizer, for models with norms, masks and windows."""

import os
import random
import subprocess
import sys
import warnings

import pytest
import torch
from small_nets import KINDS, TOKENS, X, Y, declared, furthest, inputs, network
from torch import nn

import fitkit
from fitkit.engine import tier, whole_step
from fitkit.engine.devices import check_compile
from fitkit.engine.private import NoGraph, compile_graph
from fitkit.errors import SpecError
from fitkit.parts.optimizers import optimizers
from fitkit.session import run

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Dynamo|.*does not support|.*online softmax"),
]
try:
    check_compile(True)
except SpecError as error:
    pytest.skip(str(error), allow_module_level=True)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FITKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "graphs"


def fit(kind, optimizer, compiled, epochs=13, together=1, **fit):
    data = {"train": (inputs(kind), Y)}
    spec = {"optimizer": optimizer, "seed": 5}
    spec["fit"] = {"epochs": epochs, "batch_size": 13, "device": "cpu", "compile": compiled, **fit}
    trainer = fitkit.build(spec, model=network(kind), data=data)
    if compiled:
        trainer._train_step.steps = together
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # a step that is no graph
        trainer.fit()
    return trainer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(set(optimizers) - {"Muon", "Rprop"}))
def test_fifty_steps_agree_with_eager_ones(name, kind):
    eager, compiled = (fit(kind, declared(name), whether) for whether in (False, True))
    assert compiled.step == 52 and len(compiled._train_step.graphs) == 1
    assert furthest(compiled.model, eager.model) <= 1e-5


MORE_OPTIONS = [  # than L2 or decoupled weight decay, which all of them are tried with
    ("SGD", {"momentum": 0.9}),
    ("SGD", {"momentum": 0.9, "nesterov": True}),
    ("SGD", {"momentum": 0.9, "dampening": 0.1}),
    ("Adam", {"amsgrad": True}),
    ("Adam", {"decoupled_weight_decay": True}),
    ("NAdam", {"decoupled_weight_decay": True, "momentum_decay": 0.01}),
    ("RAdam", {"decoupled_weight_decay": True}),
    ("Adagrad", {"lr_decay": 0.01, "initial_accumulator_value": 0.1}),
    ("RMSprop", {"momentum": 0.9, "centered": True}),
]


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in sorted(set(optimizers) - {"Muon", "Rprop"})), *MORE_OPTIONS],
    ids=lambda value: value if isinstance(value, str) else "-".join(value) or "-",
)
def test_weight_decay_and_other_options_agree_with_eager_steps(name, options):
    spec = {name: {"lr": 0.01, "weight_decay": 0.05, "no_decay": "none", **options}}
    eager, compiled = (fit("mlp", spec, whether, epochs=3) for whether in (False, True))
    assert compiled._train_step.graphs and not compiled._train_step.refused
    assert furthest(compiled.model, eager.model) <= 1e-5


def test_rprop_is_no_whole_step_and_trains_the_same():
    def train(compiled):
        spec = {"optimizer": {"Rprop": 0.01}, "seed": 5}
        spec["fit"] = {"epochs": 3, "batch_size": 13, "device": "cpu", "compile": compiled}
        trainer = fitkit.build(spec, model=network("transformer"), data={"train": (TOKENS, Y)})
        trainer.fit()
        return trainer

    eager = train(False)
    with pytest.warns(UserWarning, match="the step of Rprop is no function of tensors"):
        compiled = train(True)
    assert compiled.compiled == "model and loss"
    assert compiled.history["loss"] == pytest.approx(eager.history["loss"], rel=1e-3)


def test_muon_agrees_while_bf16_does_not_tell_the_difference():
    """Its Newton-Schulz iteration in bf16 turns 1e-7 in a weight into 1e-2 within fifty steps."""
    eager, compiled = (fit("mlp", {"Muon": {"lr": 0.001}}, whether, epochs=1) for whether in (False, True))
    assert compiled.step == 4 and compiled._train_step.graphs
    assert furthest(compiled.model, eager.model) <= 1e-3


@pytest.mark.parametrize(
    "fit_keys", [{"clip_norm": 0.1}, {"accumulate": 2}, {"batch_size": 10, "accumulate": 2, "clip_norm": 0.1}]
)
def test_clipping_accumulation_and_ragged_ends_agree(fit_keys):
    eager, compiled = (fit("mlp", declared("AdamW"), whether, **fit_keys) for whether in (False, True))
    assert compiled._train_step.graphs and not compiled._train_step.refused
    assert furthest(compiled.model, eager.model) <= 1e-5
    for column in ("loss", "lr"):
        assert compiled.history[column] == pytest.approx(eager.history[column], rel=1e-6)


SPEC = {
    "data": "iris",
    "model": [{"Linear": 8}, "ReLU", {"Dropout": 0.2}, {"Linear": "outputs"}],
    "schedule": {"cosine": {"warmup": 3}},
    "fit": {"epochs": 3, "batch_size": 16, "device": "cpu", "compile": True},
}


def bits(trainer):
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def count_compilations(monkeypatch):
    made, compiled = [], whole_step.compile_graph
    monkeypatch.setattr(whole_step, "compile_graph", lambda *a, **k: (made.append(1), compiled(*a, **k))[1])
    return made


def test_a_run_that_is_not_long_compiles_one_graph(monkeypatch):
    compilations = count_compilations(monkeypatch)
    trainer = fitkit.build(SPEC)
    trainer.fit()
    assert len(compilations) == 1 and trainer.compiled == "whole steps"
    assert trainer._train_step.steps == 3  # twice that, and two eager steps, for the eight of an epoch


def test_steps_together_are_the_same_steps_and_the_next_run_starts_compiled(cache, monkeypatch):
    monkeypatch.setattr(tier, "LONG", 0)  # as in a long run
    compilations = count_compilations(monkeypatch)
    first = fitkit.build(SPEC)
    assert first._train_step.steps == 7  # all full batches of an epoch
    history = first.fit()
    made = len(compilations)
    assert made == 2 and not first._train_step.refused  # those seven steps, and the ragged one
    assert history["lr"] == pytest.approx(fitkit.fit(SPEC, overrides={"fit.compile": False})["lr"], rel=1e-12)
    second = fitkit.build(SPEC)
    again = second.fit()
    assert len(compilations) == made  # all from the user's cache
    assert same(bits(first), bits(second)) and again["loss"] == history["loss"]
    assert cache.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in cache.iterdir())

    for path in cache.iterdir():  # damage, and a graph that others may have written
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    third = fitkit.build(SPEC)
    third.fit()
    assert len(compilations) == 2 * made and same(bits(first), bits(third))
    next(iter(cache.iterdir())).chmod(0o666)
    fitkit.build(SPEC).fit()
    assert len(compilations) == 2 * made + 1
    other = fitkit.build(SPEC, overrides={"seed": 1})
    other.fit()
    assert len(compilations) == 2 * made + 1  # the seed is no part of a graph
    assert not same(bits(first), bits(other))


@pytest.mark.parametrize("together", [1, 4])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_windows_from_any_place_are_the_rest_of_the_epoch(accumulate, together):
    spec = {"fit": {"batch_size": 4, "accumulate": accumulate, "device": "cpu", "compile": True}}
    trainer = fitkit.build(spec, model=nn.Linear(2, 3), data={"train": (torch.randn(51, 2), Y[:51])})  # 13 batches
    step = trainer._train_step
    step.steps = together

    def rows(start):
        calls = list(step.windows(trainer.train, 1, start, None))
        return sum(map(len, calls)), [row for call in calls for row in call.rows.tolist()]

    batches, whole = rows(0)
    assert batches == trainer.train.per_epoch == 13 and sorted(whole) == list(range(51))
    for taken in [*range(0, 13, accumulate), 13]:
        assert rows(taken) == (13 - taken, whole[4 * taken :])


def test_a_killed_run_takes_the_same_calls_and_ends_in_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(tier, "MOST_STEPS_A_CALL", 4)  # an epoch of calls of 3, 3, 1 and 1 steps

    class Killed(BaseException):
        pass

    def kill(trainer):
        if trainer.epoch == 2:
            raise Killed

    def go(folder, resume=False, then=lambda trainer: None):
        callbacks = [fitkit.LambdaCallback(on_evaluate_begin=then)]
        return run(fitkit.load_spec(SPEC), out=folder, resume=resume, callbacks=callbacks, every_steps=6)[1]

    whole = go(tmp_path / "whole")
    with pytest.raises(Killed):
        go(tmp_path / "cut", then=kill)
    kept = sorted(path.name for path in (tmp_path / "cut" / "checkpoints").glob("step-*"))
    assert kept == ["step-14", "step-6"]  # the former within the second epoch
    resumed = go(tmp_path / "cut", resume=True)
    assert resumed.compiled == "whole steps" and same(bits(whole), bits(resumed))
    assert whole.history["loss"] == resumed.history["loss"]


class Counted(nn.Module):
    """Counts its calls, by which guards of a graph no longer hold after the first one."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.drop, self.calls = nn.Linear(36, 3), nn.Dropout(0.5), 0

    def forward(self, x):
        self.calls += 1
        return self.layer(self.drop(x.flatten(1)))


@pytest.mark.filterwarnings("ignore:a training step cannot be one graph")
def test_a_resumed_run_remembers_that_its_steps_are_no_graphs(tmp_path, monkeypatch):
    monkeypatch.setattr(tier, "break_even", lambda model, work: 1)  # auto compiles

    class Killed(BaseException):
        pass

    def go(folder, resume=False, killed=False):
        def kill(trainer):
            if killed and trainer.epoch == 2:
                raise Killed

        spec = {"fit": {"epochs": 3, "batch_size": 13, "device": "cpu", "check_data": False}}
        callbacks, data = [fitkit.LambdaCallback(on_evaluate_begin=kill)], {"train": (X, Y), "val": (X, Y)}
        wanted = fitkit.load_spec(spec)
        return run(wanted, model=Counted(), data=data, out=folder, resume=resume, callbacks=callbacks, every_steps=3)[1]

    whole = go(tmp_path / "whole")
    with pytest.raises(Killed):
        go(tmp_path / "cut", killed=True)
    resumed = go(tmp_path / "cut", resume=True)
    assert resumed._train_step.refused == whole._train_step.refused != "" and not resumed._train_step.graphs
    assert same(bits(whole), bits(resumed)) and whole.history["loss"] == resumed.history["loss"]


def test_a_cache_that_cannot_be_written_is_said_and_training_goes_on(cache):
    cache.parent.write_text("a file")
    with pytest.warns(UserWarning, match="could not be kept for the next run: .*Error"):
        history = fitkit.fit(SPEC, overrides={"fit.epochs": 1})
    assert len(history) == 1


class Breaks(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(36, 3)

    def forward(self, x):
        x = self.layer(x.flatten(1))
        return x * 2 if float(x.detach().sum()) > 0 else x * 2


def test_a_module_that_is_no_graph_says_where_and_trains_the_same():
    def train(compiled):
        torch.manual_seed(0)
        spec = {"fit": {"epochs": 2, "batch_size": 13, "device": "cpu", "compile": compiled}}
        return fitkit.Model(Breaks()).fit(spec, data={"train": (X, Y)})

    with pytest.warns(UserWarning, match=r"cannot be one graph, .*test_whole_step.py:\d+"):
        history = train(True)
    assert history["loss"] == pytest.approx(train(False)["loss"], rel=1e-6)


class Counts(nn.Module):
    """Takes its second half of training otherwise, by an attribute that its own code changes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(36, 3)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.layer(x.flatten(1)) * (1.0 if self.calls < 20 else 3.0)


def test_a_module_that_changes_itself_is_not_frozen_into_a_graph():
    def train(compiled):
        trainer = fitkit.build(
            {"fit": {"epochs": 10, "batch_size": 13, "device": "cpu", "compile": compiled}},
            model=Counts(),
            data={"train": (X, Y)},
            callbacks=[fitkit.LambdaCallback(on_step_end=lambda trainer: None)],  # one step a call
        )
        trainer.fit()
        return trainer

    eager = train(False)
    with pytest.warns(UserWarning, match="code of your own changes what it does"):
        compiled = train(True)
    assert compiled.model.calls == eager.model.calls == 41
    assert furthest(compiled.model, eager.model) <= 1e-5


def test_torch_s_cache_is_never_asked_with_a_number_that_the_seed_decides(monkeypatch):
    drawn = []

    def compiler(function, **options):
        drawn.append(random.random())
        raise NotImplementedError

    monkeypatch.setattr(torch, "compile", compiler)
    for _ in range(2):
        random.seed(5)
        with pytest.raises(NoGraph):
            compile_graph(len, (), guarded=True)
    assert drawn[0] != drawn[1]
    after = random.random()
    random.seed(5)
    assert after == random.random(), "compilation moved the stream of random numbers"


@pytest.mark.parametrize("where", ["parameter", "optimizer"])
def test_hooks_of_the_user_are_called_as_in_eager_steps(where):
    def train(compiled):
        torch.manual_seed(0)
        module, called = nn.Linear(36, 3), []
        spec = {"fit": {"epochs": 2, "batch_size": 13, "device": "cpu", "compile": compiled}}
        trainer = fitkit.build(spec, model=nn.Sequential(nn.Flatten(), module), data={"train": (X, Y)})
        if where == "parameter":
            module.weight.register_hook(lambda gradient: called.append(1))
        else:
            trainer.optimizer.register_step_post_hook(lambda *_: called.append(1))
        trainer.fit()
        return len(called)

    with pytest.warns(UserWarning, match="hooks on parameters or on the optimizer would not be called"):
        assert train(True) == train(False) == 8


def test_an_option_that_a_callback_changes_is_in_the_next_epoch_s_graph():
    def train(compiled):
        def change(trainer):
            if trainer.epoch == 2:
                for group in trainer.optimizer.param_groups:
                    group["weight_decay"] = 5.0

        torch.manual_seed(0)
        module = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
        spec = {"optimizer": {"AdamW": 0.01}}
        spec["fit"] = {"epochs": 3, "batch_size": 13, "device": "cpu", "compile": compiled}
        callbacks = [fitkit.LambdaCallback(on_epoch_begin=change)]
        fitkit.build(spec, model=module, data={"train": (X, Y)}, callbacks=callbacks).fit()
        return module

    assert furthest(train(True), train(False)) <= 1e-5


def test_a_graph_that_computes_something_else_is_found_out_at_its_first_call(monkeypatch):
    """With the pass that keeps factors taken away, torch 2.13 makes L2 weight decay 20 times as strong."""
    monkeypatch.setattr("fitkit.engine.passes.PlainSums.__call__", lambda self, graph: None)
    monkeypatch.setattr("fitkit.engine.passes.PlainSums.uuid", lambda self: "none")

    def train(compiled):
        torch.manual_seed(1)
        module = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.Tanh(), nn.Linear(16, 3))
        spec = {"optimizer": {"SGD": {"lr": 0.01, "weight_decay": 0.05}}, "seed": 5}
        spec["fit"] = {"epochs": 3, "batch_size": 13, "device": "cpu", "compile": compiled}
        trainer = fitkit.build(spec, model=module, data={"train": (X, Y)})
        trainer.fit()
        return trainer

    eager = train(False)
    with pytest.warns(
        UserWarning, match=r"torch compiled another step than the eager one: \"1.weight\" is off by \d+%"
    ):
        checked = train(True)
    assert checked._train_step.refused and checked.compiled == "model and loss"
    assert furthest(checked.model, eager.model) <= 1e-5
    assert checked.history["loss"] == pytest.approx(eager.history["loss"], rel=1e-6)


def test_optimizer_state_that_a_callback_loads_is_in_the_next_epoch_s_graph():
    """load_state_dict makes new tensors, of the same shapes."""

    def train(compiled):
        def reset(trainer):
            if trainer.epoch == 3:
                state = trainer.optimizer.state_dict()
                for entries in state["state"].values():
                    entries |= {name: torch.zeros_like(value) for name, value in entries.items()}
                trainer.optimizer.load_state_dict(state)

        torch.manual_seed(0)
        module = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
        spec = {"optimizer": {"AdamW": 0.01}}
        spec["fit"] = {"epochs": 4, "batch_size": 13, "device": "cpu", "compile": compiled}
        callbacks = [fitkit.LambdaCallback(on_epoch_begin=reset)]
        trainer = fitkit.build(spec, model=module, data={"train": (X, Y)}, callbacks=callbacks)
        trainer.fit()
        return module, [float(entries["step"]) for entries in trainer.optimizer.state.values()]

    (compiled, counted), (eager, expected) = train(True), train(False)
    assert counted == expected == [8.0, 8.0] and furthest(compiled, eager) <= 1e-5


def test_a_compiler_that_does_not_work_leaves_an_eager_run(tmp_path):
    (tmp_path / "spec.yaml").write_text(
        "{data: iris, model: [{Linear: 8}, ReLU, {Linear: outputs}], fit: {epochs: 2, compile: true, device: cpu}}"
    )
    command = [sys.executable, "-m", "fitkit", "fit", str(tmp_path / "spec.yaml")]
    nothing = {"CXX": "/bin/false", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "torch")}
    done = subprocess.run(command, env={**os.environ, **nothing}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "torch cannot compile model and loss, so training stays eager: InvalidCxxCompiler" in done.stderr
