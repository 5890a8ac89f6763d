"""Bugs that train without a complaint, in the data: what is drawn, split, scaled, and compared with what."""

import random

import numpy
import pytest
import torch
from small_fit import Noisy, labels, linear, numbers, same_bits, spec
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, TensorDataset, WeightedRandomSampler

import fitkit
from fitkit.builder.tables import TABLES
from fitkit.data import Data

# torch warns of more workers than the machine has cores, which is a matter of the machine.
any_cores = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def build(rows, module=None, **wanted):
    return fitkit.build(spec(**wanted), model=module or linear(4, 2), data=rows)


def rows_of(batches):
    """Return the inputs of all batches, one after another."""
    return torch.cat([x for x, _ in batches])


@any_cores
@pytest.mark.parametrize("workers", [0, 4])
def test_no_two_samples_of_any_epoch_or_worker_draw_the_same_noise(workers):
    """C11: workers that share a state, or a state that is the same in each epoch."""
    train = build({"train": Noisy()}, workers=workers).train
    noise = torch.cat([rows_of(train.shuffled(0, epoch))[:, 1:] for epoch in (1, 2)])
    assert noise.shape == (20, 3)
    assert len(noise.unique()) == 60


@any_cores
def test_a_sample_draws_the_same_noise_in_any_worker_and_whatever_the_process_drew_before():
    """C11: what a sample draws depends on (seed, epoch, sample)."""
    drawn = []
    for workers in (0, 1, 3):
        random.seed(workers), numpy.random.seed(workers), torch.manual_seed(workers)
        drawn.append(rows_of(build({"train": Noisy()}, workers=workers).train.shuffled(7, 1)))
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2])


def mixed(samples):
    """Collate a batch as mixup does: with noise of its own."""
    x, y = torch.utils.data.default_collate(samples)
    return x + torch.randn(len(x), 1).double() * numpy.random.rand() * random.random(), y


@any_cores
def test_a_batch_draws_the_same_noise_in_any_worker_and_whatever_the_process_drew_before():
    """C11: a `collate_fn` that draws, such as mixup, is no exception."""
    drawn = []
    for workers in (0, 0, 1, 2):
        random.seed(len(drawn)), numpy.random.seed(len(drawn)), torch.manual_seed(len(drawn))
        loader = DataLoader(Noisy(), batch_size=3, shuffle=True, num_workers=workers, collate_fn=mixed)
        drawn.append(rows_of(build({"train": loader}).train.shuffled(7, 1)))
    assert [torch.equal(drawn[0], other) for other in drawn[1:]] == [True] * 3


def test_validation_noise_is_the_same_in_every_epoch():
    """C11: else the best epoch is the one with the luckiest draw."""
    val = build({"train": Noisy(), "val": Noisy()}).val
    assert torch.equal(rows_of(val.in_order()), rows_of(val.in_order()))


class Stream(IterableDataset):
    """Eight samples that can only be iterated; it knows nothing of workers."""

    def __iter__(self):
        return ((torch.full((4,), float(row), dtype=torch.float64), torch.tensor(row % 2)) for row in range(8))


@pytest.mark.filterwarnings("ignore:each worker would read")
@any_cores
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_every_sample_of_a_stream_comes_once_whatever_the_number_of_workers(workers):
    """C10: torch hands each worker the whole stream."""
    trainer = build({"train": Stream(), "val": Stream()}, workers=workers)
    for batches in (trainer.train.shuffled(0, 1), trainer.val.in_order()):
        assert sorted(rows_of(batches)[:, 0].tolist()) == list(range(8))


@pytest.mark.parametrize("name", ["random", "stratified", None])
def test_validation_of_sorted_labels_contains_every_class(name):
    """C21: the last 20 % of sorted labels would be one class."""
    y = torch.arange(5).repeat_interleave(20)
    trainer = build((numbers(100, 4), y), linear(4, 5), **({"splits": name} if name else {}))
    for part in (trainer.train, trainer.val):
        assert y[part.rows].unique().tolist() == [0, 1, 2, 3, 4]


def test_a_time_split_validates_on_what_comes_after_training():
    """C21: a time series is not shuffled across the border."""
    trainer = build(
        (numbers(50, 4), numbers(50)), linear(4, 1, nn.Flatten(0)), splits={"time": {"val": 0.2, "test": 0.2}}
    )
    assert trainer.train.rows.max() < trainer.val.rows.min()
    assert len(trainer.val.rows) == 10 and trainer.val.rows.max() == 39


def test_the_split_that_was_used_is_in_the_spec_that_the_history_keeps():
    """C21: also when the spec names none."""
    history = fitkit.Model(linear(4, 2)).fit(spec(), data=(numbers(20, 4), labels(2, 20)))
    assert history.spec["splits"] == {"stratified": {"val": 0.2, "test": 0.0}}


def test_a_class_with_one_row_cannot_be_stratified_and_the_message_says_which():
    """C22: it would be in one part only."""
    y = labels(2, 20)
    y[3] = 2
    with pytest.raises(fitkit.SpecError, match=r'splits\.stratified: class "2" has only 1 row'):
        build((numbers(20, 4), y), linear(4, 3), splits="stratified")


def test_a_class_with_two_rows_is_in_both_parts_and_the_counts_are_printed():
    """C22: a rare class is not left to chance."""
    y = torch.zeros(40, dtype=torch.int64)
    y[[11, 30]] = 1
    trainer = build((numbers(40, 4), y), splits="stratified")
    counts = torch.stack([y[part.rows].bincount() for part in (trainer.train, trainer.val)], 1)
    assert counts[1].tolist() == [1, 1] and counts.sum() == 40
    printed = [line.split() for line in str(trainer).splitlines()]
    for number, row in enumerate(counts.tolist()):
        assert [str(number), *map(str, row)] in printed


@pytest.mark.parametrize("name", ["random", "stratified"])
def test_a_split_depends_on_the_seed_alone_and_its_parts_share_no_row(name):
    """C23: not drawn anew by another process, or after somebody drew a number."""
    data, dealt = (numbers(40, 4), labels(2, 40)), []
    for seed in (0, 0, 1):
        torch.manual_seed(len(dealt))
        trainer = build(data, seed=seed, splits={name: {"val": 0.25}})
        dealt.append(trainer.val.rows.tolist())
        assert sorted(trainer.train.rows.tolist() + dealt[-1]) == list(range(40))
    assert dealt[0] == dealt[1] != dealt[2]


def test_a_split_stays_the_same_through_all_epochs():
    """C23: shuffling before the split in each epoch leaks validation rows into training."""
    x = torch.arange(40.0, dtype=torch.float64)[:, None].expand(40, 4)
    trainer = build((x, labels(2, 40)), splits="random")
    val = set(rows_of(trainer.val.in_order())[:, 0].tolist())
    for epoch in (1, 2, 3):
        assert val.isdisjoint(rows_of(trainer.train.shuffled(0, epoch))[:, 0].tolist())


@pytest.mark.parametrize("kind", ["tensors", "dataset"])
def test_every_epoch_takes_every_row_once_in_an_order_of_its_own(kind):
    """C23: an order that is drawn once, or drawn anew by each process, is no shuffle."""
    x = torch.arange(20.0, dtype=torch.float64)[:, None].expand(20, 4)
    data = (x, labels(2, 20)) if kind == "tensors" else TensorDataset(x, labels(2, 20))
    orders = []
    for seed, epoch in ((0, 1), (0, 2), (1, 1), (0, 1)):
        torch.manual_seed(len(orders))
        train = build({"train": data}, seed=seed).train
        orders.append(rows_of(train.shuffled(seed, epoch))[:, 0].tolist())
        assert sorted(orders[-1]) == list(range(20))
    assert len(set(map(tuple, orders))) == 3 and orders[0] == orders[3]


def test_the_epochs_of_a_fit_differ_in_their_order():
    """C23: the trainer asks for the order of the epoch that it is in."""
    x = torch.arange(20.0, dtype=torch.float64)[:, None].expand(20, 4)
    module, seen = linear(4, 2), []
    trainer = build({"train": (x, labels(2, 20))}, module, epochs=3)
    module.register_forward_hook(lambda module, args, output: seen.extend(args[0][:, 0].tolist()))
    trainer.fit()
    epochs = [tuple(seen[start : start + 20]) for start in (0, 20, 40)]
    assert len(set(epochs)) == 3 and all(sorted(epoch) == list(range(20)) for epoch in epochs)


def test_rows_of_one_group_are_in_one_part():
    """C23: the same patient in train and val is a leak."""
    groups = [f"g{row % 7}" for row in range(50)]
    data = Data(x=numbers(50, 4), y=labels(2, 50), target="classes", columns={"patient": groups})
    parts = TABLES["splits"]["group"].factory(data, 3, column="patient", val=0.3)
    owners = [{groups[row] for row in rows.tolist()} for rows in parts.values()]
    assert owners[0].isdisjoint(owners[1]) and len(owners[0] | owners[1]) == 7


def test_a_loader_with_a_sampler_of_its_own_is_split_into_parts_that_share_no_row():
    """C23: the sampler would draw the rows of the validation part for training, and the other way round."""
    x = torch.arange(20.0, dtype=torch.float64)[:, None].expand(20, 4)
    sampler = WeightedRandomSampler([1.0] * 20, 200)
    loader = DataLoader(TensorDataset(x, labels(2, 20)), batch_size=4, sampler=sampler)
    try:
        trainer = build(loader)
    except fitkit.FitkitError:
        return  # refusing it is as good
    train = set(rows_of(trainer.train.shuffled(0, 1))[:, 0].tolist())
    assert train.isdisjoint(rows_of(trainer.val.in_order())[:, 0].tolist())


def test_a_sampler_that_draws_fewer_rows_than_there_are_is_kept():
    """C23: an epoch is what the loader's owner says it is."""
    dataset = TensorDataset(numbers(20, 4), labels(2, 20))
    loader = DataLoader(dataset, batch_size=4, sampler=RandomSampler(dataset, num_samples=8))
    assert len(rows_of(build({"train": loader}).train.shuffled(0, 1))) == 8


def test_rows_that_are_in_train_and_in_val_are_reported():
    """C23: exact duplicates across parts are counted, by a warning."""
    x, y = numbers(20, 4), labels(2, 20)
    with pytest.warns(fitkit.DataWarning, match="6 of 6 rows of val are duplicates of rows of train"):
        build({"train": (x, y), "val": (x[:3].repeat(2, 1), y[:3].repeat(2))}, check_data=True)


STANDARDIZED = {"data": {"arrays": {"transform": "standardize"}}}


def test_an_outlier_that_is_only_in_val_leaves_the_scaling_as_it_is():
    """C24: statistics come from the training rows."""
    x, y = numbers(40, 4), labels(2, 40)
    plain = build((x, y), splits="random", **STANDARDIZED)
    wild = x.clone()
    wild[plain.val.rows[0]] = 1e6
    shifted = build((wild, y), splits="random", **STANDARDIZED)
    assert same_bits(shifted.objective.transform.state_dict(), plain.objective.transform.state_dict())
    train = x[plain.train.rows]
    scaled = plain.objective.transform(train)
    torch.testing.assert_close(scaled.mean(0), torch.zeros(4).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(scaled.std(0, correction=0), torch.ones(4).double(), rtol=0, atol=1e-6)


def test_the_scaling_of_training_is_saved_and_used_to_predict(tmp_path):
    """C24: and not fitted again to what is predicted."""
    x, y = 100 + 30 * numbers(40, 4), labels(2, 40)
    model = fitkit.Model(linear(4, 2))
    model.fit(spec(**STANDARDIZED), data=(x, y), out=tmp_path / "run")
    expected = model.module(model.transform(x[:3])).detach()
    assert torch.equal(model.outputs(x[:3]), expected)
    assert torch.equal(fitkit.load(tmp_path / "run", model=linear(4, 2)).outputs(x[:3]), expected)


@pytest.mark.parametrize(("flat", "shape"), [([], (8,)), ([nn.Flatten(0)], (8, 1))], ids=["(N, 1)", "(N,)"])
def test_an_output_that_would_broadcast_against_its_target_is_an_error(flat, shape):
    """C27: (N, 1) against (N,) is (N, N), of which torch only warns."""
    with pytest.raises(fitkit.DataError, match="would broadcast"):
        build({"train": (numbers(8, 4), numbers(*shape))}, linear(4, 1, *flat), loss="mse_loss")


def test_a_validation_target_that_would_broadcast_is_an_error():
    """C27: the shapes of the training part say nothing about a dataset of another shape."""
    train, val = TensorDataset(numbers(8, 4), numbers(8, 1)), TensorDataset(numbers(8, 4), numbers(8))
    with pytest.raises(fitkit.DataError):
        fitkit.Model(linear(4, 1)).fit(spec(loss="mse_loss"), data={"train": train, "val": val})


class SoftmaxInEval(nn.Module):
    def forward(self, x):
        return x if self.training else x.softmax(-1)


@pytest.mark.parametrize("last", [nn.Softmax(-1), SoftmaxInEval()], ids=["always", "in eval mode"])
@pytest.mark.parametrize("shape", [(8,), (8, 5)], ids=["one class a row", "a sequence"])
def test_a_softmax_before_a_loss_of_logits_is_refused(last, shape):
    """C28: a softmax taken twice trains, slowly and wrongly."""
    with pytest.raises(fitkit.SpecError, match="cross_entropy takes logits"):
        build({"train": (numbers(*shape, 4), labels(3, *shape))}, linear(4, 3, last))


@pytest.mark.parametrize("tail", [[nn.Sigmoid(), nn.Flatten(0)], [nn.Flatten(0), nn.Sigmoid()]], ids=["first", "last"])
def test_a_sigmoid_before_a_loss_of_logits_is_refused(tail):
    """C28: a sigmoid taken twice."""
    data = {"train": (numbers(8, 4), labels(2, 8))}
    with pytest.raises(fitkit.SpecError, match="takes logits"):
        build(data, linear(4, 1, *tail), loss="binary_cross_entropy_with_logits")
    build(data, linear(4, 1, *tail), loss="binary_cross_entropy")


def test_every_loss_says_what_the_model_must_give():
    """C28: so that the output can be checked against it."""
    kinds = {"logits", "log_probabilities", "probabilities", "values", "log_rates", "scores"}
    assert {entry.facts["output"] for entry in TABLES["losses"].values()} == kinds
