"""What needs a GPU: skipped visibly where there is none."""

import pytest
import torch
from torch import nn

import fitkit
from fitkit.engine.step import TrainStep

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
X = torch.randn(256, 20, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()


def fit(seed=0, **options):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 3))
    spec = {"splits": {"random": {"val": 0.25}}, "fit": {"epochs": 3, "device": "cuda", **options}}
    return model, fitkit.Model(model).fit(spec, data=(X, Y))


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
    trainer = fitkit.build(spec, model=model, data=(X, Y))
    original = TrainStep.__call__

    def watched(step, *arguments):
        torch.cuda.set_sync_debug_mode("error" if arguments[-1] else "default")  # the first step sets the GPU up
        try:
            return original(step, *arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(TrainStep, "__call__", watched)
    trainer.fit()


def test_two_deterministic_fits_are_the_same_to_the_bit():
    first, second = (fit(deterministic=True)[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_step_that_overflows_in_fp16_is_skipped_and_counted():
    model = nn.Linear(20, 3)
    spec = {"splits": {"random": {"val": 0}}, "fit": {"epochs": 1, "device": "cuda", "precision": "fp16"}}
    trainer = fitkit.build(spec, model=model, data=(X * 1e4, Y))
    history = trainer.fit()
    assert trainer.step + history.skipped_steps == 8
