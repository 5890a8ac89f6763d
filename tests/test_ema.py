import pytest
import torch
from fake_trainer import FakeTrainer, checkpointed, count_up, counter, fit, series
from safetensors.torch import load_file
from torch import nn

from fitkit.errors import CheckpointError, SpecError
from fitkit.parts.callback import Callback
from fitkit.parts.callbacks import EMA, ModelCheckpoint


def noisy(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, dtype=torch.float64).to(parameter.dtype))
    for buffer in model.buffers():
        buffer.add_(1)


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.5, 0.999])
def test_the_average_is_that_of_the_formula(decay):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double()
    expected = [parameter.detach().clone() for parameter in model.parameters()]

    def move(model):
        noisy(model)
        for average, parameter in zip(expected, model.parameters(), strict=True):
            average.copy_(decay * average + (1 - decay) * parameter.detach())

    callback = EMA(decay=decay)
    trainer = fit(callback, series("loss", [1, 1]), model=model, steps=3, move=move)
    for average, parameter in zip(expected, trainer.model.parameters(), strict=True):
        torch.testing.assert_close(parameter.detach(), average, rtol=1e-12, atol=1e-12)
    assert model[1].num_batches_tracked == 6  # buffers are the model's own


def test_steps_that_were_skipped_do_not_move_the_average():
    def averages(skipped):
        torch.manual_seed(0)
        callback = EMA(decay=0.5)
        steps = 4 + len(skipped)
        trainer = fit(callback, series("loss", [1]), model=counter(), steps=steps, move=noisy, skipped=skipped)
        return trainer.model.weight.item()

    assert averages(frozenset()) == averages(frozenset({0, 2, 3}))


def test_evaluation_sees_the_averages_and_training_gets_its_weights_back_bit_for_bit():
    seen = {}

    class Before(Callback):
        def on_evaluate_begin(self, trainer):
            seen["raw"] = trainer.model.weight.detach().clone()

        def on_evaluate_end(self, trainer):
            seen["evaluated"] = trainer.model.weight.detach().clone()

        def on_epoch_end(self, trainer):
            seen["after"] = trainer.model.weight.detach().clone()

    model = counter()
    memory = model.weight.data_ptr()
    trainer = FakeTrainer(series("loss", [1]), [Before(), EMA(decay=0.5)], model=model, steps=2, move=count_up).fit()
    assert seen["raw"].item() == 2
    assert seen["evaluated"].item() == 1.25  # 0.5 * (0.5 * 0 + 0.5 * 1) + 0.5 * 2
    assert torch.equal(seen["after"], seen["raw"])
    assert trainer.model.weight.item() == 1.25
    assert model.weight.data_ptr() == memory


def test_checkpoints_of_a_run_with_ema_hold_the_averages(tmp_path):
    for order in ([ModelCheckpoint(), EMA(decay=0.5)], [EMA(decay=0.5), ModelCheckpoint()]):
        trainer = FakeTrainer(series("val_loss", [1]), order, out=tmp_path, model=counter(), steps=2, move=count_up)
        trainer.call("on_train_begin")
        trainer.epochs()
        assert trainer.model.weight.item() == 2
        assert load_file(tmp_path / "weights/last.safetensors")["model.weight"].item() == 1.25


def test_the_averages_survive_a_resume_to_the_bit():
    def run(model, callback, epochs, first=0):
        return FakeTrainer(series("loss", [1] * epochs), [callback], model=model, steps=3, move=count_up, epoch=first)

    whole = run(counter(), EMA(decay=0.9), 4).fit().model.weight
    first = run(counter(), EMA(decay=0.9), 2)
    first.call("on_train_begin")
    first.epochs()
    state, tensors = checkpointed(first.callbacks[0])
    second = run(first.model, EMA(decay=0.9), 4, first=2)
    second.call("on_train_begin")
    second.step = first.step
    second.callbacks[0].load_state_dict(state)
    second.callbacks[0].load_tensors(tensors)
    second.epochs(first=2)
    second.call("on_train_end")
    assert torch.equal(second.model.weight, whole)
    with pytest.raises(CheckpointError, match="not those of this model"):
        second.callbacks[0].load_tensors({"other": torch.zeros(1)})


def test_ema_takes_mixed_dtypes_tied_and_frozen_and_integer_parameters():
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2).double(), nn.Linear(2, 2).bfloat16(), nn.Linear(2, 2)])
    model[3].weight = model[0].weight
    model[1].requires_grad_(False)
    model.register_parameter("count", nn.Parameter(torch.tensor([3]), requires_grad=False))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(3)

    def move(model):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(2)

    fit(EMA(decay=0.5), series("loss", [1]), model=model, move=move)
    for name, parameter in model.named_parameters():
        assert torch.all(parameter == (5 if name == "count" else 4)), name


def test_two_averages_in_one_run_are_refused():
    with pytest.raises(SpecError, match="one EMA only"):
        FakeTrainer(series("loss", [1]), [EMA(), EMA()]).fit()
