"""Does the diagnosis find what is wrong with a run, and leave healthy runs alone? `python -m benchmarks.diagnosis`

Trains every run of `diagnosis_cases.py` and `diagnosis_unseen.py` with every seed, and counts. A pathology is detected
where one of its own findings is a warning or an error; a healthy run gives a false alarm where any finding is one.
Findings of the severity "info" count for neither. The rules were written on seeds 0 to 9 of `diagnosis_cases.py`.
"""

from __future__ import annotations

import argparse
import collections
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

import fitkit
from benchmarks import diagnosis_unseen, measure
from benchmarks.diagnosis_cases import HEALTHY, PATHOLOGIES, Case, Run
from fitkit.after.diagnose import predictions
from fitkit.builder.tables import TABLES
from fitkit.diagnosis import Diagnosis
from fitkit.evaluation.outcomes import take_outcomes

PAGE = Path(__file__).parent / "README.md"
HELD_OUT = range(1000, 1005)
DETECTED, ALARMS = 0.9, 0.05  # at least, at most


def diagnosed(run: Run) -> Diagnosis:
    """Train a run and return its diagnosis, with what the model predicts for the validation part."""
    trainer = fitkit.build(run.spec, data=run.data, model=run.model)
    try:
        history = trainer.fit()
    except fitkit.TrainingError as error:
        return error.history.diagnose()
    [loss] = trainer.card["spec"]["loss"]
    facts = dict(TABLES["losses"][loss].facts)
    val, card = trainer.val, dict(trainer.card)
    outcomes = take_outcomes(trainer.model, trainer.objective, val, facts, part="val", card=card)
    return history.diagnose(predictions(outcomes))


def alarms(found: Diagnosis) -> list[str]:
    """Return the names of the findings that are warnings or errors."""
    return [finding.name for finding in found.findings if finding.severity != "info"]


def is_right(case: Case, found: Diagnosis) -> bool:
    """Tell whether a diagnosis says what it should of a run."""
    return bool(set(alarms(found)) & set(case.names)) if case.names else not alarms(found)


def count(cases: Sequence[Case], seeds: Sequence[int]) -> tuple[list[str], int]:
    """Return a row of the table for each case, and how many runs were diagnosed rightly."""
    rows, total = [], 0
    for case in cases:
        found = [diagnosed(case.make(seed)) for seed in seeds]
        right = sum(is_right(case, one) for one in found)
        total += right
        verdicts = collections.Counter((alarms(one) or ["healthy"])[0].replace("_", " ") for one in found)
        said = ", ".join(f"{name} {number}" for name, number in verdicts.most_common())
        share = f"{right} of {len(seeds)}" if case.names else f"{len(seeds) - right} of {len(seeds)}"
        names = f" {', '.join(case.names).replace('_', ' ')} |" if case.names else ""
        rows.append(f"| {case.name} |{names} {share} | {said} |")
        print(rows[-1], flush=True)
    return rows, total


def tables(title: str, ill: Sequence[Case], well: Sequence[Case], seeds: Sequence[int]) -> tuple[list[str], bool]:
    """Train these runs and return the lines about them, and whether both targets were reached."""
    print(f"{title}", flush=True)
    ill_rows, detected = count(ill, seeds)
    well_rows, quiet = count(well, seeds)
    runs = len(ill) * len(seeds), len(well) * len(seeds)
    shares = detected / runs[0], 1 - quiet / runs[1]
    reached = shares[0] >= DETECTED and shares[1] <= ALARMS
    lines = [
        f"**{title}**",
        "",
        f"- detected: {detected} of {runs[0]} ill runs, {100 * shares[0]:.1f} %; target {100 * DETECTED:g} %",
        f"- false alarms: {runs[1] - quiet} of {runs[1]} healthy runs, {100 * shares[1]:.1f} %; target at most "
        f"{100 * ALARMS:g} %; {'both **reached**' if reached else '**not both reached**'}",
        "",
        "| ill run | detected by | detected | verdicts |",
        "| --- | --- | --: | --- |",
        *ill_rows,
        "",
        "| healthy run | false alarms | verdicts |",
        "| --- | --: | --- |",
        *well_rows,
        "",
    ]
    return lines, reached


def section(seeds: Sequence[int]) -> tuple[str, bool]:
    """Train everything and return the section of the page, and whether all targets were reached."""
    begun = time.perf_counter()
    known, first = tables("Kinds of runs on which the rules were written, other seeds", PATHOLOGIES, HEALTHY, seeds)
    unseen = diagnosis_unseen.PATHOLOGIES, diagnosis_unseen.HEALTHY
    new, second = tables("Kinds of runs on which no rule was tried", *unseen, seeds)
    seconds = time.perf_counter() - begun
    lines = [
        "## Does the diagnosis find what is wrong with a run? `python -m benchmarks.diagnosis`",
        "",
        f"Ill and healthy runs, each with seeds {seeds[0]} to {seeds[-1]} for data, split, weights and order. The "
        "rules were written on seeds 0 to 9 of the kinds in `diagnosis_cases.py` and on 150 drawn settings; those in "
        "`diagnosis_unseen.py` were written down after the rules, and nothing was changed for what they showed. The "
        "rules for short runs and for schedules were revised once since, for runs that are not among these. An "
        "ill run is detected where one of the findings named beside it is a warning or an error; any warning or error "
        "on a healthy run is a "
        'false alarm. Hints ("info": the best epoch is the last, the loss stands still, epochs that cannot be told '
        "apart) count for neither, which was settled before the rules were written. The last column counts the "
        "verdicts, which are the first findings.",
        "",
        f"{measure.processor()}, 1 thread, torch {torch.__version__}; {seconds:.0f} s in all.",
        "",
        *known,
        *new,
    ]
    return "\n".join(lines).rstrip(), first and second


def main() -> int:
    """Run it; with the held-out seeds, renew the section of the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.diagnosis", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="instead of 1000 to 1004; writes nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    text, reached = section(arguments.seeds or list(HELD_OUT))
    print(f"\n{text}")
    if not arguments.seeds:
        PAGE.write_text(measure.replace(PAGE.read_text("utf-8"), "diagnosis", text), "utf-8")
    return 0 if reached else 1


if __name__ == "__main__":
    raise SystemExit(main())
