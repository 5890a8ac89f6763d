"""A run that is stopped anywhere and resumed ends in the same bits as one that was not."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

import fitkit
from fitkit.engine import checkpoint, weights
from fitkit.errors import CheckpointError, SpecError
from fitkit.session import run

X = torch.randn(70, 6, generator=torch.Generator().manual_seed(1))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()


class Killed(BaseException):
    """Ends a fit in the middle, as a kill does: nothing after it runs but what the system guarantees."""


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3))


WORKLOADS = {
    "plain": {"optimizer": {"SGD": {"lr": 0.05, "momentum": 0.9}}},
    "schedule": {"optimizer": {"AdamW": {"lr": 0.01}}, "schedule": {"cosine": {"warmup": 3}}},
    "accumulate": {"optimizer": {"Adam": {"lr": 0.01}}, "fit": {"accumulate": 3, "clip_norm": 1.0}},
    "averages": {"callbacks": {"EMA": {"decay": 0.8}, "EarlyStopping": {"patience": 50}}},
    "plateau": {"callbacks": {"ReduceLROnPlateau": {"patience": 1, "factor": 0.5}}},
    "best at first": {
        "optimizer": {"AdamW": {"lr": 0.05}},
        "callbacks": {"EarlyStopping": {"patience": 50}, "ReduceLROnPlateau": {"patience": 1, "factor": 0.5}},
    },
    "muon": {"optimizer": {"Muon": {"lr": 0.01}}},
    "nadam": {"optimizer": {"NAdam": {"lr": 0.01}}},
    "bf16": {"fit": {"precision": "bf16"}},
    "max_steps": {"fit": {"max_steps": 23}},
    "seldom evaluated": {"fit": {"eval_every": 2}},
    "weighted": {"loss": {"cross_entropy": {"class_weight": "balanced", "label_smoothing": 0.1}}},
}


# Validation against other labels: its loss rises from the first epoch on, so that one stays the best.
OTHERWISE = {"train": (X, Y), "val": (X, (Y + 1) % 3)}


def declared(name):
    workload = WORKLOADS[name]
    fit = {"epochs": 4, "batch_size": 8, "device": "cpu", "check_data": False, **workload.get("fit", {})}
    splits = {} if name == "best at first" else {"splits": {"random": {"val": 0.2}}}
    return fitkit.load_spec({**workload, **splits, "seed": 3, "fit": fit})


def fit(name, folder, resume=False, stop_at=None, data=(X, Y), every=3):
    def stop(trainer):
        if trainer.step == stop_at:
            raise Killed

    module = net()
    data = OTHERWISE if name == "best at first" else data
    watch = fitkit.LambdaCallback(on_step_end=stop)
    history, trainer = run(
        declared(name), model=module, data=data, out=folder, resume=resume, callbacks=[watch], every_steps=every
    )
    return history, module, trainer


def same(one, other):
    assert list(one) == list(other)
    return all(torch.equal(one[name], other[name]) for name in one)


def rows(history):
    return {
        name: [value.hex() for value in column] for name, column in history.history.items() if name != "epoch_seconds"
    }


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_run_killed_three_times_ends_as_one_that_was_not(name, tmp_path):
    whole, model, trainer = fit(name, tmp_path / "whole")
    total = trainer.step
    for stop_at in (2, total // 2, total - 1):
        with pytest.raises(Killed):
            fit(name, tmp_path / "cut", resume=True, stop_at=stop_at)
    history, resumed, later = fit(name, tmp_path / "cut", resume=True)
    assert rows(history) == rows(whole)
    assert same(model.state_dict(), resumed.state_dict())
    assert history.best_epoch == whole.best_epoch and later.step == total
    for file in ("model.safetensors",):
        assert same(weights.load(tmp_path / "whole" / file)[0], weights.load(tmp_path / "cut" / file)[0])


class Draws(torch.utils.data.Dataset):
    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return X[i] + 0.1 * torch.randn(6), Y[i]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_dataset_that_draws_goes_on_where_it_was(tmp_path):
    whole, model, _ = fit("schedule", tmp_path / "whole", data=Draws())
    with pytest.raises(Killed):
        fit("schedule", tmp_path / "cut", resume=True, stop_at=11, data=Draws())
    history, resumed, _ = fit("schedule", tmp_path / "cut", resume=True, data=Draws())
    assert rows(history) == rows(whole) and same(model.state_dict(), resumed.state_dict())


def test_a_finished_run_is_left_alone(tmp_path):
    whole, _, _ = fit("plain", tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    history, _, trainer = fit("plain", tmp_path / "run", resume=True)
    assert trainer is None and rows(history) == rows(whole)
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}


def test_another_spec_or_other_data_is_refused_with_the_difference(tmp_path):
    with pytest.raises(Killed):
        fit("plain", tmp_path / "run", stop_at=5)
    with pytest.raises(SpecError, match="schedule: constant then, cosine now: --allow-change schedule permits it"):
        fit("schedule", tmp_path / "run", resume=True)
    with pytest.raises(SpecError, match=r"data_train"):
        fit("plain", tmp_path / "run", resume=True, data=(X + 1, Y))


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "manifest"])
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_is_used(damage, tmp_path):
    whole, model, _ = fit("plain", tmp_path / "whole")
    with pytest.raises(Killed):
        fit("plain", tmp_path / "run", stop_at=10)
    newest = max((tmp_path / "run/checkpoints").glob("step-*"), key=lambda path: int(path.name[5:]))
    file = newest / ("MANIFEST.json" if damage == "manifest" else "model.safetensors")
    raw = file.read_bytes()
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(raw[:-3] if damage != "flip" else raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.warns(UserWarning, match="Going back to an earlier checkpoint"):
        history, resumed, _ = fit("plain", tmp_path / "run", resume=True)
    assert rows(history) == rows(whole) and same(model.state_dict(), resumed.state_dict())


@pytest.mark.filterwarnings("ignore:.*Going back")
def test_when_no_checkpoint_is_whole_the_run_stops_instead_of_starting_over(tmp_path):
    with pytest.raises(Killed):
        fit("plain", tmp_path / "run", stop_at=10)
    for path in (tmp_path / "run/checkpoints").glob("*/state.json"):
        path.write_text("{}")
    with pytest.raises(CheckpointError, match="no checkpoint is whole"):
        fit("plain", tmp_path / "run", resume=True)


def test_a_full_disk_leaves_the_earlier_checkpoint_and_says_what_is_needed(tmp_path, monkeypatch):
    tensors, state = {"model": {"w": torch.ones(1000)}}, {}
    checkpoint.write(tmp_path, 1, tensors, state)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    with pytest.raises(CheckpointError, match=r"No space left.*needs 4,000 bytes and [\d,]+ are free"):
        checkpoint.write(tmp_path, 2, tensors, state)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


@pytest.mark.parametrize("name", ["../evil.safetensors", "/etc/passwd", "a b.json", "MANIFEST.json", "x.pt"])
def test_a_manifest_names_files_of_its_own_folder_only(name, tmp_path):
    checkpoint.write(tmp_path, 1, {"model": {"w": torch.ones(3)}}, {})
    path = tmp_path / "step-1/MANIFEST.json"
    manifest = json.loads(path.read_text())
    manifest["files"][name] = manifest["files"]["state.json"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="it names"):
        checkpoint.read(tmp_path / "step-1")


def test_resume_does_not_begin_a_run_among_other_files(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.txt").write_text("mine")
    with pytest.raises(SpecError, match="is not empty"):
        fit("plain", tmp_path / "run", resume=True)


def test_two_processes_do_not_run_in_one_folder(tmp_path):
    import fcntl

    (tmp_path / "run").mkdir()
    with (tmp_path / "run/.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(SpecError, match="another process is running"):
            fit("plain", tmp_path / "run", resume=True)


SPEC = "data: digits\nmodel: {mlp: [32]}\nfit: {epochs: 400, batch_size: 16, device: cpu}\n"


def start(tmp_path, *more):
    command = [sys.executable, "-m", "fitkit", "fit", "spec.yaml", "--out", "run", "--resume", "--json", *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_with_a_checkpoint_of_its_last_step(number, code, tmp_path):
    (tmp_path / "spec.yaml").write_text(SPEC)
    process = start(tmp_path, "--checkpoint-every", "3600 s")
    assert process.stdout.readline()
    time.sleep(0.3)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "Traceback" not in err
    [step] = checkpoint.steps(tmp_path / "run/checkpoints")
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["status"] == "interrupted" and summary["steps"] == step > 90


def test_verify_resume_kills_and_proves(tmp_path, capsys):
    from fitkit.cli import main

    (tmp_path / "spec.yaml").write_text(SPEC)
    assert main(["verify-resume", str(tmp_path / "spec.yaml"), "fit.epochs=8", "--kills", "3"]) == 0
    said = capsys.readouterr().out
    assert "3 kills" in said and "inside a save" in said and "while it started or resumed" in said
