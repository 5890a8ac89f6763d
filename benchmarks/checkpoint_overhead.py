"""What do checkpoints at the default interval cost?

Gallery specs as they are, in a run folder, with checkpoints as `fitkit fit` writes them and with none at all; fresh
processes that take turns. The share is of the whole fit, the checkpoint at its end included.

    python -m benchmarks.checkpoint_overhead [--runs 5] [--specs digits digits_cnn digits_resnet]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def run(spec: str, kept: bool) -> None:
    import torch

    import fitkit
    from fitkit.engine import checkpoint
    from fitkit.resume import Checkpoints

    written = []
    write = checkpoint.write
    checkpoint.write = lambda *a: (written.append(1), write(*a))[1]
    if not kept:
        Checkpoints.due = lambda self, trainer, now: False
        Checkpoints.save = lambda self, trainer: self.folder
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        fitkit.fit(spec, out=Path(folder) / "run")
        seconds = time.perf_counter() - begun
    print(json.dumps({"seconds": seconds, "written": len(written), "torch": torch.__version__}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--specs", nargs="+", default=["digits", "digits_cnn", "digits_resnet"])
    parser.add_argument("--one", nargs=2, metavar=("SPEC", "KEPT"))
    arguments = parser.parse_args()
    if arguments.one:
        return run(arguments.one[0], arguments.one[1] == "with")
    print("| spec | with, s | without, s | share of the time | checkpoints a run |\n| --- | --: | --: | --: | --: |")
    for spec in arguments.specs:
        found: dict[str, list[dict]] = {"with": [], "without": []}
        for _ in range(arguments.runs):
            for kept, results in found.items():
                command = [sys.executable, "-m", "benchmarks.checkpoint_overhead", "--one", f"specs/{spec}.yaml", kept]
                results.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
        seconds = {kept: statistics.median(result["seconds"] for result in results) for kept, results in found.items()}
        share = statistics.median(
            a["seconds"] / b["seconds"] - 1 for a, b in zip(found["with"], found["without"], strict=True)
        )
        count = statistics.median(result["written"] for result in found["with"])
        print(f"| {spec} | {seconds['with']:.2f} | {seconds['without']:.2f} | {share:+.1%} | {count:g} |")


if __name__ == "__main__":
    main()
