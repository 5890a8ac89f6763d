"""What must not change a number: batch size, accumulation, onlookers, worker processes, the order of evaluated rows."""

import copy
import random
import tempfile
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_fit import Noisy, same_bits
from torch import nn

import fitkit

# The same examples in every run, so that a test that turns red speaks of the change that was made.
many = settings(max_examples=200, deadline=None, derandomize=True)
CLOSE = {"rtol": 1e-12, "atol": 1e-13}
LOSSES = {
    "values": "mse_loss",
    "robust values": {"huber_loss": {"delta": 0.7}},
    "binary": {"binary_cross_entropy_with_logits": {"pos_weight": 1.7}},
    "classes": {"cross_entropy": {"label_smoothing": 0.1}},
    "weighted": {"cross_entropy": {"class_weight": [0.3, 1.7, 2.9]}},
    "masked": {"cross_entropy": {"ignore_index": -100}},
    "masked and weighted": {"cross_entropy": {"ignore_index": -100, "class_weight": [0.3, 1.7, 2.9]}},
}
METRICS = {
    "values": ["mean_absolute_error", "root_mean_squared_error", "r2"],
    "robust values": ["mean_squared_error", "r2"],
    "classes": ["accuracy", {"top_k_accuracy": 2}],
}
kinds = st.sampled_from(sorted(LOSSES))
seeds = st.integers(0, 2**32)


def draw_data(kind, rows, seed, empty=0.3):
    """Return x and y; of a masked target the part `empty` of the rows has no class at all, the others some."""
    source = torch.Generator().manual_seed(seed)
    length = (4,) if kind.startswith("masked") else ()
    x = torch.randn(rows, *length, 2, dtype=torch.float64, generator=source)
    if "values" in kind:
        return x, torch.randn(rows, 2, dtype=torch.float64, generator=source)
    y = torch.randint(2 if kind == "binary" else 3, (rows, *length), generator=source)
    if length:
        kept = torch.rand(rows, 4, generator=source) < 0.6
        y = y.where(kept & (torch.rand(rows, 1, generator=source) > empty), -100)
        y[0, 0] = 0  # at least one class in all
    return x, y


def network(kind, seed, *extra):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        outputs = 2 if "values" in kind else 1 if kind == "binary" else 3
        tail = [nn.Flatten(0)] if kind == "binary" else []
        return nn.Sequential(nn.Linear(2, 3), *extra, nn.Tanh(), nn.Linear(3, outputs), *tail).double()


def spec_for(kind, **fit):
    return {
        "loss": LOSSES[kind],
        "optimizer": {"SGD": {"lr": 0.2, "momentum": 0.9, "weight_decay": 0.01}},
        "metrics": METRICS.get(kind, []),
        "fit": {"epochs": 2, "device": "cpu", "precision": "fp32", "check_data": False, **fit},
    }


def evaluated(kind, module, data, batch_size):
    spec = spec_for(kind, batch_size=batch_size)
    trainer = fitkit.build(spec, model=module, data={"train": data, "val": data})
    return trainer.evaluate(trainer.val)


def fitted(module, spec, data, callbacks=(), out=None):
    """Return the history, the state at the end of each epoch, and the one that the fit left."""
    module, states = copy.deepcopy(module), []
    keep = fitkit.LambdaCallback(on_epoch_end=lambda t: states.append(copy.deepcopy(t.model.state_dict())))
    history = fitkit.Model(module).fit(spec, data=data, callbacks=[*callbacks, keep], out=out)
    return history, states, module.state_dict()


@many
@given(kinds, st.integers(5, 30), st.data(), seeds)
def test_evaluation_gives_the_same_numbers_for_every_batch_size(kind, rows, data, seed):
    size = data.draw(st.integers(1, rows + 3), label="batch size")
    x, y = draw_data(kind, rows, seed)
    module = network(kind, seed)
    whole = evaluated(kind, module, (x, y), rows)
    assert evaluated(kind, module, (x, y), size) == pytest.approx(whole, rel=1e-12, abs=1e-12)


@many
@given(kinds, st.integers(5, 30), st.integers(1, 8), seeds)
def test_evaluation_gives_the_same_numbers_for_every_order_of_rows(kind, rows, size, seed):
    x, y = draw_data(kind, rows, seed)
    module = network(kind, seed)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed + 1))
    expected = evaluated(kind, module, (x, y), size)
    assert evaluated(kind, module, (x[order], y[order]), size) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@many
@given(kinds, st.integers(2, 20), st.integers(1, 4), st.integers(1, 4), st.sampled_from([None, 0.05]), seeds)
def test_accumulating_micro_batches_equals_one_large_batch(kind, rows, micro, accumulate, clip_norm, seed):
    data = {"train": draw_data(kind, rows, seed)}
    module = network(kind, seed)
    options = {} if clip_norm is None else {"clip_norm": clip_norm}
    whole = spec_for(kind, batch_size=micro * accumulate, **options)
    parts = spec_for(kind, batch_size=micro, accumulate=accumulate, **options)
    expected_history, _, expected = fitted(module, whole, data)
    history, _, found = fitted(module, parts, data)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], **CLOSE)
    for column in set(history.columns) - {"epoch_seconds"}:
        assert history[column] == pytest.approx(expected_history[column], rel=1e-12, abs=1e-12), column


def draw_everything(trainer):
    random.random(), numpy.random.rand(), torch.rand(3)


def read_everything(trainer):
    str(trainer), trainer.row, [p.norm().item() for p in trainer.model.parameters()]


HOOKS = ("on_train_begin", "on_epoch_begin", "on_step_end", "on_evaluate_begin", "on_evaluate_end", "on_epoch_end")
ONLOOKERS = {
    "reads in every hook": lambda: fitkit.LambdaCallback(**dict.fromkeys(HOOKS, read_everything)),
    "draws in every hook": lambda: fitkit.LambdaCallback(**dict.fromkeys(HOOKS, draw_everything)),
}
FILES = {"CSVLogger": {}, "ModelCheckpoint": {"monitor": "val_loss"}}


@many
@given(
    st.sets(st.sampled_from(sorted(ONLOOKERS))),
    st.sets(st.sampled_from(sorted(FILES))),
    st.booleans(),
    st.integers(1, 4),
    seeds,
)
def test_onlookers_leave_the_weights_as_they_are_to_the_bit(onlookers, files, folder, eval_every, seed):
    data = dict(zip(("train", "val"), (draw_data("classes", n, seed + n) for n in (11, 7)), strict=True))
    module = network("classes", seed, nn.Dropout(0.4), nn.BatchNorm1d(3))
    plain = {**spec_for("classes", batch_size=4), "seed": seed}
    watched = copy.deepcopy(plain) | {"callbacks": {name: FILES[name] for name in files}}
    expected = fitted(module, plain, data)
    with tempfile.TemporaryDirectory() as root:
        out = Path(root) / "run" if folder or files else None
        found = fitted(module, watched, data, [ONLOOKERS[name]() for name in onlookers], out)
    assert all(map(same_bits, found[1], expected[1]))
    assert same_bits(found[2], expected[2])
    watched["fit"]["eval_every"] = eval_every
    watched.pop("callbacks")
    unseen = fitted(module, plain, {"train": data["train"]})
    seldom = fitted(module, watched, data)
    assert all(map(same_bits, unseen[1], expected[1])) and all(map(same_bits, seldom[1], expected[1]))


# The slowest of these by far: each example starts and ends up to four worker processes.
@many
@given(st.integers(1, 2), st.integers(2, 14), st.integers(1, 5), st.integers(1, 3), seeds)
def test_worker_processes_leave_the_weights_as_they_are_to_the_bit(workers, rows, batch_size, accumulate, seed):
    module = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.4), nn.Linear(3, 2)).double()

    def run(count):
        random.seed(count), numpy.random.seed(count), torch.manual_seed(count)  # the caller's state is no part of it
        spec = {**spec_for("classes", batch_size=batch_size, accumulate=accumulate, workers=count), "seed": seed}
        return fitted(module, spec, {"train": Noisy(rows), "val": Noisy(5)})

    history, states, left = run(workers)
    expected_history, expected_states, expected_left = run(0)
    assert all(map(same_bits, states, expected_states)) and same_bits(left, expected_left)
    for column in set(history.columns) - {"epoch_seconds"}:
        assert history[column] == expected_history[column], column


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_fits_of_one_spec_are_the_same_to_the_bit(accumulate):
    data = draw_data("classes", 24, 3)
    module = network("classes", 3, nn.Dropout(0.4), nn.BatchNorm1d(3))
    spec = spec_for("classes", batch_size=5, accumulate=accumulate)
    torch.manual_seed(1)
    one = fitted(module, spec, data)
    torch.manual_seed(2)
    other = fitted(module, spec, data)
    assert all(map(same_bits, one[1], other[1]))
