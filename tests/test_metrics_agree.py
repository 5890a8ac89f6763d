"""Metrics of classes equal scikit-learn's on the same predictions, in a fit too, and those that rank keep every row."""

import math

import pytest
import torch
from sklearn import metrics as theirs

import fitkit
from fitkit.builder.tables import TABLES
from fitkit.trainer import Trainer
from tests.test_metrics import value

AVERAGED = {
    "precision": theirs.precision_score,
    "recall": theirs.recall_score,
    "f1": theirs.f1_score,
    "jaccard_index": theirs.jaccard_score,
}
PLAIN = {
    "balanced_accuracy": theirs.balanced_accuracy_score,
    "cohen_kappa": theirs.cohen_kappa_score,
    "matthews_corrcoef": theirs.matthews_corrcoef,
}


def predictions(classes, rows=300, seed=0, absent=()):
    """Return logits (M, C) and targets (M,) that they follow somewhat; no target is one of `absent`."""
    draw = torch.Generator().manual_seed(seed)
    target = torch.randint(classes, (rows,), generator=draw)
    for number in absent:
        target[target == number] = 0
    logits = torch.randn(rows, classes, generator=draw) + torch.nn.functional.one_hot(target, classes)
    return logits, target


@pytest.mark.parametrize("absent", [(), (3,)], ids=["all classes", "one that no target has"])
@pytest.mark.parametrize("average", ["macro", "weighted", "micro"])
@pytest.mark.parametrize("name", AVERAGED)
def test_averages_over_classes_equal_scikit_learns(name, average, absent):
    logits, target = predictions(5, absent=absent)
    expected = AVERAGED[name](target, logits.argmax(1), average=average, zero_division=0)
    halves = [(logits[:100], target[:100]), (logits[100:], target[100:])]
    assert value(name, *halves, average=average) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", AVERAGED)
def test_of_two_classes_the_measure_is_that_of_class_1(name):
    logits, target = predictions(2)
    expected = AVERAGED[name](target, logits.argmax(1))
    assert value(name, (logits, target)) == pytest.approx(expected, abs=1e-12)
    one = logits[:, 1] - logits[:, 0]
    for labels in (target.float(), 2.0 * target - 1):  # 0 and 1, and the signs that margin losses take
        assert value(name, (one, labels)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("name", PLAIN)
def test_measures_of_all_classes_together_equal_scikit_learns(name, classes):
    logits, target = predictions(classes)
    assert value(name, (logits, target)) == pytest.approx(PLAIN[name](target, logits.argmax(1)), abs=1e-12)


def test_a_class_that_is_never_predicted_and_never_there_is_no_division_by_zero():
    logits, target = torch.tensor([[5.0, 0, -5], [5, 0, -5]]), torch.tensor([0, 0])
    assert value("f1", (logits, target)) == 1.0 and value("balanced_accuracy", (logits, target)) == 1.0
    assert value("precision", (logits, torch.tensor([1, 1]))) == 0.0
    assert all(math.isnan(value(name, (logits[:0], target[:0]))) for name in [*AVERAGED, *PLAIN])


@pytest.mark.parametrize(
    ("name", "score"), [("auroc", theirs.roc_auc_score), ("average_precision", theirs.average_precision_score)]
)
def test_rankings_equal_scikit_learns(name, score):
    logits, target = predictions(2)
    expected = score(target, logits.double().softmax(1)[:, 1])
    assert value(name, (logits[:7], target[:7]), (logits[7:], target[7:])) == pytest.approx(expected, abs=1e-6)
    assert value(name, (logits[:, 1] - logits[:, 0], target.float())) == pytest.approx(expected, abs=1e-6)
    logits, target = predictions(4)
    chances = logits.double().softmax(1)
    each = torch.tensor([score(target == k, chances[:, k]) for k in range(4)])
    assert value(name, (logits, target)) == pytest.approx(each.mean().item(), abs=1e-6)
    weights = target.bincount() / len(target)
    assert value(name, (logits, target), average="weighted") == pytest.approx((each * weights).sum().item(), abs=1e-6)
    logits, target = predictions(4, absent=(2,))
    chances = logits.double().softmax(1)
    present = [score(target == k, chances[:, k]) for k in (0, 1, 3)]
    assert value(name, (logits, target)) == pytest.approx(sum(present) / 3, abs=1e-6)


def test_a_ranking_of_one_class_alone_is_not_known():
    assert math.isnan(value("auroc", (torch.randn(5, 3), torch.ones(5, dtype=torch.long))))
    assert math.isnan(value("average_precision", (torch.randn(5), torch.zeros(5))))


def fitted(metrics, **more):
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(120, 6, generator=draw)
    y = (x[:, :3] + 0.8 * torch.randn(120, 3, generator=draw)).argmax(1)
    spec = {"metrics": metrics, "fit": {"epochs": 2, "batch_size": 17}, "splits": {"random": {"val": 0.3}}, **more}
    model = fitkit.Model(torch.nn.Linear(6, 3))
    trainer = fitkit.build(spec, model=model.module, data=(x, y))
    return trainer, trainer.fit(), model


def test_a_fit_measures_what_scikit_learn_does_on_its_validation_part():
    trainer, history, model = fitted(["f1", "auroc", "cohen_kappa", "accuracy"])
    assert history.columns[:5] == ("loss", "f1", "auroc", "cohen_kappa", "accuracy") and "val_auroc" in history
    rows = trainer.val.rows
    x, y = trainer.val.x[rows], trainer.val.y[rows]
    last = trainer.evaluate(trainer.val)  # with the best epoch's weights
    chances = model.module(x).detach().double().softmax(1)
    assert last["f1"] == pytest.approx(theirs.f1_score(y, chances.argmax(1), average="macro"), abs=1e-12)
    assert last["auroc"] == pytest.approx(theirs.roc_auc_score(y, chances, multi_class="ovr"), abs=1e-6)
    assert 0 < history["auroc"][0] < 1 and history.best("val_auroc")["epoch"] in (1, 2)


def test_the_arguments_of_a_metric_reach_what_finishes_it():
    micro = fitted([{"f1": "micro"}])[1]
    assert micro["val_f1"] == micro["val_accuracy"]


def test_the_training_column_is_that_of_every_row_once():
    trainer, _, _ = fitted(["auroc", "accuracy"])
    seen = []
    sums = type(trainer.sums)(trainer.objective.metrics, trainer.device)
    with torch.no_grad():
        for x, y in trainer.train.in_order():
            sums.add(*trainer.objective.forward(trainer.model, x, y, False))
            seen.append((trainer.model(x), y))
    again = type(sums)(trainer.objective.metrics, trainer.device)
    again.load(sums.tensors())  # as a checkpoint in the middle of an epoch does
    output, target = (torch.cat(part) for part in zip(*seen, strict=True))
    assert sums.values() == again.values()
    assert all(
        torch.equal(t, again.tensors()[k]) and t.dtype is again.tensors()[k].dtype for k, t in sums.tensors().items()
    )
    assert sums.values()["auroc"] == pytest.approx(value("auroc", (output, target)), abs=1e-12)


def test_positions_that_the_loss_ignores_are_in_no_metric():
    x, y = torch.randn(80, 5, 6), torch.randint(0, 3, (80, 5))
    y[:, 3:] = -100
    spec = {"loss": {"cross_entropy": {"ignore_index": -100}}, "metrics": ["auroc", "f1"]}
    spec["fit"] = {"epochs": 1, "check_data": False}
    model = torch.nn.Linear(6, 3)
    trainer: Trainer = fitkit.build(spec, model=model, data={"train": (x, y), "val": (x, y)})
    found = trainer.evaluate(trainer.val)
    kept = y.flatten() >= 0
    chances = model(x).detach().flatten(0, 1)[kept].double().softmax(1)
    expected = theirs.roc_auc_score(y.flatten()[kept], chances, multi_class="ovr")
    assert found["auroc"] == pytest.approx(expected, abs=1e-6)
    assert found["f1"] == pytest.approx(theirs.f1_score(y.flatten()[kept], chances.argmax(1), average="macro"))


def test_steps_with_a_metric_of_all_rows_are_no_graphs():
    assert "a metric of all rows" in fitted(["auroc"], fit={"epochs": 10**6, "max_steps": 1})[0].tier.why
    assert fitted(["f1"])[0].tier.why != fitted(["auroc"])[0].tier.why


def test_mistakes_are_told_before_training(monkeypatch):
    with pytest.raises(fitkit.SpecError, match="metrics.f1.average: is for two classes, and here are 3. Write macro."):
        fitted([{"f1": "binary"}])

    def missing():
        raise ValueError('needs an extra: pip install "fitkit[metrics]"')

    monkeypatch.setitem(TABLES["metrics"]["auroc"].facts, "needs", missing)
    with pytest.raises(fitkit.SpecError, match=r'auroc needs an extra: pip install "fitkit\[metrics\]"\.'):
        fitted(["auroc"])
