"""What the best constant prediction reaches, as a History notes it, against scikit-learn and formulas."""

import json

import numpy
import pytest
import torch
from sklearn.dummy import DummyClassifier
from sklearn.metrics import log_loss

import fitkit
from fitkit.history import History

FIT = {"epochs": 1, "compile": False, "device": "cpu", "precision": "fp32"}


def parts(y_train, y_val, dtype=torch.int64):
    made = {}
    for name, y in (("train", y_train), ("val", y_val)):
        made[name] = (torch.randn(len(y), 3), torch.as_tensor(y, dtype=dtype))
    return made


def history_of(y_train, y_val, dtype=torch.int64, **sections):
    data = parts(y_train, y_val, dtype)
    return fitkit.build({"model": "mlp", "fit": FIT, **sections}, data=data).history


TRAIN, VAL = [0] * 10 + [1] * 5 + [2] * 5, [0] * 3 + [1] * 5 + [2] * 2


def test_classes_are_compared_with_their_shares_of_the_training_rows():
    history = history_of(TRAIN, VAL)
    dummy = DummyClassifier(strategy="prior").fit(numpy.zeros((20, 1)), TRAIN)
    for column, y in (("loss", TRAIN), ("val_loss", VAL)):
        expected = log_loss(y, dummy.predict_proba(numpy.zeros((len(y), 1))))
        assert history.baseline[column] == pytest.approx(expected, abs=1e-6)
    assert history.baseline["accuracy"] == 0.5 and history.baseline["val_accuracy"] == pytest.approx(0.3)
    assert history.samples == {"train": 20, "val": 10} and history.classes == 3


def test_balanced_class_weights_make_every_class_as_likely():
    history = history_of(TRAIN, VAL, loss={"cross_entropy": {"class_weight": "balanced"}})
    assert history.baseline["loss"] == pytest.approx(numpy.log(3), abs=1e-5)


def test_no_constant_has_a_lower_training_loss_under_weights():
    loss = {"cross_entropy": {"class_weight": [1.0, 3.0, 0.5]}}
    history = history_of(TRAIN, VAL, loss=loss)
    logits = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-10)

    def closure():
        optimizer.zero_grad()
        rows = logits.expand(len(TRAIN), 3)
        value = torch.nn.functional.cross_entropy(rows, torch.tensor(TRAIN), torch.tensor([1.0, 3.0, 0.5]))
        value.backward()
        return value

    optimizer.step(closure)
    assert history.baseline["loss"] == pytest.approx(closure().item(), abs=1e-5)


def test_one_logit_is_compared_with_the_share_of_the_positive_class():
    history = history_of([0] * 15 + [1] * 5, [0, 1], loss="binary_cross_entropy_with_logits")
    expected = log_loss([0] * 15 + [1] * 5, [0.25] * 20)
    assert history.baseline["loss"] == pytest.approx(expected, abs=1e-6)
    assert history.baseline["val_loss"] == pytest.approx(log_loss([0, 1], [0.25] * 2), abs=1e-6)
    assert history.classes == 2 and history.baseline["val_accuracy"] == 0.5


def test_values_are_compared_with_the_mean_or_the_median_of_the_training_targets():
    train, val = [0.0, 1.0, 2.0, 9.0, 3.0], [4.0, 5.0]
    squared = history_of(train, val, torch.float32, loss="mse_loss")
    assert squared.baseline == pytest.approx({"loss": 10.0, "val_loss": 2.5})  # the mean is 3, the variance 10
    absolute = history_of(train, val, torch.float32, loss="l1_loss")
    assert absolute.baseline == pytest.approx({"loss": 2.2, "val_loss": 2.5})  # the median is 2
    assert squared.classes is None and squared.samples == {"train": 5, "val": 2}


def test_counts_are_compared_with_their_mean_rate():
    history = history_of([0.0, 1.0, 2.0, 5.0], [2.0], torch.float32, loss="poisson_nll_loss")
    assert history.baseline["val_loss"] == pytest.approx(2.0 - 2.0 * numpy.log(2.0), abs=1e-6)


def test_where_targets_are_not_at_hand_nothing_is_claimed():
    data = parts(TRAIN, VAL)
    loaded = {name: torch.utils.data.TensorDataset(*pair) for name, pair in data.items()}
    model = torch.nn.Linear(3, 3)
    history = fitkit.build({"fit": FIT}, model=model, data=loaded).history
    assert history.baseline == {} and history.samples == {"train": 20, "val": 10} and history.classes is None
    scores = fitkit.build({"model": "mlp", "loss": "multi_margin_loss", "fit": FIT}, data=data).history
    assert scores.baseline == {} and scores.classes == 3


def test_a_history_keeps_these_facts_and_reads_files_that_do_not_have_them():
    history = history_of(TRAIN, VAL)
    again = History.from_json(history.to_json())
    assert (again.samples, again.classes, again.baseline) == (history.samples, history.classes, history.baseline)
    document = json.loads(history.to_json())
    for name in ("samples", "classes", "baseline"):
        del document[name]
    old = History.from_json(json.dumps(document))
    assert (old.samples, old.classes, old.baseline) == ({}, None, {})


@pytest.mark.parametrize(
    "name, value", [("samples", [1]), ("samples", {"val": "x"}), ("baseline", 3), ("classes", "b")]
)
def test_facts_of_another_kind_are_refused(name, value):
    document = json.loads(history_of(TRAIN, VAL).to_json()) | {name: value}
    with pytest.raises(fitkit.CheckpointError, match="not the JSON of a History"):
        History.from_json(json.dumps(document))
