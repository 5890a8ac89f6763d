"""Evaluation: figures equal scikit-learn's on the same predictions, and intervals cover what they say."""

import json
import math
from pathlib import Path

import numpy
import pytest
import torch
from scipy.stats import binomtest
from sklearn import metrics as theirs

import fitkit
from fitkit.after.run_outcomes import read_outcomes
from fitkit.builder.metrics import bind_metric
from fitkit.builder.tables import default
from fitkit.evaluation.evaluation import Evaluation, evaluate
from fitkit.evaluation.intervals import bootstrap, ranked, resampled, wilson
from fitkit.evaluation.outcomes import Outcomes, merged

RANKINGS = (theirs.roc_auc_score, theirs.average_precision_score)
SPECS = Path(__file__).parent.parent / "specs"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a function from the name of a gallery spec to its outcomes on val after two epochs."""
    folder, kept = tmp_path_factory.mktemp("runs"), {}

    def outcomes(name):
        if name not in kept:
            fitkit.fit(SPECS / f"{name}.yaml", out=folder / name, overrides={"fit.epochs": 2})
            kept[name] = read_outcomes(folder / name, "val", command="a test")
        return kept[name]

    return outcomes


@pytest.mark.parametrize("name", ["digits", "breast_cancer", "csv_tabular", "iris"])
def test_figures_of_classes_equal_scikit_learns(name, runs):
    found = runs(name)
    mine, y, guess = evaluate(found), found.targets.numpy(), found.predicted.numpy()
    chances = found.probabilities().numpy()
    numbers = range(chances.shape[1])
    assert (mine.confusion.numpy() == theirs.confusion_matrix(y, guess, labels=numbers)).all()
    columns = theirs.precision_recall_fscore_support(y, guess, labels=numbers, zero_division=numpy.nan)
    for k, row in enumerate(mine.classes):
        expected = [column[k] for column in columns]
        assert [row.precision, row.recall, row.f1, row.support] == pytest.approx(expected, abs=1e-6, nan_ok=True)
        area, precise = (
            theirs.roc_auc_score(y == k, chances[:, k]),
            theirs.average_precision_score(y == k, chances[:, k]),
        )
        assert [row.auroc, row.average_precision] == pytest.approx([area, precise], abs=1e-6)
    two = len(numbers) == 2
    if name in ("digits", "iris"):  # the loss of the others weighs classes
        assert mine["loss"] == pytest.approx(theirs.log_loss(y, chances, labels=numbers), abs=1e-6)
    assert mine["accuracy"] == pytest.approx(theirs.accuracy_score(y, guess), abs=1e-12)
    assert mine["f1"] == pytest.approx(theirs.f1_score(y, guess, average="binary" if two else "macro"), abs=1e-6)
    assert mine["balanced_accuracy"] == pytest.approx(theirs.balanced_accuracy_score(y, guess), abs=1e-6)
    scores = chances[:, 1] if two else chances
    assert mine["auroc"] == pytest.approx(theirs.roc_auc_score(y, scores, multi_class="ovr"), abs=1e-6)
    hot = y if two else numpy.eye(len(numbers))[y]
    assert mine["average_precision"] == pytest.approx(theirs.average_precision_score(hot, scores), abs=1e-6)
    assert all(e.low <= e.value <= e.high for e in mine.estimates.values())


def test_figures_of_a_regression_equal_scikit_learns(runs):
    found = runs("diabetes")
    mine, y, guess = evaluate(found), found.targets.double().numpy(), found.predicted.double().numpy()
    assert mine["r2"] == pytest.approx(theirs.r2_score(y, guess), abs=1e-6)
    assert mine["mean_absolute_error"] == pytest.approx(theirs.mean_absolute_error(y, guess), rel=1e-6)
    assert mine["root_mean_squared_error"] == pytest.approx(theirs.root_mean_squared_error(y, guess), rel=1e-6)
    assert mine.residuals.mean == pytest.approx((guess - y).mean(), rel=1e-9)
    assert mine.residuals.quantiles[0.25] == pytest.approx(numpy.quantile(guess - y, 0.25), rel=1e-9)
    assert mine.classes is None and mine.confusion is None


def made(logits, targets, samples=None, **more):
    """Return outcomes of classes, with the loss of cross entropy."""
    samples = torch.arange(len(targets)) if samples is None else samples
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none").double()
    count = int(samples.max()) + 1
    zeros = torch.zeros(count, dtype=torch.float64)
    facts = {"part": "val", "kind": "classes", "reads": "logits", "rows": torch.arange(count), **more}
    sums, counts = zeros.index_add(0, samples, losses), samples.bincount(minlength=count).double()
    return Outcomes(outputs=logits, targets=targets, samples=samples, sums=sums, counts=counts, **facts)


def test_wilson_intervals_are_scipys():
    for hits, count in ((0, 10), (8, 10), (345, 360), (10, 10)):
        ends = binomtest(hits, count).proportion_ci(method="wilson")
        found = wilson(hits, count)
        assert (found.value, found.low, found.high) == pytest.approx((hits / count, *ends), abs=1e-9)
    assert wilson(10, 10).high == 1.0 and math.isnan(wilson(0, 0).value)


def test_bootstrap_weights_count_draws_with_return_and_repeat_themselves():
    weights = torch.cat(list(resampled(50)))
    assert weights.shape == (1000, 50) and (weights.sum(1) == 50).all()
    assert weights.var().item() == pytest.approx(1 - 1 / 50, rel=0.05)  # of a multinomial count
    assert torch.equal(weights, torch.cat(list(resampled(50))))
    assert sum(len(part) for part in resampled(200_000)) == 200


def test_the_bootstrap_interval_of_a_mean_is_near_that_of_the_t_distribution():
    values = torch.randn(200, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3 + 10
    found = bootstrap(values.mean().item(), 200, lambda w: ((w @ values) / w.sum(1)).tolist())
    half = 1.972 * values.std().item() / math.sqrt(200)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.1) and found.low < found.value < found.high


def test_95_of_100_intervals_hold_the_true_accuracy():
    draw = torch.Generator().manual_seed(3)
    inside = 0
    for _ in range(400):
        hits = (torch.rand(120, generator=draw) < 0.9).sum().item()
        found = wilson(hits, 120)
        inside += found.low <= 0.9 <= found.high
    assert 0.92 <= inside / 400 <= 0.98


@pytest.mark.parametrize("decimals", [8, 1], ids=["no ties", "many ties"])
def test_weighted_rankings_equal_scikit_learns(decimals):
    draw = torch.Generator().manual_seed(0)
    positive = torch.rand(80, generator=draw) < 0.3
    scores = (torch.randn(80, generator=draw, dtype=torch.float64) + positive).round(decimals=decimals)
    weights = torch.randint(0, 4, (5, 80), generator=draw).double()
    area = ranked(scores, positive, weights, precision=False)
    precise = ranked(scores, positive, weights, precision=True)
    for w, one, other in zip(weights.numpy(), area, precise, strict=True):
        assert one.item() == pytest.approx(theirs.roc_auc_score(positive, scores, sample_weight=w), abs=1e-9)
        assert other.item() == pytest.approx(
            theirs.average_precision_score(positive, scores, sample_weight=w), abs=1e-9
        )


def test_samples_of_several_positions_are_drawn_together():
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 1, 2, generator=draw).expand(40, 25, 2).flatten(0, 1)  # 25 equal positions a sample
    targets = torch.zeros(1000, dtype=torch.long)
    together = evaluate(made(logits, targets, torch.arange(40).repeat_interleave(25)))
    alone = evaluate(made(logits[::25], targets[::25]))
    assert together["accuracy"] == alone["accuracy"] and together.positions == 1000 and together.samples == 40
    low, high = together.interval("accuracy")
    assert together.estimates["accuracy"].method == "bootstrap"
    assert high - low == pytest.approx(alone.interval("accuracy")[1] - alone.interval("accuracy")[0], rel=0.25)


def test_a_class_that_no_sample_has_and_one_that_is_never_predicted():
    logits = torch.tensor([[3.0, 0, 0], [2, 0, 0], [1, 0, 0.5], [0, 0, 1]])
    found = evaluate(made(logits, torch.tensor([0, 0, 2, 2]), classes=("cat", "dog", "owl")))
    cat, dog, owl = found.classes
    assert (cat.support, dog.support, owl.support) == (2, 0, 2) and math.isnan(dog.recall) and math.isnan(dog.auroc)
    assert found.notes == ("no sample has the class dog",)
    assert found["balanced_accuracy"] == 0.75 and found.confusion.tolist() == [[2, 0, 0], [0, 0, 0], [1, 0, 1]]


def test_all_of_one_class_gives_what_can_be_given():
    found = evaluate(made(torch.randn(9, 2), torch.ones(9, dtype=torch.long)))
    assert math.isnan(found["auroc"]) and 0 <= found["accuracy"] <= 1
    json.dumps(found.to_json(), allow_nan=False)
    assert "auroc" in str(found)


def test_one_sample_is_no_crash():
    found = evaluate(made(torch.tensor([[1.0, 0.0]]), torch.tensor([0])))
    assert found["accuracy"] == 1.0 and found.interval("accuracy")[0] < 0.3


def test_one_logit_is_the_two_logits_zero_and_it():
    draw = torch.Generator().manual_seed(2)
    one, targets = torch.randn(60, generator=draw), torch.randint(0, 2, (60,), generator=draw)
    pair = evaluate(made(torch.stack((torch.zeros(60), one), 1), targets))
    single = made(torch.stack((torch.zeros(60), one), 1), targets)
    single = evaluate(Outcomes(**{**vars(single), "outputs": one}))
    assert dict(single) == pytest.approx(dict(pair), abs=1e-9) and (single.confusion == pair.confusion).all()


def test_a_metric_of_all_rows_that_somebody_registered_gets_an_interval_too():
    metric = bind_metric(
        default("metrics", "auroc", "metrics"), "logits", torch.randn(4, 2), torch.tensor([0, 1, 0, 1])
    )
    renamed = type(metric)("ranking", metric.function, True, metric.finish, True)
    draw = torch.Generator().manual_seed(5)
    targets = torch.randint(0, 2, (80,), generator=draw)
    logits = torch.randn(80, 2, generator=draw) + torch.nn.functional.one_hot(targets, 2)
    found = evaluate(made(logits, targets, metrics=(renamed,)))
    assert found["ranking"] == pytest.approx(found["auroc"], abs=1e-7)
    assert found.interval("ranking") == pytest.approx(found.interval("auroc"), abs=1e-6)


def test_without_torchmetrics_the_rest_is_measured_and_a_note_says_what_is_missing(monkeypatch):
    def missing():
        raise ValueError("no")

    monkeypatch.setattr("fitkit.evaluation.measures.torchmetrics", missing)
    found = evaluate(made(torch.randn(9, 3), torch.arange(9) % 3))
    assert "auroc" not in found and "f1" in found
    assert found.notes[0] == 'auroc needs an extra: pip install "fitkit[metrics]"'


def test_an_evaluation_is_a_mapping_that_prints_and_escapes_what_the_data_says():
    found = evaluate(made(torch.randn(9, 2), torch.arange(9) % 2, classes=("<b>", "\x1b[31mred")))
    assert isinstance(found, Evaluation) and dict(found)["accuracy"] == found["accuracy"]
    assert "\x1b" not in str(found) and "<b>" not in found._repr_html_() and "&lt;b&gt;" in found._repr_html_()
    assert found.to_json()["intervals"]["accuracy"]["method"] == "Wilson"


def test_outcomes_of_several_folds_are_one_in_the_order_of_the_data():
    logits, targets = torch.randn(6, 3), torch.arange(6) % 3
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    parts = [made(logits[rows], targets[rows], rows=rows) for rows in (order[:2], order[2:])]
    whole = merged(parts, "all folds")
    assert torch.equal(whole.outputs, logits) and torch.equal(whole.targets, targets)
    assert whole.rows.tolist() == list(range(6)) and whole.part == "all folds"
    assert evaluate(whole)["loss"] == pytest.approx(evaluate(made(logits, targets))["loss"])


def test_model_evaluate_takes_what_fit_takes():
    x, y = torch.randn(60, 4), torch.arange(60) % 3
    model = fitkit.Model(torch.nn.Linear(4, 3))
    model.fit({"fit": {"epochs": 1}}, data=(x, y))
    found = model.evaluate((x, y))
    loaded = model.evaluate(torch.utils.data.TensorDataset(x, y))
    assert dict(found) == pytest.approx(dict(loaded), rel=1e-6)
    assert found["accuracy"] == pytest.approx((model.predict(x) == y).double().mean().item())


def test_rankings_of_very_many_targets_and_classes_are_left_out_and_a_note_says_so(monkeypatch):
    monkeypatch.setattr("fitkit.evaluation.measures.MOST_RANKED", 26)
    found = evaluate(made(torch.randn(9, 3), torch.arange(9) % 3))
    assert "auroc" not in found and found.notes[0].startswith("auroc takes minutes for so many targets and classes")
    assert "auroc" in evaluate(made(torch.randn(8, 3), torch.arange(8) % 3))
