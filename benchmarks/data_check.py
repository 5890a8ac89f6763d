"""`python -m benchmarks.data_check`: what the check of the data finds, and what share of a fit it takes.

found    tables with one fault each, drawn from seeds that no threshold was chosen by, and the same tables without
share    wall time of the check over that of the fit (without the start of Python), a fit a process, by spec
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from sklearn import datasets

from fitkit.data_check import Part, Samples, check

SPECS = Path(__file__).parent.parent / "specs"
SEEDS = range(5000, 5012)


def main() -> None:
    found()
    share()


def tables(seed: int) -> dict[str, tuple[np.ndarray, np.ndarray, str]]:
    """Return healthy tables: x, y and the kind of target."""
    r = np.random.default_rng(seed)
    n = int(r.choice([150, 400, 1000, 3000]))
    coarse = np.stack([r.integers(0, 2, n), r.integers(1, 4, n), r.integers(0, 80, n), r.poisson(0.5, n)], 1)
    skewed = r.lognormal(0, 2, (n, 6))
    walk = np.cumsum(r.normal(size=n + 4))
    noise = float(r.choice([0.0, 1.0, 10.0]))
    make = datasets.make_classification
    return {
        "hypercube": (*make(n, 20, n_informative=6, n_classes=3, class_sep=2, random_state=seed), "classes"),
        "rare class": (*make(n, 20, n_informative=6, weights=[0.9], random_state=seed), "classes"),
        "clusters": (*datasets.make_blobs(n, 6, centers=3, cluster_std=4, random_state=seed), "classes"),
        "linear": (*datasets.make_regression(n, 10, n_informative=5, noise=noise, random_state=seed), "values"),
        "friedman": (*datasets.make_friedman1(n, noise=1, random_state=seed), "values"),
        "few coarse columns": (coarse, (r.random(n) < 0.2 + 0.5 * coarse[:, 0]).astype(int), "classes"),
        "rare words": (r.random((n, 30)) < 0.05, r.integers(0, 2, n), "classes"),
        "skewed": (skewed, np.log(skewed[:, 0]) + r.normal(size=n), "values"),
        "slow series": (np.stack([walk[i : n + i] for i in range(4)], 1), walk[4:], "values"),
        "pictures": (r.integers(0, 256, (n, 64)), r.integers(0, 10, n), "classes"),
    }


def samples(x: np.ndarray, y: np.ndarray, target: str, seed: int) -> Samples:
    """Return a table of which a fifth, drawn at random, is val."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    rows = {"train": order[len(x) // 5 :].sort().values, "val": order[: len(x) // 5].sort().values}
    inputs = torch.as_tensor(np.asarray(x, dtype=np.float32))
    targets = torch.as_tensor(np.asarray(y)).to(torch.int64 if target == "classes" else torch.float32)
    kind = "classes" if target == "classes" else "values"
    return Samples(parts={name: Part(name, inputs, targets, rows[name]) for name in rows}, target=kind)


def faulty(x: np.ndarray, y: np.ndarray, target: str, seed: int) -> dict[str, tuple[str, np.ndarray]]:
    """Return the table with one fault each: name of the fault -> name of the finding, and x."""
    r = np.random.default_rng(seed)
    x, values = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    val, train = order[:5].numpy(), order[-5:].numpy()

    def with_column(column: np.ndarray) -> tuple[str, np.ndarray]:
        return "giveaway columns", np.insert(x, 1, column, axis=1)

    def with_rows(name: str, noise: float) -> tuple[str, np.ndarray]:
        changed = x.copy()
        changed[val] = x[train] + noise * x.std(0) * r.normal(size=x[train].shape)
        return name, changed

    faults = {
        "the target": with_column(values),
        "the target and 2 % noise": with_column(values + 0.02 * values.std() * r.normal(size=len(y))),
        "a monotone function of it": with_column(np.exp(values / np.abs(values).max())),
        "5 rows of train in val": with_rows("duplicates", 0.0),
        "5 such rows and 0.1 % noise": with_rows("near duplicates", 0.001),
        "a constant column": ("constant columns", np.insert(x, 1, 3.7, axis=1)),
        "row numbers": ("row numbers", np.insert(x, 1, np.arange(len(x)), axis=1)),
    }
    if target == "classes":
        code = r.permutation(int(y.max()) + 1)[y]
        faults["a code of the class"] = with_column(7.0 * code + 3)
        faults["the class, one-hot"] = ("giveaway columns", np.concatenate([x, np.eye(code.max() + 1)[y]], 1))
    return faults


def found() -> None:
    counts: dict[str, list[bool]] = {}
    alarms: list[bool] = []
    missed: dict[str, dict[str, int]] = {}
    for seed in SEEDS:
        for name, (x, y, target) in tables(seed).items():
            alarms.append(bool(check(samples(x, y, target, seed), thorough=True).warnings))
            for fault, (wanted, changed) in faulty(x, y, target, seed).items():
                told = any(f.name == wanted for f in check(samples(changed, y, target, seed)).warnings)
                counts.setdefault(fault, []).append(told)
                if not told:
                    missed.setdefault(fault, {}).setdefault(name, 0)
                    missed[fault][name] += 1
    print(f"healthy tables with a warning: {sum(alarms)} of {len(alarms)}")
    for fault, told in counts.items():
        where = (
            "; missed in " + ", ".join(f"{name} {n}" for name, n in missed[fault].items()) if fault in missed else ""
        )
        print(f"{fault}: {sum(told)} of {len(told)} found{where}")


def share() -> None:
    for path in sorted(SPECS.glob("*.yaml")):
        shares = []
        for _ in range(3):
            with tempfile.TemporaryDirectory() as folder:
                run = Path(folder) / "run"
                command = [sys.executable, "-m", "fitkit", "fit", str(path), "--out", str(run), "--quiet"]
                subprocess.run(command, check=True, capture_output=True)
                looked = json.loads((run / "data_check.json").read_text())["seconds"]
                shares.append((looked / json.loads((run / "summary.json").read_text())["seconds"], looked))
        part, seconds = (statistics.median(column) for column in zip(*shares, strict=True))
        print(f"{path.stem}: {part:.2%} of the fit, {1e3 * seconds:.1f} ms (median of 3)", flush=True)


if __name__ == "__main__":
    main()
