"""Differences of two models: tests and intervals are those of the books, and are wrong as often as they say."""

import math

import numpy
import pytest
import torch
from scipy import stats

from fitkit.evaluation.contrast import (
    Contrast,
    contrast,
    holm,
    mcnemar,
    over_seeds,
    overlap,
    share_interval,
    t_p,
    t_quantile,
)
from fitkit.evaluation.measures import Measure


def share(hits):
    hits = torch.as_tensor(hits)
    return Measure(
        "accuracy", hits.double().mean().item(), True, lambda w: (w @ hits.double() / w.sum(1)).tolist(), hits
    )


def mean(values, name="loss"):
    values = torch.as_tensor(values, dtype=torch.float64)
    return Measure(name, values.mean().item(), False, lambda w: ((w @ values) / w.sum(1)).tolist())


def all_of(count):
    return overlap(torch.arange(count), torch.arange(count))


def drawn(count, draw, gain=0.0):
    """Return which of `count` samples two models get right, with errors that go together; the second gains a share."""
    hard = torch.rand(count, generator=draw) < 0.25
    chance = torch.where(hard, 0.6, 0.98)
    one, other = (torch.rand(count, generator=draw) < chance + more for more in (0.0, gain))
    return share(one), share(other)


@pytest.mark.parametrize(("only_one", "only_other"), [(5, 0), (12, 4), (40, 31), (3, 3), (0, 1), (1, 2100)])
def test_mcnemar_is_the_exact_binomial_test_with_half_of_what_was_seen(only_one, only_other):
    count, fewer = only_one + only_other, min(only_one, only_other)
    exact = 2 * stats.binom.cdf(fewer, count, 0.5)
    assert stats.binomtest(only_one, count).pvalue == pytest.approx(min(1, exact), abs=1e-12)
    assert mcnemar(only_one, only_other) == pytest.approx(min(1, exact - stats.binom.pmf(fewer, count, 0.5)), abs=1e-12)
    assert mcnemar(0, 0) == 1


@pytest.mark.parametrize("count", [60, 360])
def test_equal_accuracies_are_called_different_in_about_5_of_100_cases(count):
    draw = torch.Generator().manual_seed(count)
    rows = all_of(count)
    found = [contrast(*drawn(count, draw), rows) for _ in range(1000)]
    assert 0.02 <= sum(c.outcome != "cannot be told" and not c.same for c in found) / 1000 <= 0.08
    assert 0.92 <= sum(c.low <= 0 <= c.high for c in found) / 1000 <= 0.99


def test_on_other_samples_equal_accuracies_are_called_different_in_about_5_of_100_cases():
    draw, apart = torch.Generator().manual_seed(4), overlap(torch.arange(150), torch.arange(100, 250))
    wrong = 0
    for _ in range(1000):
        hard = torch.rand(250, generator=draw) < 0.25
        chance = torch.where(hard, 0.6, 0.98)
        one, other = torch.rand(150, generator=draw) < chance[:150], torch.rand(150, generator=draw) < chance[100:]
        wrong += contrast(share(one), share(other), apart).p < 0.05
    assert 0.02 <= wrong / 1000 <= 0.08


def test_a_true_difference_is_found_and_as_many_rows_as_are_named_would_find_it():
    draw = torch.Generator().manual_seed(1)
    found = [contrast(*drawn(4000, draw, 0.04), all_of(4000)) for _ in range(100)]
    assert sum(c.outcome == "better" for c in found) >= 90 and not any(c.outcome == "worse" for c in found)
    one, other = drawn(200_000, draw, 0.04)  # whose difference is all but the true one
    needed = round(contrast(one, other, all_of(200_000)).needed)
    assert 100 < needed < 2000
    again = [contrast(*drawn(needed, draw, 0.04), all_of(needed)) for _ in range(400)]
    assert 0.72 <= sum(c.outcome == "better" for c in again) / 400 <= 0.88


@pytest.mark.parametrize(
    ("hits", "counts", "ends"),
    [  # table II of Newcombe 1998, method 10
        ((48, 56), (80, 70), (0.0524, 0.3339)),
        ((3, 9), (10, 10), (0.1705, 0.8090)),
        ((0, 5), (29, 56), (-0.0381, 0.1926)),
        ((0, 10), (10, 10), (0.6075, 1.0)),
    ],
)
def test_the_interval_of_two_shares_is_newcombes(hits, counts, ends):
    assert share_interval(hits, counts) == pytest.approx(ends, abs=6e-5)


def test_the_p_value_of_two_shares_is_the_level_at_which_the_interval_ends_at_0():
    one, other = share(torch.arange(100) < 70), share(torch.arange(120) < 99)
    found = contrast(one, other, overlap(torch.arange(100), torch.arange(120), same_data=False))
    z = stats.norm.isf(found.p / 2)
    assert min(map(abs, share_interval((70, 99), (100, 120), 0.0, z))) == pytest.approx(0, abs=1e-9)
    assert found.p == pytest.approx(stats.fisher_exact([[70, 30], [99, 21]]).pvalue, abs=0.02)


def test_two_models_without_an_error_are_not_called_equal():
    found = contrast(
        share(torch.ones(67).bool()), share(torch.ones(67).bool()), overlap(*(torch.arange(67),) * 2, False)
    )
    assert found.p == 1 and found.low < -0.05 and found.high > 0.05 and found.outcome == "cannot be told"
    perfect = contrast(mean([0.0] * 9), mean([0.0] * 9), overlap(torch.arange(9), torch.arange(9), same_data=False))
    assert math.isnan(perfect.p) and math.isnan(perfect.low) and perfect.outcome == "cannot be told"


def test_what_is_the_same_on_every_sample_is_the_same():
    hits, losses = torch.arange(50) % 3 > 0, torch.rand(50)
    assert contrast(share(hits), share(hits), all_of(50)).outcome == "same"
    assert contrast(mean(losses), mean(losses), all_of(50)).outcome == "same"
    moved = hits.roll(1)  # as many are right, and others
    assert contrast(share(hits), share(moved), all_of(50)).outcome == "cannot be told"


def test_the_paired_bootstrap_agrees_with_the_t_interval_of_a_mean():
    draw = numpy.random.default_rng(0)
    one = draw.normal(10, 5, 40)
    other = one + draw.normal(0.4, 1, 40)
    found, theirs = contrast(mean(one), mean(other), all_of(40)), stats.ttest_rel(other, one)
    low, high = theirs.confidence_interval()
    assert [found.low, found.high] == pytest.approx([low, high], abs=0.1 * (high - low))
    assert found.p == pytest.approx(theirs.pvalue, abs=0.01) and found.method == "paired bootstrap"
    apart = contrast(mean(one), mean(other), overlap(torch.arange(40), torch.arange(40), same_data=False))
    wide = stats.ttest_ind(other, one).confidence_interval()
    assert [apart.low, apart.high] == pytest.approx([*wide], abs=0.1 * (wide[1] - wide[0]))
    assert apart.method == "bootstrap, two samples"


def test_both_models_are_measured_on_the_same_resamples():
    values = torch.rand(30, dtype=torch.float64)
    found = contrast(mean(values), mean(values + 0.25), all_of(30))
    assert [found.low, found.high] == pytest.approx([0.25, 0.25], abs=1e-12) and found.outcome == "worse"


@pytest.mark.parametrize(("count", "spread"), [(30, 0.5), (100, 0.5), (100, 1.5)])
def test_equal_losses_are_called_different_in_about_5_of_100_cases(count, spread):
    draw, wrong = numpy.random.default_rng(count), 0
    for _ in range(400):
        hard = draw.normal(0, 1, count)  # a few samples have most of the loss, as with cross entropy
        one, other = (numpy.exp(hard + draw.normal(0, spread, count)) for _ in range(2))
        wrong += contrast(mean(one), mean(other), all_of(count)).p < 0.05
    assert 0.015 <= wrong / 400 <= 0.08


def test_rows_are_matched_by_their_numbers_not_by_their_places():
    draw = torch.Generator().manual_seed(2)
    one, other = drawn(100, draw)
    order = torch.randperm(100, generator=draw)
    rows = overlap(torch.arange(100) + 7, order + 7)
    assert rows.paired and rows.total == 100 and torch.equal(rows.shared[:, 0], order[rows.shared[:, 1]])
    straight, mixed = contrast(one, other, all_of(100)), contrast(one, share(other.hits[order]), rows)
    assert (straight.p, straight.low, straight.high) == pytest.approx((mixed.p, mixed.low, mixed.high))
    losses = torch.rand(2, 100, generator=draw)
    mixed = contrast(mean(losses[0]), mean(losses[1][order]), rows)
    straight = contrast(mean(losses[0]), mean(losses[1]), all_of(100))
    assert (straight.p, straight.low, straight.high) == pytest.approx((mixed.p, mixed.low, mixed.high))


def test_rows_of_other_data_are_never_the_same_rows():
    rows = overlap(torch.tensor([0, 2, 5]), torch.tensor([2, 5, 9]))
    assert rows.shared.tolist() == [[1, 0], [2, 1]] and rows.total == 4 and not rows.paired
    assert len(overlap(torch.tensor([0, 2, 5]), torch.tensor([0, 2, 5]), same_data=False).shared) == 0


def test_students_t_is_scipys():
    for freedom in (1, 2, 3.7, 30, 500, 2e5):
        for t in (0, 0.01, 0.5, 2, -7):
            assert t_p(t, freedom) == pytest.approx(2 * stats.t.sf(abs(t), freedom), rel=1e-4, abs=1e-12)
        assert t_quantile(0.975, freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-4)


def test_tests_over_seeds_are_scipys():
    one, other = [0.91, 0.93, 0.92], [0.95, 0.94, 0.97]
    accuracy = share([True])
    paired, theirs = over_seeds(one, other, accuracy, pairs=True), stats.ttest_rel(other, one)
    assert (paired.p, paired.difference) == pytest.approx((theirs.pvalue, 0.1 / 3))
    assert (paired.low, paired.high) == pytest.approx([*theirs.confidence_interval()])
    welch, theirs = (
        over_seeds(one, [*other, 0.9], accuracy, pairs=False),
        stats.ttest_ind([*other, 0.9], one, equal_var=False),
    )
    assert welch.p == pytest.approx(theirs.pvalue)
    assert (welch.low, welch.high) == pytest.approx([*theirs.confidence_interval()])


def test_the_test_over_splits_that_share_rows_is_nadeau_and_bengios():
    one, other = [0.91, 0.93, 0.92, 0.95], [0.95, 0.94, 0.97, 0.96]
    found = over_seeds(one, other, share([True]), pairs=True, resplit=0.2)
    gains = numpy.subtract(other, one)
    t = gains.mean() / math.sqrt((1 / 4 + 0.2) * gains.var(ddof=1))
    assert found.p == pytest.approx(2 * stats.t.sf(t, 3))
    hopeless = over_seeds([0.90, 0.95, 0.92], [0.9, 0.94, 0.94], share([True]), pairs=True, resplit=0.2)
    assert hopeless.needed == math.inf


def test_as_many_seeds_as_are_named_would_find_the_difference():
    draw = numpy.random.default_rng(3)
    large = over_seeds(list(draw.normal(0, 1, 5000)), list(draw.normal(1, 1, 5000)), mean([0.0]), pairs=False)
    needed = int(large.needed)
    assert 15 <= needed <= 19  # a difference of one standard deviation: 17 a side
    found = [
        over_seeds(draw.normal(0, 1, needed), draw.normal(1, 1, needed), mean([0.0]), pairs=False) for _ in range(400)
    ]
    assert 0.72 <= sum(c.outcome == "worse" for c in found) / 400 <= 0.88


def test_seeds_that_all_give_the_same_say_nothing_of_their_noise():
    found = over_seeds([0.9, 0.9], [1.0, 1.0], share([True]), pairs=True)
    assert math.isnan(found.p) and found.outcome == "cannot be told"
    assert over_seeds([0.9, 0.8], [0.9, 0.8], share([True]), pairs=True).outcome == "same"


def test_holm_raises_p_values_step_by_step():
    assert holm([0.01, 0.04, 0.03, math.nan]) == pytest.approx([0.03, 0.06, 0.06, math.nan], nan_ok=True)
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    raised = Contrast("loss", -0.1, -0.2, -0.01, 0.03, "paired bootstrap", False)
    assert raised.outcome == "better"
    assert (
        Contrast("loss", -0.1, -0.2, -0.01, 0.03, "paired bootstrap", False, p_adjusted=0.06).outcome
        == "cannot be told"
    )
