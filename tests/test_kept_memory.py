"""What a step frees is kept for the next one."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from fitkit.engine.memory import keep_what_is_freed

def step():
    return [torch.ones(1 << 20) for _ in range(8)]  # 4 MiB each

if sys.argv[1] == "keep":
    keep_what_is_freed(torch.device("cpu"))
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(what):
    """Return how many pages 10 steps of 8,192 pages asked the system for."""
    limits = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", PROGRAM, what]
    return int(subprocess.run(command, env=limits, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_steps_do_not_ask_the_system_for_the_same_pages_again():
    assert faults("keep") < 10_000 < faults("leave")
