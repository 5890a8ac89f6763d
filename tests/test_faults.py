"""What goes wrong while a fit trains: a loss that is not finite, memory that runs out, workers that die."""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from small_fit import labels, linear, numbers, same_bits, spec
from torch import nn
from torch.utils.data import Dataset, IterableDataset

import fitkit
from fitkit import trainer as trainer_module
from fitkit.engine import checkpoint
from fitkit.errors import DataError, SpecError, TrainingError
from fitkit.session import run

DATA = {"train": (numbers(26, 4), labels(3, 26)), "val": (numbers(10, 4, seed=1), labels(3, 10))}


def spoil(step, value=math.nan):
    """Return a callback that makes a weight NaN after this step, so that the loss is from the next one on."""

    def change(trainer):
        if trainer.step == step:
            trainer.model[0].weight.data[0, 0] = value

    return fitkit.LambdaCallback(on_step_end=change)


# A loss that is not finite


@pytest.fixture
def tick_every_step(monkeypatch):
    monkeypatch.setattr(trainer_module, "TICK_SECONDS", 0.0)


def test_a_loss_that_is_not_finite_is_found_within_the_epoch_and_the_steps_are_named(tick_every_step):
    trainer = fitkit.build(spec(epochs=9, batch_size=1), model=linear(4, 3), data=DATA, callbacks=[spoil(30)])
    with pytest.raises(TrainingError, match=r'"loss" is nan in epoch 2, since step 31\. Try') as error:
        trainer.fit()
    assert trainer.step == 31 and len(error.value.history) == 1


def test_without_a_tick_in_between_the_steps_since_the_last_look_are_named():
    trainer = fitkit.build(spec(epochs=9, batch_size=1), model=linear(4, 3), data=DATA, callbacks=[spoil(30)])
    with pytest.raises(TrainingError, match=r"in epoch 2, since one of the steps 27 to 52\."):
        trainer.fit()


def test_ten_looks_a_second_at_most_and_none_at_the_loss_in_between(monkeypatch):
    looks, ticks, now = [], [], [0.0]
    monkeypatch.setattr(trainer_module.time, "perf_counter", lambda: now[0])
    original = fitkit.Trainer.running_loss
    monkeypatch.setattr(fitkit.Trainer, "running_loss", lambda self: looks.append(self.step) or original(self))

    def pass_time(trainer):
        now[0] += 0.03

    watch = fitkit.LambdaCallback(on_step_end=pass_time, on_tick=lambda t: ticks.append(t.step))
    fitkit.build(spec(batch_size=1), model=linear(4, 3), data=DATA, callbacks=[watch]).fit()
    assert looks == ticks == [4, 8, 12, 16, 20, 24, 26]


def test_ticks_change_no_bit(tick_every_step):
    def fitted():
        module = linear(4, 3, nn.Dropout(0.3))
        history = fitkit.Model(module).fit(spec(epochs=3), data=DATA)
        return module.state_dict(), history["loss"]

    often = fitted()
    trainer_module.TICK_SECONDS = 1e9
    seldom = fitted()
    assert same_bits(often[0], seldom[0]) and often[1] == seldom[1]


def test_a_checkpoint_never_holds_a_state_whose_loss_was_not_finite(tmp_path):
    wanted = fitkit.load_spec(spec(epochs=9, batch_size=1))
    with pytest.raises(TrainingError, match=r"step 30 left NaN or infinity in the weights") as error:
        run(wanted, model=linear(4, 3), data=DATA, out=tmp_path / "run", callbacks=[spoil(30)], every_steps=2)
    folder = tmp_path / "run" / "checkpoints"
    assert f"The last good checkpoint is {folder / 'step-28'}." in str(error.value)
    assert checkpoint.steps(folder) == [26, 28]


def test_weights_that_are_not_finite_are_not_written_though_the_loss_is(tmp_path):
    """The weight is of a token that no later row holds, so that the loss would stay finite."""

    def change(trainer):
        if trainer.step == 3:
            trainer.model[0].weight.data[7] = math.inf

    module = nn.Sequential(nn.Embedding(8, 4), nn.Flatten(), nn.Linear(8, 2))
    data = {"train": (labels(6, 24, 2), labels(2, 24))}
    wanted = fitkit.load_spec(spec(epochs=3, optimizer={"SGD": 0.1}))
    spoiled = fitkit.LambdaCallback(on_step_end=change)
    with pytest.raises(TrainingError, match=r"step 4 left NaN or infinity in the weights\. The last good"):
        run(wanted, model=module, data=data, out=tmp_path / "run", callbacks=[spoiled], every_steps=2)
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == [2]


def test_large_weights_are_finite_although_their_norm_is_not(tmp_path):
    module = linear(4, 3).float()
    module[0].bias.data.fill_(1e30)
    wanted = fitkit.load_spec(spec(lr=1e-9))
    run(wanted, model=module, data=DATA, out=tmp_path / "run", every_steps=3)
    assert checkpoint.steps(tmp_path / "run" / "checkpoints")


def test_a_spec_that_names_terminate_on_nan_has_it_once():
    trainer = fitkit.build(spec(callbacks=["TerminateOnNaN"]), model=linear(4, 3), data=DATA)
    assert [type(callback).__name__ for callback in trainer.callbacks] == ["TerminateOnNaN"]


def test_a_batch_in_which_nothing_counts_is_no_nan(tick_every_step):
    y = labels(3, 12, 5)
    y[:] = torch.where(torch.arange(12)[:, None] % 2 == 0, y, -100)
    wanted = spec(batch_size=1, loss={"cross_entropy": {"ignore_index": -100}})
    history = fitkit.Model(linear(4, 3)).fit(wanted, data={"train": (numbers(12, 5, 4), y)})
    assert math.isfinite(history.last["loss"])


# Memory that runs out


class Limited(nn.Module):
    """Takes at most `most` rows at once, as a small device does; counts what it was asked for."""

    def __init__(self, most, error=None):
        super().__init__()
        self.most, self.asked = most, []
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …")

    def forward(self, x):
        self.asked.append((len(x), self.training))
        if len(x) > self.most:
            raise self.error
        return x


def limited(most, *tail, error=None):
    module = linear(4, 3, *tail)
    module.append(Limited(most, error))
    return module


def fitted(module, data=DATA, out=None, callbacks=(), **wanted):
    history = fitkit.Model(module).fit(spec(epochs=3, **wanted), data=data, out=out, callbacks=callbacks)
    return history, dict(module.state_dict())


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
    MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_memory_that_runs_out_ends_the_run_with_the_numbers_that_keep_the_step(error):
    with pytest.raises(TrainingError) as caught:
        fitted(limited(7, error=error), batch_size=12, accumulate=2)
    message = str(caught.value)
    assert message.startswith("step 1: memory does not suffice for a forward pass of 12 rows")
    assert "Make fit.batch_size 6 and fit.accumulate 4: the optimizer step stays the same." in message
    assert "fit.out_of_memory: halve" in message
    assert ("(it asked for 2.00 GiB)" in message) == ("2.00" in str(error))
    assert len(caught.value.history) == 0


def test_memory_that_runs_out_in_the_evaluation_is_told_too():
    data = {**DATA, "val": (numbers(30, 4), labels(3, 30))}
    module = limited(99)
    module[1].forward = lambda x: Limited(99 if module.training else 3).forward(x)
    with pytest.raises(TrainingError, match="evaluation: memory does not suffice for a forward pass of 4 rows"):
        fitted(module, data)


def test_an_evaluation_that_would_be_too_large_is_done_in_batches_as_they_are_trained():
    data = {**DATA, "val": (numbers(30, 4), labels(3, 30))}
    roomy, narrow = (limited(99) for _ in range(2))
    narrow[1].forward = lambda x: Limited(99 if narrow.training else 4).forward(x)
    first, second = (fitted(module, data)[0] for module in (roomy, narrow))
    assert second["val_loss"] == pytest.approx(first["val_loss"], rel=1e-6)


def test_another_runtime_error_stays_what_it_is():
    class Fails(nn.Module):
        def forward(self, x):
            if self.training:
                raise RuntimeError("of another kind")
            return x

    with pytest.raises(RuntimeError, match="of another kind"):
        fitted(linear(4, 3, Fails()), out_of_memory="halve")


def test_memory_that_runs_out_in_the_optimizer_is_told_as_such(monkeypatch):
    def step(*_, **__):
        raise torch.OutOfMemoryError("Tried to allocate 5.00 GiB.")

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    with pytest.raises(TrainingError, match=r"epoch 1, step 1: memory ran out outside of a forward pass \(it asked"):
        fitted(linear(4, 3), out_of_memory="halve")


WAYS = {
    "plain": {},
    "accumulated": {"accumulate": 3},
    "ragged": {"batch_size": 7, "accumulate": 2},
    "clipped": {"clip_norm": 0.1},
    "weighted": {"loss": {"cross_entropy": {"class_weight": [0.3, 1.7, 2.9]}}},
}


@pytest.mark.filterwarnings("ignore:step 1. memory does not suffice")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("most", [1, 2, 3, 5])
def test_halving_leaves_the_steps_as_they_are(way, most):
    """R11: the same number of optimizer steps, and weights within 1e-6 of the run without a failure."""
    wanted = {"batch_size": 12, "optimizer": {"AdamW": 0.05}, **WAYS[way]}
    expected, weights = fitted(limited(99), **wanted)
    module = limited(most)
    history, found = fitted(module, **wanted, out_of_memory="halve")
    assert history.micro_batch <= most and expected.micro_batch is None
    assert sum(rows > most for rows, training in module[1].asked if training) <= 4  # halved at most four times
    for name in weights:
        torch.testing.assert_close(found[name], weights[name], rtol=1e-6, atol=1e-9)
    for column in ("loss", "accuracy", "val_loss", "val_accuracy"):
        assert history[column] == pytest.approx(expected[column], rel=1e-6)


def test_halving_is_told_once_with_both_numbers_and_stays(tmp_path):
    module = limited(3)
    with pytest.warns(UserWarning, match=r"step 1: memory does not suffice for \d+ rows") as told:
        history, _ = fitted(module, batch_size=12, out_of_memory="halve", out=tmp_path / "run")
    assert [str(warning.message).split("Going on with ")[1][:20] for warning in told] == [
        "micro-batches of 6, ",
        "micro-batches of 3, ",
    ]
    assert history.micro_batch == 3
    assert fitkit.History.from_json((tmp_path / "run/history.json").read_text()).micro_batch == 3


@pytest.mark.filterwarnings("ignore:step 1. memory does not suffice")
def test_a_resumed_run_keeps_the_micro_batch_and_ends_in_the_same_bits(tmp_path):
    class Killed(BaseException):
        pass

    def die(trainer):
        if trainer.step == 4:
            raise Killed

    wanted = fitkit.load_spec(spec(epochs=3, batch_size=12, out_of_memory="halve", optimizer={"AdamW": 0.05}))

    def go(module, folder, *callbacks):
        watch = callbacks or [fitkit.LambdaCallback()]
        history, _ = run(wanted, model=module, data=DATA, out=folder, resume=True, callbacks=watch, every_steps=2)
        return history, dict(module.state_dict())

    whole, weights = go(limited(3, nn.Dropout(0.3)), tmp_path / "whole")
    with pytest.raises(Killed):
        go(limited(3, nn.Dropout(0.3)), tmp_path / "cut", fitkit.LambdaCallback(on_step_end=die))
    module = limited(99, nn.Dropout(0.3))  # memory would suffice now: the numbers must not depend on that
    history, found = go(module, tmp_path / "cut")
    assert same_bits(found, weights) and history["val_loss"] == whole["val_loss"]
    assert history.micro_batch == 3 and max(rows for rows, training in module[2].asked if training) == 3


@pytest.mark.filterwarnings("ignore:step 2. memory does not suffice")
def test_a_failure_in_the_middle_of_a_window_leaves_nothing_behind():
    """Gradients and sums of the batches before it would be counted twice, and dropout would go on drawing."""

    class Once(nn.Module):
        def __init__(self, fails):
            super().__init__()
            self.fails, self.calls = fails, 0

        def forward(self, x):
            self.calls += 1
            if self.fails and self.calls == 6:  # the build takes the first, a step three
                raise torch.OutOfMemoryError("now")
            return x

    def go(fails):
        module = linear(4, 3)
        module.append(Once(fails))
        history, found = fitted(module, batch_size=4, accumulate=3, out_of_memory="halve")
        return history, found

    expected, weights = go(False)
    history, found = go(True)
    for name in weights:
        torch.testing.assert_close(found[name], weights[name], rtol=1e-12, atol=1e-13)
    assert history["loss"] == pytest.approx(expected["loss"], rel=1e-12)


def test_halving_is_refused_where_rows_of_a_batch_look_at_each_other():
    with pytest.raises(SpecError, match=r"fit.out_of_memory: BatchNorm1d takes its mean and variance from the rows"):
        fitted(linear(4, 3, nn.BatchNorm1d(3).double()), out_of_memory="halve")
    frozen = linear(4, 3, nn.BatchNorm1d(3).double().eval())
    fitkit.build(spec(out_of_memory="halve"), model=frozen, data=DATA)


def test_advice_for_batchnorm_does_not_promise_the_same_numbers():
    with pytest.raises(TrainingError, match=r"stays the same \(but BatchNorm1d will see fewer rows") as caught:
        fitted(limited(3, nn.BatchNorm1d(3).double()))
    assert "halve" not in str(caught.value)


def test_halving_is_refused_when_training_changes_a_buffer():
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x):
            self.seen += 1
            return x

    module = linear(4, 3, Counter())
    module.append(Limited(3))
    with pytest.raises(TrainingError, match=r'buffer "1.seen" changes in training'):
        fitted(module, out_of_memory="halve")


@pytest.mark.filterwarnings("ignore:step 1. memory does not suffice")
def test_a_single_row_that_does_not_fit_ends_the_run():
    with pytest.raises(TrainingError, match="of a single row .*Take a smaller model"):
        fitted(limited(0), out_of_memory="halve")


@pytest.mark.filterwarnings("ignore:step 1. memory does not suffice")
def test_the_command_line_ends_with_3(tmp_path, monkeypatch, capsys):
    from fitkit.cli import main

    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: Limited(20).forward(x))
    (tmp_path / "spec.yaml").write_text("data: iris\nmodel: {mlp: [8]}\nfit: {epochs: 2, device: cpu}\n")
    assert main(["fit", str(tmp_path / "spec.yaml"), "--out", str(tmp_path / "run"), "--quiet"]) == 3
    assert "Make fit.batch_size 16 and fit.accumulate 2" in capsys.readouterr().err


# Workers that die

any_cores = pytest.mark.filterwarnings("ignore:This DataLoader will create")


class Rows(Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, row):
        if row == 17:
            self.fail()
        return torch.full((4,), float(row), dtype=torch.float64), torch.tensor(row % 3)

    def fail(self):
        pass


class Broken(Rows):
    def fail(self):
        return {}["no such image"]


class Dies(Rows):
    number = signal.SIGKILL

    def fail(self):
        os.kill(os.getpid(), self.number)


class Crashes(Dies):
    number = signal.SIGSEGV


class Exits(Rows):
    def fail(self):
        os._exit(3)


class Signalled(Rows):
    def fail(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)


@any_cores
@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_dataset_names_the_row_and_the_line(workers):
    with pytest.raises(
        DataError, match=r"reading row 17 failed: KeyError: 'no such image' \(.*test_faults.py:\d+, in fa"
    ):
        fitted(linear(4, 3), data={"train": Broken()}, workers=workers)


@any_cores
@pytest.mark.parametrize("workers", [0, 2])
def test_samples_that_do_not_go_together_are_told_without_a_traceback(workers):
    class Uneven(Rows):
        def __getitem__(self, row):
            return torch.zeros(4 + (row == 17)).double(), torch.tensor(0)

    with pytest.raises(DataError, match=r'data\["train"\]: reading the data failed: RuntimeError: stack') as caught:
        fitted(linear(4, 3), data={"train": Uneven()}, workers=workers)
    assert "Traceback" not in str(caught.value)


@any_cores
@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_stream_is_told_without_a_traceback(workers):
    class Stream(IterableDataset):
        def __iter__(self):
            yield from (Rows()[row] for row in range(9))
            raise OSError("the connection was lost")

    loader = torch.utils.data.DataLoader(Stream(), batch_size=4, num_workers=workers)
    with pytest.raises(
        DataError, match=r'data\["train"\]: reading the data failed: OSError: the connection was lost\.$'
    ):
        fitted(linear(4, 3), data={"train": loader})


@any_cores
@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize(
    ("data", "said"),
    [
        (Dies(), r"was killed by the signal Killed\. Mostly memory has run out: take fewer workers"),
        (Crashes(), r"was killed by the signal Segmentation fault\. The code of the dataset crashed"),
        (Exits(), r"ended with exit code 3\."),
    ],
    ids=["killed", "crashed", "left"],
)
def test_a_worker_that_dies_is_told_and_not_waited_for(data, said, persistent, monkeypatch):
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.5)  # torch looks every five seconds
    loader = torch.utils.data.DataLoader(data, batch_size=4, num_workers=2, persistent_workers=persistent)
    with pytest.raises(DataError, match=rf"worker \d of 2 that read samples \(process \d+\) {said}"):
        fitted(linear(4, 3), data={"train": loader})


@any_cores
def test_workers_leave_signals_to_the_process_that_trains():
    expected, weights = fitted(linear(4, 3), data={"train": Rows()})
    history, found = fitted(linear(4, 3), data={"train": Signalled()}, workers=2)
    assert same_bits(found, weights) and history["loss"] == expected["loss"]


@any_cores
def test_the_function_that_a_user_gives_for_the_start_of_a_worker_is_called():
    class Tagged(Rows):
        offset = 0

        def __getitem__(self, row):
            x, y = super().__getitem__(row)
            return x + self.offset, y

    def start(number):
        torch.utils.data.get_worker_info().dataset.dataset.offset = 1000

    loader = torch.utils.data.DataLoader(Tagged(), batch_size=4, num_workers=1, worker_init_fn=start)
    trainer = fitkit.build(spec(), model=linear(4, 3), data={"train": loader})
    assert min(x.min().item() for x, _ in trainer.train.in_order()) == 1000


@any_cores
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_ends_a_run_with_workers_with_a_checkpoint(number, tmp_path):
    program = textwrap.dedent(f"""
        import sys, warnings
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        warnings.simplefilter("ignore")
        from small_fit import linear, spec
        from test_faults import Rows
        import fitkit
        from fitkit.engine.signals import Interrupted
        say = fitkit.LambdaCallback(on_epoch_end=lambda t: print(t.step, flush=True))
        try:
            fitkit.Model(linear(4, 3)).fit(
                spec(epochs=100000, workers=2), data={{"train": Rows()}}, out="run", callbacks=[say]
            )
        except Interrupted as error:
            sys.exit(int(error.signal))
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        start_new_session=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        assert process.stdout.readline()
        os.killpg(process.pid, number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == number, err
    assert "Traceback" not in err and "rror" not in err
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert checkpoint.steps(tmp_path / "run/checkpoints") == [summary["steps"]]
