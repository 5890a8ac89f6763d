"""The report on a run, or on several that are compared: one HTML file that needs no other file, network or script."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import fitkit
from fitkit import files, run_folder
from fitkit.after.finished import RUN, RunLike, folder_of
from fitkit.after.report import classes, comparison, folds, probabilities, record, sections, verdict
from fitkit.after.report.comparison import Runs, gather_runs
from fitkit.after.report.figures import require_matplotlib
from fitkit.after.report.folds import gather_folds
from fitkit.after.report.gather import Run, gather
from fitkit.after.report.page import MARK, Html, Section, document, join, note, paragraph, short
from fitkit.errors import CheckpointError, Fault, Place, SpecError

REPORT, COMPARISON = "report.html", "comparison.html"
MOST_RUNS = 24
OF_ONE = ("diagnosis", "training", "data", "time")  # what has no place in a report on all folds

ONE: tuple[tuple[str, str, Callable[[Run], Html | None]], ...] = (
    ("diagnosis", "Diagnosis", verdict.findings),
    ("training", "Training", sections.training),
    ("evaluation", "Evaluation", sections.evaluation),
    ("classes", "Class by class", classes.by_class),
    ("confusions", "Confusions", classes.confusions),
    ("calibration", "Calibration", probabilities.calibration),
    ("residuals", "Residuals", sections.residuals),
    ("worst", "Worst examples", probabilities.examples),
    ("data", "Data", record.data),
    ("time", "Time", record.timing),
    ("reproduce", "Reproduce", record.reproduce),
    ("test", "Looks at the test split", record.test_looks),
    ("spec", "Spec", record.spec),
)
SEVERAL: tuple[tuple[str, str, Callable[[Runs], Html | None]], ...] = (
    ("results", "Results", comparison.results),
    ("contrasts", "More than noise?", comparison.contrasts),
    ("curves", "Curves", lambda runs: comparison.curves(runs.each)),
    ("differences", "What differs", comparison.differences),
    ("runs", "Runs", comparison.environments),
)


FOLDS: tuple[tuple[str, str, Callable[[Run, Sequence[Run]], Html | None]], ...] = (
    ("folds", "Folds", folds.values),
    ("curves", "Curves", lambda _, each: comparison.curves(each)),
    *((name, title, lambda whole, _, make=make: make(whole)) for name, title, make in ONE if name not in OF_ONE),
)


def report(
    runs: RunLike | Sequence[RunLike],
    out: Path | str | None = None,
    *,
    split: str | None = None,
    root: Path | str | None = None,
) -> Path:
    """Write the report on a run, or a page that compares several, and return its path.

    Args:
        runs: a run folder, or several; a History of a fit that wrote one stands for it.
        out: the HTML file; `report.html` in the folder of one run, `comparison.html` here for several.
        split: the part that the models are evaluated on. Without one that is val, and where it cannot be had, the
            report says why and goes on; "test" is noted in the run's ledger.
        root: where the paths of the runs' data start; the working directory unless given.

    Raises CheckpointError for a folder that holds no run or a damaged one, SpecError for a file that is there and is no
    report of fitkit.
    """
    several: Any = [runs] if isinstance(runs, RUN) or not isinstance(runs, Iterable) else runs
    folders = [folder_of(run, "report") for run in several]
    if not folders or len(folders) > MOST_RUNS:
        raise SpecError(f"a report takes 1 to {MOST_RUNS} runs, not {len(folders)}.")
    require_matplotlib()
    path = Path(out) if out is not None else folders[0] / REPORT if len(folders) == 1 else Path(COMPARISON)
    refuse_other(path)
    start = None if root is None else Path(root)
    if len(folders) == 1 and run_folder.fold_folders(folders[0]):
        title, header, parts = _of_folds(folders[0], split, start)
    elif len(folders) == 1:
        title, header, parts = _of_run(folders[0], split, start)
    else:
        title, header, parts = _of_runs(folders, split, start)
    page = document(title, header, [part for part in parts if part is not None], _footer())
    run_folder.write_text(path, page)
    return path


def _of_run(folder: Path, split: str | None, root: Path | None) -> tuple[str, Html, list[Section | None]]:
    run = gather(folder, split, root)
    _warn(run)
    parts = [_section(name, title, make, run) for name, title, make in ONE]
    return f"{short(run.name, 80)}: report", sections.header(run), parts


def _of_runs(folders: Sequence[Path], split: str | None, root: Path | None) -> tuple[str, Html, list[Section | None]]:
    runs = gather_runs(folders, split, root)
    for run in runs.each:
        _warn(run)
    if runs.why:
        warnings.warn(f"the runs are not tested against each other: {runs.why}", stacklevel=3)
    parts = [_section(name, title, make, runs) for name, title, make in SEVERAL]
    return "Comparison of runs", comparison.header(runs), parts


def _of_folds(folder: Path, split: str | None, root: Path | None) -> tuple[str, Html, list[Section | None]]:
    whole, each = gather_folds(folder, split, root)
    _warn(whole)
    header = folds.header(whole, each)
    parts = [_section(name, title, make, whole, each) for name, title, make in FOLDS]
    return f"{short(whole.name, 80)}: cross-validation", header, parts


def _warn(run: Run) -> None:
    if run.missing:
        warnings.warn(f"{run.folder}: the report has no evaluation: {run.missing}", stacklevel=4)


def refuse_other(path: Path) -> None:
    """Raise SpecError where a report cannot be written, or would replace what is no report of fitkit."""
    place = Place(str(path))
    if path.suffix.lower() not in (".html", ".htm"):
        raise SpecError(Fault("a report is an HTML file: give a name that ends in .html.", place=place))
    if not path.parent.is_dir():
        raise SpecError(Fault("there is no such folder to write to. Make it first.", place=place))
    if not path.exists() and not path.is_symlink():
        return
    try:
        with files.open_file(path, links=False) as file:
            ours = file.read(len(MARK)) == MARK.encode()
    except OSError:
        ours = False
    if not ours:
        message = "is no report of fitkit, so it is not overwritten. Choose another name: --out FILE.html."
        raise SpecError(Fault(message, place=place))


def _section(name: str, title: str, make: Callable[..., Html | None], *given: Any) -> Section | None:
    """Make a section; one that fails says so and leaves the page as it is."""
    try:
        body = make(*given)
    except Exception as error:  # damaged files may hold anything, and the other sections stand
        reason = str(error) if isinstance(error, CheckpointError) else f"{type(error).__name__}: {error}"
        body = paragraph("This part could not be made: ", short(reason, 600), class_="callout")
        warnings.warn(f"the section {title} could not be made: {reason}", stacklevel=3)
    return None if body is None else Section(name, title, body)


def _footer() -> Html:
    when = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return join(note(f"Written by fitkit {fitkit.__version__} on {when}. One file, no scripts, nothing is loaded."))
