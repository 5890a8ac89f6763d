"""Runs that are ill in a known way, and runs of which an expert would not complain; each a function of a seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import fitkit

FIT = {"compile": False, "device": "cpu", "precision": "fp32"}
DIGITS_NET = [{"Linear": 128}, "ReLU", {"Linear": "outputs"}]


@dataclass(frozen=True)
class Run:
    """What is trained: a spec, and where data or model are no part of it, those too."""

    spec: dict[str, Any]
    data: Any = None
    model: nn.Module | None = None


@dataclass(frozen=True)
class Case:
    """A kind of run; `names` are the findings that count as detected, none for a healthy one."""

    name: str
    make: Callable[[int], Run]
    names: tuple[str, ...] = field(default=())


PATHOLOGIES: list[Case] = []
HEALTHY: list[Case] = []


def ill(*names: str) -> Callable[[Callable[[int], Run]], Callable[[int], Run]]:
    """Add a pathology, which is detected where one of these findings is a warning or an error."""

    def add(make: Callable[[int], Run]) -> Callable[[int], Run]:
        PATHOLOGIES.append(Case(make.__name__.replace("_", " "), make, names))
        return make

    return add


def well(make: Callable[[int], Run]) -> Callable[[int], Run]:
    """Add a healthy run."""
    HEALTHY.append(Case(make.__name__.replace("_", " "), make))
    return make


def spec(seed: int, epochs: int = 20, batch_size: int = 32, **sections: Any) -> dict[str, Any]:
    """Return a spec of the run; sections that are None are left out."""
    sections = {key: value for key, value in sections.items() if value is not None}
    return {"seed": seed, "fit": {**FIT, "epochs": epochs, "batch_size": batch_size}, **sections}


def bundled(name: str, scaled: bool = True) -> tuple[Tensor, Tensor]:
    """Return inputs and targets of a bundled set; scaled, digits to [0, 1], else features to deviation 1."""
    component = fitkit.load_spec({"data": name, "model": "mlp"}).data
    assert component is not None
    data = component.build()
    x = data.x.flatten(1).float()
    if not scaled:
        return x, data.y
    x = x / 16 if name == "digits" else (x - x.mean(0)) / x.std(0)
    return x, data.y


def drawn(seed: int, rows: int, features: int = 20) -> tuple[Tensor, torch.Generator]:
    """Return normal inputs, and the generator for what else is drawn."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, features, generator=generator), generator


def mlp(*sizes: int, dropout: float = 0.0) -> list[Any]:
    """Return layers of a perceptron."""
    layers: list[Any] = []
    for size in sizes:
        layers += [{"Linear": size}, "ReLU", *([{"Dropout": dropout}] if dropout else [])]
    return [*layers, {"Linear": "outputs"}]


# ---- learning rate, momentum, batches


def digits(seed: int, epochs: int = 15, model: Any = None, **sections: Any) -> Run:
    """Return a plain run on the bundled digits."""
    given = {"optimizer": {"AdamW": {"lr": 3e-3}}, "splits": {"stratified": {"val": 0.2}}, **sections}
    given.setdefault("batch_size", 32)
    return Run(spec(seed, epochs, data="digits", model=model or DIGITS_NET, metrics=["accuracy"], **given))


@ill("learning_rate_too_high", "divergence")
def learning_rate_x100_AdamW(seed: int) -> Run:
    return digits(seed, optimizer={"AdamW": {"lr": 0.3}})


@ill("learning_rate_too_high", "divergence")
def learning_rate_x100_SGD(seed: int) -> Run:
    return digits(seed, optimizer={"SGD": {"lr": 5.0, "momentum": 0.9}})


@ill("learning_rate_too_high", "divergence")
def learning_rate_x100_regression(seed: int) -> Run:
    return Run(spec(seed, 30, data=synthetic(seed, 0), model=mlp(64), optimizer={"SGD": {"lr": 3.0}}))


@ill("learning_rate_too_high", "divergence")
def learning_rate_x100_Adam_table(seed: int) -> Run:
    return Run(spec(seed, 30, data="breast_cancer", model=mlp(64), optimizer={"Adam": {"lr": 0.5}}))


@ill("learning_rate_too_low")
def learning_rate_100th_AdamW(seed: int) -> Run:
    return digits(seed, 20, optimizer={"AdamW": {"lr": 3e-5}})


@ill("learning_rate_too_low")
def learning_rate_100th_SGD(seed: int) -> Run:
    return Run(spec(seed, 20, data=synthetic(seed, 4), model=mlp(64), optimizer={"SGD": {"lr": 1e-3}}))


@ill("learning_rate_too_low")
def learning_rate_100th_cosine(seed: int) -> Run:
    return digits(seed, 20, optimizer={"SGD": {"lr": 5e-4, "momentum": 0.9}}, schedule="cosine")


@ill("learning_rate_too_high", "divergence")
def momentum_too_high(seed: int) -> Run:
    return digits(seed, optimizer={"SGD": {"lr": 0.05, "momentum": 0.999}})


@ill("batch_too_large")
def batch_size_far_too_large(seed: int) -> Run:
    return Run(spec(seed, 15, 4096, data="digits", model=DIGITS_NET, optimizer={"AdamW": {"lr": 1e-3}}))


@ill("plateau")
def schedule_ends_too_early(seed: int) -> Run:
    schedule = {"step": {"at": [0.1], "factor": 1e-4}}
    return digits(seed, 20, optimizer={"SGD": {"lr": 0.02, "momentum": 0.9}}, schedule=schedule)


@ill("train_longer")
def too_few_epochs(seed: int) -> Run:
    return digits(seed, 4, optimizer={"SGD": {"lr": 0.05}})


@ill("train_longer")
def too_few_epochs_regression(seed: int) -> Run:
    return Run(spec(seed, 4, data=synthetic(seed, 0), model=mlp(64), optimizer={"SGD": {"lr": 0.01}}))


# ---- data


def shuffled(seed: int, y: Tensor) -> Tensor:
    """Return the targets in another order."""
    return y[torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))]


@ill("no_signal")
def shuffled_labels(seed: int) -> Run:
    x, y = bundled("digits")
    return Run(spec(seed, 20, model=mlp(128), optimizer={"AdamW": 3e-3}), (x, shuffled(seed, y)))


@ill("no_signal")
def shuffled_labels_of_a_table(seed: int) -> Run:
    x, y = bundled("breast_cancer")
    return Run(spec(seed, 40, model=mlp(64), optimizer={"AdamW": 3e-3}), (x, shuffled(seed, y)))


@ill("no_signal")
def shuffled_targets_regression(seed: int) -> Run:
    x, y = bundled("diabetes")
    y = (y - y.mean()) / y.std()
    return Run(spec(seed, 40, model=mlp(64), loss="mse_loss", optimizer={"AdamW": 3e-3}), (x, shuffled(seed, y)))


@ill("overfitting")
def tiny_training_set(seed: int) -> Run:
    x, y = bundled("digits")
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    train, val = order[:40], order[40:500]
    data = {"train": (x[train], y[train]), "val": (x[val], y[val])}
    return Run(spec(seed, 60, model=mlp(128), metrics=["accuracy"], optimizer={"AdamW": 3e-3}), data)


@ill("overfitting")
def no_regularization_on_a_large_net(seed: int) -> Run:
    data = synthetic(seed, 3, samples=400, noise=0.5)
    return Run(spec(seed, 40, data=data, model=mlp(512, 512), optimizer={"AdamW": {"lr": 1e-3, "weight_decay": 0.0}}))


@ill("overfitting")
def too_many_epochs(seed: int) -> Run:
    x, generator = drawn(seed, 500)
    y = (x[:, :3].sum(1) + torch.randn(500, generator=generator) > 0).long()
    return Run(spec(seed, 120, model=mlp(64), optimizer={"AdamW": 3e-3}), (x, y))


@ill("overfitting")
def overfitting_regression(seed: int) -> Run:
    data = synthetic(seed, 0, samples=200, noise=0.5)
    return Run(spec(seed, 100, data=data, model=mlp(256, 256), optimizer={"AdamW": 1e-3}))


@ill("leak")
def leaked_target(seed: int) -> Run:
    x, y = bundled("digits")
    x = torch.cat([x, 3 * torch.nn.functional.one_hot(y, 10)], 1)
    return Run(spec(seed, 15, model=mlp(128), optimizer={"AdamW": 3e-3}), (x, y))


@ill("leak")
def leaked_target_of_a_table(seed: int) -> Run:
    x, y = bundled("breast_cancer")
    x = torch.cat([x, 10.0 * y[:, None]], 1)
    return Run(spec(seed, 30, model=mlp(64), optimizer={"AdamW": 1e-2}), (x, y))


@ill("validation_too_small")
def tiny_validation_set(seed: int) -> Run:
    return digits(seed, 10, splits={"random": {"val": 0.006}})


@ill("class_never_predicted")
def class_weight_silences_a_class(seed: int) -> Run:
    return digits(seed, 10, loss={"cross_entropy": {"class_weight": [1.0] * 7 + [1e-4] + [1.0] * 2}})


@ill("class_never_predicted", "no_better_than_largest_class")
def class_imbalance(seed: int) -> Run:
    x, generator = drawn(seed, 1500)
    rare = torch.rand(1500, generator=generator) < 0.06
    x[rare, 0] += 0.7
    return Run(spec(seed, 12, model=mlp(32), optimizer={"AdamW": 1e-3}), (x, rare.long()))


@ill("learning_rate_too_high", "divergence", "not_learning")
def unscaled_inputs(seed: int) -> Run:
    x, y = bundled("breast_cancer", scaled=False)
    return Run(spec(seed, 20, model=mlp(64), optimizer={"SGD": {"lr": 0.05}}), (x, y))


@ill("learning_rate_too_high", "divergence", "not_learning")
def unscaled_inputs_Adam(seed: int) -> Run:
    x, y = bundled("breast_cancer", scaled=False)
    return Run(spec(seed, 20, model=mlp(64), optimizer={"AdamW": {"lr": 1e-2}}), (x, y))


@ill("divergence", "target_not_scaled")
def exploding_targets(seed: int) -> Run:
    x, y = bundled("diabetes")
    return Run(spec(seed, 20, model=mlp(64), loss="mse_loss", optimizer={"SGD": 0.01}), (x, y * 1e4))


@ill("target_not_scaled")
def unscaled_targets_Adam(seed: int) -> Run:
    x, y = bundled("diabetes")
    return Run(spec(seed, 30, model=mlp(64), loss="mse_loss", optimizer={"AdamW": 1e-3}), (x, y * 100))


# ---- model and regularization


@ill("not_learning", "constant_predictions")
def dead_ReLU(seed: int) -> Run:
    x, y = bundled("digits")
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    nn.init.constant_(net[2].bias, -30.0)
    return Run(spec(seed, 12, optimizer={"AdamW": 3e-3}), (x, y), net)


@ill("not_learning", "constant_predictions")
def saturated_sigmoids(seed: int) -> Run:
    layers: list[Any] = []
    for _ in range(7):
        layers += [{"Linear": 32}, "Sigmoid"]
    return digits(seed, 10, model=[*layers, {"Linear": "outputs"}], optimizer={"SGD": {"lr": 0.05}})


@ill("underfitting")
def huge_weight_decay(seed: int) -> Run:
    return digits(seed, 15, optimizer={"AdamW": {"lr": 3e-3, "weight_decay": 15.0}})


@ill("underfitting")
def huge_weight_decay_SGD(seed: int) -> Run:
    return digits(seed, 15, optimizer={"SGD": {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}})


@ill("underfitting", "train_worse_than_val")
def too_much_dropout(seed: int) -> Run:
    return digits(seed, 20, model=mlp(64, 64, dropout=0.85), optimizer={"AdamW": 3e-3})


@ill("underfitting")
def bottleneck_of_one_unit(seed: int) -> Run:
    return digits(seed, 40, model=[{"Linear": 1}, "Tanh", {"Linear": "outputs"}], optimizer={"AdamW": {"lr": 1e-2}})


@ill("underfitting", "not_learning")
def linear_model_of_a_product(seed: int) -> Run:
    x, _ = drawn(seed, 1200, 4)
    y = (x[:, 0] * x[:, 1] > 0).long()
    return Run(spec(seed, 20, model=[{"Linear": "outputs"}], optimizer={"AdamW": 1e-2}), (x, y))


# ---- healthy


def synthetic(seed: int, classes: int, samples: int = 2000, noise: float = 0.1) -> dict[str, Any]:
    """Return the source of drawn data."""
    return {"synthetic": {"samples": samples, "classes": classes, "noise": noise, "seed": seed}}


def stopping(patience: int = 5) -> dict[str, Any]:
    """Return the callbacks of a run that ends by itself."""
    return {"EarlyStopping": {"patience": patience}}


def gallery(name: str) -> None:
    """Add a spec of the gallery as a healthy run."""

    def make(seed: int) -> Run:
        given = fitkit.load_spec(f"specs/{name}.yaml", {"seed": seed}).resolved()
        given["fit"] |= FIT
        given["fit"] = {key: value for key, value in given["fit"].items() if value is not None}
        return Run({key: value for key, value in given.items() if value is not None})

    HEALTHY.append(Case(f"specs/{name}.yaml", make))


for _name in ("digits", "iris", "breast_cancer", "diabetes", "csv_tabular"):
    gallery(_name)


@well
def digits_AdamW_cosine(seed: int) -> Run:
    return digits(seed, 15, schedule="cosine", batch_size=64)


@well
def digits_SGD_momentum(seed: int) -> Run:
    return digits(seed, 20, optimizer={"SGD": {"lr": 0.05, "momentum": 0.9}}, schedule={"cosine": {"warmup": 0.05}})


@well
def digits_RMSprop_early_stopping(seed: int) -> Run:
    return digits(seed, 30, optimizer={"RMSprop": {"lr": 1e-3}}, callbacks=stopping(), model=mlp(64))


@well
def digits_NAdam_one_cycle(seed: int) -> Run:
    return digits(seed, 15, optimizer={"NAdam": {"lr": 5e-3}}, schedule="one_cycle", batch_size=128)


@well
def digits_dropout_linear_schedule(seed: int) -> Run:
    return digits(seed, 20, model=mlp(256, dropout=0.3), schedule="linear")


@well
def digits_batch_norm_SGD_steps(seed: int) -> Run:
    model = [{"Linear": 128}, "BatchNorm1d", "ReLU", {"Linear": "outputs"}]
    return digits(seed, 20, model=model, optimizer={"SGD": {"lr": 0.1}}, schedule={"step": {"at": [0.6, 0.85]}})


@well
def digits_label_smoothing(seed: int) -> Run:
    return digits(seed, 15, loss={"cross_entropy": {"label_smoothing": 0.1}}, schedule="cosine")


@well
def digits_cnn(seed: int) -> Run:
    conv = {"Conv2d": {"out_channels": 16, "kernel_size": 3}}
    model = [{"Unflatten": [1, 8, 8]}, conv, "ReLU", {"MaxPool2d": 2}, "Flatten", {"Linear": "outputs"}]
    return digits(seed, 12, model=model, optimizer={"AdamW": {"lr": 3e-3}}, schedule="cosine", batch_size=64)


@well
def digits_linear_model(seed: int) -> Run:
    return digits(seed, 25, model=[{"Linear": "outputs"}], optimizer={"AdamW": {"lr": 5e-3}}, schedule="cosine")


@well
def digits_Tanh_Adagrad(seed: int) -> Run:
    model = [{"Linear": 128}, "Tanh", {"Linear": "outputs"}]
    return digits(seed, 20, model=model, optimizer={"Adagrad": {"lr": 0.03}})


@well
def iris_SGD(seed: int) -> Run:
    splits = {"stratified": {"val": 0.3}}
    optimizer = {"SGD": {"lr": 0.05, "momentum": 0.9}}
    return Run(spec(seed, 40, 16, data="iris", splits=splits, model=mlp(16), optimizer=optimizer, schedule="cosine"))


@well
def iris_early_stopping(seed: int) -> Run:
    splits = {"stratified": {"val": 0.3}}
    optimizer = {"AdamW": {"lr": 1e-2, "weight_decay": 0.05}}
    return Run(
        spec(seed, 60, 16, data="iris", splits=splits, model=mlp(16), optimizer=optimizer, callbacks=stopping(8))
    )


@well
def breast_cancer_logistic(seed: int) -> Run:
    optimizer = {"AdamW": {"lr": 1e-2, "weight_decay": 0.05}}
    loss = "binary_cross_entropy_with_logits"
    model = [{"Linear": "outputs"}]
    return Run(spec(seed, 30, data="breast_cancer", loss=loss, model=model, optimizer=optimizer, schedule="cosine"))


@well
def breast_cancer_dropout(seed: int) -> Run:
    optimizer = {"AdamW": {"lr": 2e-3, "weight_decay": 0.1}}
    model = mlp(32, dropout=0.3)
    return Run(spec(seed, 40, data="breast_cancer", model=model, optimizer=optimizer, callbacks=stopping(6)))


@well
def diabetes_scaled_ridge(seed: int) -> Run:
    x, y = bundled("diabetes")
    y = (y - y.mean()) / y.std()
    optimizer = {"AdamW": {"lr": 1e-2, "weight_decay": 0.1}}
    return Run(
        spec(seed, 30, loss="mse_loss", model=[{"Linear": "outputs"}], optimizer=optimizer, schedule="cosine"), (x, y)
    )


@well
def diabetes_scaled_early_stopping(seed: int) -> Run:
    x, y = bundled("diabetes")
    y = (y - y.mean()) / y.std()
    optimizer = {"AdamW": {"lr": 3e-3, "weight_decay": 0.1}}
    run = spec(seed, 60, loss="mse_loss", model=mlp(32, dropout=0.2), optimizer=optimizer, callbacks=stopping(8))
    return Run(run, (x, y))


@well
def drawn_classes_SGD(seed: int) -> Run:
    data = synthetic(seed, 2, samples=3000)
    optimizer = {"SGD": {"lr": 0.02, "momentum": 0.9, "weight_decay": 3e-3}}
    return Run(spec(seed, 15, 64, data=data, model=mlp(64), optimizer=optimizer, schedule="cosine"))


@well
def drawn_classes_five(seed: int) -> Run:
    data = synthetic(seed, 5, samples=4000, noise=0.0)
    optimizer = {"AdamW": {"lr": 3e-3, "weight_decay": 0.1}}
    return Run(spec(seed, 20, 64, data=data, model=mlp(64, 64), optimizer=optimizer, callbacks=stopping()))


@well
def noisy_classes_linear_model(seed: int) -> Run:
    x, generator = drawn(seed, 2000, 8)
    y = (x[:, :4].sum(1) + 1.5 * torch.randn(2000, generator=generator) > 0).long()
    return Run(spec(seed, 15, model=[{"Linear": "outputs"}], optimizer={"AdamW": 1e-2}, schedule="cosine"), (x, y))


@well
def drawn_values(seed: int) -> Run:
    data = synthetic(seed, 0, samples=3000)
    return Run(spec(seed, 30, data=data, model=mlp(64), optimizer={"AdamW": 3e-3}, schedule="cosine"))


@well
def drawn_values_huber_Adam(seed: int) -> Run:
    data = synthetic(seed, 0, samples=3000, noise=0.3)
    optimizer = {"Adam": {"lr": 2e-3, "weight_decay": 1e-4}}
    return Run(
        spec(seed, 40, 64, data=data, loss="huber_loss", model=mlp(64), optimizer=optimizer, callbacks=stopping())
    )


@well
def imbalanced_but_learnable(seed: int) -> Run:
    x, generator = drawn(seed, 2000, 10)
    rare = torch.rand(2000, generator=generator) < 0.15
    x[rare, :4] += 1.5
    return Run(spec(seed, 20, model=mlp(32), optimizer={"AdamW": 2e-3}, callbacks=stopping()), (x, rare.long()))


@well
def two_moons(seed: int) -> Run:
    _, generator = drawn(seed, 1, 1)
    angle = torch.rand(1500, generator=generator) * torch.pi
    y = (torch.rand(1500, generator=generator) < 0.5).long()
    x = torch.stack((angle.cos() * (1 - 2 * y) + y, angle.sin() * (1 - 2 * y) + 0.5 * y), 1)
    x = x + 0.2 * torch.randn(1500, 2, generator=generator)
    return Run(spec(seed, 40, model=mlp(32, 32), optimizer={"AdamW": 5e-3}, schedule="cosine"), (x, y))


@well
def digits_sequence_GRU(seed: int) -> Run:
    model = [{"Unflatten": [8, 8]}, {"GRU": 32}, "Last", {"Linear": "outputs"}]
    return digits(seed, 12, model=model, optimizer={"AdamW": {"lr": 1e-2}}, schedule="cosine", batch_size=64)
