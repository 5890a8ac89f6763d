"""What a model gives for every sample of one part of the data, beside what is right."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fitkit.engine.batches import Batches, RowBatches
from fitkit.engine.step import Metric, Objective, eval_mode
from fitkit.errors import DataError
from fitkit.parts.rankings import log_odds

MOST_LOGIT = 100.0  # of a probability: where torch's binary_cross_entropy bounds its logarithm


def as_logits(outputs: Tensor, reads: str) -> Tensor:  # (...) -> (...) float64
    """Return outputs as logits: those of probabilities, at most 100; log-probabilities are logits, too."""
    outputs = outputs.double()
    return outputs.logit().clamp(-MOST_LOGIT, MOST_LOGIT) if reads == "probabilities" else outputs


def tempered(logits: Tensor, temperature: float | Tensor, dim: int = -1) -> Tensor:
    """Return logits divided by a temperature (Guo et al. 2017), the largest of each sample moved to 0 before that.

    The softmax is the same for it, and no temperature makes it overflow.
    """
    return (logits - logits.amax(dim, keepdim=True)) / temperature


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """Outputs and targets of N samples, on the CPU, in the order of the data.

    A sample has one position, or several (a text has one a token); M of all positions count: those that the loss
    ignores are left out. `counts` holds what the loss divides by, so that `sums.sum() / counts.sum()` is the loss.
    """

    part: str  # "val", or the name of a file
    kind: Literal["classes", "values"]
    reads: str  # what the outputs are: "logits", "log_probabilities", "probabilities", "scores", "log_rates", "values"
    outputs: Tensor  # (M, C) or one logit (M,); for values (M, ...), as the loss takes them
    targets: Tensor  # (M,) int64 class numbers; for values (M, ...)
    samples: Tensor  # (M,) int64, rising: the sample, 0 to N - 1, that a position belongs to
    rows: Tensor  # (N,) int64: the number of each sample in the data that was given, from 0
    sums: Tensor  # (N,) float64: the loss of each sample, summed over its positions
    counts: Tensor  # (N,) float64
    metrics: tuple[Metric, ...] = ()
    classes: tuple[str, ...] | None = None  # the names of the classes, where the data has any
    temperature: float = 1.0  # by which `fitkit calibrate` divides logits
    held_out: bool = False  # the model is known not to have been trained on these samples
    image: tuple[int, int, int] | None = None  # (channels, height, width) of samples that are flattened images
    batches: Batches | None = field(default=None, repr=False)  # where the samples can be read again
    card: dict[str, Any] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def positions(self) -> int:
        """How many positions count, M."""
        return len(self.targets)

    @property
    def one_each(self) -> bool:
        """Whether every sample has one position, so that positions are independent of each other."""
        return self.positions == len(self) and bool((self.samples == torch.arange(len(self))).all())

    @property
    def loss(self) -> float:
        """The mean loss, as `val_loss` is."""
        total = float(self.counts.sum())
        return float(self.sums.sum()) / total if total else float("nan")

    @property
    def predicted(self) -> Tensor:
        """Class numbers (M,) int64, or predicted values (M, ...)."""
        if self.kind == "values":
            return self.outputs.exp() if self.reads == "log_rates" else self.outputs
        if self.outputs.ndim == 1:
            return (self.outputs > (0.5 if self.reads == "probabilities" else 0)).long()
        return self.outputs.argmax(1)

    @property
    def can_be_probabilities(self) -> bool:
        """Whether the outputs can be read as class probabilities."""
        return self.kind == "classes" and self.reads != "scores"

    def log_probabilities(self, temperature: float | None = None) -> Tensor:  # (M, C) float64
        """Return the logarithm of each class's probability; one logit gives the columns of class 0 and class 1.

        Logits are divided by a temperature first, the calibrated one unless another is given; probabilities are taken
        for the softmax or sigmoid of theirs.
        """
        return tempered(self.logits(), self.temperature if temperature is None else temperature).log_softmax(1)

    def logits(self, start: int = 0, end: int | None = None) -> Tensor:  # (m, C) float64
        """Return the logits of each class at the positions from `start` to `end`; one logit z gives 0 and z."""
        logits = as_logits(self.outputs[start:end], self.reads)
        return logits if logits.ndim == 2 else torch.stack((torch.zeros_like(logits), logits), 1)

    @property
    def log_odds(self) -> Tensor:  # (M, C) float64
        """The logarithm of p / (1 - p) of each class, before calibration: what samples are ranked by."""
        outputs = self.outputs if self.outputs.ndim > 1 else self.outputs[:, None]
        if self.reads == "probabilities":
            outputs = outputs.double().logit() if self.outputs.ndim == 1 else outputs.double().log()
        return log_odds(outputs)

    def probabilities(self, temperature: float | None = None) -> Tensor:  # (M, C) float64
        """Return the probability of each class."""
        return self.log_probabilities(temperature).exp()

    @property
    def class_count(self) -> int:
        """How many classes there are."""
        return 2 if self.outputs.ndim == 1 else self.outputs.shape[1]

    @property
    def class_names(self) -> list[str]:
        """The name of each class: the data's, or its number."""
        return list(self.classes) if self.classes else [str(number) for number in range(self.class_count)]

    def inputs(self, chosen: Sequence[int]) -> list[Tensor]:
        """Return the samples with these numbers, 0 to N - 1, as they were read, before the transform: (...) each."""
        assert self.batches is not None
        found: dict[int, Tensor] = {}
        wanted, start = set(chosen), 0
        if isinstance(self.batches, RowBatches):  # no others need be read
            rows = self.batches.rows[torch.as_tensor(sorted(wanted), device=self.batches.rows.device)]
            read = [x for batch, _ in self.batches.at(rows) for x in batch]
            return [dict(zip(sorted(wanted), read, strict=True))[number].cpu() for number in chosen]
        for x, _ in self.batches.in_order():
            found |= {number: x[number - start].cpu() for number in wanted if start <= number < start + len(x)}
            start += len(x)
        if found.keys() != wanted:
            raise DataError(f"{self.part}: the data gave fewer samples when it was read again.")
        return [found[number] for number in chosen]


def take_outcomes(
    model: nn.Module,
    objective: Objective,
    batches: Batches,
    facts: Mapping[str, Any],
    *,
    part: str,
    card: dict[str, Any],
) -> Outcomes:
    """Run a model over a part in eval mode, every sample once; `facts` are those of the loss's table entry."""
    taken, total = [], 0
    with eval_mode(model), torch.inference_mode():
        for x, y in batches.in_order():
            taken.append(_take(model, objective, x, y, total))
            total += len(x)
    if not taken:
        raise DataError(f"{part}: holds no samples.")
    # outside, so that these are no inference tensors, which autograd refuses
    outputs, targets, samples, sums, counts = (torch.cat(tensors) for tensors in zip(*taken, strict=True))
    kind: Literal["classes", "values"] = "values" if facts["target"] == "values" else "classes"
    return Outcomes(
        part=part,
        kind=kind,
        reads=facts["output"],
        outputs=outputs,
        targets=(targets > 0).long() if facts["target"] in ("binary", "signs") else targets,
        samples=samples,
        rows=batches.rows.cpu() if isinstance(batches, RowBatches) else torch.arange(total),
        sums=sums,
        counts=counts,
        metrics=objective.metrics,
        classes=tuple(card["classes"]) if card.get("classes") else None,
        temperature=float(card.get("temperature") or 1.0),
        batches=batches,
        card=card,
    )


def _take(model: nn.Module, objective: Objective, x: Tensor, y: Tensor, start: int) -> tuple[Tensor, ...]:
    """Return outputs, targets and samples of the positions of a batch, sums and counts of its samples, on the CPU."""
    output, target, mask = objective.align(objective.output(model, x), y)
    pairs = zip(output.tensor_split(len(x)), target.tensor_split(len(x)), strict=True)
    losses = [objective.val_loss(*pair) for pair in pairs]
    sums = torch.stack([total for total, _ in losses]).double()
    counts = torch.stack([torch.as_tensor(count) for _, count in losses]).double()
    samples = torch.arange(start, start + len(x), device=x.device).repeat_interleave(len(target) // len(x))
    positions = (output, target, samples) if mask is None else (output[mask], target[mask], samples[mask])
    return tuple(tensor.cpu() for tensor in (*positions, sums, counts))


def merged(parts: Sequence[Outcomes], part: str) -> Outcomes:
    """Return the outcomes of several parts as those of one, such as of all folds; rows in the order of the data.

    Where only some of their models are calibrated, the temperature is 1.
    """
    for one in parts:
        if (one.kind, one.reads, one.outputs.shape[1:]) != (parts[0].kind, parts[0].reads, parts[0].outputs.shape[1:]):
            raise DataError(f"{part}: the models give outputs of different kinds or numbers, so they cannot be joined.")
    order = torch.cat([one.rows for one in parts]).argsort(stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    rows, batches = torch.cat([one.rows for one in parts])[order], parts[0].batches
    if isinstance(batches, RowBatches):  # the same data for all of them, of which each has its own rows
        batches = copy.copy(batches)
        batches.rows = rows.to(batches.x.device)
    starts = [0]
    for one in parts:
        starts.append(starts[-1] + len(one))
    samples = place[torch.cat([one.samples + start for one, start in zip(parts, starts, strict=False)])]
    positions = samples.argsort(stable=True)
    return dataclasses.replace(
        parts[0],
        part=part,
        outputs=torch.cat([one.outputs for one in parts])[positions],
        targets=torch.cat([one.targets for one in parts])[positions],
        samples=samples[positions],
        rows=rows,
        temperature=parts[0].temperature if len({one.temperature for one in parts}) == 1 else 1.0,
        sums=torch.cat([one.sums for one in parts])[order],
        counts=torch.cat([one.counts for one in parts])[order],
        batches=batches if isinstance(batches, RowBatches) else None,
    )
