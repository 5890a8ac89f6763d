"""Some of the runs of benchmarks/diagnosis.py, with a seed on which no rule was written."""

import pytest

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
