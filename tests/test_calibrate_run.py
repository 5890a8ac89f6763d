"""fitkit calibrate on run folders: an overconfident net becomes honest, its weights stay, and what reads it agrees."""

import csv
import json
import shutil

import numpy
import pytest
import torch
from sklearn.metrics import log_loss

import fitkit
from fitkit.after.run_outcomes import read_outcomes
from fitkit.after.verify import digest, outcome
from fitkit.builder.card import check_card
from fitkit.cli import main
from fitkit.engine import weights
from fitkit.errors import CheckpointError
from fitkit.session import locked

SURE = {  # a small training part, a large net, no regularization, and the weights of the lowest training loss
    "data": "digits",
    "splits": {"stratified": {"val": 0.4, "test": 0.4}},
    "model": {"mlp": {"hidden": [256, 256]}},
    "optimizer": {"AdamW": {"lr": 1e-2, "weight_decay": 0.0}},
    "callbacks": {"EarlyStopping": {"monitor": "loss", "patience": 1000}},
    "fit": {"epochs": 40, "device": "cpu", "compile": False},
}


@pytest.fixture(scope="module")
def sure(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "sure"
    with pytest.warns(UserWarning, match="EarlyStopping monitors loss"):
        fitkit.fit(SURE, out=folder)
    return folder


@pytest.fixture
def run(sure, tmp_path):
    """Return a copy of the finished run that a test may change."""
    return shutil.copytree(sure, tmp_path / "run")


def stored(folder):
    return weights.load(folder / "model.safetensors")


def json_of(capsys, *arguments):
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_temperature_lowers_the_likelihood_on_test_of_an_overconfident_net_and_no_accuracy(run, capsys):
    found = json_of(capsys, "calibrate", run, "--split", "test")
    assert found["temperature"]["low"] > 1.2 and (found["fitted_on"], found["part"]) == ("val", "test")
    test = read_outcomes(run, "test", command="a test")
    y, t = test.targets.numpy(), found["temperature"]["value"]
    before, after = (torch.tensor(test.outputs.numpy() / d).double().softmax(1).numpy() for d in (1.0, t))
    assert found["before"]["nll"]["value"] == pytest.approx(log_loss(y, before), abs=1e-6)
    assert found["after"]["nll"]["value"] == pytest.approx(log_loss(y, after), abs=1e-6)
    assert log_loss(y, after) < 0.9 * log_loss(y, before) and found["change"]["nll"]["high"] < 0
    assert found["after"]["ece"]["value"] < 0.6 * found["before"]["ece"]["value"]
    accuracy = (before.argmax(1) == y).mean()
    assert accuracy == (after.argmax(1) == y).mean()
    assert found["before"]["accuracy"] == found["after"]["accuracy"]
    assert found["after"]["accuracy"]["value"] == accuracy  # to the last digit


def test_the_temperature_is_in_the_card_and_the_weights_are_the_same_bits(run):
    before = stored(run)
    assert main(["calibrate", str(run)]) == 0
    after = stored(run)
    for one, other in zip(before[:2], after[:2], strict=True):
        assert {n: digest(t) for n, t in one.items()} == {n: digest(t) for n, t in other.items()}
    temperature = after[2].pop("temperature")
    assert after[2] == before[2] and temperature > 1.2
    assert not [path for path in run.iterdir() if path.name.startswith(".")]
    assert outcome(run)["history: best epoch"]  # verify-resume reads it as before


def test_the_test_split_is_not_looked_at_unless_it_is_asked_for(run, capsys):
    assert main(["calibrate", str(run)]) == 0
    assert not (run / "test_looks.json").exists()
    assert "cross-fit" in capsys.readouterr().out
    assert main(["calibrate", str(run), "--split", "test"]) == 0
    [look] = json.loads((run / "test_looks.json").read_text())
    assert look["command"] == "calibrate --split test" and "for the first time" in capsys.readouterr().err


def test_a_second_calibration_fits_to_raw_logits_and_names_the_temperature_before(run, capsys):
    first = json_of(capsys, "calibrate", run)
    second = json_of(capsys, "calibrate", run)
    assert first["previous"] is None and second["previous"] == first["temperature"]["value"]
    assert {**second, "previous": None} == first
    main(["calibrate", str(run), "--bins", "5", "--equal-mass"])
    text = capsys.readouterr().out
    assert "it was" in text.splitlines()[0] and "5 bins of equal mass" in text


def test_a_temperature_that_helps_no_held_out_sample_is_not_written_unless_it_is_forced(tmp_path, capsys):
    spec = {"data": "breast_cancer", "splits": {"stratified": {"val": 0.2, "test": 0.2}}, "seed": 1}
    more = {"model": [{"Linear": "outputs"}], "optimizer": {"AdamW": 0.01}}
    fit = {"epochs": 15, "device": "cpu", "compile": False}
    fitkit.fit({**spec, **more, "fit": fit}, out=tmp_path / "run")
    folder = tmp_path / "run"
    weights.amend(folder / "model.safetensors", temperature=1.7)
    kept = (folder / "model.safetensors").read_bytes()
    assert main(["calibrate", str(folder)]) == 0
    said = capsys.readouterr()
    assert "so it was not saved; --force (in Python force=True) saves it. The earlier temperature 1.7000 s" in said.out
    assert "wrote" not in said.err and (folder / "model.safetensors").read_bytes() == kept
    found, shown = json_of(capsys, "calibrate", folder), json_of(capsys, "calibrate", folder, "--split", "test")
    assert found["change"]["nll"]["value"] == found["held_out"]["value"] == shown["held_out"]["value"] >= 0
    assert not found["saved"] and not shown["saved"] and (folder / "model.safetensors").read_bytes() == kept
    assert main(["calibrate", str(folder), "--force"]) == 0
    said = capsys.readouterr()
    assert "(T = 1); it was saved as it was forced." in said.out and "wrote the temperature into" in said.err
    assert stored(folder)[2]["temperature"] == found["temperature"]["value"]


def test_predictions_evaluation_and_loading_use_the_temperature(run, tmp_path, capsys):
    x = fitkit.builder.load_spec("data: digits\nmodel: [{Linear: outputs}]").data.build().x[:50]
    numpy.save(tmp_path / "x.npy", x.numpy())
    raw = fitkit.load(run)
    main(["predict", str(run), str(tmp_path / "x.npy"), "--out", str(tmp_path / "raw.csv")])
    main(["calibrate", str(run)])
    main(["predict", str(run), str(tmp_path / "x.npy"), "--out", str(tmp_path / "new.csv")])
    model = fitkit.load(run)
    expected = (model.outputs(x).double() / model.card["temperature"]).softmax(1)
    assert torch.allclose(model.predict_proba(x), expected) and torch.equal(model.predict(x), raw.predict(x))
    rows = [list(csv.reader((tmp_path / name).read_text().splitlines())) for name in ("raw.csv", "new.csv")]
    assert [row[:2] for row in rows[0]] == [row[:2] for row in rows[1]]  # predictions
    written = torch.tensor([[float(p) for p in row[2:]] for row in rows[1][1:]], dtype=torch.float64)
    assert torch.allclose(written, expected) and rows[0][1][2:] != rows[1][1][2:]
    model.save(tmp_path / "copy.safetensors")
    assert torch.equal(fitkit.load(tmp_path / "copy.safetensors").predict_proba(x), model.predict_proba(x))
    capsys.readouterr()
    found = json_of(capsys, "evaluate", run)
    assert f"temperature {model.card['temperature']:.4g}" in found["notes"][0]
    assert found["intervals"]["ece"]["method"] == "bootstrap; 15 bins of equal width"
    with pytest.warns(UserWarning, match="EarlyStopping monitors loss"):
        history = fitkit.fit(SURE, out=run, resume=True)
    assert found["loss"] == pytest.approx(history.best("loss")["val_loss"], rel=1e-5)  # the run's own, as it was
    assert "temperature" in stored(run)[2]  # a finished run that is resumed is left alone


def test_a_run_that_goes_on_drops_the_temperature(run):
    main(["calibrate", str(run)])
    with pytest.warns(UserWarning, match="EarlyStopping monitors loss"):
        fitkit.fit(SURE, out=run, resume=True, allow_change=["fit.epochs"], overrides={"fit.epochs": 41})
    assert "temperature" not in stored(run)[2]


@pytest.mark.parametrize("value", [0, -1.0, True, "2", None, [2.0], 10**400])
def test_a_card_with_another_temperature_than_a_positive_number_is_refused(value, sure):
    state, transform, card = stored(sure)
    check_card({**card, "temperature": 2}, transform, sure)
    with pytest.raises(CheckpointError, match="its card does not describe a model"):
        check_card({**card, "temperature": value}, transform, sure)


def test_more_bins_than_rows_a_split_that_is_not_there_and_an_unfinished_run(run, capsys, tmp_path):
    kept = (run / "model.safetensors").read_bytes()
    for arguments, code, message in (
        (["--bins", "720"], 2, "val: its 719 rows are fewer than 720 bins."),
        (["--bins", "0", "--split", "test"], 2, "--bins 0: take at least one."),
    ):
        assert main(["calibrate", str(run), *arguments]) == code
        assert message in capsys.readouterr().err
    fitkit.fit(
        {**SURE, "splits": {"stratified": {"val": 0.2}}, "callbacks": {}, "fit": {"epochs": 1}}, out=tmp_path / "b"
    )
    assert main(["calibrate", str(tmp_path / "b"), "--split", "test"]) == 2
    assert "this run has no test split, only train, val" in capsys.readouterr().err
    with locked(run):
        assert main(["calibrate", str(run)]) == 2
    assert "another process is running in this folder" in capsys.readouterr().err
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "status": "interrupted"}))
    assert main(["calibrate", str(run)]) == 2
    assert "this run is interrupted, not finished. Go on with it first" in capsys.readouterr().err
    assert (run / "model.safetensors").read_bytes() == kept and not (run / "test_looks.json").exists()
    assert main(["calibrate", str(tmp_path)]) == 4
    assert "this is not a run folder" in capsys.readouterr().err


def test_a_regression_has_nothing_to_calibrate_and_its_test_split_is_not_looked_at(tmp_path, capsys):
    spec = {"data": "diabetes", "model": {"mlp": [4]}, "splits": {"random": {"val": 0.2, "test": 0.2}}}
    fitkit.fit({**spec, "fit": {"epochs": 1}}, out=tmp_path / "run")
    assert main(["calibrate", str(tmp_path / "run"), "--split", "test"]) == 2
    assert "this model predicts values, not classes: there are no probabilities" in capsys.readouterr().err
    assert not (tmp_path / "run" / "test_looks.json").exists()


def test_the_reliability_diagram_shows_before_and_after_and_their_counts(run, capsys, tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.collections import PathCollection

    from fitkit.evaluation.calibration import calibrate

    found = calibrate(read_outcomes(run, command="a test"))
    figure = found.plot()
    diagram, counts = figure.axes
    points = [drawn for drawn in diagram.collections if isinstance(drawn, PathCollection)]
    for drawn, shown in zip(points, (found.reliability_before, found.reliability_after), strict=True):
        filled = [b for b in shown.bins if b.count]
        assert drawn.get_offsets().tolist() == [[b.confidence, b.accuracy] for b in filled]
    labels = [text.get_text() for text in diagram.get_legend().get_texts()]
    assert labels == [
        f"before (ECE {found.reliability_before.ece:.3f})",
        f"after (ECE {found.reliability_after.ece:.3f})",
    ]
    assert [sum(p.get_data().values) for p in counts.patches] == [719, 719]
    alone = pyplot.subplots()[1]
    assert found.plot(axes=alone) is alone.figure and alone.get_xlabel() == "confidence"
    pyplot.close("all")
    assert "<table>" in found._repr_html_()
