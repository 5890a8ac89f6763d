"""Losses and confidences are of one model, and what is said of models that know little or were calibrated here."""

import csv
import dataclasses
import json

import pytest
import torch
from test_worst import by_formula, made

import fitkit
from fitkit.after.run_outcomes import read_outcomes
from fitkit.cli import main
from fitkit.evaluation.worst import worst

FITTED_HERE = "the temperature was fitted on these rows, so ece is optimistic"
QUICK = {"device": "cpu", "compile": False}


@pytest.fixture(scope="module")
def weighted(tmp_path_factory):
    """Return a run with class weights that was calibrated by force."""
    folder = tmp_path_factory.mktemp("runs") / "iris"
    loss = {"cross_entropy": {"class_weight": [1.0, 5.0, 0.5]}}
    splits = {"stratified": {"val": 0.3, "test": 0.3}}
    spec = {"data": "iris", "splits": splits, "model": {"mlp": [8]}, "loss": loss, "optimizer": {"AdamW": 1e-2}}
    fitkit.fit({**spec, "fit": {"epochs": 30, **QUICK}}, out=folder)
    assert main(["calibrate", str(folder), "--force"]) == 0
    return folder


def test_loss_and_confidence_of_worst_are_of_the_same_probabilities(weighted, tmp_path, capsys):
    val = read_outcomes(weighted, command="a test")
    assert val.temperature != 1
    chances = (val.outputs.double() / val.temperature).softmax(1)
    own = -chances[torch.arange(len(val)), val.targets].log()
    assert own.tolist() != pytest.approx((val.sums / val.counts).tolist(), rel=1e-2)
    order = own.argsort(descending=True, stable=True)[:9]
    capsys.readouterr()
    assert main(["worst", str(weighted), "--count", "9", "--json", "--out", str(tmp_path / "w.csv")]) == 0
    found = json.loads(capsys.readouterr().out)["examples"]
    with (tmp_path / "w.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [e["row"] for e in found] == val.rows[order].tolist() == [int(row["row"]) for row in written]
    for rows in (found, written):
        assert [float(e["loss"]) for e in rows] == pytest.approx(own[order].tolist())
        assert [float(e["confidence"]) for e in rows] == pytest.approx(chances[order].amax(1).tolist())
    assert main(["worst", str(weighted), "--count", "2"]) == 0
    text = capsys.readouterr().out.splitlines()
    assert text[0].endswith("samples with the highest -log p(target)") and "confidence  -log p(target)" in text[1]


def test_that_the_temperature_was_fitted_on_these_rows_is_noted_of_val_alone(weighted, capsys):
    for command in ("evaluate", "worst"):
        for split, fitted in (("val", True), ("test", False)):
            assert main([command, str(weighted), "--split", split]) == 0
            out = capsys.readouterr().out
            assert "at the calibrated temperature" in out and (FITTED_HERE in out) == fitted


def test_the_loss_of_a_sample_of_several_positions_is_their_mean():
    logits, targets = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)), torch.arange(7) % 3
    samples = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    facts = {"samples": samples, "rows": torch.arange(2), "sums": torch.zeros(2), "counts": torch.tensor([3.0, 4.0])}
    found = worst(dataclasses.replace(made(logits, targets, batches=None), temperature=2.0, **facts))
    own = torch.nn.functional.cross_entropy(logits.double() / 2, targets, reduction="none")
    means = [float(own[:3].mean()), float(own[3:].mean())]
    assert [e.loss for e in found] == pytest.approx(sorted(means, reverse=True))
    assert [e.row for e in found] == sorted((0, 1), key=lambda row: -means[row])


def test_labels_of_a_class_that_is_never_predicted_are_not_suspected():
    targets = (torch.arange(200) < 4).long()
    logits = torch.stack((torch.linspace(2.0, 4.0, 200), torch.zeros(200)), 1)
    outcomes = made(logits, targets, classes=("neg", "pos"), batches=None)
    assert by_formula(logits.double().softmax(1).numpy(), targets.numpy()) == []  # these thresholds, not those below
    logits[:2, 0] = 5.0
    assert {row for row, _ in by_formula(logits.double().softmax(1).numpy(), targets.numpy())} == {0, 1}
    found = worst(outcomes)
    assert found.label_errors == ()
    note = "the model is too weak to tell for recalls below 0.5 (pos 0.000): none of their 4 labels is suspected"
    assert f"label errors: {note}" in found.notes and "no label is suspected" not in str(found)


def test_a_model_of_low_accuracy_and_one_that_suspects_too_many_suspect_none():
    draw = torch.Generator().manual_seed(0)
    targets = torch.arange(400) % 2
    logits = 3 * torch.nn.functional.one_hot(targets).float() + torch.rand(400, 2, generator=draw)
    for share, said in (
        (0.455, "accuracy 0.545, below 0.7"),
        (0.15, "60 of 400 labels would be suspected, more than 10 %"),
    ):
        labels = targets.clone()
        labels[: int(share * 400)] = 1 - labels[: int(share * 400)]
        found = worst(made(logits, labels, batches=None))
        assert found.label_errors == () and f"label errors: the model is too weak to tell: {said}" in found.notes
        assert "suspected label error" not in str(found)


def test_with_more_than_ten_suspects_the_text_says_how_to_get_them_all():
    targets = torch.arange(400) % 2
    logits = 3 * torch.nn.functional.one_hot(targets).float()
    for count in (10, 11):
        labels = targets.clone()
        labels[:count] = 1 - labels[:count]
        found = worst(made(logits, labels, batches=None))
        assert {error.row for error in found.label_errors} == set(range(count))
        title = "11 suspected label errors, the first 10; all of them: --label-errors FILE.csv"
        assert (title in str(found)) == (count == 11)
