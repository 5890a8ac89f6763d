"""The command line: exit codes, what goes to which stream, what is written, and what is never imported for it."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

import fitkit
from fitkit import run_folder
from fitkit.cli import main
from fitkit.spec.types import RUN_FILES

SPEC = """\
data: {csv: {path: my data.csv, ignore: [day]}}
splits: {random: {val: 0.2, test: 0.2}}
model: {mlp: [8]}
optimizer: {AdamW: 0.01}
fit: {epochs: 2, device: cpu}
"""
COLUMNS = ["loss", "accuracy", "val_loss", "val_accuracy", "lr", "epoch_seconds"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a blank in its name, a spec and a table."""
    folder = tmp_path / "my runs"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "my spec.yaml").write_text(SPEC)
    draw = random.Random(0)
    rows = [f"{draw.gauss(0, 1):.3f},{draw.choice(['red', 'blue'])},{i},{draw.choice('ab')}" for i in range(60)]
    (folder / "my data.csv").write_text("width,colour,day,kind\n" + "\n".join(rows) + "\n")
    return folder


@pytest.fixture
def run(folder, capsys):
    """A finished run in "a run"."""
    assert main(["fit", "my spec.yaml", "--out", "a run", "--quiet"]) == 0
    capsys.readouterr()
    return folder / "a run"


def said(capsys, *command):
    """The exit code, standard output and standard error of a command."""
    try:
        code = main(list(command))
    except SystemExit as stop:
        code = stop.code
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def python(code, **more):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, **more)


# What is imported


YAML = {"tab": "data:\n\tiris", "twice": "seed: 1\nseed: 2", "list": "- a", "anchor": "data: &a iris"}
YAML |= {"good": "data: iris\nmodel: mlp", "extends": "extends: nothing.yaml"}
ANSWERED = ["--help", "--version", "fit --help", "nonsense", "", "fit", "fit not.yaml", "check not.yaml"]
ANSWERED += ["evaluate not", "predict not d.csv --out p.csv"]
ANSWERED += [f"check {name}.yaml" for name in YAML if name != "good"]
ANSWERED += [f"fit good.yaml {more}" for more in ("fit.epochs", "fit.epochs=[", "extends=x", "--code not.py")]


@pytest.mark.parametrize("command", ANSWERED)
def test_help_and_mistakes_of_yaml_and_command_are_answered_without_torch(command, tmp_path):
    for name, text in YAML.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    program = (
        "import sys, fitkit.cli\n"
        f"try:\n    code = fitkit.cli.main({command.split()!r})\nexcept SystemExit as stop:\n    code = stop.code\n"
        f"assert code == {0 if command.endswith(('help', 'version')) else 2}, code\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'safetensors'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = python(program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_importing_fitkit_imports_no_torch():
    done = python("import sys, fitkit; assert 'torch' not in sys.modules; fitkit.fit; assert 'torch' in sys.modules")
    assert done.returncode == 0, done.stderr


# Exit codes


def test_a_check_that_finds_nothing_writes_nothing(folder, capsys):
    before = sorted(folder.rglob("*"))
    code, out, err = said(capsys, "check", "my spec.yaml")
    assert (code, err) == (0, "") and out.startswith("my spec.yaml: no mistakes found.\nsamples: train 36, val 12;")
    assert said(capsys, "check", "my spec.yaml", "--quiet") == (0, "", "")
    assert sorted(folder.rglob("*")) == before


def test_wrong_options_are_a_mistake_in_the_command(capsys):
    for command in ("train spec.yaml", "fit", "", "predict run d.csv"):
        code, out, err = said(capsys, *command.split())
        assert (code, out) == (2, "") and err.startswith("usage: fitkit")


def test_a_loss_that_is_not_finite_ends_with_3_and_says_so_in_the_run_folder(folder, capsys):
    code, out, err = said(capsys, "fit", "my spec.yaml", "optimizer.AdamW.lr=1e30", "--out", "bad", "--quiet")
    assert (code, out) == (3, "") and "smaller lr" in err and "Traceback" not in err
    assert json.loads((folder / "bad" / "summary.json").read_text())["status"] == "failed"
    assert not (folder / "bad" / "model.safetensors").exists()


def test_weights_that_cannot_be_read_end_with_4(run, capsys):
    (run / "model.safetensors").write_bytes(b"xx")
    for command in (["evaluate", "a run"], ["predict", "a run", "my data.csv", "--out", "p.csv"]):
        code, out, err = said(capsys, *command)
        assert (code, out) == (4, "") and "a run/model.safetensors: " in err and "damaged" in err
    assert not (run.parent / "p.csv").exists()


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_stopped_by_a_signal_keeps_what_it_has(folder, sent, code):
    command = [sys.executable, "-m", "fitkit", "fit", "my spec.yaml", "fit.epochs=1000000", "--out", "stopped"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline().startswith("epoch ")
    process.send_signal(sent)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code and "Traceback" not in err
    assert json.loads((folder / "stopped" / "summary.json").read_text())["status"] == "interrupted"
    assert main(["predict", "stopped", "my data.csv", "--out", "p.csv"]) == 0


def test_a_reader_that_goes_away_is_no_error(folder):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "fitkit", "fit", "my spec.yaml", "--out", "piped"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=100)
    os.close(writer)
    assert "Traceback" not in done.stderr


# What is printed


def test_progress_goes_to_standard_output_and_the_plan_to_standard_error(folder, capsys):
    code, out, err = said(capsys, "fit", "my spec.yaml", "--out", "r")
    lines = out.splitlines()
    assert code == 0 and [line.split("  ")[0] for line in lines[:2]] == ["epoch 1/2", "epoch 2/2"]
    assert lines[-1] == "run: r" and lines[-2].startswith("diagnosis: ") and lines[-3].startswith("best epoch ")
    assert err.startswith("samples: train 36, val 12; batches of 32, 4 steps\n")


def test_json_is_one_object_an_epoch_and_nothing_else(folder, capsys):
    code, out, _ = said(capsys, "fit", "my spec.yaml", "--json", "--out", "r", "fit.eval_every=2")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [row["epoch"] for row in rows] == [1, 2]
    assert rows[0]["val_loss"] is None and rows[1]["val_loss"] > 0  # what was not measured is null, never NaN
    assert list(rows[0]) == ["epoch", *COLUMNS]


def test_quiet_prints_the_run_folder_alone(folder, capsys):
    assert said(capsys, "fit", "my spec.yaml", "--quiet") == (0, f"{os.path.join('runs', 'my-spec')}\n", "")


def test_a_warning_is_one_line(folder, capfd):
    command = [sys.executable, "-m", "fitkit", "fit", "my spec.yaml", "callbacks.EarlyStopping.monitor=loss", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    [line] = done.stderr.splitlines()
    assert line.startswith("warning: EarlyStopping monitors loss")


# What is written


def test_a_run_never_overwrites_another(folder, capsys):
    for name in ("my-spec", "my-spec-2", "my-spec-3"):
        assert said(capsys, "fit", "my spec.yaml", "--quiet") == (0, f"{os.path.join('runs', name)}\n", "")
    kept = {path: path.read_bytes() for path in (folder / "runs").rglob("*") if path.is_file()}
    code, out, err = said(capsys, "fit", "my spec.yaml", "--out", "runs/my-spec")
    assert (code, out) == (2, "") and err.startswith("runs/my-spec: is not empty")
    assert kept == {path: path.read_bytes() for path in (folder / "runs").rglob("*") if path.is_file()}


def test_a_run_may_be_written_into_an_empty_folder(folder, capsys):
    (folder / "empty").mkdir()
    assert said(capsys, "fit", "my spec.yaml", "--out", "empty", "--quiet") == (0, "empty\n", "")


def test_the_run_folder_holds_what_was_asked_and_what_happened(run, folder):
    assert (run / "spec.yaml").read_text() == SPEC
    assert {path.name for path in run.iterdir()} <= RUN_FILES
    names = {value for name, value in vars(run_folder).items() if name.isupper() and isinstance(value, str)}
    assert names <= RUN_FILES  # no callback may write any of these
    rows = list(csv.DictReader((run / "history.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"] and list(rows[0]) == ["epoch", *COLUMNS]
    assert json.loads((run / "summary.json").read_text())["status"] == "finished"


def test_the_resolved_spec_of_a_run_gives_the_same_run(run, folder, capsys):
    (folder / "again.yaml").write_text((run / "resolved.yaml").read_text())
    assert said(capsys, "fit", "again.yaml", "--out", "again", "--quiet")[0] == 0
    drop = lambda path: [line.rsplit(",", 1)[0] for line in path.read_text().splitlines()]  # noqa: E731
    assert drop(folder / "again" / "history.csv") == drop(run / "history.csv")


def test_a_mistake_in_the_middle_of_a_folder_of_runs_adds_no_run(run, folder, capsys):
    for pair in ("fit.epochs=0", "optimizer=Adan", "splits.random.val=0.9", "callbacks.EarlyStopping.monitor=f1"):
        assert said(capsys, "fit", "my spec.yaml", pair)[0] == 2
    assert not (folder / "runs").exists()


# After a run


def test_evaluate_measures_what_the_history_holds(run, capsys):
    best = json.loads((run / "summary.json").read_text())["best"]
    code, out, err = said(capsys, "evaluate", "a run", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert {name: found[name] for name in ("loss", "accuracy")} == pytest.approx(
        {"loss": best["val_loss"], "accuracy": best["val_accuracy"]}
    )
    assert found["part"] == "val" and found["samples"] == sum(row["support"] for row in found["classes"])
    code, out, err = said(capsys, "evaluate", "a run", "--split", "train")
    assert (code, err) == (0, "") and out.startswith("train: 36 samples\n")


def test_each_look_at_the_test_split_is_counted(run, capsys):
    assert said(capsys, "evaluate", "a run", "--split", "test")[2].endswith("was looked at for the first time.\n")
    assert "was looked at 2 times now" in said(capsys, "evaluate", "a run", "--split", "test", "--json")[2]
    looks = json.loads((run / "test_looks.json").read_text())
    assert [look["command"] for look in looks] == ["evaluate --split test"] * 2


def test_evaluate_takes_a_file_like_the_one_that_was_trained_on(run, capsys):
    shutil.copy("my data.csv", "other.csv")
    code, out, err = said(capsys, "evaluate", "a run", "other.csv")
    assert (code, err) == (0, "") and out.startswith("other.csv: 60 samples\n")


def test_predictions_are_those_of_the_model(run, folder, capsys):
    assert said(capsys, "predict", "a run", "my data.csv", "--out", "my p.csv") == (
        0, "wrote 60 predictions to my p.csv\n", "",
    )  # fmt: skip
    rows = list(csv.DictReader((folder / "my p.csv").read_text().splitlines()))
    assert [row["row"] for row in rows] == [str(i) for i in range(60)]
    assert all(abs(float(row["p_a"]) + float(row["p_b"]) - 1) < 1e-6 for row in rows)
    assert all(row["prediction"] == ("a" if float(row["p_a"]) >= float(row["p_b"]) else "b") for row in rows)


@pytest.mark.parametrize(
    ("table", "command", "message"),
    [
        ("width,colour\n1,red\n2,green\n", "predict", ':3: column "colour": "green" is not among the texts of the '),
        ("width\n1\n", "predict", ': there is no column "colour" (a feature). The columns are width.'),
        ("width,colour\nwide,red\n", "predict", ':2: column "width": "wide" is text among numbers.'),
        ("width,colour\n", "predict", ": there is a header but no row below it."),
        ("width,colour,kind\n1,red,a\n1,red,c\n", "evaluate", ':3: column "kind": "c" is no class of the'),
        ("width,colour,knd\n1,red,a\n", "evaluate", ': there is no column "kind" (the target).'),
    ],
)
def test_a_file_unlike_the_one_that_was_trained_on_is_refused(run, folder, capsys, table, command, message):
    (folder / "new.csv").write_text(table)
    more = ["--out", "p.csv"] if command == "predict" else []
    code, out, err = said(capsys, command, "a run", "new.csv", *more)
    assert (code, out) == (2, "") and f"new.csv{message}" in err
    assert not (folder / "p.csv").exists()


def test_predictions_overwrite_nothing(run, folder, capsys):
    (folder / "p.csv").write_text("mine")
    code, _, err = said(capsys, "predict", "a run", "my data.csv", "--out", "p.csv")
    assert code == 2 and err.startswith("p.csv: is there already") and (folder / "p.csv").read_text() == "mine"


def test_a_run_without_a_test_split_has_none_to_look_at(folder, capsys):
    assert said(capsys, "fit", "my spec.yaml", "splits.random.test=0", "--out", "r", "--quiet")[0] == 0
    code, out, err = said(capsys, "evaluate", "r", "--split", "test")
    assert (code, out) == (2, "") and "this run has no test split, only train, val." in err
    assert not (folder / "r" / "test_looks.json").exists()


def test_clearing_the_cache_takes_torchs_own_files_too_and_nothing_else(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FITKIT_CACHE", str(tmp_path / "cache"))
    for name in ("torch/ab/code.cpp", f"graphs/{'0' * 64}", "graphs/mine"):
        (tmp_path / "cache" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cache" / name).write_text("four")
    code, out, _ = said(capsys, "cache", "clear")
    assert code == 0 and out.startswith("removed 1 compiled steps and torch's own files, 0.0 MB, from ")
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] == ["mine"]
    assert said(capsys, "cache", "list")[1].startswith("0 compiled steps")


# Extras


def test_a_plot_without_matplotlib_says_which_extra_is_missing(monkeypatch):
    history = fitkit.fit({"data": "iris", "model": "mlp", "fit": {"epochs": 1}})
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(fitkit.FitkitError, match=r"fitkit\[plot\]"):
        history.plot()


# How fast


def test_a_mistake_that_needs_no_data_is_told_soon_after_torch_is_imported(tmp_path):
    (tmp_path / "spec.yaml").write_text("data: iris\nmodel: mlpp\noptimizer: {AdamW: {learning_rate: 1}}\n")
    program = "import time, torch, torch.utils.data; began = time.perf_counter()\n"
    program += "from fitkit.cli import main; code = main(['check', 'spec.yaml'])\n"
    program += "print(code, time.perf_counter() - began)"
    tries = [python(program, cwd=tmp_path).stdout.split() for _ in range(3)]
    assert {code for code, _ in tries} == {"2"}
    assert min(float(seconds) for _, seconds in tries) < 0.5


def test_a_tab_is_told_at_once(tmp_path):
    (tmp_path / "spec.yaml").write_text("data:\n\tiris\n")
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "fitkit", "check", "spec.yaml"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 2 and time.perf_counter() - started < 5  # 0.1 s on an idle machine
