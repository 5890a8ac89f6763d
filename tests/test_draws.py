"""Generators are seeded for each sample as far as it draws from them, with the numbers of one seeded each time."""

import pickle
import random

import numpy
import pytest
import torch
from small_fit import Noisy
from torch.utils.data import DataLoader, Dataset, default_collate

from fitkit.engine import draws, seeds
from fitkit.engine.collate import collate
from fitkit.engine.draws import Draws
from fitkit.engine.loading import LoaderBatches
from fitkit.engine.seeds import SAMPLE, derive, kept_random_state, seed_sample
from fitkit.errors import DataError

ROWS = 12
DRAW = {
    "python": random.random,
    "torch": lambda: torch.rand(()).item(),
    "numpy": numpy.random.rand,
    "normal": numpy.random.randn,
}


class Drawing(Dataset):
    """Samples of what the named generators give, from row `late` on; it notes the rows that it is asked for."""

    def __init__(self, names=(), late=0, fails=lambda row: False):
        self.names, self.late, self.fails, self.asked = names, late, fails, []

    def __len__(self):
        return ROWS

    def __getitem__(self, row):
        self.asked.append(row)
        drawn = [DRAW[name]() for name in self.names] if row >= self.late else []
        if self.fails(row) or 0.5 in drawn:
            raise ValueError("a bad row")
        return torch.tensor([row, *drawn, *[0.0] * (len(self.names) - len(drawn))]), row


def batches_of(dataset, workers=0):
    return LoaderBatches(dataset, batch_size=3, device=torch.device("cpu"), workers=workers)


def read(batches, *place):
    return torch.cat([x for x, _ in (batches.shuffled(*place) if place else batches.in_order())])


def seeded_each(dataset, rows, seed, epoch):
    """Return the samples with everything seeded for each, which is the definition."""
    found = []
    with kept_random_state():
        for row in rows:
            seed_sample(derive(seed, SAMPLE, epoch, row))
            found.append(dataset[row][0])
    return torch.stack(found)


@pytest.fixture
def seedings(monkeypatch):
    """Count what is seeded, by generator."""
    counts = dict.fromkeys(draws.GENERATORS, 0)

    def counted(name, seed):
        def count(value):
            counts[name] += 1
            seed(value)

        return count

    for name, generator in draws.GENERATORS.items():
        monkeypatch.setitem(draws.GENERATORS, name, generator._replace(seed=counted(name, generator.seed)))
    return counts


@pytest.mark.parametrize("late", [0, 4, 11])
@pytest.mark.parametrize(
    "names", [(), ("python",), ("torch",), ("numpy",), ("normal",), ("torch", "normal"), ("python", "torch", "numpy")]
)
def test_a_sample_draws_what_it_would_with_every_generator_seeded_for_it(names, late):
    batches = batches_of(Drawing(names, late))
    numpy.random.seed(4)
    numpy.random.randn()  # NumPy holds the second of a pair
    for seed, epoch in ((3, 1), (3, 2), (4, 1)):
        x = read(batches, seed, epoch)
        rows = x[:, 0].int().tolist()
        assert torch.equal(x, seeded_each(Drawing(names, late), rows, seed, epoch))
    assert torch.equal(read(batches), seeded_each(Drawing(names, late), range(ROWS), 0, 0))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_find_out_each_for_itself():
    expected = seeded_each(Drawing(("torch", "numpy"), 5), range(ROWS), 0, 0)
    assert torch.equal(read(batches_of(Drawing(("torch", "numpy"), 5), workers=2)), expected)


def test_only_what_is_drawn_from_is_seeded(seedings):
    batches = batches_of(Drawing(()))
    read(batches)
    first = dict(seedings)
    assert set(first.values()) == {6}  # twice for each sample of the first batch
    for epoch in range(3):
        read(batches, 0, epoch)
    assert seedings == first
    batches = batches_of(Drawing(("torch",)))
    read(batches), read(batches)
    assert seedings == {"python": 12, "torch": 12 + 9 + 12, "numpy": 12}


def test_a_sample_is_read_once_unless_it_draws_late():
    quiet, early, late = Drawing(), Drawing(("python", "torch")), Drawing(("python", "torch"), late=7)
    for dataset in (quiet, early):
        read(batches_of(dataset))
        assert dataset.asked == list(range(ROWS))
    batches = batches_of(late)
    read(batches)
    assert late.asked == [0, 1, 2, 3, 4, 5, *[6, 7, 8] * 2, 9, 10, 11]
    late.asked.clear()
    read(batches)
    assert late.asked == list(range(ROWS))


@pytest.mark.parametrize("names", [(), ("python", "torch", "numpy"), ("normal",)])
@pytest.mark.parametrize("late", [0, 7])
def test_the_random_state_of_the_process_is_left_as_it_was(names, late):
    seed_sample(9)
    numpy.random.randn(), random.gauss(0, 1), torch.randn(1)  # each holds the second of a pair now
    with kept_random_state():
        expected = [random.gauss(0, 1), numpy.random.randn(), torch.randn(3).tolist(), numpy.random.rand()]
    batches = batches_of(Drawing(names, late))
    read(batches, 0, 1), read(batches)
    assert [random.gauss(0, 1), numpy.random.randn(), torch.randn(3).tolist(), numpy.random.rand()] == expected


def test_what_the_process_draws_between_two_batches_is_what_it_would_draw_without_them():
    def drawn(batches):
        seed_sample(9)
        return [(random.random(), torch.rand(2).tolist(), numpy.random.rand()) for _ in batches]

    expected = drawn(range(4))
    for names in ((), ("python", "numpy"), ("torch",)):
        assert drawn(batches_of(Drawing(names)).in_order()) == expected


def test_a_fault_is_told_with_its_row_and_one_of_a_bad_draw_only_where_the_seeded_draw_is_bad(monkeypatch):
    with pytest.raises(DataError, match="reading row 4 failed: ValueError: a bad row"):
        read(batches_of(Drawing(fails=lambda row: row == 4)))
    names = iter([0.5])  # the first draw, which is made with nothing seeded

    def unlucky():
        return next(names, None) or random.random() if random.random() else None

    monkeypatch.setitem(DRAW, "python", unlucky)
    assert len(read(batches_of(Drawing(("python",), late=7)))) == ROWS


def test_calls_that_are_carried_to_another_process_are_new_or_know_what_was_drawn():
    calls = Draws()
    calls(lambda _: torch.rand(()), [0], lambda _: 1)
    assert pickle.loads(pickle.dumps(calls)).drawn == calls.drawn == {"torch"}


def test_a_still_generator_gives_the_word_that_it_says():
    with kept_random_state():
        for generator in draws.GENERATORS.values():
            assert generator.still() == generator.word()
            assert generator.still() != (generator.word(), generator.word())[1]


def test_a_collate_fn_of_the_user_is_seeded_only_if_it_draws(seedings):
    batches = batches_of(DataLoader(Drawing(), batch_size=3, collate_fn=lambda samples: default_collate(samples)))
    read(batches)
    first = dict(seedings)
    read(batches)
    assert seedings == first
    assert seeds.loaded_numpy() is numpy and Noisy()[0][1] == 0


@pytest.mark.parametrize(
    "sample",
    [
        lambda row: (torch.ones(2, 3) * row, row),
        lambda row: (torch.ones(2, dtype=torch.float64) * row, torch.tensor(row)),
        lambda row: (numpy.ones((2, 3), dtype=numpy.float32) * row, numpy.int64(row)),
        lambda row: (numpy.full((2,), row, dtype=numpy.uint8), float(row)),
        lambda row: (numpy.float32(row), numpy.array(row)),
        lambda row: (numpy.ones(2, dtype=[numpy.float32, numpy.float64][row % 2]) * row, row),
        lambda row: (torch.ones(2, dtype=[torch.float32, torch.float64][row % 2]) * row, row > 1),
        lambda row: (torch.ones(2) * row, [row, True, 0.5, -row][row]),
        lambda row: (torch.ones(2) * row, True if row == 0 else row),
        lambda row: ((torch.ones(1), row), {"a": row}),
        lambda row: [torch.ones(2) * row, row],
        lambda row: (torch.ones(2), row, row),
        lambda row: torch.ones(2) * row,
        lambda row: (numpy.zeros((0, 2)), 2**62 + row),
        lambda row: (torch.ones(2), "word"),
        lambda row: (torch.nn.Parameter(torch.ones(2)), row),
        lambda row: (numpy.ones((3, 2)).T * row, row),
    ],
)
def test_samples_are_put_together_as_torch_does_it(sample):
    samples = [sample(row) for row in range(4)]
    one, other = collate(samples), default_collate(samples)

    def same(a, b):
        if isinstance(a, str):
            return a == b
        if isinstance(a, torch.Tensor):
            return type(a) is type(b) and a.dtype == b.dtype and torch.equal(a, b)
        values = (a.values(), b.values()) if isinstance(a, dict) else (a, b)
        return type(a) is type(b) and all(same(*pair) for pair in zip(*values, strict=True))

    assert same(one, other)


@pytest.mark.parametrize(
    "samples",
    [
        [(torch.ones(2), 0), (torch.ones(3), 0)],
        [(torch.ones(2), 0), (torch.ones(2),)],
        [(torch.ones(2), 2**70)],
        [(numpy.array(["a"]), 0)],
        [(numpy.ones(2), 0), (numpy.ones(3), 0)],
        [(torch.ones(2), 0), (numpy.ones(2), 0)],
        [(numpy.ones(2)[::-1], 0)],
    ],
)
def test_samples_that_do_not_go_together_get_torch_s_own_error(samples):
    with pytest.raises(Exception) as theirs:  # noqa: PT011
        default_collate(samples)
    with pytest.raises(type(theirs.value)) as ours:
        collate(samples)
    assert str(ours.value) == str(theirs.value)
