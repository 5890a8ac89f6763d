"""The specs of specs/: each loads, checks, runs, and says in its header what it was measured to reach."""

import hashlib
import math
import re
from pathlib import Path

import pytest
import torch

import fitkit

ROOT = Path(__file__).resolve().parent.parent
SPECS = sorted((ROOT / "specs").glob("*.yaml"))
DATA = ROOT / "specs" / "data"
BRIEFLY = {"fit.max_steps": 2}
MOST_LINES = 40  # a page that one reads at a glance

# "# Reaches val_accuracy 0.990 ± 0.007 (best epoch; mean ± sd of seeds 0..9) in 0.5 s of training" and the machine
HEADER = re.compile(
    r"# Reaches (?P<column>val_\w+) (?P<mean>\d+\.\d+) ± (?P<sd>\d+\.\d+) "
    r"\(best epoch; mean ± sd of seeds 0\.\.(?P<last>\d+)\) in (?P<seconds>[\d.]+) s of training,\n"
    r"# CPU \(2 cores of an? (?P<machine>[^,\n]+), torch (?P<torch>[\d.]+)\)\.[^\n]*\n"
)

walk = pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)


@pytest.fixture(autouse=True)
def in_the_repository_with_one_thread(monkeypatch):
    """Paths of a resolved spec start at the working directory; nets this small only wait for a second thread."""
    monkeypatch.chdir(ROOT)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def header(path):
    found = HEADER.match(path.read_text("utf-8"))
    assert found, f"{path.name} does not open with the header that this file describes"
    return found


def test_the_gallery_is_not_empty():
    assert {"digits", "char_gpt", "csv_tabular", "diabetes"} <= {path.stem for path in SPECS}


@walk
def test_a_spec_runs_for_a_moment(path):
    trainer = fitkit.build(path, overrides=BRIEFLY)
    history = trainer.fit()
    assert trainer.step == 2
    assert {"loss", "val_loss"} <= history.last.keys()
    assert all(map(math.isfinite, history.last.values()))


@walk
def test_a_resolved_spec_resolves_to_itself(path):
    resolved = fitkit.build(path).spec
    again = fitkit.load_spec(resolved.to_yaml())
    assert again.resolved() == resolved.resolved()
    assert fitkit.build(again).spec.resolved() == resolved.resolved()


@walk
def test_a_resolved_spec_gives_the_same_run(path):
    history = fitkit.build(path, overrides=BRIEFLY).fit()
    again = fitkit.build(fitkit.build(path, overrides=BRIEFLY).spec.to_yaml()).fit()
    measured = [column for column in history.last if column != "epoch_seconds"]
    assert [again.last[column] for column in measured] == [history.last[column] for column in measured]


@walk
def test_a_header_says_what_is_reached_in_how_long_on_what(path):
    said = header(path)
    assert said["column"] in fitkit.build(path).columns
    assert int(said["last"]) >= 2


@walk
def test_a_spec_is_named_after_its_file_and_stays_a_page(path):
    assert fitkit.load_spec(path).name == path.stem
    assert len(path.read_text("utf-8").splitlines()) <= MOST_LINES


def test_the_digits_reach_what_their_header_says():
    path = ROOT / "specs" / "digits.yaml"
    history, said = fitkit.fit(path), header(path)
    reached = history.best(history.monitor)[said["column"]]
    assert reached >= 0.97
    assert abs(reached - float(said["mean"])) <= 3 * float(said["sd"])


def test_every_data_file_is_the_one_whose_origin_is_told():
    told = dict(reversed(line.split("  ")) for line in re.findall(r"^[0-9a-f]{64}  \S+$", origin(), re.MULTILINE))
    files = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in DATA.iterdir() if path.suffix != ".md"
    }
    assert told == files


def origin():
    return (DATA / "ORIGIN.md").read_text("utf-8")
