"""A run before its model is built: what the data ask of the model, and whether the memory can hold it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import nn

from fitkit.builder import size
from fitkit.builder.data import Prepared
from fitkit.builder.folds import training_seed
from fitkit.builder.objective import Contract
from fitkit.builder.tables import default
from fitkit.data import Inputs
from fitkit.engine.seeds import INIT, derive
from fitkit.errors import Fault, SpecError
from fitkit.parts.layers import build_layers
from fitkit.spec.component import Component
from fitkit.spec.spec import Spec


@dataclass(frozen=True, kw_only=True)
class Outline:
    """A run before its model is built."""

    spec: Spec
    model: nn.Module | None  # of the user's own
    prepared: Prepared
    contract: Contract
    inputs: Inputs
    outputs: int | None
    device: torch.device
    precision: torch.dtype | None

    def make(self) -> nn.Module:
        """Build the model of the spec."""
        return make_model(self.spec, self.inputs, self.outputs or 0)

    def sketch(self) -> size.Sketch | None:
        """Return the model without numbers; None where the user's own code would have to run for it."""
        if self.model is None:
            return size.sketch(self.spec.model, self.make, self.device)
        return None

    def size(self, model: nn.Module) -> size.Size:
        """Return the memory that the run needs with a model on the meta device."""
        optimizer = self.spec.optimizer or default("optimizers", "AdamW", "optimizer")
        ours = self.model is None
        return size.measure(
            model, self.spec, self.prepared, self.contract, optimizer, self.device, self.precision, ours
        )

    def refuse_too_large(self) -> None:
        """Raise SpecError for a model or a batch that the memory cannot hold, before any of it is taken.

        A module of the user's own, and a model of registered parts, are built as they are. Compiled code keeps fewer
        activations than are counted here, so only the rest is compared then; with `out_of_memory: halve` one sample
        has to fit.
        """
        there = size.room(self.device)
        drawn = None if there is None else self.sketch()
        if there is None or drawn is None:
            return
        if drawn.model is None:
            if drawn.weights + drawn.outputs > there:
                more = f"takes more than the {size.in_words(there)} that are available, before its last layer."
                raise SpecError(Fault(f"{more} Take a smaller model.", "model"))
        elif not size.is_small(drawn, self.spec, self.prepared.first[0], there):
            found = self.size(drawn.model)
            if self.spec.fit.compile is True:
                found = dataclasses.replace(found, activations=None, saved=None, largest=0)
            batch, cut = len(self.prepared.first[0]), self.spec.fit.out_of_memory == "halve"
            if found.least > there and not (cut and size.largest_batch(found.least, found.steady, batch, there)):
                raise size.refusal(found, there, batch)


def make_model(spec: Spec, inputs: Inputs, outputs: int) -> nn.Module:
    """Build the spec's model: initial weights depend on the seed alone, torch's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(training_seed(spec), INIT))
        if isinstance(spec.model, Component):
            model = spec.model.build(inputs, outputs)
            if not isinstance(model, nn.Module):
                raise spec.model.error(f"must return a torch.nn.Module, not a {type(model).__name__}.")
            return model
        assert spec.model is not None
        return build_layers(spec.model, inputs, outputs)
