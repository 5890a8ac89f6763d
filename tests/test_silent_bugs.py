"""Bugs that train without a complaint, in the step and in the evaluation; each test names the bug that it would see.

The ids are those of the project's list of silent bugs, gathered from the issues of other trainers.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from small_fit import each_step, labels, linear, numbers, overflow, same_bits, scaled, spec, state_of
from torch import nn
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

import fitkit
from fitkit.engine.seeds import order

EXACT = {"rtol": 1e-12, "atol": 1e-14}
WEIGHTS = [0.3, 1.7, 2.9]


def stepped_by_hand(module, x, y, lr, **loss):
    """Return the parameters after one SGD step on the mean cross entropy of one whole batch."""
    module = copy.deepcopy(module)
    F.cross_entropy(module(x).flatten(0, -2), y.flatten(), **loss).backward()
    return [p.detach() - lr * p.grad for p in module.parameters()]


@pytest.mark.parametrize("weight", [None, WEIGHTS], ids=["plain", "class weights"])
@pytest.mark.parametrize(("batch_size", "accumulate"), [(10, 1), (5, 2), (4, 3), (1, 10)])
def test_rows_with_one_to_seven_targets_make_one_step_however_they_are_cut(batch_size, accumulate, weight):
    """C1: normalised over the window, not over each micro-batch."""
    x, y = numbers(10, 7, 4), labels(3, 10, 7)
    y = y.where(torch.arange(7) < torch.tensor([1, 7, 2, 6, 3, 5, 4, 1, 7, 2])[:, None], -100)
    module = linear(4, 3)
    tensor = None if weight is None else torch.tensor(weight, dtype=torch.float64)
    expected = stepped_by_hand(module, x, y, 0.1, weight=tensor, ignore_index=-100)
    loss = {"ignore_index": -100} | ({} if weight is None else {"class_weight": weight})
    wanted = spec(batch_size=batch_size, accumulate=accumulate, loss={"cross_entropy": loss})
    fitkit.Model(module).fit(wanted, data={"train": (x, y)})
    for found, parameter in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(found.detach(), parameter, **EXACT)


@pytest.mark.parametrize(("rows", "steps"), [(7, 3), (6, 2), (2, 1), (1, 1)])
def test_the_batches_that_are_left_over_are_a_step_of_their_own(rows, steps):
    """C2: the last partial window is neither dropped nor kept for the next epoch."""
    trainer = fitkit.build(
        spec(batch_size=1, accumulate=3, epochs=2),
        model=linear(3, 3),
        data={"train": (numbers(rows, 3), labels(3, rows))},
    )
    trainer.fit()
    assert trainer.step == 2 * steps


def test_the_left_over_batch_is_divided_by_its_own_count():
    """C2: the third step of seven batches by three equals a step on the one batch that is left."""
    x, y, module = numbers(7, 4), labels(3, 7), linear(4, 3)
    callback, states = each_step(state_of)
    wanted = spec(batch_size=1, accumulate=3, seed=5)
    fitkit.Model(module).fit(wanted, data={"train": (x, y)}, callbacks=[callback])
    last = order(torch.arange(7), 5, 1)[-1:]
    before = linear(4, 3)
    before.load_state_dict(states[1])
    expected = stepped_by_hand(before, x[last], y[last], 0.1)
    for found, parameter in zip(states[2].values(), expected, strict=True):
        torch.testing.assert_close(found, parameter, **EXACT)


def test_no_gradient_is_left_from_one_epoch_to_the_next():
    """C2: nothing leaks into the next epoch."""
    gradients = []
    look = fitkit.LambdaCallback(on_epoch_begin=lambda t: gradients.extend(p.grad for p in t.model.parameters()))
    data = {"train": (numbers(7, 4), labels(3, 7))}
    fitkit.Model(linear(4, 3)).fit(spec(batch_size=1, accumulate=3, epochs=3), data=data, callbacks=[look])
    assert gradients and all(gradient is None or not gradient.any() for gradient in gradients)


def test_gradients_that_a_module_brings_along_are_no_part_of_the_first_step():
    """C2: a module whose `.grad` is not empty, after a backward pass of its owner, trains like any other."""
    fresh, used = linear(4, 3), linear(4, 3)
    used(numbers(5, 4)).sum().backward()
    for module in (fresh, used):
        fitkit.Model(module).fit(spec(), data={"train": (numbers(8, 4), labels(3, 8))})
    assert same_bits(fresh.state_dict(), used.state_dict())


class Nothing(nn.Module):
    """Give zeros whatever the input is, with a parameter to train."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x):
        return x[:, 0] * self.factor


STILL = 1e-300  # a learning rate that moves no weight


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10])
def test_an_epoch_loss_is_a_mean_over_samples_and_not_over_batches(batch_size):
    """C3: losses of 1 to 10 have the mean 5.5, whatever the last batch holds."""
    data = numbers(10, 2), torch.arange(1.0, 11.0, dtype=torch.float64)
    wanted = spec(batch_size=batch_size, lr=STILL, loss="l1_loss", metrics=["mean_absolute_error"])
    history = fitkit.Model(Nothing()).fit(wanted, data={"train": data, "val": data})
    columns = ("loss", "val_loss", "mean_absolute_error", "val_mean_absolute_error")
    assert [history[column] for column in columns] == [[5.5]] * 4


def test_an_epoch_metric_is_taken_over_the_whole_set_and_begins_anew_each_epoch():
    """C4: not the mean of a metric of batches, and no state is carried over."""
    x, y = numbers(10, 3), numbers(10)
    module = linear(3, 1, nn.Flatten(0))
    error, spread = module(x).detach() - y, y - y.mean()
    wanted = spec(epochs=2, lr=STILL, loss="mse_loss", metrics=["r2", "root_mean_squared_error"])
    history = fitkit.Model(module).fit(wanted, data={"train": (x, y), "val": (x, y)})
    r2, root = 1 - error.square().sum() / spread.square().sum(), error.square().mean().sqrt()
    for prefix in ("", "val_"):
        assert history[f"{prefix}r2"] == pytest.approx([r2.item()] * 2, rel=1e-12)
        assert history[f"{prefix}root_mean_squared_error"] == pytest.approx([root.item()] * 2, rel=1e-12)


@pytest.mark.parametrize("batch_size", [1, 4, 10])
def test_accuracy_counts_every_target_that_is_not_masked_once(batch_size):
    """C4: masked positions are neither right nor wrong, and class weights weigh the loss only."""
    x, y, module = numbers(10, 7, 4), labels(3, 10, 7), linear(4, 3)
    y = y.where(labels(4, 10, 7, seed=1) > 0, -100)
    right, counted = (module(x).argmax(-1) == y).sum().item(), (y != -100).sum().item()
    loss = {"cross_entropy": {"ignore_index": -100, "class_weight": WEIGHTS}}
    history = fitkit.Model(module).fit(
        spec(batch_size=batch_size, lr=STILL, loss=loss), data={"train": (x, y), "val": (x, y)}
    )
    assert history["accuracy"] == history["val_accuracy"] == pytest.approx([right / counted], rel=1e-12)


def test_the_count_of_an_epoch_keeps_every_target_of_a_float32_model():
    """C3: a running count in float32 stops growing at 2^24; class weights make the count a tensor."""
    trainer = fitkit.build(
        spec(loss={"cross_entropy": {"class_weight": [1.0, 1.0]}}),
        model=linear(2, 2).float(),
        data={"train": (numbers(4, 2), labels(2, 4))},
    )
    x = torch.zeros(1, 2)
    few, many = (x, torch.zeros(1).long()), (x.expand(2**22, 2), torch.zeros(2**22).long())
    with torch.no_grad():
        trainer.model[0].weight.zero_(), trainer.model[0].bias.zero_()
        values = trainer.evaluate(Given([many] * 4 + [few] * 2000))
    assert values["loss"] == pytest.approx(torch.tensor(2.0).log().item(), rel=1e-6)  # every row loses log 2


class Given:
    """Batches as they are given."""

    samples, batch_size = None, 4

    def __init__(self, batches):
        self.batches = batches

    def in_order(self):
        return iter(self.batches)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_scale_changes_neither_the_clipped_norm_nor_the_direction_of_a_step(accumulate):
    """C6: gradients are unscaled before they are clipped."""
    data = {"train": (numbers(8, 4), labels(3, 8))}
    wanted = spec(batch_size=8 // accumulate, accumulate=accumulate, lr=1.0, clip_norm=0.01)
    moves = []
    for scale in (None, 1.0, 65536.0):
        module = linear(4, 3).float()
        start = nn.utils.parameters_to_vector(module.parameters()).detach()
        scaled(fitkit.build(wanted, model=module, data=data), scale).fit()
        moves.append(nn.utils.parameters_to_vector(module.parameters()).detach() - start)
    for move in moves:
        assert move.norm().item() == pytest.approx(0.01, rel=1e-4)
        assert F.cosine_similarity(move, moves[0], dim=0) > 0.999999


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_schedule_counts_optimizer_steps_and_not_batches_or_epochs(accumulate):
    """C7: the learning rates are the closed form, to the last step of the run."""
    callback, rates = each_step(lambda t: t.optimizer.param_groups[0]["lr"])
    wanted = spec(batch_size=2, accumulate=accumulate, epochs=3, schedule={"linear": {"warmup": 2}})
    history = fitkit.Model(linear(4, 3)).fit(
        wanted, data={"train": (numbers(13, 4), labels(3, 13))}, callbacks=[callback]
    )
    an_epoch = {1: 7, 3: 3}[accumulate]
    total = 3 * an_epoch
    expected = [0.1 * ((t + 1) / 2 if t < 2 else 1 - (t - 2) / (total - 2)) for t in range(total)]
    assert rates == pytest.approx(expected, rel=1e-12)
    assert history["lr"] == rates[an_epoch - 1 :: an_epoch]


def test_the_schedule_of_a_loader_that_drops_its_last_batch_ends_with_the_run():
    """C7: the horizon is the number of steps that there will be."""
    loader = DataLoader(TensorDataset(numbers(10, 4), labels(3, 10)), batch_size=4, shuffle=True, drop_last=True)
    callback, rates = each_step(lambda t: t.lr)
    fitkit.Model(linear(4, 3)).fit(spec(epochs=2, schedule="linear"), data={"train": loader}, callbacks=[callback])
    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.025])


def test_steps_that_fp16_skips_do_not_count_against_max_steps():
    module = nn.Sequential(nn.Linear(4, 3))
    overflow(module[0], at=3)
    x, y = torch.randn(40, 4), torch.arange(40) % 3
    trainer = scaled(fitkit.build(spec(max_steps=6), model=module, data={"train": (x, y)}), 8.0)
    trainer.fit()
    assert (trainer.step, trainer.skipped_steps, trainer.batch) == (6, 1, 7)


def test_a_step_that_overflows_is_skipped_and_counted_and_moves_neither_weights_nor_schedule():
    """C7: the schedule counts applied steps; the optimizer's momentum and the EMA wait too."""
    data, module = {"train": (numbers(16, 4), labels(3, 16))}, linear(4, 3).float()
    overflow(module[0], at=2)
    callback, seen = each_step(lambda t: (t.step, t.lr, state_of(t)))
    wanted = spec(schedule="linear", optimizer={"SGD": {"lr": 0.1, "momentum": 0.9}})
    trainer = fitkit.build(wanted, model=module, data=data, callbacks=[callback])
    history = scaled(trainer, 8.0).fit()
    assert [step for step, _, _ in seen] == [1, 1, 2, 3]
    assert [lr for _, lr, _ in seen] == pytest.approx([0.1, 0.075, 0.075, 0.05])
    assert same_bits(seen[0][2], seen[1][2]) and not same_bits(seen[1][2], seen[2][2])
    assert history.skipped_steps == 1


class Fragile(nn.Module):
    """Fail in eval mode once `broken` is set."""

    broken = False

    def forward(self, x):
        if self.broken and not self.training:
            raise RuntimeError("the evaluation fails")
        return x


@pytest.mark.parametrize("broken", [False, True])
def test_evaluation_puts_back_the_mode_of_every_module_also_when_it_fails(broken):
    """C8: `eval()` is undone, and parts that were frozen stay so."""
    module = linear(4, 3, nn.BatchNorm1d(3), nn.Dropout(), Fragile(), nn.Sequential(nn.BatchNorm1d(3), nn.Dropout()))
    module[1].eval(), module[4][1].eval()
    data = numbers(8, 4), labels(3, 8)
    modes = {name: part.training for name, part in module.named_modules()}
    trainer = fitkit.build(spec(), model=module, data={"train": data, "val": data})
    module[3].broken = broken
    if broken:
        with pytest.raises(RuntimeError, match="the evaluation fails"):
            trainer.fit()
    else:
        trainer.evaluate(trainer.val)
        trainer.fit()
    assert {name: part.training for name, part in module.named_modules()} == modes


def test_evaluation_changes_no_buffer_and_training_none_of_a_frozen_norm():
    """C8: neither the look at the first batch nor validation moves a running mean."""
    module = linear(4, 3, nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    module[1].eval()
    before = copy.deepcopy(module.state_dict())
    data = numbers(8, 4), labels(3, 8)
    trainer = fitkit.build(spec(), model=module, data={"train": data, "val": data})
    trainer.evaluate(trainer.val)
    assert same_bits(module.state_dict(), before)
    trainer.fit()
    assert torch.equal(module[1].running_mean, before["1.running_mean"])
    assert not torch.equal(module[2].running_mean, before["2.running_mean"])


def test_a_last_batch_of_one_row_is_refused_for_batch_norm_before_training():
    """C9: it has no variance; the message offers what to do."""
    data = {"train": (numbers(9, 4), labels(3, 9)), "val": (numbers(1, 4), labels(3, 1))}
    with pytest.raises(fitkit.SpecError, match=r"batch_size: 9 training rows in batches of 4 .* such as .*LayerNorm"):
        fitkit.build(spec(), model=linear(4, 3, nn.BatchNorm1d(3)), data=data)
    fitkit.Model(linear(4, 3, nn.LayerNorm(3))).fit(spec(), data=data)
    fitkit.Model(linear(4, 3, nn.BatchNorm1d(3))).fit(spec(batch_size=3), data=data)


def test_a_last_batch_of_one_row_that_the_loader_drops_is_no_matter():
    """C9: a batch that never comes is not refused."""
    loader = DataLoader(TensorDataset(numbers(9, 4), labels(3, 9)), batch_size=4, shuffle=True, drop_last=True)
    history = fitkit.Model(linear(4, 3, nn.BatchNorm1d(3))).fit(spec(), data={"train": loader})
    assert len(history) == 1


@pytest.mark.parametrize("rows", [None, range(10), [1, 3, 5, 7, 9]], ids=["in order", "own sampler", "own subset"])
def test_validation_sees_every_row_once_also_from_a_loader_that_drops_its_last_batch(rows):
    """C10: `drop_last` is for training; a sampler of some rows says what the validation part is."""
    x, y = torch.arange(10.0, dtype=torch.float64)[:, None], labels(3, 10)
    sampler = None if rows is None else SubsetRandomSampler(rows)
    loader = DataLoader(TensorDataset(x, y), batch_size=4, sampler=sampler, drop_last=True)
    module, seen = linear(1, 3), []
    trainer = fitkit.build(spec(), model=module, data={"train": (x, y), "val": loader})
    module.register_forward_hook(lambda module, args, output: seen.extend(args[0][:, 0].tolist()))
    trainer.evaluate(trainer.val)
    assert sorted(seen) == list(rows or range(10))
