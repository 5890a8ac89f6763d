"""What the check of the data finds, and above all what it lets be."""

import json
import re

import numpy as np
import pytest
import torch
from sklearn import datasets
from sklearn.datasets import make_blobs, make_classification, make_friedman1, make_regression

from fitkit.data_check import Part, Samples, check
from fitkit.data_check.duplicates import find_twins
from fitkit.data_check.giveaway import nearest_hits, rank_correlation


def tensors(x, y, target):
    return torch.as_tensor(np.array(x)).float(), torch.as_tensor(np.array(y)).to(
        torch.int64 if target == "classes" else torch.float32
    )


def split(x, y, target="classes", seed=0, **more):
    """Return samples of which a fifth, drawn at random, is val."""
    x, y = tensors(x, y, target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    train, val = order[len(x) // 5 :].sort().values, order[: len(x) // 5].sort().values
    parts = {"train": Part("train", x, y, train), "val": Part("val", x, y, val)}
    return Samples(parts=parts, target=target, **more)


def given(train, val, target="classes", **more):
    parts = {}
    for name, (x, y) in {"train": train, "val": val}.items():
        x, y = tensors(x, y, target)
        parts[name] = Part(name, x, y, torch.arange(len(x)))
    return Samples(parts=parts, target=target, **more)


def names(found):
    return [finding.name for finding in found.warnings]


def random(seed):
    return np.random.default_rng(seed)


def drawn(seed, n=200, d=5, classes=2):
    r = random(seed)
    return r.normal(size=(n, d)), r.integers(0, classes, n)


def healthy(seed):
    """Return six tables with nothing wrong, of a size that depends on the seed."""
    r = random(seed)
    n = (60, 150, 400, 900)[seed % 4]
    passenger = np.stack([r.integers(0, 2, n), r.integers(1, 4, n), r.integers(0, 80, n), r.poisson(0.5, n)], 1)
    odds = 1 / (1 + np.exp(passenger[:, 1] - 2 * passenger[:, 0] - 1.0))
    skewed = r.lognormal(0, 2, (n, 5))
    walk = np.cumsum(r.normal(size=n + 4))
    lags = np.stack([walk[i : n + i] for i in range(4)], 1)
    return {
        "clusters": (*make_blobs(n, 5, centers=3, cluster_std=4, random_state=seed), "classes"),
        "hypercube": (*make_classification(n, 20, n_informative=6, weights=[0.8], random_state=seed), "classes"),
        "linear": (*make_regression(n, 8, n_informative=4, noise=5, random_state=seed), "values"),
        "friedman": (*make_friedman1(n, noise=1, random_state=seed), "values"),
        "few coarse columns": (passenger, r.random(n) < odds, "classes"),
        "rare words": (r.random((n, 30)) < 0.05, r.integers(0, 2, n), "classes"),
        "skewed": (skewed, np.log(skewed[:, 0]) + r.normal(size=n), "values"),
        "slow series": (lags, walk[4:], "values"),
    }


@pytest.mark.parametrize("seed", range(6))
def test_healthy_tables_give_no_warning(seed):
    for name, (x, y, target) in healthy(seed).items():
        for thorough in (False, True):
            assert check(split(x, y, target, seed), thorough).warnings == [], name


@pytest.mark.parametrize("load", ["iris", "wine", "breast_cancer", "digits", "diabetes"])
def test_the_classic_datasets_give_no_warning(load):
    data = getattr(datasets, f"load_{load}")()
    target = "values" if load == "diabetes" else "classes"
    for seed in range(3):
        assert check(split(data.data, data.target, target, seed), thorough=True).warnings == []


LEAKS = {
    "copy": lambda y, r: y,
    "copy with noise": lambda y, r: y + 0.02 * y.std() * r.normal(size=len(y)),
    "monotone": lambda y, r: np.exp(2 * y / np.abs(y).max()),
    "falling": lambda y, r: -3 * y + 7,
    "code": lambda y, r: r.permutation(int(y.max()) + 1)[y.astype(int)] * 7.0 + 3,
    "several codes a class": lambda y, r: y + (y.max() + 1) * r.integers(0, 4, len(y)),
}


@pytest.mark.parametrize("seed", range(1, 4))  # with 150 rows and more
@pytest.mark.parametrize("leak", LEAKS)
def test_a_column_made_from_the_target_is_found(leak, seed):
    r, found, tables = random(seed + 100), 0, 0
    for name, (x, y, target) in healthy(seed).items():
        if name == "slow series" or ("code" in leak and target == "values"):
            continue
        leaked = np.insert(np.asarray(x, float), 2, LEAKS[leak](np.asarray(y, float), r), axis=1)
        told = [f for f in check(split(leaked, y, target, seed)).warnings if f.name == "giveaway columns"]
        found, tables = found + (len(told) == 1 and list(told[0].columns) == ["2"]), tables + 1
    assert found == tables


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_a_target_told_one_hot_is_found(classes):
    x, y = drawn(classes, 300, 6, classes)
    found = check(split(np.concatenate([x, np.eye(classes)[y]], 1), y)).warnings
    assert [f.name for f in found] == ["giveaway columns"]
    assert list(found[0].columns) == [str(6 + i) for i in range(classes)]
    other = np.eye(classes)[(y + (random(1).random(300) < 0.1)) % classes]
    assert check(split(np.concatenate([x, other], 1), y)).warnings == []


def test_rank_correlation_and_nearest_hits_are_those_of_their_definitions():
    from scipy.stats import spearmanr

    r = random(0)
    table, y = np.round(r.normal(size=(80, 4)), 1), r.integers(0, 5, 80) / 2
    expected = [spearmanr(column, y).statistic for column in table.T]
    found = rank_correlation(torch.as_tensor(table), torch.as_tensor(y))
    np.testing.assert_allclose(found, expected, atol=1e-12)
    table, y = r.normal(size=(60, 3)), r.integers(0, 3, 60)
    distances = np.abs(table[:, None] - table[None]) + np.where(np.eye(60)[..., None], np.inf, 0)
    hits = y[distances.argmin(1)] == y[:, None]
    share, wrong = nearest_hits(torch.as_tensor(table), torch.as_tensor(y))
    np.testing.assert_allclose(share, np.mean([hits[y == k].mean(0) for k in range(3)], 0), atol=1e-12)
    np.testing.assert_array_equal(wrong, (~hits).sum(0))


def test_the_last_value_of_a_slow_series_is_no_leak_and_a_copy_of_the_target_is():
    walk = np.cumsum(random(0).normal(size=3000))
    x = np.stack([walk[:-1], *random(1).normal(size=(2, 2999))], 1)
    assert "giveaway columns" not in names(check(split(x, walk[1:], "values", in_time=True)))
    x[:, 1] = walk[1:]
    assert "giveaway columns" in names(check(split(x, walk[1:], "values", in_time=True)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8, torch.int16, torch.bfloat16])
def test_rows_are_the_same_when_all_their_numbers_are(dtype):
    x = torch.as_tensor(random(0).integers(0, 2, (300, 7))).to(dtype)
    part = Part("train", x, torch.zeros(300), torch.arange(300))
    twins = find_twins([part])
    groups = {}
    for row, values in enumerate(map(tuple, x.tolist())):
        groups.setdefault(values, []).append(row)
    expected = sorted(rows for rows in groups.values() if len(rows) > 1)
    found = [twins.position[twins.group == group].tolist() for group in twins.group.unique()]
    assert sorted(found) == expected


def test_different_rows_of_one_code_are_told_apart(monkeypatch):
    monkeypatch.setattr("fitkit.data_check.duplicates._codes", lambda part: torch.zeros(len(part), dtype=torch.int64))
    x = torch.tensor([[1.0], [2.0], [1.0], [3.0], [2.0], [2.0], [-0.0], [0.0]])
    twins = find_twins([Part("train", x, x, torch.arange(8))])
    found = [twins.position[twins.group == group].tolist() for group in twins.group.unique()]
    assert sorted(found) == [[0, 2], [1, 4, 5], [6, 7]]


def test_rows_with_opposite_signs_are_no_duplicates_and_have_codes_of_their_own():
    from fitkit.data_check.duplicates import _codes

    x = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 10)
    codes = _codes(Part("train", x, x[:, 0], torch.arange(len(x))))
    assert len(codes.unique()) == len(x)


def test_duplicates_are_counted_and_named_as_the_user_counts_rows():
    x, y = drawn(0, 100)
    order = np.r_[np.arange(20, 100), np.arange(20)]  # val: the first twenty rows
    x[3], x[5] = x[40], x[77]
    y[3], y[5] = y[40], y[77]
    x, y = tensors(x, y, "classes")
    parts = {"train": Part("train", x, y, torch.as_tensor(order[:80])), "val": Part("val", x, y, torch.arange(20))}
    found = check(Samples(parts=parts, target="classes")).warnings
    assert [f.name for f in found] == ["duplicates"]
    assert "2 of 20 rows of val are duplicates of rows of train" in found[0].sentence
    pairs = "row 3 (val) = row 40 of the data (train) and row 5 (val) = row 77 of the data (train)"
    assert f"({pairs}; rows count from 0)" in found[0].sentence
    assert found[0].rows == {"val": [3, 5], "train": [40, 77]}


def test_repeated_rows_of_few_coarse_columns_are_no_leak_unless_val_was_copied_from_train():
    r = random(0)
    x, y = r.integers(0, 4, (300, 3)), r.integers(0, 2, 300)
    found = check(split(x, y))
    assert not found.warnings and {f.name for f in found.findings} == {"duplicates", "label conflicts"}
    fine = r.normal(size=(300, 1)).round(2)  # a column of 300 numbers more: rows repeat now and then
    found = check(given((np.c_[x, fine], y), (np.c_[x, fine][:60], y[:60])))
    assert names(found) == ["duplicates"]


def test_rows_that_were_repeated_before_a_random_split_are_reported():
    x, y = drawn(0, 100)
    found = check(split(np.repeat(x, 3, 0), np.repeat(y, 3)))
    assert names(found) == ["duplicates"] and "of 60 rows of val are duplicates" in found.warnings[0].sentence


def test_rows_with_the_same_x_and_another_target_are_named():
    x, y = drawn(0, 100, classes=3)
    x[7], y[7], y[50] = x[50], 2, 1
    samples = split(x, y, classes=["cat", "dog", "owl"])
    found = [f for f in check(samples).warnings if f.name == "label conflicts"]
    assert len(found) == 1 and found[0].sentence.startswith("2 rows have the same x as another row and another target")
    assert re.search(r'row 7 of the data \((train|val)\) is "owl"', found[0].sentence)
    assert re.search(r'row 50 \((train|val)\) is "dog"; rows count from 0', found[0].sentence)
    values = random(1).normal(size=100)
    values[7], values[50] = 1.0, 1.1  # measured twice: no contradiction
    assert "label conflicts" not in names(check(split(x, values, "values")))
    values[50] = 3.0
    assert "label conflicts" in names(check(split(x, values, "values")))


@pytest.mark.parametrize("layout", ["flat", "image"])
def test_pictures_saved_once_more_are_near_duplicates_and_twins_among_digits_are_not(layout):
    digits = datasets.load_digits()
    x = digits.data.astype(np.float32)
    train, val = np.arange(1200), np.arange(1200, 1797)
    x[val[:4]] = (x[train[10:14]] + random(0).normal(scale=0.05, size=(4, 64))).clip(0, 16)
    x = x if layout == "flat" else x.reshape(-1, 1, 8, 8)
    found = check(given((x[train], digits.target[train]), (x[val], digits.target[val]))).warnings
    assert [f.name for f in found] == ["near duplicates"]
    assert found[0].rows == {"val": [0, 1, 2, 3], "train": [10, 11, 12, 13]}


def test_near_duplicates_of_long_samples_are_found_on_demand_by_projection():
    r = random(0)
    train, val = r.normal(size=(300, 3000)), r.normal(size=(200, 3000))
    val[17] = train[5] + 0.01 * r.normal(size=3000)
    samples = given((train, r.integers(0, 2, 300)), (val, r.integers(0, 2, 200)))
    found = check(samples)
    assert not found.warnings and "near duplicates" in found.not_checked
    assert [f.rows for f in check(samples, thorough=True).warnings] == [{"val": [17], "train": [5]}]


def test_columns_worth_a_look_are_named():
    r = random(0)
    x, y = drawn(0, 300)
    broken = x.copy()
    broken[:, 1] = 4.0
    broken[:, 2] = np.arange(300)
    assert names(check(split(broken, y))) == ["constant columns", "row numbers"]
    broken = x.copy()
    broken[r.random(300) < 0.1, 3] = -999
    (found,) = check(split(broken, y)).warnings
    assert found.name == "missing values" and list(found.columns) == ["3"] and "is -999 in" in found.sentence
    assert all(broken[row, 3] == -999 for row in found.rows["train"])
    broken = x.copy()
    samples = split(broken, y)
    row = int(samples.parts["train"].rows[7])
    samples.parts["train"].x[row, 0] = 1e6
    (found,) = check(samples).warnings
    assert found.name == "outliers" and found.rows == {"train": [row]} and "1e+06" in found.sentence
    x[:, 4] *= 1e6
    assert names(check(split(x, y, scaled=False))) == ["scales"] and names(check(split(x, y))) == []


def test_a_class_that_a_part_lacks_is_named():
    x, y = drawn(0, 200, classes=3)
    found = check(given((x[y < 2], y[y < 2]), (x[y == 2], y[y == 2])))
    assert "classes without training rows" in names(found) and "classes absent" in names(found)
    assert 'train has no row of class "2"' in found.warnings[0].sentence
    order = np.argsort(y, kind="stable")  # a sorted file
    found = check(given((x[order[:150]], y[order[:150]]), (x[order[150:]], y[order[150:]])))
    assert "shift of the target" in names(found)
    assert found.classes["train"]["0"] == (y == 0).sum() and found.classes["val"]["0"] == 0


def test_a_target_that_drifts_is_told():
    x = random(0).normal(size=(400, 3))
    y = np.linspace(0, 5, 400) + random(1).normal(size=400)
    found = check(given((x[:320], y[:320]), (x[320:], y[320:]), "values"))
    assert names(found) == ["shift of the target"] and "in train and" in found.warnings[0].sentence
    assert check(split(x, y, "values")).warnings == []


def test_rows_without_a_class_and_targets_like_x_are_let_be():
    x, y = drawn(0, 100)
    y[:10] = -100
    found = check(split(x, y))
    assert not found.warnings and found.classes is None and "giveaway columns" in found.not_checked
    assert check(split(x, x, "values")).warnings == []  # an autoencoder: no column stands out


@pytest.mark.parametrize("n", [1, 2, 5, 19])
@pytest.mark.parametrize("target", ["classes", "values"])
def test_tiny_data_are_looked_at_without_a_fault(n, target):
    x, y = drawn(n, n)
    for thorough in (False, True):
        found = check(given((x, y), (x[:1] + 1, y[:1]), target), thorough)
        assert not found.warnings and found.sizes == {"train": n, "val": 1}
        assert json.loads(json.dumps(found.to_json(), allow_nan=False))["parts"] == {"train": n, "val": 1}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_data_on_a_gpu_give_the_findings_of_the_cpu():
    x, y = drawn(0, 300)
    x[1], x[:, 2] = x[250], y
    on_cpu = given((x[:240], y[:240]), (x[240:], y[240:]))
    moved = {n: Part(n, p.x.cuda(), p.y.cuda(), p.rows.cuda()) for n, p in on_cpu.parts.items()}
    for thorough in (False, True):
        there = check(Samples(parts=moved, target="classes"), thorough)
        assert there.findings == check(on_cpu, thorough).findings and len(there.warnings) > 1
