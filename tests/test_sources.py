"""Sources: what each returns, and the place and cause that each fault names."""

import builtins
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fitkit.data import Feature
from fitkit.errors import DataError
from fitkit.parts.csv_table import encode
from fitkit.parts.sources import BUNDLED, sources
from fitkit.parts.splits import class_counts, default_split, splits
from fitkit.parts.transforms import default_transform, transforms

TABLE = "age,city,group,label\n" + "".join(f"{20 + i},{'AB'[i % 2]},g{i % 4},{'ny'[i % 2]}\n" for i in range(12))


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content.encode()) if isinstance(content, str) else path.write_bytes(content)
    return str(path)


def arrays(samples=12, classes=3):
    return torch.arange(samples * 4).reshape(samples, 4).float(), torch.arange(samples) % classes


def from_csv(folder, content, **arguments):
    return sources["csv"].factory(path=write(folder, "table.csv", content), **arguments)


def from_arrays(folder, tensors, **arguments):
    save_file(tensors, folder / "data.safetensors")
    return sources["safetensors"].factory(path=str(folder / "data.safetensors"), **arguments)


@pytest.fixture
def examples(tmp_path):
    x, y = arrays()
    np.save(tmp_path / "x.npy", x.numpy())
    np.save(tmp_path / "y.npy", y.numpy())
    np.savez(tmp_path / "data.npz", x=x.numpy(), y=y.numpy())
    save_file({"x": x, "y": y}, tmp_path / "data.safetensors")
    return {
        **dict.fromkeys(("digits", "iris", "breast_cancer", "diabetes", "synthetic"), {}),
        "csv": {"path": write(tmp_path, "table.csv", TABLE)},
        "text": {"path": write(tmp_path, "text.txt", "to be or not to be " * 20), "length": 8},
        "npy": {"x": str(tmp_path / "x.npy"), "y": str(tmp_path / "y.npy")},
        "npz": {"path": str(tmp_path / "data.npz")},
        "safetensors": {"path": str(tmp_path / "data.safetensors")},
    }


@pytest.mark.parametrize("name", sorted(sources))
def test_every_source_returns_data_that_can_be_split_and_transformed(name, examples):
    data = sources[name].factory(**examples[name])
    assert len(data) > 1 and data.name
    if data.y is not None:
        assert len(data.y) == len(data.x)
    if data.target == "classes":
        labels = data.x if data.y is None else data.y
        assert len(data.classes) == int(labels.max()) + 1
    if data.features is not None:
        assert data.x.shape[1] == sum(len(feature.categories or [0]) for feature in data.features)
    rows = splits[default_split(data)].factory(data, 0)
    assert set(rows) >= {"train", "val"} and "all" in class_counts(data, rows)
    if data.vocabulary is None:
        fitted = transforms[default_transform(data)].factory(data.x[rows["train"]])
        assert fitted(data.x).isfinite().all()


@pytest.mark.parametrize("name", sorted(sources))
def test_every_source_has_a_summary_and_takes_a_transform(name):
    assert sources[name].summary.endswith(".")
    assert sources[name].arguments["transform"].shared and sources[name].defaults()["transform"] == "auto"


def test_the_bundled_sets_are_whole():
    data = sources["digits"].factory()
    assert data.x.shape == (1797, 64) and data.x.dtype is torch.uint8 and int(data.x.max()) == 16
    assert data.y.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert sources["digits"].factory(layout="image").x.shape == (1797, 1, 8, 8)
    assert sources["digits"].factory(layout="rows").x.shape == (1797, 8, 8)
    data = sources["iris"].factory()
    assert data.classes == ("setosa", "versicolor", "virginica") and data.y.bincount().tolist() == [50, 50, 50]
    assert data.x[0].tolist() == pytest.approx([5.1, 3.5, 1.4, 0.2]) and data.features[0].name == "sepal length (cm)"
    data = sources["breast_cancer"].factory()
    assert data.x.shape == (569, 30) and data.y.bincount().tolist() == [212, 357] and data.classes[1] == "benign"
    data = sources["diabetes"].factory()
    assert data.x.shape == (442, 10) and data.target == "values" and data.y[0] == 151 and data.x[0, 0] == 59


def test_every_bundled_file_has_its_origin_stated():
    origin = (BUNDLED / "ORIGIN.md").read_text()
    for file in BUNDLED.glob("*.safetensors"):
        assert f"`{file.stem}`" in origin and file.name in origin


def test_csv_encodes_numbers_as_they_are_and_text_one_hot(tmp_path):
    data = from_csv(tmp_path, "city,age,label\nRome,1.5,b\nBonn,2,a\nRome,3e0,b\n")
    assert data.features == (Feature("city", ("Bonn", "Rome")), Feature("age"))
    assert data.x.tolist() == [[0, 1, 1.5], [1, 0, 2], [0, 1, 3]] and data.x.dtype is torch.float32
    assert data.classes == ("a", "b") and data.y.tolist() == [1, 0, 1] and data.name == "table.csv"


def test_csv_keeps_every_column_as_text_for_splits(tmp_path):
    data = from_csv(tmp_path, TABLE, ignore=["group"])
    assert list(data.columns) == ["age", "city", "group", "label"] and data.columns["group"][:2] == ["g0", "g1"]
    assert [feature.name for feature in data.features] == ["age", "city"]
    assert [f.name for f in from_csv(tmp_path, TABLE, columns=["city"]).features] == ["city"]


@pytest.mark.parametrize(
    ("cells", "task", "target", "classes", "y"),
    [
        (["10", "9", "10", "9"], "auto", "classes", ("9", "10"), [1, 0, 1, 0]),
        (["1.0", "2", "1", "2.0"], "auto", "classes", ("1", "2"), [0, 1, 0, 1]),
        (["True", "False", "True"], "auto", "classes", ("False", "True"), [1, 0, 1]),
        (["1", "2", "3", "4"], "auto", "values", None, [1, 2, 3, 4]),
        (["0.5", "1", "0.5", "1"], "auto", "values", None, [0.5, 1, 0.5, 1]),
        (["0.5", "1", "0.5", "1"], "classes", "classes", ("0.5", "1"), [0, 1, 0, 1]),
        (["0", "1", "0", "1"], "values", "values", None, [0, 1, 0, 1]),
        (["1", "2", "3", "x"], "classes", "classes", ("1", "2", "3", "x"), [0, 1, 2, 3]),
    ],
)
def test_csv_takes_text_and_few_whole_numbers_for_classes(tmp_path, cells, task, target, classes, y):
    data = from_csv(tmp_path, "a,y\n" + "".join(f"{i},{cell}\n" for i, cell in enumerate(cells)), task=task)
    assert (data.target, data.classes, data.y.tolist()) == (target, classes, y)
    assert data.y.dtype is (torch.int64 if target == "classes" else torch.float32)


def test_csv_with_21_whole_numbers_as_target_is_values(tmp_path):
    rows = "a,y\n" + "".join(f"{i},{i % 21}\n" for i in range(210))
    assert from_csv(tmp_path, rows).target == "values"
    assert len(from_csv(tmp_path, rows, task="classes").classes) == 21


def test_csv_with_several_targets_is_values_of_that_width(tmp_path):
    data = from_csv(tmp_path, "a,b,c\n1,2,3\n4,5,6\n", target=["c", "a"])
    assert data.y.tolist() == [[3, 1], [6, 4]] and [feature.name for feature in data.features] == ["b"]


def test_csv_reads_a_byte_order_mark_quotes_blank_lines_and_other_delimiters(tmp_path):
    data = from_csv(tmp_path, '\ufeffa;b\r\n"1";"x;""y"\r\n\r\n 2 ;z\r\n3;z\r\n', delimiter=";")
    assert data.columns == {"a": ["1", "2", "3"], "b": ['x;"y', "z", "z"]}


CSV_FAULTS = [
    ("\n\n", {}, "the file is empty"),
    ("a,b\n", {}, "header but no row"),
    ("1,2\n3,4\n", {}, ":1: the first line holds only numbers"),
    ("a,b,a\n1,2,3\n", {}, 'columns 1 and 3 are both named "a"'),
    (",a,b\n0,1,2\n", {}, "index=False"),
    ("a;b\n1;2\n", {}, 'delimiter: ";"'),
    ("a,b\n1,x\n1\n", {}, ":3: 1 fields, where the header has 2: a, b"),
    ('a,b\n"1\n2",x\n3,y,z\n', {}, ":4: 3 fields"),
    ('a,b\n1,"x\n', {}, ":2: this row cannot be read as CSV"),
    ("a,b\n1,x\n\n?,y\n2,x\n-,y\n3,x\n", {}, ':4: column "a": "?" (2 such cells in all) is text among numbers'),
    ("a,b\n1,x\n1_000,y\n2,x\n", {}, '"1_000" is text among numbers'),
    ("a,b\n1,x\n,y\n", {}, ':3: column "a": this cell is empty'),
    ("a,b\nu,x\n,y\n", {}, ':3: column "a": this cell is empty'),
    ("a,b\n1,x\n2,\n", {}, ':3: column "b": this cell is empty'),
    ("a,b\n1,x\nNaN,y\n", {}, ':3: column "a": "NaN" is no finite'),
    ("a,b\n1,x\n-inf,y\n1e39,y\n", {}, ':3: column "a": "-inf" (2 such cells in all)'),
    ("a,b\n1,x\n2,y\n", {"target": "B"}, 'no column "B" (target). Did you mean "b"? The columns are a, b.'),
    ("a,b\n1,x\n2,y\n", {"columns": ["aa"]}, 'no column "aa" (columns)'),
    ("a,b\n1,x\n2,x\n", {}, 'column "b": every row has "x"'),
    ("a,b\n1,x\n2,y\n", {}, "each row has a text of its own"),
    ("a,b\n1,x\n2,y\n", {"task": "values"}, 'column "b": "x" (2 such cells in all) is text among numbers'),
    ("a,b\n1,x\n2,y\n", {"target": ["a", "b"]}, "no column is left as feature"),
    ("a,b,c\n1,2,x\n2,3,y\n", {"target": ["a", "b"], "task": "classes"}, "one target column"),
    ("a,b\n1,x\n2,y\n", {"target": []}, "no column is left as target"),
    ("a,b\n1,x\n2,y\n", {"ignore": ["b"]}, 'column "b": this is the target'),
    ("a,b,c\n1,2,x\n3,4,x\n", {"ignore": ["a"], "columns": ["a"]}, "under columns and under ignore"),
    ("a,b\n" + "".join(f"t{i},{'xy'[i % 2]}\n" for i in range(101)), {}, "101 different texts"),
    ("a,b\n1700000000,x\n1700000010,y\n1700000020,x\n", {}, "too close together"),
]


@pytest.mark.parametrize(("content", "arguments", "message"), CSV_FAULTS)
def test_a_fault_in_a_csv_file_is_named_with_its_place(tmp_path, content, arguments, message):
    with pytest.raises(DataError) as raised:
        from_csv(tmp_path, content, **arguments)
    assert message in str(raised.value) and str(raised.value).startswith(str(tmp_path))


def test_a_csv_delimiter_is_one_character(tmp_path):
    with pytest.raises(ValueError, match="one character"):
        from_csv(tmp_path, TABLE, delimiter=";;")


def test_a_new_csv_file_is_encoded_as_the_training_file_was(tmp_path):
    data = from_csv(tmp_path, TABLE, ignore=["group"])
    assert encode(str(tmp_path / "table.csv"), data.features).equal(data.x)
    path = write(tmp_path, "new.csv", "more,city,age\nq,B,7\n")
    assert encode(path, data.features).tolist() == [[7, 0, 1]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("age\n1\n", 'no column "city"'),
        ("age,city\n1,A\n2,C\n", ':3: column "city": "C" is not among the texts of the training data: A, B.'),
        ("age,city\nx,A\n", ':2: column "age": "x" is text among numbers'),
        ("age,city\n1,\n", ':2: column "city": this cell is empty'),
        ("age,city\n", "header but no row"),
    ],
)
def test_a_new_csv_file_that_does_not_fit_is_refused(tmp_path, content, message):
    data = from_csv(tmp_path, TABLE, ignore=["group"])
    with pytest.raises(DataError) as raised:
        encode(write(tmp_path, "new.csv", content), data.features)
    assert message in str(raised.value)


@pytest.mark.parametrize("name", ["csv", "text"])
def test_text_that_is_not_utf_8_is_named_with_its_line(tmp_path, name):
    with pytest.raises(DataError, match=r":2: byte 0xe9 is not UTF-8"):
        sources[name].factory(path=write(tmp_path, "latin", "a,b\nété,1\n".encode("latin1")))
    with pytest.raises(DataError, match="UTF-16"):
        sources[name].factory(path=write(tmp_path, "wide", "a,b\n".encode("utf-16")))


@pytest.mark.parametrize("name", ["csv", "text", "npz", "safetensors"])
def test_a_file_that_is_missing_or_could_run_code_is_refused(tmp_path, name):
    write(tmp_path, "train.data", "x")
    with pytest.raises(DataError, match='no such file. Did you mean "train.data"'):
        sources[name].factory(path=str(tmp_path / "trian.data"))
    with pytest.raises(DataError, match="folder"):
        sources[name].factory(path=str(tmp_path))
    for suffix in (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle", ".h5", ".keras", ".PT"):
        with pytest.raises(DataError, match="can run code"):
            sources[name].factory(path=write(tmp_path, f"a{suffix}", "x"))


def test_text_is_cut_into_windows_of_character_ids(tmp_path):
    data = sources["text"].factory(path=write(tmp_path, "t", "hello wörld"), length=4)
    assert "".join(data.classes) == " dehlorwö" and data.vocabulary == 9 and data.y is None
    assert "".join(data.classes[i] for i in data.x) == "hello wörld" and data.x.dtype is torch.uint8
    assert data.starts.tolist() == [0, 4] and data.window == 4 and len(data) == 2
    assert sources["text"].factory(path=str(tmp_path / "t"), length=4, stride=3).starts.tolist() == [0, 3, 6]


def test_text_of_more_than_256_characters_takes_wider_ids(tmp_path):
    data = sources["text"].factory(path=write(tmp_path, "t", "".join(map(chr, range(300, 600)))), length=4)
    assert data.x.dtype is torch.int32 and data.x.tolist() == list(range(300))


def test_the_last_window_of_a_text_still_has_its_target(tmp_path):
    for size in range(5, 14):
        data = sources["text"].factory(path=write(tmp_path, "t", "ab" * size), length=4, stride=1)
        assert int(data.starts.max()) + data.window == len(data.x) - 1
    with pytest.raises(DataError, match="4 characters are too few for a window of 4"):
        sources["text"].factory(path=write(tmp_path, "t", "abcd"), length=4)


@pytest.mark.parametrize("name", ["npz", "safetensors"])
def test_parts_that_come_split_are_joined_and_their_rows_are_kept(tmp_path, name):
    x, y = arrays(9)
    parts = {"x_train": x[:5], "y_train": y[:5], "x_test": x[5:].clone(), "y_test": y[5:].clone()}
    save_file(parts, tmp_path / "d.safetensors")
    np.savez(tmp_path / "d.npz", **{key: value.numpy() for key, value in parts.items()})
    data = sources[name].factory(path=str(tmp_path / f"d.{name}"))
    assert data.x.equal(x) and data.y.equal(y)
    assert {part: list(rows) for part, rows in data.split.items()} == {"train": [0, 1, 2, 3, 4], "test": [5, 6, 7, 8]}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.int32])
def test_arrays_keep_their_own_dtype(tmp_path, dtype):
    x, y = arrays()
    assert from_arrays(tmp_path, {"x": x.to(dtype), "y": y.to(torch.uint8)}).x.dtype is dtype


@pytest.mark.parametrize(
    ("dtype", "wider"),
    [("uint16", torch.int32), ("uint32", torch.int64), ("uint64", torch.int64), (">f4", torch.float32)],
)
def test_numbers_that_torch_cannot_compute_with_become_wider(tmp_path, dtype, wider):
    np.savez(tmp_path / "d.npz", x=np.array([[1], [60000]], dtype), y=np.array([True, False]))
    data = sources["npz"].factory(path=str(tmp_path / "d.npz"))
    assert data.x.dtype is wider and data.x.tolist() == [[1], [60000]] and data.y.tolist() == [1, 0]


def test_whole_numbers_are_classes_and_floats_are_values_unless_said(tmp_path):
    x, y = arrays()
    assert from_arrays(tmp_path, {"x": x, "y": y.to(torch.int16)}).y.dtype is torch.int64
    assert from_arrays(tmp_path, {"x": x, "y": y.reshape(-1, 1)}).y.shape == (12,)
    assert from_arrays(tmp_path, {"x": x, "y": y.double()}).y.dtype is torch.float64
    assert from_arrays(tmp_path, {"x": x, "y": y.float()}, task="classes").classes == ("0", "1", "2")
    assert from_arrays(tmp_path, {"x": x, "y": y}, task="values").y.dtype is torch.float32


X, Y = arrays()
NAN = X.clone()
NAN[[3, 7], 1:3] = torch.nan
ARRAY_FAULTS = [
    ({"x": X, "z": Y}, {}, "there is no y. The file holds x, z."),
    ({"a": X, "b": Y}, {}, "there is no x, and no x_train"),
    ({"x_train": X, "y_train": Y, "x_val": X.clone()}, {}, "there is no y_val"),
    (
        {"x_train": X, "y_train": Y, "x_valid": X.clone()},
        {},
        "x_valid is not read: the parts are named train, val, test",
    ),
    ({"x": X, "y": Y[:10].clone()}, {}, "x has 12 rows, but y has 10"),
    (
        {"x_train": X, "y_train": Y, "x_val": X[:, :3].clone(), "y_val": Y.clone()},
        {},
        "x_val has samples of shape (3,)",
    ),
    ({"x": X[:0], "y": Y[:0]}, {}, "there is no sample"),
    ({"x": NAN, "y": Y}, {}, "x is NaN or infinite in 4 places of 2 rows, first in row 3"),
    ({"x": X, "y": NAN[:, 1].clone()}, {}, "y is NaN or infinite in 2 places of 2 rows"),
    ({"x": X, "y": Y + 1}, {}, "y[0] is 1 (4 rows): the labels are 1, 2, 3"),
    ({"x": X, "y": Y - 1}, {}, "y[0] is -1"),
    ({"x": X, "y": Y * (Y + 1) // 2}, {}, "y[2] is 3 (4 rows): the labels are 0, 1, 3"),
    ({"x_train": X, "y_train": Y, "x_val": X.clone(), "y_val": Y - 5 * (Y == 2)}, {}, "y_val[2] is -3"),
    ({"x": X, "y": Y * 0}, {}, "y is 0 in every row"),
    ({"x": X, "y": Y * 0.0}, {}, "y is the same in every row"),
    ({"x": X, "y": torch.eye(3)[Y].long()}, {}, "one-hot"),
    ({"x": X, "y": Y + 0.5}, {"task": "classes"}, "y[0] is no whole number"),
    ({"x": X.to(torch.float8_e4m3fn), "y": Y}, {}, "float8_e4m3fn"),
]


@pytest.mark.parametrize(("tensors", "arguments", "message"), ARRAY_FAULTS)
def test_a_fault_in_arrays_is_named_with_its_place(tmp_path, tensors, arguments, message):
    with pytest.raises(DataError) as raised:
        from_arrays(tmp_path, tensors, **arguments)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([{"a": 1}, None]), "Python objects"),
        (np.array(["a", "b"]), "holds no numbers"),
        (np.array([1j, 2]), "holds no numbers"),
        (np.array([1, 2**63], "uint64"), "beyond 2^63"),
    ],
)
def test_arrays_that_are_not_plain_numbers_are_refused(tmp_path, array, message):
    np.save(tmp_path / "x.npy", array)
    np.save(tmp_path / "y.npy", np.array([0, 1]))
    np.savez(tmp_path / "d.npz", x=array, y=np.array([0, 1]))
    for name, files in (("npy", {"x": "x.npy", "y": "y.npy"}), ("npz", {"path": "d.npz"})):
        with pytest.raises(DataError) as raised:
            sources[name].factory(**{key: str(tmp_path / file) for key, file in files.items()})
        assert message in str(raised.value)


def test_an_array_file_given_to_the_wrong_source_is_sent_to_the_right_one(tmp_path, examples):
    with pytest.raises(DataError, match="Use the source npz"):
        sources["npy"].factory(x=examples["npz"]["path"], y=examples["npy"]["y"])
    with pytest.raises(DataError, match="Use the source npy"):
        sources["npz"].factory(path=examples["npy"]["x"])


@pytest.mark.parametrize("name", ["npz", "safetensors", "npy"])
def test_a_damaged_array_file_is_one_line_of_error(tmp_path, name, examples):
    whole = Path(examples[name].get("path") or examples[name]["x"]).read_bytes()
    for damaged in (b"", b"junk", whole[: len(whole) // 2], whole.replace(b"{", b"(", 1)[:-1]):
        path = write(tmp_path, f"damaged.{name}", damaged)
        with pytest.raises(DataError) as raised:
            sources[name].factory(**({"x": path, "y": path} if name == "npy" else {"path": path}))
        assert str(raised.value).startswith(path) and "\n" not in str(raised.value)


def test_without_numpy_its_files_say_what_to_install(examples, monkeypatch):
    real = builtins.__import__

    def without_numpy(name, *rest, **more):
        if name == "numpy":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_numpy)
    for name in ("npy", "npz"):
        with pytest.raises(DataError, match="pip install numpy"):
            sources[name].factory(**examples[name])
    assert len(sources["safetensors"].factory(**examples["safetensors"])) == 12


def test_synthetic_data_follows_from_its_own_seed_and_is_roughly_balanced():
    make = sources["synthetic"].factory
    one, state = make(samples=2000, classes=4, seed=3), torch.get_rng_state()
    assert make(samples=2000, classes=4, seed=3).x.equal(one.x) and make(samples=2000, classes=4, seed=3).y.equal(one.y)
    assert not make(samples=2000, classes=4, seed=4).y.equal(one.y) and torch.get_rng_state().equal(state)
    assert (one.y.bincount(minlength=4) > 200).all()
    values = make(samples=500, classes=0, noise=0.5)
    assert (
        values.target == "values" and values.y.shape == (500,) and values.y.std() == pytest.approx(1.25**0.5, rel=0.1)
    )
    for classes in (1, 2000):
        with pytest.raises(ValueError, match="say 0 for values"):
            make(classes=classes)
