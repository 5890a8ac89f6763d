"""Splits: every row in one part, the same rows for the same seed, and no row where it would leak."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fitkit.data import Data
from fitkit.parts.splits import class_counts, default_split, splits

PROPERTY = settings(max_examples=60, deadline=None)
shares = st.tuples(st.sampled_from([0.0, 0.1, 0.15, 0.2, 1 / 3, 0.5]), st.sampled_from([0.0, 0.1, 0.25, 0.4]))
seeds = st.integers(0, 2**32 - 1)


def table(labels=None, count=20, **columns):
    y = torch.tensor(labels) if labels is not None else torch.arange(count).float()
    target = "values" if y.is_floating_point() else "classes"
    classes = [f"c{i}" for i in range(int(y.max()) + 1)] if target == "classes" else None
    return Data(x=torch.zeros(len(y), 2), y=y, target=target, classes=classes, columns=columns)


def windows(length, stride, count=400):
    starts = torch.arange(0, count - length, stride)
    x = torch.arange(count) % 7
    return Data(x=x, y=None, target="classes", vocabulary=7, window=length, starts=starts)


def attempt(name, data, seed, **arguments):
    """Split, or skip the example when its shares leave a part without rows."""
    try:
        return splits[name].factory(data, seed, **arguments)
    except ValueError as error:
        assume("leave" not in str(error) and "too few for" not in str(error))
        raise


def rows_of(parts):
    return sorted(torch.cat(list(parts.values())).tolist())


def example(name):
    count = 40
    words = ["train"] * 24 + ["val"] * 8 + ["test"] * 8
    data = table([i % 4 for i in range(count)], group=[f"g{i % 10}" for i in range(count)], part=words)
    given_rows = {"train": range(24), "val": range(24, 32), "test": range(32, 40)}
    data = Data(**{**vars(data), "split": given_rows})
    return data, {"group": {"column": "group", "test": 0.2}, "column": {"column": "part"}, "given": {}}.get(
        name, {"test": 0.2}
    )


@pytest.mark.parametrize("name", sorted(splits))
def test_every_split_puts_every_row_into_exactly_one_part(name):
    data, arguments = example(name)
    parts = splits[name].factory(data, 0, **arguments)
    assert list(parts) == ["train", "val", "test"] and rows_of(parts) == list(range(40))
    for rows in parts.values():
        assert rows.dtype is torch.int64 and (rows.diff() > 0).all()
    assert splits[name].summary.endswith(".")


@pytest.mark.parametrize("name", sorted(splits))
def test_every_split_follows_from_its_seed_alone(name):
    data, arguments = example(name)
    state = torch.get_rng_state()
    one = splits[name].factory(data, 7, **arguments)
    assert torch.get_rng_state().equal(state)
    torch.manual_seed(99)
    again = splits[name].factory(data, 7, **arguments)
    assert all(one[part].equal(again[part]) for part in one)
    torch.set_rng_state(state)


@pytest.mark.parametrize("name", ["random", "stratified", "group"])
def test_another_seed_draws_other_rows(name):
    data, arguments = example(name)
    assert (
        not splits[name].factory(data, 0, **arguments)["val"].equal(splits[name].factory(data, 1, **arguments)["val"])
    )


def test_a_split_is_the_same_in_another_process():
    code = (
        "import torch; from fitkit.data import Data; from fitkit.parts.splits import splits;"
        "d = Data(x=torch.zeros(30, 1), y=None, target='values', columns={'g': [f'g{i % 9}' for i in range(30)]});"
        "print([splits['group'].factory(d, 3, column='g'), splits['random'].factory(d, 3)])"
    )
    printed = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout for _ in range(2)}
    assert len(printed) == 1 and printed.pop().startswith("[{")


@PROPERTY
@given(count=st.integers(1, 200), share=shares, seed=seeds)
def test_random_parts_have_the_sizes_asked_for(count, share, seed):
    val, test = share
    parts = attempt("random", table(count=count), seed, val=val, test=test)
    assert rows_of(parts) == list(range(count))
    for part, wanted in (("val", val), ("test", test)):
        assert len(parts.get(part, ())) == math.floor(count * wanted + 0.5)
        assert (part in parts) == (wanted > 0)


@PROPERTY
@given(counts=st.lists(st.integers(2, 40), min_size=2, max_size=8), share=shares, seed=seeds)
def test_stratified_parts_hold_each_class_in_its_proportion(counts, share, seed):
    val, test = share
    labels = [number for number, count in enumerate(counts) for _ in range(count)]
    data = table(labels)
    parts = attempt("stratified", data, seed, val=val, test=test)
    assert rows_of(parts) == list(range(len(labels)))
    for part, wanted in (("val", val), ("test", test)):
        if not wanted:
            continue
        size = math.floor(len(labels) * wanted + 0.5)
        for count, got in zip(counts, data.y[parts[part]].bincount(minlength=len(counts)).tolist(), strict=True):
            if count >= 10:
                assert abs(got - count * size / len(labels)) < 1
            if part == "val" or count >= 3:
                assert got >= 1
    assert (data.y[parts["train"]].bincount(minlength=len(counts)) >= 1).all()


def test_stratified_proportions_are_exact_where_they_come_out_whole():
    data = table([0] * 50 + [1] * 30 + [2] * 20)
    parts = splits["stratified"].factory(data, 0, val=0.2, test=0.1)
    assert [data.y[parts[part]].bincount().tolist() for part in ("train", "val", "test")] == [
        [35, 21, 14],
        [10, 6, 4],
        [5, 3, 2],
    ]


def test_stratified_sizes_are_those_of_random_by_the_largest_remainder():
    data = table([0] * 33 + [1] * 33 + [2] * 34)
    parts = splits["stratified"].factory(data, 0, val=0.25)
    assert data.y[parts["val"]].bincount().tolist() == [8, 8, 9]


def test_stratified_refuses_a_class_of_one_row_by_name():
    with pytest.raises(ValueError, match='class "c1" has only 1 row.*use random, or remove the class'):
        splits["stratified"].factory(table([0, 0, 0, 1, 2, 2]), 0)
    with pytest.raises(ValueError, match="nothing to stratify by: use random"):
        splits["stratified"].factory(table(count=10), 0)


def test_two_rows_of_a_class_go_to_train_and_val_before_test():
    data = table([0] * 16 + [1, 1] + [2, 2, 2])
    parts = splits["stratified"].factory(data, 0, val=0.3, test=0.3)
    counts = {part: data.y[rows].bincount(minlength=3).tolist()[1:] for part, rows in parts.items()}
    assert counts == {"train": [1, 1], "val": [1, 1], "test": [0, 1]}


@PROPERTY
@given(times=st.lists(st.integers(0, 30), min_size=2, max_size=80), share=shares, seed=seeds)
def test_time_puts_every_train_row_before_every_val_row(times, share, seed):
    val, test = share
    data = table(count=len(times), t=times)
    try:
        parts = attempt("time", data, seed, column="t", val=val, test=test)
    except ValueError as error:
        assert "too many rows have the same time" in str(error)
        return
    assert rows_of(parts) == list(range(len(times)))
    spans = [[times[row] for row in rows] for rows in parts.values()]
    for earlier, later in zip(spans, spans[1:], strict=False):
        assert max(earlier) < min(later)


@pytest.mark.parametrize(
    "times",
    [
        ["9", "10", "11", "100", "-1"],
        [9, 10.5, 11, 100, -1],
        ["2024-01-09", "2024-01-10", "2024-02-01", "2025-01-01", "2023-12-31"],
        [
            "2024-01-01 10:00+02:00",
            "2024-01-01 09:00+00:00",
            "2024-01-01 10:00Z",
            "2024-01-02 00:00Z",
            "2024-01-01 00:00Z",
        ],
        ["2024-03", "2024-04", "2024-05", "2025-01", "2023-12"],
        ["2024/01/09 01:00", "2024/01/10 01:00", "2024/02/01 01:00", "2025/01/01 01:00", "2023/12/31 01:00"],
    ],
)
def test_time_orders_numbers_and_dates_by_their_meaning(times):
    parts = splits["time"].factory(table(count=5, t=times), 0, column="t", val=0.4)
    assert parts["val"].tolist() == [2, 3] and parts["train"].tolist() == [0, 1, 4]


@pytest.mark.parametrize("bad", ["31/12/2024", "soon", "nan", "t10", "2024-13-01 10:00+02:00"])
def test_time_refuses_what_has_no_certain_order(bad):
    with pytest.raises(ValueError, match="cannot be put in order of time.*write numbers, or dates like 2024-01-31"):
        splits["time"].factory(table(count=3, t=[bad, bad + "1", bad + "22"]), 0, column="t")


def test_time_without_a_column_takes_the_rows_as_they_stand():
    parts = splits["time"].factory(table(count=10), 0, val=0.2, test=0.1)
    assert [parts[part].tolist() for part in parts] == [[0, 1, 2, 3, 4, 5, 6], [7, 8], [9]]


@pytest.mark.parametrize("stride", [1, 3, 8, 20])
def test_no_target_of_a_text_window_is_in_two_parts(stride):
    data = windows(8, stride)
    parts = splits["time"].factory(data, 0, val=0.2, test=0.2)
    targets = [{int(s) + 1 + i for s in data.starts[rows] for i in range(8)} for rows in parts.values()]
    assert not targets[0] & targets[1] and not targets[1] & targets[2]
    if stride >= 8:
        assert rows_of(parts) == list(range(len(data)))


def test_random_refuses_text_windows_that_overlap():
    assert splits["random"].factory(windows(8, 8), 0)
    with pytest.raises(ValueError, match="overlap.*use time, or a stride of 8"):
        splits["random"].factory(windows(8, 4), 0)


@PROPERTY
@given(sizes=st.lists(st.integers(1, 12), min_size=3, max_size=15), share=shares, seed=seeds)
def test_groups_stay_whole(sizes, share, seed):
    val, test = share
    groups = [f"g{i}" for i, size in enumerate(sizes) for _ in range(size)]
    parts = attempt("group", table(count=len(groups), g=groups), seed, column="g", val=val, test=test)
    assert rows_of(parts) == list(range(len(groups))) and all(len(rows) for rows in parts.values())
    held = [{groups[row] for row in rows} for rows in parts.values()]
    assert sum(map(len, held)) == len(sizes)


def test_groups_come_close_to_the_shares_asked_for():
    groups = [f"g{i}" for i in range(40) for _ in range(1 + i % 5)]
    parts = splits["group"].factory(table(count=120, g=groups), 0, column="g", val=0.2, test=0.1)
    assert [len(rows) for rows in parts.values()] == [84, 24, 12]


def test_too_few_groups_or_an_empty_group_are_refused():
    with pytest.raises(ValueError, match='column "g" has 2 groups, too few for train, val, test'):
        splits["group"].factory(table(count=20, g=["a", "b"] * 10), 0, column="g", test=0.2)
    with pytest.raises(ValueError, match='column "g" is empty in row 3 of the data'):
        splits["group"].factory(table(count=4, g=["a", "b", "", "a"]), 0, column="g")


def test_an_unknown_column_is_refused_with_the_nearest_name():
    data = table(count=4, site=list("abca"))
    with pytest.raises(ValueError, match='no column "sites"; did you mean "site"\\? it has site'):
        splits["group"].factory(data, 0, column="sites")
    with pytest.raises(ValueError, match='no column "site": data holds only x and y'):
        splits["group"].factory(table(count=4), 0, column="site")


@pytest.mark.parametrize(
    ("word", "right"), [("validation", "val"), ("valid", "val"), ("dev", "val"), ("Train", "train"), ("TEST", "test")]
)
def test_a_column_says_train_val_or_test_in_one_spelling(word, right):
    with pytest.raises(ValueError, match=f'says "{word}" in row 2 of the data: write "{right}"'):
        splits["column"].factory(table(count=2, part=["train", word]), 0, column="part")
    with pytest.raises(ValueError, match='"train" in no row'):
        splits["column"].factory(table(count=2, part=["val", "val"]), 0, column="part")


def brought(count=20, **parts):
    return Data(x=torch.zeros(count, 1), y=torch.arange(count).float(), target="values", split=parts)


def test_a_given_split_is_taken_and_its_missing_val_is_carved_from_train():
    parts = splits["given"].factory(brought(train=range(15), test=range(15, 20)), 0)
    assert rows_of(parts) == list(range(20)) and parts["test"].tolist() == list(range(15, 20))
    assert len(parts["val"]) == 3 and int(parts["val"].max()) < 15
    assert "val" not in splits["given"].factory(brought(train=range(20)), 0, val=0.0)


@pytest.mark.parametrize(
    ("parts", "val", "message"),
    [
        ({"train": range(5), "val": range(4, 9)}, None, "names a row twice"),
        ({"train": range(25)}, None, "outside 0 to 19"),
        ({"test": range(5)}, None, "it must have train"),
        ({"train": range(5), "valid": range(5, 9)}, None, r"valid \(4 rows\)"),
        ({"train": range(5), "val": range(0)}, None, r"val \(0 rows\)"),
        ({"train": range(5), "val": range(5, 9)}, 0.1, "brings its own val"),
    ],
)
def test_a_given_split_that_cannot_be_right_is_refused(parts, val, message):
    with pytest.raises(ValueError, match=message):
        splits["given"].factory(brought(**parts), 0, val=val)
    with pytest.raises(ValueError, match="brings no split along"):
        splits["given"].factory(table(count=4), 0)


@pytest.mark.parametrize("name", ["random", "stratified", "time", "group"])
def test_shares_that_leave_a_part_empty_are_refused(name):
    more = {"column": "g"} if name == "group" else {}
    data = table([0, 0, 1, 1], g=list("abcd"))
    with pytest.raises(ValueError, match="val 0.6 and test 0.5 leave no rows for training"):
        splits[name].factory(data, 0, val=0.6, test=0.5, **more)
    with pytest.raises(ValueError, match="4 rows with val 0.1 and test 0 leave none for val"):
        splits[name].factory(data, 0, val=0.1, **more)
    with pytest.raises(ValueError, match="leave none for train"):
        splits[name].factory(data, 0, val=0.95, **more)


def test_the_default_split_is_the_safest_that_the_data_allows():
    assert default_split(brought(train=range(20))) == "given"
    assert default_split(windows(8, 8)) == "time"
    assert default_split(table([0, 0, 1, 1])) == "stratified"
    assert default_split(table([0, 0, 1])) == "random"
    assert default_split(table(count=4)) == "random"


def test_class_counts_are_printed_by_part_and_cut_at_20_classes():
    data = table([0] * 10 + [1] * 5)
    parts = splits["stratified"].factory(data, 0, val=0.2)
    assert class_counts(data, parts) == "class  train  val\nc0         8    2\nc1         4    1\nall       12    3"
    lines = class_counts(table(list(range(30)) * 2), {"train": torch.arange(60)}).split("\n")
    assert len(lines) == 23 and lines[-2] == "… and 10 more classes" and lines[-1].split() == ["all", "60"]
    assert class_counts(table(count=4), {"train": torch.arange(4)}) == "     train\nall      4"
