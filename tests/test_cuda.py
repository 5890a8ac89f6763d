"""What needs a GPU: skipped visibly where there is none."""

import json

import pytest
import torch
from small_nets import KINDS, Y, declared, furthest, inputs, network
from torch import nn

import fitkit
from fitkit.engine.loading import LoaderBatches
from fitkit.engine.mapped import MappedBatches
from fitkit.engine.step import TrainStep
from fitkit.engine.tier import CAPTURED
from fitkit.engine.whole_step import WholeStep
from fitkit.session import run

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
X = torch.randn(256, 20, generator=torch.Generator().manual_seed(0))
CLASSES = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()


def fit(seed=0, **options):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 3))
    spec = {"splits": {"random": {"val": 0.25}}, "fit": {"epochs": 3, "device": "cuda", **options}}
    return model, fitkit.Model(model).fit(spec, data=(X, CLASSES))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_fit_on_a_gpu_learns_in_every_precision(precision):
    model, history = fit(precision=precision)
    assert history["loss"][-1] < history["loss"][0]
    assert next(model.parameters()).is_cuda and next(model.parameters()).dtype == torch.float32


def test_no_step_waits_for_the_gpu(monkeypatch):
    torch.manual_seed(0)
    model = nn.Linear(20, 3)
    spec = {
        "splits": {"random": {"val": 0}},
        "fit": {"epochs": 2, "device": "cuda", "precision": "bf16", "clip_norm": 1.0},
    }
    trainer = fitkit.build(spec, model=model, data=(X, CLASSES))
    refuse_waits(monkeypatch, TrainStep, lambda number: number > 0)  # the first step sets the GPU up
    trainer.fit()


def refuse_waits(monkeypatch, kind, told):
    """Let it be an error that a step waits for the GPU, from the steps on that `told` says."""
    original = kind.__call__

    def watched(step, window, sums, number, rates):
        torch.cuda.set_sync_debug_mode("error" if told(number) else "default")
        try:
            return original(step, window, sums, number, rates)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(kind, "__call__", watched)


def test_two_deterministic_fits_are_the_same_to_the_bit():
    first, second = (fit(deterministic=True)[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_step_that_overflows_in_fp16_is_skipped_and_counted():
    model = nn.Linear(20, 3)
    spec = {"splits": {"random": {"val": 0}}, "fit": {"epochs": 1, "device": "cuda", "precision": "fp16"}}
    trainer = fitkit.build(spec, model=model, data=(X * 1e4, CLASSES))
    history = trainer.fit()
    assert trainer.step + history.skipped_steps == 8


def mapped(tmp_path):
    numpy = pytest.importorskip("numpy")
    numpy.save(tmp_path / "x.npy", X.numpy())
    numpy.save(tmp_path / "y.npy", CLASSES.numpy())
    data = {"npy": {"x": str(tmp_path / "x.npy"), "y": str(tmp_path / "y.npy"), "read": "map"}}
    spec = {"data": data, "splits": {"random": {"val": 0}}, "model": [{"Linear": "outputs"}]}
    batches = fitkit.build(spec | {"fit": {"device": "cuda", "batch_size": 32}}).train
    assert isinstance(batches, MappedBatches)
    batches.rows = torch.arange(len(X))
    return batches


def loaded(workers):
    dataset = torch.utils.data.TensorDataset(X.double(), CLASSES)
    device, dtype = torch.device("cuda:0"), torch.float32
    return LoaderBatches(dataset, batch_size=32, device=device, dtype=dtype, workers=workers)


@pytest.mark.parametrize("how", ["a dataset", "workers", "a map"])
def test_batches_are_copied_while_the_host_goes_on(how, tmp_path):
    batches = mapped(tmp_path) if how == "a map" else loaded(2 if how == "workers" else 0)
    read = batches.in_order()
    next(read)  # sets the GPU up
    torch.cuda.set_sync_debug_mode("error")
    try:
        rest = list(read)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(rest) == 7 and rest[0][0].dtype == torch.float32
    assert torch.equal(torch.cat([x for x, _ in rest]).cpu(), X[32:])


# Captured steps. `captured` builds a trainer whose tier is the one that `compile: auto` would take for a model that is
# declared: eager code, recorded.


def built(module, captured, optimizer="AdamW", data=None, callbacks=(), **options):
    spec = {"optimizer": declared(optimizer) if isinstance(optimizer, str) else optimizer, "seed": 5}
    spec["fit"] = {"epochs": 13, "batch_size": 13, "device": "cuda", "precision": "fp32", "compile": False, **options}
    trainer = fitkit.build(spec, model=module, data={"train": data or (inputs("mlp"), Y)}, callbacks=list(callbacks))
    if captured:
        capture_steps(trainer)
    return trainer


def capture_steps(trainer):
    values = {**vars(trainer.tier), "compiles": CAPTURED, "first": 1, "all_steps": True}
    trainer.tier = type(trainer.tier)(**values)
    trainer._train_step = WholeStep(trainer._train_step, trainer.tier)


def trained(trainer):
    trainer.fit()
    step = trainer._train_step
    assert not step.refused and (not isinstance(step, WholeStep) or step.graphs)
    return trainer


@pytest.fixture
def without_tf32():
    """Let convolutions and products of matrices be in fp32, so that small differences stay small."""
    was = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = was


@pytest.mark.usefixtures("without_tf32")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Adagrad", "NAdam", "RAdam", "RMSprop", "Adamax", "Adadelta"])
def test_fifty_captured_steps_agree_with_eager_ones(name, kind):
    eager, captured = (trained(built(network(kind), how, name, (inputs(kind), Y))) for how in (False, True))
    assert captured.step == 52
    assert furthest(captured.model.cpu(), eager.model.cpu()) <= 1e-5
    assert captured.history["loss"] == pytest.approx(eager.history["loss"], rel=1e-4)


@pytest.mark.usefixtures("without_tf32")
@pytest.mark.parametrize(
    "options",
    [{"clip_norm": 0.1}, {"accumulate": 2}, {"batch_size": 10, "clip_norm": 0.1}, {"precision": "bf16"}],
    ids=["clipping", "accumulation", "ragged ends", "bf16"],
)
def test_captured_steps_with_options_agree_with_eager_ones(options):
    eager, captured = (trained(built(network("mlp"), how, **options)) for how in (False, True))
    furthest_allowed = 1e-2 if "precision" in options else 1e-5
    assert furthest(captured.model.cpu(), eager.model.cpu()) <= furthest_allowed


def test_masks_of_captured_steps_are_those_of_eager_ones_and_differ_from_step_to_step():
    def losses(captured):
        torch.manual_seed(0)
        module, seen = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 3)), []
        look = fitkit.LambdaCallback(on_step_end=lambda trainer: seen.append(float(trainer.sums.loss)))
        data = (inputs("mlp")[:13], Y[:13])  # one batch, so that only masks tell two steps apart
        still = {"SGD": {"lr": 1e-30}}
        trained(built(module, captured, still, data, [look], epochs=6))
        return seen

    eager, captured = losses(False), losses(True)
    assert captured == pytest.approx(eager, rel=1e-5)
    assert len(set(captured)) == 6


def bits(trainer):
    return {name: tensor.cpu() for name, tensor in trainer.model.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


DECLARED = {
    "data": "iris",
    "model": [{"Linear": 8}, "ReLU", {"Dropout": 0.2}, {"Linear": "outputs"}],
    "schedule": {"cosine": {"warmup": 3}},
    "fit": {"epochs": 30, "batch_size": 16, "device": "cuda", "precision": "fp32", "deterministic": True},
}


def test_a_small_declared_model_is_captured_by_itself_and_ends_in_the_same_bits_twice():
    first, second, other = (fitkit.build(DECLARED, overrides={"seed": seed}) for seed in (0, 0, 1))
    assert str(first.tier).startswith("steps: whole steps captured: ")
    for trainer in (first, second, other):
        trained(trainer)
    assert same(bits(first), bits(second)) and not same(bits(first), bits(other))
    eager = fitkit.build(DECLARED, overrides={"fit.compile": False})
    eager.fit()
    assert first.history["lr"] == pytest.approx(eager.history["lr"], rel=1e-12)
    assert first.history["loss"] == pytest.approx(eager.history["loss"], rel=1e-3)


def test_a_killed_captured_run_ends_in_the_same_bits(tmp_path):
    class Killed(BaseException):
        pass

    def go(folder, resume=False, killed=False):
        def kill(trainer):
            if killed and trainer.epoch == 12:
                raise Killed

        callbacks = [fitkit.LambdaCallback(on_evaluate_begin=kill)]
        return run(fitkit.load_spec(DECLARED), out=folder, resume=resume, callbacks=callbacks, every_steps=50)[1]

    whole = go(tmp_path / "whole")
    with pytest.raises(Killed):
        go(tmp_path / "cut", killed=True)
    resumed = go(tmp_path / "cut", resume=True)
    assert resumed.compiled == CAPTURED and same(bits(whole), bits(resumed))
    assert json.loads((tmp_path / "cut" / "env.json").read_text())["compiled"] == CAPTURED


def test_no_captured_step_waits_for_the_gpu(monkeypatch):
    rates = {"AdamW": {"lr": 0.01, "weight_decay": 0.1}}
    trainer = built(network("mlp"), True, rates, clip_norm=1.0)
    trainer.schedule = lambda step: 1 / (1 + step)  # every step has another learning rate
    refuse_waits(monkeypatch, WholeStep, lambda number: number > 1)  # the second step is recorded
    trained(trainer)


def test_a_recording_trains_nothing():
    trainer = built(network("cnn"), True, max_steps=2, epochs=None)
    eager = built(network("cnn"), False, max_steps=2, epochs=None)
    for each in (trainer, eager):
        trained(each)
    assert trainer.model[1].num_batches_tracked == eager.model[1].num_batches_tracked == 2


class Reads(nn.Module):
    """Asks the host in every step, and drops."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.drop = nn.Linear(36, 3), nn.Dropout(0.3)

    def forward(self, x):
        x = self.drop(self.layer(x.flatten(1)))
        return x * 2 if float(x.detach().sum()) > 0 else x * 2


def test_a_step_that_waits_is_not_captured_and_trains_the_same():
    """Dropout after a recording that failed: the generator must not think that it is still recorded."""
    eager = built(Reads(), False)
    eager.fit()
    captured = built(Reads(), True)
    with pytest.warns(UserWarning, match="a training step cannot be one graph, so the steps stay eager: "):
        captured.fit()
    assert captured.step == 52 and same(bits(captured), bits(eager))
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    trained(built(network("mlp"), True))  # and another model can still be captured


def test_weights_that_moved_are_captured_anew():
    def move(trainer):
        if trainer.epoch == 5:
            for parameter in trainer.model.parameters():
                parameter.data = parameter.data.clone()

    callbacks = [fitkit.LambdaCallback(on_epoch_begin=move)]
    eager, captured = (trained(built(network("mlp"), how, callbacks=callbacks)) for how in (False, True))
    assert furthest(captured.model.cpu(), eager.model.cpu()) <= 1e-5
    assert sum(map(len, captured._train_step.graphs.values())) == 2


def test_asked_for_model_and_loss_are_compiled_and_the_steps_captured():
    pytest.importorskip("triton")
    trainer = fitkit.build(DECLARED, overrides={"fit.compile": True})
    assert trainer.tier.compiles == CAPTURED and trainer.tier.compiles_forward
    trained(trainer)
    eager = fitkit.build(DECLARED, overrides={"fit.compile": False})
    eager.fit()
    assert trainer.history["loss"][0] == pytest.approx(eager.history["loss"][0], rel=0.2)  # other masks
