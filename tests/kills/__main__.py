"""The long form: every kind of harm, with counts, on two processes at a time.

python -m tests.kills --kills 200 --stops 50 --damages 200
"""

import argparse
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from . import disk, mutants
from .harness import SHARES, Trial, campaign, deterministic
from .stops import second_interrupt, stops
from .workloads import WORKLOADS

PROCESSES = 2
STOPPED = (0, 1, 8, 11)  # with and without workers, eager and compiled


def spread(total, parts):
    """Return `total` as so many whole numbers that differ by at most 1."""
    return [total // parts + (i < total % parts) for i in range(parts)]


class Report:
    """Prints as it goes, and remembers whether anything failed."""

    def __init__(self):
        self.failed, self.begun = False, time.perf_counter()

    def __call__(self, line):
        print(f"{time.perf_counter() - self.begun:6.0f} s  {line}", flush=True)

    def attempt(self, what, function, *arguments):
        """Return what a function returns, or True for nothing; report what it raises as a failure."""
        try:
            return function(*arguments) or True
        except Exception as error:
            self.failed = True
            self(f"FAILED  {what}: {error}")
            return None


def run_kills(count, seed, place, report):
    slot, total = threading.Semaphore(PROCESSES), Counter()
    report(f"{'workload':<62} kills  training  save  resume  runs  differences")

    def one(index):
        workload, kills = WORKLOADS[index], spread(count, len(WORKLOADS))[index]
        if not kills:
            return
        done = report.attempt(
            str(workload), campaign, workload, kills, seed + index, _made(place / f"kills-{index}"), slot
        )
        if done is None:
            total["differences"] += 1
            return
        tally, _ = done
        kills = sum(tally[aim] for aim in SHARES)
        counts = f"{tally['training']:>8}  {tally['save']:>4}  {tally['resume']:>6}  {tally['runs']:>4}"
        report(f"{workload!s:<62} {kills:>5}  {counts}  {0:>11}")
        total.update(tally)
        total["kills"] += kills
        total["with workers"] += kills if workload.workers else 0

    with ThreadPoolExecutor(PROCESSES) as pool:
        list(pool.map(one, sorted(range(len(WORKLOADS)), key=lambda i: not WORKLOADS[i].compile)))
    report(
        f"{total['kills']} kills in {total['runs']} runs: {total['training']} while training, {total['save']} inside a "
        f"save, {total['resume']} during resume, {total['with workers']} with workers; "
        f"{total['differences']} differences"
    )


def run_stops(count, seed, place, report):
    slot = threading.Semaphore(PROCESSES)

    def one(part):
        index = STOPPED[part]
        wanted = spread(count, len(STOPPED))[part]
        folder = _made(place / f"stops-{index}")
        return report.attempt("stops", stops, WORKLOADS[index], wanted, seed + part, folder, slot)

    with ThreadPoolExecutor(PROCESSES) as pool:
        done = [found for found in pool.map(one, range(len(STOPPED))) if found]
    good, worst = sum(n for n, _ in done), max((lost for _, lost in done), default=0)
    report(f"{good}/{count} stops by SIGTERM or Ctrl-C, at most {worst} steps lost")
    whole = Trial(WORKLOADS[0], place / "stops-0" / "whole")  # has run already
    if report.attempt("second Ctrl-C", second_interrupt, whole, _made(place / "second")):
        report("a second Ctrl-C left at once")


def run_mutants(place, report):
    for title, names in (("", mutants.MUTANTS), (" more", mutants.MORE)):
        caught = [name for name in names if mutants.is_caught(name, place / f"mutant-{name}")]
        report(f"{len(caught)}/{len(names)}{title} mutants caught")
        report.failed |= len(caught) < len(names)
    noticed = [name for name in ("EMA", "scaler") if mutants.is_caught(name, place / f"control-{name}", mutate=False)]
    report(f"{len(noticed)} differences without a mutant")
    report.failed |= bool(noticed)


def run_disk(count, seed, place, report):
    missed = disk.damages(place / "damages", count, seed)
    report(f"{count - len(missed)}/{count} damages noticed" + "".join(f"\n    {line}" for line in missed))
    report.failed |= bool(missed)
    places = report.attempt("a save that ends", disk.crashes, place / "crashes")
    report(f"a save ended before each of its {places} file operations left a whole checkpoint")
    try:
        with disk.small_disk(place / "disk", 2 << 20) as small:
            report(f"a full disk refused {disk.full_disk(small)} saves and harmed none")
    except PermissionError as error:
        report(f"SKIPPED  a full disk: this system mounts no small one ({error})")


def run_deterministic(place, report):
    tiers = {"eager": WORKLOADS[0], "bf16": WORKLOADS[3], "compiled": WORKLOADS[8]}
    for name, workload in tiers.items():
        if report.attempt(name, deterministic, workload, _made(place / f"deterministic-{name}")):
            report(f"deterministic, {name}: two runs are the same to the bit")


def _made(folder):
    folder.mkdir()
    return folder


def main():
    parser = argparse.ArgumentParser("python -m tests.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--stops", type=int, default=50)
    parser.add_argument("--damages", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    report = Report()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        run_mutants(place, report)
        run_disk(arguments.damages, arguments.seed, place, report)
        run_deterministic(place, report)
        run_stops(arguments.stops, arguments.seed, place, report)
        run_kills(arguments.kills, arguments.seed, place, report)
    report("FAILED" if report.failed else "all good")
    return int(report.failed)


if __name__ == "__main__":
    sys.exit(main())
