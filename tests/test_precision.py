"""`fit.precision: auto`: bf16 where the device has it and it pays, and a run goes on in the precision it began in."""

import json

import pytest
import torch
from torch import nn

import fitkit
from fitkit.engine import tier
from fitkit.errors import SpecError
from fitkit.session import run

X, Y = torch.randn(64, 3, 16, 16), torch.arange(64) % 3


@pytest.fixture(autouse=True)
def work(monkeypatch):
    """Small steps are enough here."""
    monkeypatch.setattr(tier, "BF16_WORK", 1e7)
    monkeypatch.setattr(tier, "has_bf16", lambda: True)


class Net(nn.Sequential):
    def __init__(self, outputs=3):
        torch.manual_seed(0)
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, outputs)
        )


class Own(Net):
    """Code that asks for float32: autocast would make it fail."""

    def forward(self, x):
        out = torch.zeros(len(x), 8, 16, 16)
        out.index_put_((torch.arange(len(x)),), self[0](x))
        return self[4](out.mean((2, 3)))


def declared(**fit):
    return {"splits": {"random": {"val": 0}}, "fit": {"epochs": 1, "batch_size": 32, "device": "cpu", **fit}}


def chosen(model=None, data=(X, Y), **fit):
    return fitkit.build(declared(**fit), model=model or Net(), data=data)


def test_a_convnet_on_a_cpu_with_bf16_takes_it_and_says_so(tmp_path):
    trainer = chosen()
    assert trainer.objective.precision is torch.bfloat16
    assert "cpu, bfloat16" in str(trainer) and trainer.card["precision"] == "bfloat16"
    assert fitkit.plan(declared(), Net(), (X, Y)).precision == "bfloat16"
    run(fitkit.load_spec(declared()), model=Net(), data=(X, Y), out=tmp_path / "run")
    assert json.loads((tmp_path / "run" / "env.json").read_text())["precision"] == "bfloat16"


def test_a_cpu_without_bf16_computes_in_fp32(monkeypatch):
    monkeypatch.setattr(tier, "has_bf16", lambda: False)
    assert chosen().objective.precision is None


@pytest.mark.parametrize(
    ("model", "data", "fit"),
    [
        (Net(), (X, Y), {"precision": "fp32"}),
        (Net(), (X, Y), {"batch_size": 1}),
        (nn.Sequential(nn.Flatten(), nn.Linear(768, 512), nn.Linear(512, 3)), (X, Y), {}),
        (Net().double(), (X, Y), {}),
        (Net(1), (X, torch.randn(64, 1)), {}),
        (Own(), (X, Y), {}),
    ],
    ids=["fp32 asked for", "small steps", "no convolutions", "float64", "values", "code that asks for float32"],
)
def test_what_stays_in_its_own_precision(model, data, fit):
    assert chosen(model, data, **fit).objective.precision is None


def test_the_probe_is_a_truth_value_and_silent_where_torch_says_nothing(monkeypatch):
    from fitkit.engine.private import has_bf16

    assert has_bf16() in (True, False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert has_bf16() is False


def test_a_run_begun_in_bf16_is_not_gone_on_with_in_fp32_unseen(monkeypatch, tmp_path):
    def end(trainer):
        raise KeyboardInterrupt

    def fit(*callbacks, **more):
        return run(fitkit.load_spec(declared()), model=Net(), data=(X, Y), out=tmp_path, callbacks=callbacks, **more)

    with pytest.raises(KeyboardInterrupt):
        fit(fitkit.LambdaCallback(on_step_end=end), every_steps=1)
    monkeypatch.setattr(tier, "has_bf16", lambda: False)
    with pytest.raises(SpecError, match='precision: "bfloat16" then, "float32" now: --allow-change precision permits'):
        fit(resume=True)
    _, trainer = fit(resume=True, allow_change=["precision"])
    environment = json.loads((tmp_path / "env.json").read_text())
    assert environment["precision"] == "float32" and environment["changes"][0]["key"] == "precision"
