"""`fitkit init`: for every kind of data a spec that loads and fits as it stands, and a plain word about bad data."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import fitkit
from fitkit.after.starter import WIDTH, starter
from fitkit.builder.tables import TABLES
from fitkit.errors import DataError, SpecError

BUNDLED = ["digits", "iris", "breast_cancer", "diabetes", "synthetic"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def table(folder, rows=40, name="table.csv", delimiter=",", **columns):
    """A CSV file; each column is a function of the row number."""
    columns = columns or {"a": lambda i: i * 0.5, "b": lambda i: "xy"[i % 2], "kind": lambda i: ["no", "yes"][i % 2]}
    lines = [delimiter.join(columns), *(delimiter.join(str(cell(i)) for cell in columns.values()) for i in range(rows))]
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


def fits(folder, text, **overrides):
    """Fit the text of a spec for one epoch and return its history."""
    path = folder / "spec.yaml"
    path.write_text(text)
    history = fitkit.fit(path, overrides={"fit.epochs": 1, "fit.device": "cpu", "fit.check_data": False, **overrides})
    assert len(history) == 1
    return history


def given(text):
    return fitkit.load_spec(text).given


# ------------------------------------------------------------------------------------------------------------ tables


def test_a_table_of_classes_gets_a_spec_that_fits(folder):
    text = starter(table(folder), None, folder)
    spec = given(text)
    assert spec["data"] == {"csv": {"path": "table.csv", "target": "kind"}}
    assert spec["splits"] == {"stratified": {"val": 0.15, "test": 0.15}}
    assert spec["loss"] == "cross_entropy" and spec["metrics"] == ["accuracy"]
    for line in ("#   a     numbers from 0 to 19.5", "#   b     2 different texts: x, y"):
        assert line in text
    assert "#   kind  target: 2 classes, no (20), yes (20)" in text
    assert "val_accuracy" in fits(folder, text).history


def test_a_table_of_values_gets_a_loss_and_metrics_for_values(folder):
    text = starter(table(folder), "a", folder)
    assert given(text)["loss"] == "mse_loss" and "target: numbers from 0 to 19.5" in text
    assert "val_r2" in fits(folder, text).history


def test_the_target_is_the_one_named_else_one_named_so_else_the_last(folder):
    path = table(folder, a=lambda i: i % 3, label=lambda i: i % 2, z=lambda i: i * 0.5)
    assert given(starter(path, None, folder))["data"]["csv"]["target"] == "label"
    assert given(starter(path, "a", folder))["data"]["csv"]["target"] == "a"
    assert "task: values" in starter(path, "a", folder)  # few whole numbers might be quantities
    path = table(folder, a=lambda i: i % 3, b=lambda i: i % 2)
    assert given(starter(path, None, folder))["data"]["csv"]["target"] == "b"


def test_columns_that_are_no_inputs_are_ignored_and_the_spec_says_why(folder):
    path = table(
        folder,
        rows=120,
        id=lambda i: i,
        note=lambda i: f"note {i}",
        same=lambda i: "x",
        many=lambda i: f"m{i // 1.1:.0f}",
        stamp=lambda i: 1_700_000_000 + i,
        a=lambda i: i % 7,
        y=lambda i: "ab"[i % 2],
    )
    text = starter(path, None, folder)
    assert given(text)["data"]["csv"]["ignore"] == ["id", "note", "same", "many", "stamp"]
    said = " ".join(text.replace("#", "").split())
    assert "id is different in every row; note is different in every row; same is the same in every row" in said
    assert "stamp has numbers too close together for float32" in said
    fits(folder, text)


def test_a_column_that_says_the_split_is_taken_for_the_split(folder):
    parts = ["train", "train", "train", "val", "test"]
    path = table(folder, a=lambda i: i, part=lambda i: parts[i % 5], y=lambda i: "ab"[i // 5 % 2])
    text = starter(path, None, folder)
    assert given(text)["splits"] == {"column": "part"} and given(text)["data"]["csv"]["ignore"] == ["part"]
    fits(folder, text)


def test_a_column_of_dates_is_offered_for_a_split_by_time(folder):
    path = table(folder, day=lambda i: f"2024-01-{i % 28 + 1:02}", a=lambda i: i, y=lambda i: i * 1.5)
    text = starter(path, None, folder)
    [offer] = re.findall(r"^# (splits: \{time.*\})  #", text, re.M)
    lines = [line for line in text.splitlines() if not line.startswith(("splits:", "  random:"))]
    fits(folder, "\n".join([*lines, offer]))


def test_another_delimiter_and_names_that_yaml_would_misread_are_written_so_that_they_are_read(folder):
    columns = {"#1: {a": lambda i: i, "yes": lambda i: i % 5, "no, thanks": lambda i: ["yes", "null"][i % 2]}
    path = table(folder, name='a b "c".csv', delimiter=";", **columns)
    text = starter(path, "no, thanks", folder)
    csv = given(text)["data"]["csv"]
    assert csv == {"path": 'a b "c".csv', "target": "no, thanks", "delimiter": ";"}
    fits(folder, text)


def test_a_name_with_a_line_break_cannot_end_a_comment(folder):
    (folder / "t.csv").write_text(
        '"a\nseed: 5","b\u2028","y"\n' + "".join(f"{i},{i * i},{'pq'[i % 2]}\n" for i in range(30))
    )
    text = starter(folder / "t.csv", None, folder)
    assert given(text)["seed"] == 0 and r"a\nseed: 5" in text
    fits(folder, text)


def test_uneven_classes_and_large_targets_are_remarked_upon(folder):
    path = table(folder, a=lambda i: i, y=lambda i: "rare" if i % 10 == 0 else "often")
    assert "class_weight: balanced" in starter(path, None, folder)
    path = table(folder, a=lambda i: i, price=lambda i: 250_000.5 + i)
    assert "large" in starter(path, None, folder)
    assert "large" not in starter(table(folder), "a", folder)


@pytest.mark.parametrize("rows", [4, 5, 7, 19, 20, 600])
def test_a_table_of_any_size_gets_a_spec_that_fits(rows, folder):
    text = starter(table(folder, rows=rows), None, folder)
    assert ("test:" in text) == (rows >= 20)
    fits(folder, text)


def test_more_samples_get_a_wider_model_larger_batches_and_fewer_epochs(folder):
    small = given(starter(table(folder, rows=40), None, folder))
    large = given(starter(table(folder, rows=6000), None, folder))
    assert small["model"]["mlp"]["hidden"] < large["model"]["mlp"]["hidden"]
    assert small["fit"]["batch_size"] < large["fit"]["batch_size"] and small["fit"]["epochs"] > large["fit"]["epochs"]


# ------------------------------------------------------------------------------------------------------ other data


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_data_set_gets_a_spec_that_fits(name, folder):
    text = starter(Path(name), None, folder)
    assert given(text)["data"] == name
    fits(folder, text)


def test_the_bundled_sets_are_the_sources_that_need_no_argument():
    free = [name for name, entry in TABLES["sources"].items() if not any(a.required for a in entry.arguments.values())]
    assert set(free) == {*BUNDLED, "arrays"}


ARRAYS = {  # inputs, targets, and the model that the spec names
    "a table of floats": (torch.randn(40, 6), torch.arange(40) % 3, "mlp"),
    "a table of whole numbers": (torch.arange(240).reshape(40, 6), torch.arange(40) % 3, "mlp"),
    "values": (torch.randn(40, 6), torch.randn(40), "mlp"),
    "several values": (torch.randn(40, 6), torch.randn(40, 2), "mlp"),
    "colour images in bytes": (torch.randint(255, (40, 3, 12, 9), dtype=torch.uint8), torch.arange(40) % 3, "cnn"),
    "grey images in floats": (torch.rand(40, 8, 8), torch.arange(40) % 3, "cnn"),
    "tiny images": (torch.rand(40, 1, 2, 2), torch.arange(40) % 3, "cnn"),
    "rows of pixels": (torch.rand(40, 1, 1, 9), torch.arange(40) % 3, "mlp"),
    "sequences": (torch.randn(40, 10, 4), torch.arange(40) % 2, "lstm"),
    "volumes": (torch.randn(40, 2, 3, 3, 3), torch.randn(40), "mlp"),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays_get_a_model_for_their_shape_that_fits(case, folder):
    x, y, model = ARRAYS[case]
    save_file({"x": x, "y": y}, folder / "data.safetensors")
    text = starter(folder / "data.safetensors", None, folder)
    assert list(given(text)["model"]) == [model]
    assert f"40 samples of shape {tuple(x.shape[1:])}" in text
    fits(folder, text)


def test_numbers_that_would_be_left_as_they_are_are_standardized(folder):
    for x, transform in ((torch.rand(40, 8, 8), "standardize"), (torch.rand(40, 8), None)):
        save_file({"x": x, "y": torch.arange(40) % 3}, folder / "data.safetensors")
        spec = given(starter(folder / "data.safetensors", None, folder))
        assert spec["data"]["safetensors"].get("transform") == transform


def test_arrays_by_other_names_are_found(folder):
    x, y = np.random.default_rng(0).normal(size=(40, 5)), np.arange(40) % 3
    for names in (("X", "y"), ("images", "labels"), ("inputs", "target")):
        np.savez(folder / "data.npz", **dict(zip(names, (x, y), strict=True)))
        text = starter(folder / "data.npz", None, folder)
        assert list(given(text)["data"]["npz"].values())[1:] == [name for name in names if name != "y"]
        fits(folder, text)
    np.savez(folder / "data.npz", signal=x, age=y)
    assert given(starter(folder / "data.npz", "age", folder))["data"]["npz"] == {
        "path": "data.npz",
        "x": "signal",
        "y": "age",
    }


def test_a_split_that_the_file_brings_is_taken(folder):
    parts = {
        f"{name}_{part}": array
        for part in ("train", "test")
        for name, array in (("x", np.eye(8)), ("y", np.arange(8) % 2))
    }
    np.savez(folder / "data.npz", **parts)
    text = starter(folder / "data.npz", None, folder)
    assert given(text)["splits"] == {"given": {"val": 0.15}}
    fits(folder, text)
    np.savez(folder / "data.npz", x_val=np.eye(8), y_val=np.arange(8) % 2, **parts)
    text = starter(folder / "data.npz", None, folder)
    assert given(text)["splits"] == "given"
    fits(folder, text)


def test_the_targets_of_npy_files_are_beside_the_inputs_or_named(folder):
    np.save(folder / "X_train.npy", np.random.default_rng(0).normal(size=(40, 5)))
    np.save(folder / "y_train.npy", np.arange(40) % 3)
    text = starter(folder / "X_train.npy", None, folder)
    assert given(text)["data"] == {"npy": {"x": "X_train.npy", "y": "y_train.npy"}}
    fits(folder, text)
    (folder / "y_train.npy").rename(folder / "labels.npy")
    assert given(starter(folder / "X_train.npy", "labels.npy", folder))["data"]["npy"]["y"] == "labels.npy"
    with pytest.raises(DataError, match="--target"):
        starter(folder / "X_train.npy", None, folder)


@pytest.mark.parametrize("letters", [8, 30, 300, 5000])
def test_a_text_gets_a_gpt_that_fits(letters, folder):
    (folder / "book.txt").write_text(("the quick brown fox\n" * letters)[:letters])
    text = starter(folder / "book.txt", None, folder)
    assert list(given(text)["model"]) == ["gpt"] and f"{letters:,} characters" in text
    fits(folder, text)


# ------------------------------------------------------------------------------------------------- place and faults


def test_the_path_is_relative_to_where_the_spec_will_stand(folder):
    (folder / "data").mkdir()
    path = table(folder / "data")
    assert given(starter(path, None, folder))["data"]["csv"]["path"] == "data/table.csv"
    (folder / "specs").mkdir()
    with pytest.raises(SpecError, match="reads no file outside of its folder"):
        starter(path, None, folder / "specs")


@pytest.mark.parametrize("name", ["digits", "diabetes", "table.csv"])
def test_every_section_is_written_and_no_line_is_too_long(name, folder):
    table(folder)
    text = starter(Path(name), None, folder)
    sections = {"seed", "data", "splits", "model", "loss", "metrics", "optimizer", "schedule", "callbacks", "fit"}
    assert given(text).keys() == sections
    assert max(map(len, text.splitlines())) <= WIDTH and text.count("#") > 15
    assert text.endswith("\n") and "\n\n\n" not in text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("digit", None, 'no such file. Did you mean the bundled "digits"'),
        ("nothing", None, "Bundled are digits, iris"),
        ("tabel.csv", None, 'no such file. Did you mean "table.csv"'),
        ("a.pt", b"", "can run code"),
        ("a.parquet", b"x", "fitkit reads no .parquet files"),
        ("a.xlsx", b"x", "init reads .csv"),
        ("a.npz", b"no zip", ".npz"),
        ("a.safetensors", b"no", "safetensors"),
        ("a.csv", b"", "the file is empty"),
        ("a.csv", b"a,b\n1,2\n,3\n4,5\n6,7\n", 'a.csv:3: column "a": this cell is empty'),
        ("a.csv", b"a,b\n1,x\n2,y\n3,x\n", "3 samples are too few"),
        ("a.txt", b"\xff\xfe", "UTF-16"),
        ("a.txt", b"abc", "too few"),
    ],
)
def test_a_fault_of_the_data_is_told_as_its_source_tells_it(name, content, message, folder):
    table(folder)
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=re.escape(message)):
        starter(Path(name), None, folder)


def test_a_target_that_is_not_there_is_an_error_that_names_what_is(folder):
    with pytest.raises(DataError, match='no column "knd" .* Did you mean "kind"'):
        starter(table(folder), "knd", folder)
    np.savez(folder / "data.npz", x=np.eye(4), y=np.arange(4))
    with pytest.raises(DataError, match="The file holds x, y"):
        starter(folder / "data.npz", "label", folder)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.randn(40), torch.arange(40) % 2, "one number a sample"),
        (torch.randn(40, 8, 8, 3), torch.arange(40) % 2, r"\(N, C, H, W\)"),
        (torch.randn(40, 8), torch.arange(160).reshape(40, 4) % 2, "one class or one row of numbers"),
    ],
)
def test_arrays_that_no_model_takes_are_refused_with_what_to_save_instead(x, y, message, folder):
    save_file({"x": x, "y": y}, folder / "data.safetensors")
    with pytest.raises(DataError, match=message):
        starter(folder / "data.safetensors", None, folder)


def test_a_target_where_there_is_none_to_choose_is_refused(folder):
    (folder / "book.txt").write_text("abc" * 100)
    for name in ("digits", "book.txt"):
        with pytest.raises(SpecError, match="Leave --target out"):
            starter(Path(name), "a", folder)
