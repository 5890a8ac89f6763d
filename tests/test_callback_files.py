import csv
import math
import os
import stat
import sys
import warnings

import pytest
import torch
from fake_trainer import NAN, FakeTrainer, checkpointed, count_up, counter, fit, series
from safetensors.torch import load_file
from torch import nn

from fitkit.engine import weights
from fitkit.errors import CheckpointError, SpecError
from fitkit.parts.callbacks import CSVLogger, ModelCheckpoint
from fitkit.parts.trackers import TensorBoard

# --- CSVLogger


def rows_of(path, separator=","):
    return list(csv.reader(path.read_text().splitlines(), delimiter=separator))


def test_a_csv_log_holds_a_row_an_epoch_and_nothing_where_nothing_was_measured(tmp_path):
    rows = [{"loss": 0.1 + 0.2, "val_loss": None}, {"loss": 1e-9, "val_loss": NAN}, {"loss": 2, "val_loss": 1}]
    trainer = fit(CSVLogger(filename="logs/a.csv", separator=";"), rows, out=tmp_path)
    expected = [
        ["epoch", "loss", "val_loss"],
        ["1", "0.30000000000000004", ""],
        ["2", "1e-09", ""],
        ["3", "2.0", "1.0"],
    ]
    assert rows_of(tmp_path / "logs/a.csv", ";") == expected
    assert rows_of(tmp_path / "logs/a.csv", ";") == list(csv.reader(trainer.history.to_csv().splitlines()))


def test_a_csv_log_is_written_anew_or_continued_as_asked(tmp_path):
    rows = series("loss", [1, 2])
    fit(CSVLogger(append=True), rows, out=tmp_path)
    fit(CSVLogger(append=True), rows, out=tmp_path)
    assert [row[0] for row in rows_of(tmp_path / "log.csv")] == ["epoch", "1", "2", "1", "2"]
    fit(CSVLogger(), rows, out=tmp_path)
    assert [row[0] for row in rows_of(tmp_path / "log.csv")] == ["epoch", "1", "2"]


@pytest.mark.parametrize("append", [False, True])
def test_a_resumed_csv_log_has_no_row_twice(append, tmp_path):
    rows = series("loss", [1, 2, 3, 4])
    if append:
        fit(CSVLogger(append=True), series("loss", [9]), out=tmp_path)
    earlier = rows_of(tmp_path / "log.csv")[1:] if append else []
    killed = FakeTrainer(rows[:3], [CSVLogger(append=append)], out=tmp_path)
    killed.call("on_train_begin")
    state, _ = checkpointed(killed.callbacks[0])  # written after epoch 2; epoch 3 is lost
    killed.epochs()
    resumed = FakeTrainer(rows, [CSVLogger(append=append)], out=tmp_path, epoch=2)
    resumed.call("on_train_begin")
    resumed.callbacks[0].load_state_dict(state)
    for row in rows[:2]:
        resumed.history.append(row)
    resumed.epochs(first=2)
    expected = [["epoch", "loss"], *earlier, ["1", "1.0"], ["2", "2.0"], ["3", "3.0"], ["4", "4.0"]]
    assert rows_of(tmp_path / "log.csv") == expected


@pytest.mark.parametrize("separator", ["", ",,", "\n", '"'])
def test_a_separator_is_one_plain_character(separator):
    with pytest.raises(ValueError, match="give one character"):
        CSVLogger(separator=separator)


def test_a_log_that_cannot_be_written_says_which_file(tmp_path):
    (tmp_path / "logs").write_text("a file where a folder belongs")
    with pytest.raises(CheckpointError, match=r"logs.a\.csv cannot be written"):
        fit(CSVLogger(filename="logs/a.csv"), series("loss", [1]), out=tmp_path)


# --- ModelCheckpoint


def saved(path):
    return load_file(path)["model.weight"].item()


def test_the_best_and_the_last_weights_are_written(tmp_path):
    rows = series("val_loss", [5, 3, 4, 2, 6])
    fit(ModelCheckpoint(), rows, out=tmp_path, model=counter(), move=count_up)
    assert saved(tmp_path / "weights/best.safetensors") == 4
    assert saved(tmp_path / "weights/last.safetensors") == 5
    assert sorted(os.listdir(tmp_path / "weights")) == ["best.safetensors", "last.safetensors"]
    assert stat.S_IMODE((tmp_path / "weights/best.safetensors").stat().st_mode) == 0o644


def test_nan_is_never_the_best_checkpoint(tmp_path):
    rows = series("val_loss", [NAN, 3, None, 2, NAN, math.inf])
    fit(ModelCheckpoint(save_best_only=True), rows, out=tmp_path, model=counter(), move=count_up)
    assert os.listdir(tmp_path / "weights") == ["best.safetensors"]
    assert saved(tmp_path / "weights/best.safetensors") == 4


def test_a_file_name_may_hold_the_epoch_and_columns(tmp_path):
    rows = [{"loss": 0.125, "val_loss": value} for value in (0.5, 0.75, 0.25)]
    name = "w/{epoch}-{epoch:03d}-{loss}-{val_loss:.2f}.safetensors"
    fit(ModelCheckpoint(filepath=name), rows, out=tmp_path)
    assert sorted(os.listdir(tmp_path / "w")) == [
        "1-001-0.125-0.50.safetensors",
        "2-002-0.125-0.75.safetensors",
        "3-003-0.125-0.25.safetensors",
    ]
    fit(ModelCheckpoint(filepath="b/{epoch}.safetensors", save_best_only=True), rows, out=tmp_path)
    assert sorted(os.listdir(tmp_path / "b")) == ["1.safetensors", "3.safetensors"]


@pytest.mark.parametrize(
    "name",
    [
        "{}",
        "{epoch!r}",
        "{epoch.__class__}",
        "{epoch[0]}",
        "{loss:99999999.4f}",
        "{epoch:.4f}",
        "{loss:{epoch}}",
        "{{}}",
    ],
)
def test_a_file_name_can_do_nothing_else_that_format_can(name):
    with pytest.raises(ValueError, match=r"may hold only \{epoch\}"):
        ModelCheckpoint(filepath=name + ".safetensors")


def test_a_file_name_with_an_unknown_column_or_ending_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match=r'must end with "\.safetensors"'):
        ModelCheckpoint(filepath="best.pt")
    with pytest.raises(SpecError, match=r"holds \{acc\}, which is no column of this run"):
        fit(ModelCheckpoint(filepath="{acc}.safetensors"), series("val_loss", [1]), out=tmp_path)


def test_tied_weights_are_stored_once_and_read_back(tmp_path):
    def tied():
        model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
        model[1].weight = model[0].weight
        return model

    model, again = tied(), tied()
    weights.save(tmp_path / "w.safetensors", model.state_dict(), None, {})
    assert list(load_file(tmp_path / "w.safetensors")) == ["model.0.weight"]
    weights.put(again, weights.load(tmp_path / "w.safetensors")[0], tmp_path)
    assert torch.equal(again[1].weight, model[0].weight)


def test_views_empty_and_transposed_tensors_are_stored_as_they_are(tmp_path):
    model = nn.Module()
    whole = torch.arange(6.0)
    state = {"a": whole[:3], "b": whole[3:], "c": whole.view(2, 3).t(), "d": torch.empty(0), "e": torch.empty(0)}
    for name, tensor in state.items():
        model.register_buffer(name, tensor)
    weights.save(tmp_path / "w.safetensors", model.state_dict(), None, {})
    stored = weights.load(tmp_path / "w.safetensors")[0]
    assert stored.keys() == state.keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in state.items())


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    weights.save(path, counter().state_dict(), None, {})
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        weights.save(path, nn.Linear(2, 2).state_dict(), None, {})
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["w.safetensors"]


# --- TensorBoard


def points(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_gets_every_column_with_the_epoch_as_step(tmp_path):
    rows = [{"loss": 0.5, "val_loss": None}, {"loss": 0.25, "val_loss": 2.0}]
    callback = TensorBoard(log_dir="tb")
    fit(callback, rows, out=tmp_path)
    assert points(tmp_path / "tb") == {"loss": [(1, 0.5), (2, 0.25)], "val_loss": [(2, 2.0)]}


def test_a_resumed_run_repeats_no_point_in_tensorboard(tmp_path):
    fit(TensorBoard(), series("loss", [1, 2, 3]), out=tmp_path)
    resumed = FakeTrainer(series("loss", [1, 2, 30, 40]), [TensorBoard()], out=tmp_path, epoch=2)
    resumed.call("on_train_begin")
    resumed.epochs(first=2)
    resumed.call("on_train_end")
    assert points(tmp_path / "tensorboard") == {"loss": [(1, 1), (2, 2), (3, 30), (4, 40)]}


def test_a_tracker_that_fails_warns_once_and_lets_the_run_go_on(tmp_path):
    (tmp_path / "tensorboard").write_text("a file where a folder belongs")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = fit(TensorBoard(), series("loss", [1, 2, 3]), out=tmp_path)
    assert trainer.epoch == 3
    assert [str(warning.message)[:45] for warning in caught] == ["TensorBoard stopped logging, the run goes on:"]


def test_tensorboard_without_its_extra_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(SpecError, match=r'pip install "fitkit\[tensorboard\]"'):
        TensorBoard()
