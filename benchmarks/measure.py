"""What all benchmarks share: programs in fresh processes that take turns, and the tables of what was measured.

A benchmark is a module with a `BENCHMARK`; its docstring is the question and the conditions. A program is a function
that does a case's work and returns numbers by name. It runs in a process of its own, `runs` times in turns with the
others, so that what slows the machine for a while slows all. Ratios are of runs of the same turn, and of the first row.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
LIMIT_S = 900  # for one process
PEERS = ("torch", "jax", "keras", "pytorch-lightning", "transformers", "skorch", "poutyne")
HOMES = {"pytorch_lightning": "pytorch-lightning"}  # packages whose name is not that of their module

Numbers = dict[str, float]
Found = dict[str, dict[str, list[Numbers]]]  # case -> program -> what each run measured


@dataclass(frozen=True)
class Value:
    """A number that programs return, and how a table shows it; `more` says that more of it is better."""

    name: str
    header: str
    form: str = ".1f"
    more: bool = False


@dataclass(frozen=True)
class Target:
    """What should come out (SPEED.md's numbers): `ours` at least so many times as good as `theirs`.

    Without `theirs`, the value of `ours` is compared with `at_most`.
    """

    id: str
    ours: str
    theirs: str = ""
    at_least: float = 1.0
    at_most: float = 0.0
    case: str = ""  # every case


@dataclass(frozen=True)
class Program:
    function: Callable[[Any], Numbers]
    needs: Sequence[str]
    environment: Mapping[str, str]
    cases: Sequence[str]


@dataclass
class Benchmark:
    """A question. The first of `values` is the one that is compared; `threads` 0 leaves every program its default."""

    cases: Mapping[str, Any]
    values: Sequence[Value]
    quick: Mapping[str, Any]  # the cases once more, as small as they still run
    runs: int = 3
    threads: int = 0
    ratio: str = "times as good as"
    targets: Sequence[Target] = ()
    skip: Callable[[], str] = lambda: ""  # noqa: E731  why this machine cannot answer, or nothing
    programs: dict[str, Program] = field(default_factory=dict)

    def program(self, name: str, *needs: str, cases: Sequence[str] = (), **environment: str) -> Any:
        """Register a program as a row; it needs the modules, and is a row of the named cases only."""

        def register(function: Callable[[Any], Numbers]) -> Callable[[Any], Numbers]:
            self.programs[name] = Program(function, needs, environment, cases or tuple(self.cases))
            return function

        return register

    def compare(self, theirs: Sequence[Numbers], ours: Sequence[Numbers]) -> list[float]:
        """Return how many times as good ours is as theirs, turn by turn."""
        key, more = self.values[0].name, self.values[0].more
        pairs = [(a[key], b[key]) for a, b in zip(theirs, ours, strict=False)]
        return [b / a if more else a / b for a, b in pairs]


def load(name: str) -> Any:
    return importlib.import_module(f"benchmarks.{name}")


def run_one(name: str, case: str, program: str, quick: bool) -> None:
    """Be the process of one program."""
    benchmark = load(name).BENCHMARK
    work = (benchmark.quick if quick else benchmark.cases)[case]
    print(json.dumps(benchmark.programs[program].function(work)))


def measure(name: str, quick: bool, runs: int, say: Callable[[str], None]) -> tuple[Found, list[str]]:
    """Run every program of a benchmark in turns; return what was found, and why rows are missing."""
    benchmark: Benchmark = load(name).BENCHMARK
    if why := benchmark.skip():
        return {}, [why]
    found: Found = {case: {} for case in benchmark.cases}
    missing = []
    for row, program in benchmark.programs.items():
        if absent := [module for module in program.needs if importlib.util.find_spec(module) is None]:
            missing.append(f"{row}: left out, {' and '.join(absent)} not installed (benchmarks/requirements.txt).")
            continue
        for case in program.cases:
            found[case][row] = []
    with tempfile.TemporaryDirectory() as folder:  # the first turn compiles, the later ones find what it kept
        for case, rows in found.items():
            for turn in range(runs):
                for row in list(rows):
                    begun = time.perf_counter()
                    numbers, fault = _process(benchmark, name, case, row, quick, folder)
                    seconds = time.perf_counter() - begun
                    if fault:
                        missing.append(f"{row}{f' ({case})' if case else ''}: failed, {fault}")
                        del rows[row]
                    else:
                        rows[row].append({**numbers, "process_s": seconds})
                    shown = fault or f"{numbers[benchmark.values[0].name]:{benchmark.values[0].form}}"
                    say(f"{name} {case} {turn + 1}/{runs} {row}: {shown} ({seconds:.1f} s)")
    return found, missing


def _process(benchmark: Benchmark, name: str, case: str, row: str, quick: bool, folder: str) -> tuple[Numbers, str]:
    environment = {
        **os.environ,
        **benchmark.programs[row].environment,
        "FITKIT_CACHE": f"{folder}/fitkit",
        "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # as it is where fitkit is installed: its modules are compiled
    if benchmark.threads:
        environment |= {"OMP_NUM_THREADS": str(benchmark.threads)}
    command = [sys.executable, "-m", "benchmarks", "--one", name, case, row, *(["--quick"] if quick else [])]
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return {}, f"not done after {LIMIT_S} s"
    if done.returncode:
        return {}, (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return json.loads(done.stdout.strip().splitlines()[-1]), ""


def conditions(benchmark: Benchmark, runs: int) -> str:
    """Return machine, versions, threads and repetitions in a line."""
    needed = {HOMES.get(module, module) for program in benchmark.programs.values() for module in program.needs}
    versions = []
    for package in PEERS:
        if package == "torch" or package in needed:
            try:
                versions.append(f"{package} {version(package)}")
            except PackageNotFoundError:
                continue
    threads = f"{benchmark.threads} thread{'s' * (benchmark.threads > 1)}" if benchmark.threads else "default threads"
    turns = f"{runs} runs in turns, medians [min-max]" if runs > 1 else "one run"
    python = f"Python {platform.python_version()}"
    return f"{processor()}, {os.cpu_count()} cores, {threads}; {python}, {', '.join(versions)}; {turns}."


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def spread(values: Sequence[float], form: str) -> str:
    """Return median [min-max], or the value alone."""
    middle = f"{statistics.median(values):{form}}"
    return middle if len(values) == 1 else f"{middle} [{min(values):{form}}-{max(values):{form}}]"


def table(benchmark: Benchmark, rows: Mapping[str, Sequence[Numbers]]) -> str:
    """Return a case's rows in Markdown: the value that is compared, its ratio to the first row, the other values."""
    rows = {row: runs for row, runs in rows.items() if runs}
    if not rows:
        return "Nothing was measured."
    head, *others = benchmark.values
    first = next(iter(rows))
    headers = ["program", head.header, f"{benchmark.ratio} {first}", *(value.header for value in others)]
    lines = [f"| {' | '.join(headers)} |", "| --- " + "| --: " * (len(headers) - 1) + "|"]
    for row, runs in rows.items():
        cells = [row, spread([run[head.name] for run in runs], head.form)]
        cells.append(f"{statistics.median(benchmark.compare(rows[first], runs)):.2f}")
        for value in others:
            numbers = [run[value.name] for run in runs if value.name in run]
            cells.append(spread(numbers, value.form) if numbers else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def verdicts(benchmark: Benchmark, found: Found) -> list[str]:
    """Return a line for each target: both numbers, their ratio, and whether it is reached."""
    lines = []
    for target in benchmark.targets:
        for case, rows in found.items():
            if target.case not in ("", case) or not (ours := rows.get(target.ours)):
                continue
            key, form = benchmark.values[0].name, benchmark.values[0].form
            said = f"{target.id}{f', {case}' if case else ''}: {target.ours} {spread([r[key] for r in ours], form)}"
            if not target.theirs:
                reached, asked = statistics.median(run[key] for run in ours) <= target.at_most, f"≤ {target.at_most:g}"
            elif theirs := rows.get(target.theirs):
                ratios = benchmark.compare(theirs, ours)
                reached, asked = statistics.median(ratios) >= target.at_least, f"≥ {target.at_least:g}"
                said += f", {target.theirs} {spread([r[key] for r in theirs], form)}: {spread(ratios, '.2f')}"
            else:
                continue
            lines.append(f"- {said}; target {asked}: **{'reached' if reached else 'not reached'}**")
    return lines


def report(name: str, found: Found, missing: Sequence[str], runs: int) -> str:
    """Return a benchmark's section of the README: question, conditions, tables, targets, what is missing."""
    module = load(name)
    question, _, text = module.__doc__.strip().partition("\n")
    parts = [f"## {question} `python -m benchmarks {name}`", text.strip()]
    if any(found.values()):
        parts.append(conditions(module.BENCHMARK, runs))
    for case, rows in found.items():
        parts += [f"**{case}**"] if case else []
        parts.append(table(module.BENCHMARK, rows))
    lines = [*verdicts(module.BENCHMARK, found), *(f"- {line}" for line in missing)]
    return "\n\n".join([*parts, *(["\n".join(lines)] if lines else [])])


def replace(page: str, name: str, section: str) -> str:
    """Put a section between its markers on a page; a section that is new comes last."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    if begin not in page:
        return f"{page.rstrip()}\n\n{begin}\n{section}\n{end}\n"
    before, _, rest = page.partition(begin)
    return f"{before}{begin}\n{section}\n{end}{rest.partition(end)[2]}"
