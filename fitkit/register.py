"""Your own parts, by name in a spec: `@fitkit.register.metric`, `.loss`, `.model`, `.optimizer`, `.schedule`, ….

    @fitkit.register.metric(higher_is_better=True, target="values")
    def within(output, target, *, tolerance: float = 0.1):
        return ((output - target).abs() < tolerance).float()

What the run supplies stands before the `*`, what the spec supplies after it, annotated.
"""

from __future__ import annotations

from fitkit.builder.tables import TABLES

augmentation = TABLES["augmentations"].register
callback = TABLES["callbacks"].register
layer = TABLES["layers"].register
loss = TABLES["losses"].register
metric = TABLES["metrics"].register
model = TABLES["models"].register
optimizer = TABLES["optimizers"].register
schedule = TABLES["schedules"].register
source = TABLES["sources"].register
split = TABLES["splits"].register
transform = TABLES["transforms"].register
