"""What is measured: the metrics of a spec, bound to the outputs that the model really gives."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

import torch
from torch import Tensor

from fitkit.builder.tables import TABLES, default
from fitkit.engine.step import Metric
from fitkit.errors import listing
from fitkit.parts.metrics import mean
from fitkit.spec.component import Component
from fitkit.spec.spec import Spec

CLASSIFYING = ("classes", "binary", "signs")
# What metrics and predictions see in place of such outputs: logits, above 0 for class 1, and values.
METRIC_OUTPUT: dict[str, Callable[[Tensor], Tensor]] = {"probabilities": torch.logit, "log_rates": torch.exp}


def choose_metrics(spec: Spec, loss: Component, kind: str, output: Tensor) -> tuple[Component, ...]:
    """Return the spec's metrics; classification has accuracy without asking."""
    classifying = kind in CLASSIFYING
    metrics = list(spec.metrics or ())
    for metric in metrics:
        wanted = metric.entry.facts["target"]
        if (wanted == "classes") != classifying:
            what = "classes" if classifying else "values"
            fit = [name for name, entry in TABLES["metrics"].items() if entry.facts["target"] == what]
            raise metric.error(
                f"{metric.name} compares {wanted}, but with {loss.name} the targets are {what}. "
                f"Choose from {listing(fit)}."
            )
        if "needs" in metric.entry.facts:
            try:
                metric.entry.facts["needs"]()
            except ValueError as error:
                raise metric.error(f"{metric.name} {error}.") from None
        if metric.get("average") == "binary" and output.ndim > 1 and output.shape[1] != 2:
            raise metric.error(f"is for two classes, and here are {output.shape[1]}. Write macro.", "average")
        k = metric.get("k")
        if k is not None and output.ndim > 1 and k > output.shape[1]:
            raise metric.error(f"is {k}, but there are only {output.shape[1]} classes. Give fewer.", "k")
    if classifying and not any(metric.name == "accuracy" for metric in metrics):
        metrics.insert(0, default("metrics", "accuracy", "metrics"))
    return tuple(metrics)


def bind_metric(metric: Component, reads: str, output: Tensor, target: Tensor) -> Metric:
    """Return a metric as the engine takes it, after a look at what it gives for an aligned output and target.

    `reads` is what the outputs are, as the loss declares: "logits", "probabilities", …
    """
    facts, own = metric.entry.facts, metric.own()
    function: Callable[[Tensor, Tensor], Tensor] = (
        functools.partial(metric.entry.factory, **own) if own else metric.entry.factory
    )
    to_metric = METRIC_OUTPUT.get(reads)
    if to_metric is not None:
        inner, change = function, to_metric
        function = lambda output, target: inner(change(output), target)  # noqa: E731
    finish = facts.get("finish", mean)
    arguments = {**metric.entry.defaults(), **own}
    if asked := {name: arguments[name] for name in inspect.signature(finish).parameters if name in arguments}:
        finish = functools.partial(finish, **asked)
    rows = function(output, target)
    if not isinstance(rows, Tensor) or rows.ndim not in (1, 2) or len(rows) != len(target):
        gave = f"shape {tuple(rows.shape)}" if isinstance(rows, Tensor) else f"a {type(rows).__name__}"
        raise metric.error(
            f"{metric.name} must return one row a sample, ({len(target)},) here, but it gave {gave}. fitkit sums "
            "them over the epoch and divides: leave out .mean()."
        )
    return Metric(metric.name, function, facts["higher_is_better"], finish, facts.get("keeps", False))
