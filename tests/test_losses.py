"""Losses: sum / count is torch's mean, exactly, whatever the weights, the smoothing and the split into batches."""

import inspect
import itertools

import pytest
import torch
import torch.nn.functional as F

from fitkit.parts.losses import default_loss, losses, resolve_class_weight, resolve_pos_weight

WEIGHT = torch.tensor([0.5, 2.0, 1.0, 3.0], dtype=torch.float64)
ROWS, CLASSES = 12, 4


def example(entry, dtype=torch.float64, rows=ROWS, seed=0):
    """Return an output (requiring a gradient) and a target as the facts of the entry ask for them."""
    draw = torch.Generator().manual_seed(seed)
    kind, shape = entry.facts["target"], (rows,)
    if kind == "classes":
        shape, target = (rows, CLASSES), torch.randint(CLASSES, (rows,), generator=draw)
    elif kind == "values":
        shape = (rows, 3)
        span = entry.facts.get("target_range")
        target = torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)
        target = target if span is None else target.abs().clamp(span.low, span.high).round()
    else:
        target = torch.randint(2, (rows,), generator=draw).to(dtype) * (2 if kind == "signs" else 1)
        target = target - 1 if kind == "signs" else target
    output = torch.randn(shape, generator=draw, dtype=torch.float64)
    if entry.facts["output"] == "probabilities":
        output = output.sigmoid()
    if entry.facts["output"] == "log_probabilities":
        output = output.log_softmax(-1)
    return output.to(dtype).requires_grad_(), target


def mean(pair):
    total, count = pair
    assert total.shape == ()
    assert isinstance(count, int) or count.shape == ()
    return total / count


@pytest.mark.parametrize("name", losses)
def test_every_loss_is_the_mean_of_torchs_function_of_the_same_name(name):
    output, target = example(losses[name])
    expected = getattr(F, name)(output, target)
    torch.testing.assert_close(mean(losses[name].factory(output, target)), expected, rtol=1e-14, atol=0)
    (found,) = torch.autograd.grad(mean(losses[name].factory(output, target)), output)
    (wanted,) = torch.autograd.grad(expected, output)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("name", losses)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name, dtype):
    output, target = example(losses[name], dtype)
    total, count = losses[name].factory(output, target)
    wide = target.float() if target.is_floating_point() else target
    expected, expected_count = losses[name].factory(output.float(), wide)
    assert total.dtype == torch.float32
    assert torch.equal(total, expected) and count == expected_count


@pytest.mark.parametrize("name", losses)
def test_a_loss_works_under_autocast(name):
    output, target = example(losses[name], torch.bfloat16)
    plain = losses[name].factory(output, target)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(losses[name].factory(output, target)[0], plain)


@pytest.mark.parametrize("name", losses)
def test_sums_and_counts_of_any_split_add_up_to_the_whole(name):
    output, target = example(losses[name])
    whole = losses[name].factory(output, target)
    parts = [losses[name].factory(o, t) for o, t in zip(output.split([7, 4, 1]), target.split([7, 4, 1]), strict=True)]
    torch.testing.assert_close(sum(total for total, _ in parts), whole[0], rtol=1e-13, atol=0)
    assert sum(count for _, count in parts) == whole[1]


@pytest.mark.parametrize("name", losses)
def test_a_loss_leaves_output_and_target_as_they_are(name):
    output, target = example(losses[name])
    before = output.clone(), target.clone()
    losses[name].factory(output, target)
    assert torch.equal(output, before[0]) and torch.equal(target, before[1])


@pytest.mark.parametrize("name", losses)
def test_every_argument_has_a_type_and_every_loss_a_line_and_its_facts(name):
    entry = losses[name]
    assert entry.summary.endswith(".") and len(entry.summary) < 120
    assert entry.facts["target"] in ("classes", "binary", "signs", "values")
    assert entry.facts["output"] in (
        "logits",
        "log_probabilities",
        "probabilities",
        "values",
        "log_rates",
        "scores",
    )
    assert set(entry.facts.get("training_only", ())) <= set(entry.arguments)
    for hidden in ("input", "output", "target", "weight", "reduction", "reduce", "size_average"):
        assert hidden not in entry.arguments
    defaults = inspect.signature(getattr(F, name)).parameters
    for argument in entry.arguments.values():
        if argument.name in defaults and argument.name != "ignore_index":
            assert argument.default == defaults[argument.name].default


@pytest.mark.parametrize(
    ("smoothing", "weight", "ignored", "rows"),
    list(itertools.product([0.0, 0.1], [None, WEIGHT], [None, -100, 2], [1, 7, 64])),
)
def test_cross_entropy_equals_torch_for_all_combinations(smoothing, weight, ignored, rows):
    output, target = example(losses["cross_entropy"], rows=rows, seed=rows)
    target = target.where(target != 2, ignored) if ignored is not None else target
    if ignored is not None and bool((target == ignored).all()):
        target[0] = 1
    found = losses["cross_entropy"].factory(
        output, target, label_smoothing=smoothing, class_weight=weight, ignore_index=ignored
    )
    known = -100 if ignored is None else ignored
    expected = F.cross_entropy(output, target, weight, ignore_index=known, label_smoothing=smoothing)
    torch.testing.assert_close(mean(found), expected, rtol=1e-14, atol=0)
    if smoothing == 0.0:
        found = losses["nll_loss"].factory(output.log_softmax(-1), target, class_weight=weight, ignore_index=ignored)
        torch.testing.assert_close(mean(found), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize(("name", "arguments"), [
    ("multi_margin_loss", {"p": 2, "margin": 0.5, "weight": WEIGHT}),
    ("binary_cross_entropy_with_logits", {"pos_weight": torch.tensor(3.0)}),
    ("smooth_l1_loss", {"beta": 0.3}),
    ("smooth_l1_loss", {"beta": 0.0}),
    ("huber_loss", {"delta": 0.3}),
    ("poisson_nll_loss", {"full": True}),
])  # fmt: skip
def test_arguments_mean_what_they_mean_in_torch(name, arguments):
    output, target = example(losses[name])
    expected = getattr(F, name)(output, target, **arguments)
    ours = {"class_weight" if key == "weight" else key: value for key, value in arguments.items()}
    assert set(ours) <= set(losses[name].arguments)
    torch.testing.assert_close(mean(losses[name].factory(output, target, **ours)), expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_nothing_to_count_gives_zero_and_zero_and_no_gradient(weight, smoothing):
    output, _ = example(losses["cross_entropy"])
    total, count = losses["cross_entropy"].factory(
        output,
        torch.full((ROWS,), -1),
        ignore_index=-1,
        class_weight=weight,
        label_smoothing=smoothing,
    )
    assert total == 0 and count == 0
    assert torch.autograd.grad(total, output)[0].count_nonzero() == 0


def test_a_stray_label_is_an_error_when_nothing_is_ignored():
    with pytest.raises(IndexError):
        losses["cross_entropy"].factory(torch.randn(2, 3), torch.tensor([1, -100]))


def test_the_count_is_a_number_of_python_unless_it_depends_on_the_targets():
    output, target = example(losses["cross_entropy"])
    assert losses["cross_entropy"].factory(output, target)[1] == ROWS
    assert isinstance(losses["cross_entropy"].factory(output, target)[1], int)
    assert isinstance(losses["cross_entropy"].factory(output, target, ignore_index=1)[1], torch.Tensor)


def test_float32_weights_serve_any_output():
    output, target = example(losses["cross_entropy"])
    weight = torch.tensor([0.5, 2.0, 1.0, 3.0])
    for name in ("cross_entropy", "nll_loss", "multi_margin_loss"):
        exact = losses[name].factory(output, target, class_weight=WEIGHT)
        assert losses[name].factory(output, target, class_weight=weight) == exact


def test_balanced_class_weights_are_rows_over_classes_times_count():
    found = resolve_class_weight("balanced", torch.tensor([5, 2, 9]))
    torch.testing.assert_close(found, torch.tensor([16 / (3 * 5), 16 / (3 * 2), 16 / (3 * 9)], dtype=torch.float64))


def test_class_weights_as_a_list_are_kept():
    assert resolve_class_weight([1, 2.5], torch.tensor([3, 4])).tolist() == [1.0, 2.5]


def test_class_weights_that_do_not_fit_the_data_are_refused():
    with pytest.raises(ValueError, match="the list has 2 weights and the data has 3 classes"):
        resolve_class_weight([1.0, 2.0], torch.tensor([3, 4, 5]))
    with pytest.raises(ValueError, match='no training row has class 1, 2, which "balanced" cannot weigh'):
        resolve_class_weight("balanced", torch.tensor([3, 0, 0]))
    with pytest.raises(ValueError, match="no training row has class 1"):
        resolve_pos_weight("balanced", torch.tensor([3, 0]))


def test_a_balanced_positive_class_weighs_as_much_as_the_negative_one():
    weight = resolve_pos_weight("balanced", torch.tensor([30, 10]))
    assert weight == 3.0 and weight.shape == ()
    assert resolve_pos_weight(2, torch.tensor([30, 10])) == 2.0


def test_the_default_loss_follows_the_target():
    assert default_loss("classes", 2) == "cross_entropy"
    assert default_loss("values", None) == "mse_loss"


@pytest.mark.parametrize("name", losses)
def test_a_loss_is_one_graph_without_a_wait_on_the_device(name):
    output, target = example(losses[name])
    arguments = {"class_weight": WEIGHT} if "class_weight" in losses[name].arguments else {}
    if "ignore_index" in losses[name].arguments:
        arguments["ignore_index"] = 1
    loss = torch.compile(losses[name].factory, backend="eager", fullgraph=True)
    plain = losses[name].factory(output, target, **arguments)
    torch.testing.assert_close(loss(output, target, **arguments), plain)
