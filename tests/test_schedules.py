"""Schedules: step by step those of torch, where torch has one."""

import warnings

import pytest
import torch
from torch.optim import lr_scheduler

from fitkit.errors import SpecError
from fitkit.parts.schedules import bind_schedule, schedules
from fitkit.spec.component import Component

REQUIRED = {"step": {"at": [0.5, 0.75]}}
TOTAL = 40


def bound(name, total=TOTAL, **args):
    component = Component(schedules[name], {**REQUIRED.get(name, {}), **args}, f"schedule.{name}")
    return bind_schedule(component, total)


def torchs(make, steps):
    """Return the learning rates that a scheduler of torch gives to steps 0, 1, …, for an optimizer with lr 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, rates = make(optimizer), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("name", "args", "make"),
    [
        ("constant", {}, lambda o: lr_scheduler.LambdaLR(o, lambda step: 1.0)),
        ("linear", {}, lambda o: lr_scheduler.LinearLR(o, 1.0, 0.0, TOTAL)),
        ("linear", {"end": 0.1}, lambda o: lr_scheduler.LinearLR(o, 1.0, 0.1, TOTAL)),
        ("cosine", {}, lambda o: lr_scheduler.CosineAnnealingLR(o, TOTAL)),
        ("cosine", {"end": 0.1}, lambda o: lr_scheduler.CosineAnnealingLR(o, TOTAL, 0.1)),
        ("polynomial", {"power": 3.0}, lambda o: lr_scheduler.PolynomialLR(o, TOTAL, 3.0)),
        ("exponential", {"end": 0.02}, lambda o: lr_scheduler.ExponentialLR(o, 0.02 ** (1 / TOTAL))),
        ("step", {"factor": 0.3}, lambda o: lr_scheduler.MultiStepLR(o, [TOTAL // 2, 3 * TOTAL // 4], 0.3)),
        ("step", {"at": [k / 10 for k in range(1, 10)]}, lambda o: lr_scheduler.StepLR(o, TOTAL // 10)),
    ],
)
def test_a_schedule_is_torchs_step_by_step(name, args, make):
    multiplier = bound(name, **args)
    assert [multiplier(step) for step in range(TOTAL)] == pytest.approx(torchs(make, TOTAL), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("args", [{}, {"pct_start": 0.5, "div_factor": 10.0, "final_div_factor": 100.0}])
def test_one_cycle_is_torchs_with_its_peak_and_its_floor_moved_to_the_fractions_of_the_run(args):
    peak = args.get("pct_start", 0.3) * TOTAL
    moved = {**args, "pct_start": (peak + 1) / (TOTAL + 1)}

    def make(optimizer):
        return lr_scheduler.OneCycleLR(optimizer, 1.0, TOTAL + 1, cycle_momentum=False, **moved)

    multiplier = bound("one_cycle", **args)
    assert [multiplier(step) for step in range(TOTAL + 1)] == pytest.approx(torchs(make, TOTAL + 1), rel=1e-9)
    assert multiplier(int(peak)) == pytest.approx(1.0)


@pytest.mark.parametrize("name", schedules)
def test_warm_up_rises_linearly_and_the_schedule_runs_over_the_rest(name):
    multiplier, plain = bound(name, warmup=10), bound(name, TOTAL - 10)
    assert [multiplier(step) for step in range(10)] == pytest.approx([(s + 1) / 10 * plain(0) for s in range(10)])
    assert [multiplier(10 + step) for step in range(30)] == pytest.approx([plain(step) for step in range(30)])


def test_warm_up_and_cosine_are_torchs_two_schedulers_one_after_the_other():
    def make(optimizer):
        warm = lr_scheduler.LinearLR(optimizer, 0.1, 1.0, 9)  # 0.1, 0.2, ..., 1.0 in steps 0 to 9
        rest = lr_scheduler.CosineAnnealingLR(optimizer, TOTAL - 10)
        return lr_scheduler.SequentialLR(optimizer, [warm, rest], [10])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SequentialLR warns about its own use of `step(epoch)`
        expected = torchs(make, TOTAL)
    multiplier = bound("cosine", warmup=0.25)
    assert [multiplier(step) for step in range(TOTAL)] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", schedules)
def test_steps_past_the_end_stay_at_the_end_and_progress_is_all_a_schedule_knows(name):
    short, long = bound(name, 10), bound(name, 1000)
    assert short(10) == short(11) == short(10**9) == long(1000)
    assert [short(step) for step in range(10)] == pytest.approx([long(100 * step) for step in range(10)])
    assert all(isinstance(short(step), float) and short(step) >= 0 for step in range(12))


@pytest.mark.parametrize("name", schedules)
def test_one_step_is_a_whole_run(name):
    assert bound(name, 1)(0) == schedules[name].factory(0.0, **REQUIRED.get(name, {}))


@pytest.mark.parametrize("name", schedules)
def test_every_schedule_has_a_line_and_the_shared_warm_up(name):
    assert schedules[name].summary.endswith(".")
    assert schedules[name].arguments["warmup"].shared and schedules[name].arguments["warmup"].default == 0


def test_ends_are_met():
    assert bound("linear", end=0.2)(TOTAL) == pytest.approx(0.2)
    assert bound("polynomial", end=0.2)(TOTAL) == pytest.approx(0.2)
    assert bound("cosine", end=0.2)(TOTAL) == pytest.approx(0.2)
    assert bound("exponential")(TOTAL) == pytest.approx(0.01)
    assert bound("one_cycle")(TOTAL) == pytest.approx(1 / 25e4)


@pytest.mark.parametrize(("warmup", "steps"), [(TOTAL, 40), (TOTAL + 1, 41), (0.999, 40)])
def test_a_warm_up_that_leaves_nothing_is_refused_where_it_stands(warmup, steps):
    with pytest.raises(
        SpecError, match=rf"^schedule\.cosine\.warmup: the warm-up takes {steps} steps and the whole run"
    ):
        bound("cosine", warmup=warmup)
