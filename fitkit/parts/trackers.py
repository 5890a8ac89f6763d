"""Callbacks that send each epoch's row to a tracker. A tracker that fails warns once and never stops a run.

A tracker gets the resolved spec when the run starts, each epoch's measured values with the epoch as step, and at the
end the best epoch's values and the files of the run folder. `history.csv` stays the source of truth. What reaches the
network is asked for in Python, never by a spec.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from fitkit.errors import SpecError
from fitkit.files import read_bytes
from fitkit.parts.callback import TrainerLike, run_folder
from fitkit.parts.tracker import Status, Tracker, best_values, clean, environment, files, flat, remove_links
from fitkit.spec.table import Table
from fitkit.spec.types import WritePath

RUN_ID = re.compile(r"[A-Za-z0-9]{1,64}")  # one from a checkpoint becomes part of a path
MOST_PARAMS, MOST_VALUE = 100, 6000  # MLflow's: parameters a call, characters of a value

trackers = Table("callback")


@trackers.register
class TensorBoard(Tracker):
    """Write every column to TensorBoard, one point an epoch, and the spec as text and as hyperparameters.

    The event files lie in `log_dir` in the run folder: `tensorboard --logdir runs` shows all runs. A resumed fit hides
    the points that it repeats.
    """

    writes_files = True

    def __init__(self, *, log_dir: WritePath = "tensorboard") -> None:
        super().__init__()
        try:
            from torch.utils.tensorboard import SummaryWriter
            from torch.utils.tensorboard.summary import hparams
        except ImportError:
            raise SpecError('TensorBoard needs an extra: pip install "fitkit[tensorboard]".') from None
        self.log_dir = log_dir
        self.open: Any = SummaryWriter
        self.hparams: Any = hparams
        self.writer: Any = None

    def forget(self) -> None:
        """Forget the last fit."""
        self.writer = None

    def begin(self, trainer: TrainerLike) -> None:
        """Open the file; what an earlier session wrote from this epoch on is hidden."""
        if self.writer is not None:
            return
        self.writer = self.open(str(run_folder(trainer, self) / self.log_dir), purge_step=trainer.epoch)
        if trainer.epoch == 1 and (given := flat(trainer.history.spec)):
            text = json.dumps(trainer.history.spec, indent=2, ensure_ascii=False)
            self.writer.add_text("spec", "\n".join(f"    {line}" for line in text.splitlines()))  # Markdown's code
            for summary in self.hparams(given, dict.fromkeys(trainer.columns, 0))[:2]:
                self.writer.file_writer.add_summary(summary)

    def log(self, trainer: TrainerLike, row: Mapping[str, float]) -> None:
        """Write the values of an epoch."""
        for column, value in row.items():
            self.writer.add_scalar(column, value, trainer.epoch)
        self.writer.flush()

    def close(self, trainer: TrainerLike, status: Status) -> None:
        """Close the file."""
        if self.writer is not None:
            self.writer.close()


@trackers.register
class MLflow(Tracker):
    """Write the run to an MLflow store: parameters, every column once an epoch, best epoch, files.

    The store is the folder `mlflow` in the run folder: `mlflow.db`, which is SQLite, and the artifacts. With `shared`
    it is the folder `mlflow` beside the run folder, one store for all runs there. To look at it, install `mlflow` and
    run `mlflow ui --backend-store-uri sqlite:///runs/NAME/mlflow/mlflow.db`. The experiment is named as the spec
    unless `experiment` says otherwise. A resumed fit goes on with the same MLflow run, and sends no epoch twice.

    `tracking_uri` is another store, perhaps on a server: for Python only, as `callbacks=[MLflow("http://…")]` with
    `from fitkit.parts.trackers import MLflow`.
    """

    writes_files = True
    remembers = ("run_id",)

    def __init__(
        self,
        tracking_uri: str | None = None,
        *,
        shared: bool = False,
        experiment: str | None = None,
        tags: dict[str, str] | None = None,
    ) -> None:
        super().__init__()
        with environment(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                import sqlalchemy  # noqa: F401  (a store that is a file needs it)
                from mlflow import MlflowClient, entities
            except ImportError:
                raise SpecError('MLflow needs an extra: pip install "fitkit[mlflow]".') from None
        self.tracking_uri, self.shared, self.experiment, self.tags = tracking_uri, shared, experiment, tags
        self.writes_files = tracking_uri is None
        self.open: Any = MlflowClient
        self.entities: Any = entities
        self.forget()

    def forget(self) -> None:
        """Forget the last fit."""
        self.client: Any = None
        self.run_id = ""
        self.begun = False
        self.ended = ""
        self.logged = 0  # the last epoch that the store holds
        self.artifacts: str | None = None  # where a store of ours keeps files

    def connect(self, trainer: TrainerLike) -> None:
        """Open the store, or make it: MLflow takes some seconds for that."""
        uri = self.tracking_uri
        if uri is None:
            folder = run_folder(trainer, self).resolve()
            folder = (folder.parent if self.shared else folder) / "mlflow"
            if any(mark in str(folder) for mark in "?#%"):
                raise ValueError(f"MLflow cannot name a store in {folder}: its path holds one of ? # %")
            folder.mkdir(parents=True, exist_ok=True)
            uri, self.artifacts = f"sqlite:///{folder / 'mlflow.db'}", (folder / "artifacts").as_uri()
            logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # it tells of each table it makes
        with environment(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true"):
            self.client = self.open(tracking_uri=uri, registry_uri=uri)
        if self.artifacts and not (folder / "mlflow.db").is_file():
            raise OSError(f"{folder} was removed while this process had it open: start Python again")

    def begin(self, trainer: TrainerLike) -> None:
        """Begin an MLflow run, or go on with the one of the checkpoint, or of a store that a killed fit left."""
        if self.begun:
            return
        spec: Mapping[str, Any] = trainer.history.spec or {}
        name = self.experiment or str(spec.get("name") or "fitkit")
        found = self.client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self.client.create_experiment(name, self.artifacts)
        if not self.run_id and self.artifacts and not self.shared:
            self.run_id = next((run.info.run_id for run in self.client.search_runs([experiment])), "")
        if not self.run_id:
            tags = dict(self.tags or {}) | ({"fitkit.run": str(trainer.out)} if trainer.out else {})
            run = self.client.create_run(experiment, tags=tags, run_name=trainer.out.name if trainer.out else None)
            self.run_id = run.info.run_id
            params = [self.entities.Param(*pair) for pair in _params(spec)]
            for first in range(0, len(params), MOST_PARAMS):
                self.client.log_batch(self.run_id, params=params[first : first + MOST_PARAMS])
        else:
            points = self.client.get_metric_history(self.run_id, _names(trainer.columns)[trainer.columns[0]])
            self.logged = max((point.step for point in points), default=0)
            self.client.update_run(self.run_id, status="RUNNING")
        self.begun = True

    def log(self, trainer: TrainerLike, row: Mapping[str, float]) -> None:
        """Send the values of an epoch, unless a session before this one did."""
        if trainer.epoch > self.logged:
            names = _names(trainer.columns)
            self._send({names[column]: value for column, value in row.items()}, trainer.epoch)

    def _send(self, values: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        points = [self.entities.Metric(key, value, now, step) for key, value in values.items()]
        self.client.log_batch(self.run_id, metrics=points)

    def close(self, trainer: TrainerLike, status: Status) -> None:
        """Send the best epoch's values and the files, and say how the run ended."""
        if not self.begun or self.ended == status:
            return
        if not self.ended:
            if best := best_values(trainer):
                names = _names(best)
                self._send({names[key]: value for key, value in best.items()}, int(best["best_epoch"]))
            self._send_files(trainer)
        words = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
        self.client.set_terminated(self.run_id, words[status])
        self.ended = status

    def _send_files(self, trainer: TrainerLike) -> None:
        place = self.client.get_run(self.run_id).info.artifact_uri
        own = RUN_ID.fullmatch(self.run_id) and place == f"{self.artifacts}/{self.run_id}/artifacts"
        if self.artifacts and not own:  # a store that came with a run folder may name any place, such as one with ".."
            raise OSError(f"the run folder was moved, and its MLflow run keeps files in {place}")
        for path in files(trainer):
            self.client.log_artifact(self.run_id, str(path))


@trackers.register
class WandB(Tracker):
    """Write the run to Weights & Biases, offline: the spec as config, every column once an epoch, best epoch, files.

    The files lie in the folder `wandb` in the run folder; `wandb sync` sends them to your account. A resumed fit
    goes on under the same run id, and sends no epoch a second time.

    `mode` "online" sends each epoch at once: for Python only, as `callbacks=[WandB("online")]` with
    `from fitkit.parts.trackers import WandB`.
    """

    remembers = ("run_id",)
    writes_files = True

    def __init__(
        self,
        mode: Literal["offline", "online"] = "offline",
        *,
        project: str = "fitkit",
        tags: list[str] | None = None,
    ) -> None:
        super().__init__()
        if mode not in ("offline", "online"):
            raise SpecError(f'WandB is "offline" or "online", not {mode!r}.')
        with environment(WANDB_ERROR_REPORTING="false"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                import wandb
            except ImportError:
                raise SpecError('WandB needs an extra: pip install "fitkit[wandb]".') from None
        self.sends, self.project, self.tags = mode, project, tags
        self.wandb: Any = wandb
        self.forget()

    def forget(self) -> None:
        """Forget the last fit."""
        self.run: Any = None
        self.run_id = ""
        self.sent = Path()  # the file that says how many epochs were sent, which no checkpoint can know

    def begin(self, trainer: TrainerLike) -> None:
        """Begin a run, or go on with the one whose id the checkpoint holds."""
        if self.run is not None:
            return
        folder = run_folder(trainer, self).resolve()
        (folder / "wandb").mkdir(parents=True, exist_ok=True)
        if not RUN_ID.fullmatch(self.run_id):
            self.run_id = os.urandom(6).hex()
        self.sent = folder / "wandb" / f"{self.run_id}.sent"
        quiet = {"silent": True, "console": "off", "symlink": False, "show_info": False, "show_warnings": False}
        private = {"disable_git": True, "disable_code": True, "disable_job_creation": True, "x_disable_stats": True}
        own = {f"WANDB_{name}_DIR": str(folder / "wandb" / name.lower()) for name in ("CACHE", "CONFIG", "DATA")}
        with environment(WANDB_ERROR_REPORTING="false", **own):  # else it writes into the user's home
            self.run = self.wandb.init(
                project=self.project,
                name=folder.name,
                id=self.run_id,
                dir=str(folder),
                config=dict(trainer.history.spec or {}),
                tags=self.tags,
                resume="allow",
                reinit="create_new",  # a run that the user has open stays theirs
                settings=self.wandb.Settings(mode=self.sends, **quiet, **private),
            )
        remove_links(folder / "wandb")

    def log(self, trainer: TrainerLike, row: Mapping[str, float]) -> None:
        """Send the values of an epoch, whose number is their step."""
        if self.sent.is_file() and trainer.epoch <= int(read_bytes(self.sent, most=20, links=False)):
            return
        names = clean(trainer.columns, r"\W")
        self.run.log({"epoch": trainer.epoch} | {names[key]: row[key] for key in row}, step=trainer.epoch)
        self.sent.write_text(str(trainer.epoch))

    def close(self, trainer: TrainerLike, status: Status) -> None:
        """Send the best epoch's values and the files, and end the run."""
        if self.run is None:
            return
        for key, value in best_values(trainer).items():
            self.run.summary[key] = value
        for path in files(trainer):
            shutil.copyfile(path, Path(self.run.dir) / path.name)  # what lies there when it ends is sent
        run, self.run = self.run, None
        run.finish(exit_code=int(status != "finished"))
        remove_links(run_folder(trainer, self) / "wandb")


def _names(names: Iterable[str]) -> dict[str, str]:
    """Return names that MLflow takes on every system; it would also take a slash and a colon, on some."""
    return clean(names, r"[^\w .-]")


def _params(spec: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the spec as MLflow takes it: keys without what it refuses, values no longer than it allows."""
    values = flat(spec)
    names = _names(values)
    for key, value in values.items():
        text = str(value)
        yield names[key], text if len(text) <= MOST_VALUE else text[: MOST_VALUE - 1] + "…"
