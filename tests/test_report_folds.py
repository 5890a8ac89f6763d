"""The report on a cross-validation: all folds on one page."""

import json
import shutil
from pathlib import Path

import pytest
from report_page import Page

import fitkit
from fitkit import cli
from fitkit.after.run_outcomes import read_outcomes
from fitkit.evaluation.evaluation import evaluate

SPECS = Path(__file__).parent.parent / "specs"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folds") / "run"
    overrides = {"splits": {"kfold": {"k": 3}}, "fit.epochs": 2, "fit.compile": False}
    return folder, fitkit.fit(SPECS / "breast_cancer.yaml", out=folder, overrides=overrides)


@pytest.fixture
def copied(finished, tmp_path):
    return Path(shutil.copytree(finished[0], tmp_path / "run", ignore=shutil.ignore_patterns("*.html")))


def test_all_folds_are_on_one_page(finished):
    folder, found = finished
    path = fitkit.report(folder)
    page = Page(path.read_text("utf-8"))
    assert page.faults == [] and path == folder / "report.html"
    assert "could not be made" not in page.text and "was not evaluated" not in page.text
    [row] = [row for row in page.table("") if row[0] == "validation accuracy"]
    assert float(row[1]) == pytest.approx(found.mean["val_accuracy"], abs=6e-5)
    assert float(row[2]) == pytest.approx(found.std["val_accuracy"], abs=6e-5)
    assert [float(value) for value in row[4:]] == pytest.approx(found["val_accuracy"], abs=6e-5)
    whole = evaluate(read_outcomes(folder, command="a test"))
    [row] = [row for row in page.table("measure") if row[0] == "accuracy"]
    assert float(row[1]) == pytest.approx(whole["accuracy"], abs=6e-5)
    assert "569 validation samples" in page.text


def test_folds_that_are_not_all_finished_are_shown_as_far_as_they_are(copied):
    (copied / "cross_validation.json").unlink()
    (copied / "summary.json").write_text('{"status": "interrupted", "folds": 3}')
    shutil.rmtree(copied / "fold-3")
    with pytest.warns(UserWarning, match="not finished: go on with it"):
        page = Page(fitkit.report(copied).read_text("utf-8"))
    assert page.faults == [] and "This run was interrupted" in page.text and "2 folds have begun" in page.text


def test_a_damaged_file_of_all_folds_is_one_message(copied, capsys):
    for text in ('{"columns": {"loss": [1]}}', "[1, 2]", '{"a": ['):
        (copied / "cross_validation.json").write_text(text)
        assert cli.main(["report", str(copied)]) == 4
        said = capsys.readouterr().err
        assert "cross_validation.json: is damaged" in said and said.count("\n") == 1
    assert not (copied / "report.html").exists()


def test_a_cross_validation_is_not_compared_with_others(finished, capsys, tmp_path):
    folder, _ = finished
    words = ["report", str(folder), str(folder / "fold-1"), "--out", str(tmp_path / "x.html")]
    assert cli.main(words) == 2
    assert "each a run of its own: name one" in capsys.readouterr().err


def test_a_fold_has_a_report_of_its_own(finished):
    page = Page(fitkit.report(finished[0] / "fold-2").read_text("utf-8"))
    assert page.faults == [] and json.loads((finished[0] / "fold-2/env.json").read_text())["torch"] in page.text
