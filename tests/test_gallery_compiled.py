"""The deterministic gate of the gallery: what is compiled and when, what waits for a number, what a step dispatches."""

import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import fitkit
from fitkit.engine import tier, whole_step
from fitkit.engine.devices import can_compile
from fitkit.engine.step import TrainStep
from fitkit.parts import models
from fitkit.trainer import Trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Dynamo|.*does not support|.*online softmax"),
]
needs_compiler = pytest.mark.skipif(bool(can_compile()), reason=can_compile() or "there is one")

SPECS = sorted((Path(__file__).resolve().parent.parent / "specs").glob("*.yaml"))
SPECS = [path for path in SPECS if path.stem != "breast_cancer_kfold"]  # a fold takes the steps of breast_cancer
walk = pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
EPOCHS = 3
# As much of a spec as compiles in seconds: its kinds of layers, loss, optimizer and callbacks stay. An epoch is six
# steps of full size, three a call where they are small, the first of them eager, and a ragged end.
SMALLER = {
    "breast_cancer": {"fit.batch_size": 53},
    "char_gpt": {"model": {"gpt": {"width": 16, "depth": 1, "heads": 2, "dropout": 0.0}}, "data.text.length": 16},
    "csv_tabular": {"fit.batch_size": 31},
    "diabetes": {"fit.batch_size": 42},
    "digits": {"fit.batch_size": 200},
    "iris": {"fit.batch_size": 19},
    "sequence_lstm": {"model": {"lstm": {"width": 8, "dropout": 0.3}}},
}


@pytest.fixture
def smaller(tmp_path, monkeypatch):
    """Return a function that gives the overrides by which a spec of the gallery is small, and runs for three epochs."""
    resnet = models._resnet
    monkeypatch.setattr(models, "_resnet", lambda *a, blocks, **k: resnet(*a, **{**k, "blocks": 1}))

    def overrides(path, **more):
        chosen = {"fit.epochs": EPOCHS, "fit.device": "cpu", **SMALLER.get(path.stem, {}), **more}
        if path.stem == "char_gpt":
            monkeypatch.setattr(tier, "MOST_STEPS_A_CALL", 1)  # its two batches a step are large enough a graph
            text = (path.parent / "data" / "python_topics.txt").read_text("utf-8")
            (tmp_path / "text.txt").write_text(text[:3500], "utf-8")
            chosen["data.text.path"] = str(tmp_path / "text.txt")
        return chosen

    return overrides


def count_calls(monkeypatch):
    """Return two lists that grow: by each graph that is compiled, and by each call of one."""
    made, called, compiled = [], [], whole_step.compile_graph

    def compile_graph(*arguments, **options):
        graph = compiled(*arguments, **options)
        made.append(1)
        return whole_step.Graph(lambda *a: (called.append(1), graph.call(*a))[1], graph.holds, graph.save)

    monkeypatch.setattr(whole_step, "compile_graph", compile_graph)
    return made, called


@needs_compiler
@walk
def test_nothing_is_compiled_after_the_first_epoch(path, smaller, monkeypatch):
    """Of whole steps or of model and loss, ragged batches and evaluation; and a graph is called as often as planned."""
    made, called = count_calls(monkeypatch)
    eager, epochs = [], []
    taken = TrainStep.__call__
    monkeypatch.setattr(TrainStep, "__call__", lambda *arguments: (eager.append(1), taken(*arguments))[1])

    def look(trainer):
        epochs.append((len(made), dict(torch._dynamo.utils.counters["stats"]), len(called), len(eager)))
        torch.compiler.set_stance("fail_on_recompile")

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    callback = fitkit.LambdaCallback(on_epoch_end=look)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            overrides = smaller(path, **{"fit.compile": True})
            trainer = fitkit.build(path, overrides=overrides, callbacks=[callback])
            trainer.fit()
    finally:
        torch.compiler.set_stance("default")
    assert len(epochs) == EPOCHS
    assert [epoch[:2] for epoch in epochs] == [epochs[0][:2]] * EPOCHS
    step, train = trainer._train_step, trainer.train
    full, ragged = divmod(train.samples, train.batch_size * step.eager.accumulate)
    assert ragged
    every, together = full + 1, full // step.steps
    *_, (_, _, calls, eager_steps), (_, _, all_calls, all_eager_steps) = epochs
    if path.stem == "sequence_lstm":  # torch gives no gradients of these in a graph
        assert trainer.compiled == "model and loss" and not made
        assert any("wrap RNN, GRU, or LSTM" in str(warning.message) for warning in said)
        assert (all_calls, all_eager_steps - eager_steps) == (0, every)
        return
    assert trainer.compiled == "whole steps" and len(made) == 1
    assert not [str(warning.message) for warning in said if "one graph" in str(warning.message)]
    assert all_calls - calls == together
    assert all_eager_steps - eager_steps == every - together * step.steps


class Dispatched(TorchDispatchMode):
    """Writes down every operator that is dispatched while it is on."""

    def __init__(self):
        super().__init__()
        self.names, self.on = [], True

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if self.on and function.namespace != "profiler":
            self.names.append(str(function).removeprefix("aten."))
        return function(*args, **(kwargs or {}))


# They hand a value, or a shape that depends on values, to the host, which on a GPU waits for all that was asked before.
WAITS = {"_local_scalar_dense", "item", "is_nonzero", "equal", "allclose", "nonzero", "masked_select", "_unique2"}
WAITS |= {"unique_dim", "unique_consecutive", "repeat_interleave", "bincount", "is_pinned", "_to_cpu", "_is_any_true"}
WAITS |= {"_is_all_true", "_assert_async", "histc"}


@pytest.fixture
def dispatched(monkeypatch):
    """Return what training dispatches from the first batch of an epoch to its last, but for what a clock decides."""
    dispatched, epoch, call = Dispatched(), Trainer._train_epoch, Trainer._call

    def train_epoch(trainer, begun):
        with dispatched:
            epoch(trainer, begun)

    def hook(trainer, name):
        before, dispatched.on = dispatched.on, name != "tick"
        call(trainer, name)
        dispatched.on = before

    monkeypatch.setattr(Trainer, "_train_epoch", train_epoch)
    monkeypatch.setattr(Trainer, "_call", hook)
    return dispatched


@walk
def test_no_step_waits_for_a_number(path, smaller, dispatched):
    """What looks at the loss ten times a second does, and the end of an epoch."""
    trainer = fitkit.build(path, overrides=smaller(path, **{"fit.compile": False, "fit.epochs": 2}))
    trainer.fit()
    assert trainer.step > 2 and len(dispatched.names) > 10 * trainer.step
    waiting = [name for name in dispatched.names if name.split(".")[0] in WAITS]
    assert not waiting


def steady_step(path, dispatched):
    """Return the trainer of a spec, and the operators of its sixth step, from the gathering of its rows on."""
    ends = []
    look = fitkit.LambdaCallback(on_step_end=lambda trainer: ends.append(len(dispatched.names)))
    trainer = fitkit.build(path, overrides={"fit.epochs": 1, "fit.device": "cpu"}, callbacks=[look])
    trainer.fit()
    return trainer, dispatched.names[ends[4] : ends[5]]


def lean_step(trainer):
    """Return the operators of a step of a loop that is written by hand, for the same model, data and optimizer."""
    train, model = trainer.train, trainer.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    loss_sum, right = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    one = torch.tensor(1 / 64)
    for dispatched in (Dispatched(), Dispatched()):  # the second: the optimizer has its state
        rows = train.rows[:64]
        with dispatched:
            x, y = train.x.index_select(0, rows), train.y.index_select(0, rows)
            output = model((x.float() - 0.0) * (1 / 16))
            loss = F.cross_entropy(output, y, reduction="sum")
            loss.backward(one)
            optimizer.step()
            optimizer.zero_grad()
            loss_sum += loss.detach()
            right += (output.detach().argmax(-1) == y).sum(0, dtype=torch.float64)
    return dispatched.names


MOST = 88  # operators
# Where a batch begins in the epoch's rows; the loss apart from its graph; and a second group, which is not decayed.
OURS = ["_foreach_add_.Scalar", "_fused_adamw_.default", "detach.default", "slice.Tensor"]


def test_a_step_dispatches_what_a_lean_loop_does(dispatched):
    """Nobody adds an operation to the hot path unseen: `digits.yaml`, eager."""
    trainer, names = steady_step(SPECS[0].parent / "digits.yaml", dispatched)
    more = Counter(names) - Counter(lean_step(trainer))
    assert len(names) <= MOST, f"{len(names)} operators: {names}"
    assert sorted(more.elements()) == OURS, f"beyond a lean loop: {more}"
