"""What can happen to a run from outside: kills, signals, damage, a full disk; and that its state is all there is.

The short form of `python -m tests.kills`. Runs are compared to the bit; no test measures a time.
"""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from kills import disk, mutants
from kills.harness import SHARES, Trial, campaign
from kills.stops import second_interrupt, stops
from kills.workloads import COMPILED, EAGER, WORKLOADS, Workload, uncovered_pairs

import fitkit
from fitkit.after import verify
from fitkit.errors import CheckpointError
from fitkit.session import run

PROCESSES = 2


def at_once(function, place, jobs):
    """Call `function(workload, count, seed, folder, slot)` for each of the jobs, with two processes at a time."""
    slot = threading.Semaphore(PROCESSES)

    def one(number):
        index, count = jobs[number]
        folder = place / str(number)
        folder.mkdir()
        return function(WORKLOADS[index], count, number, folder, slot)

    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(one, range(len(jobs))))


def test_every_two_choices_are_together_in_a_workload():
    assert len(WORKLOADS) == 12 and not uncovered_pairs()


def test_runs_that_are_killed_22_times_end_as_those_that_were_not(tmp_path):
    """With worker processes, with samples read by the process itself, and with arrays; verify-resume adds three."""
    done = at_once(campaign, tmp_path, [(0, 8), (1, 7), (4, 7)])
    tally = [sum(tally[aim] for tally, _ in done) for aim in ("training", "save", "resume")]
    assert sum(tally) == 22 and min(tally[1:]) >= 5
    assert set(SHARES) == {"training", "save", "resume"}


def test_ten_signals_at_any_moment_leave_a_checkpoint_and_the_exit_code(tmp_path):
    done = at_once(stops, tmp_path, [(0, 5), (4, 5)])
    assert sum(count for count, _ in done) == 10 and max(lost for _, lost in done) <= 1


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with worker processes that nobody disturbs."""
    trial = Trial(WORKLOADS[0], tmp_path_factory.mktemp("undisturbed") / "whole")
    trial.go_through()
    return trial


def test_a_second_interrupt_leaves_at_once(whole, tmp_path):
    second_interrupt(whole, tmp_path)


def test_a_run_goes_on_at_once_where_only_its_own_process_was_killed(whole, tmp_path):
    """Its workers notice that later, and must hold nothing that the next process needs."""
    cut = Trial(whole.workload, tmp_path / "cut")
    with cut.run.started() as process:
        while process.poll() is None and len(cut.lines("step")) < 40:
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        cut.go_through()
        process.communicate()
    whole.compare(cut)


@pytest.mark.parametrize("name", [*mutants.MUTANTS, *mutants.MORE])
def test_the_comparison_notices_whatever_a_resume_forgets(name, tmp_path):
    assert mutants.is_caught(name, tmp_path)


@pytest.mark.parametrize("name", ["EMA", "scaler"])
def test_it_notices_nothing_where_nothing_is_forgotten(name, tmp_path):
    assert not mutants.is_caught(name, tmp_path, mutate=False)


def test_200_damages_are_noticed_and_the_checkpoint_before_is_used(tmp_path):
    assert disk.damages(tmp_path, 200) == []


def test_a_save_that_ends_anywhere_leaves_a_whole_checkpoint(tmp_path):
    assert disk.crashes(tmp_path) >= 20


@pytest.fixture
def small_disk(tmp_path):
    try:
        with disk.small_disk(tmp_path / "small", 2 << 20) as folder:
            yield folder
    except PermissionError as error:
        pytest.skip(f"this system mounts no small disk: {error}")


def test_saves_that_do_not_fit_harm_nothing_and_say_what_they_need(small_disk):
    assert disk.full_disk(small_disk) > 10


def test_a_run_on_a_disk_that_was_full_goes_on_when_there_is_room(small_disk, tmp_path):
    spec, place = fitkit.load_spec(WORKLOADS[4].spec()), small_disk / "run"

    def go(folder, watch):
        model, data = WORKLOADS[4].parts()
        return run(spec, model=model, data=data, out=folder, resume=True, callbacks=[watch], every_steps=3)

    go(tmp_path / "whole", fitkit.LambdaCallback())
    fill = fitkit.LambdaCallback(on_step_end=lambda trainer: trainer.step == 20 and disk.fill(small_disk, 8192))
    with pytest.raises(CheckpointError, match=r"small/run/.* needs [\d,]+ bytes and [\d,]+ are free"):
        go(place, fill)
    (small_disk / "ballast").unlink()
    go(place, fitkit.LambdaCallback())
    verify.compare(tmp_path / "whole", place)
    assert not [path for path in place.rglob(".*")]


compiles = pytest.mark.skipif(" " in torch.__file__, reason="torch.compile does not work from a path with a space")
quiet = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
TIERS = {
    "eager": Workload("AdamW", 1, "cosine", True, "fp32", EAGER, "arrays"),
    "bf16": Workload("AdamW", 1, "cosine", True, "bf16", EAGER, "arrays"),
    "compiled": Workload("AdamW", 1, "cosine", True, "fp32", COMPILED, "arrays"),
}


@pytest.mark.parametrize("tier", ["eager", "bf16", pytest.param("compiled", marks=[compiles, quiet])])
def test_two_deterministic_runs_are_the_same_to_the_bit(tier, tmp_path):
    spec = TIERS[tier].spec()
    spec["fit"] |= {"deterministic": True, "epochs": 3}
    for number, name in enumerate(("one", "two")):
        torch.manual_seed(number)
        torch._dynamo.reset()
        model, data = TIERS[tier].parts()
        run(fitkit.load_spec(spec), model=model, data=data, out=tmp_path / name)
    verify.compare(tmp_path / "one", tmp_path / "two")
