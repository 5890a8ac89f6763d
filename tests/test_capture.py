"""What is true of captured steps on every machine: they train what eager steps do, and nothing while they are recorded.

There is no CUDA graph on a CPU: `record` is replaced by one that runs the step as it is, at every call, as a recording
would: from the same memory to the same memory. What a GPU does with it is in test_cuda.py.
"""

import random
import sys
from dataclasses import replace

import pytest
import torch
from small_nets import KINDS, X, Y, declared, furthest, inputs, network
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fitkit
from fitkit.engine import capture as captures
from fitkit.engine import whole_step
from fitkit.engine.batches import ArrayBatches
from fitkit.engine.devices import can_compile
from fitkit.engine.graph import Parts, steps_on_rows
from fitkit.engine.loading import LoaderBatches
from fitkit.engine.private import NoGraph
from fitkit.engine.seeds import host_random_state
from fitkit.engine.tier import CAPTURED
from fitkit.engine.updates import CAPTURABLE, count_on_device, updates_of
from fitkit.parts.optimizers import optimizers
from fitkit.resume import capture as state_of

HELD = sorted(set(optimizers) - {"Muon", "Rprop", "Adafactor"})  # the others ask the host for a number


@pytest.fixture(autouse=True)
def a_recording_that_a_cpu_can_make(monkeypatch):
    """Let torch's optimizers take their ways for a GPU, and a recording be the step itself."""
    for name in ("adam", "adadelta", "adamax", "asgd", "nadam", "radam", "rmsprop"):
        module = sys.modules[f"torch.optim.{name}"]
        monkeypatch.setattr(module, "_get_capturable_supported_devices", lambda **_: ["cpu"])

    def record(run, device):
        for _ in range(captures.WARM_UP + 1):
            run()
        return run

    monkeypatch.setattr(captures, "record", record)


def build(module, optimizer="AdamW", captured=True, data=(X, Y), callbacks=(), **fit):
    spec = {"optimizer": declared(optimizer) if isinstance(optimizer, str) else optimizer, "seed": 5}
    spec["fit"] = {"epochs": 13, "batch_size": 13, "device": "cpu", "compile": False, **fit}
    trainer = fitkit.build(spec, model=module, data={"train": data}, callbacks=list(callbacks))
    if captured:
        trainer.tier = replace(trainer.tier, compiles=CAPTURED, first=1, all_steps=True)
        trainer._train_step = whole_step.WholeStep(trainer._train_step, trainer.tier)
    return trainer


def fit(kind, optimizer, captured, **options):
    trainer = build(network(kind), optimizer, captured, (inputs(kind), Y), **options)
    trainer.fit()
    return trainer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", HELD)
def test_fifty_steps_agree_with_eager_ones(name, kind):
    eager, captured = (fit(kind, name, whether) for whether in (False, True))
    step = captured._train_step
    assert captured.step == 52 and len(step.graphs) == 1 and not step.refused and not step._has_other_state()
    assert furthest(captured.model, eager.model) <= 1e-5
    assert captured.history["loss"] == pytest.approx(eager.history["loss"], rel=1e-4)


@pytest.mark.parametrize(
    "options", [{"clip_norm": 0.1}, {"accumulate": 2}, {"batch_size": 10, "accumulate": 2, "clip_norm": 0.1}]
)
def test_clipping_accumulation_and_ragged_ends_agree(options):
    eager, captured = (fit("mlp", "Adam", whether, **options) for whether in (False, True))
    assert captured._train_step.graphs and not captured._train_step.refused
    assert furthest(captured.model, eager.model) <= 1e-5


def test_a_schedule_moves_the_learning_rates_of_a_recording():
    def train(captured):
        module = network("mlp")
        trainer = build(module, {"AdamW": {"lr": 0.01, "weight_decay": 0.1, "lr_patterns": {"1.*": 0.02}}}, captured)
        trainer.schedule = lambda step: 1 / (1 + step)
        trainer.fit()
        return trainer

    eager, captured = train(False), train(True)
    assert furthest(captured.model, eager.model) <= 1e-5 and captured.history["lr"] == eager.history["lr"]


class Watched(TorchDispatchMode):
    """Collects what makes the host wait for a GPU, or computes on the host."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.waits.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", sorted(set(optimizers) - {"Muon"}))
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_no_update_that_may_be_captured_reads_a_number(name, decay):
    """By torch's one way to read a number, which stops a recording."""
    more = {} if name == "Rprop" else {"weight_decay": decay, "no_decay": "none"}
    trainer = build(network("mlp"), {name: {"lr": 0.01, **more}}, captured=False, epochs=1)
    trainer.fit()
    count_on_device(trainer.optimizer)
    updates = updates_of(trainer.optimizer, eager=True)
    assert (updates is None) == (name not in HELD)
    if updates is None:
        return
    parameters, lr = trainer._train_step.parameters, torch.tensor([0.01, 0.01], dtype=torch.float64)
    gradients = [torch.randn_like(p.T).T if p.ndim == 2 else torch.randn_like(p) for p in parameters]  # laid otherwise
    before = [p.detach().clone() for p in parameters]
    with torch.no_grad(), Watched() as seen:
        for update in updates:
            update(parameters, gradients, lr)
    assert seen.waits == []
    assert all(not torch.equal(a, b) for a, b in zip(before, parameters, strict=True))


def test_of_torch_s_functions_only_those_that_stay_on_the_device_are_captured():
    assert {"sgd", "adam", "adagrad", "nadam", "rmsprop"} <= CAPTURABLE and "muon" not in CAPTURABLE


def test_an_optimizer_that_counts_on_the_host_is_not_captured():
    module = network("mlp")
    optimizer = torch.optim.AdamW(module.parameters())
    module(X).sum().backward()
    optimizer.step()
    assert updates_of(optimizer, eager=True) is not None
    meta = nn.Parameter(torch.zeros(2, device="meta"))  # stands for a device that is not the host
    meta.grad, elsewhere = torch.zeros_like(meta), torch.optim.AdamW([meta], foreach=False)
    elsewhere.state[meta] = {"step": torch.tensor(1.0), "exp_avg": meta.grad, "exp_avg_sq": meta.grad}
    assert updates_of(elsewhere, eager=True) is None


def test_steps_are_counted_on_the_device_from_the_first_recording_on():
    trainer = fit("mlp", "NAdam", True, epochs=2)
    assert trainer.optimizer.param_groups[0]["capturable"] and not trainer._train_step.refused
    assert len(trainer._train_step.graphs) == 1  # which that flag is no reason to make anew
    assert not fit("mlp", "NAdam", False, epochs=1).optimizer.param_groups[0]["capturable"]


def recorded(module, **changes):
    """Return a trainer after its first step, the graph of its steps, and what it is called with."""
    trainer = build(module, captured=False, max_steps=1, epochs=None, **changes)
    trainer.fit()
    step = trainer._train_step
    parts = Parts(module, step.objective, step.parameters, updates_of(step.optimizer, eager=True), None)
    arguments = parts, trainer.train, torch.arange(13), torch.tensor([[0.01] * 2], dtype=torch.float64)
    return trainer, arguments


def tensors_of(trainer):
    groups, _ = state_of(trainer)
    return {f"{group}.{name}": t for group, kept in groups.items() for name, t in kept.items()}


def test_a_recording_trains_nothing_and_a_call_takes_one_step():
    module = network("cnn")  # with running means
    trainer, arguments = recorded(module)
    before, random_before = tensors_of(trainer), host_random_state()
    graph = captures.capture(steps_on_rows, *arguments)
    after = tensors_of(trainer)
    assert host_random_state() == random_before and all(torch.equal(before[name], after[name]) for name in before)
    total, count, _, _ = graph.call(*arguments)
    assert total.isfinite() and count == 13
    steps = [float(entries["step"]) for entries in trainer.optimizer.state.values()]
    assert steps == [2.0] * len(steps) and module[1].num_batches_tracked == 2


def test_a_recording_that_fails_half_way_leaves_everything_as_it_was(monkeypatch):
    trainer, arguments = recorded(network("cnn"))
    before = tensors_of(trainer)

    def record(run, device):
        run()
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(captures, "record", record)
    with pytest.raises(
        NoGraph, match=r"^CUDA error: operation not permitted when stream is capturing \(.*test_capture"
    ):
        captures.capture(steps_on_rows, *arguments)
    after = tensors_of(trainer)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.is_autocast_cache_enabled()


def test_a_fit_whose_steps_cannot_be_recorded_says_so_once_and_trains_the_same(monkeypatch):
    def record(run, device):
        run()
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    monkeypatch.setattr(captures, "record", record)
    eager = fit("mlp", "AdamW", False)
    with pytest.warns(UserWarning, match="so the steps stay eager: CUDA error: operation not permitted") as said:
        captured = fit("mlp", "AdamW", True)
    assert len(said) == 1 and captured.compiled == "" and furthest(captured.model, eager.model) == 0


REPLACED = {
    "a weight's memory": lambda trainer: setattr(trainer.model[1].weight, "data", trainer.model[1].weight.data.clone()),
    "a buffer": lambda trainer: trainer.model[2].register_buffer("mean", torch.ones(1)),
    "data": lambda trainer: setattr(trainer.train, "x", trainer.train.x.clone()),
    "an attribute": lambda trainer: setattr(trainer.model[2], "factor", 3.0),
    "a hook": lambda trainer: trainer.model[2].register_forward_hook(lambda *_: None),
}


@pytest.mark.parametrize("what", REPLACED)
def test_what_a_recording_cannot_know_of_is_noticed(what):
    module = network("mlp")
    module[2].factor = 2.0
    trainer, arguments = recorded(module)
    graph = captures.capture(steps_on_rows, *arguments)
    assert graph.holds(*arguments)
    REPLACED[what](trainer)
    assert not graph.holds(*arguments)


@pytest.mark.parametrize("captured", [False, True])
def test_optimizer_state_that_a_callback_replaced_is_in_the_next_epoch_s_steps(captured):
    """load_state_dict makes new tensors, of the same shapes."""
    kept = []

    def change(trainer):
        if trainer.epoch == 3:
            state = trainer.optimizer.state_dict()
            kept.append(state)
            for entries in state["state"].values():
                for name in entries:
                    entries[name] = torch.zeros_like(entries[name])
            trainer.optimizer.load_state_dict(state)

    trainer = build(network("mlp"), captured=captured, callbacks=[fitkit.LambdaCallback(on_epoch_begin=change)])
    trainer.fit()
    assert all(float(entries["step"]) == 52 - 8 for entries in trainer.optimizer.state.values())


class Draws(nn.Module):
    """Draws on the host in every step, as stochastic depth often does."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.layer, self.calls = kind, nn.Linear(36, 3), 0

    def forward(self, x):
        if self.kind == "random":
            return self.layer(x.flatten(1)) * (random.random() < 0.5)
        if self.kind == "torch":
            return self.layer(x.flatten(1)) * bool(torch.rand(1) < 0.5)
        self.calls += 1
        return self.layer(x.flatten(1)) * (1.0 if self.calls < 20 else 3.0)


@pytest.mark.parametrize("kind", ["random", "torch", "attribute"])
def test_what_python_decides_in_each_step_is_not_frozen(kind):
    def train(captured):
        module = Draws(kind)
        random.seed(3)
        trainer = build(module, captured=captured)
        trainer.fit()
        return trainer

    eager = train(False)
    with pytest.warns(UserWarning, match="draws random numbers on the host, or changes its attributes"):
        captured = train(True)
    assert furthest(captured.model, eager.model) == 0 and captured.model.calls == eager.model.calls


def test_hooks_on_modules_are_called_as_in_eager_steps():
    def train(captured):
        module, called = network("mlp"), []
        module[1].register_forward_hook(lambda *_: called.append(1))
        build(module, captured=captured, epochs=2).fit()
        return len(called)

    with pytest.warns(UserWarning, match="hooks on modules would not be called"):
        assert train(True) == train(False)


def test_the_weights_of_a_module_that_keep_changing_places_end_in_eager_steps():
    def move(trainer):
        for parameter in trainer.model.parameters():
            parameter.data = parameter.data.clone()

    callbacks = [fitkit.LambdaCallback(on_epoch_begin=move)]
    eager = build(network("mlp"), captured=False, callbacks=callbacks)
    eager.fit()
    captured = build(network("mlp"), callbacks=callbacks)
    with pytest.warns(UserWarning, match="the model changed after each of 8 compilations"):
        captured.fit()
    assert furthest(captured.model, eager.model) <= 1e-5


def test_shared_and_expanded_memory_is_put_back():
    module = network("mlp")
    module.register_buffer("wide", torch.ones(1).expand(5))
    trainer, arguments = recorded(module)
    assert captures.capture(steps_on_rows, *arguments).holds(*arguments)
    assert trainer.model.wide.stride() == (0,)


def test_augmented_rows_are_those_of_the_epoch():
    def train(captured):
        spec = {
            "data": {"digits": {"layout": "image", "augment": [{"random_crop": 1}]}},
            "model": [{"Flatten": {}}, {"Linear": "outputs"}],
        }
        spec |= {"fit": {"epochs": 3, "batch_size": 100, "device": "cpu", "compile": False}}
        trainer = fitkit.build(spec)
        if captured:
            tier = replace(trainer.tier, compiles=CAPTURED, first=1, all_steps=True)
            trainer._train_step = whole_step.WholeStep(trainer._train_step, tier)
        trainer.fit()
        return trainer

    eager, captured = train(False), train(True)
    assert captured._train_step.graphs and not captured._train_step.refused
    assert furthest(captured.model, eager.model) <= 1e-5


def test_batches_for_a_gpu_come_from_memory_that_it_can_read_by_itself():
    """Put there by a thread of the loader where it has workers; else where they are sent to it."""
    dataset = torch.utils.data.TensorDataset(X, Y)
    for workers in (0, 2):
        loader = torch.utils.data.DataLoader(dataset, batch_size=4, num_workers=workers)
        for source in (dataset, loader):
            pinned = [
                LoaderBatches(source, batch_size=4, device=torch.device(device), workers=workers).options
                for device in ("cuda", "cpu")
            ]
            assert [options.get("pin_memory", False) for options in pinned] == [workers > 0, False]


def test_rows_of_a_recording_are_gathered_from_where_they_are():
    module = network("mlp")
    _, (parts, batches, rows, lrs) = recorded(module)
    assert isinstance(batches, ArrayBatches)
    graph = captures.capture(steps_on_rows, parts, batches, rows, lrs * 0)
    losses = [float(graph.call(parts, batches, rows + n, lrs * 0)[0]) for n in (0, 13, 0)]
    assert losses[0] == losses[2] != losses[1]


@pytest.mark.skipif(bool(can_compile()), reason=can_compile() or "there is a compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_model_and_loss_are_part_of_a_recording(monkeypatch, tmp_path):
    monkeypatch.setenv("FITKIT_CACHE", str(tmp_path))
    eager, captured = build(network("mlp"), captured=False, epochs=3), build(network("mlp"), epochs=3)
    step = captured._train_step
    step.tier = captured.tier = replace(captured.tier, asked=True)
    step.eager.compile_forward()
    assert captured.tier.compiles_forward
    for trainer in (eager, captured):
        trainer.fit()
    assert step.parts.forward is step.eager.forward and step.graphs and not step.refused
    assert furthest(captured.model, eager.model) <= 1e-5
