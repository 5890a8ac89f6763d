"""Every mistake of the corpus gets its exact words, before training, and leaves nothing behind."""

import subprocess
import sys

import pytest
import torch
from corpus import COMMANDS, NAMES, PYTHON

import fitkit
from fitkit import files
from fitkit.cli import main
from fitkit.engine.step import TrainStep


@pytest.fixture(autouse=True)
def a_machine_without_a_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(files, "available_memory", lambda: 16 * 10**9)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_training(monkeypatch):
    def train(*arguments):
        raise AssertionError("training began")

    monkeypatch.setattr(TrainStep, "__call__", train)


def everything(folder):
    return {str(path): path.is_dir() or path.read_bytes() for path in folder.rglob("*")}


def test_the_corpus_is_large_and_says_where_each_case_is_from():
    assert len(COMMANDS) + len(PYTHON) >= 200
    names = [name for name, _ in COMMANDS + PYTHON]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("case", [case for _, case in COMMANDS], ids=[name for name, _ in COMMANDS])
def test_a_mistake_is_told_before_training(case, tmp_path, monkeypatch, capsys, no_training):
    case.write(tmp_path)
    for module in case.without:
        monkeypatch.setitem(sys.modules, module, None)
    before = everything(tmp_path)
    code = main(case.command)
    printed = capsys.readouterr()
    assert printed.err == case.expected(tmp_path)
    assert (code, printed.out) == (2, "")
    assert everything(tmp_path) == before


FITS = [(name, case) for name, case in COMMANDS if case.command[0] == "fit" and "--out" not in case.command]


@pytest.mark.parametrize("case", [case for _, case in FITS[::4]], ids=[name for name, _ in FITS[::4]])
def test_check_says_what_fit_says(case, tmp_path, monkeypatch, capsys):
    case.write(tmp_path)
    for module in case.without:
        monkeypatch.setitem(sys.modules, module, None)
    assert main(["check", *case.command[1:]]) == 2
    assert capsys.readouterr().err == case.expected(tmp_path)


@pytest.mark.parametrize("case", [case for _, case in FITS[::50]], ids=[name for name, _ in FITS[::50]])
def test_a_process_of_its_own_says_the_same(case, tmp_path):
    case.write(tmp_path)
    done = subprocess.run([sys.executable, "-m", "fitkit", *case.command], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", case.expected(tmp_path))


@pytest.mark.parametrize("case", [case for _, case in PYTHON], ids=[name for name, _ in PYTHON])
def test_a_mistake_in_python_is_told_before_training(case, tmp_path, monkeypatch):
    if not case.name.startswith("predictions"):
        monkeypatch.setattr(TrainStep, "__call__", lambda *_: pytest.fail("training began"))
    with pytest.raises((fitkit.FitkitError, ValueError)) as caught:
        exec(case.files["spec.yaml"], dict(NAMES))
    assert f"{type(caught.value).__name__}: {caught.value}\n" == case.expected(tmp_path)
    assert not list(tmp_path.iterdir())
