"""How steps are taken is a function of what is declared: short runs stay eager and long ones are compiled."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import fitkit
from fitkit.engine import devices, tier
from fitkit.engine.batches import ArrayBatches
from fitkit.engine.loading import LoaderBatches
from fitkit.engine.tier import choose_tier
from fitkit.engine.whole_step import WholeStep
from fitkit.session import run
from fitkit.spec.options import FitOptions

X, Y = torch.randn(640, 8), torch.arange(640) % 3
TOTAL = int(tier.break_even(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)), 1e5))
LONG_ENOUGH = TOTAL // 20  # epochs: there are 20 steps in each


def declared(epochs, fit=None, **more):
    options = {"epochs": epochs, "batch_size": 32, "device": "cpu", **(fit or {})}
    return {"splits": {"random": {"val": 0}}, **more, "fit": options}


def chosen(epochs, model=None, watch=(), **more):
    model = model or nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    return fitkit.build(declared(epochs, **more), model=model, data=(X, Y), callbacks=watch).tier


pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Dynamo|.*does not support|.*online softmax"),
]
needs_compiler = pytest.mark.skipif(bool(devices.can_compile()), reason=devices.can_compile() or "there is one")


def test_a_short_run_stays_eager_and_says_why():
    short = chosen(10)
    assert (short.compiles, short.first, short.threads) == ("", 0, 1)
    assert str(short) == "steps: eager: 200 steps are fewer than the 98,000 from which compilation pays"


@needs_compiler
def test_a_long_run_is_compiled_from_its_first_epoch():
    long = chosen(LONG_ENOUGH)
    assert (long.compiles, long.first, long.steps, long.all_steps) == ("whole steps", 1, 5, False)
    assert str(long) == "steps: whole steps compiled: there are more steps than the 98,000 from which compilation pays"
    longer = chosen(4 * LONG_ENOUGH)
    assert longer.steps == 10 and longer.all_steps


@needs_compiler
def test_a_run_that_may_end_early_is_compiled_when_it_has_paid_as_much():
    for more in ({"callbacks": {"EarlyStopping": {"monitor": "loss"}}}, {"fit": {"epochs": None, "max_time": 900.0}}):
        late = chosen(4 * LONG_ENOUGH, **more)
        assert (late.first, late.steps, late.all_steps) == (LONG_ENOUGH + 1, 5, False)
        assert f"compiled from epoch {LONG_ENOUGH + 1:,} on" in str(late)


@pytest.mark.parametrize(
    ("model", "more"),
    [
        (
            nn.Sequential(nn.Unflatten(1, (4, 2)), nn.TransformerEncoderLayer(2, 1, 4), nn.Flatten(), nn.Linear(8, 3)),
            {},
        ),
        (nn.Sequential(nn.Linear(8, 5000), nn.Linear(5000, 500), nn.Linear(500, 3)), {}),
        (None, {"fit": {"out_of_memory": "halve"}}),
        (None, {"watch": [fitkit.LambdaCallback(on_step_end=lambda trainer: None)]}),
    ],
    ids=["attention", "much arithmetic", "batches that may be halved", "a callback that watches each step"],
)
def test_what_compilation_would_not_make_faster_stays_eager(model, more):
    assert chosen(100 * LONG_ENOUGH, model, **more).compiles == ""


@needs_compiler
def test_averaged_weights_are_part_of_compiled_steps():
    assert chosen(LONG_ENOUGH, callbacks={"EMA": 0.9}) == chosen(LONG_ENOUGH)


@needs_compiler
def test_steps_of_convolutions_are_compiled_one_a_call_and_larger_ones_later():
    small = nn.Sequential(nn.Unflatten(1, (1, 8)), nn.Conv1d(1, 4, 3), nn.Flatten(), nn.Linear(24, 3))
    found = chosen(LONG_ENOUGH, small)
    assert (found.compiles, found.first, found.steps) == ("whole steps", 1, 1)
    large = nn.Sequential(nn.Unflatten(1, (1, 8)), nn.Conv1d(1, 9000, 3), nn.Conv1d(9000, 400, 3), nn.Flatten())
    large.append(nn.Linear(1600, 3))
    built = fitkit.build(declared(1), model=large, data=(X, Y))
    work = tier.work_of(large, built.train, built.flops)
    steps = tier.break_even(large, work)
    assert work > tier.CALLS_WORK and steps * work == pytest.approx(tier.LONG_WORK, rel=0.01)
    assert chosen(int(steps) // 20 - 1, large).compiles == ""
    assert chosen(int(steps) // 20 + 1, large).compiles == "whole steps"


def test_what_pays_is_a_function_of_the_network_that_falls_with_its_layers():
    nets = [nn.Sequential(*(nn.Linear(4, 4) for _ in range(layers))) for layers in (1, 3, 8, 30)]
    assert [tier.break_even(net, 1e6) for net in nets] == [132_000, 98_000, 75_000, 59_000]
    assert tier.break_even(nets[0], 1e9) == float("inf")


GPU = torch.device("cuda:0")


def chosen_on_gpu(epochs=10, model=None, train=None, device=GPU, declared=True, **fit):
    options = FitOptions(epochs=epochs, **fit)
    train = train or ArrayBatches(X, Y, batch_size=32)
    total = train.per_epoch * epochs if train.per_epoch and epochs else None
    model = model or nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    whole = WholeStep.can(options, device, None)
    facts = {"flops": None, "whole": whole, "watched": False, "total": total, "may_stop": True}
    return choose_tier(options, model, train, device=device, declared=declared, **facts)


def test_on_a_gpu_nothing_is_captured_by_itself_yet():
    assert chosen_on_gpu().compiles == "" and "fit.compile: true takes them" in chosen_on_gpu().why


def test_on_a_gpu_small_declared_steps_are_captured(monkeypatch):
    monkeypatch.setattr(tier, "CAPTURES_BY_ITSELF", True)
    small = chosen_on_gpu()
    assert (small.compiles, small.first, small.steps, small.all_steps) == ("whole steps captured", 1, 1, True)
    assert str(small) == ("steps: whole steps captured: they are so small that launching their kernels takes longest")
    assert small.captured and small.whole and not small.compiles_forward and not small.compiles_evaluation
    assert small.without_graphs == "" and small.threads is None


@pytest.mark.parametrize(
    ("why", "changes"),
    [
        ("20 steps are fewer than the 100 from which a capture pays", {"epochs": 1}),
        ("code of your own has a part in them", {"declared": False}),
        ("a step is more than small kernels", {"model": nn.Linear(40_000, 20_000, device="meta")}),
        ("a step is more than small kernels", {"model": nn.LSTM(8, 8)}),
        ("out_of_memory: halve", {"out_of_memory": "halve"}),
        ("batches that a loader reads", {"train": LoaderBatches(TensorDataset(X, Y), batch_size=32, device=GPU)}),
        ("fit.compile is false", {"compile": False}),
    ],
)
def test_on_a_gpu_what_a_capture_does_not_make_faster_or_might_get_wrong_stays_eager(monkeypatch, why, changes):
    monkeypatch.setattr(tier, "CAPTURES_BY_ITSELF", True)
    found = chosen_on_gpu(**changes)
    assert found.compiles == "" and found.first == 0 and why in found.why


def test_on_a_gpu_what_is_asked_for_is_compiled_and_captured():
    asked = chosen_on_gpu(1, compile=True, declared=False)
    assert (asked.compiles, asked.why) == ("whole steps captured", "fit.compile is true")
    assert asked.compiles_forward and asked.compiles_evaluation and asked.without_graphs == "model and loss"
    assert not chosen_on_gpu(model=nn.Linear(40_000, 20_000, device="meta"), compile=True).all_steps
    loader = LoaderBatches(TensorDataset(X, Y), batch_size=32, device=GPU)
    for changes in ({"train": loader}, {"activation_checkpointing": True}, {"out_of_memory": "halve"}):
        assert chosen_on_gpu(compile=True, **changes).compiles == "model and loss"
    assert not WholeStep.can(FitOptions(), GPU, torch.amp.GradScaler("cpu"))
    assert chosen_on_gpu(compile=True, device=torch.device("mps")).compiles == "model and loss"


def test_what_is_asked_for_is_compiled_however_short_it_is(monkeypatch):
    monkeypatch.setattr(devices, "can_compile", lambda: "")
    asked = chosen(1, fit={"compile": True})
    assert asked.compiles == "whole steps" and asked.asked and asked.why == "fit.compile is true"
    assert chosen(10**6, fit={"compile": False}).compiles == ""


@pytest.mark.skipif(" " in torch.__file__, reason="torch.compile does not work from a path with a space")
def test_without_a_compiler_auto_stays_eager_and_true_is_an_error(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "needs a C++ compiler, and 'no-such-compiler' is no program here" in chosen(LONG_ENOUGH).why
    with pytest.raises(fitkit.SpecError, match="fit.compile: torch.compile needs a C\\+\\+ compiler"):
        chosen(1, fit={"compile": True})


def test_the_choice_is_in_the_run_folder(tmp_path):
    model = nn.Linear(8, 3)
    run(fitkit.load_spec(declared(1)), model=model, data=(X, Y), out=tmp_path / "run")
    environment = json.loads((tmp_path / "run" / "env.json").read_text())
    assert environment["compiled"] == "" and environment["compiled_from_epoch"] is None
    assert environment["compiled_or_not_because"].startswith("20 steps are fewer than")
    assert environment["threads"] == 1


@needs_compiler
def test_steps_before_the_first_compiled_epoch_are_those_of_an_eager_run(monkeypatch, tmp_path):
    monkeypatch.setenv("FITKIT_CACHE", str(tmp_path))

    def train(first):
        torch.manual_seed(0)
        trainer = fitkit.build(declared(3, fit={"compile": bool(first)}), model=nn.Linear(8, 3), data=(X, Y))
        if first:
            step = trainer._train_step
            step.tier = replace(step.tier, first=first)
        return trainer.fit()["loss"], trainer

    (eager, _), (late, trainer) = train(0), train(3)
    assert late[:2] == eager[:2] and late[2] == pytest.approx(eager[2], rel=1e-6)
    assert sum(map(len, trainer._train_step.graphs.values())) == 1


def test_threads_and_denormals_are_put_back_after_a_fit():
    before = torch.get_num_threads()
    seen = []

    def look(trainer):
        seen.append((torch.get_num_threads(), float(torch.tensor(1e-40) * 0.5)))

    callback = fitkit.LambdaCallback(on_epoch_end=look)
    fitkit.fit(declared(1), model=nn.Linear(8, 3), data=(X, Y), callbacks=[callback])
    assert seen == [(1, 0.0)]
    assert torch.get_num_threads() == before and float(torch.tensor(1e-40) * 0.5) > 0
