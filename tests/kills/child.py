"""The process that is killed: the command line of fitkit, with parts from Python, a log of every step, and a fault.

KILLS_WORKLOAD   which module and data fit gets
KILLS_LOG        file that gets a line when something happens: the ids of a step, "evaluate", "counts …"
KILLS_STATE      folder that gets the state at the end of training, as a checkpoint
KILLS_FAULT      "save 17" or "resume 5": die by SIGKILL, with the group, at that file operation of the phase
KILLS_SLOW       seconds that each validation batch takes
"""

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import torch

from fitkit import cli, session
from fitkit.engine import checkpoint
from fitkit.engine.whole_step import Rows
from fitkit.parts.callback import Callback
from fitkit.resume import FOLDER, capture

from .workloads import by_name

OPERATIONS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree", "os.link")


class Log:
    """Lines that are in the file at once, whatever happens to the process."""

    def __init__(self, path):
        self.handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def __call__(self, *words):
        os.write(self.handle, (" ".join(map(str, words)) + "\n").encode())


class Fault:
    """Counts the file operations of resuming and of saving, and ends the process group at one of them."""

    def __init__(self, folder, asked):
        self.folder, self.pid = str(folder), os.getpid()
        self.phase, self.counts = "resume", {"resume": 0, "save": 0}
        phase, _, at = asked.partition(" ")
        self.asked = phase, int(at or 0)

    def install(self):
        sys.addaudithook(self._operation)
        fsync, load = os.fsync, torch.nn.Module.load_state_dict

        def counted_fsync(handle):
            self.count(os.readlink(f"/proc/self/fd/{handle}"))
            return fsync(handle)

        def counted_load(module, *arguments, **options):
            if self.phase == "resume":
                self.count(self.folder)
            return load(module, *arguments, **options)

        os.fsync, torch.nn.Module.load_state_dict = counted_fsync, counted_load

    def _operation(self, event, arguments):
        if event in OPERATIONS and os.getpid() == self.pid:
            path = arguments[0]
            inside = arguments[-1] if event in ("os.remove", "os.rmdir") else -1
            if isinstance(inside, int) and inside >= 0:
                path = os.readlink(f"/proc/self/fd/{inside}")
            if isinstance(path, str | os.PathLike):
                self.count(os.fspath(path))

    def count(self, path):
        counted = self.folder if self.phase == "resume" else f"{self.folder}/{FOLDER}"
        if not f"{path}/".startswith(f"{counted}/"):
            return
        self.counts[self.phase] += 1
        if self.asked == (self.phase, self.counts[self.phase]):
            os.killpg(os.getpgid(0), signal.SIGKILL)


class Watch(Callback):
    """Logs what the steps see, and writes the state at the end of training."""

    def __init__(self, log, fault, state, slow):
        self.log, self.fault, self.state, self.slow = log, fault, state, slow

    def on_train_begin(self, trainer):
        trainer.val.in_order = self._slowed(trainer.val.in_order)
        step = type(trainer._train_step)
        step.__call__ = self._seen(trainer, step.__call__)  # a hook for each step would forbid calls of several

    def _seen(self, trainer, original):
        def call(step, call, sums, number, rates):
            applied = original(step, call, sums, number, rates)
            taken = trainer.batch // trainer.options.accumulate
            for ahead, window in enumerate(call if isinstance(call, Rows) else [call], 1):
                ids = [i for x, _ in window for i in x[:, 0].int().tolist()]
                self.log("step", number + ahead, "window", trainer.epoch, taken + ahead, *ids)
            return applied

        return call

    def _slowed(self, original):
        def in_order():
            for batch in original():
                time.sleep(self.slow)
                yield batch

        return in_order

    def on_epoch_begin(self, trainer):
        self.fault.phase = "save"
        self.log("epoch", trainer.epoch)

    def on_evaluate_begin(self, trainer):
        self.log("evaluate", trainer.epoch)

    def on_epoch_end(self, trainer):
        if trainer.stopped and self.state:
            shutil.rmtree(self.state, ignore_errors=True)
            checkpoint.write(Path(self.state), trainer.step, *capture(trainer))
            self.log("counts", self.fault.counts["resume"], self.fault.counts["save"])


def main():
    wanted = os.environ
    folder = Path(sys.argv[sys.argv.index("--out") + 1]).absolute()
    fault = Fault(folder, wanted.get("KILLS_FAULT", ""))
    watch = Watch(Log(wanted["KILLS_LOG"]), fault, wanted.get("KILLS_STATE"), float(wanted.get("KILLS_SLOW", 0)))
    run = session.run

    def run_with_parts(spec, *, callbacks=(), **options):
        model, data = by_name(wanted["KILLS_WORKLOAD"]).parts()
        return run(spec, model=model, data=data, callbacks=(*callbacks, watch), **options)

    session.run = run_with_parts
    fault.install()
    watch.log("begun", os.getpid())
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
