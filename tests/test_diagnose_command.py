"""`fitkit diagnose RUN` and `fitkit.diagnose`: what they print, and what is said of folders that cannot be read."""

import json
import shutil

import pytest

import fitkit
from fitkit.cli import main
from fitkit.history import History

SPEC = """\
data: digits
splits: {stratified: {val: 0.2}}
model: [{Linear: outputs}]
loss: {cross_entropy: {class_weight: [1, 1, 1, 1, 1, 1, 1, 1.0e-4, 1, 1]}}
optimizer: {AdamW: 5.0e-3}
fit: {epochs: 5, device: cpu, compile: false, precision: fp32}
"""
TOO_FAST = ["optimizer={SGD: {lr: 1.0e+30}}", "model={mlp: [8, 8]}", "fit.epochs=3"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a spec and its finished run."""
    folder = tmp_path_factory.mktemp("diagnose")
    (folder / "spec.yaml").write_text(SPEC)
    fitkit.fit(folder / "spec.yaml", out=folder / "run")
    return folder


@pytest.fixture
def run(made, tmp_path, monkeypatch):
    """A copy of the finished run, in the working directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made / "run", tmp_path / "run")
    shutil.copy(made / "spec.yaml", tmp_path)
    return tmp_path / "run"


def test_the_verdict_comes_first_and_its_patch_is_a_command_that_helps(run, capsys):
    assert main(["diagnose", "run"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith('class never predicted: the model predicts a class never: "7" (36 rows).') and err == ""
    assert "Try: fitkit fit SPEC loss.cross_entropy.class_weight=balanced" in out
    assert main(["fit", "spec.yaml", "loss.cross_entropy.class_weight=balanced", "--out", "again", "--quiet"]) == 0
    assert "class_never_predicted" not in fitkit.diagnose("again").names


def test_json_is_one_object_that_says_the_same(run, capsys):
    assert main(["diagnose", "run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == fitkit.diagnose(run).to_json()
    assert set(found) == {"verdict", "healthy", "findings", "cannot_tell"} and found["healthy"] is False
    assert set(found["findings"][0]) == {"name", "severity", "text", "advice", "patch"}


def test_a_history_alone_says_what_needs_no_predictions(run):
    history = History.from_json((run / "history.json").read_text())
    assert fitkit.diagnose(history) == history.diagnose()
    assert "class_never_predicted" not in history.diagnose().names


def test_every_fit_on_the_command_line_ends_with_one_line_of_it(run, capsys):
    assert main(["fit", "spec.yaml", "fit.epochs=2", "--out", "short"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("diagnosis: too early to tell: ")] == lines[-2:-1]
    for option in ("--json", "--quiet"):
        assert main(["fit", "spec.yaml", "fit.epochs=2", "--out", f"short{option}", option]) == 0
        assert "diagnosis" not in capsys.readouterr().out


def test_a_run_that_diverged_says_when_and_with_which_learning_rate(run, capsys):
    assert main(["fit", "spec.yaml", *TOO_FAST, "--out", "diverged", "--quiet"]) == 3
    capsys.readouterr()
    assert main(["diagnose", "diverged"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("divergence: training diverged after 0 whole epochs (lr 1e+30): ")
    assert "in epoch 1" in out and "Try: fitkit fit SPEC optimizer.SGD.lr=1e+29" in out


def test_a_failed_run_of_an_earlier_version_is_failed_too(run):
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"status": "failed"}))
    history = History.from_json((run / "history.json").read_text())
    history.stopped = ""
    (run / "history.json").write_text(history.to_json())
    first = fitkit.diagnose(run).findings[0]
    assert first.name == "failure" and "its error was not noted" in first.text


def test_the_error_of_a_fit_without_a_folder_holds_a_history_that_knows_it(run):
    with pytest.raises(fitkit.TrainingError) as caught:
        fitkit.fit("spec.yaml", overrides=TOO_FAST)
    assert caught.value.history.diagnose().names == ("divergence",)


def test_data_that_is_gone_leaves_the_history_and_says_what_cannot_be_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [f"{i % 7},{i % 3},{'ab'[i % 2]}" for i in range(60)]
    (tmp_path / "table.csv").write_text("p,q,kind\n" + "\n".join(rows) + "\n")
    spec = {"data": {"csv": "table.csv"}, "model": {"mlp": [4]}, "fit": {"epochs": 2, "device": "cpu"}}
    fitkit.fit(spec, out="run")
    (tmp_path / "table.csv").unlink()
    assert main(["diagnose", "run"]) == 0
    assert "cannot tell: whether some class is never predicted" in capsys.readouterr().out


def test_a_model_of_the_users_own_leaves_the_history(tmp_path):
    import torch

    data = (torch.randn(40, 3), torch.arange(40) % 2)
    fitkit.Model(torch.nn.Linear(3, 2)).fit({"fit": {"epochs": 1, "device": "cpu"}}, data=data, out=tmp_path / "run")
    assert "given in Python" in fitkit.diagnose(tmp_path / "run").cannot_tell[-1]


def test_a_cross_validation_is_diagnosed_fold_by_fold(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    spec = {"data": "iris", "splits": {"kfold": {"k": 2}}, "model": {"mlp": [4]}, "fit": {"epochs": 2, "device": "cpu"}}
    fitkit.fit(spec, out="folds")
    assert main(["diagnose", "folds"]) == 2
    said = capsys.readouterr().err
    assert "name one, such as folds" in said
    with pytest.raises(fitkit.SpecError, match="every fold of a cross-validation has a diagnosis: name one"):
        fitkit.diagnose("folds")
    one = said.strip().rstrip(".").rpartition(" ")[2]
    assert main(["diagnose", one]) == 0
    assert "4 epochs are needed, and there are 2." in capsys.readouterr().out


def gone(run, *names):
    """Remove files of a run, and its history as a whole."""
    for name in (*names, "history"):
        for path in run.glob(f"{name}.*"):
            if path.name != "history.csv" or "history" in names:
                path.unlink()


def bad_row(run):
    (run / "history.csv").write_text("epoch,loss\n1,many\n")


BAD = {
    "no run": (lambda run: shutil.rmtree(run), 2, "there is no such run folder"),
    "another folder": (lambda run: (run / "resolved.yaml").unlink(), 4, "this is not a run folder"),
    "unfinished": (lambda run: (run / "summary.json").write_text('{"status": "running"}'), 4, "still going on, or was"),
    "killed at once": (lambda run: gone(run, "summary", "history"), 4, "was killed: there is no history to read yet"),
    "rows without columns": (lambda run: (gone(run, "summary"), (run / "history.csv").write_text("x\n")), 4, "damaged"),
    "rows without numbers": (lambda run: (gone(run, "summary"), bad_row(run)), 4, "history.csv: is damaged: could not"),
    "no history": (lambda run: (run / "history.json").unlink(), 4, "history.json: cannot be read"),
    "half a history": (lambda run: (run / "history.json").write_text('{"format": 1'), 4, "not the JSON of a History"),
    "foreign JSON": (lambda run: (run / "history.json").write_text('{"model": "gpt"}'), 4, "not the JSON of a History"),
    "another version": (lambda run: (run / "history.json").write_text('{"format": 9}'), 4, "its format is 9"),
    "foreign summary": (lambda run: (run / "summary.json").write_text("[1]"), 4, "does not say how the run stands"),
    "a link": (lambda run: (run / "history.json").unlink() or (run / "history.json").symlink_to("/etc/hosts"), 4, ""),
}


def test_a_run_that_was_interrupted_says_after_how_many_of_its_epochs(run, capsys):
    document = json.loads((run / "history.json").read_text())
    document["spec"]["fit"]["epochs"], document["stopped"] = 2000, ""
    (run / "history.json").write_text(json.dumps(document))
    (run / "summary.json").write_text('{"status": "interrupted"}')
    assert main(["diagnose", "run"]) == 0
    said = "how the run would have ended: it was interrupted after 5 of 2,000 epochs; go on with it: fitkit fit SPEC"
    assert f"\ncannot tell: {said} --out FOLDER --resume.\n" in capsys.readouterr().out
    assert fitkit.diagnose(run).cannot_tell[0].startswith(said)


@pytest.mark.parametrize("names", [["summary.json"], ["summary.json", "history.json"]])
def test_a_folder_without_a_summary_is_diagnosed_by_the_history_that_lies_there(names, run):
    whole = fitkit.diagnose(run)
    for name in names:
        (run / name).unlink()
    found = fitkit.diagnose(run)
    assert found.cannot_tell[0] == "how the run ended: there is no summary.json, which says it. It has 5 epochs."
    assert found.names[0] == whole.names[0] == "class_never_predicted"


def test_a_run_that_goes_on_says_where_its_rows_are(run, capsys):
    (run / "summary.json").write_text('{"status": "running"}')
    assert main(["diagnose", "run"]) == 4
    assert "its rows so far are in history.csv" in capsys.readouterr().err


@pytest.mark.parametrize("name", BAD)
def test_a_folder_that_cannot_be_read_is_one_message(name, run, capsys):
    damage, code, said = BAD[name]
    damage(run)
    assert main(["diagnose", "run"]) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("run") and said in err and len(err.splitlines()) == 1


def test_what_a_foreign_history_says_is_escaped(run, capsys):
    document = json.loads((run / "history.json").read_text())
    document["stopped"] = "failed: nan \x1b[31m"
    document["spec"] = {"optimizer": {"\x1b[31m; rm -rf /": {"lr": 0.1}}}
    (run / "history.json").write_text(json.dumps(document))
    assert main(["diagnose", "run"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\\x1b[31m" in out
    assert "fitkit fit SPEC 'optimizer." in out  # quoted, so that a shell would not run it
