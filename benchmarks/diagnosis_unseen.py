"""Kinds of runs on which the rules of the diagnosis were never tried while they were written: other data, other causes.

They were written down after the rules, trained once, and nothing was changed for what they showed.
"""

from __future__ import annotations

import torch

from benchmarks.diagnosis_cases import Case, Run, bundled, digits, drawn, mlp, shuffled, spec, stopping, synthetic


def lr_x100_RMSprop_iris(seed: int) -> Run:
    return Run(spec(seed, 30, 16, data="iris", model=mlp(16), optimizer={"RMSprop": {"lr": 0.3}}))


def lr_x100_Adam_five_classes(seed: int) -> Run:
    return Run(spec(seed, 15, data=synthetic(seed, 5), model=mlp(64, 64), optimizer={"Adam": {"lr": 0.3}}))


def lr_100th_Adam_table(seed: int) -> Run:
    return Run(spec(seed, 25, data="breast_cancer", model=mlp(32), optimizer={"Adam": {"lr": 3e-5}}))


def lr_100th_regression(seed: int) -> Run:
    return Run(spec(seed, 20, data=synthetic(seed, 0), model=mlp(64), optimizer={"AdamW": {"lr": 2e-5}}))


def momentum_0_998(seed: int) -> Run:
    optimizer = {"SGD": {"lr": 0.05, "momentum": 0.998}}
    return Run(spec(seed, 20, data=synthetic(seed, 4), model=mlp(64), optimizer=optimizer))


def whole_set_as_one_batch(seed: int) -> Run:
    return Run(spec(seed, 20, 4000, data=synthetic(seed, 4), model=mlp(64), optimizer={"AdamW": 1e-3}))


def shuffled_classes_drawn(seed: int) -> Run:
    x, _ = drawn(seed, 1000)
    y = shuffled(seed, torch.arange(1000) % 3)
    return Run(spec(seed, 30, model=mlp(64, 64), optimizer={"AdamW": 3e-3}), (x, y))


def few_rows_many_weights(seed: int) -> Run:
    data = synthetic(seed, 2, samples=80)
    return Run(spec(seed, 60, data=data, splits={"random": {"val": 0.5}}, model=mlp(256), optimizer={"AdamW": 2e-3}))


def memorized_noise(seed: int) -> Run:
    data = synthetic(seed, 4, samples=1000, noise=1.0)
    return Run(spec(seed, 60, data=data, model=mlp(256), optimizer={"SGD": {"lr": 0.05, "momentum": 0.9}}))


def leaked_target_regression(seed: int) -> Run:
    x, y = bundled("diabetes")
    y = (y - y.mean()) / y.std()
    x = torch.cat([x, 3 * y[:, None]], 1)
    return Run(spec(seed, 60, loss="mse_loss", model=[{"Linear": "outputs"}], optimizer={"AdamW": 1e-2}), (x, y))


def pos_weight_silences_a_class(seed: int) -> Run:
    loss = {"binary_cross_entropy_with_logits": {"pos_weight": 1e-3}}
    return Run(spec(seed, 15, data="breast_cancer", loss=loss, model=mlp(16), optimizer={"AdamW": 1e-3}))


def one_class_in_forty(seed: int) -> Run:
    x, generator = drawn(seed, 4000, 10)
    rare = torch.rand(4000, generator=generator) < 0.025
    x[rare, 0] += 0.5
    return Run(spec(seed, 8, model=mlp(16), optimizer={"SGD": {"lr": 0.05}}), (x, rare.long()))


def dropout_0_9_table(seed: int) -> Run:
    model = {"mlp": {"hidden": [64, 64], "dropout": 0.9}}
    return Run(spec(seed, 30, data="breast_cancer", model=model, optimizer={"AdamW": 3e-3}))


def weight_decay_as_L2_of_Adam(seed: int) -> Run:
    return Run(
        spec(seed, 20, data=synthetic(seed, 4), model=mlp(64), optimizer={"Adam": {"lr": 3e-3, "weight_decay": 0.3}})
    )


def four_validation_rows_iris(seed: int) -> Run:
    return Run(
        spec(seed, 30, 16, data="iris", splits={"random": {"val": 0.03}}, model=mlp(16), optimizer={"AdamW": 1e-2})
    )


def too_few_epochs_drawn(seed: int) -> Run:
    return Run(spec(seed, 5, data=synthetic(seed, 4), model=mlp(64), optimizer={"SGD": {"lr": 0.03}}))


def lr_dropped_at_a_twentieth(seed: int) -> Run:
    schedule = {"step": {"at": [0.05], "factor": 1e-3}}
    return Run(spec(seed, 30, data=synthetic(seed, 4), model=mlp(64), optimizer={"AdamW": 1e-3}, schedule=schedule))


def targets_in_millions(seed: int) -> Run:
    x, generator = drawn(seed, 800, 8)
    y = 3e6 + 1e6 * (x[:, :3].sum(1) + 0.3 * torch.randn(800, generator=generator))
    return Run(spec(seed, 20, model=mlp(32), loss="mse_loss", optimizer={"Adam": 1e-3}), (x, y))


def two_hidden_of_one_unit(seed: int) -> Run:
    model = [{"Linear": 1}, "ReLU", {"Linear": 32}, "ReLU", {"Linear": "outputs"}]
    return Run(spec(seed, 25, data=synthetic(seed, 6), model=model, optimizer={"AdamW": 5e-3}))


def digits_two_layers_one_cycle(seed: int) -> Run:
    return digits(seed, 15, model=mlp(64, 64, dropout=0.1), optimizer={"AdamW": 5e-3}, schedule="one_cycle")


def drawn_three_classes_Adamax(seed: int) -> Run:
    optimizer = {"Adamax": {"lr": 3e-3, "weight_decay": 1e-3}}
    data = synthetic(seed, 3, samples=4000, noise=0.0)
    return Run(spec(seed, 20, 64, data=data, model=mlp(32), optimizer=optimizer, callbacks=stopping()))


def iris_linear_Adam(seed: int) -> Run:
    splits = {"stratified": {"val": 0.3}}
    model = [{"Linear": "outputs"}]
    return Run(spec(seed, 60, 16, data="iris", splits=splits, model=model, optimizer={"Adam": 2e-2}, schedule="cosine"))


def breast_cancer_nesterov(seed: int) -> Run:
    optimizer = {"SGD": {"lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3}}
    splits = {"stratified": {"val": 0.25}}
    return Run(
        spec(seed, 20, data="breast_cancer", splits=splits, model=mlp(16), optimizer=optimizer, schedule="linear")
    )


def noisy_line_regression(seed: int) -> Run:
    x, generator = drawn(seed, 1500, 6)
    y = x[:, 0] - 2 * x[:, 1] + 1.5 * torch.randn(1500, generator=generator)
    return Run(spec(seed, 20, model=[{"Linear": "outputs"}], loss="mse_loss", optimizer={"AdamW": 1e-2}), (x, y))


def digits_batch_of_eight_SGD(seed: int) -> Run:
    return digits(seed, 12, batch_size=8, model=mlp(64), optimizer={"SGD": {"lr": 0.03}}, schedule="cosine")


def drawn_values_two_layers(seed: int) -> Run:
    data = synthetic(seed, 0, samples=4000, noise=0.2)
    optimizer = {"AdamW": {"lr": 1e-3, "weight_decay": 0.05}}
    return Run(spec(seed, 40, 64, data=data, model=mlp(64, 32), optimizer=optimizer, callbacks=stopping(4)))


TOO_HIGH = ("learning_rate_too_high", "divergence")
ILL = {
    lr_x100_RMSprop_iris: TOO_HIGH,
    lr_x100_Adam_five_classes: TOO_HIGH,
    lr_100th_Adam_table: ("learning_rate_too_low",),
    lr_100th_regression: ("learning_rate_too_low",),
    momentum_0_998: TOO_HIGH,
    whole_set_as_one_batch: ("batch_too_large",),
    shuffled_classes_drawn: ("no_signal",),
    few_rows_many_weights: ("overfitting",),
    memorized_noise: ("overfitting",),
    leaked_target_regression: ("leak",),
    pos_weight_silences_a_class: ("class_never_predicted",),
    one_class_in_forty: ("class_never_predicted", "no_better_than_largest_class"),
    dropout_0_9_table: ("train_worse_than_val", "underfitting"),
    weight_decay_as_L2_of_Adam: ("underfitting",),
    four_validation_rows_iris: ("validation_too_small",),
    too_few_epochs_drawn: ("train_longer",),
    lr_dropped_at_a_twentieth: ("plateau",),
    targets_in_millions: ("target_not_scaled",),
    two_hidden_of_one_unit: ("underfitting",),
}
WELL = [
    digits_two_layers_one_cycle,
    drawn_three_classes_Adamax,
    iris_linear_Adam,
    breast_cancer_nesterov,
    noisy_line_regression,
    digits_batch_of_eight_SGD,
    drawn_values_two_layers,
]
PATHOLOGIES = [Case(make.__name__.replace("_", " "), make, names) for make, names in ILL.items()]
HEALTHY = [Case(make.__name__.replace("_", " "), make) for make in WELL]
