"""Runs that cannot be compared: one message each, its exit code, and nothing written."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import fitkit
from fitkit.cli import main

SPECS = Path(__file__).parent.parent / "specs"
ROWS = [f"{i},{i * i % 7},{'ab'[i % 2]}" for i in range(40)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a folder with small runs, and a CSV with its spec."""
    parent = tmp_path_factory.mktemp("runs")
    (parent / "table.csv").write_text("\n".join(["one,two,kind", *ROWS]))

    def fit(name, spec, **overrides):
        fitkit.fit(spec, out=parent / name, overrides={"fit.epochs": 1, **overrides})

    fit("iris", SPECS / "iris.yaml")
    fit("iris-1", SPECS / "iris.yaml", seed=1)
    fit("wide", SPECS / "iris.yaml", model={"mlp": [64]})
    fit("diabetes", SPECS / "diabetes.yaml")
    fit("digits", SPECS / "digits.yaml")
    fit("noval", SPECS / "iris.yaml", splits={"random": {"val": 0.0}})
    (parent / "table.yaml").write_text("data: {csv: {path: table.csv, target: kind}}\nmodel: {mlp: [4]}\n")
    fit("folds", SPECS / "iris.yaml", splits={"kfold": {"k": 2}})
    fit("cancer", SPECS / "breast_cancer.yaml")
    fit("cancer-1", SPECS / "breast_cancer.yaml", seed=1)
    torch.manual_seed(0)
    x, y = torch.randn(20, 4), torch.arange(20) % 2
    fitkit.Model(torch.nn.Linear(4, 2)).fit({"fit": {"epochs": 1}}, data=(x, y), out=parent / "python")
    return parent


@pytest.fixture
def runs(made, tmp_path, monkeypatch):
    """Work in a copy of the runs, that a test may damage."""
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def fit_table(name, seed=0, path="table.csv"):
    overrides = {"fit.epochs": 1, "fit.check_data": False, "seed": seed, "data.csv.path": path}
    fitkit.fit("table.yaml", out=name, overrides=overrides)


def said(capsys, *words):
    """Return the exit code and the one line on standard error."""
    code = main(["compare", *words])
    out, error = capsys.readouterr()
    assert out == ""
    assert len(error.splitlines()) == 1, error
    return code, error.strip()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["iris"], "give two runs or more: fitkit compare RUN RUN."),
        (["iris", "iris/"], "iris: this run is named twice (as iris before). Compare two runs."),
        (["iris", "./iris"], "iris: this run is named twice (as iris before). Compare two runs."),
        (["iris", "iriss"], "iriss: there is no such run folder."),
        (["iris", "diabetes"], "iris predicts classes and diabetes predicts values: there is nothing to compare."),
        (["iris", "cancer"], 'iris has the classes "setosa", "versicolor", "virginica", and cancer "malignant", '),
        (["iris", "digits"], "Give runs of one task."),
        (["iris", "noval"], "noval: this run has no val split, only train."),
        (["iris", "iris-1", "--split", "test"], "iris: this run has no test split, only train, val."),
        (
            ["iris", "iris-1", "--metric", "acuracy"],
            "--metric acuracy: the runs have no such metric in common. Did you",
        ),
        (["iris", "iris-1", "--metric", "val_loss"], "They have loss, accuracy"),
        (["python", "iris"], "python: its model or data was given in Python, so that no command can read it again."),
        (["iris", "iris-1", "--against", "wide"], "wide: one seed does not tell how far another would move it."),
        (["iris", "folds"], "folds: this is a cross-validation of 2 folds, each a run of its own: name one, such as "),
        (["iris", "wide", "--against", "cancer", "cancer-1"], "cancer has the classes"),
        (["iris", "iris-1", "--against", "wide", "iris"], "this run is named twice"),
    ],
)
def test_a_mistake_in_the_command_is_one_message_and_exit_2(runs, capsys, words, message):
    code, error = said(capsys, *words)
    assert code == 2 and message in error


def test_runs_on_one_side_may_differ_in_their_seed_alone(runs, capsys):
    shutil.copytree("iris", "twin")
    code, error = said(capsys, "iris", "wide", "--against", "iris-1", "twin")
    assert code == 2
    assert error.startswith("iris, wide: differ in model.mlp.hidden, and runs on one side of --against may differ")
    shutil.copytree("wide", "wide-twin")
    code, error = said(capsys, "iris", "iris-1", "--against", "wide", "wide-twin")
    assert code == 2 and error == "wide and wide-twin have the same seed, 0. Leave one of them out."


@pytest.mark.parametrize("status", ["interrupted", "failed", "running"])
def test_an_unfinished_run_is_refused(runs, capsys, status):
    path = runs / "iris-1" / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"status": status}))
    code, error = said(capsys, "iris", "iris-1")
    assert code == 4 and error.startswith(f"iris-1: this run is not finished but {status}")
    assert error.endswith("Go on with it: fitkit fit SPEC --out iris-1 --resume.")


@pytest.mark.parametrize("file", ["env.json", "summary.json", "resolved.yaml", "model.safetensors"])
def test_a_damaged_or_missing_file_is_named(runs, capsys, file):
    (runs / "iris-1" / file).write_bytes(b"\x00{")
    code, error = said(capsys, "iris", "iris-1")
    assert code == 4 and error.startswith(f"iris-1/{file}: ")
    (runs / "iris-1" / file).unlink()
    code, error = said(capsys, "iris", "iris-1")
    assert code == 4 and error.startswith("iris-1")


def test_a_folder_without_a_run_is_refused(runs, capsys):
    (runs / "empty").mkdir()
    code, error = said(capsys, "iris", "empty")
    assert code == 4 and error == "empty: this is not a run folder: there is no resolved.yaml in it."


def test_links_in_a_run_folder_are_not_followed(runs, capsys):
    (runs / "iris-1" / "env.json").unlink()
    (runs / "iris-1" / "env.json").symlink_to(runs / "iris" / "env.json")
    code, error = said(capsys, "iris", "iris-1")
    assert code == 4 and "a run folder holds plain files and folders only" in error


def test_data_that_changed_since_the_runs_are_noticed(runs, capsys):
    fit_table("table")
    fit_table("table-1", seed=1)
    assert main(["compare", "table", "table-1"]) == 0
    capsys.readouterr()
    (runs / "table.csv").write_text("\n".join(["one,two,kind", *ROWS[:-1], "39,99,b"]))
    code, error = said(capsys, "table", "table-1")
    assert code == 2 and error.startswith("table: its data, or how it is split, is not what it was trained with: ")


def test_runs_of_other_rows_are_compared_as_two_samples(runs, capsys):
    (runs / "more.csv").write_text("\n".join(["one,two,kind", *ROWS, "40,1,b", "41,1,b"]))
    fit_table("table")
    fit_table("more", path="more.csv")
    assert main(["compare", "table", "more"]) == 0
    text = capsys.readouterr().out
    assert "not measured on the val rows of table: more (other data)." in text and "Newcombe, two samples" in text


def test_from_python_the_mistakes_are_the_same_errors(runs):
    with pytest.raises(fitkit.SpecError, match="give two runs or more"):
        fitkit.compare("iris")
    with pytest.raises(fitkit.SpecError, match="folds: this is a cross-validation of 2 folds"):
        fitkit.compare("iris", "folds")
    with pytest.raises(fitkit.CheckpointError, match="nowhere: this is not a run folder"):
        fitkit.compare("iris", "nowhere")


def test_a_refused_command_leaves_the_test_ledger_alone(runs, capsys):
    code, error = said(capsys, "digits", "diabetes", "--split", "test")
    assert code == 2
    shutil.copytree("digits", "other")
    code, error = said(capsys, "digits", "other", "--split", "test", "--metric", "acc")
    assert code == 2 and error.startswith("--metric acc: the runs have no such metric in common.")
    assert not (runs / "digits" / "test_looks.json").exists()


def test_a_hostile_number_in_the_summary_is_left_out(runs):
    path = runs / "iris-1" / "summary.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"epochs": "\x1b[31m", "seconds": [1], "best_epoch": True})
    )
    found = fitkit.compare("iris", "iris-1")
    assert (found.runs[1].epochs, found.runs[1].seconds, found.runs[1].best_epoch) == (None, None, None)
    assert "\x1b" not in str(found)
