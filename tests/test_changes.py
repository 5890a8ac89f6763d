"""A resumed run that is asked something else: refused key by key, or gone on with where that was allowed."""

import json
import os
import subprocess
import sys

import pytest
import torch
from small_fit import labels, linear, numbers, same_bits, spec

import fitkit
from fitkit import run_folder
from fitkit.changes import Change, changes
from fitkit.engine import checkpoint, tier
from fitkit.errors import CheckpointError, SpecError
from fitkit.session import LOCK, locked, run

DATA = {"train": (numbers(26, 4), labels(3, 26)), "val": (numbers(10, 4, seed=1), labels(3, 10))}


class Killed(BaseException):
    pass


def go(folder, *allowed, resume=True, stop_at=None, every=None, data=DATA, **wanted):
    def stop(trainer):
        if trainer.step == stop_at:
            raise Killed

    module = linear(4, 3, torch.nn.Dropout(0.2))
    wanted = fitkit.load_spec(spec(**{"epochs": 4, "optimizer": {"AdamW": 0.05}, **wanted}))
    history, trainer = run(
        wanted,
        model=module,
        data=data,
        out=folder,
        resume=resume,
        allow_change=allowed,
        callbacks=[fitkit.LambdaCallback(on_step_end=stop)],
        every_steps=every,
    )
    return history, dict(module.state_dict()), trainer


def hexed(history):
    return {name: [v.hex() for v in values] for name, values in history.history.items() if name != "epoch_seconds"}


def files(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


ENDS = {
    "epochs": ({}, {"epochs": 7}, "fit.epochs"),
    "epochs that are seldom evaluated": ({"eval_every": 3}, {"eval_every": 3, "epochs": 7}, "fit.epochs"),
    "max_steps in the middle of an epoch": ({"max_steps": 17}, {"max_steps": 25}, "fit.max_steps"),
    "EarlyStopping": (
        {"epochs": 40, "callbacks": {"EarlyStopping": {"patience": 2}}},
        {"epochs": 40, "callbacks": {"EarlyStopping": {"patience": 4}}},
        "callbacks.EarlyStopping.patience",
    ),
    "several steps a checkpoint": ({"accumulate": 3}, {"accumulate": 3, "epochs": 9}, "fit.epochs"),
}


@pytest.mark.parametrize("way", ENDS)
@pytest.mark.parametrize("every", [None, 1])
def test_a_finished_run_that_may_go_further_ends_as_one_that_was_asked_so_at_first(way, every, tmp_path):
    first, further, key = ENDS[way]
    whole, weights, _ = go(tmp_path / "whole", every=every, **further)
    short, _, trainer = go(tmp_path / "run", every=every, **first)
    history, found, later = go(tmp_path / "run", key, every=every, **further)
    assert len(history) > len(short) or later.step > trainer.step
    assert hexed(history) == hexed(whole) and history.best_epoch == whole.best_epoch
    assert same_bits(found, weights)


def test_the_folder_says_what_was_changed_and_the_next_resume_needs_no_leave(tmp_path):
    go(tmp_path / "run")
    go(tmp_path / "run", "fit.epochs", "optimizer", epochs=6, optimizer={"AdamW": 0.01})
    noted = json.loads((tmp_path / "run/env.json").read_text())["changes"]
    assert [(c["key"], c["then"], c["now"], c["step"]) for c in noted] == [
        ("optimizer.AdamW.lr", 0.05, 0.01, 28),
        ("fit.epochs", 4, 6, 28),
    ]
    assert all(change["when"][:2] == "20" for change in noted)
    assert "epochs: 6" in (tmp_path / "run/resolved.yaml").read_text()
    before = files(tmp_path / "run")
    _, _, trainer = go(tmp_path / "run", epochs=6, optimizer={"AdamW": 0.01})
    assert trainer is None and files(tmp_path / "run") == before
    with pytest.raises(SpecError, match="fit.epochs: 6 then, 4 now: --allow-change fit.epochs permits it"):
        go(tmp_path / "run", optimizer={"AdamW": 0.01})


def test_a_changed_lr_is_the_one_that_is_used(tmp_path):
    with pytest.raises(Killed):
        go(tmp_path / "run", stop_at=9, every=4)
    history, _, trainer = go(tmp_path / "run", "optimizer.AdamW.lr", optimizer={"AdamW": {"lr": 0.002}})
    assert history["lr"][-1] == 0.002 and trainer.optimizer.param_groups[0]["initial_lr"] == 0.002
    assert len(trainer.optimizer.state) == 2  # and its memory was kept
    assert trainer.optimizer.state[trainer.model[0].weight]["step"] == trainer.step


def test_every_difference_is_told_in_a_line_with_what_permits_it(tmp_path):
    with pytest.raises(Killed):
        go(tmp_path / "run", stop_at=9)
    before = files(tmp_path / "run")
    with pytest.raises(SpecError) as error:
        go(tmp_path / "run", "fit.workers", seed=5, epochs=6, schedule={"cosine": {}}, clip_norm=1.0)
    assert str(error.value).splitlines() == [
        f"{tmp_path / 'run'}: this run was asked something else:",
        "  seed: 0 then, 5 now: cannot change: the split, the order of the rows and dropout depend on it",
        "  schedule: constant then, cosine now: --allow-change schedule permits it",
        "  fit.epochs: 4 then, 6 now: --allow-change fit.epochs permits it",
        "  fit.clip_norm: null then, 1.0 now: --allow-change fit.clip_norm permits it",
        "Start another run in another folder.",
    ]
    assert files(tmp_path / "run") == before
    with pytest.raises(SpecError, match=r"Go on with --allow-change fit.clip_norm, or start") as error:
        go(tmp_path / "run", "fit.epochs", epochs=6, clip_norm=1.0)
    assert "fit.epochs: 4 then, 6 now: allowed" in str(error.value)


FIXED = {
    "seed": {"seed": 1},
    "data_train": {"data": {**DATA, "train": (numbers(26, 4) + 1, labels(3, 26))}},
    "data_val": {"data": {**DATA, "val": (numbers(10, 4, seed=2), labels(3, 10))}},
    "loss": {"loss": {"cross_entropy": {"label_smoothing": 0.1}}},
    "metrics": {"metrics": {"top_k_accuracy": {"k": 2}}},
    "optimizer": {"optimizer": {"SGD": 0.1}},
    "callbacks": {"callbacks": {"EMA": 0.9}},
    "schedule": {"schedule": "ReduceLROnPlateau"},
}


@pytest.mark.parametrize("key", FIXED)
def test_what_cannot_change_is_refused_with_the_reason_and_changes_no_file(key, tmp_path):
    go(tmp_path / "run")
    before = files(tmp_path / "run")
    with pytest.raises(SpecError, match=rf"{key}.* now: cannot change: \w"):
        go(tmp_path / "run", key, **FIXED[key])
    assert files(tmp_path / "run") == before


def test_layers_are_compared_one_by_one():
    then = {"model": [{"Linear": {"out_features": 8}}, {"Dropout": {"p": 0.1}}]}
    now = {"model": [{"Linear": {"out_features": 8}}, {"Dropout": {"p": 0.2}}]}
    [change] = changes(then, now)
    assert change == Change("model[1].Dropout.p", 0.1, 0.2) and "weights" in change.refusal


def test_true_is_not_one_and_a_new_key_has_no_then():
    assert [str(c) for c in changes({"a": True, "b": 1}, {"a": 1, "b": 1, "c": None})] == [
        "a: true then, 1 now",
        "c: nothing then, null now",
    ]


def test_the_batch_size_changes_at_the_end_of_an_epoch_only(tmp_path):
    with pytest.raises(Killed):
        go(tmp_path / "run", stop_at=9, every=4)
    before = files(tmp_path / "run")
    with pytest.raises(
        SpecError, match=r"fit.batch_size: cannot change here: .*in the middle of epoch 2, behind batch 1"
    ):
        go(tmp_path / "run", "fit.batch_size", batch_size=2)
    assert files(tmp_path / "run") == before
    go(tmp_path / "run")
    history, _, trainer = go(tmp_path / "run", "fit", epochs=5, batch_size=2)
    assert len(history) == 5 and trainer.step == 4 * 7 + 13


def test_fewer_epochs_or_steps_than_are_done_are_refused(tmp_path):
    go(tmp_path / "run")
    before = files(tmp_path / "run")
    with pytest.raises(SpecError, match="fit.epochs: is 3, but 4 epochs are done already: give more"):
        go(tmp_path / "run", "fit.epochs", epochs=3)
    with pytest.raises(SpecError, match="fit.max_steps: is 20, but 28 steps are done already: give more"):
        go(tmp_path / "run", "fit.max_steps", max_steps=20)
    assert files(tmp_path / "run") == before


def test_a_change_that_ends_nothing_leaves_a_finished_run_finished(tmp_path):
    stopped = {"epochs": 40, "callbacks": {"EarlyStopping": {"patience": 2}}}
    for name, wanted in (("epochs", {}), ("early", stopped)):
        whole, weights, _ = go(tmp_path / name, **wanted)
        history, found, _ = go(tmp_path / name, "fit.clip_norm", clip_norm=9.0, **wanted)
        assert hexed(history) == hexed(whole) and history.stopped == whole.stopped
        assert same_bits(found, weights)


def test_another_torch_or_another_number_of_threads_needs_leave(tmp_path, monkeypatch):
    monkeypatch.setattr(tier, "SMALL_WORK", 0)  # else one thread is enough, on any machine
    with pytest.raises(Killed):
        go(tmp_path / "run", stop_at=9)
    monkeypatch.setattr(torch, "__version__", "99.0")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    with pytest.raises(SpecError, match=r"torch: .* then, \"99.0\" now: --allow-change torch permits it\n  threads: "):
        go(tmp_path / "run")
    go(tmp_path / "run", "torch", "threads")
    environment = json.loads((tmp_path / "run/env.json").read_text())
    assert (environment["torch"], environment["threads"]) == ("99.0", 77)
    assert go(tmp_path / "run")[2] is None


@pytest.mark.parametrize(
    ("key", "hint"), [("fit.epoch", 'mean "fit.epochs"'), ("lr", "The keys are"), ("", "The keys")]
)
def test_a_key_that_does_not_exist_is_refused(key, hint, tmp_path):
    go(tmp_path / "run")
    with pytest.raises(SpecError, match=f"--allow-change {key}: this run has no such key.*{hint}"):
        go(tmp_path / "run", key)


def test_a_change_is_allowed_to_a_resumed_run_only(tmp_path):
    with pytest.raises(SpecError, match="only a run that is resumed"):
        go(tmp_path / "run", "fit.epochs", resume=False)
    with pytest.raises(SpecError, match=r"takes a list of keys: write \['fit.epochs'\]"):
        fitkit.fit(spec(), model=linear(4, 3), data=DATA, out=tmp_path / "run", resume=True, allow_change="fit.epochs")


def test_a_finished_run_without_a_checkpoint_cannot_go_further(tmp_path):
    go(tmp_path / "run")
    for step in checkpoint.steps(tmp_path / "run/checkpoints"):
        for path in (tmp_path / f"run/checkpoints/step-{step}").iterdir():
            path.unlink()
        (tmp_path / f"run/checkpoints/step-{step}").rmdir()
    before = files(tmp_path / "run")
    with pytest.raises(CheckpointError, match="finished and has no checkpoint to go on from"):
        go(tmp_path / "run", "fit.epochs", epochs=9)
    assert files(tmp_path / "run") == before


@pytest.mark.parametrize("limit", [{"epochs": 4}, {"epochs": 9, "max_steps": 17}])
def test_a_finished_run_holds_a_checkpoint_of_its_last_step_and_no_more_than_two(limit, tmp_path):
    _, _, trainer = go(tmp_path / "run", **limit)
    assert checkpoint.steps(tmp_path / "run/checkpoints") == [trainer.step]
    _, _, trainer = go(tmp_path / "often", every=3, **limit)
    kept = checkpoint.steps(tmp_path / "often/checkpoints")
    assert len(kept) == 2 and kept[-1] == trainer.step


def test_a_run_killed_after_it_stopped_early_is_not_gone_on_with(tmp_path, monkeypatch):
    """The checkpoint of its last step is there, but nobody wrote that it is finished."""
    wanted = {"epochs": 40, "callbacks": {"EarlyStopping": {"patience": 2}}}
    whole, weights, _ = go(tmp_path / "whole", **wanted)

    def die(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(fitkit.Trainer, "_refuse_no_best", die)
        patch.setattr(run_folder.RunFolder, "close", lambda *_: None)
        with pytest.raises(Killed):
            go(tmp_path / "run", **wanted)
    history, found, _ = go(tmp_path / "run", **wanted)
    assert hexed(history) == hexed(whole) and history.stopped == whole.stopped
    assert same_bits(found, weights)


def test_the_command_line_takes_the_option_several_times(tmp_path, monkeypatch, capsys):
    from fitkit.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text("data: iris\nmodel: {mlp: [8]}\nfit: {epochs: 2, device: cpu}\n")
    fit = ["fit", "s.yaml", "--quiet", "--out", "run"]
    assert main(fit) == 0
    more = ["fit.epochs=3", "optimizer.AdamW.lr=1e-4"]
    assert main([*fit, "--resume", *more]) == 2
    assert "Go on with --allow-change optimizer.AdamW.lr --allow-change fit.epochs" in capsys.readouterr().err
    allow = ["--allow-change", "fit.epochs", "--allow-change", "optimizer.AdamW.lr"]
    assert main([*fit, *allow, *more]) == 2
    assert "give --resume" in capsys.readouterr().err
    assert main([*fit, "--resume", *allow, *more]) == 0
    assert len(run_folder.read_history(tmp_path / "run")) == 3


def test_a_process_that_is_forked_does_not_hold_the_lock_on(tmp_path):
    """A loader's worker outlives a killed run for seconds, in which a resume would be refused."""
    with locked(tmp_path):
        ready, go_on = os.pipe(), os.pipe()
        child = os.fork()
        if not child:
            os.write(ready[1], b"x")
            os.read(go_on[0], 1)
            os._exit(0)
        os.read(ready[0], 1)
        os.link(tmp_path / LOCK, tmp_path / "kept")
    program = f"import fcntl; fcntl.flock(open({str(tmp_path / 'kept')!r}), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    try:
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
    finally:
        os.write(go_on[1], b"x")
        os.waitpid(child, 0)


def test_what_no_number_hangs_on_may_be_asked_otherwise(tmp_path):
    spec = {"data": "iris", "model": "mlp", "fit": {"epochs": 1}}
    fitkit.fit(spec, out=tmp_path / "r")
    again = fitkit.fit(spec, out=tmp_path / "r", resume=True, overrides={"fit.check_data": False})
    assert len(again) == 1  # finished, and not refused
