"""What a user of Keras writes without looking it up: it works, or one line says what to write instead."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fitkit
from fitkit.cli import main
from fitkit.data_check import Part, Samples, check
from fitkit.errors import CheckpointError, DataError, DataWarning, SpecError

QUICK = {"epochs": 1, "batch_size": 16, "device": "cpu"}
X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
Y = (X.sum(1) + torch.randn(60, generator=torch.Generator().manual_seed(1)) > 0).long()


@pytest.fixture(scope="module")
def model():
    model = fitkit.Model(nn.Linear(4, 2))
    model.fit({"fit": QUICK}, data=(X, Y))
    return model


def test_x_and_y_are_taken_as_two_arguments_or_one(model):
    expected = dict(model.evaluate((X, Y)))
    assert dict(model.evaluate(X, Y)) == expected
    assert dict(model.evaluate(x=X.numpy(), y=Y.numpy(), batch_size=7)) == pytest.approx(expected)
    assert dict(model.evaluate(TensorDataset(X, Y))) == pytest.approx(expected)
    assert dict(model.evaluate(DataLoader(TensorDataset(X, Y), batch_size=9))) == pytest.approx(expected)
    assert torch.equal(model.outcomes(X, Y).outputs, model.outcomes((X, Y)).outputs)
    assert [e.row for e in model.worst(X, Y, count=3)] == [e.row for e in model.worst((X, Y), count=3)]
    temperatures = [model.calibrate(*given).temperature.value for given in ((X, Y), ((X, Y),))]
    assert temperatures[0] == temperatures[1]
    model.card.pop("temperature", None)


def test_messages_name_the_data_as_the_part_that_was_given(model):
    with pytest.raises(DataError, match=r"^data: row 3 of y is class 2, but the model has outputs for 0 to 1, "):
        model.evaluate(X, torch.where(torch.arange(60) == 3, 2, Y))
    with pytest.raises(DataError, match=r"^data: x has shape \(60, 4\) and y \(9,\)"):
        model.evaluate(X, Y[:9])
    with pytest.raises(DataError, match="^data: a TensorDataset holds its own targets: leave y out"):
        model.evaluate(TensorDataset(X, Y), Y)
    with pytest.raises(DataError, match=r"^data: expects one part: \(x, y\), a Dataset or a DataLoader, not a dict"):
        model.evaluate({"train": (X, Y)})
    with pytest.raises(DataError, match='^data: "x.csv"|^data: a file is named in the spec'):
        model.evaluate("x.csv")


def test_histories_stand_for_their_run_folders_in_compare_and_report(tmp_path):
    def run(seed):
        return fitkit.fit({"data": "iris", "model": {"mlp": [4]}, "seed": seed, "fit": QUICK}, out=tmp_path / str(seed))

    one, other = run(0), run(1)
    assert [r.folder for r in fitkit.compare(one, other).runs] == [str(tmp_path / "0"), str(tmp_path / "1")]
    assert fitkit.report(one, split="val") == tmp_path / "0" / "report.html"
    with pytest.raises(SpecError, match="named twice"):
        fitkit.compare(one, one)


@pytest.mark.parametrize("name", ["compare", "report"])
def test_a_history_without_a_folder_and_things_that_are_no_runs_are_refused(name):
    command = getattr(fitkit, name)
    history = fitkit.fit({"fit": QUICK}, model=nn.Linear(4, 2), data=(X, Y))
    with pytest.raises(SpecError, match=rf"^this History has no run folder: fit\(…, out=FOLDER\), then {name} the fol"):
        command(history)
    with pytest.raises(SpecError, match=rf"^{name} takes run folders, or what fit\(…, out=FOLDER\) returned, not a Li"):
        command(nn.Linear(1, 1))


def test_messages_of_runs_of_python_are_lines_that_work(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fitkit.fit({"fit": QUICK, "model": {"mlp": [4]}}, data=(X, Y), out="runs/arr")
    module = nn.Linear(4, 2)
    fitkit.fit({"fit": QUICK}, model=module, data=(X, Y), out="runs/own")
    for run, line in (("arr", 'fitkit.load("runs/arr")'), ("own", 'fitkit.load("runs/own", model=module)')):
        for command in ("evaluate", "worst", "calibrate"):
            assert main([command, f"runs/{run}"]) == 2
            assert f"{line}.evaluate((x, y))." in capsys.readouterr().err
        with pytest.raises(SpecError) as refused:
            fitkit.compare(f"runs/{run}", "runs/arr" if run == "own" else "runs/own")
        assert f"{line}.evaluate((x, y))" in str(refused.value)
        assert eval(line, {"fitkit": fitkit, "module": module}).evaluate((X, Y))["loss"] > 0
    with pytest.raises(CheckpointError, match=r'own: fitkit\.load\("runs/own", model=module\)\.'):
        fitkit.load("runs/own")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("fit S --epochs 5", "there is no option --epochs. Write fit.epochs=5."),
        ("fit --epochs 5", "there is no option --epochs. Write fit.epochs=5."),
        ("fit S --batch-size=64", "there is no option --batch-size. Write fit.batch_size=64."),
        ("fit S --epochs", "there is no option --epochs. Write fit.epochs=…."),
        ("fit S --max_epochs 3", "there is no option --max_epochs. Write fit.epochs=3."),
        ("fit S --seed 3 --quiet", "there is no option --seed. Write seed=3."),
        ("fit S --metrics f1", "there is no option --metrics. Write metrics=[f1]."),
        ("fit S --lr 0.1", "there is no option --lr. Write optimizer.NAME.lr=0.1."),
        ("fit S --folds 5", "there is no option --folds. Write 'splits={kfold: 5}'."),
        ("fit S --spec x.yaml", "there is no option --spec. Write x.yaml without it."),
        ("fit S --quite", "there is no option --quite. Did you mean --quiet?"),
        ("fit S --frobnicate", "there is no option --frobnicate. fitkit fit --help lists them."),
        ("evaluate R --metrics f1", "there is no option --metrics. A spec says that: fitkit fit SPEC metrics=[f1]."),
        ("evaluate R --data d.csv", "there is no option --data. Write d.csv without it."),
        ("predict R d.csv --outt p.csv", "there is no option --outt. Did you mean --out?"),
    ],
)
def test_an_option_that_is_none_is_one_line_with_what_to_write(command, said, capsys):
    assert main(command.split()) == 2
    assert capsys.readouterr() == ("", f"fitkit {command.split()[0]}: {said}\n")


@pytest.mark.parametrize("command", ["evaluate", "worst", "calibrate", "compare", "report"])
def test_a_split_of_another_name_is_one_line(command, capsys):
    assert main([command, "R", "--split", "tset"]) == 2
    assert capsys.readouterr() == ("", "--split tset: there is no such split. Did you mean test?\n")
    assert main([command, "R", "--split=zzz"]) == 2
    assert "Choose from " in capsys.readouterr().err


def test_options_may_still_be_shortened_and_stand_anywhere(capsys):
    assert main(["fit", "--qui", "not there.yaml", "fit.epochs=2"]) == 2
    assert capsys.readouterr().err.startswith("not there.yaml: there is no such file")


def test_rows_of_a_csv_are_named_by_their_line_in_the_file(tmp_path):
    rows = [f"{','.join(map(str, x))},{'ny'[y]}" for x, y in zip(X.tolist(), Y.tolist(), strict=True)]
    rows[50] = rows[5]
    marked = [f"{row},{'val' if i >= 45 else 'train'}" for i, row in enumerate(rows)]
    path = tmp_path / "p.csv"
    path.write_text("\n".join(["a,b,c,d,ill,part", "", *marked]) + "\n")  # a blank line, so row 0 is line 3
    spec = {"data": {"csv": {"path": str(path), "target": "ill", "ignore": ["part"]}}, "splits": {"column": "part"}}
    with pytest.warns(DataWarning) as told:
        fitkit.fit({**spec, "model": {"mlp": [4]}, "fit": QUICK}, out=tmp_path / "run")
    assert any("(line 53 (val) = line 8 of p.csv (train))" in str(w.message) for w in told)
    lines = path.read_text().splitlines()
    assert lines[52].rsplit(",", 1)[0] == lines[7].rsplit(",", 1)[0]  # line 53, counted from 1
    [found] = json.loads((tmp_path / "run" / "data_check.json").read_text())["findings"]
    assert found["rows"] == {"val": [50], "train": [5]}


def test_rows_of_a_file_that_comes_in_parts_are_named_by_their_part(tmp_path):
    x, y = X.numpy().copy(), Y.numpy()
    np.savez(
        tmp_path / "d.npz", x_train=x[:40], y_train=y[:40], x_val=x[[7, *range(41, 60)]], y_val=y[[7, *range(41, 60)]]
    )
    spec = {"data": {"npz": {"path": str(tmp_path / "d.npz")}}, "model": {"mlp": [4]}, "fit": QUICK}
    with pytest.warns(DataWarning, match=r"\(row 0 of val = row 7 of train; rows count from 0\)"):
        fitkit.fit(spec)


def test_a_class_that_is_another_but_for_case_or_spaces_gets_its_own_word():
    y = torch.tensor([0, 1] * 30)
    y[0] = 2
    parts = {"train": Part("train", X, y, torch.arange(40)), "val": Part("val", X, y, torch.arange(40, 60))}
    for classes, told in ((("no", "yes", "Yes"), True), (("a b", "c", "ab"), True), (("no", "yes", "maybe"), False)):
        found = check(Samples(parts=parts, target="classes", classes=classes))
        word = f'"{classes[2]}" differs from "{classes[1 if classes[1] == "yes" else 0]}" only in case or spaces'
        assert any(w.advice.startswith(word) for w in found.warnings) == told


def test_one_sample_is_one_sample(model):
    assert str(model.evaluate(X[:1], Y[:1])).startswith("data: 1 sample\n")
    assert str(model.evaluate(X[:2], Y[:2])).startswith("data: 2 samples\n")
