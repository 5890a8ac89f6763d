"""Commands meet a cross-validation: fit, check and plan know of its folds, evaluate takes them together."""

import csv
import json
from pathlib import Path

import pytest

import fitkit
from fitkit import run_folder
from fitkit.cli import main
from fitkit.errors import SpecError

IRIS = "name: iris\ndata: iris\nsplits: {kfold: 3}\nmodel: mlp\nfit: {epochs: 2, device: cpu}\n"


@pytest.fixture
def spec(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "iris.yaml").write_text(IRIS)
    return "iris.yaml"


def test_fit_prints_folds_and_their_table(spec, capsys):
    assert main(["fit", spec]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:4] for line in lines[:2]] == [["fold", "1", "epoch", "1/2"], ["fold", "1", "epoch", "2/2"]]
    assert lines[-1] == "runs: runs/iris" and any(line.split()[:1] == ["mean"] for line in lines)
    assert main(["fit", spec, "--out", "runs/iris", "--resume"]) == 0
    assert "runs/iris: all 3 folds are finished; nothing was done." in capsys.readouterr().err


@pytest.fixture
def run(spec, capsys):
    assert main(["fit", spec, "--quiet"]) == 0
    assert capsys.readouterr().out == "runs/iris\n"
    return Path("runs/iris")


def test_evaluate_takes_all_folds_together_each_row_once(run, capsys):
    assert main(["evaluate", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = list(csv.DictReader((run / "predictions.csv").read_text().splitlines()))
    hits = sum(row["target"] == row["prediction"] for row in rows) / len(rows)
    assert (found["samples"], len(rows)) == (150, 150)
    assert found["accuracy"] == pytest.approx(hits)
    losses = json.loads((run / "cross_validation.json").read_text())["columns"]["val_loss"]
    assert found["loss"] == pytest.approx(sum(losses) / 3, rel=1e-5)  # folds of one size
    assert main(["evaluate", str(run / "fold-2")]) == 0 and "val: 50 samples" in capsys.readouterr().out


def test_what_takes_one_run_asks_for_a_fold(run, capsys):
    message = "runs/iris: this is a cross-validation of 3 folds, each a run of its own: name one, such as"
    for command in (["evaluate", str(run), "iris.csv"], ["predict", str(run), "iris.csv", "--out", "p.csv"]):
        assert main(command) == 2
        assert capsys.readouterr().err.strip() == f"{message} runs/iris/fold-1."
    with pytest.raises(SpecError, match="this is a cross-validation of 3 folds"):
        fitkit.load(run)
    assert main(["evaluate", str(run), "--split", "test"]) == 2
    assert "all folds together have val alone: for test name one, such as" in capsys.readouterr().err


def test_an_unfinished_cross_validation_and_repeated_rows_are_not_evaluated_together(run, spec, capsys):
    assert main(["fit", spec, "splits.kfold={k: 3, repeats: 2}", "--out", "repeated", "--quiet"]) == 0
    assert main(["evaluate", "repeated"]) == 2
    assert "its rows are repeated, so they are not independent: name a fold" in capsys.readouterr().err
    summary = run / run_folder.SUMMARY
    summary.write_text(json.dumps({"status": "interrupted", "folds": 3}))
    assert main(["evaluate", str(run)]) == 2
    assert "this cross-validation is not finished: go on with it by --resume." in capsys.readouterr().err
    summary.write_text("{")
    assert main(["evaluate", str(run)]) == 4


def test_a_plain_run_and_a_cross_validation_do_not_go_on_in_each_others_folder(run, spec, capsys):
    assert main(["fit", spec, "splits=stratified", "--out", str(run), "--resume"]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main(["fit", spec, "--out", str(run / "fold-1"), "--resume"]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_fit_in_json_prints_one_object_an_epoch_and_the_result_last(spec, capsys):
    assert main(["fit", spec, "--json"]) == 0
    *epochs, result = map(json.loads, capsys.readouterr().out.splitlines())
    assert [(row["fold"], row["epoch"]) for row in epochs] == [(f, e) for f in (1, 2, 3) for e in (1, 2)]
    assert result == json.loads(Path("runs/iris/cross_validation.json").read_text())


def test_check_prints_the_folds(spec, capsys):
    assert main(["check", spec]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-4].split() == ["fold", "train", "val", "val", "setosa", "val", "versicolor", "val", "virginica"]
    assert [line.split()[:3] for line in lines[-3:]] == [[str(fold), "100", "50"] for fold in (1, 2, 3)]


def test_plan_multiplies_by_the_folds(spec):
    plan = fitkit.plan(spec)
    assert plan.folds == 3 and plan.seconds >= 3 * plan.steps * plan.step_seconds
    assert "in 3 folds at most" in str(plan) and fitkit.plan(spec, overrides=["splits.kfold.fold=1"]).folds == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "splits.kfold=1"], "splits.kfold.k: expects a whole number, at least 2, not 1."),
        (["fit", "splits.kfold=51"], 'splits.kfold: class "setosa" has only 50 rows, too few for 51 stratified folds'),
        (["fit", "splits={kfold: {k: 999, stratified: false}}"], "150 rows are too few for 999 folds"),
        (["fit", "splits={kfold: {groups: person}}"], 'the data has no column "person"'),
        (["fit", "splits=time_series"], 'splits.time_series: fold 1 would train on class "setosa" alone'),
        (["fit", "splits={TimeSeriesSplit: 5}"], 'Did you mean "time_series"?'),
        (["fit", "splits={kfold: {n_splits: 5}}"], 'Did you mean "k"?'),
        (["verify-resume"], "splits: this asks for 3 folds, and one run is proved: add splits.kfold.fold=1."),
    ],
)
def test_a_mistake_is_told_with_exit_code_2(arguments, message, spec, capsys):
    command, *overrides = arguments
    assert main([command, spec, *overrides]) == 2
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()
