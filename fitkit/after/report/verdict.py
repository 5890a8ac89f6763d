"""What a report says of a run in words: its diagnosis, with the numbers behind it and what to try."""

from __future__ import annotations

import shlex

from fitkit.after.diagnose import predictions
from fitkit.after.report.gather import Run
from fitkit.after.report.page import Html, code, join, note, paragraph, short, tag
from fitkit.diagnosis import Diagnosis


def diagnosis(run: Run) -> Diagnosis:
    """Return the diagnosis of a run, as far as its folder and the outcomes on val let it be told."""
    known = run.outcomes if run.part == "val" else None
    return run.history.diagnose(None if known is None else predictions(known))


def line(run: Run) -> Html | None:
    """Return the verdict in one line, marked by how grave it is."""
    if not len(run.history):
        return None
    found = diagnosis(run)
    grave = found.findings[0].severity if found.findings else "info"
    mark = "healthy" if found.verdict.startswith("looks healthy") else grave
    return tag("p", tag("span", mark, class_=f"badge {mark}"), " ", _sentence(found.verdict))


def findings(run: Run) -> Html | None:
    """Return what was found, with its numbers, what to do about it, and a command to try; None where nothing was."""
    found = diagnosis(run)
    items = []
    for finding in found.findings:
        head = tag("h3", tag("span", finding.severity, class_=f"badge {finding.severity}"), " ", finding.title)
        patch = " ".join(map(shlex.quote, finding.patch))
        tried = code(f"fitkit fit SPEC {patch}", "command") if patch else None
        items.append([head, paragraph(short(finding.text, 1000)), paragraph(short(finding.advice, 1000)), tried])
    untold = [note(f"Cannot tell {short(text, 600)}") for text in found.cannot_tell]
    return join(items or paragraph("Nothing was found."), untold) if items or untold else None


def _sentence(said: str) -> str:
    return short(said[:1].upper() + said[1:], 600)
