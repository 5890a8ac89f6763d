"""Runs beside each other: what differed is listed exactly, the same rows are paired, and a verdict is in words."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from scipy import stats

import fitkit
from fitkit.after.run_outcomes import looks, read_outcomes
from fitkit.changes import NOTHING
from fitkit.cli import main

SPECS = Path(__file__).parent.parent / "specs"
RUNS = {  # name: spec and overrides
    "iris-0": ("iris", {}),
    "iris-1": ("iris", {"seed": 1}),
    "iris-2": ("iris", {"seed": 2}),
    "slow-0": ("iris", {"optimizer": {"SGD": 1e-4}}),
    "slow-1": ("iris", {"optimizer": {"SGD": 1e-4}, "seed": 1}),
    "slow-2": ("iris", {"optimizer": {"SGD": 1e-4}, "seed": 2}),
    "again-0": ("iris", {"name": "again"}),
    "smooth-0": ("iris", {"loss": {"cross_entropy": {"class_weight": "balanced"}}, "metrics": {"f1": "micro"}}),
    "diabetes": ("diabetes", {}),
    "diabetes-1": ("diabetes", {"seed": 1}),
    "digits": ("digits", {}),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a function from the name of a run to its folder, which is made once."""
    parent = tmp_path_factory.mktemp("runs")

    def folder(name):
        if not (parent / name).exists():
            spec, overrides = RUNS[name]
            fitkit.fit(SPECS / f"{spec}.yaml", out=parent / name, overrides={"fit.epochs": 3, **overrides})
        return parent / name

    return folder


@pytest.fixture
def copied(run, tmp_path):
    """Return a function that copies a run, so that a test may damage it."""
    return lambda name: Path(shutil.copytree(run(name), tmp_path / name))


def command(*words):
    return main(["compare", *map(str, words)])


def test_what_differed_in_the_specs_is_listed_exactly(run):
    found = fitkit.compare(run("iris-0"), run("slow-0"), run("iris-1"))
    listed = {d.key: d.values for d in found.differences if d.where == "spec"}
    assert set(listed) == {"seed", "optimizer"} and listed["seed"] == (0, 0, 1)
    assert [next(iter(value)) for value in listed["optimizer"]] == ["AdamW", "SGD", "AdamW"]
    assert [d.key for d in found.differences if d.where == "data"] == ["data_train", "data_val", "data_test"][:2]
    assert not [d for d in found.differences if d.where == "environment"]


def test_a_difference_deep_in_one_component_is_named_by_its_dotted_key(run, copied):
    other = copied("again-0")
    path = other / "env.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"torch": "2.11.0"}))
    text = (other / "resolved.yaml").read_text()
    assert text.count("lr: 0.01") == 1
    (other / "resolved.yaml").write_text(text.replace("lr: 0.01", "lr: 0.02"))
    found = fitkit.compare(run("iris-0"), other)
    keys = {d.key: d.values for d in found.differences}
    assert keys == {
        "name": ("iris", "again"),
        "optimizer.AdamW.lr": (0.01, 0.02),
        "torch": (torch.__version__, "2.11.0"),
    }


def test_accuracy_of_the_same_rows_is_tested_by_mcnemar_and_equals_scipys(run):
    found = fitkit.compare(run("slow-0"), run("iris-0"))
    one, other = (read_outcomes(run(name), command="a test") for name in ("slow-0", "iris-0"))
    assert torch.equal(one.rows, other.rows)
    hits = [o.predicted == o.targets for o in (one, other)]
    alone = [int((hits[0] & ~hits[1]).sum()), int((hits[1] & ~hits[0]).sum())]
    expected = 2 * stats.binom.cdf(min(alone), sum(alone), 0.5) - stats.binom.pmf(min(alone), sum(alone), 0.5)
    [accuracy] = found.metrics["accuracy"]
    assert sum(alone) and accuracy.p == pytest.approx(min(1, expected), abs=1e-12) and accuracy.method == "McNemar"
    assert accuracy.difference == pytest.approx((alone[1] - alone[0]) / len(one))
    [loss] = found.metrics["loss"]
    assert loss.difference == pytest.approx(other.loss - one.loss) and loss.method == "paired bootstrap"
    theirs = stats.ttest_rel(other.sums.numpy(), one.sums.numpy()).confidence_interval()
    assert [loss.low, loss.high] == pytest.approx([*theirs], abs=0.15 * (theirs[1] - theirs[0]))
    values = {run.label: run.estimates["accuracy"].value for run in found.runs}
    assert values == {"slow-0": hits[0].double().mean(), "iris-0": hits[1].double().mean()}


def test_a_real_difference_is_told_and_a_run_done_twice_is_the_same(run):
    found = fitkit.compare(run("slow-0"), run("iris-0"), metric="loss")
    assert found.metrics["loss"][0].outcome == "better" and "which is more than noise at n = " in found.verdict
    assert "how far another seed would move them" in found.notes[-1]
    twice = fitkit.compare(run("iris-0"), run("again-0"))
    assert {contrasts[0].outcome for contrasts in twice.metrics.values()} == {"same"}
    assert twice.verdict.startswith("again-0 and iris-0 are the same in accuracy on each of the ")


def test_two_seeds_measure_the_noise_of_seeds(run, capsys):
    assert command(run("iris-0"), run("iris-1")) == 0
    text = capsys.readouterr().out
    assert "The same experiment with 2 seeds: accuracy " in text and "no run is a better spec than another" in text
    found = fitkit.compare(run("iris-0"), run("iris-1"))
    assert found.only_seeds and found.metrics["accuracy"][0].method == "Newcombe, two samples"
    both = len(
        set(read_outcomes(run("iris-0"), command="a").rows.tolist())
        & set(read_outcomes(run("iris-1"), command="a").rows.tolist())
    )
    assert f"iris-1 ({both} of {found.runs[1].samples} rows in both)" in found.notes[0]


def test_several_runs_are_each_compared_with_the_first_and_corrected(run):
    found = fitkit.compare(run("iris-0"), run("slow-0"), run("again-0"))
    ps = [c.p for c in found.metrics["loss"]]
    assert [c.p_adjusted for c in found.metrics["loss"]] == pytest.approx([min(1, 2 * ps[0]), 1.0])
    assert [c.outcome for c in found.metrics["loss"]] == ["worse", "same"]
    assert "Holm's correction over 2 tests" in found.verdict
    lines = str(found).splitlines()
    assert sum(line.startswith("  slow-0 ") for line in lines) == 3  # the run, its values, its test


def test_seeds_of_two_specs_are_tested_over_the_seeds(run):
    sides = [[run(f"{name}-{seed}") for seed in range(3)] for name in ("slow", "iris")]
    found = fitkit.compare(*sides[1], against=sides[0], metric="loss")
    values = [[o.loss for o in (read_outcomes(folder, command="a") for folder in side)] for side in sides]
    gains = torch.tensor(values[1]) - torch.tensor(values[0])
    rows, total = found.runs[0].samples, 150
    error = (gains.var() * (1 / 3 + rows / (total - rows))).sqrt()
    [loss] = found.metrics["loss"]
    assert loss.difference == pytest.approx(gains.mean().item(), rel=1e-5) and loss.method == "paired t, corrected"
    assert loss.p == pytest.approx(2 * stats.t.sf((gains.mean() / error).abs().item(), 2), rel=1e-4)
    assert found.groups == (3, 3) and "mean ± sd of 3 and 3 seeds" in found.verdict
    welch = fitkit.compare(*sides[1][:2], against=sides[0], metric="loss")
    theirs = stats.ttest_ind(values[1][:2], values[0], equal_var=False)
    assert welch.metrics["loss"][0].p == pytest.approx(theirs.pvalue, rel=1e-6)


def test_measures_that_were_asked_for_differently_are_left_out_and_said(run):
    found = fitkit.compare(run("iris-0"), run("smooth-0"))
    assert "loss" not in found.metrics and "f1" not in found.metrics and "accuracy" in found.metrics
    said = [note for note in found.notes if "is not compared, because" in note]
    assert any(note.startswith("loss") and "class_weight" in note for note in said)
    assert any(note.startswith("f1") and "average" in note for note in said)


def test_a_regression_is_compared_by_its_first_metric(run):
    found = fitkit.compare(run("diabetes"), run("diabetes-1"))
    assert found.headline == "mean_absolute_error" and not found.metrics["r2"][0].share


def test_the_test_split_goes_into_the_ledger_of_each_run(copied, capsys):
    one = copied("digits")
    other = Path(shutil.copytree(one, one.parent / "other"))
    assert command(one, other, "--split", "test") == 0
    for folder in (one, other):
        [look] = looks(folder)
        assert look["command"] == "compare --split test"
    assert capsys.readouterr().out.count("was looked at for the first time") == 2
    assert command(one, other, "--split", "val") == 0 and len(looks(one)) == 1


def test_json_is_strict_and_holds_what_a_report_needs(run, capsys):
    assert command(run("iris-0"), run("slow-0"), "--json") == 0
    plain = json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(word))
    assert {"runs", "differences", "metrics", "verdict", "notes", "part", "headline", "groups"} == set(plain)
    assert plain["metrics"]["accuracy"][0]["outcome"] in ("better", "worse", "same", "cannot be told")
    assert plain["runs"][0]["estimates"]["accuracy"]["method"] == "Wilson" and plain["runs"][0]["parameters"] > 0
    missing = fitkit.compare(run("iris-0"), run("slow-0"))
    [optimizer] = [d for d in missing.differences if d.key == "optimizer"]
    assert NOTHING not in optimizer.values


def test_what_the_files_of_a_run_say_is_escaped(run, copied):
    other = copied("again-0")
    path = other / "env.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"device_name": "<b>\x1b[31mred"}))
    found = fitkit.compare(run("iris-0"), other)
    assert "\x1b" not in str(found) and "\\x1b" in str(found)
    assert "<b>" not in found._repr_html_() and "&lt;b&gt;" in found._repr_html_()
