"""Bugs that train without a complaint, around the step: what is decayed, read, drawn, and in which precision."""

import json
import random

import numpy
import pytest
import torch
from small_fit import Noisy, labels, linear, numbers, spec
from torch import nn
from torch.utils.data import IterableDataset

import fitkit


class Zoo(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.conv, self.linear = nn.Embedding(5, 4), nn.Conv1d(4, 4, 1), nn.Linear(4, 3)
        self.batch_norm, self.layer_norm = nn.BatchNorm1d(4), nn.LayerNorm(4)
        self.scale = nn.Parameter(torch.ones(4))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)

    def forward(self, x):
        x = self.batch_norm(self.conv(self.embedding(x).mT)).mean(-1)
        return self.linear(self.frozen(self.layer_norm(x) * self.scale))


def test_weight_decay_leaves_out_biases_and_norms_and_every_trainable_parameter_has_one_group():
    """C15: by the kind of module, not by a part of its name; nothing is lost."""
    module = Zoo()
    wanted = spec(optimizer={"AdamW": {"weight_decay": 0.5}})
    trainer = fitkit.build(wanted, model=module, data={"train": (labels(5, 8, 6), labels(3, 8))})
    names = {parameter: name for name, parameter in module.named_parameters()}
    decay = {}
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            assert names[parameter] not in decay
            decay[names[parameter]] = group["weight_decay"]
    assert decay == {
        "scale": 0.5,
        "embedding.weight": 0.5,
        "conv.weight": 0.5,
        "linear.weight": 0.5,
        "conv.bias": 0,
        "linear.bias": 0,
        "batch_norm.weight": 0,
        "batch_norm.bias": 0,
        "layer_norm.weight": 0,
        "layer_norm.bias": 0,
    }


MASKED = {"cross_entropy": {"ignore_index": -100, "class_weight": [0.3, 1.7, 2.9]}}
READS = ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__")


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
@pytest.mark.parametrize(
    "loss", ["cross_entropy", {"cross_entropy": {"ignore_index": -100, "class_weight": [0.3, 1.7, 2.9]}}]
)
def test_no_tensor_is_read_between_the_ends_of_epochs(optimizer, loss, monkeypatch):
    """C25: a read makes the host wait for the device in every step; a tick may, ten times a second."""
    monkeypatch.setattr("fitkit.trainer.TICK_SECONDS", 3600.0)
    reads = []
    for name in READS:
        method = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda self, *args, m=method, n=name, **kw: (reads.append(n), m(self, *args, **kw))[1]
        )

    def run(rows):
        marks = []
        look = fitkit.LambdaCallback(
            on_epoch_begin=lambda t: marks.append(len(reads)), on_step_end=lambda t: marks.append(len(reads))
        )
        data = numbers(rows, 4), labels(3, rows)
        wanted = spec(batch_size=2, accumulate=2, clip_norm=1.0, optimizer=optimizer, loss=loss, schedule="cosine")
        trainer = fitkit.build(wanted, model=linear(4, 3), data={"train": data, "val": data}, callbacks=[look])
        before = len(reads)
        trainer.fit()
        assert len(set(marks)) == 1, reads[marks[0] : marks[-1]]
        return len(reads) - before

    assert run(8) == run(40)  # an epoch of five times as many batches reads no more, evaluation included


@pytest.mark.parametrize("when", ["before the fit", "in on_train_begin"])
def test_hooks_of_the_optimizer_are_run_whenever_they_were_registered(when):
    """C25: no short cut around what torch does in a step, for whoever listens there."""
    steps = []

    def listen(trainer):
        trainer.optimizer.register_step_post_hook(lambda *args: steps.append(1))

    callbacks = [fitkit.LambdaCallback(on_train_begin=listen)] if when == "in on_train_begin" else []
    data = {"train": (numbers(8, 4), labels(3, 8))}
    trainer = fitkit.build(spec(), model=linear(4, 3), data=data, callbacks=callbacks)
    if not callbacks:
        listen(trainer)
    trainer.fit()
    assert len(steps) == 2


class Stream(IterableDataset):
    """A stream that draws from the generators of the process that reads it."""

    def __iter__(self):
        for row in range(8):
            yield Noisy()[row]


@pytest.mark.parametrize("source", [Noisy(), Stream()], ids=["dataset", "stream"])
def test_a_fit_leaves_the_random_state_of_the_process_as_it_was(source):
    """C26: torch's, NumPy's and Python's own."""
    states = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    fitkit.Model(linear(4, 2, nn.Dropout())).fit(spec(epochs=2), data={"train": source, "val": source})
    assert random.getstate() == states[0], "random"
    assert numpy.random.get_state()[1].tolist() == states[1], "numpy"
    assert torch.get_rng_state().tolist() == states[2], "torch"


def test_a_fit_that_fails_leaves_the_random_state_of_the_process_as_it_was():
    """C26: also when the loss is no longer finite."""
    state = torch.get_rng_state()
    with pytest.raises(fitkit.TrainingError):
        fitkit.Model(linear(4, 3, nn.Dropout())).fit(spec(lr=1e308), data=(numbers(20, 4), labels(3, 20)))
    assert torch.equal(torch.get_rng_state(), state)


def test_evaluation_computes_in_the_precision_of_training_and_the_files_say_which(tmp_path):
    """C30: bf16 on a CPU is really bf16, in training as in validation."""
    module, dtypes = linear(4, 3).float(), set()
    module[0].register_forward_hook(lambda part, args, output: dtypes.add((part.training, output.dtype)))
    data = {"train": (numbers(8, 4), labels(3, 8)), "val": (numbers(6, 4), labels(3, 6))}
    fitkit.Model(module).fit(spec(precision="bf16"), data=data, out=tmp_path / "run")
    assert dtypes == {(True, torch.bfloat16), (False, torch.bfloat16)}
    assert json.loads((tmp_path / "run" / "env.json").read_text())["precision"] == "bfloat16"
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}


def test_bf16_evaluates_to_the_loss_of_fp32_within_its_rounding():
    """C30: bf16 has 8 bits, so a loss may be off by about 1 %."""
    data = {"train": (numbers(40, 4), labels(3, 40)), "val": (numbers(40, 4, seed=1), labels(3, 40, seed=1))}
    losses = []
    for precision in ("fp32", "bf16"):
        trainer = fitkit.build(spec(precision=precision), model=linear(4, 3).float(), data=data)
        losses.append(trainer.evaluate(trainer.val)["loss"])
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.01)


def test_fp16_on_a_cpu_is_an_error():
    """C30: not silently something else."""
    with pytest.raises(fitkit.SpecError, match="fp16 does not train on a CPU"):
        fitkit.build(spec(precision="fp16"), model=linear(4, 3), data=(numbers(9, 4), labels(3, 9)))
