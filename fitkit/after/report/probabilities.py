"""What a report says of single predictions: whether they are as sure as they are right, and which are the worst."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fitkit.after.report import figures
from fitkit.after.report.gather import Run
from fitkit.after.report.page import Child, Html, brief, figure, join, named, note, paragraph, short, table, tag
from fitkit.evaluation.calibration import BINS, Reliability, ece, reliability
from fitkit.evaluation.samples import Sample, show_cell
from fitkit.evaluation.worst import Example, LabelError, worst

EXAMPLES = 12  # that are shown
MOST_ERRORS = 20  # suspected label errors that are listed
MOST_CELLS = 12  # columns of a row
MOST_PIXELS = 128  # a side of an image; of a larger one every second, third, … row and column is shown
TEXT = 400  # letters of a text


def calibration(run: Run) -> Html | None:
    """Return the reliability diagram and the expected calibration error, for probabilities of classes."""
    outcomes = run.outcomes
    if outcomes is None or not outcomes.can_be_probabilities:
        return None
    bins = min(BINS, outcomes.positions)
    drawn = {"": reliability(outcomes, bins)}
    if outcomes.temperature != 1:
        drawn = {"before": reliability(outcomes, bins, temperature=1.0), "after": drawn[""]}
    error = ece(outcomes)
    found = list(drawn.values())[-1]
    sure = sum(b.count * b.confidence for b in found.bins if b.count) / outcomes.positions
    right = float((outcomes.predicted == outcomes.targets).double().mean())
    said = (
        f"The expected calibration error (ECE) is {brief(error.value)}, 95 % interval {brief(error.low)} to "
        f"{brief(error.high)}, in {bins} bins of equal width. The mean confidence is {brief(sure)}, and {brief(right)} "
        f"of all predictions are right."
    )
    scaled = (
        f"Logits are divided by the calibrated temperature {outcomes.temperature:.4g}; without it the ECE is "
        f"{brief(drawn['before'].ece)}."
        if "before" in drawn
        else "No temperature was fitted: fitkit calibrate RUN does it."
    )
    words = " ".join(f"{name.capitalize()}: {_told(one)}".removeprefix(": ") for name, one in drawn.items())
    caption = "Of predictions made with a confidence, how many are right: on the dashed line, as many as it says. "
    caption += "Larger points stand for more predictions, bars for 95 % intervals."
    drawing = figures.reliability("reliability", drawn, f"{said} {words}")
    return join(paragraph(said), note(scaled), tag("div", figure(drawing, "reliability", caption), class_="grid"))


def _told(found: Reliability) -> str:
    filled = [b for b in found.bins if b.count]
    each = [f"confidence {brief(b.confidence)}, {brief(b.accuracy)} right, of {b.count:,}" for b in filled]
    return "; ".join(each) + "."


def examples(run: Run) -> Html | None:
    """Return the samples with the highest loss, and labels that are suspected to be wrong."""
    if run.outcomes is None:
        return None
    found = worst(run.outcomes, EXAMPLES)
    what = "residual" if run.outcomes.kind == "values" else "loss"
    said = (
        f"The {len(found)} of {found.samples:,} samples with the largest {what}. Rows are numbered in the data, from 0."
    )
    images = [example.sample for example in found if example.sample is not None and example.sample.kind == "image"]
    shown = _gallery(found.examples, images) if images else _listing(found.examples)
    notes = [note(f"Note: {text.removesuffix('.')}.") for text in found.notes]
    errors = _label_errors(found.label_errors) if found.label_errors else None
    return join(paragraph(said), shown, notes, errors)


def _label_errors(found: Sequence[LabelError]) -> Html:
    rows = []
    for error in found[:MOST_ERRORS]:
        names = named(error.given), named(error.suggested)
        rows.append([f"{error.row:,}", *names, brief(error.confidence), brief(error.given_confidence)])
    more = len(found) - len(rows)
    return join(
        tag("h3", "Labels that may be wrong"),
        paragraph("The model is as sure of another class as it usually is where that is the label."),
        table(["row", "label", "rather", "confidence", "in the label"], rows, "Labels that may be wrong"),
        note(f"{more:,} more: fitkit worst RUN --label-errors FILE.csv lists all of them.") if more else None,
    )


def _value(value: Any) -> str:
    if isinstance(value, list):
        return short(", ".join(map(_value, value[:20])), 80)
    return brief(value) if isinstance(value, float) else named(str(value), 80)


def _gallery(found: Sequence[Example], images: Sequence[Sample]) -> Html:
    """Return images side by side, each with what is said of it."""
    cards = []
    for example, image in zip(found, images, strict=True):
        target, prediction = _value(example.target), _value(example.prediction)
        said = [target, ", right"] if prediction == target else [tag("b", prediction), f" instead of {target}"]
        sure = "" if example.confidence is None else f", confidence {brief(example.confidence)}"
        words = f"Row {example.row}: target {target}, prediction {prediction}"
        small = tag("small", f"row {example.row:,}{sure}, loss {brief(example.loss)}")
        cards.append(tag("figure", _picture(image, words), tag("figcaption", said, small)))
    return tag("div", cards, class_="gallery")


def _picture(image: Sample, words: str) -> Html:
    assert image.pixels is not None
    step = -(-max(image.pixels.shape[1:]) // MOST_PIXELS)
    smaller = replace(image, pixels=image.pixels[:, ::step, ::step])
    return tag("img", src=smaller.data_uri(), alt=words, width="128", height="128")


def _listing(found: Sequence[Example]) -> Html:
    """Return a row a sample; columns that none of them fills are left out."""
    columns: dict[str, list[Child]] = {
        "row": [f"{example.row:,}" for example in found],
        "target": [_value(example.target) for example in found],
        "prediction": [_value(example.prediction) for example in found],
        "confidence": [None if e.confidence is None else brief(e.confidence) for e in found],
        "residual": [None if e.residual is None else brief(e.residual) for e in found],
        "loss": [brief(example.loss) for example in found],
        "sample": [None if e.sample is None else _sample(e.sample) for e in found],
    }
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    return table(list(columns), zip(*columns.values(), strict=True), "Worst examples", class_="samples")


def _sample(sample: Sample) -> str:
    if sample.row is not None:
        cells = list(sample.row.items())
        words = ", ".join(f"{short(name, 30)} {short(show_cell(value), 30)}" for name, value in cells[:MOST_CELLS])
        return words + (f", … ({len(cells) - MOST_CELLS:,} more)" if len(cells) > MOST_CELLS else "")
    return short(str(sample) if sample.text is None else sample.text, TEXT)
