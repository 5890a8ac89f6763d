"""The learning rate range test: a short run in which the learning rate grows exponentially, and what it suggests.

Smith 2017, "Cyclical Learning Rates for Training Neural Networks", section 3.3 (arXiv:1506.01186).
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import html
import math
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from fitkit import figures
from fitkit.after.lr_rules import Reading, length, read
from fitkit.builder import Overrides, SpecLike, begin, finish, load_spec
from fitkit.builder.folds import fold_specs
from fitkit.engine.seeds import kept_random_state
from fitkit.engine.step import Sums
from fitkit.errors import FitkitError, SpecError, printable, show
from fitkit.parts.callback import Callback
from fitkit.spec import compose
from fitkit.spec.component import Component
from fitkit.spec.spec import Spec
from fitkit.trainer import Trainer

LEAST_STEPS, MOST_STEPS = 200, 500
ENDLESS = 10**9  # epochs
WIDTH = 64  # of the curve in characters
LEVELS = "▁▂▃▄▅▆▇█"
LOSS, SMOOTH, MARK = "#b5bac4", "#7a8599", "#c8501e"  # the colours of the curves
ADAPTS_ITSELF = re.compile(r"prodigy|dadapt", re.IGNORECASE)  # names of optimizers that estimate their step size


@dataclass(frozen=True, kw_only=True, repr=False)
class LRFind:
    """What a sweep of the learning rate found.

    `lr` holds the learning rate of each step, that of the first parameter group, and `loss` that step's mean training
    loss; where the sweep ended early, the last is the one that was not finite or diverged. `smoothed` is the loss
    averaged over neighbouring steps, as long as it had not diverged. `suggestion` is the learning rate to take and
    `rule` how it was chosen, with its source; None and a reason where the curve gives none. `candidates` holds what
    each rule gives, by its name. `patch` holds the keys of the spec that the suggestion sets, for `fit(…,
    overrides=found.patch)`, and `command` the same for a shell. `notes` say what of the spec the sweep left out.
    """

    name: str
    lr: list[float]
    loss: list[float]
    smoothed: list[float]
    suggestion: float | None
    rule: str
    candidates: dict[str, float]
    patch: dict[str, Any]
    command: str
    steps: int  # that the sweep would have had
    ended: str  # why it had fewer; empty where it had all
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values; a loss that is not finite is None."""
        losses = [value if math.isfinite(value) else None for value in self.loss]
        return {**dataclasses.asdict(self), "loss": losses, "notes": list(self.notes)}

    def plot(self, path: str | Path | None = None, ax: Any = None) -> Any:
        """Draw the loss over the learning rate with the suggestion, and return matplotlib's figure.

        `path` writes the figure (png, svg, pdf); `ax` is matplotlib axes to draw on.
        """
        figure = figures.blank(6.4, 4.0) if ax is None else ax.figure
        _draw(figure.subplots() if ax is None else ax, self)
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure

    def __repr__(self) -> str:
        found = "no suggestion" if self.suggestion is None else f"suggested lr {self.suggestion:.1e}"
        return f"LRFind({self.name}: {found}, {len(self.lr)} steps)"

    def __str__(self) -> str:
        return printable("\n".join(_lines(self)))

    def _repr_html_(self) -> str:
        try:
            curve = figures.image(self.plot(), f"training loss over the learning rate of {self.name}")
        except FitkitError:
            curve = ""
        lines = "\n".join(_lines(self, curve=not curve))
        return f"{curve}<pre>{html.escape(printable(lines))}</pre>"


def lr_find(
    spec: SpecLike,
    *,
    model: nn.Module | None = None,
    data: Any = None,
    overrides: Overrides = None,
    start: float = 1e-7,
    end: float = 10.0,
    steps: int | None = None,
) -> LRFind:
    """Train for some steps while the learning rate grows from `start` to `end`, and read off a good one.

    Each step is one of the run: its model, data, batches, augmentation, loss, precision, accumulation, clipping and
    weight decay, eagerly; its schedule and callbacks are left out. All parameter groups keep the ratio of their
    learning rates, and those at 0 stay there. `steps` are those of one epoch, but at least 200 and at most 500. The
    sweep ends where the loss is not finite, or its running mean is above where it began and has risen to four times
    its lowest value.

    `model` and `data` are those of `fitkit.fit`. The module is copied, and nothing is written: afterwards the module,
    the random generators of Python, NumPy and torch, and those of a loader's samplers are as before; a dataset that is
    only iterated has been read from. SpecError and DataError are those of `fitkit.build`, and SpecError says where an
    optimizer has no learning rate to find.
    """
    loaded = load_spec(spec, overrides)
    _check_range(start, end, steps)
    with _all_kept(data):
        trainer = _trainer((fold_specs(loaded) or (loaded,))[0], model, data)
        optimizer = trainer.spec.optimizer
        assert optimizer is not None
        _refuse_without_lr(optimizer)
        sweep = _Sweep(start, end, steps or _steps_of(trainer))
        sweep.run(trainer)
    reading = read(sweep.lr, sweep.loss, sweep.steps)
    base = float(trainer.optimizer.param_groups[0]["initial_lr"])
    patch = {} if reading.suggestion is None else _patch(optimizer, reading.suggestion, base)
    return LRFind(
        name=loaded.name,
        lr=sweep.lr,
        loss=sweep.loss,
        smoothed=reading.smoothed,
        suggestion=reading.suggestion,
        rule=reading.rule,
        candidates=reading.candidates,
        patch=patch,
        command=_command(spec, overrides, patch) if patch else "",
        steps=sweep.steps,
        ended=reading.ended,
        notes=_notes(loaded, optimizer, reading),
    )


def _check_range(start: float, end: float, steps: int | None) -> None:
    if not 0 < start < end < math.inf:
        raise SpecError(f"the learning rate grows from start to end: 0 < start < end, not {start:g} and {end:g}.")
    if steps is not None and steps < 50:
        raise SpecError(f"a sweep of {steps} steps tells nothing: give steps at least 50, or leave it out.")


def _refuse_without_lr(optimizer: Component) -> None:
    if optimizer.entry.facts.get("initial_lr_only"):
        more = "it adapts that by itself, so there is none to find"
        raise optimizer.error(f"{optimizer.name} reads its lr at the first step only: {more}.")
    if optimizer.get("lr") is None:
        raise optimizer.error(f"{optimizer.name} takes no lr, so there is none to find.")


def _trainer(spec: Spec, model: Any, data: Any) -> Trainer:
    """Return what the run would train, on a copy of the module, without callbacks, schedule and evaluation."""
    try:
        copied = copy.deepcopy(model) if isinstance(model, nn.Module) else model
    except Exception as error:  # whatever the user's own class raises
        raise SpecError(f"the model cannot be copied, so that it could be tried: {error}.") from error
    begun = begin(spec, copied, data)
    try:
        begun.refuse_too_large()
        trainer = finish(
            dataclasses.replace(begun, spec=dataclasses.replace(begun.spec, callbacks=(), schedule=None)), None
        )
    except SpecError as error:
        raise spec.located(error) from error.__cause__
    options = dataclasses.replace(trainer.options, epochs=ENDLESS, max_steps=None, max_time=None, compile=False)
    return dataclasses.replace(trainer, val=None, monitor=None, options=options)


def _steps_of(trainer: Trainer) -> int:
    batches = trainer.train.per_epoch
    epoch = LEAST_STEPS if batches is None else -(-batches // trainer.options.accumulate)
    return min(max(epoch, LEAST_STEPS), MOST_STEPS)


class _Enough(BaseException):
    """Ends a fit in the middle: no error that anything would handle."""


class _Sweep(Callback):
    """The learning rate of each step, and the loss that it had."""

    def __init__(self, start: float, end: float, steps: int) -> None:
        self.start, self.ratio, self.steps = start, end / start, steps
        self.lr: list[float] = []
        self.loss: list[float] = []
        self.attempts = 0
        self.bar: Any = None

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        return float(self.start * self.ratio ** (step / (self.steps - 1)))

    def run(self, trainer: Trainer) -> None:
        """Run the sweep; a fit that TrainingError ends raises it."""
        base = trainer.optimizer.param_groups[0]["initial_lr"]
        terminal = sys.stderr.isatty()
        with (
            contextlib.suppress(_Enough),
            tqdm(total=self.steps, desc="lr-find", leave=False, disable=not terminal) as bar,
        ):
            self.bar = bar
            dataclasses.replace(trainer, callbacks=(self,), schedule=lambda step: self.rate(step) / base).fit()

    def on_step_end(self, trainer: Any) -> None:
        """Note the loss of the step, unless fp16 skipped it; end the fit with the last one."""
        counted = float(trainer.sums.count) or not self.loss  # a step of ignored targets alone has no loss of its own
        loss = trainer.sums.mean_loss() if counted else self.loss[-1]
        trainer.sums = Sums(trainer.objective.metrics, trainer.device)
        self.attempts += 1
        self.bar.update()
        if trainer.step > len(self.lr) or not math.isfinite(loss):
            self.lr.append(self.rate(len(self.lr)))
            self.loss.append(loss)
        enough = len(self.lr) == self.steps or self.attempts == 2 * self.steps
        if enough or length(self.loss, self.steps)[1]:
            raise _Enough


@contextlib.contextmanager
def _all_kept(data: Any) -> Iterator[None]:
    """Put back every generator that training may draw from, the global ones and those of the user's loaders."""
    generators = {id(g): (g, g.get_state()) for part in _parts(data) for g in _generators(part)}
    epochs = [(s, s.epoch) for part in _parts(data) for s in _samplers(part) if hasattr(s, "set_epoch")]
    devices = list(range(torch.cuda.device_count()))
    with kept_random_state(), torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            for generator, state in generators.values():
                generator.set_state(state)
            for sampler, epoch in epochs:
                sampler.set_epoch(epoch)


def _parts(data: Any) -> list[Any]:
    return list(data.values()) if isinstance(data, Mapping) else [data]


def _samplers(loader: Any) -> list[Any]:
    if not isinstance(loader, DataLoader):
        return []
    batches: Any = loader.batch_sampler
    return [sampler for sampler in (loader.sampler, batches, getattr(batches, "sampler", None)) if sampler is not None]


def _generators(loader: Any) -> list[torch.Generator]:
    found = [getattr(part, "generator", None) for part in [loader, *_samplers(loader)]]
    return [generator for generator in found if isinstance(generator, torch.Generator)]


def _patch(optimizer: Component, lr: float, base: float) -> dict[str, Any]:
    """Return the keys that set every learning rate of an optimizer as the sweep had them where the first was `lr`."""
    path = f"optimizer.{optimizer.name}"
    patch: dict[str, Any] = {f"{path}.lr": lr}
    if (other := optimizer.get("adamw_lr")) is not None:
        patch[f"{path}.adamw_lr"] = _short(other * lr / base)
    if own := optimizer.get("lr_patterns"):
        patch[f"{path}.lr_patterns"] = {pattern: _short(rate * lr / base) for pattern, rate in own.items()}
    return patch


def _short(value: float) -> float:
    return float(f"{value:.1e}")


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{show(key, 10**6)}: {_value(item)}" for key, item in value.items()) + "}"
    return f"{value:.1e}" if isinstance(value, float) else str(value)


def _command(spec: SpecLike, overrides: Overrides, patch: Mapping[str, Any]) -> str:
    """Return the shell command of a fit with the patch, after the overrides that the sweep had."""
    given: Iterable[Any] = () if isinstance(overrides, Mapping) else overrides or ()
    kept = [text for text in given if text.partition("=")[0].strip() not in patch]
    path = str(spec) if compose.is_path(spec) else "SPEC"
    words = [path, *kept, *(f"{key}={_value(value)}" for key, value in patch.items())]
    return " ".join(["fitkit fit", *map(shlex.quote, words)])


def _notes(spec: Spec, optimizer: Component, reading: Reading) -> tuple[str, ...]:
    notes = list(reading.notes)
    if fold_specs(spec):
        notes.append("of the folds that the spec asks for, the sweep trained on the first")
    if spec.schedule is not None and spec.schedule.name != "constant":
        notes.append(f"the schedule {spec.schedule.name} was left out: a fit multiplies the lr by it")
    if optimizer.get("lr_patterns") or optimizer.get("adamw_lr") is not None:
        notes.append("the learning rates of all parameter groups were scaled together, and the patch sets them all")
    if ADAPTS_ITSELF.search(optimizer.name):
        notes.append(f"{optimizer.name} estimates its step size itself: its lr is a factor that is best left at 1")
    return tuple(notes)


def _lines(found: LRFind, curve: bool = True) -> Iterator[str]:
    done = f"{len(found.lr)} of {found.steps} steps" if found.ended else f"{found.steps} steps"
    yield f"{found.name}: lr from {found.lr[0]:.1e} to {found.lr[-1]:.1e} in {done}{found.ended and ': '}{found.ended}"
    if curve and len(found.smoothed) >= 2:
        yield from _curve(found)
    if found.suggestion is None:
        yield f"no suggestion: {found.rule}"
    else:
        yield f"suggested lr: {found.suggestion:.1e}, {found.rule}"
        others = {rule: lr for rule, lr in found.candidates.items() if lr != found.suggestion}
        yield from (f"      or else: {lr:.1e}, {rule}" for rule, lr in others.items())
        yield f"  {found.command}"
    yield from (f"note: {note}" for note in found.notes)


def _curve(found: LRFind) -> Iterator[str]:
    """Yield the smoothed loss as one line of bars, with the learning rates below, and its end points."""
    losses, lr = found.smoothed, found.lr
    wide = min(WIDTH, len(losses))
    cells = [losses[i * len(losses) // wide : (i + 1) * len(losses) // wide] for i in range(wide)]
    means = [sum(cell) / len(cell) for cell in cells]
    low, high = min(means), means[0] + 0.25 * (means[0] - min(means))
    span = (high - low) or 1.0
    bars = "".join(LEVELS[min(int((mean - low) / span * len(LEVELS)), len(LEVELS) - 1)] for mean in means)
    yield f"  loss {bars}"
    marks, place = [" "] * (wide + 10), {}
    for exponent in range(math.ceil(math.log10(lr[0])), math.floor(math.log10(lr[len(losses) - 1])) + 1):
        place[_cell(found, 10.0**exponent, wide)] = f"1e{exponent:+03d}"
    free = 0
    for column, text in sorted(place.items()):
        if column >= free:
            marks[column : column + len(text)] = text
            free = column + len(text) + 2
    yield "    lr " + "".join(marks).rstrip()
    if found.suggestion is not None:
        yield " " * (7 + _cell(found, found.suggestion, wide)) + "^"
    lowest = min(range(len(losses)), key=losses.__getitem__)
    yield f"  smoothed loss: {losses[0]:.4g} at the start, {losses[lowest]:.4g} at lr {lr[lowest]:.1e}, its lowest"


def _cell(found: LRFind, lr: float, wide: int) -> int:
    """Return the column of the curve in which a learning rate stands."""
    last = found.lr[len(found.smoothed) - 1]
    share = math.log(lr / found.lr[0]) / math.log(last / found.lr[0])
    return min(max(int(share * wide), 0), wide - 1)


def _draw(axes: Any, found: LRFind) -> None:
    shown = len(found.smoothed)
    axes.plot(found.lr[:shown], found.loss[:shown], color=LOSS, linewidth=1, label="loss of a step")
    axes.plot(found.lr[:shown], found.smoothed, color=SMOOTH, linewidth=2, label="smoothed")
    for rule, lr in found.candidates.items():
        chosen = lr == found.suggestion
        label = f"{'suggestion ' if chosen else ''}{lr:.1e}: {rule.partition(' (')[0]}"
        axes.axvline(lr, color=MARK if chosen else LOSS, linestyle="-" if chosen else "--", linewidth=1.5, label=label)
    axes.set_xscale("log")
    if shown:
        low, top = min(found.smoothed), max(found.smoothed[: max(shown // 2, 1)])
        axes.set_ylim(low - 0.15 * (top - low or 1), top + 0.4 * (top - low or 1))
    axes.set_title(f"{found.name}: learning rate range test", loc="left", fontsize=11)
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    axes.grid(color="#e4e7ec", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    if shown:
        axes.legend(facecolor="white", edgecolor="none", framealpha=0.9, fontsize=8)
