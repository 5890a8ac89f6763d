"""Folds: every row validated on once, classes and groups dealt as asked, and time only forwards."""

import numpy
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold, TimeSeriesSplit

from fitkit.builder import load_spec
from fitkit.builder.folds import fold_specs, training_seed
from fitkit.builder.tables import TABLES
from fitkit.data import Data
from fitkit.engine.seeds import FOLD, derive
from fitkit.parts.folds import fold_counts, folds

PROPERTY = settings(max_examples=60, deadline=None)
seeds = st.integers(0, 2**32 - 1)
labelled = st.lists(st.integers(6, 30), min_size=2, max_size=5).map(
    lambda counts: torch.tensor([number for number, count in enumerate(counts) for _ in range(count)])
)


def table(labels=None, count=20, **columns):
    y = torch.arange(count).float() if labels is None else torch.as_tensor(labels)
    target = "values" if y.is_floating_point() else "classes"
    classes = [f"c{i}" for i in range(int(y.max()) + 1)] if target == "classes" else None
    return Data(x=torch.zeros(len(y), 2), y=y, target=target, classes=classes, columns=columns)


def dealt(name, data, seed=0, *, count, **arguments):
    """Return the parts of all folds."""
    return [folds[name].factory(data, seed, **arguments, fold=fold) for fold in range(1, count + 1)]


def grouped(seed, rows, groups):
    draw = numpy.random.default_rng(seed)
    labels, names = draw.integers(0, 3, rows), draw.integers(0, groups, rows) ** 2 // groups
    labels[: 3 * 12] = numpy.arange(3 * 12) % 3
    return labels, names


@PROPERTY
@given(labels=labelled, k=st.integers(2, 5), repeats=st.integers(1, 3), test=st.sampled_from([0.0, 0.1]), seed=seeds)
@pytest.mark.parametrize("stratified", [True, False])
def test_every_row_is_in_one_validation_fold_a_repeat(stratified, labels, k, repeats, test, seed):
    data = table(labels)
    arguments = {"k": k, "repeats": repeats, "test": test, "stratified": stratified}
    parts = dealt("kfold", data, seed, count=k * repeats, **arguments)
    held = parts[0].get("test", torch.tensor([], dtype=torch.int64))
    assert ("test" in parts[0]) == (test > 0) == (len(held) > 0)
    for start in range(0, len(parts), k):
        val = torch.cat([part["val"] for part in parts[start : start + k]])
        assert sorted([*val.tolist(), *held.tolist()]) == list(range(len(data)))
    for part in parts:
        assert sorted(torch.cat(list(part.values())).tolist()) == list(range(len(data)))
        assert all(rows.dtype is torch.int64 and (rows.diff() > 0).all() for rows in part.values())
        assert torch.equal(part.get("test", held), held)
    sizes = [len(part["val"]) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@PROPERTY
@given(labels=labelled, k=st.integers(2, 5), seed=seeds)
def test_stratified_folds_are_within_one_row_of_the_ideal(labels, k, seed):
    data = table(labels)
    counts = data.y.bincount()
    for part in dealt("kfold", data, seed, count=k, k=k):
        assert ((data.y[part["val"]].bincount(minlength=len(counts)) - counts / k).abs() < 1).all()


@PROPERTY
@given(count=st.integers(40, 120), number=st.integers(9, 25), k=st.integers(2, 4), seed=st.integers(0, 10**6))
@pytest.mark.parametrize("stratified", [True, False])
@pytest.mark.parametrize("test", [0.0, 0.2])
def test_groups_are_never_split(stratified, test, count, number, k, seed):
    labels, names = grouped(seed, count, number)
    assume(len(set(names)) > k + 1)
    data = table(labels, patient=[f"p{name}" for name in names])
    arguments = {"k": k, "stratified": stratified, "groups": "patient", "test": test}
    try:
        parts = dealt("kfold", data, seed, count=k, **arguments)
    except ValueError as error:
        assume("too few" not in str(error))
        raise
    rest = [row for part in parts for row in part["val"].tolist()]
    assert sorted([*rest, *parts[0].get("test", torch.tensor([])).tolist()]) == list(range(count))
    for part in parts:
        homes = [set(names[rows.numpy()]) for rows in part.values()]
        assert all(homes) and sum(map(len, homes)) == len(set(names))


@pytest.mark.parametrize("seed", range(12))
def test_groups_without_classes_are_dealt_to_folds_as_large_as_those_of_scikit_learn(seed):
    _, names = grouped(seed, 150, 20)
    data = table(count=150, patient=names.tolist())
    mine = sorted(len(part["val"]) for part in dealt("kfold", data, seed, count=4, k=4, groups="patient"))
    theirs = GroupKFold(4).split(numpy.zeros(150), groups=names)
    assert mine == sorted(len(val) for _, val in theirs)


def test_stratified_groups_are_as_even_as_those_of_scikit_learn():
    def spread(labels, folds):
        shares = numpy.array([numpy.bincount(labels[val], minlength=3) for val in folds]) / numpy.bincount(labels)
        return shares.std(0).mean()

    mine, theirs = [], []
    for seed in range(20):
        labels, names = grouped(seed, 200, 30)
        data = table(labels, patient=names.tolist())
        parts = dealt("kfold", data, seed, count=4, k=4, groups="patient")
        mine.append(spread(labels, [part["val"].numpy() for part in parts]))
        split = StratifiedGroupKFold(4, shuffle=True, random_state=seed).split(labels, labels, names)
        theirs.append(spread(labels, [val for _, val in split]))
    assert numpy.mean(mine) <= 1.05 * numpy.mean(theirs)


def test_repeats_deal_groups_anew_and_nearly_as_evenly():
    labels, names = grouped(5, 200, 25)
    data = table(labels, patient=names.tolist())
    parts = dealt("kfold", data, count=12, k=4, repeats=3, groups="patient")
    deals = [{tuple(part["val"].tolist()) for part in parts[start : start + 4]} for start in (0, 4, 8)]
    assert deals[0] != deals[1] != deals[2] != deals[0]
    for part in parts:
        assert set(names[part["val"]]).isdisjoint(names[part["train"]]) and 35 <= len(part["val"]) <= 65
    assert {tuple(part["val"].tolist()) for part in dealt("kfold", data, count=4, k=4, groups="patient")} == deals[0]


@PROPERTY
@given(count=st.integers(4, 120), k=st.integers(2, 8), gap=st.integers(0, 5))
def test_time_series_cuts_where_scikit_learn_does(count, k, gap):
    data = table(count=count)
    splitter = TimeSeriesSplit(k, gap=gap)
    try:
        expected = list(splitter.split(numpy.zeros(count)))
    except ValueError:
        with pytest.raises(ValueError, match="too few for|a gap of"):
            dealt("time_series", data, count=k, k=k, gap=gap)
        return
    if not len(expected[0][0]):
        return
    for part, (train, val) in zip(dealt("time_series", data, count=k, k=k, gap=gap), expected, strict=True):
        assert part["train"].tolist() == train.tolist() and part["val"].tolist() == val.tolist()


@PROPERTY
@given(days=st.lists(st.integers(1, 28), min_size=30, max_size=60), test=st.sampled_from([0.0, 0.2]))
def test_time_series_trains_on_the_past_of_its_column(days, test):
    data = table(count=len(days), day=[f"2024-01-{day:02}" for day in days])
    try:
        parts = dealt("time_series", data, count=3, k=3, column="day", test=test)
    except ValueError as error:
        assume("the same time" not in str(error) and "too few" not in str(error))
        raise
    days = numpy.array(days)
    before = -1
    for part in parts:
        latest = [days[part[name].numpy()] for name in ("train", "val", "test") if name in part]
        assert all(one.max() < other.min() for one, other in zip(latest, latest[1:], strict=False))
        assert days[part["val"].numpy()].min() > before  # each fold validates on later rows than the one before
        before = days[part["val"].numpy()].max()


def test_a_gap_is_left_out_between_train_and_val():
    part = folds["time_series"].factory(table(count=40), 0, k=3, gap=4, fold=2)
    assert part["train"].tolist() == list(range(16)) and part["val"].tolist() == list(range(20, 30))


def test_text_windows_over_a_border_of_time_are_in_no_part_and_are_not_dealt_at_random():
    starts = torch.arange(0, 390, 4)
    data = Data(x=torch.arange(400) % 7, y=None, target="classes", vocabulary=7, window=8, starts=starts)
    part = folds["time_series"].factory(data, 0, k=3, fold=2)
    assert starts[part["train"]].max() + 8 <= starts[part["val"]].min()
    with pytest.raises(ValueError, match="windows of 8 overlap.*use time_series, or a stride of 8"):
        folds["kfold"].factory(data, 0, k=3)


@pytest.mark.parametrize("name", ["kfold", "time_series"])
def test_folds_follow_from_their_seed_alone(name):
    data = table([0, 1] * 20)
    torch.manual_seed(1)
    one = dealt(name, data, 7, count=4, k=4)
    torch.manual_seed(2)
    again = dealt(name, data, 7, count=4, k=4)
    assert all(a[part].equal(b[part]) for a, b in zip(one, again, strict=True) for part in a)


def test_another_seed_or_repeat_deals_anew_and_more_repeats_leave_the_first_as_they_were():
    data = table([0, 1] * 20)
    one = dealt("kfold", data, 0, count=5, k=5)
    assert not one[0]["val"].equal(dealt("kfold", data, 1, count=1, k=5)[0]["val"])
    more = dealt("kfold", data, 0, count=10, k=5, repeats=2)
    assert all(a["val"].equal(b["val"]) for a, b in zip(one, more[:5], strict=True))
    assert {tuple(part["val"].tolist()) for part in more[5:]}.isdisjoint(tuple(part["val"].tolist()) for part in one)


@pytest.mark.parametrize(
    ("name", "data", "arguments", "message"),
    [
        ("kfold", table(count=4), {"k": 5}, "4 rows are too few for 5 folds: take k of at most 4"),
        ("kfold", table([0] * 9 + [1] * 3), {}, 'class "c1" has only 3 rows.*at most 3, or write stratified: false'),
        ("kfold", table([0] * 9 + [1]), {"k": 2}, 'class "c1" has only 1 row, too few .*: write stratified: false'),
        ("kfold", table(), {"stratified": True}, "nothing to stratify by: leave stratified out"),
        ("kfold", table(g=[1, 2, 3, 4] * 5), {"groups": "g"}, 'column "g" has 4 groups, too few for 5 .* at most 4'),
        ("kfold", table(g=[1] * 20), {"groups": "g"}, "has 1 group, too few for 5 folds: split by another column"),
        ("kfold", table(g=[1] * 20), {"groups": "h"}, 'the data has no column "h"'),
        ("kfold", table(g=[1, 2] * 10), {"groups": "g", "k": 2, "test": 0.2}, "too few groups for folds and a test"),
        (
            "kfold",
            table(g=[1, 2, 3] * 6 + [1, 2]),
            {"groups": "g", "k": 3, "repeats": 2},
            "repeat 2 has the same folds",
        ),
        ("kfold", table(), {"fold": 6}, "there is no fold 6: there are 5"),
        ("time_series", table(count=5), {}, "5 rows are too few for 5 folds"),
        ("time_series", table(), {"fold": 6}, "there is no fold 6"),
        ("time_series", table(), {"gap": 5}, "a gap of 5 leaves fold 1 no rows to train on: 5 rows come before"),
        ("time_series", table(d=["mon", "tue"] * 10), {"column": "d"}, 'column "d" cannot be put in order of time'),
        ("time_series", table(d=[1] * 20), {"column": "d"}, "too many rows have the same time"),
        (
            "time_series",
            table([0] * 10 + [1] * 10),
            {},
            'would train on class "c0" alone: are the rows in order of time',
        ),
    ],
)
def test_what_cannot_be_dealt_is_refused_with_what_to_ask_for_instead(name, data, arguments, message):
    with pytest.raises(ValueError, match=message):
        folds[name].factory(data, 0, **arguments)


def test_a_smallest_class_that_test_took_rows_of_is_named():
    with pytest.raises(ValueError, match='class "c1" has only 4 rows outside test'):
        folds["kfold"].factory(table([0] * 20 + [1] * 5), 0, test=0.2)


def test_the_counts_of_folds_are_a_table():
    data = table([0] * 10 + [1] * 5)
    lines = fold_counts(data, dealt("kfold", data, count=5, k=5)).splitlines()
    assert lines[0].split() == ["fold", "train", "val", "val", "c0", "val", "c1"]
    assert [line.split() for line in lines[1:]] == [[str(fold), "12", "3", "2", "1"] for fold in range(1, 6)]


def test_a_spec_that_names_no_fold_is_as_many_specs_as_it_has_folds():
    spec = load_spec({"data": "iris", "model": "mlp", "splits": {"kfold": {"k": 3, "repeats": 2}}})
    found = fold_specs(spec)
    assert [one.splits.get("fold") for one in found] == [1, 2, 3, 4, 5, 6]
    assert all(fold_specs(one) == () for one in found)
    assert found[3].given["splits"] == {"kfold": {"k": 3, "repeats": 2, "fold": 4}}
    assert fold_specs(load_spec({"data": "iris", "model": "mlp", "splits": "stratified"})) == ()


def test_a_fold_draws_from_the_seed_and_its_number():
    spec = load_spec({"data": "iris", "model": "mlp", "splits": "kfold", "seed": 4})
    assert [training_seed(one) for one in fold_specs(spec)] == [derive(4, FOLD, fold) for fold in range(1, 6)]
    assert training_seed(load_spec({"data": "iris", "model": "mlp", "seed": 4})) == 4


def test_the_table_of_splits_holds_both():
    assert {"kfold", "time_series"} <= set(TABLES["splits"])
