"""Trackers hold what history.csv holds, read back through their own libraries, and never stop a run."""

import csv
import json
import os
import shutil
import subprocess
import sys
import types
import warnings
from pathlib import Path

import numpy
import pytest
from fake_trainer import NAN, FakeTrainer, checkpointed, fit, series

import fitkit
from fitkit.cli import main
from fitkit.errors import SpecError, TrainingError
from fitkit.parts.tracker import clean, flat
from fitkit.parts.trackers import MLflow, TensorBoard, WandB

IRIS = {"data": "iris", "name": "iris", "model": {"mlp": [8]}, "optimizer": {"AdamW": 1e-2}, "fit": {"epochs": 3}}
SHARED = {"MLflow": {"shared": True}}


@pytest.fixture(scope="session")
def empty(tmp_path_factory):
    """An empty store: MLflow takes seconds to make one."""
    store = tmp_path_factory.mktemp("store") / "mlflow.db"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client_of(store)
    return store


@pytest.fixture
def store(tmp_path, empty):
    """The store that the runs in a folder share."""
    (tmp_path / "mlflow").mkdir()
    return shutil.copyfile(empty, tmp_path / "mlflow" / "mlflow.db")


def client_of(store):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{store}", registry_uri=f"sqlite:///{store}")


def runs_of(store):
    client = client_of(store)
    return client, client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])


def points(client, run, name):
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]


def rows_of(folder):
    with (folder / "history.csv").open(newline="") as file:
        return [{name: float(text) for name, text in row.items() if text} for row in csv.DictReader(file)]


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder)).Reload()


# --- what they hold


def test_mlflow_and_tensorboard_hold_the_numbers_of_history_csv(tmp_path, store):
    out = tmp_path / "a run"
    fitkit.fit(IRIS | {"callbacks": SHARED | {"TensorBoard": {}}, "fit": {"epochs": 5, "eval_every": 2}}, out=out)
    client, [run] = runs_of(store)
    written, accumulator = rows_of(out), events(out / "tensorboard")
    for name in set().union(*written) - {"epoch"}:
        expected = [(int(row["epoch"]), row[name]) for row in written if name in row]
        assert points(client, run, name) == expected, name
        single = [(epoch, numpy.float32(value)) for epoch, value in expected]  # TensorBoard's own precision
        assert [(event.step, event.value) for event in accumulator.Scalars(name)] == single, name
    assert set(accumulator.Tags()["scalars"]) == set().union(*written) - {"epoch"}


def test_mlflow_holds_parameters_best_epoch_tags_files_and_the_end(tmp_path, store):
    out = tmp_path / "one"
    history = fitkit.fit(IRIS | {"callbacks": {"MLflow": {"shared": True, "tags": {"who": "me"}}}}, out=out)
    client, [run] = runs_of(store)
    assert run.data.params["optimizer.AdamW.lr"] == "0.01" and run.data.params["fit.epochs"] == "3"
    assert run.data.params["optimizer.AdamW.betas"] == "[0.9, 0.999]" and run.data.params["seed"] == "0"
    assert set(run.data.params) == set(flat(fitkit.load_spec(out / "resolved.yaml").resolved()))
    assert points(client, run, "best_epoch") == [(history.best_epoch, history.best_epoch)]
    assert run.data.metrics["best_val_loss"] == history.best("val_loss")["val_loss"]
    assert run.data.tags["who"] == "me" and run.data.tags["fitkit.run"] == str(out)
    assert (run.info.run_name, run.info.status) == ("one", "FINISHED")
    assert client.get_experiment(run.info.experiment_id).name == "iris"
    files = {Path(file.path).name for file in client.list_artifacts(run.info.run_id)}
    assert files == {"resolved.yaml", "env.json", "history.csv"}
    kept = next((tmp_path / "mlflow" / "artifacts").rglob("history.csv"))
    assert kept.read_text() == (out / "history.csv").read_text()


def test_mlflow_keeps_a_report_too_where_there_is_one(tmp_path, store):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report.html").write_text("<p>")
    fit(MLflow(shared=True), series("loss", [1]), out=tmp_path / "run")
    client, [run] = runs_of(store)
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["report.html"]


def test_tensorboard_holds_the_spec_as_text_and_as_hyperparameters(tmp_path):
    fitkit.fit(IRIS | {"callbacks": ["TensorBoard"]}, out=tmp_path / "run")
    accumulator = events(tmp_path / "run" / "tensorboard")
    [text] = accumulator.Tensors("spec/text_summary")
    assert b'"epochs": 3' in text.tensor_proto.string_val[0]
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    content = accumulator.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    given = HParamsPluginData.FromString(content).session_start_info.hparams
    assert given["optimizer.AdamW.lr"].number_value == 0.01 and given["name"].string_value == "iris"


# --- resumed runs


def test_a_resumed_run_goes_on_with_the_same_mlflow_run_and_doubles_no_point(tmp_path, store):
    first = MLflow(shared=True)
    played = FakeTrainer(series("loss", [4, 3, 2, 1]), [first], out=tmp_path / "run")
    played.rows = played.rows[:3]
    played.call("on_train_begin")
    played.epochs()  # killed after the third epoch, and the checkpoint is of the second
    again = MLflow(shared=True)
    resumed = FakeTrainer(series("loss", [4, 3, 2, 1]), [again], out=tmp_path / "run", epoch=2)
    resumed.call("on_train_begin")
    again.load_state_dict(checkpointed(first)[0])
    resumed.epochs(first=2)
    resumed.call("on_train_end")
    client, [run] = runs_of(store)
    assert run.info.run_id == first.run_id == again.run_id and run.info.status == "FINISHED"
    assert points(client, run, "loss") == [(1, 4), (2, 3), (3, 2), (4, 1)]


def test_a_run_killed_before_its_first_checkpoint_leaves_no_second_mlflow_run(tmp_path, empty):
    (tmp_path / "mlflow").mkdir()
    store = shutil.copyfile(empty, tmp_path / "mlflow" / "mlflow.db")
    killed = FakeTrainer(series("loss", [2, 1]), [MLflow()], out=tmp_path)
    killed.rows = killed.rows[:1]
    killed.call("on_train_begin")
    killed.epochs()
    fit(MLflow(), series("loss", [2, 1]), out=tmp_path)
    client, [run] = runs_of(store)
    assert points(client, run, "loss") == [(1, 2), (2, 1)]


def test_a_finished_run_that_is_made_longer_goes_on_in_mlflow(tmp_path, store):
    out, declared = tmp_path / "run", IRIS | {"callbacks": SHARED}
    fitkit.fit(declared, out=out)
    fitkit.fit(declared | {"fit": {"epochs": 5}}, out=out, resume=True, allow_change=["fit.epochs"])
    client, [run] = runs_of(store)
    assert points(client, run, "val_loss") == [(int(row["epoch"]), row["val_loss"]) for row in rows_of(out)]
    assert len(rows_of(out)) == 5 and run.info.status == "FINISHED"


# --- runs that end otherwise, and trackers that fail


class Stop(fitkit.Callback):
    def on_epoch_end(self, trainer):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("error", "status", "more"),
    [
        (KeyboardInterrupt, "KILLED", {"callbacks": [Stop()]}),
        (TrainingError, "FAILED", {"overrides": ["optimizer.AdamW.lr=1e30"]}),
    ],
)
def test_a_run_that_is_stopped_or_fails_is_ended_in_mlflow(tmp_path, store, error, status, more):
    with pytest.raises(error):
        fitkit.fit(IRIS | {"callbacks": SHARED}, out=tmp_path / "run", **more)
    assert runs_of(store)[1][0].info.status == status


@pytest.mark.parametrize("tracker", [TensorBoard, MLflow])
def test_a_tracker_whose_place_is_taken_warns_once_and_changes_nothing(tmp_path, tracker):
    (tmp_path / tracker.__name__.lower()).write_text("a file where a folder belongs")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert fit(tracker(), series("loss", [1, 2, 3]), out=tmp_path).epoch == 3
    [warning] = caught
    assert str(warning.message).startswith(f"{tracker.__name__} stopped logging, the run goes on: ")


def test_a_damaged_store_and_one_that_breaks_later_are_one_warning(tmp_path, store, monkeypatch):
    (tmp_path / "run" / "mlflow").mkdir(parents=True)
    (tmp_path / "run" / "mlflow" / "mlflow.db").write_text("no database")
    with pytest.warns(RuntimeWarning, match="MLflow stopped logging, the run goes on: .*not a database") as caught:
        fit(MLflow(), series("loss", [1, 2, 3]), out=tmp_path / "run")
    assert len(caught) == 1
    callback = MLflow(shared=True)
    with pytest.warns(RuntimeWarning, match="MLflow stopped logging") as caught:
        trainer = FakeTrainer(series("loss", [1, 2, 3]), [callback], out=tmp_path / "two")
        trainer.call("on_train_begin")
        monkeypatch.setattr(callback.client, "log_batch", lambda *args, **more: 1 / 0)
        trainer.epochs()
        trainer.call("on_train_end")
    assert len(caught) == 1 and trainer.epoch == 3


def test_a_path_that_mlflow_cannot_name_is_a_warning_and_writes_nowhere_else(tmp_path):
    with pytest.warns(RuntimeWarning, match=r"its path holds one of \? # %"):
        fit(MLflow(), series("loss", [1]), out=tmp_path / "a?b")
    assert list(tmp_path.iterdir()) == []


def test_files_of_a_moved_run_are_not_sent_where_it_was(tmp_path, empty):
    for name in ("here", "there"):
        (tmp_path / name / "mlflow").mkdir(parents=True)
    store = shutil.copyfile(empty, tmp_path / "here" / "mlflow" / "mlflow.db")
    fit(MLflow(), series("loss", [1]), out=tmp_path / "here")
    shutil.copyfile(store, tmp_path / "there" / "mlflow" / "mlflow.db")
    (tmp_path / "there" / "history.csv").write_text("x")
    with pytest.warns(RuntimeWarning, match="the run folder was moved"):
        fit(MLflow(), series("loss", [1, 2]), out=tmp_path / "there")
    assert not list((tmp_path / "here").rglob("history.csv"))


# --- names and values that a service refuses


def test_names_are_cleaned_and_stay_different(tmp_path, store):
    names = ["loss", "f1@k", "f1?k", "a/b", "../x", "5%", "größe"]
    second = dict.fromkeys(names, NAN) | {"loss": 1.0, "f1?k": 3.0}
    fit(MLflow(shared=True), [dict.fromkeys(names, 2.0), second], out=tmp_path / "run")
    client, [run] = runs_of(store)
    assert set(run.data.metrics) == {"loss", "f1_k", "f1_k_2", "a_b", "x_.._x", "x_5_", "gr__e"}
    assert points(client, run, "f1_k_2") == [(1, 2), (2, 3)]
    assert clean(["1", "x_1"], r"\W") == {"1": "x_1", "x_1": "x_1_2"}


def test_long_specs_are_cut_to_what_mlflow_takes(tmp_path, store):
    layers = [{"Linear": 4}, "ReLU"] * 120 + [{"Linear": "outputs"}]
    trainer = FakeTrainer(series("loss", [1]), [MLflow(shared=True)], out=tmp_path / "run")
    trainer.history.spec = {"model": layers * 3, **{f"key{n}": n for n in range(250)}, "none": None, "empty": {}}
    trainer.fit()
    _, [run] = runs_of(store)
    assert len(run.data.params) == 253 and len(run.data.params["model"]) == 6000
    assert run.data.params["none"] == "null" and run.data.params["empty"] == "{}"


# --- what a spec may not say, and what is missing


@pytest.mark.parametrize(("name", "words"), [("MLflow", "{tracking_uri: 'http://x'}"), ("WandB", "{mode: online}")])
def test_no_spec_sends_anything_to_the_network(name, words, tmp_path, capsys):
    (tmp_path / "s.yaml").write_text(f"data: iris\nmodel: mlp\ncallbacks: {{{name}: {words}}}\n")
    assert main(["check", str(tmp_path / "s.yaml")]) == 2
    assert f"{name} has no such argument" in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "module"), [(MLflow, "mlflow"), (MLflow, "sqlalchemy"), (WandB, "wandb")])
def test_a_missing_extra_says_how_to_install_it(kind, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SpecError, match=rf'pip install "fitkit\[{kind.__name__.lower()}\]"'):
        kind()


def test_a_store_given_in_python_needs_no_run_folder(tmp_path, empty):
    store = shutil.copyfile(empty, tmp_path / "mine.db")
    fitkit.fit(IRIS, callbacks=[MLflow(f"sqlite:///{store}", experiment="mine")])
    client, [run] = runs_of(store)
    assert len(points(client, run, "loss")) == 3 and client.get_experiment_by_name("mine")
    with pytest.raises(SpecError, match="MLflow writes into the run folder: give fit"):
        fitkit.fit(IRIS | {"callbacks": ["MLflow"]})


def test_mlflow_sends_no_telemetry_and_leaves_the_home_folder_alone(tmp_path):
    code = (
        "from fitkit.parts.trackers import MLflow; MLflow(); import os, mlflow.telemetry as t\n"
        "assert t.get_telemetry_client() is None and 'DO_NOT_TRACK' not in os.environ"
    )
    kept = {name: value for name, value in os.environ.items() if name.startswith(("PYTHON", "PATH", "OMP"))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=kept | {"HOME": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


# --- Weights & Biases


class FakeRun:
    def __init__(self, **given):
        self.given, self.summary, self.logged, self.code = given, {}, [], None
        self.dir = str(Path(given["dir"]) / "wandb" / f"offline-{given['id']}" / "files")
        Path(self.dir).mkdir(parents=True, exist_ok=True)
        (Path(self.dir).parent / "latest").symlink_to(self.dir)

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self, exit_code):
        self.code = exit_code


@pytest.fixture
def service(monkeypatch):
    """A stand-in for the library, which keeps its runs."""
    module = types.ModuleType("wandb")
    module.runs, module.homes = [], []

    def init(**given):
        module.homes.append(os.environ["WANDB_CACHE_DIR"])
        module.runs.append(FakeRun(**given))
        return module.runs[-1]

    module.init, module.Settings = init, lambda **given: given
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_CACHE_DIR", raising=False)
    return module


def test_wandb_gets_config_epochs_best_epoch_and_files_offline_and_in_the_run_folder(service, tmp_path):
    out = tmp_path / "run"
    history = fitkit.fit(IRIS | {"callbacks": {"WandB": {"project": "flowers", "tags": ["a"]}}}, out=out)
    [run] = service.runs
    assert run.given["settings"]["mode"] == "offline" and run.given["settings"]["symlink"] is False
    assert (run.given["project"], run.given["name"], run.given["tags"]) == ("flowers", "run", ["a"])
    assert run.given["config"]["optimizer"]["AdamW"]["lr"] == 0.01 and run.given["dir"] == str(out)
    assert run.logged == [(int(row["epoch"]), row) for row in rows_of(out)]
    assert run.summary["best_epoch"] == history.best_epoch and run.code == 0
    assert {path.name for path in Path(run.dir).iterdir()} == {"resolved.yaml", "env.json", "history.csv"}
    assert service.homes == [str(out / "wandb" / "cache")] and "WANDB_CACHE_DIR" not in os.environ
    assert not any(path.is_symlink() for path in out.rglob("*"))


def test_a_resumed_run_keeps_its_wandb_id_unless_that_is_none(service, tmp_path):
    declared = IRIS | {"callbacks": ["WandB"]}
    fitkit.fit(declared, out=tmp_path / "run")
    longer = {"resume": True, "allow_change": ["fit.epochs"]}
    fitkit.fit(declared | {"fit": {"epochs": 4}}, out=tmp_path / "run", **longer)
    one, two = service.runs
    assert one.given["id"] == two.given["id"] and [step for step, _ in two.logged] == [4]
    hostile = WandB()
    resumed = FakeTrainer(series("loss", [1]), [hostile], out=tmp_path / "other")
    resumed.call("on_train_begin")
    hostile.load_state_dict({"run_id": "../../x"})
    resumed.epochs()
    assert service.runs[-1].given["id"].isalnum()


def test_a_wandb_that_fails_is_one_warning_and_a_failed_run_is_told(service, tmp_path, monkeypatch):
    with pytest.raises(TrainingError):
        fitkit.fit(IRIS | {"callbacks": ["WandB"]}, out=tmp_path / "a", overrides=["optimizer.AdamW.lr=1e30"])
    assert service.runs[-1].code == 1
    monkeypatch.setattr(service, "init", lambda **given: 1 / 0)
    with pytest.warns(RuntimeWarning, match="WandB stopped logging, the run goes on: division by zero") as caught:
        assert len(fitkit.fit(IRIS | {"callbacks": ["WandB"]}, out=tmp_path / "b")) == 3
    assert len(caught) == 1
    with pytest.raises(SpecError, match='"offline" or "online", not'):
        WandB("dryrun")


def wandb_records(data):
    """Yield the records of a .wandb file: a log of LevelDB's, in blocks of 32 KiB, after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    at, whole = 7, b""
    while at + 7 <= len(data):
        if (left := -at % 32768) < 7 and left:
            at += left
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole, at = whole + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(whole)
            whole = b""


def test_the_real_wandb_writes_offline_into_the_run_folder_alone(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    out = tmp_path / "run"
    fitkit.fit(IRIS | {"callbacks": ["WandB"]}, out=out)
    [file] = out.glob("wandb/offline-run-*/run-*.wandb")
    logged = [
        {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in record.history.item}
        for record in wandb_records(file.read_bytes())
        if record.WhichOneof("record_type") == "history"
    ]
    assert [{key: row[key] for key in rows_of(out)[0]} for row in logged] == rows_of(out)
    assert not (tmp_path / "home").exists() and not any(path.is_symlink() for path in out.rglob("*"))
