"""Metrics: exact under any splitting of the samples, and equal to their formulas in float64."""

import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fitkit.builder.tables import TABLES
from fitkit.parts.metrics import mean

metrics = TABLES["metrics"]


def example(name, rows=40, seed=0):
    """Return an output and a target of the kind that the metric takes."""
    draw = torch.Generator().manual_seed(seed)
    if metrics[name].facts["target"] == "classes":
        return torch.randn(rows, 7, generator=draw), torch.randint(7, (rows,), generator=draw)
    target = torch.randn(rows, 2, 3, generator=draw)
    return target + 0.5 * torch.randn(rows, 2, 3, generator=draw), target


def value(name, *batches, **arguments):
    """Sum the statistics of all batches in float64, or keep their rows, and finish them, as the engine does."""
    facts = metrics[name].facts
    parts = [metrics[name].factory(output, target, **arguments) for output, target in batches]
    sums = torch.cat(parts) if facts.get("keeps") else sum(p.sum(0, dtype=torch.float64).reshape(-1) for p in parts)
    taken = inspect.signature(facts["finish"]).parameters
    own = {key: item for key, item in {**metrics[name].defaults(), **arguments}.items() if key in taken}
    return facts["finish"](sums, sum(len(target) for _, target in batches), **own)


@pytest.mark.parametrize("name", metrics)
@settings(max_examples=25, deadline=None)
@given(cuts=st.sets(st.integers(0, 40), max_size=8), seed=st.integers(0, 99))
def test_a_metric_does_not_depend_on_how_the_samples_are_split(name, cuts, seed):
    output, target = example(name, seed=seed)
    edges = [0, *sorted(cuts), 40]
    pieces = [slice(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    split = value(name, *[(output[piece], target[piece]) for piece in pieces])
    assert split == pytest.approx(value(name, (output, target)), rel=1e-12)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    assert split == pytest.approx(value(name, (output[order], target[order])), rel=1e-12)


@pytest.mark.parametrize("name", metrics)
def test_statistics_are_one_row_a_sample_that_can_be_summed(name):
    output, target = example(name)
    rows = metrics[name].factory(output, target)
    assert rows.dim() in (1, 2) and len(rows) == len(target)
    assert rows.is_floating_point() or rows.dtype is torch.bool
    assert len(metrics[name].factory(output[:0], target[:0])) == 0


@pytest.mark.parametrize("name", metrics)
def test_every_metric_declares_its_facts(name):
    entry = metrics[name]
    assert isinstance(entry.facts["higher_is_better"], bool)
    assert entry.facts["target"] in ("classes", "values") and callable(entry.facts["finish"])
    assert entry.summary.endswith(".")


@pytest.mark.parametrize("name", metrics)
def test_a_metric_is_one_graph_without_a_wait_on_the_device(name):
    output, target = example(name)
    compiled = torch.compile(metrics[name].factory, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(output, target), metrics[name].factory(output, target))


@pytest.mark.parametrize("name", [name for name in metrics if metrics[name].facts["target"] == "values"])
def test_half_precision_is_not_squared_in_half_precision(name):
    target = torch.full((8, 1), 300.0, dtype=torch.float16)  # 300^2 is infinite in float16
    target[0] = 600.0
    assert math.isfinite(value(name, (torch.zeros_like(target), target)))
    assert metrics[name].factory(target.bfloat16(), target.bfloat16()).dtype in (torch.float32, torch.float64)


def test_accuracy_takes_the_first_of_equal_outputs():
    output = torch.tensor([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0]])
    assert metrics["accuracy"].factory(output, torch.tensor([0, 1])).tolist() == [1, 1]
    assert metrics["accuracy"].factory(output, torch.tensor([1, 2])).tolist() == [0, 0]


@pytest.mark.parametrize("negative", [0.0, -1.0])
def test_accuracy_of_one_logit_is_that_of_the_two_logits_zero_and_it(negative):
    logit = torch.tensor([-2.0, 0.0, 3.0, 0.1])
    for label in (negative, 1.0):
        target = torch.full((4,), label)
        pair = torch.stack((torch.zeros(4), logit), -1)
        expected = metrics["accuracy"].factory(pair, (target > 0).long())
        assert torch.equal(metrics["accuracy"].factory(logit, target), expected)
        assert torch.equal(metrics["top_k_accuracy"].factory(logit, target, k=1), expected)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=1, max_size=9), st.integers(0, 4))
def test_top_k_accuracy_ranks_like_a_stable_sort_and_top_1_is_accuracy(rows, label):
    output, target = torch.tensor(rows, dtype=torch.float32), torch.full((len(rows),), label)
    order = output.argsort(dim=-1, descending=True, stable=True)
    for k in (1, 2, 5, 9):
        expected = (order[:, :k] == target[:, None]).any(-1).float()
        assert torch.equal(metrics["top_k_accuracy"].factory(output, target, k=k), expected)
    first = metrics["top_k_accuracy"].factory(output, target, k=1)
    assert torch.equal(first, metrics["accuracy"].factory(output, target))


def test_a_model_that_gives_nan_is_never_right_among_the_first_k():
    output = torch.full((2, 3), math.nan)
    assert value("top_k_accuracy", (output, torch.tensor([0, 2])), k=3) == 0.0


@pytest.mark.parametrize("name", ["accuracy", "top_k_accuracy", "f1", "recall", "balanced_accuracy"])
def test_an_ignored_target_is_never_right_and_never_an_error(name):
    rows = metrics[name].factory(torch.randn(3, 4), torch.tensor([-100, -1, 4]))
    assert not (rows if rows.ndim == 1 else rows[:, :4]).any()


def test_errors_equal_their_formulas_in_float64():
    output, target = example("r2")
    error = output.double() - target.double()
    assert value("mean_absolute_error", (output, target)) == pytest.approx(error.abs().mean().item(), rel=1e-6)
    assert value("mean_squared_error", (output, target)) == pytest.approx(error.square().mean().item(), rel=1e-6)
    root = error.square().mean().sqrt().item()
    assert value("root_mean_squared_error", (output, target)) == pytest.approx(root, rel=1e-6)
    exact = output.double(), target.double()
    assert value("root_mean_squared_error", exact) == pytest.approx(root, rel=1e-14)


def r2_in_two_passes(output, target):
    """Return 1 - residual / total variation, the mean taken first, averaged over outputs."""
    residual, total = (target - output).square().sum(0), (target - target.mean(0)).square().sum(0)
    return (1 - residual / total).mean().item()


@pytest.mark.parametrize("shape", [(40,), (40, 1), (40, 3)])
def test_r2_is_one_minus_residual_over_total_averaged_over_outputs(shape):
    draw = torch.Generator().manual_seed(1)
    target = torch.randn(shape, generator=draw, dtype=torch.float64) * torch.arange(1, shape[-1] + 1)
    output = target + torch.randn(shape, generator=draw, dtype=torch.float64)
    found = value("r2", (output[:9], target[:9]), (output[9:], target[9:]))
    assert found == pytest.approx(r2_in_two_passes(output, target), rel=1e-12)


@pytest.mark.parametrize(("offset", "error"), [(0.0, 1e-14), (1e2, 1e-11), (1e4, 1e-7), (1e6, 1e-3)])
def test_r2_keeps_its_digits_for_targets_far_from_zero(offset, error):
    draw = torch.Generator().manual_seed(2)
    target = offset + torch.randn(5000, generator=draw, dtype=torch.float64)
    output = target + 0.5 * torch.randn(5000, generator=draw, dtype=torch.float64)
    batches = zip(output.split(64), target.split(64), strict=True)
    assert value("r2", *batches) == pytest.approx(r2_in_two_passes(output, target), rel=error)


def test_r2_of_a_constant_target_is_one_when_it_is_met_and_zero_when_not():
    target = torch.full((1000,), 0.1)
    assert value("r2", (target, target)) == 1.0
    assert value("r2", (target + 1, target)) == 0.0
    assert math.isnan(value("r2", (target * math.nan, target)))
    mixed = torch.stack((target, torch.arange(1000.0)), 1)
    assert value("r2", (mixed, mixed)) == 1.0


def test_too_few_samples_give_nan():
    assert math.isnan(value("r2", (torch.ones(1), torch.ones(1))))
    assert math.isnan(mean(torch.zeros(1), 0))
