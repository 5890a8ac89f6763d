"""How long does fitkit take to start?

Processes from beginning to end, the files in the system's cache, the bytecode of all modules there. `import fitkit`
alone loads no torch; `and fit` asks for fitkit's `fit`, so that all is loaded that a run needs. What fitkit adds is
taken within one process, after torch.
"""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING

from benchmarks.measure import Benchmark, Target, Value

if TYPE_CHECKING:
    from benchmarks.measure import Numbers

BENCHMARK = Benchmark(
    cases={"": None},
    quick={"": None},
    values=[Value("ms", "ms", ".0f")],
    runs=5,
    ratio="times the speed of",
    targets=[
        Target("S8", "import fitkit and fit, after torch", at_most=50),
        Target("S8", "fitkit --help", at_most=300),
    ],
)


def command(row: str, *arguments: str) -> None:
    def run(case: None) -> Numbers:
        begun = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        return {"ms": (time.perf_counter() - begun) * 1e3}

    BENCHMARK.program(row)(run)


command("import torch", "-c", "import torch")
command("nothing", "-c", "pass")
command("import fitkit", "-c", "import fitkit")
command("import fitkit and fit", "-c", "import fitkit; fitkit.fit")


@BENCHMARK.program("import fitkit and fit, after torch")
def after_torch(case: None) -> Numbers:
    import torch  # noqa: F401

    begun = time.perf_counter()
    import fitkit

    assert fitkit.fit
    return {"ms": (time.perf_counter() - begun) * 1e3}


command("fitkit --help", "-m", "fitkit", "--help")
command("fitkit check specs/digits.yaml", "-m", "fitkit", "check", "specs/digits.yaml")
