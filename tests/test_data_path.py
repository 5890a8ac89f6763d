"""The way of the data into a step: arrays that stay in their file, one copy of those in memory, batched reads."""

import os
import random
import signal
import struct
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, Dataset, StackDataset, Subset

import fitkit
from fitkit import data as data_module
from fitkit import files
from fitkit.engine import mapped
from fitkit.engine.batches import ArrayBatches
from fitkit.engine.loading import LoaderBatches, reads_batches
from fitkit.engine.mapped import MappedBatches
from fitkit.engine.signals import Interrupted
from fitkit.errors import DataError, SpecError
from fitkit.files import MappedFile
from fitkit.parts import mapped_file, transforms
from fitkit.parts.sources import sources
from tests.small_fit import Noisy, linear, same_bits

ROWS, SIDES = 103, (3, 5)
any_cores = pytest.mark.filterwarnings("ignore:This DataLoader will create")
linux = pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="only Linux tells what memory is a file's")


def array(dtype, rows=ROWS, sides=SIDES):
    return np.random.default_rng(0).integers(0, 99, (rows, *sides)).astype(dtype)


LABELS = np.arange(ROWS) % 3


@pytest.fixture
def folder(tmp_path):
    """A folder with x and y as two .npy files, and as one safetensors file of parts."""
    np.save(tmp_path / "x.npy", array("uint8"))
    np.save(tmp_path / "y.npy", LABELS)
    x, y = torch.from_numpy(array("float32")), torch.from_numpy(LABELS)
    spans = {"train": slice(0, 60), "val": slice(60, 80), "test": slice(80, None)}
    parts = {f"{name}_{part}": t[span].clone() for part, span in spans.items() for name, t in (("x", x), ("y", y))}
    save_file(parts, tmp_path / "parts.safetensors")
    return tmp_path


@pytest.fixture
def poor(monkeypatch):
    """Let this machine seem to have a kilobyte of memory for data, and enough for the rest."""
    monkeypatch.setattr(files, "available_memory", lambda: 3_000)


def npy(folder, read, **more):
    return {"npy": {"x": str(folder / "x.npy"), "y": str(folder / "y.npy"), "read": read, **more}}


def parts(folder, read, **more):
    return {"safetensors": {"path": str(folder / "parts.safetensors"), "read": read, **more}}


def spec(data, **fit):
    return {"data": data, "model": [{"Flatten": {}}, {"Linear": "outputs"}], "fit": {"epochs": 2, **fit}}


def trained(data, model=None, given=None, **fit):
    """Return the weights and the history of a fit."""
    fit = {"batch_size": 8, "device": "cpu", **fit}
    trainer = fitkit.build(spec(data, **fit), model=model, data=given)
    history = trainer.fit()
    return trainer, {k: v for k, v in history.history.items() if k != "epoch_seconds"}


def readers(seconds=0.0):
    """Return the threads that read, after so long a time to end."""
    found = [thread for thread in threading.enumerate() if thread.name.startswith("fitkit-read")]
    for thread in found:
        thread.join(seconds)
    return [thread for thread in found if thread.is_alive()]


def on_disk(folder, name="x.npy", **more):
    data = sources["npy"].factory(x=str(folder / name), y=str(folder / "y.npy"), read="map")
    return data, MappedBatches(
        data.x, data.y, file=data.file, **{"batch_size": 8, "device": torch.device("cpu"), **more}
    )


# What a map may not change


@pytest.mark.parametrize("source", [npy, parts])
@pytest.mark.parametrize("transform", ["auto", "none", "standardize"])
def test_a_map_gives_the_numbers_of_the_memory_to_the_bit(source, transform, folder, monkeypatch):
    monkeypatch.setattr(mapped, "READ_BYTES", 300)  # some twenty reads an epoch
    one, kept = trained(source(folder, "memory", transform=transform))
    other, seen = trained(source(folder, "map", transform=transform), accumulate=1)
    assert isinstance(one.train, ArrayBatches) and isinstance(other.train, MappedBatches)
    assert kept == seen and same_bits(one.model.state_dict(), other.model.state_dict())


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("start", [0, 1, 7, 13])
def test_batches_of_a_map_are_those_of_the_memory_from_any_start(start, waits, folder, monkeypatch):
    monkeypatch.setattr(mapped, "READ_BYTES", 250)
    monkeypatch.setattr(mapped, "ROW_SECONDS", -1.0 if waits else 1.0)
    rows = torch.arange(0, ROWS, 2)
    data, batches = on_disk(folder, batch_size=4, rows=rows)
    batches.large = True
    memory = ArrayBatches(data.x.clone(), data.y, batch_size=4, rows=rows)
    for one, other in ((batches.shuffled(3, 2, start), memory.shuffled(3, 2, start)), (batches.in_order(),) * 2):
        for (x, y), (x_memory, y_memory) in zip(one, other if other is not one else memory.in_order(), strict=True):
            assert torch.equal(x, x_memory) and torch.equal(y, y_memory) and x.dtype == torch.uint8
    assert (batches.samples, batches.per_epoch) == (memory.samples, memory.per_epoch)
    assert batches.waits == waits


def test_a_mapped_run_goes_on_in_the_middle_of_an_epoch_as_if_nothing_had_been(folder, tmp_path):
    declared = {**spec(npy(folder, "map"), batch_size=8, device="cpu"), "optimizer": "Adam"}

    def fit(name, stop=None, resume=False):
        watch = fitkit.LambdaCallback(on_step_end=lambda t: t.step == stop and t.interrupt(signal.SIGTERM))
        return fitkit.fit(declared, out=tmp_path / name, callbacks=[watch], resume=resume)

    whole = fit("whole")
    with pytest.raises(Interrupted):
        fit("cut", stop=13)
    assert not readers(5)
    history = fit("cut", resume=True)
    assert history["loss"] == whole["loss"] and history["val_loss"] == whole["val_loss"]
    states = [load_file(tmp_path / run / "model.safetensors") for run in ("whole", "cut")]
    assert same_bits(*states)


# When an array stays in its file


def test_auto_maps_what_would_not_fit_and_memory_refuses_it(folder, poor):
    for name in ("npy", "parts"):
        make = {"npy": npy, "parts": parts}[name]
        [(source, arguments)] = make(folder, "auto").items()
        assert sources[source].factory(**arguments).file is not None
        with pytest.raises(DataError, match="of memory"):
            sources[source].factory(**{**arguments, "read": "memory"})


def test_auto_keeps_in_memory_what_fits_and_what_is_written_to_the_file_later_does_not_show(folder):
    for make in (npy, parts):
        [(source, arguments)] = make(folder, "auto").items()
        data = sources[source].factory(**arguments)
        before = data.x.clone()
        path = folder / ("x.npy" if source == "npy" else "parts.safetensors")
        with path.open("r+b") as file:
            file.seek(-64, 2)
            file.write(b"\1" * 64)
        assert data.file is None and torch.equal(data.x, before)


def test_parts_that_lie_apart_in_a_file_cannot_be_mapped(tmp_path):
    pieces = {"x_train": torch.ones(4, 2), "x_u": torch.ones(1), "x_val": torch.ones(4, 2)}
    save_file({**pieces, "y_train": torch.arange(4) % 2, "y_val": torch.arange(4) % 2}, tmp_path / "a.safetensors")
    renamed = (tmp_path / "a.safetensors").read_bytes().replace(b'"x_u"', b'"w_u"')
    (tmp_path / "a.safetensors").write_bytes(renamed)
    with pytest.raises(DataError, match="side by side"):
        sources["safetensors"].factory(path=str(tmp_path / "a.safetensors"), read="map")
    assert len(sources["safetensors"].factory(path=str(tmp_path / "a.safetensors"))) == 8


@pytest.mark.parametrize(
    ("saved", "said"),
    [
        (np.asfortranarray(array("float32")), "Fortran order"),
        (array(">f4"), ">f4, with which no step can compute"),
        (array("uint16"), "<u2, with which"),
        (array("bool"), "b1, with which"),
    ],
)
def test_an_array_that_no_step_can_use_as_it_lies_is_refused_with_what_to_write(saved, said, folder):
    np.save(folder / "x.npy", saved)
    with pytest.raises(DataError, match=said):
        fitkit.build(spec(npy(folder, "map")))
    assert fitkit.build(spec(npy(folder, "memory"))).train.samples


# Python hands over a map


@linux
@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_a_memmap_is_copied_only_where_it_is_small_and_nobody_may_write_to_it(mode, folder, monkeypatch):
    x = np.load(folder / "x.npy", mmap_mode=mode)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(15, 3))
    small, _ = trained({"arrays": {"transform": "scale"}}, model, (x, LABELS))
    assert isinstance(small.train, ArrayBatches)
    assert (small.train.x.data_ptr() == x.ctypes.data) == (mode != "r")
    monkeypatch.setattr(files, "available_memory", lambda: 3_000)
    large, _ = trained({"arrays": {"transform": "scale"}}, model, (x, LABELS))
    assert isinstance(large.train, MappedBatches) and large.train.x.data_ptr() == x.ctypes.data
    assert large.train.x.dtype == torch.uint8


@linux
def test_a_tensor_of_a_mapped_file_is_read_batch_by_batch_when_it_is_large(folder, poor):
    x = load_file(folder / "parts.safetensors")["x_train"]
    model = torch.nn.Sequential(torch.nn.Flatten(), linear(15, 3))
    trainer = fitkit.build({"fit": {"device": "cpu", "batch_size": 4}}, model=model, data=(x, LABELS[:60]))
    assert isinstance(trainer.train, MappedBatches) and trainer.train.x.data_ptr() == x.data_ptr()
    batch = next(iter(trainer.train.in_order()))[0]
    assert batch.dtype == torch.float64 and torch.equal(batch.float(), x[trainer.train.rows[:4]])
    memory = torch.from_numpy(array("float32"))
    assert isinstance(fitkit.build({}, model=model, data=(memory, LABELS)).train, ArrayBatches)


def test_a_large_array_that_torch_would_have_to_copy_is_refused(poor):
    with pytest.raises(DataError, match="uint16, of which torch needs a copy"):
        fitkit.build({}, model=linear(15, 3), data=(array("uint16"), LABELS))


# Memory


def test_arrays_from_python_are_used_where_they_are():
    x, y = torch.randint(0, 255, (50, 4), dtype=torch.uint8), torch.arange(50) % 2
    declared = {"data": {"arrays": {"transform": "scale"}}, "fit": {"device": "cpu"}}
    seen = []
    model = linear(4, 2).float()
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    trainer = fitkit.build(declared, model=model, data=(x, y))
    trainer.fit()
    assert trainer.train.x.data_ptr() == x.data_ptr() and trainer.train.y.data_ptr() == y.data_ptr()
    assert trainer.val.x is trainer.train.x and {x.dtype for x, _ in trainer.train.in_order()} == {torch.uint8}
    assert set(seen) == {torch.float32}  # converted in the step
    z = x.numpy()
    assert fitkit.build(declared, model=model, data=(z, y.numpy())).train.x.data_ptr() == z.ctypes.data


MEASURED = """
import sys
import fitkit
from fitkit.parts import transforms

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon"))

transforms.CHUNK = 1 << 20
folder, read = sys.argv[1:]
most = []
watch = fitkit.LambdaCallback(on_step_end=lambda trainer: most.append(anonymous()))
declared = {
    "data": {"npy": {"x": f"{folder}/x.npy", "y": f"{folder}/y.npy", "read": read}},
    "model": [{"Linear": "outputs"}],
    "fit": {"max_steps": 5, "batch_size": 16, "device": "cpu"},
}
fitkit.fit({**declared, "data": "iris"}, callbacks=[watch])
before = most.pop()
most.clear()
fitkit.fit(declared, callbacks=[watch])
print(max(most) - before)
"""


@linux
@pytest.mark.parametrize(("read", "share"), [("memory", 1.2), ("map", 0.3)])
def test_bytes_take_their_own_size_in_memory_once_or_hardly_any(read, share, tmp_path):
    rows, width = 2000, 65536
    np.save(tmp_path / "x.npy", np.ones((rows, width), dtype=np.uint8) * np.arange(rows, dtype=np.uint8)[:, None])
    np.save(tmp_path / "y.npy", np.arange(rows) % 2)
    command = [sys.executable, "-c", MEASURED, str(tmp_path), read]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # else glibc keeps some of what is freed
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    assert int(done.stdout) < share * rows * width


def test_what_is_not_finite_is_found_in_the_right_row_of_any_piece(folder, monkeypatch):
    monkeypatch.setattr(data_module, "PIECE", 100)
    x = array("float32")
    x[50, 1, 2], x[77] = np.nan, np.inf
    np.save(folder / "x.npy", x)
    for read in ("memory", "map"):
        with pytest.raises(DataError, match="in 16 places of 2 rows, first in row 50 "):
            fitkit.build(spec(npy(folder, read)))
    with pytest.raises(DataError, match="in 2 rows; the first is row 50"):
        fitkit.build({}, model=linear(15, 3), data=(x, LABELS))


def test_a_transform_is_fitted_piece_by_piece_to_the_same_bits(monkeypatch):
    x, rows = torch.randn(1000, 7, dtype=torch.float32), torch.arange(0, 1000, 3)
    monkeypatch.setattr(transforms, "CHUNK", 100)
    for fit in (transforms.standardize, transforms.scale):
        one, other = fit(x[rows]), fit(data_module.Rows(x, rows))
        assert torch.equal(one.shift, other.shift) and torch.equal(one.scale, other.scale)


def test_a_batch_or_a_row_that_the_memory_cannot_hold_is_refused_before_it_is_read(folder, monkeypatch):
    monkeypatch.setattr(files, "available_memory", lambda: 1_700)
    with pytest.raises(SpecError, match=r"fit\.batch_size: a batch of 64 rows takes"):
        fitkit.build(spec(npy(folder, "map"), batch_size=64))
    monkeypatch.setattr(files, "available_memory", lambda: 20)
    with pytest.raises(DataError, match="a single row takes"):
        fitkit.build(spec(npy(folder, "map")))


# The thread


def test_the_thread_ends_with_the_epoch_with_the_generator_and_with_an_error(folder, monkeypatch):
    monkeypatch.setattr(mapped, "READ_BYTES", 1)
    monkeypatch.setattr(mapped, "ROW_SECONDS", -1.0)  # every read counts as one of the disk
    _, batches = on_disk(folder)
    assert len(list(batches.in_order())) == 13 and not readers()
    some = batches.shuffled(0, 1)
    next(some)
    assert len(readers()) <= 1
    some.close()
    assert not readers()
    with pytest.raises(KeyboardInterrupt):
        for _ in batches.in_order():
            raise KeyboardInterrupt
    del _
    assert not readers()
    monkeypatch.setattr(batches, "_gather", lambda rows: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(batches.in_order())
    assert not readers()


def test_no_more_is_read_than_some_batches_ahead(folder, monkeypatch):
    monkeypatch.setattr(mapped, "READ_BYTES", 1)
    monkeypatch.setattr(mapped, "ROW_SECONDS", -1.0)
    _, batches = on_disk(folder)
    read, gather = [], batches._gather
    monkeypatch.setattr(batches, "_gather", lambda rows: read.append(len(rows)) or gather(rows))
    some = batches.in_order()
    next(some)
    assert not readers(5) and len(read) == 2
    next(some)
    assert not readers(5) and len(read) == 3


def test_what_lies_in_the_page_cache_is_gathered_without_a_thread(folder, monkeypatch):
    monkeypatch.setattr(mapped, "ROW_SECONDS", 1.0)
    monkeypatch.setattr(mapped, "_Ahead", None)
    _, batches = on_disk(folder)
    read, gather = [], batches._gather
    monkeypatch.setattr(batches, "_gather", lambda rows: read.append(len(rows)) or gather(rows))
    some = batches.in_order()
    next(some)
    assert len(read) == 1
    assert len(list(some)) == 12


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_mapped_fit_within_a_step_with_a_checkpoint(number, folder, tmp_path):
    steps = []

    def send(trainer):
        steps.append(trainer.step)
        if trainer.step == 5:
            os.kill(os.getpid(), number)

    watch = fitkit.LambdaCallback(on_step_end=send)
    with pytest.raises(Interrupted):
        fitkit.fit(spec(npy(folder, "map"), batch_size=8), out=tmp_path / "run", callbacks=[watch])
    assert len(steps) <= 6 and not readers(5)
    assert list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_thread_that_reads_ahead_draws_nothing(folder):
    _, batches = on_disk(folder)
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    list(batches.shuffled(0, 1))
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]


# Files that are not what they say, or change


def test_a_file_cut_short_or_one_that_says_more_than_it_holds_is_refused(folder):
    raw = (folder / "x.npy").read_bytes()
    for other in (raw[:-1], raw[:200], raw[:90], raw + b"\0", raw.replace(b"(103,", b"(903,"), b""):
        (folder / "x.npy").write_bytes(other)
        with pytest.raises(DataError, match=r"x\.npy"):
            fitkit.build(spec(npy(folder, "map")))
    raw = (folder / "parts.safetensors").read_bytes()
    for other in (raw[:-1], raw[:40], raw.replace(b"[60,3,5]", b"[90,3,5]"), raw.replace(b'"F32"', b'"F64"')):
        (folder / "parts.safetensors").write_bytes(other)
        with pytest.raises(DataError, match=r"parts\.safetensors"):
            fitkit.build(spec(parts(folder, "map")))


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (("F32", (2, 2), 8, 999), "there"),
        (("F32", (2, 2), -8, 8), "there"),
        (("F32", (2, 2), 9, 25), "no multiple of 4"),
        (("F32", (2.0, 2), 8, 24), "no array has"),
        (("F32", (-2, -2), 8, 24), "no array has"),
        (("F32", (True, 4), 8, 24), "no array has"),
        (("F8_E4M3", (16,), 8, 24), "no step can compute"),
    ],
)
def test_a_place_in_a_file_is_checked_before_it_is_used(place, said, tmp_path):
    (tmp_path / "f").write_bytes(bytes(64))
    with pytest.raises(DataError, match=said), open(tmp_path / "f", "rb") as file:
        mapped_file.Mapped(file, "f").array(*place, "f: x")


@pytest.mark.parametrize("change", ["shrink", "grow", "write"])
@pytest.mark.parametrize("source", [npy, parts])
def test_a_file_that_changes_between_check_and_fit_is_an_error_and_no_crash(source, change, folder):
    trainer = fitkit.build(spec(source(folder, "map"), device="cpu"))
    path = next(folder.glob("x.npy" if source is npy else "parts.*"))
    size, before = path.stat().st_size, path.stat()
    if change == "write":
        with path.open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"\0")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    else:
        os.truncate(path, 0 if change == "shrink" else size + 1)
    with pytest.raises(DataError, match=f"{path.name}: this file was changed while data was read"):
        trainer.fit()
    assert not readers(5)


def test_a_file_that_is_replaced_or_removed_is_read_on_as_it_was(folder):
    trainer, other = (fitkit.build(spec(npy(folder, "map"), device="cpu")) for _ in range(2))
    expected = trainer.fit()["loss"]
    (folder / "new").write_bytes(b"")
    os.replace(folder / "new", folder / "x.npy")
    assert other.fit()["loss"] == expected


@linux
def test_a_memmap_that_shrinks_is_an_error_and_no_crash(folder, poor):
    x = np.load(folder / "x.npy", mmap_mode="r")
    declared = {"data": {"arrays": {"transform": "scale"}}, "fit": {"device": "cpu", "batch_size": 8}}
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(15, 3))
    trainer = fitkit.build(declared, model=model, data=(x, LABELS))
    os.truncate(folder / "x.npy", 200)
    with pytest.raises(DataError, match="this file was changed"):
        trainer.fit()


@linux
def test_a_byte_of_memory_is_found_in_its_file(folder):
    x = np.load(folder / "x.npy", mmap_mode="r")[7:]
    found = files.mapped_file(x.ctypes.data)
    assert isinstance(found, MappedFile) and found.path == str(folder / "x.npy") and found.begin == 128 + 7 * 15
    assert files.mapped_file(array("float32").ctypes.data) is None
    assert files.mapped_file(torch.ones(5).share_memory_().data_ptr()) is None
    (folder / "x.npy").unlink()
    assert files.mapped_file(x.ctypes.data) is None


def test_a_pipe_and_a_folder_cannot_be_mapped(folder):
    (folder / "x.npy").unlink()
    os.mkfifo(folder / "x.npy")
    with pytest.raises(DataError, match="a pipe"):
        fitkit.build(spec(npy(folder, "map")))


def test_objects_in_a_file_are_never_opened(folder):
    np.save(folder / "x.npy", np.array([{}] * ROWS, dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="Python objects"):
        fitkit.build(spec(npy(folder, "map")))
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (103,)}"
    (folder / "x.npy").write_bytes(b"\x93NUMPY\2\0" + struct.pack("<I", len(header)) + header + bytes(824))
    with pytest.raises(DataError, match="Python objects"):
        fitkit.build(spec(npy(folder, "map")))


# A Dataset that reads whole batches


class Whole(Noisy):
    """`Noisy` with the noise of a batch drawn at once, and a count of the calls."""

    calls = 0

    def __getitems__(self, rows):
        self.calls += 1
        noise = torch.randn(len(rows), 2, dtype=torch.float64) + random.random() + np.random.rand()
        return [
            (torch.tensor([float(row), *pair], dtype=torch.float64), row % 2)
            for row, pair in zip(rows, noise, strict=True)
        ]


def batches_of(dataset, workers=0, **more):
    return LoaderBatches(dataset, batch_size=3, device=torch.device("cpu"), workers=workers, **more)


def inputs(batches):
    return torch.cat([x for x, _ in batches])


@any_cores
def test_what_a_batched_read_draws_depends_on_seed_epoch_and_batch_alone():
    drawn = []
    for workers in (0, 1, 2, 3):
        random.seed(workers), np.random.seed(workers), torch.manual_seed(workers)
        train = batches_of(Whole(), workers)
        drawn.append(inputs(train.shuffled(7, 1)))
        later = [inputs(train.shuffled(7, 1, start)) for start in (1, 2, 3)]
        assert all(torch.equal(drawn[0][3 * i :], rest) for i, rest in enumerate(later, 1))
    assert all(torch.equal(drawn[0], other) for other in drawn)
    others = [inputs(train.shuffled(*place)) for place in ((7, 2), (8, 1))]
    noise = torch.cat([drawn[0], *others])[:, 1]
    assert len(noise.unique()) == len(noise)
    assert torch.equal(inputs(train.in_order()), inputs(train.in_order()))


def test_a_batched_read_is_one_call_a_batch_and_leaves_the_random_state_as_it_was():
    dataset = Whole()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    list(batches_of(dataset).shuffled(0, 1))
    assert dataset.calls == 4 and torch.equal(torch.get_rng_state(), before)
    dataset.calls = 0
    list(batches_of(DataLoader(dataset, batch_size=3)).in_order())
    list(batches_of(Subset(dataset, range(6))).in_order())
    assert dataset.calls == 4 + 2


def test_a_dataset_of_single_samples_in_torch_s_wrappers_is_still_seeded_for_each():
    plain, within = Noisy(), Subset(Noisy(), range(10))
    assert not reads_batches(plain) and not reads_batches(within) and not reads_batches(Subset(within, range(10)))
    one, other = (batches_of(d) for d in (plain, within))
    assert torch.equal(inputs(one.shuffled(1, 1)), inputs(other.shuffled(1, 1)))
    assert reads_batches(Whole()) and reads_batches(Subset(Subset(Whole(), range(9)), range(5)))
    assert reads_batches(StackDataset(Whole(), Whole())) and not reads_batches(StackDataset(Whole(), Noisy()))
    assert reads_batches(StackDataset(a=Whole())) and not reads_batches(torch.utils.data.ConcatDataset([Whole()]))


def test_a_class_that_overrides_the_single_read_alone_is_read_by_what_it_overrides():
    class Changed(Whole):
        def __getitem__(self, row):
            return torch.full((4,), -1.0), 0

    class Batches(Dataset):
        def __getitems__(self, rows):
            return [self[row] for row in rows]

    class Late(Batches):
        def __len__(self):
            return 6

        def __getitem__(self, row):
            return torch.ones(4), row

    assert not reads_batches(Changed()) and (inputs(batches_of(Changed()).in_order()) == -1).all()
    assert reads_batches(Late()) and len(list(batches_of(Late()).in_order())) == 2


class Broken(Noisy):
    """A dataset whose batched read gives what `returned` says."""

    def __init__(self, returned):
        super().__init__()
        self.returned = returned

    def __getitems__(self, rows):
        return self.returned(rows)


@any_cores
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (lambda rows: [(torch.ones(2), 0)] * 2, "returned 2 samples for 3 rows"),
        (lambda rows: (torch.ones(len(rows), 2), torch.ones(len(rows))), "returned 2 samples for 3 rows"),
        (lambda rows: None, "returned a NoneType for 3 rows"),
        (lambda rows: 1 / 0, "reading rows 0, 1, 2 failed: ZeroDivisionError"),
    ],
)
def test_a_batched_read_that_fails_or_returns_something_else_is_told(returned, said, workers):
    with pytest.raises(DataError, match=said):
        list(batches_of(Broken(returned), workers).in_order())


def test_a_collate_fn_of_the_user_takes_what_the_batched_read_returns():
    dataset = Broken(lambda rows: (torch.ones(len(rows), 2), torch.tensor(rows)))
    loader = DataLoader(dataset, batch_size=3, collate_fn=lambda batch: batch)
    assert torch.cat([y for _, y in batches_of(loader).in_order()]).tolist() == list(range(10))
    nothing = DataLoader(Noisy(), batch_size=3, collate_fn=lambda samples: None)
    with pytest.raises(DataError, match="a batch is a NoneType"):
        list(batches_of(nothing).in_order())


class Process(Noisy):
    """Samples that hold the number of the process that read them."""

    def __getitems__(self, rows):
        return [(torch.tensor([float(os.getpid())]), row % 2) for row in rows]


@any_cores
def test_workers_live_on_from_epoch_to_epoch_and_into_the_evaluation():
    batches = batches_of(Process(), 2)
    epochs = [set(inputs(read).flatten().tolist()) for read in (batches.shuffled(0, 1), batches.shuffled(0, 2))]
    assert epochs[0] == epochs[1] == set(inputs(batches.in_order()).flatten().tolist()) and len(epochs[0]) == 2
    assert os.getpid() not in epochs[0]
