"""Calibration: measures equal scikit-learn's and their formulas, and a temperature is the optimum that SciPy finds."""

import json
import math

import numpy
import pytest
import torch
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import chi2
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

import fitkit
from fitkit.errors import DataError, FitkitError
from fitkit.evaluation.calibration import FOLDS, calibrate, ece, reliability, scores
from fitkit.evaluation.evaluation import evaluate
from fitkit.evaluation.outcomes import Outcomes
from fitkit.evaluation.temperature import fit_temperature


def made(outputs, targets, reads="logits", samples=None, **more):
    """Return outcomes of classes; their losses are ones, which calibration does not look at."""
    samples = torch.arange(len(targets)) if samples is None else samples
    ones = torch.ones(int(samples.max()) + 1, dtype=torch.float64)
    facts = {"part": "val", "kind": "classes", "rows": torch.arange(len(ones)), **more}
    return Outcomes(outputs=outputs, reads=reads, targets=targets, samples=samples, sums=ones, counts=ones, **facts)


def drawn(count=400, classes=5, scale=3.0, seed=0):
    """Return logits that are `scale` times too large, and targets drawn from the softmax of the right ones."""
    draw = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(count, classes, generator=draw)
    targets = torch.multinomial(logits.softmax(1), 1, generator=draw).squeeze(1)
    return scale * logits, targets


def pair_of(reads, seed=0):
    """Return outcomes of two classes given by one output a sample, and the same as two logits."""
    two, targets = drawn(classes=2, seed=seed)
    one = two[:, 1] - two[:, 0]
    outputs = one.double().sigmoid() if reads == "probabilities" else one
    return made(outputs, targets, reads), torch.stack((torch.zeros_like(one), one), 1), targets


def softmax(logits, temperature):
    scaled = logits.double().numpy() / temperature
    powers = numpy.exp(scaled - scaled.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 2.7])
@pytest.mark.parametrize("reads", ["logits", "log_probabilities", "one logit", "probabilities"])
def test_the_measures_equal_scikit_learns(reads, temperature):
    if reads in ("one logit", "probabilities"):
        found, logits, targets = pair_of("logits" if reads == "one logit" else reads)
    else:
        logits, targets = drawn()
        found = made(logits if reads == "logits" else logits.log_softmax(1), targets, reads)
    chances, y = softmax(logits, temperature), targets.numpy()
    got = scores(found, torch.full((len(y),), temperature, dtype=torch.float64))
    classes = range(chances.shape[1])
    assert got.nll.mean().item() == pytest.approx(log_loss(y, chances, labels=classes), abs=1e-6)
    theirs = brier_score_loss(y, chances if len(classes) > 2 else chances[:, 1], labels=list(classes))
    assert got.brier.mean().item() == pytest.approx(theirs, abs=1e-6)
    assert got.confidence.numpy() == pytest.approx(chances.max(1), abs=1e-6)


@pytest.mark.parametrize("spacing, strategy", [("width", "uniform"), ("mass", "quantile")])
def test_reliability_equals_scikit_learns_calibration_curve_and_ece_its_formula(spacing, strategy):
    logits, targets = drawn(count=398)  # a number for which no quantile is a confidence itself
    found = reliability(made(logits, targets), 15, spacing=spacing)
    chances = softmax(logits, 1.0)
    confidence, right = chances.max(1), chances.argmax(1) == targets.numpy()
    shares, means = calibration_curve(right, confidence, n_bins=15, strategy=strategy)
    filled = [b for b in found.bins if b.count]
    assert len(found.bins) == 15
    assert [b.accuracy for b in filled] == pytest.approx(shares, abs=1e-6)
    assert [b.confidence for b in filled] == pytest.approx(means, abs=1e-6)
    gap = 0.0
    for b in found.bins:
        inside = (confidence > b.low) & (confidence <= b.high)
        inside |= (b is found.bins[0]) & (confidence == b.low)
        assert b.count == inside.sum()
        if b.count:
            gap += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert found.ece == pytest.approx(gap, abs=1e-6)
    if spacing == "mass":
        assert {b.count for b in found.bins} <= {26, 27}  # 398 / 15
    else:
        assert found.bins[3].low == pytest.approx(0.2) and ece(made(logits, targets)).value == pytest.approx(gap)


def optimum(logits, targets):
    """The temperature by SciPy, over its logarithm."""
    rows = numpy.arange(len(targets))

    def nll(log_t):
        return -numpy.log(softmax(logits, math.exp(log_t))[rows, targets.numpy()]).mean()

    return math.exp(minimize_scalar(nll, bounds=(-4, 4), method="bounded", options={"xatol": 1e-10}).x)


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_the_temperature_is_the_optimum_that_scipy_finds(scale):
    logits, targets = drawn(scale=scale)
    found = fit_temperature(made(logits, targets))
    assert found.value == pytest.approx(optimum(logits, targets), rel=1e-6)
    assert found.low < found.value < found.high
    for reads in ("logits", "probabilities"):
        one, logits, targets = pair_of(reads)
        assert fit_temperature(one).value == pytest.approx(optimum(logits, targets), rel=1e-5)


def test_the_interval_of_a_temperature_holds_the_true_one_95_times_of_100():
    inside = 0
    for seed in range(200):
        found = fit_temperature(made(*drawn(count=300, scale=2.0, seed=seed)))
        inside += found.low <= 2.0 <= found.high
    assert 0.9 <= inside / 200 <= 0.99


def test_a_temperature_counts_every_target_once_whatever_the_weights_of_the_loss():
    logits, targets = drawn()
    found = made(logits, targets)
    weighted = Outcomes(**{**vars(found), "sums": 7 * found.sums, "counts": torch.rand(400).double()})
    assert fit_temperature(weighted).value == fit_temperature(found).value


def test_logits_of_minus_infinity_and_ties_are_no_nan():
    logits, targets = drawn()
    logits[:, 4] = -math.inf
    targets = targets.clamp(max=3)
    logits[:9] = 0.0
    found = calibrate(made(logits, targets))
    assert all(math.isfinite(e.value) for e in (*found.before.values(), *found.after.values()))
    with pytest.raises(DataError, match="val: a sample's own class has probability 0, which no temperature changes"):
        calibrate(made(logits, torch.full_like(targets, 4)))
    logits[3, 3] = math.nan
    with pytest.raises(DataError, match="val: the model gives outputs that are NaN or infinite"):
        calibrate(made(logits, targets))


def test_probabilities_that_are_exactly_0_or_1_are_taken_as_torchs_loss_takes_them():
    outputs, targets = torch.tensor([1.0, 0.0, 1.0, 0.25]), torch.tensor([1, 0, 0, 1])
    found = scores(made(outputs, targets, "probabilities"), torch.ones(4, dtype=torch.float64))
    theirs = torch.nn.functional.binary_cross_entropy(outputs.double(), targets.double(), reduction="none")
    assert found.nll.tolist() == pytest.approx(theirs.tolist(), abs=1e-9)


def test_after_is_cross_fitted_where_it_is_measured_on_what_was_fitted_on():
    logits, targets = drawn(count=60)
    found = calibrate(made(logits, targets), bins=5)
    assert found.folds == FOLDS and found.part == found.fitted_on == "val"
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    losses = numpy.zeros(60)
    for number in range(FOLDS):
        inside = order[number::FOLDS]
        others = torch.tensor([row not in inside for row in range(60)])
        t = optimum(logits[others], targets[others])
        losses[inside] = -numpy.log(softmax(logits[inside], t)[range(len(inside)), targets[inside]])
    assert found.after["nll"].value == pytest.approx(losses.mean(), rel=1e-6)
    flattered = log_loss(targets, softmax(logits, found.temperature.value), labels=range(5))
    assert flattered < found.after["nll"].value < found.before["nll"].value
    change = found.change["nll"]
    assert change.value == pytest.approx(found.after["nll"].value - found.before["nll"].value) and change.high < 0
    assert found.before["accuracy"] == found.after["accuracy"]


def test_on_another_part_it_is_measured_with_the_temperature_itself():
    (logits, targets), (others, theirs) = drawn(), drawn(seed=1)
    found = calibrate(made(logits, targets), made(others, theirs, part="test"))
    expected = log_loss(theirs, softmax(others, optimum(logits, targets)), labels=range(5))
    assert found.after["nll"].value == pytest.approx(expected, abs=1e-6) and found.folds == 0
    assert (found.part, found.fitted_on, found.samples) == ("test", "val", 400)


def test_where_every_prediction_is_right_no_temperature_is_best_and_it_stays_1():
    targets = torch.arange(40) % 4
    found = calibrate(made(5 * torch.nn.functional.one_hot(targets).float(), targets), bins=5)
    assert found.temperature.value == 1 and found.before["nll"].value == found.after["nll"].value
    assert found.notes[0].startswith("every prediction on val is right, so nothing tells how sure the model may be")
    wrong = calibrate(made(-5 * torch.nn.functional.one_hot(targets).float(), targets), bins=5)
    assert wrong.temperature.value == 1
    assert wrong.notes[0].startswith("no temperature between 0.01 and 100 is best on val: calibrate on more samples")
    for one in (found, wrong):
        assert not one.saved and one.kept is None and str(one).endswith("\nNo temperature was saved.")
    earlier = made(5 * torch.nn.functional.one_hot(targets).float(), targets, temperature=1.7)
    kept = calibrate(earlier, bins=5)
    assert kept.kept == 1.7 and str(kept).endswith("No temperature was saved. The earlier temperature 1.7000 stays.")
    assert calibrate(earlier, bins=5, force=True).kept is None and "nan" not in str(kept)
    json.dumps(found.to_json(), allow_nan=False)


def test_fewer_rows_than_bins_and_no_bins_are_one_message():
    logits, targets = drawn(count=12)
    with pytest.raises(DataError, match="val: its 12 rows are fewer than 15 bins. Take fewer bins, or a part with mor"):
        calibrate(made(logits, targets))
    with pytest.raises(DataError, match="0 bins: take at least one"):
        reliability(made(logits, targets), 0)
    found = ece(made(logits, targets))
    assert found.method == "bootstrap; 12 bins of equal width" and found.low <= found.value <= found.high
    few = calibrate(made(*drawn(count=9, scale=1.0)), bins=3)
    assert few.folds == 0 and "too few to cross-fit" in str(few)


def test_scores_and_values_have_no_calibration():
    outputs, targets = torch.randn(20), torch.arange(20) % 2
    with pytest.raises(DataError, match="this model's loss gives scores that are no probabilities"):
        calibrate(made(outputs, targets, "scores"))
    with pytest.raises(DataError, match="this model predicts values, not classes"):
        calibrate(made(outputs, outputs, "values", kind="values"))
    assert "ece" not in evaluate(made(outputs, targets, "scores"))


def test_positions_of_one_sample_are_kept_together():
    logits, targets = drawn(count=40)
    alone = calibrate(made(logits, targets))
    again = [t.repeat_interleave(10, 0) for t in (logits, targets)]
    together = calibrate(made(*again, samples=torch.arange(40).repeat_interleave(10)))
    assert together.temperature.value == pytest.approx(alone.temperature.value, rel=1e-9)
    assert together.temperature.low == pytest.approx(alone.temperature.low, rel=1e-9)
    for name in ("nll", "ece", "brier"):
        one, other = alone.after[name], together.after[name]
        assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high), abs=1e-9)


@pytest.mark.parametrize("temperature", [1e-300, 0.01, 100.0, 1e300])
@pytest.mark.parametrize("one", [False, True])
def test_no_temperature_changes_a_prediction(temperature, one):
    x = torch.tensor([[0.0, 0.0], [3.0, 3.0], [1e-30, 0.0], [0.0, 1e-30], [2e4, 1e4], [-1e30, 1e30], [-1e-40, 0.0]])
    module = torch.nn.Linear(2, 1, bias=False) if one else torch.nn.Identity()
    model = fitkit.Model(module)
    y = torch.tensor([0, 1, 0, 1, 0, 1, 0])
    loss = {"loss": "binary_cross_entropy_with_logits"} if one else {}
    if one:
        model.fit({**loss, "optimizer": {"SGD": 1e-9}, "fit": {"epochs": 1}}, data=(torch.randn(7, 2), y[:, None]))
        with torch.no_grad():
            module.weight.copy_(torch.tensor([[-1.0, 1.0]]))
    else:
        model.card = {"spec": {"loss": {"cross_entropy": {}}, "metrics": {}}, "class_dim": 1}
    before = model.predict(x)
    model.card["temperature"] = temperature
    chances = model.predict_proba(x)
    assert torch.equal(model.predict(x), before)
    assert chances.isfinite().all() and torch.allclose(chances.sum(1), torch.ones(7, dtype=torch.float64))
    assert (chances.gather(1, before[:, None]).squeeze(1) == chances.amax(1)).all()


def test_a_fit_drops_the_temperature_of_the_one_before():
    x = torch.randn(80, 4, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] + torch.randn(80, generator=torch.Generator().manual_seed(1)) > 0).long()
    torch.manual_seed(0)
    model = fitkit.Model(torch.nn.Linear(4, 2))
    with pytest.raises(FitkitError, match="has not been fitted"):
        model.calibrate((x, y))
    model.fit({"optimizer": {"AdamW": 0.1}, "fit": {"epochs": 20}}, data=(x[:40], y[:40]))
    raw = model.predict_proba(x)
    found = model.calibrate((x[40:], y[40:]), force=True)
    assert model.card["temperature"] == found.temperature.value and found.previous is None
    assert torch.allclose(model.predict_proba(x), (raw.log() / found.temperature.value).softmax(1))
    again = model.calibrate((x[40:], y[40:]), force=True)
    assert again.previous == found.temperature.value == again.temperature.value
    assert "before" in str(again) and evaluate(model.outcomes((x, y))).notes[-1].startswith("probabilities")
    model.fit({"fit": {"epochs": 1}}, data=(x, y))
    assert "temperature" not in model.card


def test_a_part_whose_targets_are_all_ignored_has_no_calibration_error():
    ones, none = torch.ones(3, dtype=torch.float64), torch.zeros(0, dtype=torch.long)
    facts = {"part": "val", "kind": "classes", "reads": "logits", "rows": torch.arange(3), "sums": 0 * ones}
    found = Outcomes(outputs=torch.zeros(0, 4), targets=none, samples=none, counts=0 * ones, **facts)
    assert math.isnan(ece(found).value)
    with pytest.raises(DataError, match="val: the loss ignores every target, so there is nothing to measure"):
        calibrate(found)


NOTHING = "The data do not show that this is better than no temperature (T = 1)"


def test_a_temperature_is_saved_only_where_it_helps_samples_that_it_was_not_fitted_on_or_by_force():
    parts = [made(*drawn(count=30, scale=1.0, seed=seed)) for seed in range(20)]
    seeds = [calibrate(part, bins=5) for part in parts]
    worse = [found for found in seeds if found.change["nll"].value >= 0]
    assert 0 < len(worse) < 20
    for part, found in zip(parts, seeds, strict=True):
        assert found.held_out == found.change["nll"] and found.saved == (found not in worse)
        assert found.kept == (None if found in worse else found.temperature.value)
        said = f"{NOTHING}, so it was not saved; --force (in Python force=True) saves it."
        assert (said in str(found)) == (found in worse) == ("It was saved" not in str(found))
        assert (NOTHING in found._repr_html_()) == (found in worse)
        assert found.to_json()["saved"] == found.saved
        assert "cannot tell" not in str(found) and "too sure" not in str(found).splitlines()[0] or found.saved
        forced = calibrate(part, bins=5, force=True)
        assert forced.saved and forced.kept == found.temperature.value == forced.temperature.value
        assert (f"{NOTHING}; it was saved as it was forced." in str(forced)) == (found in worse)
    few = calibrate(made(*drawn(count=9, scale=1.0)), bins=3)
    assert not few.saved and math.isnan(few.held_out.value) and NOTHING in str(few)


def test_another_part_decides_nothing():
    (logits, targets), (others, theirs) = drawn(), drawn(scale=0.4, seed=1)
    found = calibrate(made(logits, targets), made(others, theirs, part="test"))
    assert found.change["nll"].value > 0 > found.held_out.value and found.saved
    assert found.held_out == calibrate(made(logits, targets)).held_out
    assert "Samples of test do not (+" in str(found) and "test decides nothing" in str(found)


def test_the_interval_is_that_of_the_profile_likelihood():
    for seed, scale in ((0, 3.0), (1, 1.0), (2, 0.3)):
        logits, targets = drawn(count=60, scale=scale, seed=seed)
        best = optimum(logits, targets)

        def excess(t, logits=logits, targets=targets, best=best):
            sums = [-numpy.log(softmax(logits, one)[range(60), targets.numpy()]).sum() for one in (t, best)]
            return sums[0] - sums[1] - chi2.ppf(0.95, 1) / 2

        found = fit_temperature(made(logits, targets))
        assert found.low == pytest.approx(brentq(excess, best / 20, best), rel=1e-6)
        assert found.high == pytest.approx(brentq(excess, best, best * 50), rel=1e-6)
    assert found.method == "profile likelihood"


def test_the_interval_of_predictions_that_tell_next_to_nothing_has_no_upper_end():
    outputs = torch.tensor([[1.0, 0.0]]).repeat(20, 1)
    found = calibrate(made(outputs, (torch.arange(20) >= 11).long()), bins=5)  # p of 0.55: 1 / T is log(11 / 9)
    assert found.temperature.value == pytest.approx(1 / math.log(11 / 9)) and found.temperature.high == math.inf
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["temperature"]["high"] is None
    assert "to inf" in str(found)


def test_a_model_keeps_its_earlier_temperature_where_a_calibration_is_not_saved():
    seeds = {seed: calibrate(made(*drawn(count=30, scale=1.0, seed=seed)), bins=5) for seed in range(20)}
    seed = next(seed for seed, found in seeds.items() if not found.saved)
    x, y = drawn(count=30, scale=1.0, seed=seed)
    model = fitkit.Model(torch.nn.Identity())
    model.card = {"spec": {"loss": {"cross_entropy": {}}, "metrics": {}}, "class_dim": 1, "built": False}
    assert not model.calibrate((x, y), bins=5).saved and "temperature" not in model.card
    model.card["temperature"] = 1.7
    found = model.calibrate((x, y), bins=5)
    assert model.card["temperature"] == 1.7 and str(found).endswith("The earlier temperature 1.7000 stays.")
    forced = model.calibrate((x, y), bins=5, force=True)
    assert model.card["temperature"] == forced.temperature.value == seeds[seed].temperature.value
