"""Mutants: a run that forgets or freezes one piece of its state when it resumes; the comparison must notice each."""

import functools
import random
from unittest.mock import patch

import numpy
import torch

from fitkit import builder, session
from fitkit.after import verify
from fitkit.engine import batches, loading, seeds
from fitkit.engine import step as engine_step
from fitkit.errors import TrainingError
from fitkit.parts.callback import LambdaCallback

from .workloads import BATCH_SIZE, EAGER, SAMPLES, Workload

WORKLOAD = Workload("AdamW", 1, "plateau", True, "fp32", EAGER, "0 workers")
STOP_AT = 9 * -(-SAMPLES // BATCH_SIZE) + 5  # in epoch 10, behind the best one and the first drop of lr


class Killed(BaseException):
    """Ends a fit in the middle, as a kill does: nothing of it goes on."""


def fit(folder, number, stop_at=None, workload=WORKLOAD):
    """Run or resume, as a process of its own would: with other states of the global generators each time."""
    random.seed(number), numpy.random.seed(number), torch.manual_seed(number)

    def stop(trainer):
        if trainer.step == stop_at:
            raise Killed

    model, data = workload.parts()
    options = {"out": folder, "resume": True, "every_steps": 4, "callbacks": [LambdaCallback(on_step_end=stop)]}
    try:
        session.run(builder.load_spec(workload.spec()), model=model, data=data, **options)
    except Killed:
        return


# What a run forgets after it was restored ------------------------------------------------------------------------


def _position(trainer):
    trainer.batch = 0


def _moments(trainer):
    for state in trainer.optimizer.state.values():
        state["exp_avg"].zero_(), state["exp_avg_sq"].zero_()


def _steps_of_optimizer(trainer):
    for state in trainer.optimizer.state.values():
        state["step"].zero_()


def _lr(trainer):
    assert trainer.lr_factor < 1
    trainer.lr_factor = 1.0


def _scaler(trainer):
    fresh = torch.amp.GradScaler("cpu").state_dict()
    assert fresh != trainer.scaler.state_dict()
    trainer.scaler.load_state_dict(fresh)


def _averages(trainer):
    for weight, average in zip(_callback(trainer, "EMA").weights, _callback(trainer, "EMA").averages, strict=True):
        average.copy_(weight.detach())


def _buffers(trainer):
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.reset_running_stats()


def _best(trainer):
    assert trainer.history.best_epoch < trainer.epoch - 1
    trainer.best_value = None


def _patience(trainer):
    assert _callback(trainer, "EarlyStopping").wait > 0
    _callback(trainer, "EarlyStopping").wait = 0


def _best_weights(trainer):
    trainer.best = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def _sums(trainer):
    trainer.sums.load({name: torch.zeros_like(tensor) for name, tensor in trainer.sums.tensors().items()})


def _history(trainer):
    trainer.history.history["loss"][-1] += 1e-12


def _plateau(trainer):
    _callback(trainer, "ReduceLROnPlateau").best = None


def _callback(trainer, name):
    return next(callback for callback in trainer.callbacks if type(callback).__name__ == name)


def forgets(change):
    def restore(original, trainer, *arguments, **options):
        original(trainer, *arguments, **options)
        change(trainer)

    return [], [patch.object(session, "restore", functools.partial(restore, session.restore))]


# What is a function of (seed, where the run is), and there is broken ----------------------------------------------


def _seeds_all_but(generator):
    def seed_sample(seed):
        if generator != "python":
            random.seed(seed)
        if generator != "torch":
            torch.default_generator.manual_seed(seed)
        if generator != "numpy":
            numpy.random.seed(seed & 0xFFFFFFFF)

    return [patch.object(module, "seed_sample", seed_sample) for module in (seeds, loading)], []


def _seeds_no_step():
    return [patch.object(engine_step, "seed_step", lambda *_: None)], []


def _counts_epochs_anew():
    first = []

    def order(rows, seed, epoch):
        first.append(epoch)
        return seeds.order(rows, seed, epoch - first[0] + 1)

    return [], [patch.object(module, "order", order) for module in (batches, loading)]


# name -> the patches of every session, and those of the resumed one
MUTANTS = {
    "python RNG": lambda: _seeds_all_but("python"),
    "numpy RNG": lambda: _seeds_all_but("numpy"),
    "torch CPU RNG": lambda: _seeds_all_but("torch"),
    "device RNG": _seeds_no_step,
    "sampler epoch": _counts_epochs_anew,
    "position in epoch": lambda: forgets(_position),
    "optimizer moments": lambda: forgets(_moments),
    "optimizer step count": lambda: forgets(_steps_of_optimizer),
    "LR state": lambda: forgets(_lr),
    "scaler": lambda: forgets(_scaler),
    "EMA": lambda: forgets(_averages),
    "BatchNorm buffers": lambda: forgets(_buffers),
    "best score": lambda: forgets(_best),
    "patience counter": lambda: forgets(_patience),
}
MORE = {
    "best weights": lambda: forgets(_best_weights),
    "sums of the epoch": lambda: forgets(_sums),
    "history": lambda: forgets(_history),
    "best of the plateau": lambda: forgets(_plateau),
}


def scaled():
    """Return the patches that give a CPU fp16 with a loss scale that moves, as it is on a GPU."""
    scaler = functools.partial(torch.amp.GradScaler, init_scale=2.0**20, growth_interval=9)
    half = patch.object(builder, "choose_precision", lambda *_: torch.float16)
    return [half, patch.object(builder.torch.amp, "GradScaler", scaler)]


def is_caught(name, place, mutate=True):
    """Tell whether the comparison notices a mutant; with `mutate` false, whether it notices anything without one."""
    always, resumed = {**MUTANTS, **MORE}[name]() if mutate else ([], [])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # what is so small is no faster with more
    always = [*always, *(scaled() if name == "scaler" else [])]
    for each in always:
        each.start()
    try:
        fit(place / "whole", 1)
        fit(place / "cut", 2, stop_at=STOP_AT)
        for each in resumed:
            each.start()
        try:
            fit(place / "cut", 3)
        finally:
            for each in resumed:
                each.stop()
    finally:
        for each in always:
            each.stop()
        torch.set_num_threads(threads)
    try:
        verify.compare(place / "whole", place / "cut")
    except TrainingError:
        return True
    return False
