"""Convolutions train in channels_last: faster, and nothing else is different."""

import copy

import pytest
import torch
from torch import nn

import fitkit
from fitkit.engine import weights
from fitkit.engine.layout import align_state, channels_last, order
from fitkit.session import run

X = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(1))
Y = (X[:, 0, 0, 0] > 0).long() + (X[:, 1, 3, 3] > 0).long()
NORMAL, LAST = torch.contiguous_format, torch.channels_last
FUSED = ["SGD", "Adam", "AdamW", "Adagrad"]


@pytest.fixture(autouse=True)
def any_model(monkeypatch):
    """Let modules that are written out here stand for declared ones."""
    monkeypatch.setattr("fitkit.trainer.channels_last", lambda *parts, declared: channels_last(*parts))


class Killed(BaseException):
    """Ends a fit in the middle."""


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(),
        nn.ConvTranspose2d(8, 4, 2, stride=2), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip


def declared(optimizer="SGD", **more):
    arguments = {
        "lr": 0.05,
        **({"momentum": 0.9, "nesterov": True, "weight_decay": 1e-3} if optimizer == "SGD" else {}),
    }
    fit = {"epochs": 3, "batch_size": 8, "device": "cpu", "precision": "fp32"} | more.pop("fit", {})
    return {"splits": {"random": {"val": 0.2}}, "seed": 2, "optimizer": {optimizer: arguments}, **more, "fit": fit}


def strides(model):
    return {name: weight.stride() for name, weight in model.named_parameters()}


def test_the_weights_are_channels_last_during_a_fit_alone():
    module, seen = net(), {}
    before, memory = strides(module), [weight.data_ptr() for weight in module.parameters()]

    def look(trainer):
        seen.update(strides(trainer.model))
        for weight, kept in trainer.optimizer.state.items():
            tensors = [value for value in kept.values() if value is not None and value.shape == weight.shape]
            assert tensors and all(order(value) == order(weight) for value in tensors)
            assert weight.grad is None or order(weight.grad) == order(weight)

    trainer = fitkit.build(declared(), model=module, data=(X, Y), callbacks=[fitkit.LambdaCallback(on_step_end=look)])
    trainer.fit()
    assert seen["0.weight"] == torch.empty(8, 3, 3, 3).to(memory_format=LAST).stride()
    assert seen["3.weight"] == (8, 1, 8, 8) and seen["5.weight"] == (16, 1, 8, 4)
    assert strides(module) == before and [weight.data_ptr() for weight in module.parameters()] == memory
    assert all(
        order(value) == order(weight)
        for weight, kept in trainer.optimizer.state.items()
        for value in kept.values()
        if value.shape == weight.shape
    )


def test_an_error_puts_the_weights_back_too():
    def end(trainer):
        raise Killed

    module = net()
    before = strides(module)
    with pytest.raises(Killed):
        fitkit.fit(declared(), model=module, data=(X, Y), callbacks=[fitkit.LambdaCallback(on_step_end=end)])
    assert strides(module) == before


def test_what_shares_memory_with_a_weight_still_does():
    module = net()
    seen = module[0].weight.data.view(-1)
    fitkit.fit(declared(), model=module, data=(X, Y))
    assert torch.equal(seen.view(8, 3, 3, 3), module[0].weight.data)


@pytest.mark.parametrize("share", ["two parameters", "a part of a larger tensor", "float64", "channels_last"])
def test_some_weights_are_left_as_they_are(share):
    module = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3), nn.Flatten(), nn.Linear(48, 3))
    if share == "two parameters":
        module[1].weight.data = module[0].weight.data
    elif share == "a part of a larger tensor":
        module[0].weight.data, module[1].weight.data = torch.randn(2, 3, 3, 3, 3).unbind()
    else:
        module.to(torch.float64) if share == "float64" else module.to(memory_format=LAST)
    before = [weight.data_ptr() for weight in module.parameters()]
    with channels_last(module, torch.optim.SGD(module.parameters())):
        assert [weight.data_ptr() for weight in module.parameters()] == before


def plain_formula(name, weight, gradients, arguments):
    """Return the weight in float64 after updates by torch's for-loop, in contiguous order."""
    weight = nn.Parameter(weight.double().contiguous())
    optimizer = getattr(torch.optim, name)([weight], **arguments, foreach=False)
    for gradient in gradients:
        weight.grad = gradient.double().contiguous()
        optimizer.step()
    return weight.data


@pytest.mark.parametrize("name", FUSED)
def test_fused_updates_of_channels_last_weights_are_those_of_the_formula(name):
    arguments = {"lr": 0.05, **({"momentum": 0.9, "nesterov": True, "weight_decay": 1e-2} if name == "SGD" else {})}
    conv = nn.Conv2d(5, 7, 3, bias=False)
    start, gradients = conv.weight.data.clone(), torch.randn(4, *conv.weight.shape).unbind()
    optimizer = getattr(torch.optim, name)([conv.weight], **arguments, fused=True)
    with channels_last(conv, optimizer):
        for number, gradient in enumerate(gradients):
            conv.weight.grad = gradient.contiguous(memory_format=LAST)
            optimizer.step()
            if number == 1:  # as a file gives it back
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
                for kept in optimizer.state.values():
                    kept.update({k: v.contiguous() for k, v in kept.items() if v is not None and v.ndim == 4})
                align_state(optimizer)
        assert conv.weight.stride() == (45, 1, 15, 5)
    expected = plain_formula(name, start, gradients, arguments)
    torch.testing.assert_close(conv.weight.data.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("memory", [NORMAL, LAST], ids=["contiguous", "the user's own channels_last"])
@pytest.mark.parametrize("name", FUSED)
def test_a_killed_and_resumed_run_ends_in_the_same_bits(name, memory, tmp_path):
    def fit(folder, resume=False, stop_at=None):
        def stop(trainer):
            steps.append(strides(trainer.model))
            if trainer.step == stop_at:
                raise Killed

        steps, module = [], net().to(memory_format=memory)
        spec = declared(name, callbacks={"EMA": 0.8}, fit={"precision": "bf16"})
        watch = fitkit.LambdaCallback(on_step_end=stop)
        more = {"out": tmp_path / folder, "resume": resume, "callbacks": [watch], "every_steps": 3}
        history, _ = run(fitkit.load_spec(spec), model=module, data=(X, Y), **more)
        assert all(found == steps[0] for found in steps)
        return module, [[value.hex() for value in history[name]] for name in ("loss", "val_loss")]

    whole, losses = fit("whole")
    for stop_at in (2, 7, 11):
        with pytest.raises(Killed):
            fit("cut", resume=True, stop_at=stop_at)
    resumed, again = fit("cut", resume=True)
    assert again == losses
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )
    stored = [weights.load(tmp_path / folder / "model.safetensors")[0] for folder in ("whole", "cut")]
    assert all(torch.equal(stored[0][key], stored[1][key]) for key in stored[0])
    assert strides(resumed) == strides(net().to(memory_format=memory))


def test_the_order_of_x_changes_neither_fingerprint_nor_losses(tmp_path):
    found = []
    for number, x in enumerate((X, X.contiguous(memory_format=LAST))):
        folder = tmp_path / str(number)
        history, _ = run(fitkit.load_spec(declared()), model=net(), data=(x, Y), out=folder)
        environment = fitkit.run_folder.read_environment(folder)
        found.append(({k: v for k, v in environment.items() if k.startswith("data_")}, history["loss"]))
    assert found[0][0] == found[1][0] and found[0][1] == pytest.approx(found[1][1], rel=1e-5)


def test_volumes_are_held_so_too():
    module = nn.Sequential(nn.Conv3d(1, 4, 3), nn.Flatten(), nn.Linear(32, 2))
    with channels_last(module, torch.optim.SGD(module.parameters())):
        assert module[0].weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert module[0].weight.stride() == (27, 27, 9, 3, 1)


class Viewed(nn.Module):
    """Flattens by `view`, which asks for the order that convolutions had."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(144, 3)
        self.shared = self.conv.weight.detach()

    def forward(self, x):
        x = self.conv(x) * self.shared.mean()
        return self.head(x.view(len(x), -1))


def test_a_module_of_the_user_s_own_keeps_its_order_and_a_declared_one_does_not(monkeypatch):
    monkeypatch.setattr("fitkit.trainer.channels_last", channels_last)
    seen = []
    look = fitkit.LambdaCallback(on_step_end=lambda trainer: seen.append(next(trainer.model.parameters()).stride()))
    fitkit.build(declared(), model=Viewed(), data=(X, Y), callbacks=[look]).fit()
    layers = [{"Conv2d": {"out_channels": 4, "kernel_size": 3}}, "ReLU", "Flatten", {"Linear": "outputs"}]
    fitkit.build(declared(model=layers), data=(X, Y), callbacks=[look]).fit()
    assert seen[0] == (27, 9, 3, 1) and seen[-1] == (27, 1, 9, 3)
