"""A spec that asks for folds: one fit runs them all, each a run of its own, and a kill costs nothing."""

import csv
import json
import math
import shutil
import signal
from pathlib import Path

import numpy
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

import fitkit
from fitkit import run_folder
from fitkit.builder.tables import TABLES
from fitkit.cross_validation import CrossValidation, student_t
from fitkit.engine import weights
from fitkit.engine.signals import Interrupted
from fitkit.errors import DataError, SpecError
from fitkit.history import History

X = torch.randn(61, 4, generator=torch.Generator().manual_seed(1))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
TIMES = (
    "data_check.json",
    "summary.json",
    "env.json",
    "history.json",
    "history.csv",
    "MANIFEST.json",
    "state.json",
)  # hold seconds


class Killed(BaseException):
    """Ends a fit in the middle, as a kill does."""


def declared(splits="kfold", **sections):
    fit = {"epochs": 3, "batch_size": 8, "device": "cpu", **sections.pop("fit", {})}
    model = {"mlp": {"hidden": [8], "dropout": 0.2}}
    return {"splits": splits, "model": model, "optimizer": {"AdamW": 0.02}, "seed": 3, "fit": fit, **sections}


def fit(out=None, splits="kfold", kill=None, data=(X, Y), resume=False, **sections):
    """Fit all folds; `kill` is a fold and a step after which to leave it."""

    def stop(trainer):
        if kill == (trainer.spec.splits.get("fold"), trainer.step):
            raise Killed

    callbacks = [fitkit.LambdaCallback(on_step_end=stop)]
    return fitkit.fit(declared(splits, **sections), data=data, out=out, resume=resume, callbacks=callbacks)


def measured(history):
    return {name: values for name, values in history.history.items() if name != "epoch_seconds"}


def bytes_in(folder):
    """Return all files of a folder but those that hold the time."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in TIMES
    }


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished cross-validation: its folder and what fit returned."""
    folder = tmp_path_factory.mktemp("folds") / "run"
    return folder, fit(folder)


def test_each_fold_is_the_run_that_its_spec_alone_gives(done, tmp_path):
    folder, found = done
    for fold in (1, 4):
        alone = fit(tmp_path / f"alone-{fold}", {"kfold": {"fold": fold}})
        assert isinstance(alone, History)
        assert measured(alone) == measured(found.histories[fold - 1])
        pair = [
            weights.load(out / "model.safetensors")[0] for out in (tmp_path / f"alone-{fold}", folder / f"fold-{fold}")
        ]
        assert all(torch.equal(pair[0][name], pair[1][name]) for name in pair[0])


def test_folds_begin_with_other_weights_and_other_rows(done):
    folder, _ = done
    first = [fitkit.build(declared({"kfold": {"fold": fold}}), data=(X, Y)) for fold in (1, 2)]
    one, other = (next(trainer.model.parameters()) for trainer in first)
    assert not torch.equal(one, other) and first[0].seed != first[1].seed
    assert not first[0].val.rows.equal(first[1].val.rows)


def test_every_fold_has_a_whole_run_folder_whose_resolved_spec_names_it(done):
    folder, _ = done
    files = {"spec.yaml", "resolved.yaml", "env.json", "history.csv", "history.json", "summary.json"}
    for fold in range(1, 6):
        out = folder / f"fold-{fold}"
        assert {*files, "model.safetensors", "checkpoints"} <= {path.name for path in out.iterdir()}
        assert fitkit.load_spec(out / "resolved.yaml").splits.get("fold") == fold
        assert run_folder.status(out) == "finished"
        assert fitkit.load(out).predict(X).shape == (61,)
    assert run_folder.fold_folders(folder) == [folder / f"fold-{fold}" for fold in range(1, 6)]


def test_values_are_those_of_each_folds_best_epoch():
    found = fit(fit={"epochs": 8}, optimizer={"AdamW": 0.3})
    assert len(found) == 5 and found.columns == ("loss", "accuracy", "val_loss", "val_accuracy")
    assert min(found.best_epochs) < 8
    for i, history in enumerate(found.histories):
        row = history.best("val_loss")
        assert found.best_epochs[i] == row["epoch"]
        assert all(found[column][i] == row[column] for column in found.columns)
    for column in found.columns:
        assert found.mean[column] == pytest.approx(numpy.mean(found[column]), rel=1e-12)
        assert found.std[column] == pytest.approx(numpy.std(found[column], ddof=1), rel=1e-12)
    with pytest.raises(KeyError, match='No column "val_acuracy". Did you mean "val_accuracy"'):
        found["val_acuracy"]


def test_the_interval_is_students_t_over_folds(done):
    _, found = done
    values = found["val_loss"]
    for level in (0.8, 0.95, 0.99):
        expected = stats.t.interval(level, 4, numpy.mean(values), stats.sem(values))
        assert found.interval("val_loss", level) == pytest.approx(expected, rel=1e-9)
    with pytest.raises(ValueError, match="between 0 and 1"):
        found.interval("val_loss", 95)


def test_repeats_have_the_corrected_variance_of_nadeau_and_bengio():
    found = fit(splits={"kfold": {"k": 4, "repeats": 3}}, fit={"epochs": 1})
    values = numpy.array(found["val_loss"])
    reach = stats.t.ppf(0.975, 11) * math.sqrt((1 / 12 + (1 / 4) / (3 / 4)) * values.var(ddof=1))
    assert found.interval("val_loss") == pytest.approx((values.mean() - reach, values.mean() + reach), rel=1e-9)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 9, 10, 99, 1000])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_students_t_is_that_of_scipy(degrees, level):
    assert student_t(level, degrees) == pytest.approx(stats.t.ppf((1 + level) / 2, degrees), rel=1e-8)


def test_predictions_are_those_of_each_folds_weights_for_its_own_val_rows(done):
    folder, found = done
    table = found.predictions
    assert list(table) == ["row", "fold", "repeat", "target", "prediction", "p_0", "p_1", "p_2"]
    assert table["row"] == list(range(61)) and table["target"] == Y.tolist() and set(table["repeat"]) == {1}
    for fold in range(1, 6):
        rows = [row for row, home in zip(table["row"], table["fold"], strict=True) if home == fold]
        model = fitkit.load(folder / f"fold-{fold}")
        assert model.predict(X[rows]).tolist() == [table["prediction"][row] for row in rows]
        mine = [[table[f"p_{number}"][row] for number in range(3)] for row in rows]
        assert numpy.allclose(model.predict_proba(X[rows]).numpy(), mine, atol=1e-6)
        hits = [table["prediction"][row] == table["target"][row] for row in rows]
        assert numpy.mean(hits) == pytest.approx(found["val_accuracy"][fold - 1])


def test_the_files_hold_what_is_returned(done):
    folder, found = done
    rows = list(csv.DictReader((folder / "folds.csv").read_text().splitlines()))
    assert [int(row["fold"]) for row in rows] == [1, 2, 3, 4, 5]
    assert [float(row["val_loss"]) for row in rows] == found["val_loss"]
    document = json.loads((folder / "cross_validation.json").read_text())
    assert document["mean"] == found.mean and document["std"] == found.std
    assert document["interval"]["val_loss"] == list(found.interval("val_loss"))
    lines = list(csv.DictReader((folder / "predictions.csv").read_text().splitlines()))
    assert [float(line["p_1"]) for line in lines] == found.predictions["p_1"]
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["folds"], summary["mean"]) == ("finished", 5, found.mean)


def test_without_a_folder_the_same_comes_out_and_nothing_is_written(done, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    again = fit()
    assert again.mean == done[1].mean and again.predictions == done[1].predictions
    assert again.run is None and done[1].run == str(done[0]) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("step", [5, 18])  # in the middle of the fold, and after its last step
def test_killed_in_fold_3_and_resumed_every_file_is_the_same(step, done, tmp_path):
    folder, found = done
    with pytest.raises(Killed):
        fit(tmp_path / "cut", kill=(3, step))
    assert not (tmp_path / "cut/predictions.csv").exists()
    assert run_folder.status(tmp_path / "cut/fold-2") == "finished"
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cut/fold-2").rglob("*") if path.is_file()}
    resumed = fit(tmp_path / "cut", resume=True)
    assert bytes_in(tmp_path / "cut") == bytes_in(folder)
    assert [measured(one) for one in resumed.histories] == [measured(one) for one in found.histories]
    assert resumed.predictions == found.predictions and resumed.mean == found.mean
    assert kept == {path: path.stat().st_mtime_ns for path in kept}  # finished folds are not touched


def test_a_finished_cross_validation_is_left_alone(done, tmp_path):
    shutil.copytree(done[0], tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    again = fit(tmp_path / "run", resume=True)
    assert again.mean == done[1].mean and again.predictions == done[1].predictions
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_another_spec_or_other_data_is_refused_and_changes_nothing(done, tmp_path):
    shutil.copytree(done[0], tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(SpecError, match="splits.kfold.k: 5 then, 4 now: cannot change"):
        fit(tmp_path / "run", {"kfold": 4}, resume=True)
    with pytest.raises(SpecError, match="data_train"):
        fit(tmp_path / "run", data=(X + 1, Y), resume=True)
    with pytest.raises(SpecError, match="is not empty"):
        fit(tmp_path / "run")
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_a_longer_run_goes_on_in_every_fold(done, tmp_path):
    shutil.copytree(done[0], tmp_path / "run")
    spec = declared(fit={"epochs": 5})
    more = {"out": tmp_path / "run", "resume": True, "allow_change": ["fit.epochs"], "data": (X, Y)}
    watch = fitkit.LambdaCallback(on_step_end=lambda trainer: None)
    found = fitkit.fit(spec, callbacks=[watch], **more)
    assert [len(history) for history in found.histories] == [5] * 5
    assert json.loads((tmp_path / "run/summary.json").read_text())["mean"] == found.mean


def test_a_signal_leaves_a_checkpoint_and_says_so(tmp_path):
    def leave(trainer):
        if trainer.spec.splits.get("fold") == 2 and trainer.step == 4:
            trainer.interrupted = signal.SIGTERM

    with pytest.raises(Interrupted):
        callbacks = [fitkit.LambdaCallback(on_step_end=leave)]
        fitkit.fit(declared(), data=(X, Y), out=tmp_path / "run", callbacks=callbacks)
    assert json.loads((tmp_path / "run/summary.json").read_text()) == {"status": "interrupted", "folds": 5}
    assert run_folder.status(tmp_path / "run/fold-2") == "interrupted"
    with pytest.raises(SpecError, match="this run was asked something else"):
        fit(tmp_path / "run", {"kfold": 4}, resume=True)
    assert run_folder.status(tmp_path / "run") == "interrupted"  # a call that is refused changes nothing


def test_the_transform_of_a_fold_is_fitted_on_its_training_rows_alone():
    x = X.clone()
    x[7] = 1000.0  # only the folds that train on this row may know of it
    spec = declared(data={"arrays": {"transform": "standardize"}})
    for fold in range(1, 6):
        trainer = fitkit.build({**spec, "splits": {"kfold": {"fold": fold}}}, data=(x, Y))
        expected = StandardScaler().fit(x[trainer.train.rows].numpy()).transform(x[trainer.val.rows].numpy())
        assert numpy.allclose(trainer.objective.transform(x[trainer.val.rows]).numpy(), expected, rtol=1e-3, atol=1e-4)


def test_each_fold_stops_early_and_writes_its_files_by_itself(tmp_path):
    callbacks = {"EarlyStopping": {"patience": 1}, "CSVLogger": {}}
    found = fit(tmp_path / "run", callbacks=callbacks, fit={"epochs": 40}, optimizer={"AdamW": 0.3})
    lengths = [len(history) for history in found.histories]
    assert len(set(lengths)) > 1 and max(lengths) < 40
    for fold, length in enumerate(lengths, 1):
        [log] = (tmp_path / f"run/fold-{fold}").glob("*log*.csv")
        assert len(log.read_text().splitlines()) == length + 1


def test_a_held_out_test_part_is_in_no_fold(tmp_path):
    found = fit(tmp_path / "run", {"kfold": {"k": 3, "test": 0.2}})
    assert len(found.predictions["row"]) == 61 - 12
    held = {tuple(fitkit.build(path, data=(X, Y)).val.rows.tolist()) for path in tmp_path.glob("run/fold-*/spec.yaml")}
    assert set(range(61)) - {row for rows in held for row in rows} == set(range(61)) - set(found.predictions["row"])


def test_values_have_predictions_too_and_a_module_is_copied_for_each_fold():
    module = nn.Linear(4, 2)
    before = module.weight.clone()
    spec = {key: value for key, value in declared({"time_series": {"k": 3}}).items() if key != "model"}
    found = fitkit.fit(spec, model=module, data=(X, X[:, :2] * 2))
    assert module.weight.equal(before)
    assert list(found.predictions)[3:] == ["target_0", "target_1", "prediction_0", "prediction_1"]
    assert found.predictions["row"] == list(range(16, 61))  # the first stretch is never validated on
    assert found.predictions["target_1"] == (X[16:, 1] * 2).tolist()


def test_it_prints_as_a_table_and_escapes_in_a_notebook(done):
    _, found = done
    lines = str(found).splitlines()
    assert lines[0].split()[:3] == ["fold", "best", "epoch"] and len(lines) == 11
    assert [line.split()[0] for line in lines[6:10]] == ["mean", "sd", "95", "to"]
    assert repr(found).startswith("CrossValidation(5 folds, val_accuracy 0.")
    assert found._repr_html_().count("<tr>") == 10
    history = History(["<b>"], {"<b>": "min"})
    history.append({"<b>": math.nan})
    odd = CrossValidation([history, history], k=2)
    assert "&lt;b&gt;" in odd._repr_html_() and json.loads(odd.to_json())["mean"] == {"<b>": None}


def test_names_that_a_spreadsheet_would_compute_stand_behind_an_apostrophe():
    history = History(["loss"], {"loss": "min"})
    history.append({"loss": 1.0})
    table = {"row": [0, 1], "target": ["=cmd", "-5"], "p_=cmd": [0.5, 1.0]}
    text = CrossValidation([history, history], k=2, predictions=table).predictions_csv()
    assert text == "row,target,p_=cmd\n0,'=cmd,0.5\n1,-5,1.0\n"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({"data": {"train": (X, Y), "val": (X, Y)}}, SpecError, "comes in parts already.*give it as one"),
        ({"data": torch.utils.data.TensorDataset(X, Y)}, SpecError, "kfold needs the targets in memory"),
        ({"resume": True}, SpecError, "resume needs the run folder"),
        ({"splits": {"kfold": 40}}, SpecError, 'splits.kfold: class "2" has only 16 rows, too few for 40'),
        ({"data": (X, Y[:9])}, DataError, "rows"),
    ],
)
def test_what_cannot_be_run_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        fit(**call)


def test_what_a_later_fold_cannot_do_is_said_before_the_first_is_trained(tmp_path):
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    spec = {key: value for key, value in declared(fit={"batch_size": 8}).items() if key != "model"}
    with pytest.raises(SpecError, match="leave a last batch of 1"):  # 48 training rows in fold 1, 49 in the others
        fitkit.fit(spec, model=model, data=(X, Y), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_split_of_the_users_own_may_ask_for_folds():
    before = dict(TABLES["splits"])

    def every(data, seed, *, of: int = 3, fold: int | None = None):
        rows = torch.arange(len(data))
        return {"train": rows[rows % of != fold - 1], "val": rows[rows % of == fold - 1]}

    try:
        fitkit.register.split(folds=("of",))(every)
        found = fit(splits="every")
    finally:
        TABLES["splits"].clear()
        TABLES["splits"].update(before)
    assert len(found) == 3 and found.predictions["fold"][:4] == [1, 2, 3, 1]


def test_a_model_object_is_fitted_once():
    with pytest.raises(SpecError, match="name a fold, such as fold: 1, or use fitkit.fit"):
        fitkit.Model(nn.Linear(4, 3)).fit({"splits": "kfold"}, data=(X, Y))


def test_the_gallery_spec_comes_near_scikit_learn_on_the_same_folds():
    found = fitkit.fit(Path(__file__).parent.parent / "specs" / "breast_cancer_kfold.yaml")
    x, y = load_breast_cancer(return_X_y=True)
    peer = make_pipeline(StandardScaler(), LogisticRegression())
    theirs = cross_val_score(peer, x, y, cv=PredefinedSplit(found.predictions["fold"]))
    assert len(theirs) == 5 and abs(found.mean["val_accuracy"] - theirs.mean()) < 0.01
    assert abs(found.mean["val_accuracy"] - 0.978) < 3 * 0.003  # what the header says
