"""A look at the data before they are trained on: what would make a result wrong, or better than it is.

    check(samples) -> DataCheck     findings, what was not looked at, and why

In a fit only what takes a small share of the fit; with `thorough` everything that takes less than a minute or so.
Nothing here draws from a global generator, or changes a sample.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from fitkit.data_check.columns import check_columns, find_ends
from fitkit.data_check.duplicates import check_duplicates, find_twins
from fitkit.data_check.finding import Finding, Part, Samples
from fitkit.data_check.giveaway import check_giveaway
from fitkit.data_check.near import check_near
from fitkit.data_check.targets import check_targets, count_classes

MOST_BYTES = {False: 1 << 28, True: 1 << 34}  # of x, in a fit and on demand
KINDS = ("duplicates", "near duplicates", "label conflicts", "columns", "giveaway columns", "targets")
ONE_THREAD_BYTES = 1 << 22  # of x
MOST_COUNTED = 1000  # classes whose counts are kept


@dataclass(frozen=True, kw_only=True)
class DataCheck:
    """What a check of the data found.

    sizes: rows of each part.
    classes: rows of each class by part, for a classifier of at most 1,000 classes; else None.
    findings: warnings first.
    not_checked: what was not looked at -> why.
    """

    sizes: Mapping[str, int | None]
    classes: Mapping[str, Mapping[str, int]] | None = None
    findings: Sequence[Finding] = ()
    not_checked: Mapping[str, str]
    seconds: float = 0.0

    @property
    def warnings(self) -> list[Finding]:
        """What is told before the first epoch."""
        return [finding for finding in self.findings if finding.level == "warning"]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "parts": dict(self.sizes),
            "classes": self.classes and {part: dict(counts) for part, counts in self.classes.items()},
            "findings": [finding.to_json() for finding in self.findings],
            "not_checked": dict(self.not_checked),
            "seconds": round(self.seconds, 6),
        }

    def __str__(self) -> str:
        sizes = ", ".join(f"{name} {size:,}" for name, size in self.sizes.items() if size is not None)
        looked = [kind for kind in KINDS if kind not in self.not_checked]
        lines = [f"data: {sizes or 'of unknown size'} rows; looked for {', '.join(looked) or 'nothing'}"]
        lines += [f"{finding.level}: {finding}" for finding in self.findings]
        for why in dict.fromkeys(self.not_checked.values()):
            lines.append(
                f"not checked: {', '.join(what for what, said in self.not_checked.items() if said == why)}: {why}"
            )
        return "\n".join([*lines, f"{len(self.warnings) or 'no'} warning{'s' * (len(self.warnings) != 1)}"])


def check(samples: Samples, thorough: bool = False) -> DataCheck:
    """Look at samples; `thorough` is what `fitkit check SPEC --data` does."""
    begun = time.perf_counter()
    size = sum({part.x.data_ptr(): part.x.numel() * part.x.element_size() for part in samples.parts.values()}.values())
    many = torch.get_num_threads()
    torch.set_num_threads(1 if size <= ONE_THREAD_BYTES else many)  # or threads wait for one another, the longest time
    try:
        found = _check(samples, thorough, size)
    finally:
        torch.set_num_threads(many)
    return replace(found, seconds=time.perf_counter() - begun)


def _check(samples: Samples, thorough: bool, size: int) -> DataCheck:
    findings: list[Finding] = []
    not_checked: dict[str, str] = {}
    if size > MOST_BYTES[thorough]:
        why = f"x has {size / 1e9:,.1f} GB, more than the {MOST_BYTES[thorough] / 1e9:.1f} GB that are looked through"
        not_checked |= dict.fromkeys(("duplicates", "near duplicates", "label conflicts", "columns"), why)
    elif any(part.x.dtype != samples.parts["train"].x.dtype for part in samples.parts.values()):
        why = "the parts have different dtypes"
        not_checked |= dict.fromkeys(("duplicates", "near duplicates", "label conflicts", "columns"), why)
    else:
        twins = find_twins(list(samples.parts.values()))
        findings += check_duplicates(samples, twins)
        ends = find_ends(samples.parts["train"])
        near, why = check_near(samples, twins, ends, thorough)
        findings += near
        if why:
            not_checked["near duplicates"] = why
        if samples.tokens:
            not_checked["columns"] = "token ids are no columns"
        else:
            findings += check_columns(samples, ends)
    finding, why = check_giveaway(samples)
    findings += [finding] if finding is not None else []
    if why:
        not_checked["giveaway columns"] = why
    counts = count_classes(samples)
    findings += check_targets(samples, counts)
    classes = None
    if counts is not None and len(next(iter(counts.values()))) <= MOST_COUNTED:
        classes = {
            part: {samples.class_name(number): count for number, count in enumerate(numbers.tolist())}
            for part, numbers in counts.items()
        }
    return DataCheck(
        sizes={name: len(part) for name, part in samples.parts.items()},
        classes=classes,
        findings=sorted(findings, key=lambda finding: finding.level == "note"),
        not_checked=not_checked,
    )


__all__ = ["DataCheck", "Finding", "Part", "Samples", "check"]
