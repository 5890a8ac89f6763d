"""`fitkit init`: a first spec for some data, commented for someone who writes their first one, and ready to fit.

Sizes are rules of thumb by the number of samples; they are there to be changed.
"""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fitkit.after.survey import Survey, said, survey
from fitkit.after.words import flow
from fitkit.errors import listing
from fitkit.parts.splits import default_split
from fitkit.parts.transforms import default_transform

WIDTH, COMMENT_AT = 110, 46
FEW_SAMPLES = 20  # below this no test part is set aside
LARGE = 1000  # a target beyond this is slow to learn
UNEVEN = 3  # the largest class is this many times the smallest
USE = "Check it: fitkit check FILE.  Train it: fitkit fit FILE.  What each name means: fitkit explain NAME."


class Size(NamedTuple):
    """What a number of samples allows: width of a layer, samples a step, passes over the data."""

    width: int
    batch_size: int
    epochs: int


SIZES = {500: Size(32, 16, 100), 5_000: Size(64, 32, 50), 50_000: Size(128, 64, 30), math.inf: Size(256, 256, 10)}


def starter(path: Path, target: str | None, folder: Path) -> str:
    """Return a commented spec for a data file or a bundled data set, that fits as it stands.

    `target` is the column to predict (.csv, .tsv), the array (.npz, .safetensors), or the file of targets (.npy);
    without it, a column or array with a target's name, else the last column. `folder` is where the spec will stand: its
    paths start there, so data outside of it is a `SpecError`. Faults of the data are the `DataError`s of its source.
    """
    found = survey(path, target, folder)
    size = next(size for most, size in SIZES.items() if len(found.data) < most)
    sections = [_title(found), _data(found), _splits(found), _model(found, size), _loss(found), _optimizer(found)]
    return "\n\n".join("\n".join(lines) for lines in [*sections, _callbacks(size), _fit(size)]) + "\n"


def _line(text: str, why: str = "") -> list[str]:
    """Return a line of YAML with a comment behind it, or above it where it would be too long."""
    line = f"{text:<{COMMENT_AT}}" if len(text) < COMMENT_AT else f"{text}  "
    if not why or len(line) + len(why) + 2 <= WIDTH:
        return [f"{line}# {why}" if why else text]
    indent = text[: len(text) - len(text.lstrip())]
    return [*textwrap.wrap(why, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "), text]


def _title(found: Survey) -> list[str]:
    first, *more = (line if len(line) < WIDTH else f"{line[: WIDTH - 1]}…" for line in found.about)
    lines = [f"# {said(found.data.name)}: {first}", *(f"# {line}" for line in more), "#", f"# {USE}", ""]
    return [*lines, *_line("seed: 0", "initial weights, split and order of the batches follow from it")]


def _data(found: Survey) -> list[str]:
    given, why = dict(found.arguments), dict(found.why)
    standard = "features get mean 0 and deviation 1, as the training rows have them"
    told = {"standardize": standard, "scale": "bytes are brought to [0, 1]"}.get(
        default_transform(found.data) or "", ""
    )
    if not told and found.data.vocabulary is None:  # by itself nothing happens: these numbers may be anything
        given["transform"], why["transform"] = "standardize", f"{standard}; none leaves them"
    if not given:
        return _line(f"data: {found.source}", told)
    lines = ["data:", f"  {found.source}:"]
    for name, value in given.items():
        lines += _line(f"    {name}: {flow(value)}", why.get(name, ""))
    return lines + (_line("    # transform: auto", f"{told}; none leaves them") if told else [])


def _splits(found: Survey) -> list[str]:
    data = found.data
    name = default_split(data)
    if found.parts:
        return _line(f"splits: {{column: {flow(found.parts)}}}", "the column that says train, val or test")
    if name == "given":
        brings = list(data.split or {})
        if "val" in brings:
            return _line("splits: given", f"the file brings {listing(brings)}")
        return _line("splits: {given: {val: 0.15}}", f"the file brings {listing(brings)}; val is drawn from train")
    shares = {"val": 0.15, "test": 0.15} if len(data) >= FEW_SAMPLES else {"val": 0.25}
    later = "; test waits for: fitkit evaluate RUN --split test" if "test" in shares else ""
    lines = ["splits:", *_line(f"  {name}: {flow(shares)}", f"val chooses the best epoch{later}")]
    if found.dates:
        by_time = {"time": {"column": found.dates, **shares}}
        lines.append(f"# splits: {flow(by_time)}  # train on the past, test on the future")
    return lines


def _model(found: Survey, size: Size) -> list[str]:
    data, sample = found.data, tuple(found.data.x.shape[1:])
    if data.vocabulary is not None:
        given: dict[str, Any] = {"width": size.width, "depth": 2 if size.width <= 64 else 4, "heads": 4, "dropout": 0.1}
        return ["model:", *_line(f"  gpt: {flow(given)}", "a small GPT; the wider and deeper, the better and slower")]
    image = len(sample) == 3 or (len(sample) == 2 and (data.x.dtype is torch.uint8 or sample[0] == sample[1]))
    if image and min(sample[-2:]) > 1:
        channels = [width for i, width in enumerate((32, 64, 128)) if min(sample[-2:]) >> i >= 2]
        lines = _line(f"  cnn: {flow({'channels': channels})}", "blocks of convolutions, each of so many channels")
        return ["model:", *lines, *_line("  # resnet20:", "a deeper one; fitkit list models shows all")]
    if len(sample) == 2:
        lines = _line(f"  lstm: {flow({'width': max(size.width, 64)})}", "reads the steps of a sample one by one")
        return ["model:", *lines, *_line("  # transformer:", "the other one for sequences")]
    width = size.width
    lines = _line(f"  mlp: {flow({'hidden': [width, width], 'dropout': 0.1})}", f"two hidden layers of {width}")
    own = f"[{{Linear: {width}}}, ReLU, {{Linear: outputs}}]"
    return ["model:", *lines, f"# model: {own}  # the same by hand: any layers of torch.nn, in order"]


def _loss(found: Survey) -> list[str]:
    data = found.data
    if data.target == "values":
        lines = _line("loss: mse_loss", "squared error; huber_loss and l1_loss mind outliers less")
        if data.y is not None and data.y.abs().max() > LARGE:
            lines.insert(
                0, "# The target's numbers are large: a model learns them faster when they are divided to about 1."
            )
        return lines + _line("metrics: [mean_absolute_error, r2]", "r2: 1 is perfect, 0 no better than the mean")
    lines = _line("loss: cross_entropy", "of the next character" if data.y is None else "for classes, two or more")
    counts = torch.ones(1) if data.y is None else data.y.bincount()
    if counts.max() > UNEVEN * counts.min():
        lines.append("# loss: {cross_entropy: {class_weight: balanced}}  # the classes are uneven")
    return lines + _line("metrics: [accuracy]", "share of right answers, on train and on val, after each epoch")


def _optimizer(found: Survey) -> list[str]:
    plain = found.data.vocabulary is None and found.data.x.dim() == 2
    lr = (0.01 if found.data.target == "values" else 0.003) if plain else 0.001
    return [
        *_line(f"optimizer: {{AdamW: {{lr: {lr}, weight_decay: 0.01}}}}", f"tune lr first: {lr / 3:.1g}, {lr * 3:.1g}"),
        *_line("schedule: {cosine: {warmup: 0.05}}", "lr rises for 5 % of the steps, then falls to 0"),
    ]


def _callbacks(size: Size) -> list[str]:
    patience = max(3, size.epochs // 5)
    why = f"stop after {patience} epochs without a better val_loss"
    return ["callbacks:", *_line(f"  EarlyStopping: {{monitor: val_loss, patience: {patience}}}", why)]


def _fit(size: Size) -> list[str]:
    return [
        "fit:",
        *_line(f"  epochs: {size.epochs}", "at most; the weights of the best epoch are kept"),
        *_line(f"  batch_size: {size.batch_size}", "samples a step"),
        *_line("  # device: cpu", "left out: the GPU if there is one"),
    ]
