"""No file may bite: whatever lies under a name, reading it ends soon, in little memory, in one error in plain words."""

import json
import os
import shutil
import socket
import struct
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import fitkit
from fitkit import files, run_folder
from fitkit.after.finished import read_spec
from fitkit.after.predict import as_text, predict_file
from fitkit.after.run_outcomes import file_outcomes, read_outcomes
from fitkit.after.survey import survey
from fitkit.builder import build, load_spec
from fitkit.commands import common
from fitkit.engine import checkpoint, weights
from fitkit.engine.checkpoint import Checkpoint
from fitkit.errors import CheckpointError, DataError, FitkitError, SpecError
from fitkit.history import History
from fitkit.parts import array_file, csv_table, input_file
from fitkit.parts.sources import sources
from fitkit.resume import capture, restore

TABLE = "width,colour,kind\n" + "".join(f"{i % 7},{'rb'[i % 2]},{'ny'[i % 3 > 0]}\n" for i in range(40))
SPEC = {"data": {"csv": "table.csv"}, "model": {"mlp": [4]}, "fit": {"epochs": 2, "device": "cpu"}}
SOURCES = ("csv", "text", "npz", "safetensors", "npy")


def odd_files(folder):
    """Return what may lie under a name and is no file to be read, by what a message calls it."""
    made = {"folder": folder / "odd-folder", "pipe": folder / "odd-pipe", "socket": folder / "odd-socket"}
    made["folder"].mkdir()
    os.mkfifo(made["pipe"])
    cwd = os.getcwd()
    os.chdir(folder)  # the path of a socket may have 107 bytes only
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("odd-socket")
    os.chdir(cwd)
    return {**made, "device": Path("/dev/zero")}


def read(source, path):
    given = {"x": str(path), "y": str(path)} if source == "npy" else {"path": str(path)}
    return sources[source].factory(**given)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    (folder / "table.csv").write_text(TABLE)
    declared = {**SPEC, "data": {"csv": str(folder / "table.csv")}}
    fitkit.fit(declared, out=folder / "run")
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy of a finished run that a test may damage."""
    return Path(shutil.copytree(finished / "run", tmp_path / "run"))


@pytest.fixture
def poor(monkeypatch):
    """Let this machine seem to have a megabyte of memory."""
    monkeypatch.setattr(files, "available_memory", lambda: 1_000_000)


# What is no plain file


def test_only_plain_files_are_opened_and_links_where_they_may_be(tmp_path):
    for kind, path in odd_files(tmp_path).items():
        with pytest.raises(OSError, match=kind):
            files.open_file(path)
    (tmp_path / "file").write_text("12345")
    (tmp_path / "link").symlink_to("file")
    assert files.read_bytes(tmp_path / "link", most=5) == b"12345"
    with pytest.raises(OSError, match="link"):
        files.open_file(tmp_path / "link", links=False)
    with pytest.raises(OSError, match="5 bytes, and at most 4"):
        files.read_bytes(tmp_path / "file", most=4)


@pytest.mark.parametrize("source", SOURCES)
def test_data_that_is_no_plain_file_is_refused_at_once(source, tmp_path):
    for kind, path in odd_files(tmp_path).items():
        with pytest.raises(DataError, match=kind):
            read(source, path)


def test_a_spec_that_is_no_plain_file_is_refused_at_once(tmp_path):
    for kind, path in odd_files(tmp_path).items():
        with pytest.raises(SpecError, match=kind):
            fitkit.load_spec(path)


def commands_on(folder):
    """Every way to read a run folder in Python."""
    return [
        lambda: fitkit.load(folder),
        lambda: run_folder.status(folder),
        lambda: run_folder.read_history(folder),
        lambda: run_folder.read_environment(folder),
        lambda: run_folder.read_data_check(folder),
        lambda: read_spec(folder),
        lambda: read_outcomes(folder, "val", Path("/"), command=""),
        lambda: weights.load(folder / "model.safetensors", links=False),
    ]


RUN = ("model.safetensors", "summary.json", "env.json", "history.json", "resolved.yaml", "data_check.json")


@pytest.mark.parametrize("name", RUN)
def test_a_run_folder_holds_plain_files_only(name, run, tmp_path):
    whole = (run / name).read_bytes()
    (tmp_path / "elsewhere").write_bytes(whole)
    (run / name).unlink()
    for path in [*odd_files(tmp_path).values(), tmp_path / "elsewhere"]:
        (run / name).symlink_to(path)
        refused = 0
        for command in commands_on(run):
            try:
                command()
            except FitkitError:
                refused += 1
        assert refused >= 2  # by the command that reads it, and by evaluate, which reads all
        (run / name).unlink()
    os.mkfifo(run / name)
    for command in commands_on(run):
        try:
            command()
        except FitkitError:
            refused += 1


@pytest.mark.parametrize("name", ["MANIFEST.json", "state.json", "model.safetensors"])
def test_a_checkpoint_holds_plain_files_only(name, tmp_path):
    path = checkpoint.write(tmp_path, 1, {"model": {"w": torch.ones(3)}}, {"n": 1})
    (path / name).rename(tmp_path / "elsewhere")
    (path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=name):
        checkpoint.read(path)
    (path / name).unlink()
    os.mkfifo(path / name)
    with pytest.raises(CheckpointError, match=name):
        checkpoint.read(path)


# What is larger than it seems, or than the memory


def test_the_memory_that_is_available_is_the_least_that_any_limit_leaves(tmp_path, monkeypatch):
    assert files.available_memory() is None or files.available_memory() > 1 << 20
    monkeypatch.setattr(files, "_meminfo", lambda: 1000)
    monkeypatch.setattr(files, "_cgroup", lambda: 300)
    assert files.available_memory() == 300
    assert files.too_much(300) is None and "300 bytes are available" in files.too_much(301)
    monkeypatch.setattr(files, "_cgroup", lambda: None)
    assert files.available_memory() == 1000 and files.too_much(501, 0.5) and not files.too_much(500, 0.5)
    monkeypatch.setattr(files, "_meminfo", lambda: None)
    assert files.available_memory() is None and files.too_much(10**18) is None


def test_a_control_group_leaves_its_limit_less_what_it_uses_and_cannot_give_back(tmp_path):
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 200\n")
    assert files._left(tmp_path, "memory.max", "memory.current") == 500
    (tmp_path / "memory.max").write_text("max\n")
    assert files._left(tmp_path, "memory.max", "memory.current") is None


@pytest.mark.parametrize("source", SOURCES)
def test_a_sparse_file_of_terabytes_is_refused(source, tmp_path):
    path = tmp_path / "data"
    path.write_bytes({"npy": b"\x93NUMPY", "npz": b"PK\3\4", "safetensors": b"\xff" * 8}.get(source, b"a,b\n"))
    os.truncate(path, 8 << 40)
    with pytest.raises(DataError) as raised:
        read(source, path)
    assert str(path) in str(raised.value)


def test_a_weights_file_and_a_checkpoint_larger_than_the_memory_are_refused(run, tmp_path, poor):
    path = run / "model.safetensors"
    header = json.dumps({"model.w": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(path, 8 + len(header) + 2**40)
    with pytest.raises(CheckpointError, match="of memory"):
        fitkit.load(run)
    checkpoint.write(tmp_path / "c", 1, {"model": {"w": torch.ones(1_000_000)}}, {})
    with pytest.raises(CheckpointError, match="4,000,"):
        checkpoint.read(tmp_path / "c/step-1")


def npy(shape, dtype="<f4", order=False, body=b""):
    header = repr({"descr": dtype, "fortran_order": order, "shape": shape}).encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + body


@pytest.mark.parametrize("shape", [(10**12,), (2**62, 4), (-1,), (3, -2), (10**30,)])
def test_an_array_that_declares_more_than_there_is_takes_no_memory(shape, tmp_path):
    (tmp_path / "x.npy").write_bytes(npy(shape, body=b"\0" * 64))
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", npy(shape, body=b"\0" * 64))
    tracemalloc.start()
    for name in ("x.npy", "x.npz"):
        with pytest.raises(DataError, match="its header says shape"):
            array_file.read_x(str(tmp_path / name), "x")
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


def test_a_second_array_behind_the_first_is_not_left_out_in_silence(tmp_path):
    with (tmp_path / "x.npy").open("wb") as file:
        np.save(file, np.ones(3))
        np.save(file, np.zeros(3))
    with pytest.raises(DataError, match="24 bytes; 176 are there"):
        array_file.read_x(str(tmp_path / "x.npy"), "x")


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_archive_packed_as_numpy_packs_none_is_refused(packing, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w", packing) as archive:
        archive.writestr("x.npy", npy((10**6,), body=b"\0" * 4 * 10**6))
    with pytest.raises(DataError, match=r"np\.savez"):
        array_file.read_x(str(tmp_path / "x.npz"), "x")


def test_an_archive_that_unpacks_beyond_the_memory_is_refused(tmp_path, poor):
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", npy((10**6,), body=b"\0" * 4 * 10**6))
    assert (tmp_path / "x.npz").stat().st_size < 10_000
    with pytest.raises(DataError, match="4,000,000 bytes of memory, and 1,000,000 bytes are available"):
        array_file.read_x(str(tmp_path / "x.npz"), "x")


def test_an_archive_of_a_million_names_is_refused_before_they_are_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", b"")
    raw = (tmp_path / "x.npz").read_bytes()
    at = raw.index(b"PK\1\2")
    entry, end = raw[at : raw.index(b"PK\5\6")], bytearray(raw[raw.index(b"PK\5\6") :])
    table = entry * (5_000_000 // len(entry))
    end[12:16] = struct.pack("<I", len(table))
    (tmp_path / "x.npz").write_bytes(raw[:at] + table + end)
    with pytest.raises(DataError, match="table of contents"):
        array_file.read_x(str(tmp_path / "x.npz"), "x")


def test_numpy_s_own_archives_are_read_in_every_way_of_writing(tmp_path):
    x = np.arange(12, dtype=">i4").reshape(3, 4)
    for name, array in {"c": x, "fortran": np.asfortranarray(x)}.items():
        np.savez_compressed(tmp_path / f"{name}.npz", x=array)
        np.save(tmp_path / f"{name}.npy", array)
        for suffix in (".npz", ".npy"):
            assert array_file.read_x(str(tmp_path / f"{name}{suffix}"), "x").tolist() == x.tolist()


def test_a_table_beyond_the_memory_is_refused_before_it_is_split_into_cells(tmp_path, poor):
    (tmp_path / "t.csv").write_text("a,b\n" + "1,2\n" * 5_000)
    with pytest.raises(DataError, match="cells, which takes"):
        csv_table.read_table(str(tmp_path / "t.csv"))
    (tmp_path / "t.csv").write_text("a\n" + "1" * 200_000)
    with pytest.raises(DataError, match="200,002 bytes, which takes"):
        csv_table.read_table(str(tmp_path / "t.csv"))


def test_a_table_that_becomes_too_wide_names_the_column_of_most_texts(tmp_path, monkeypatch):
    rows = "".join(f"a{i % 90},b{i % 3},{i}\n" for i in range(900))
    (tmp_path / "t.csv").write_text("wide,narrow,y\n" + rows)
    assert sources["csv"].factory(path=str(tmp_path / "t.csv")).x.shape == (900, 93)
    monkeypatch.setattr(files, "available_memory", lambda: 1_300_000)
    with pytest.raises(DataError, match='900 rows become 93 columns.*"wide" has the most texts, 90'):
        sources["csv"].factory(path=str(tmp_path / "t.csv"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n" + "x" * 200_000 + ",1\n", "field larger than field limit"),
        (",".join(f"c{i}" for i in range(100_001)) + "\n", "100,001 columns"),
        ("a" * 1001 + ",b\n1,2\n", "name of 1,001 characters"),
    ],
)
def test_a_table_of_one_enormous_line_is_refused(content, message, tmp_path):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        csv_table.read_table(str(tmp_path / "t.csv"))


def test_a_text_beyond_the_memory_is_refused(tmp_path, poor):
    (tmp_path / "t.txt").write_text("a" * 50_000)
    with pytest.raises(DataError, match="50,000 bytes, which takes"):
        sources["text"].factory(path=str(tmp_path / "t.txt"))
    assert input_file.read_text(str(tmp_path / "t.txt"), bytes_each=2) == "a" * 50_000


# Kinds of files that are opened nowhere


@pytest.mark.parametrize("suffix", sorted(files.RECIPES))
def test_a_kind_that_can_run_code_is_opened_nowhere_and_the_error_converts_it(suffix, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"it{suffix}"
    path.write_bytes(b"\x80\x04]\x94.")
    run, name = finished / "run", path.name
    attempts = [
        lambda: fitkit.fit(path),
        lambda: fitkit.fit({"extends": name, **SPEC}),
        lambda: load_spec(f"data: {name}\nmodel: mlp\n"),
        lambda: load_spec(f"data: iris\nmodel: {name}\n"),
        *(lambda source=source: read(source, path) for source in SOURCES),
        lambda: fitkit.fit({"model": {"mlp": [4]}}, data=str(path)),
        lambda: fitkit.load(path),
        lambda: file_outcomes(run, path),
        lambda: predict_file(run, path, tmp_path / "p.csv"),
        lambda: survey(path, None, tmp_path),
        lambda: common.run_folder(name),
    ]
    for attempt in attempts:
        with pytest.raises(FitkitError) as raised:
            attempt()
        assert len(str(raised.value).splitlines()) == 3 and f'"it{suffix}"' in str(raised.value)


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.safetensors", "x.csv"])
def test_a_pickle_under_another_name_is_damaged_data(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(b"\x80\x04\x95\x0b\0\0\0\0\0\0\0\x8c\x04eval\x94.")
    with pytest.raises(DataError, match=r"format|read as|UTF-8"):
        read(name[2:], path)
    torch.save({"x": torch.ones(3)}, path)
    with pytest.raises(DataError):
        read(name[2:], path)
    with pytest.raises(CheckpointError):
        fitkit.load(path)


# Weights


def changed(path, change, metadata=None):
    """Write a weights file again with `change` made to its tensors, and its card as it was."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        card = file.metadata()[weights.CARD]
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {weights.CARD: metadata(card) if metadata else card})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_by_their_name(value, run):
    name = next(name for name in load_file(run / "model.safetensors") if name.endswith("weight"))
    changed(run / "model.safetensors", lambda tensors: tensors[name].view(-1)[0].fill_(value))
    message = f'"{name.removeprefix(weights.MODEL)}" is NaN or infinite'
    with pytest.raises(CheckpointError, match=message):
        fitkit.load(run)
    with pytest.raises(CheckpointError, match=message):
        read_outcomes(run, "val", Path("/"), command="")


def test_a_buffer_may_be_infinite_as_a_mask_is_but_not_nan(tmp_path):
    model = nn.Linear(2, 2)
    model.register_buffer("mask", torch.full((2, 2), -torch.inf))
    weights.put(model, model.state_dict(), tmp_path)
    with pytest.raises(CheckpointError, match='"mask" is NaN'):
        weights.put(model, {**model.state_dict(), "mask": torch.full((2, 2), torch.nan)}, tmp_path)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_weights_of_another_kind_of_number_are_refused(dtype, run):
    def change(tensors):
        for name in tensors:
            tensors[name] = tensors[name].to(dtype)

    changed(run / "model.safetensors", change)
    with pytest.raises(CheckpointError, match="transform|numbers, and the model"):
        fitkit.load(run)
    model = nn.Linear(2, 2)
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(CheckpointError, match=f"holds {kind} numbers, and the model float32 ones"):
        weights.put(model, {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}, run)


def test_weights_of_another_width_are_converted_aloud(run):
    def change(tensors):
        for name in tensors:
            tensors[name] = tensors[name].double()

    changed(run / "model.safetensors", change)
    with pytest.warns(UserWarning, match="its weights are float64, the model's float32: they are converted"):
        model = fitkit.load(run).module
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_card_that_asks_for_an_enormous_model_takes_no_memory(run):
    def metadata(text):
        card = json.loads(text)
        card["spec"]["model"] = {"mlp": {"hidden": [10**6, 10**6]}}
        return json.dumps(card)

    changed(run / "model.safetensors", lambda tensors: None, metadata)
    with pytest.raises(CheckpointError, match="do not fit this model"):
        fitkit.load(run)


@pytest.mark.parametrize(
    "damage",
    [
        lambda card: card.update(features=[{"name": "a", "categories": "abc"}]),
        lambda card: card.update(features=[{"name": "a", "categories": ["x", "x", "y"]}]),
        lambda card: card.update(features=[{"name": 1, "categories": ["x", "y", "z"]}]),
        lambda card: card.update(features=[{"name": "a", "categories": None}] * 3),
        lambda card: card["inputs"].update(shape=[10**9]),
        lambda card: card.update(outputs=1e300),
        lambda card: card.update(classes=["n", "y", "z"]),
        lambda card: card.update(ties={"model.x": "model.y"}),
        lambda card: card.update(ties=[1]),
    ],
)
def test_a_card_that_does_not_fit_is_refused(damage, run):
    def metadata(text):
        card = json.loads(text)
        damage(card)
        return json.dumps(card)

    changed(run / "model.safetensors", lambda tensors: None, metadata)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        fitkit.load(run)


def test_names_that_make_a_card_too_long_are_told_before_training(monkeypatch):
    monkeypatch.setattr("fitkit.builder.card.MOST_CARD_BYTES", 100)
    with pytest.raises(DataError, match="too long for a weights file"):
        build({"data": "iris", "model": {"mlp": [4]}})


# JSON


HOSTILE = {
    "deep": "[" * 100_000,
    "NaN": '{"status": NaN}',
    "Infinity": '{"status": -Infinity}',
    "huge": '{"status": 1e999}',
    "twice": '{"status": "finished", "status": "failed"}',
    "digits": '{"status": ' + "9" * 5000 + "}",
    "list": "[]",
    "number": "7",
    "null": "null",
    "empty": "",
    "cut": '{"status": "fin',
    "type": '{"status": ["finished"], "columns": [], "format": 1}',
    "columns": '{"format": 1, "columns": {"loss": {"a": 1}}, "directions": {}, "spec": null}',
    "not UTF-8": b"\xff\xfe{}",
    "word": '{"status": "whatever"}',
}


@pytest.mark.parametrize("damage", HOSTILE)
@pytest.mark.parametrize("name", ["summary.json", "env.json", "history.json", "data_check.json", "test_looks.json"])
def test_damaged_json_is_one_error_that_names_the_file(name, damage, run):
    text = HOSTILE[damage]
    (run / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    attempts = {
        "summary.json": lambda: run_folder.status(run),
        "env.json": lambda: run_folder.read_environment(run),
        "history.json": lambda: run_folder.read_history(run),
        "data_check.json": lambda: run_folder.read_data_check(run),
        "test_looks.json": lambda: read_outcomes(run, "test", Path("/"), command=""),
    }
    fits = {
        "env.json": (objects := {"type", "columns", "word"}),
        "data_check.json": objects,
        "test_looks.json": {"list"},
    }
    if damage in fits.get(name, ()):
        return
    with pytest.raises(FitkitError) as raised:
        attempts[name]()
    if name != "test_looks.json":
        assert name in str(raised.value) and isinstance(raised.value, CheckpointError)
    assert len(str(raised.value)) < 1000


def test_json_is_strict():
    assert files.parse_json('{"a": [1, 2.5, null, true]}') == {"a": [1, 2.5, None, True]}
    for text, message in {
        "NaN": "NaN is not JSON",
        '{"a": 1, "a": 1}': '"a" is there twice',
        "1e999": "any float",
    }.items():
        with pytest.raises(ValueError, match=message):
            files.parse_json(text)
    with pytest.raises(ValueError, match="nested too deeply"):
        files.parse_json("[" * 100_000)


def test_a_column_of_a_history_is_no_formula():
    text = History(["loss"], {"loss": "min"}).to_json()
    for name in ("=1+1", "+a", "-a", "@a", "\\ta", ""):
        with pytest.raises(CheckpointError, match="no name of a column"):
            History.from_json(text.replace('"loss"', f'"{name}"'))


# Checkpoints


STOPPED_EARLY = {"callbacks": {"EarlyStopping": {"patience": 3}}, "fit": {"epochs": 2}}


def trainer():
    made = build({"data": "iris", "model": {"mlp": [4]}, **STOPPED_EARLY})
    made._call("train_begin")
    return made


@pytest.fixture(scope="module")
def captured():
    """The state of a trainer after a fit, as a checkpoint holds it."""
    made = build({"data": "iris", "model": {"mlp": [4]}, **STOPPED_EARLY})
    made.fit()
    tensors, state = capture(made)
    return tensors, json.dumps(state)


@pytest.mark.parametrize("value", ["os.system", 1.0, True])
def test_an_optimizer_of_torch_keeps_nothing_but_tensors(value, captured, tmp_path):
    tensors, text = captured
    state = json.loads(text)
    state["optimizer"]["values"] = {"0.exp_avg": value}
    groups = {**tensors, "optimizer": {n: t for n, t in tensors["optimizer"].items() if n != "0.exp_avg"}}
    with pytest.raises(CheckpointError, match=r"exp_avg"):
        restore(trainer(), Checkpoint(tmp_path, groups, state))


def test_a_checkpoint_as_it_was_written_fits(captured, tmp_path):
    tensors, state = captured
    made = trainer()
    restore(made, Checkpoint(tmp_path, tensors, json.loads(state)))
    assert made.epoch == 2 and len(made.history) == 2


WRONG = [None, True, -1, "x", [1], {"a": 1}, 10**400]


def places(value, path=()):
    """Yield the path of every value in a tree of JSON."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def test_every_value_of_a_state_is_checked_before_anything_is_changed(captured, tmp_path):
    tensors, text = captured
    made = trainer()
    before = {name: tensor.clone() for name, tensor in made.model.state_dict().items()}
    refused = 0
    for path in places(json.loads(text)):
        for wrong in WRONG if path else WRONG[:-1]:
            state = json.loads(text)
            inner = state
            for key in path[:-1]:
                inner = inner[key]
            if path:
                inner[path[-1]] = wrong
            try:
                restore(made, Checkpoint(tmp_path, tensors, state if path else wrong))
            except CheckpointError as error:
                refused += 1
                assert str(tmp_path) in str(error) and len(str(error)) < 1000
                assert all(torch.equal(before[name], tensor) for name, tensor in made.model.state_dict().items())
            else:
                made = trainer()
    assert refused > 150


@pytest.mark.parametrize(
    "damage",
    [
        lambda groups: groups["model"].popitem(),
        lambda groups: groups["model"].update(more=torch.ones(1)),
        lambda groups: groups["best"].clear(),
        lambda groups: groups["optimizer"].update({"0.exp_avg": torch.ones(7)}),
        lambda groups: groups["optimizer"].update({"99.exp_avg": torch.ones(1)}),
        lambda groups: groups["optimizer"].update({"exp_avg": torch.ones(1)}),
        lambda groups: groups["sums"].pop("loss"),
        lambda groups: groups["sums"].update(loss=torch.ones(1, 1, 1)),
        lambda groups: groups["model"].update({n: t.long() for n, t in groups["model"].items()}),
        lambda groups: groups["model"].update({n: t.half() for n, t in groups["model"].items()}),
    ],
)
def test_tensors_that_do_not_fit_are_refused(damage, captured, tmp_path):
    tensors, state = captured
    groups = {name: dict(group) for name, group in tensors.items()}
    damage(groups)
    with pytest.raises(CheckpointError, match="does not fit this run"):
        restore(trainer(), Checkpoint(tmp_path, groups, json.loads(state)))


# What is written


@pytest.mark.parametrize(
    "name",
    ["Model.safetensors", "MODEL.SAFETENSORS", "model.safetensors", "Checkpoints/a.safetensors", ".lock/a.safetensors"]
    + [".model.safetensors.tmp.safetensors", "./model.safetensors"],
)
def test_no_callback_writes_over_the_files_of_the_run(name):
    with pytest.raises(SpecError, match="fitkit"):
        load_spec({"data": "iris", "model": "mlp", "callbacks": {"ModelCheckpoint": {"filepath": name}}})


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ('=HYPERLINK("http://x")', '\'=HYPERLINK("http://x")'),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
        ("-2+3", "'-2+3"),
        ("\tx", "'\tx"),
        ("＝1+1", "'＝1+1"),
        ("-1", "-1"),
        ("+1.5e3", "+1.5e3"),
        ("+", "+"),
        ("-", "-"),
        ("a=b", "a=b"),
        ("", ""),
    ],
)
def test_a_class_that_a_spreadsheet_would_compute_is_written_as_text(name, cell):
    assert as_text(name) == cell


def test_predictions_hold_no_formula_and_say_so(finished, run, tmp_path, monkeypatch):
    monkeypatch.chdir(finished)

    def metadata(text):
        card = json.loads(text)
        card["classes"] = ["=1+1", "y"]
        return json.dumps(card)

    changed(run / "model.safetensors", lambda tensors: None, metadata)
    with pytest.warns(UserWarning, match="formula"):
        predict_file(run, finished / "table.csv", tmp_path / "p.csv")
    cells = {cell for line in (tmp_path / "p.csv").read_text().split() for cell in line.split(",")}
    assert "'=1+1" in cells and "=1+1" not in cells


def test_only_the_mistakes_that_are_shown_are_guessed_at(monkeypatch):
    from fitkit.spec import check

    asked = []
    monkeypatch.setattr(check, "nearest", lambda word, choices: asked.append(word))
    with pytest.raises(SpecError) as raised:
        load_spec({"data": "iris", "model": [f"Linaer{i}" for i in range(900)]})
    assert len(raised.value.faults) == 900 and len(asked) <= 20


def test_warnings_of_a_clean_load_are_none(finished):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fitkit.load(finished / "run").predict(torch.zeros(2, 3)).tolist()


def test_the_first_bytes_of_a_tensor_are_those_it_would_write(tmp_path):
    tensors = torch.randn(4, 5).T, torch.zeros(0), torch.tensor(3.0), torch.tensor([True, False]), torch.arange(6)[::2]
    for tensor in tensors:
        whole = bytes(tensor.contiguous().view(-1).view(torch.uint8).tolist())
        assert weights.first_bytes(tensor) == whole and weights.first_bytes(tensor, 3) == whole[:3]
