"""Some of the runs of benchmarks/diagnosis.py, with a seed on which no rule was written."""

import pytest
import torch

import fitkit
from benchmarks.diagnosis import alarms, diagnosed, is_right
from benchmarks.diagnosis_cases import HEALTHY, PATHOLOGIES

SEED = 2000
ILL = [
    "learning rate x100 AdamW",
    "learning rate 100th SGD",
    "shuffled labels of a table",
    "no regularization on a large net",
    "class imbalance",
    "dead ReLU",
]
WELL = [
    "specs/iris.yaml",
    "specs/diabetes.yaml",
    "digits SGD momentum",
    "breast cancer dropout",
    "noisy classes linear model",
]
CASES = {case.name: case for case in (*PATHOLOGIES, *HEALTHY)}


@pytest.mark.parametrize("name", [*ILL, *WELL])
def test_an_ill_run_is_found_and_a_healthy_one_left_alone(name, monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)  # where the specs of the gallery are
    found = diagnosed(CASES[name].make(SEED))
    assert is_right(CASES[name], found), (alarms(found), found.verdict)


def test_there_are_at_least_twenty_kinds_of_each_and_each_is_named_once():
    assert len(PATHOLOGIES) >= 20 and len(HEALTHY) >= 20
    assert len(CASES) == len(PATHOLOGIES) + len(HEALTHY)
    assert all(case.names for case in PATHOLOGIES) and not any(case.names for case in HEALTHY)


def test_a_class_that_no_row_has_does_not_end_a_weighted_fit():
    x, y = torch.randn(40, 4), torch.arange(40) % 2
    spec = {"loss": {"cross_entropy": {"class_weight": [0.3, 1.7, 2.9]}}, "fit": {"epochs": 1}}
    history = fitkit.Model(torch.nn.Linear(4, 3).double()).fit(spec, data=(x.double(), y))
    assert 0 < history.baseline["val_loss"] < 0.7 and history.baseline["val_accuracy"] == 0.5


@pytest.mark.parametrize("loss", ["mse_loss", "l1_loss", "huber_loss"])
def test_what_a_constant_reaches_is_known_for_torchs_own_losses(loss):
    x, y = torch.randn(60, 3), torch.arange(60.0)
    spec = {"loss": loss, "fit": {"epochs": 1, "check_data": False}, "splits": {"random": {"val": 0}}}
    history = fitkit.Model(torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.Flatten(0))).fit(spec, data=(x, y))
    constant = torch.full((60,), 29.0 if loss != "mse_loss" else 29.5)
    expected = torch.nn.functional.__dict__[loss](constant, y).item()
    assert history.baseline["loss"] == pytest.approx(expected, rel=1e-5)
