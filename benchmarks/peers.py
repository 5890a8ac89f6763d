"""Peers that do one `Training`, each by its defaults or by its best documented settings.

None of them evaluates: there is no validation in the programs that they are compared with. Where a peer measures no
training accuracy by itself, the model or a callback of ours adds it up on the device, as a user of it would.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.training import Training, pairs


def lightning(t: Training, best: bool) -> dict[str, float]:
    """Run Lightning's Trainer; best: logger, checkpoint, bar and summary off, and the fused optimizer."""
    import pytorch_lightning as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = t.model

        def training_step(self, batch: Any, index: int) -> Tensor:
            x, y = batch
            output = self.net(x)
            loss = t.loss(output, y)
            accuracy = t.right(output, y) / y.numel()
            self.log_dict({"loss": loss, "accuracy": accuracy}, on_step=False, on_epoch=True, batch_size=len(x))
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return t.make_optimizer(fused=best or None)

        def on_train_epoch_end(self) -> None:
            t.end_epoch()

    off: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    settings = {**off, "logger": False} if best else {}
    accelerator = "gpu" if t.device == "cuda" else t.device
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_epochs=t.epochs, accelerator=accelerator, devices=1, default_root_dir=folder, **settings
        )
        trainer.fit(Module(), t.loader())
    return t.numbers()


def transformers(t: Training, best: bool) -> dict[str, float]:
    """Run Hugging Face's Trainer without clipping and schedule; best: bar, checkpoints and logs off."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = t.model
            self.register_buffer("right", torch.zeros((), dtype=torch.int64))

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.net(x)
            self.right += t.right(logits, labels)
            return {"loss": t.loss(logits, labels), "logits": logits}

    class Rows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(t.x)

        def __getitem__(self, i: int) -> dict[str, Tensor]:
            return {"x": t.x[i], "labels": t.y[i]}

    class Watch(TrainerCallback):
        def on_epoch_end(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
            net.right.item()
            net.right.zero_()
            t.end_epoch()

    net = Net()
    settings = {"disable_tqdm": True, "save_strategy": "no", "logging_strategy": "epoch"} if best else {}
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=t.epochs,
            per_device_train_batch_size=t.batch_size,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            report_to="none",
            use_cpu=t.device == "cpu",
            **settings,
        )
        optimizers = (t.make_optimizer(fused=True), None)  # its own default is fused
        Trainer(net, arguments, train_dataset=Rows(), optimizers=optimizers, callbacks=[Watch()]).train()
    return t.numbers()


def skorch(t: Training, best: bool) -> dict[str, float]:
    """Run skorch without a validation split; best: the log that it prints is off, and the optimizer fused."""
    from skorch import NeuralNetClassifier
    from skorch.callbacks import Callback, EpochScoring

    class Watch(Callback):
        def on_epoch_end(self, net: Any, **_: Any) -> None:
            t.end_epoch()

    accuracy = EpochScoring("accuracy", name="train_acc", lower_is_better=False, on_train=True)
    settings = {"callbacks__print_log": None, "optimizer__fused": True} if best else {}
    net = NeuralNetClassifier(
        t.model,
        criterion=nn.CrossEntropyLoss,
        optimizer=getattr(torch.optim, t.optimizer),
        **t.arguments,
        batch_size=t.batch_size,
        max_epochs=t.epochs,
        train_split=None,
        iterator_train__shuffle=True,
        callbacks=[("accuracy", accuracy), ("watch", Watch())],
        **settings,
    )
    net.fit(t.x, t.y)
    t.model = net.module_
    return t.numbers()


def poutyne(t: Training, best: bool) -> dict[str, float]:
    """Run Poutyne; best: the bar is off, and the optimizer fused."""
    from poutyne import Callback, Model

    class Watch(Callback):
        def on_epoch_end(self, epoch_number: int, logs: Any) -> None:
            t.end_epoch()

    model = Model(t.model, t.make_optimizer(fused=best or None), t.loss, batch_metrics=["accuracy"])
    model.fit(t.x, t.y, batch_size=t.batch_size, epochs=t.epochs, callbacks=[Watch()], verbose=not best)
    return t.numbers()


def keras(t: Training, best: bool) -> dict[str, float]:
    """Run Keras on the backend of KERAS_BACKEND, for a perceptron; best: no bar, and on JAX 64 steps a call."""
    import keras

    several = {"steps_per_execution": 64} if best and keras.backend.backend() == "jax" else {}  # torch: 1 or an error

    layers = [part for part in t.model if isinstance(part, nn.Linear)]
    dense = [keras.layers.Dense(part.out_features, activation="relu") for part in layers[:-1]]
    model = keras.Sequential([keras.Input((t.x.shape[1],)), *dense, keras.layers.Dense(layers[-1].out_features)])
    state = [part.detach().numpy() for layer in layers for part in (layer.weight.T, layer.bias)]
    model.set_weights(state)
    model.compile(
        optimizer=keras.optimizers.Adam(t.arguments["lr"], epsilon=1e-8),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **several,
    )
    watch = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: t.end_epoch())
    x, y = t.x.numpy(), t.y.numpy()
    verbose = 0 if best else "auto"
    model.fit(x, y, batch_size=t.batch_size, epochs=t.epochs, shuffle=True, callbacks=[watch], verbose=verbose)
    for layer, (weight, bias) in zip(layers, pairs(model.get_weights()), strict=True):
        _put(layer, torch.from_numpy(weight.T.copy()), torch.from_numpy(bias.copy()))
    return t.numbers()


def jax_scan(t: Training) -> dict[str, float]:
    """Train a perceptron of two layers by Adam in JAX: `jit(lax.scan)` over an epoch, the fastest known peer."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    x, y, size, rate = jnp.asarray(t.x.numpy()), jnp.asarray(t.y.numpy()), t.batch_size, t.arguments["lr"]
    weights = [jnp.asarray(p.detach().numpy()) for p in t.model.parameters()]
    state = weights, [jnp.zeros_like(w) for w in weights], [jnp.zeros_like(w) for w in weights], jnp.zeros(())
    full = len(x) // size

    def loss_of(weights: Any, inputs: Any, target: Any) -> Any:
        output = jax.nn.relu(inputs @ weights[0].T + weights[1]) @ weights[2].T + weights[3]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(output), target[:, None], 1)
        return -chosen.mean(), (output.argmax(1) == target).sum()

    def one(state: Any, rows: Any) -> Any:
        weights, first, second, step = state
        (loss, right), grads = jax.value_and_grad(loss_of, has_aux=True)(weights, x[rows], y[rows])
        step = step + 1
        first = [0.9 * m + 0.1 * g for m, g in zip(first, grads, strict=True)]
        second = [0.999 * v + 0.001 * g * g for v, g in zip(second, grads, strict=True)]
        weights = [
            w - rate * (m / (1 - 0.9**step)) / (jnp.sqrt(v / (1 - 0.999**step)) + 1e-8)
            for w, m, v in zip(weights, first, second, strict=True)
        ]
        return (weights, first, second, step), (loss * len(rows), right)

    @jax.jit
    def epoch_of(state: Any, key: Any) -> Any:
        rows = jax.random.permutation(key, len(x))
        state, sums = jax.lax.scan(one, state, rows[: full * size].reshape(full, size))
        sums = [part.sum() for part in sums]
        if len(x) % size:  # the ragged last batch is a step of its own
            state, last = one(state, rows[full * size :])
            sums = [a + b for a, b in zip(sums, last, strict=True)]
        return state, sums

    for epoch in range(t.epochs):
        state, sums = epoch_of(state, jax.random.key(epoch))
        [float(part) for part in sums]
        t.end_epoch()
    layers = [part for part in t.model if isinstance(part, nn.Linear)]
    for layer, (weight, bias) in zip(layers, pairs([torch.tensor(np.asarray(w)) for w in state[0]]), strict=True):
        _put(layer, weight, bias)
    return t.numbers()


@torch.no_grad()
def _put(layer: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
