"""Calibrating a finished run: a temperature for its probabilities, kept in its weights file."""

from __future__ import annotations

from pathlib import Path

from fitkit import run_folder
from fitkit.after.run_outcomes import read_outcomes
from fitkit.engine import weights
from fitkit.errors import SpecError
from fitkit.evaluation.calibration import BINS, Calibration, calibrate, require_probabilities
from fitkit.session import locked


def calibrate_run(
    folder: Path,
    part: str = "val",
    root: Path | None = None,
    *,
    bins: int = BINS,
    equal_mass: bool = False,
    force: bool = False,
) -> Calibration:
    """Fit a temperature on a run's validation split, measure it on `part`, and write it into the run's weights file.

    It is written only where the cross-fitted negative log-likelihood of val falls by it, or by `force`: else that file
    stays as it was, with an earlier temperature. What the test split says decides nothing.
    It is fitted to raw logits, whatever temperature was there before, and weights stay the same, bit for bit. The test
    split is read only where it is the `part`, and its ledger then says so. See `calibrate` for what is measured.
    """
    if bins < 1:
        raise SpecError(f"--bins {bins}: take at least one.")
    run_folder.refuse_links(folder)
    run_folder.refuse_folds(folder)
    if (status := run_folder.status(folder)) != "finished" and (folder / run_folder.RESOLVED).exists():
        raise SpecError(f"{folder}: this run is {status}, not finished. Go on with it first: fit … --resume.")
    with locked(folder):  # what trains there now would lose its weights to those that were read before
        fitted = read_outcomes(folder, "val", root, command="calibrate")
        require_probabilities(fitted)  # before the test split is looked at
        measured = read_outcomes(folder, part, root, command=f"calibrate --split {part}") if part != "val" else None
        found = calibrate(fitted, measured, bins=bins, spacing="mass" if equal_mass else "width", force=force)
        if found.kept != found.previous:
            weights.amend(folder / run_folder.WEIGHTS, temperature=found.kept)
    return found
