"""Each finding on curves that were drawn for it, and what is said of runs that hardly tell anything."""

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fitkit
from fitkit.diagnosis import Predictions
from fitkit.diagnosis.trend import Curve, standard_error, wilson
from fitkit.history import History

DIRECTIONS = {"loss": "min", "val_loss": "min", "accuracy": "max", "val_accuracy": "max"}
SPEC = {
    "data": "digits",
    "splits": {"stratified": {"val": 0.1}},
    "model": {"mlp": {"hidden": [8], "dropout": 0.0}},
    "loss": "cross_entropy",
    "optimizer": {"AdamW": {"lr": 0.001}},
    "fit": {"epochs": 20, "batch_size": 64},
}


def history_of(spec=None, samples=(1000, 200), classes=10, **columns):
    """Return a history of these columns, of ten even classes unless it is told otherwise."""
    columns.setdefault("lr", [0.001] * len(next(iter(columns.values()))))
    spec = fitkit.load_spec({**SPEC, **(spec or {})}).resolved()
    history = History(list(columns), DIRECTIONS, {key: value for key, value in spec.items() if value is not None})
    history.history = {name: [math.nan if v is None else float(v) for v in values] for name, values in columns.items()}
    history.samples, history.classes = dict(zip(("train", "val"), samples, strict=True)), classes
    chance = math.log(classes) if classes else 1.0
    history.baseline = {"loss": chance, "val_loss": chance}
    if classes:
        history.baseline |= {"accuracy": 1 / classes, "val_accuracy": 1 / classes}
    history.stopped = f"all {len(history)} epochs done"
    return history


def falling(start, end, epochs, rate=0.3):
    """Return a loss that falls from near `start` to `end` as an exponential does."""
    return [end + (start - end) * math.exp(-rate * epoch) for epoch in range(1, epochs + 1)]


def jagged(values, by):
    """Return values that lie above and below in turns."""
    return [value + by * (-1) ** i for i, value in enumerate(values)]


GOOD = falling(2.3, 0.2, 20, 0.5)
SMALL = {"samples": (1000, 12)}
FITTED = falling(2.3, 0.05, 20, 0.4)
RISING = falling(2.3, 0.5, 8, 0.5) + [0.55 + 0.06 * i for i in range(12)]
LINE = [2.3 - 0.015 * i for i in range(20)]
STOPS = falling(2.3, 0.6, 4, 1.0) + [0.62] * 16
SILENT = Predictions((20,) * 10, (22,) * 9 + (0,), tuple("abcdefghij"), 0.3)
RARE = Predictions((180, 20), (200, 0), ("no", "yes"), 0.05)
SAME = Predictions((20,) * 10, (200,) + (0,) * 9, tuple("abcdefghij"), 0.0)
DROPOUT = {"model": {"mlp": {"hidden": [8], "dropout": 0.8}}}
DECAY = {"optimizer": {"AdamW": {"lr": 0.001, "weight_decay": 10.0}}}

FOUND = {
    "divergence": history_of(loss=[2, 1, 0.5, 0.4, 3, 9, 20, 40], val_loss=[2, 1, 0.6, 0.5, 3, 9, 20, 40]),
    "learning_rate_too_high": history_of(loss=jagged([1.4] * 12, 0.3), val_loss=jagged([1.5] * 12, 0.4)),
    "target_not_scaled": history_of(
        {"data": "diabetes", "splits": "random", "loss": "mse_loss"}, classes=None, loss=[5e4] * 10, val_loss=[5e4] * 10
    ),
    "batch_too_large": history_of({"fit": {"epochs": 20, "batch_size": 1000}}, loss=LINE, val_loss=LINE),
    "learning_rate_too_low": history_of(loss=LINE, val_loss=LINE),
    "not_learning": history_of({"optimizer": {"SGD": {"lr": 10.0}}}, loss=[2.31] * 8, val_loss=[2.31] * 8),
    "no_signal": history_of(loss=[2.3 - 0.05 * i for i in range(20)], val_loss=[2.3 + 0.03 * i for i in range(20)]),
    "leak": history_of(loss=falling(2, 0.001, 20, 2), val_loss=[0.001] * 20, val_accuracy=[1.0] * 20),
    "no_better_than_largest_class": history_of(loss=GOOD, val_loss=GOOD, val_accuracy=[0.9] * 20),
    "overfitting": history_of(loss=FITTED, val_loss=RISING),
    "train_worse_than_val": history_of(DROPOUT, loss=falling(2.3, 1.1, 20), val_loss=falling(2.2, 0.4, 20)),
    "plateau": history_of(loss=STOPS, val_loss=STOPS, lr=[0.01] * 4 + [1e-6] * 16),
    "underfitting": history_of(DECAY, loss=[1.9] * 20, val_loss=[1.9] * 20, accuracy=[0.3] * 20),
    "train_longer": history_of(loss=[2.2, 1.9, 1.5, 1.1], val_loss=[2.1, 1.8, 1.4, 1.0]),
    "validation_too_small": history_of(loss=GOOD, val_loss=GOOD, val_accuracy=[0.9] * 20, **SMALL),
    "noisy_validation": history_of(loss=GOOD, val_loss=jagged([v + 0.2 for v in GOOD], 0.2)),
}
FOUND["no_better_than_largest_class"].baseline["val_accuracy"] = 0.9
FOUND["target_not_scaled"].baseline = {"loss": 6e3, "val_loss": 6e3}
PREDICTED = {
    "class_never_predicted": (history_of(loss=GOOD, val_loss=GOOD), SILENT),
    "constant_predictions": (history_of({"optimizer": {"SGD": 9.0}}, loss=[2.31] * 8, val_loss=[2.31] * 8), SAME),
}


NAMES = [*FOUND, *PREDICTED]


def drawn(name):
    """Return a history with a finding, and its diagnosis."""
    history, predictions = PREDICTED[name] if name in PREDICTED else (FOUND[name], None)
    return history, history.diagnose(predictions)


@pytest.mark.parametrize("name", NAMES)
def test_a_curve_drawn_for_a_finding_has_it_first_with_numbers_and_a_way_out(name):
    _, found = drawn(name)
    first = found.findings[0]
    assert first.name == name and first.severity != "info" and not found.healthy
    assert found.verdict.startswith(name.replace("_", " ") + ": ") and "\n" not in found.verdict
    assert any(character.isdigit() for character in first.text)
    assert first.text.endswith(".") and first.advice.endswith(".")


@pytest.mark.parametrize("name", NAMES)
def test_a_patch_changes_the_spec_of_the_run_and_is_a_valid_spec(name):
    history, found = drawn(name)
    patches = [patch for finding in found.findings for patch in finding.patch]
    assert patches or name in ("leak", "no_signal"), "only these two have no remedy in a spec"
    for patch in patches:
        assert fitkit.load_spec(history.spec, [patch]).resolved() != fitkit.load_spec(history.spec).resolved()
        fitkit.load_spec({"data": "digits", "model": "mlp", "optimizer": history.spec["optimizer"]}, [patch])
    fitkit.load_spec(history.spec, patches)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "Muon", "Adadelta"])
def test_a_patch_names_the_optimizer_of_the_run(optimizer):
    low = history_of({"optimizer": optimizer}, loss=LINE, val_loss=LINE).diagnose().findings[0]
    assert low.patch[0].startswith(f"optimizer.{optimizer}.lr=")
    over = history_of({"optimizer": optimizer}, loss=FITTED, val_loss=RISING).diagnose().findings[0]
    assert over.name == "overfitting" and "callbacks.EarlyStopping.patience=5" in over.patch
    fitkit.load_spec({**SPEC, "optimizer": optimizer}, [*low.patch, *over.patch])


def test_a_patch_never_proposes_what_the_spec_says_already():
    spec = {
        "optimizer": {"AdamW": {"lr": 0.001, "weight_decay": 0.5}},
        "callbacks": {"EarlyStopping": {"patience": 5}},
        "model": {"mlp": {"hidden": [8], "dropout": 0.5}},
    }
    found = history_of(spec, loss=FITTED, val_loss=RISING).diagnose().findings[0]
    assert found.name == "overfitting" and found.patch == ()
    found = history_of({"schedule": "cosine"}, loss=STOPS, val_loss=STOPS, lr=[0.01] * 4 + [1e-6] * 16).diagnose()
    assert found.findings[0].name == "plateau" and found.findings[0].patch == ()


def test_dropout_in_a_list_of_layers_is_lowered_in_the_whole_list():
    layers = [{"Linear": 64}, "ReLU", {"Dropout": 0.8}, {"Linear": "outputs"}]
    found = history_of({"model": layers}, loss=falling(2.3, 1.1, 20), val_loss=falling(2.2, 0.4, 20)).diagnose()
    assert found.names[0] == "train_worse_than_val"
    model = fitkit.load_spec(SPEC, found.findings[0].patch).resolved()["model"]
    assert [next(iter(layer)) for layer in model] == ["Linear", "ReLU", "Dropout", "Linear"]
    assert model[2]["Dropout"]["p"] == 0.1


def test_the_verdict_on_overfitting_says_from_where_and_by_how_much():
    loss = [1.0, 0.8, 0.6, 0.5, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15, 0.1, 0.1]
    val = [1.0, 0.9, 0.8, 0.7, 0.6, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2]
    text = history_of(loss=loss, val_loss=val).diagnose().verdict
    # running medians of three: val_loss is lowest in epoch 5 (0.6), loss is 0.4 there; the last two give the ends
    assert text.startswith(
        "overfitting: from epoch 5 of 12 on: val_loss +91.7 % (0.6 to 1.15) while loss −75 % (0.4 to"
    )


@pytest.mark.parametrize("at", range(3, 20))
def test_one_odd_epoch_changes_no_verdict(at):
    val = [value + 0.02 for value in GOOD]
    val[at] += 5.0
    assert history_of(loss=GOOD, val_loss=val).diagnose().healthy


def test_a_healthy_run_is_said_to_look_healthy_with_its_numbers():
    history = history_of(loss=GOOD, val_loss=[v + 0.03 for v in GOOD], val_accuracy=[0.95] * 20)
    found = history.diagnose()
    assert found.healthy
    low, high = wilson(0.95, 200)
    assert found.verdict.startswith(
        "looks healthy: val_loss 0.2301, 90 % below a constant prediction; val_accuracy 0.95 "
    )
    assert f"(95 %: {low:.3f} to {high:.3f})" in found.verdict and "; loss 0.2001 in epoch 20 of 20" in found.verdict


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_of_a_run_of_few_epochs_is_said_what_cannot_be_told(epochs):
    found = history_of(loss=[1.0] * epochs, val_loss=[1.1] * epochs).diagnose()
    assert found.healthy and found.verdict.startswith("too early to tell: ")
    assert found.cannot_tell[0].endswith(f": 4 epochs are needed, and there {'is' if epochs == 1 else 'are'} {epochs}.")


def test_without_an_epoch_validation_or_baseline_it_says_so():
    assert history_of(loss=[]).diagnose().verdict == "nothing to tell: no epoch was finished."
    found = history_of(loss=GOOD).diagnose()
    assert found.healthy and "nothing was validated" in found.cannot_tell[0]
    history = history_of(loss=GOOD, val_loss=GOOD)
    history.baseline = {}
    assert "constant prediction" in history.diagnose().cannot_tell[0]


def test_rows_of_many_targets_get_no_interval_of_their_own():
    history = history_of(loss=GOOD, val_loss=[v + 0.03 for v in GOOD], val_accuracy=[0.9] * 20, **SMALL)
    assert not history.diagnose().healthy and "95 %" in history.diagnose().verdict
    history.baseline, history.classes = {}, None  # as of a text, whose targets are its own words
    assert history.diagnose().healthy and "95 %" not in history.diagnose().verdict


def test_a_run_that_a_callback_ended_is_not_told_to_train_longer():
    history = history_of(loss=[2.2, 1.9, 1.5, 1.1], val_loss=[2.1, 1.8, 1.4, 1.0])
    assert history.diagnose().names == ("train_longer",)
    history.stopped = "val_loss has not improved for 5 epochs (EarlyStopping, patience 5)"
    assert history.diagnose().names == ()


def test_epochs_that_were_not_validated_are_left_out():
    val = [value if epoch % 2 else None for epoch, value in enumerate(RISING)]
    found = history_of(loss=FITTED, val_loss=val).diagnose()
    assert found.names[0] == "overfitting"


def test_a_finding_that_explains_another_stands_alone():
    history = history_of(loss=jagged([1.4] * 12, 0.3), val_loss=jagged([2.5] * 12, 0.9), **SMALL)
    names = [finding.name for finding in history.diagnose().findings]
    assert names == ["learning_rate_too_high", "validation_too_small"]


def test_momentum_near_one_is_lowered_before_the_learning_rate():
    spec = {"optimizer": {"SGD": {"lr": 0.05, "momentum": 0.999}}}
    found = history_of(spec, loss=jagged([1.4] * 12, 0.3), val_loss=[1.5] * 12).diagnose()
    assert found.findings[0].patch == ("optimizer.SGD.momentum=0.9",)


def test_rare_classes_that_are_never_predicted_come_before_a_low_accuracy():
    history = history_of(classes=2, loss=[0.33] * 10, val_loss=[0.33] * 10, val_accuracy=[0.9] * 10)
    history.baseline = {"loss": 0.325, "val_loss": 0.325, "val_accuracy": 0.9}
    first = history.diagnose(RARE).findings[0]
    assert first.name == "class_never_predicted" and '"yes" (20 rows)' in first.text
    assert first.patch == ("loss.cross_entropy.class_weight=balanced",)


def test_wilson_is_the_interval_of_its_formula():
    low, high = wilson(0.9, 50)  # scipy.stats.binomtest(45, 50).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((0.7863977, 0.9565242), abs=1e-6)
    assert wilson(1.0, 10) == pytest.approx((0.7224672, 1.0), abs=1e-6)
    assert standard_error(1.0, 8) == pytest.approx(math.sqrt(0.9 * 0.1 / 10))


def test_a_curve_is_smoothed_by_running_medians_and_its_noise_is_that_around_a_trend():
    curve = Curve(tuple(range(1, 8)), (7.0, 6.0, 50.0, 4.0, 3.0, 2.0, 1.0))
    assert curve.smooth == (6.5, 7.0, 6.0, 4.0, 3.0, 2.0, 1.5)
    straight = Curve(tuple(range(1, 21)), tuple(3.0 - 0.1 * i for i in range(20)))
    assert straight.noise == pytest.approx(0, abs=1e-12)
    slope, error = straight.slope
    assert (slope, error) == (pytest.approx(-0.1), pytest.approx(0, abs=1e-12))


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
sections = st.fixed_dictionaries({}, optional={key: junk for key in (*SPEC, "callbacks", "schedule")})
numbers = st.floats(allow_nan=True, allow_infinity=True)
rows = st.lists(st.tuples(numbers, numbers, numbers, numbers), max_size=25)
counts = st.dictionaries(st.sampled_from(["train", "val"]), st.integers(-5, 10**12))
chances = st.dictionaries(st.sampled_from(["loss", "val_loss", "accuracy", "val_accuracy"]), numbers)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(rows, sections, counts, chances, st.none() | st.integers(-3, 10**9))
def test_no_history_of_whatever_origin_makes_the_diagnosis_fail(rows, spec, samples, baseline, classes):
    history = History(["loss", "val_loss", "val_accuracy", "lr"], {"loss": "min"}, spec)
    for row in rows:
        history.append(dict(zip(history.columns, row, strict=True)))
    history.samples, history.baseline, history.classes = samples, baseline, classes
    found = History.from_json(history.to_json()).diagnose()
    assert str(found).replace("\n", "").isprintable()
    json.dumps(found.to_json(), allow_nan=False)
