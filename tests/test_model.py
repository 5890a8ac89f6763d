"""A model after training: predictions with the preprocessing it was trained with, and the files of a run."""

import csv
import json

import numpy as np
import pytest
import torch
from torch import nn

import fitkit
from fitkit.engine import weights
from fitkit.errors import CheckpointError, DataError, FitkitError, SpecError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 4))
CLASSES = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0)
QUICK = {"epochs": 2, "batch_size": 16, "device": "cpu"}


def fit(declared, tmp_path, **more):
    declared = {"fit": QUICK, **declared}
    history = fitkit.fit(declared, out=tmp_path / "run", **more)
    return history, fitkit.load(tmp_path / "run", model=more.get("model"))


@pytest.mark.parametrize(
    ("declared", "kind"),
    [
        ({"data": "iris", "model": {"mlp": [8]}}, "classes"),
        ({"data": "breast_cancer", "model": {"mlp": [8]}, "loss": "binary_cross_entropy_with_logits"}, "classes"),
        ({"data": "diabetes", "model": {"mlp": [8]}, "metrics": ["r2"]}, "values"),
        ({"data": {"digits": "image"}, "model": {"cnn": [4]}}, "classes"),
        ({"data": {"digits": "rows"}, "model": [{"LSTM": 8}, "Last", {"Linear": "outputs"}]}, "classes"),
        (
            {"data": {"digits": "flat"}, "model": [{"Linear": 8}, "BatchNorm1d", "ReLU", {"Linear": "outputs"}]},
            "classes",
        ),
    ],
    ids=["classes", "one logit", "values", "images", "sequences", "batchnorm"],
)
def test_a_loaded_run_measures_what_the_fit_measured(declared, kind, tmp_path):
    history, model = fit(declared, tmp_path)
    from fitkit.builder import assemble, load_spec

    _, prepared = assemble(load_spec({"fit": QUICK, **declared}), None, None, None)
    val = prepared.parts["val"]
    x, y = prepared.data.x[val.rows], prepared.data.y[val.rows]
    measured = model.evaluate((x, y))
    best = history.best("val_loss")
    held = [name.removeprefix("val_") for name in best if name.startswith("val_")]
    assert {n: measured[n] for n in held} == pytest.approx({n: best[f"val_{n}"] for n in held}, rel=1e-5)
    predictions = model.predict(x)
    assert predictions.shape == (len(x),)
    if kind == "classes":
        assert (predictions == y).double().mean().item() == pytest.approx(best["val_accuracy"])
        probabilities = model.predict_proba(x)
        torch.testing.assert_close(probabilities.sum(1), torch.ones(len(x), dtype=torch.float64))
        assert torch.equal(probabilities.argmax(1), predictions)
    else:
        with pytest.raises(FitkitError, match="predicts values"):
            model.predict_proba(x)


def test_numpy_in_numpy_out_and_a_module_stays_what_it_was():
    module = nn.Linear(4, 3)
    model = fitkit.Model(module)
    history = model.fit({"fit": QUICK}, data=(X, CLASSES))
    assert model.module is module and type(module) is nn.Linear
    assert isinstance(model.predict(X), np.ndarray) and isinstance(model.predict(torch.tensor(X)), torch.Tensor)
    assert list(history.history)[:4] == ["loss", "accuracy", "val_loss", "val_accuracy"]
    assert module.training


def test_a_model_that_was_not_fitted_says_so():
    with pytest.raises(FitkitError, match="has not been fitted"):
        fitkit.Model(nn.Linear(4, 3)).predict(X)


def test_samples_of_another_shape_are_refused_with_both_shapes():
    model = fitkit.Model(nn.Linear(4, 3))
    model.fit({"fit": QUICK}, data=(X, CLASSES))
    with pytest.raises(DataError, match=r"x has shape \(120, 3\); this model takes \(N, 4\)"):
        model.predict(X[:, :3])


def test_a_module_from_python_must_be_handed_in_again(tmp_path):
    _, model = fit({}, tmp_path, model=nn.Linear(4, 3), data=(X, CLASSES))
    assert model.predict(X).shape == (120,)
    with pytest.raises(CheckpointError, match="a module of your own"):
        fitkit.load(tmp_path / "run")
    with pytest.raises(CheckpointError, match="do not fit this model"):
        fitkit.load(tmp_path / "run", model=nn.Linear(4, 5))


def test_parts_given_by_name_are_used_as_they_are(tmp_path):
    data = {"train": (X[:80], CLASSES[:80]), "val": (X[80:], CLASSES[80:])}
    history, model = fit({}, tmp_path, model=nn.Linear(4, 3), data=data)
    assert model.evaluate(data["val"])["loss"] == pytest.approx(history.best("val_loss")["val_loss"], rel=1e-6)
    with pytest.raises(SpecError, match="comes in parts already"):
        fitkit.fit({"fit": QUICK, "splits": "random"}, model=nn.Linear(4, 3), data=data)


def test_a_transform_asked_for_in_python_is_fitted_on_the_training_rows(tmp_path):
    declared = {"data": {"arrays": {"transform": "standardize"}}}
    wide = X * [1, 10, 100, 1000] + 5
    history, model = fit(declared, tmp_path, model=nn.Linear(4, 3), data={"train": (wide, CLASSES)})
    torch.testing.assert_close(model.transform.shift, torch.tensor(wide.mean(0)))
    assert history.stopped == "all 2 epochs done"


def test_whole_numbers_are_token_ids_for_a_model_that_embeds_them(tmp_path):
    tokens = torch.randint(7, (60, 5), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    labels = (tokens[:, :2].sum(1) > 6).long()
    declared = {"model": [{"Embedding": 4}, "Flatten", {"Linear": "outputs"}]}
    _, model = fit(declared, tmp_path, data=(tokens, labels))
    assert model.card["inputs"] == {"shape": [5], "vocabulary": 7}
    fit({"model": {"mlp": [4]}}, tmp_path / "b", data=(tokens, labels))


def test_tied_weights_are_saved_once_and_tied_again(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 40)
    declared = {
        "data": {"text": {"path": str(text), "length": 8}},
        "model": {"gpt": {"width": 8, "depth": 1, "heads": 2}},
    }
    history, model = fit(declared, tmp_path)
    assert history.best("val_loss")["epoch"] in (1, 2)
    assert model.outputs(torch.zeros(2, 8, dtype=torch.long)).shape == (2, 8, model.card["outputs"])


def test_a_run_folder_holds_what_was_asked_what_ran_and_what_came_out(tmp_path):
    history, _ = fit({"name": "mine", "data": "iris", "model": {"mlp": [8]}}, tmp_path)
    run = tmp_path / "run"
    names = [
        "checkpoints",
        "data_check.json",
        "env.json",
        "history.csv",
        "history.json",
        "model.safetensors",
        "resolved.yaml",
        "spec.yaml",
        "summary.json",
    ]
    assert sorted(path.name for path in run.iterdir()) == names
    with (run / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == [1, 2]
    assert float(rows[1]["val_loss"]) == history["val_loss"][1]
    assert fitkit.History.from_json((run / "history.json").read_text()).history == history.history
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["best_epoch"] == history.best_epoch
    assert json.loads((run / "env.json").read_text())["precision"] == "float32"
    again = fitkit.load_spec(run / "resolved.yaml")
    assert again.to_yaml() == (run / "resolved.yaml").read_text()
    assert fitkit.fit(again).history["val_loss"] == history["val_loss"]


def test_a_run_is_never_overwritten(tmp_path):
    fit({"data": "iris", "model": {"mlp": [8]}}, tmp_path)
    with pytest.raises(SpecError, match="is not empty"):
        fit({"data": "iris", "model": {"mlp": [8]}}, tmp_path)


def test_a_failed_run_says_so_in_its_summary(tmp_path):
    declared = {"fit": QUICK, "optimizer": {"SGD": {"lr": 1e30}}, "loss": "mse_loss"}
    with pytest.raises(fitkit.TrainingError):
        fitkit.fit(declared, model=nn.Linear(4, 1), data=(X * 1e3, X.sum(1, keepdims=True) * 1e3), out=tmp_path / "run")
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "failed"


@pytest.mark.parametrize("damage", [lambda raw: raw[:-7], lambda raw: b"\x80\x02" + raw, lambda raw: b""])
def test_a_damaged_weights_file_is_a_checkpoint_error(damage, tmp_path):
    fit({"data": "iris", "model": {"mlp": [8]}}, tmp_path)
    path = tmp_path / "run/model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        fitkit.load(tmp_path / "run")


def test_a_card_cannot_name_anything_but_what_the_tables_hold(tmp_path):
    fit({"data": "iris", "model": {"mlp": [8]}}, tmp_path)
    path = tmp_path / "run/model.safetensors"
    state, _, card = weights.load(path)
    card["spec"]["model"] = {"os.system": "true"}
    weights.save(path, state, None, card)
    with pytest.raises(CheckpointError, match="does not describe a model"):
        fitkit.load(tmp_path / "run")


def test_the_summary_lists_the_modules_that_hold_parameters():
    text = fitkit.Model(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))).summary()
    assert text.splitlines()[-1].split() == ["total", "67", "67"]
