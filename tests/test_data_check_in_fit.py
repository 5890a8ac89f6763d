"""The check of the data on the way into a fit, and by `fitkit check SPEC --data`."""

import json
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import fitkit
from fitkit import run_folder
from fitkit.builder import assemble, load_spec
from fitkit.builder.look import look
from fitkit.cli import main

SPECS = sorted(path for path in (Path(__file__).parent.parent / "specs").glob("*.yaml"))
QUICK = {"epochs": 1, "batch_size": 16, "device": "cpu", "compile": False}


def drawn(n=100, seed=0):
    r = np.random.default_rng(seed)
    return r.normal(size=(n, 4)).astype(np.float32), r.integers(0, 2, n)


def leaky(n=100):
    x, y = drawn(n)
    x[:, 1] = y
    return x, y


def spec(**fit):
    return {"model": {"mlp": [4]}, "fit": {**QUICK, **fit}}


def looked(data, *, thorough=False, declared=None):
    return look(assemble(load_spec(declared or spec()), None, data, None)[1], thorough)


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_no_spec_of_the_gallery_is_warned_of(path):
    for seed in range(3):
        prepared = assemble(load_spec(path, {"seed": seed, "fit.compile": False}), None, None, None)[1]
        assert look(prepared).warnings == [] and look(prepared, thorough=True).warnings == []


def test_a_fit_warns_before_the_first_epoch_once_and_says_how_to_turn_it_off(tmp_path):
    order = []
    seen = fitkit.LambdaCallback(on_epoch_begin=lambda trainer: order.append("epoch"))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, kind, *_: order.append((kind, str(message)))
        fitkit.fit(spec(), data=leaky(), callbacks=[seen], out=tmp_path / "run")
    (kind, text), epoch = order
    assert kind is fitkit.DataWarning and epoch == "epoch"
    assert "column 1 of x alone tells the class of 100.0% of the rows" in text
    assert text.endswith("(fit.check_data: false turns this check off.)")
    written = run_folder.read_data_check(tmp_path / "run")
    assert [finding["columns"] for finding in written["findings"]] == [["1"]]
    assert written["parts"] == {"train": 80, "val": 20}


def test_a_fit_that_is_told_not_to_look_does_not(tmp_path):
    fitkit.fit(spec(check_data=False), data=leaky(), out=tmp_path / "run")
    assert run_folder.read_data_check(tmp_path / "run") is None
    with pytest.warns(fitkit.DataWarning):
        fitkit.build(spec(), data=leaky())


def test_a_check_changes_no_result_and_no_random_state(tmp_path):
    x, y = drawn()
    x[:, 3] += y
    states = []
    for asked in (True, False):
        torch.manual_seed(1), random.seed(1), np.random.seed(1)
        prepared = assemble(load_spec(spec(check_data=asked)), None, (x, y), None)[1]
        if asked:
            look(prepared, thorough=True)
        draws = torch.rand(3).tolist(), random.random(), np.random.rand()
        rows = next(iter(prepared.parts["train"].shuffled(0, 1)))[0]
        history = fitkit.fit({**spec(check_data=asked), "model": [{"Dropout": 0.5}, {"Linear": 2}]}, data=(x, y))
        states.append((draws, rows.tolist(), history["loss"], history["val_loss"]))
    assert states[0] == states[1]
    assert torch.get_num_threads() == looked_threads()


def looked_threads():
    before = torch.get_num_threads()
    looked(drawn())
    return before


def test_samples_are_not_changed():
    x, y = torch.as_tensor(drawn()[0]), torch.as_tensor(drawn()[1])
    x[0, 0] = -0.0
    x[1] = x[2]
    before = x.clone(), y.clone()
    looked((x, y), thorough=True)
    assert torch.equal(x.view(torch.int32), before[0].view(torch.int32)) and torch.equal(y, before[1])


def test_parts_that_are_given_apart_are_named_by_their_own_rows():
    x, y = drawn()
    data = {"train": (x, y), "val": (x[10:14], y[10:14]), "test": (x[20:21], y[20:21])}
    found = {finding.sentence for finding in looked(data).warnings}
    assert any("4 of 4 rows of val" in sentence and "row 0 of val = row 10 of train" in sentence for sentence in found)
    assert any(
        "1 of 1 rows of test" in sentence and "row 0 of test = row 20 of train" in sentence for sentence in found
    )


@pytest.mark.parametrize("thorough", [False, True])
def test_what_was_not_looked_at_is_said(thorough, tmp_path):
    x, y = leaky()
    declared = {**spec(), "model": [{"Linear": 2}]}
    found = looked(TensorDataset(torch.as_tensor(x), torch.as_tensor(y)), thorough=thorough, declared=declared)
    assert not found.findings and set(found.not_checked) >= {"duplicates", "giveaway columns", "targets"}
    assert "Dataset" in str(found)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    declared = {**spec(), "data": {"npy": {"x": str(tmp_path / "x.npy"), "y": str(tmp_path / "y.npy"), "read": "map"}}}
    found = looked(None, thorough=thorough, declared=declared)
    assert bool(found.warnings) == thorough and ("duplicates" in found.not_checked) != thorough
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 40)
    declared = {"data": {"text": {"path": str(tmp_path / "text.txt"), "length": 8}}, "model": "gpt", "fit": QUICK}
    assert "windows of a text" in str(looked(None, thorough=thorough, declared=declared))


@pytest.mark.parametrize("kind", ["csv", "npz", "safetensors"])
def test_files_are_looked_at_as_arrays_are(kind, tmp_path):
    from safetensors.torch import save_file

    x, y = leaky()
    path = tmp_path / f"data.{kind}"
    if kind == "csv":
        lines = [",".join([*map(repr, row.tolist()), "ab"[label]]) for row, label in zip(x, y, strict=True)]
        path.write_text("\n".join(["a,is it,c,d,what", *lines]))
    elif kind == "npz":
        np.savez(path, x=x, y=y)
    else:
        save_file({"x": torch.as_tensor(x), "y": torch.as_tensor(y)}, path)
    (found,) = looked(None, declared={**spec(), "data": {kind: {"path": str(path)}}}).warnings
    assert list(found.columns) == ['"is it"' if kind == "csv" else "1"]


def test_a_category_that_names_the_class_is_one_column(tmp_path):
    r = np.random.default_rng(0)
    rows = [f"{r.normal():.3f},{'uvw'[k]},{r.normal():.3f},{'abc'[k]}" for k in r.integers(0, 3, 90)]
    (tmp_path / "t.csv").write_text("\n".join(["one,word,two,kind", *rows]))
    (found,) = looked(None, declared={**spec(), "data": {"csv": {"path": str(tmp_path / "t.csv")}}}).warnings
    assert list(found.columns) == ['"word"'] and 'ignore: ["word"]' in found.advice


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x, y = leaky()
    np.savez("data.npz", x=x, y=y)
    Path("spec.yaml").write_text(
        "data: {npz: {path: data.npz}}\nmodel: {mlp: [4]}\nfit: {epochs: 1, device: cpu, compile: false}\n"
    )
    return tmp_path


def test_check_data_prints_findings_what_was_looked_for_and_one_json_object(written, capsys):
    assert main(["check", "spec.yaml", "--data"]) == 0
    said = capsys.readouterr()
    assert "warning: column 1 of x alone tells the class" in said.out and "looked for duplicates" in said.out
    assert said.out.rstrip().endswith("1 warning")
    assert main(["check", "spec.yaml", "--data", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parts"] == {"train": 80, "val": 20} and found["not_checked"] == {}
    assert [finding["name"] for finding in found["findings"]] == ["giveaway columns"]


@pytest.mark.filterwarnings("default::fitkit.DataWarning")
def test_fit_and_check_print_a_warning_on_standard_error(written, capsys):
    for command in (["fit", "spec.yaml", "--out", "run"], ["check", "spec.yaml"]):
        assert main(command) == 0
        said = capsys.readouterr()
        assert "warning: data: column 1 of x" in said.err and "alone tells" not in said.out
        assert main([*command, "fit.check_data=false", *(["--out", "other"] if command[0] == "fit" else [])]) == 0
        assert "alone tells" not in capsys.readouterr().err


def test_json_without_data_is_a_mistake(written, capsys):
    assert main(["check", "spec.yaml", "--json"]) == 2
    assert capsys.readouterr().err == "--json prints what is found in the data: give --data too.\n"


@pytest.mark.filterwarnings("default::fitkit.DataWarning")
def test_names_from_a_file_cannot_act_on_the_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    r = np.random.default_rng(0)
    rows = [f"{r.normal():.3f},{k},{r.normal():.3f},{'ab'[k]}" for k in r.integers(0, 2, 90)]
    Path("t.csv").write_text("\n".join(["one,\x1b[31mred,two,kind", *rows]))
    Path("spec.yaml").write_text("data: {csv: {path: t.csv}}\nmodel: {mlp: [4]}\nfit: {epochs: 1, device: cpu}\n")
    assert main(["check", "spec.yaml", "--data"]) == 0 and main(["check", "spec.yaml"]) == 0
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err and "x1b[31mred" in said.err
