"""What a diagnosis says: findings, ranked, and one verdict in words."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass
from typing import Any, Literal

from fitkit.errors import printable

Severity = Literal["error", "warning", "info"]  # the result is of no use; change something; good to know


def counted(number: int, thing: str) -> str:
    """Return a number and what it counts as text: "1 epoch", "2,000 rows"."""
    return f"{number:,} {thing}{'s'[: number != 1]}"


@dataclass(frozen=True)
class Finding:
    """One thing that is true of a run.

    Args:
        name: a stable word, such as "overfitting".
        severity: "error", "warning" or "info"; the first two are what makes a run not healthy.
        text: one sentence with the numbers behind it.
        advice: what to do, in words.
        patch: `KEY=VALUE` overrides of the run's own spec to try, as `fitkit fit SPEC` takes them; often there is none.
    """

    name: str
    severity: Severity
    text: str
    advice: str
    patch: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The name as words."""
        return self.name.replace("_", " ")


@dataclass(frozen=True)
class Diagnosis:
    """What is the matter with a run, the most important finding first, and a verdict in one line."""

    findings: tuple[Finding, ...]
    verdict: str
    cannot_tell: tuple[str, ...] = ()  # what, and why

    @property
    def healthy(self) -> bool:
        """Whether no finding is a warning or an error."""
        return all(finding.severity == "info" for finding in self.findings)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the findings, in their order."""
        return tuple(finding.name for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return a plain dict: verdict, healthy, findings, cannot_tell."""
        findings = [dataclasses.asdict(finding) | {"patch": list(finding.patch)} for finding in self.findings]
        cannot_tell = list(self.cannot_tell)
        return {"verdict": self.verdict, "healthy": self.healthy, "findings": findings, "cannot_tell": cannot_tell}

    def __str__(self) -> str:
        lines = [self.verdict]
        for finding in self.findings:
            lines += ["", f"{finding.severity}: {finding.title}", f"  {finding.text}", f"  {finding.advice}"]
            if finding.patch:
                lines.append(f"  Try: fitkit fit SPEC {' '.join(map(shlex.quote, finding.patch))}")
        lines += ["", *(f"cannot tell: {text}" for text in self.cannot_tell)] if self.cannot_tell else []
        return printable("\n".join(lines))
