"""The report: one file that holds what the run folder holds, escapes what it is given, and overwrites nothing else."""

import json
import re
import shutil
from pathlib import Path

import matplotlib
import numpy
import pytest
import torch
from report_page import Page
from sklearn import metrics as theirs

import fitkit
from fitkit import cli
from fitkit.after.calibrate import calibrate_run
from fitkit.after.report import figures
from fitkit.after.report.page import brief, tag
from fitkit.after.run_outcomes import read_outcomes
from fitkit.evaluation import intervals
from fitkit.evaluation.calibration import ece
from fitkit.evaluation.evaluation import evaluate
from fitkit.evaluation.worst import worst

SPECS = Path(__file__).parent.parent / "specs"
HOSTILE = [
    "<script>alert(1)</script>",
    "\"quoted' & <b>",
    "$x^2$ \\frac",
    "\u202egnirts\u200f",
    "x" * 3000,
    "]]>-->",
    "Ünïcødé 漢字",
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a function from the name of a gallery spec to a run folder after three epochs."""
    folder = tmp_path_factory.mktemp("runs")

    def run(name):
        if not (folder / name).exists():
            overrides = {"fit.epochs": 3, "fit.compile": False}
            fitkit.fit(SPECS / f"{name}.yaml", out=folder / name, overrides=overrides)
        return folder / name

    return run


@pytest.fixture
def digits(runs, tmp_path):
    """Return a copy of the digits run, for a test to change."""
    return Path(shutil.copytree(runs("digits"), tmp_path / "digits", ignore=shutil.ignore_patterns("*.html")))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Return a run whose classes, columns and folder have names that a page must not take for its own."""
    folder = tmp_path_factory.mktemp("hostile") / "<b>&\"run'"
    folder.mkdir()
    lines = [f'"{HOSTILE[0]}","size ""<i>",kind']
    for row in range(140):
        quoted = HOSTILE[row % 7].replace('"', '""')
        lines.append(f'{row % 5},{row % 7}.{row % 3},"{quoted}"')
    (folder / "data.csv").write_text("\n".join(lines), encoding="utf-8")
    spec = {"data": {"csv": {"path": "data.csv", "target": "kind"}}, "model": {"mlp": {"hidden": [4]}}}
    (folder / "spec.yaml").write_text(
        json.dumps(spec | {"fit": {"epochs": 2, "compile": False, "check_data": False}}), encoding="utf-8"
    )
    fitkit.fit(folder / "spec.yaml", out=folder / "run")
    return folder


def page_of(*given, **more):
    path = fitkit.report(*given, **more)
    return Page(path.read_text("utf-8"))


def command(capsys, *words):
    code = cli.main(["report", *map(str, words)])
    return code, capsys.readouterr()


@pytest.mark.parametrize("name", ["digits", "breast_cancer", "diabetes", "csv_tabular", "iris"])
def test_a_report_is_one_sound_page_without_scripts(name, runs, monkeypatch):
    monkeypatch.chdir(SPECS.parent)
    path = fitkit.report(runs(name))
    page = Page(path.read_text("utf-8"))
    assert page.faults == []
    assert path == runs(name) / "report.html" and path.stat().st_size < 500_000
    assert "could not be made" not in page.text and "was not evaluated" not in page.text
    assert len(page.drawings) >= 4 and page.headings[0] == name
    assert "url(" not in "".join(page.styles) and "@import" not in "".join(page.styles)
    assert page.policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_the_page_holds_the_numbers_of_the_evaluation_and_scikit_learns_confusions(runs):
    page, found = page_of(runs("digits")), read_outcomes(runs("digits"), command="a test")
    for name, estimate in evaluate(found).estimates.items():
        [row] = [row for row in page.table("measure") if row[0] == name.replace("_", " ")]
        low, _, high = row[2].partition(" to ")
        shown = [float(row[1]), float(low), float(high)]
        assert shown == pytest.approx([estimate.value, estimate.low, estimate.high], abs=6e-5)
    guess, y = found.predicted.numpy(), found.targets.numpy()
    matrix = [[int(cell) for cell in row[1:]] for row in page.table("prediction →target ↓")]
    assert matrix == theirs.confusion_matrix(y, guess).tolist()
    f1 = [float(row[3]) for row in page.table("class")]
    assert f1 == pytest.approx(theirs.f1_score(y, guess, average=None).tolist(), abs=6e-5)


def test_a_curve_runs_through_the_values_of_the_history():
    values = [2.0, 1.1, 0.7, 0.65, 0.9]
    drawing = figures.curves("c", "loss", {"validation": list(enumerate(values, 1))}, "words", best=4, log=False)
    drawn = [re.findall(r"[ML] ([\d.]+) ([\d.]+)", path) for path in re.findall(r' d="([^"]+)"', drawing)]
    [points] = [numpy.array(found, float) for found in drawn if len(found) == len(values)]
    assert numpy.corrcoef(points[:, 0], range(1, 6))[0, 1] == pytest.approx(1, abs=1e-6)
    assert numpy.corrcoef(points[:, 1], values)[0, 1] == pytest.approx(-1, abs=1e-4)  # y grows downwards


def test_the_trend_is_the_running_median():
    noisy = [5.0, 4.0, 9.0, 3.0, 2.5, 2.0, 0.1, 1.5, 1.4, 1.3]
    assert figures.trend(noisy) == [5.0, 5.0, 4.0, 3.0, 2.5, 2.0, 1.5, 1.4, 1.4, 1.3]
    for width, kept in ((5, 0), (6, 6)):  # of 100 values the median is taken over 11
        assert sum(figures.trend([0.0] * 50 + [1.0] * width + [0.0] * (50 - width))) == kept


def test_figures_take_the_colours_of_the_page_and_leave_matplotlib_as_it_was(runs, monkeypatch):
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 17.0)
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "path")
    before = {**matplotlib.rcParams.copy(), "backend": None}  # which is looked for when it is read
    text = fitkit.report(runs("diabetes")).read_text("utf-8")
    assert {**matplotlib.rcParams.copy(), "backend": None} == before
    drawings = "".join(re.findall(r"<svg.*?</svg>", text, re.S))
    assert "font-size: 8.8px" in drawings and "17" not in re.findall(r"font-size: ([0-9]+)", drawings)
    assert "var(--accent)" in drawings and "var(--ink)" in drawings
    assert not re.search(r"#[0-9a-fA-F]{6}", drawings), "a colour that no theme changes"
    assert "<style" not in drawings and "date" not in drawings.lower()


def test_the_same_run_gives_the_same_page(runs, tmp_path):
    texts = [fitkit.report(runs("iris"), tmp_path / f"{name}.html").read_text("utf-8") for name in "ab"]
    assert len({re.sub(r"on \d{4}-.{21}", "", text) for text in texts}) == 1


def test_what_data_and_paths_say_is_escaped(hostile):
    page = page_of(hostile / "run", root=hostile)
    assert page.faults == []
    assert "was not evaluated" not in page.text and "could not be made" not in page.text
    names = [row[0] for row in page.table("class")]
    assert HOSTILE[0] in names and HOSTILE[1] in names and HOSTILE[2] in names and HOSTILE[6] in names
    assert "\\u202egnirts\\u200f" in names and max(map(len, names)) < 40
    raw = fitkit.report(hostile / "run", root=hostile).read_text("utf-8")
    assert "<script" not in raw and "\u202e" not in raw and "\u200f" not in raw and "x" * 400 not in raw
    assert str(hostile / "run") in page.text


def test_a_thousand_classes_fit_on_a_page(tmp_path, monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 100)
    y = torch.arange(2000) % 1000
    x = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0))
    numpy.savez(tmp_path / "many.npz", x=x.numpy(), y=y.numpy())
    spec = {"data": {"npz": str(tmp_path / "many.npz")}, "model": {"mlp": {"hidden": [4]}}}
    spec["fit"] = {"epochs": 1, "compile": False, "batch_size": 512, "check_data": False}
    fitkit.fit(spec, out=tmp_path / "run", overrides={"splits": {"random": {"val": 0.1}}})
    path = fitkit.report(tmp_path / "run", root=tmp_path)
    page = Page(path.read_text("utf-8"))
    assert page.faults == [] and path.stat().st_size < 300_000
    assert len(page.table("class")) == 50 and len(page.table("target")) == 50
    assert "was not evaluated" not in page.text


def test_a_run_on_arrays_has_all_that_its_folder_holds_and_says_what_is_missing(tmp_path):
    model = fitkit.Model(torch.nn.Linear(3, 2))
    x, y = torch.randn(60, 3), torch.arange(60) % 2
    model.fit({"fit": {"epochs": 2, "compile": False}}, data=(x, y), out=tmp_path / "run")
    with pytest.warns(UserWarning, match="no evaluation: .*given in Python"):
        page = page_of(tmp_path / "run")
    assert page.faults == [] and "was not evaluated for this report" in page.text and "given in Python" in page.text
    assert {"Training", "Time", "Reproduce", "Spec"} <= set(page.headings) and "Confusions" not in page.headings
    assert page.text.lower().count("validation accuracy") >= 2


def test_a_run_under_way_shows_the_epochs_so_far(digits):
    (digits / "history.json").unlink()
    (digits / "summary.json").write_text('{"status": "running"}')
    rows = (digits / "history.csv").read_text().splitlines()
    (digits / "history.csv").write_text("\n".join(rows[:3]) + "\n")
    page = page_of(digits)
    assert page.faults == [] and "still going on, or was killed" in page.text
    assert "of 2" in page.text and "could not be made" not in page.text
    for name in ("history.csv", "model.safetensors"):
        (digits / name).unlink()
    with pytest.warns(UserWarning, match="no such file"):
        page = page_of(digits)
    assert page.faults == [] and "No epoch has ended yet" in page.text


@pytest.mark.parametrize("status", ["interrupted", "failed"])
def test_a_run_that_did_not_finish_is_marked(status, digits):
    (digits / "summary.json").write_text(json.dumps({"status": status}))
    page = page_of(digits)
    assert page.faults == [] and f"This run {'was interrupted' if status == 'interrupted' else 'failed'}" in page.text


def test_the_report_begins_with_the_diagnosis(digits):
    said = fitkit.diagnose(digits)
    page = page_of(digits)
    assert said.verdict[1:] in page.text and page.headings[:2] == ["digits", "Diagnosis"]
    assert all(text in page.text for text in said.cannot_tell) and said.cannot_tell
    columns = json.loads((digits / "history.json").read_text())
    columns["columns"] = {name: [*values[:1], *values] * 4 for name, values in columns["columns"].items()}
    columns["columns"]["val_loss"] = [0.5, 0.3, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4]
    columns["columns"]["loss"] = [2.0 * 0.7**epoch for epoch in range(16)]
    (digits / "history.json").write_text(json.dumps(columns))
    [worst, *_] = fitkit.diagnose(digits).findings
    page = page_of(digits)
    assert worst.name == "overfitting" and worst.text in page.text and worst.advice in page.text
    assert "fitkit fit SPEC" in page.text and page.faults == []


def test_the_check_of_the_data_is_shown(digits):
    counts = {part: {"zero <0>": n, "one": 2 * n} for part, n in (("train", 1000), ("val", 20), ("test", 30))}
    finding = {"name": "duplicates", "level": "warning", "sentence": "3 rows <of> val", "advice": "Remove them."}
    check = {"parts": {"train": 3000, "val": 60, "test": None}, "classes": counts, "findings": [finding]}
    (digits / "data_check.json").write_text(
        json.dumps(check | {"not_checked": {"columns": "too large"}, "seconds": 0.1})
    )
    page = page_of(digits)
    assert page.faults == [] and "3 rows <of> val. Remove them." in page.text and "columns: too large" in page.text
    assert page.table("")[:2] == [["samples", "3,000", "60", "unknown"], ["of class zero <0>", "1,000", "20", "30"]]
    (digits / "data_check.json").write_text(json.dumps(check | {"findings": 7}))
    with pytest.warns(UserWarning, match="the section Data could not be made"):
        page = page_of(digits)
    assert page.faults == [] and "This part could not be made" in page.text and "Spec" in page.headings


def test_the_test_split_is_looked_at_only_on_request_and_noted(digits, capsys):
    assert "was not looked at yet" in page_of(digits).text
    assert not (digits / "test_looks.json").exists()
    code, said = command(capsys, digits, "--split", "test")
    assert code == 0 and "for the first time" in said.err
    code, said = command(capsys, digits, "--split", "test")
    assert code == 0 and "2 times now (report --split test" in said.err
    page = page_of(digits)
    assert "looked at 2 times" in page.text and [row[1] for row in page.table("when")] == ["report --split test"] * 2


def test_several_runs_are_compared(runs, tmp_path, capsys, monkeypatch):
    other = tmp_path / "other"
    fitkit.fit(SPECS / "digits.yaml", out=other, overrides={"fit.epochs": 2, "fit.compile": False, "seed": 3})
    monkeypatch.chdir(tmp_path)
    code, said = command(capsys, runs("digits"), other)
    assert code == 0 and said.out.startswith("wrote comparison.html (")
    page = Page((tmp_path / "comparison.html").read_text("utf-8"))
    assert page.faults == [] and "could not be made" not in page.text
    differing = {row[0]: row[1:] for row in page.table("key of the resolved spec")}
    assert differing == {"seed": ["0", "3"], "fit.epochs": ["3", "2"]}
    found = [evaluate(read_outcomes(folder, command="a test")) for folder in (runs("digits"), other)]
    [row] = [row for row in page.table("", 0) if row[0] == "accuracy"]
    assert [float(cell[:6]) for cell in row[1:]] == pytest.approx([one["accuracy"] for one in found], abs=6e-5)
    assert "do not have the same validation samples" in page.text  # another seed, another split
    said = fitkit.compare(runs("digits"), other)
    assert said.verdict in page.text
    [row] = [row for row in page.table("", 1) if row[0] == "accuracy, other"]
    assert float(row[1]) == pytest.approx(said.metrics["accuracy"][0].difference, abs=6e-5)
    assert row[-1] == said.metrics["accuracy"][0].outcome


def test_runs_of_other_models_differ_as_a_whole(runs):
    with pytest.warns(UserWarning, match="not tested against each other: .* Give runs of one task"):
        page = page_of([runs("digits"), runs("iris")], runs("digits") / "comparison.html", root=SPECS)
    assert "The runs are not tested against each other" in page.text
    assert page.faults == []
    rows = {row[0]: row[1:] for row in page.table("key of the resolved spec")}
    assert rows["data"][1].startswith("{iris:") and rows["data"][0].startswith("{digits:")
    assert not any(key.startswith("data.") for key in rows)


def test_only_a_report_is_overwritten(digits, capsys):
    out = digits / "report.html"
    out.write_text("<!doctype html>\nmine")
    code, said = command(capsys, digits)
    assert code == 2 and "no report of fitkit, so it is not overwritten" in said.err
    assert out.read_text() == "<!doctype html>\nmine"
    out.unlink()
    assert command(capsys, digits)[0] == 0 and command(capsys, digits)[0] == 0


BAD = [
    (["--out", "x.txt"], "give a name that ends in .html"),
    (["--out", "none/x.html"], "there is no such folder"),
    (["--out", "link.html"], "no report of fitkit"),
    (["--out", "folder.html"], "no report of fitkit"),
]


@pytest.mark.parametrize(("words", "message"), BAD)
def test_a_file_that_cannot_be_written_is_a_mistake_of_the_command(words, message, digits, capsys, monkeypatch):
    monkeypatch.chdir(digits.parent)
    Path("link.html").symlink_to("target.html")
    Path("folder.html").mkdir()
    code, said = command(capsys, digits, *words)
    assert code == 2 and message in said.err and said.err.count("\n") == 1
    assert not (digits / "report.html").exists() and not Path("target.html").exists()


@pytest.mark.parametrize(
    "name", ["summary.json", "history.json", "env.json", "resolved.yaml", "model.safetensors", "test_looks.json"]
)
def test_a_damaged_run_is_one_message(name, digits, capsys):
    (digits / name).write_text('{"a": [')
    code, said = command(capsys, digits)
    assert code == 4 and name in said.err and said.err.count("\n") == 1 and said.out == ""
    assert not (digits / "report.html").exists()


def test_a_folder_of_something_else_is_one_message(tmp_path, capsys):
    code, said = command(capsys, tmp_path)
    assert code == 4 and said.err == f"{tmp_path}: this is not a run folder: there is no resolved.yaml in it.\n"
    code, said = command(capsys, tmp_path / "nothing")
    assert code == 2 and "there is no such run folder" in said.err


def test_a_split_that_the_run_does_not_have_is_one_message(tmp_path, capsys):
    spec = {"data": "iris", "model": {"mlp": {"hidden": [4]}}, "splits": {"random": {"val": 0.2}}}
    fitkit.fit(spec | {"fit": {"epochs": 1, "compile": False}}, out=tmp_path / "run")
    code, said = command(capsys, tmp_path / "run", "--split", "test")
    assert code == 2 and "has no test split" in said.err and not (tmp_path / "run" / "report.html").exists()


def test_without_matplotlib_the_message_names_the_extra(digits, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    code, said = command(capsys, digits)
    assert code == 2 and 'pip install "fitkit[plot]"' in said.err


def test_an_element_escapes_what_it_is_given():
    made = tag("p", "a < b & c", None, [tag("b", "\x07")], class_='"quoted"', hidden=True, title=None)
    assert made == '<p class="&quot;quoted&quot;" hidden>a &lt; b &amp; c<b>\\x07</b></p>'


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.98148, "0.9815"),
        (1.0, "1.0000"),
        (39.7085, "39.71"),
        (2433.2, "2433"),
        (25118.4, "25,118"),
        (1.5e-7, "1.5e-07"),
    ],
)
def test_a_number_has_about_four_digits(value, text):
    assert brief(value) == text and brief(float("nan")) == "-"


def test_the_reliability_diagram_and_the_worst_examples_are_those_of_the_evaluation(digits):
    page, found = page_of(digits), read_outcomes(digits, command="a test")
    error = ece(found)
    assert f"(ECE) is {brief(error.value)}, 95 % interval {brief(error.low)} to {brief(error.high)}" in page.text
    expected = worst(found, 12)
    assert page.images == [f"Row {e.row}: target {e.target}, prediction {e.prediction}" for e in expected]
    calibrate_run(digits)
    page = page_of(digits)
    assert page.faults == [] and f"without it the ECE is {brief(error.value)}" in page.text


def test_the_worst_rows_of_a_table_are_shown_with_their_cells(runs, monkeypatch):
    monkeypatch.chdir(SPECS.parent)
    page, found = page_of(runs("csv_tabular")), worst(read_outcomes(runs("csv_tabular"), command="a test"), 12)
    rows = page.table("row")
    assert [int(row[0]) for row in rows] == [example.row for example in found]
    assert all("bill_length_mm" in row[-1] for row in rows)


def test_odd_values_in_a_run_folder_do_not_take_the_page_down(digits):
    odd = {"started": 5, "command": ["<script>", {"a": 1}], "changes": 7, "data_val": {"<i>": None}, "<b>": "\u202e"}
    (digits / "env.json").write_text(json.dumps(odd))
    (digits / "summary.json").write_text(json.dumps({"status": "finished", "steps": "<x>", "stopped": []}))
    history = json.loads((digits / "history.json").read_text())
    for start in ("", "val_"):
        history["columns"][f"{start}<script>&$x^2$"] = history["columns"].pop(f"{start}accuracy")
    history |= {"directions": {"loss": "min", "val_loss": "min"}, "stopped": "</p><script>", "spec": {"fit": 7, "optimizer": "</b>"}}
    (digits / "history.json").write_text(json.dumps(history))
    with pytest.warns(UserWarning, match="could not be made"):
        path = fitkit.report(digits)
    page = Page(path.read_text("utf-8"))
    assert page.faults == [] and "<script" not in path.read_text("utf-8")
    assert "<script>&$x^2$" in page.text and "This part could not be made" in page.text
    assert {"Training", "Evaluation", "Confusions", "Data", "Spec"} <= set(page.headings)
