"""Two thousand mutated specs and headers each, on every change; a hundred thousand before a release (see fuzz.py)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")


@pytest.mark.parametrize("kind", ["specs", "headers"])
def test_mutants_end_in_an_error_of_ours_within_bounds(kind):
    command = [sys.executable, "-m", "tests.fuzz", kind, "2000", "0", "60"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
