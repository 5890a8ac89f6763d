"""What a step frees is kept for the next one, and given back when the fit is over."""

import ctypes
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import fitkit
from fitkit.engine import memory

GLIBC = hasattr(ctypes.CDLL(None), "mallopt") and hasattr(ctypes.CDLL(None), "malloc_trim")
CPU = torch.device("cpu")


@pytest.fixture
def asked(monkeypatch):
    """What the C library is asked for."""
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_"))]:
        monkeypatch.delenv(name)
    calls = []
    library = SimpleNamespace(
        mallopt=lambda name, value: calls.append((name, value)), malloc_trim=lambda pad: calls.append("trim")
    )
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: library)
    return calls


def fit(model, *callbacks):
    spec = {"splits": {"random": {"val": 0}}, "fit": {"epochs": 1, "batch_size": 4, "device": "cpu"}}
    return fitkit.fit(spec, model=model, data=(torch.zeros(8, 2), torch.arange(8) % 2), callbacks=callbacks)


@pytest.mark.skipif(sys.platform != "linux", reason="asks glibc")
def test_a_fit_keeps_memory_and_gives_it_back_also_after_an_error(asked):
    fit(nn.Linear(2, 2))
    assert asked == [(-3, 256 << 20), (-1, 1 << 30), (-3, 32 << 20), (-1, 64 << 20), "trim"]
    asked.clear()

    def fail(trainer):
        raise ValueError("so")

    with pytest.raises(ValueError, match="so"):
        fit(nn.Linear(2, 2), fitkit.LambdaCallback(on_epoch_begin=fail))
    assert asked[-1] == "trim" and asked.count("trim") == 1


def test_another_c_library_limits_of_the_user_s_and_a_gpu_are_left_alone(asked, monkeypatch):
    with memory.kept_memory(torch.device("cuda")):
        pass
    assert not asked
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    with memory.kept_memory(CPU):
        pass
    assert not asked
    monkeypatch.delenv("MALLOC_ARENA_MAX")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: SimpleNamespace())
    with memory.kept_memory(CPU):
        pass
    assert not asked


PROGRAM = """
import resource, torch
from fitkit.engine.memory import kept_memory
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    blocks = [torch.ones(1 << 20) for _ in range(8)]  # 4 MiB each
with kept_memory(torch.device("cpu")):
    step()
    before = faults()
    for _ in range(10):
        step()
    during = faults() - before
print(during)
"""


@pytest.mark.skipif(not (sys.platform == "linux" and GLIBC), reason="the C library is not glibc on Linux")
def test_steps_do_not_ask_the_system_for_the_same_pages_again():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 10_000  # of 81,920 in 10 steps
