"""`python -m benchmarks [NAME …]` measures, and renews benchmarks/README.md, results.json and headline.svg."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from benchmarks import measure

HERE = Path(__file__).parent
NAMES = [
    "small",
    "end_to_end",
    "convnet",
    "precision",
    "transformer",
    "data_path",
    "callbacks",
    "checkpoints",
    "start",
    "memory",
    "gpu",
]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all of them without")
    parser.add_argument("--runs", type=int, help="runs of each program, instead of each benchmark's own number")
    parser.add_argument("--quick", action="store_true", help="as little as still runs; prints tables, writes nothing")
    parser.add_argument("--one", nargs=3, metavar=("NAME", "CASE", "PROGRAM"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        return measure.run_one(*arguments.one, arguments.quick)
    if unknown := [name for name in arguments.names if name not in NAMES]:
        parser.error(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}")
    begun = time.perf_counter()
    for name in arguments.names or NAMES:
        runs = arguments.runs or (1 if arguments.quick else measure.load(name).BENCHMARK.runs)

        def say(line: str) -> None:
            print(f"{time.perf_counter() - begun:6.0f} s  {line}", flush=True)

        found, missing = measure.measure(name, arguments.quick, runs, say)
        section = measure.report(name, found, missing, runs)
        print(f"\n{section}\n", flush=True)
        if not arguments.quick:
            keep(name, section, {"runs": runs, "cases": found, "missing": missing})


def keep(name: str, section: str, results: dict) -> None:
    """Renew what the repository says of a benchmark: section, raw results, plot."""
    from benchmarks import plot

    page, raw = HERE / "README.md", HERE / "results.json"
    page.write_text(measure.replace(page.read_text("utf-8"), name, section), "utf-8")
    everything = json.loads(raw.read_text("utf-8")) if raw.exists() else {}
    conditions = measure.conditions(measure.load(name).BENCHMARK, results["runs"])
    everything[name] = {"when": time.strftime("%Y-%m-%d"), "conditions": conditions, **results}
    raw.write_text(json.dumps(everything, indent=1) + "\n", "utf-8")
    plot.draw(everything, HERE / "headline.svg")


if __name__ == "__main__":
    main()
