"""The learning rate range test: its steps are those of the run, it leaves nothing behind, and its rules are named."""

import dataclasses
import json
import math
import random
import shlex
import sys
from pathlib import Path

import numpy
import pytest
import torch
from small_fit import labels, linear, numbers, same_bits, spec
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, TensorDataset

import fitkit
from fitkit import figures
from fitkit.after import lr_rules
from fitkit.cli import main
from fitkit.errors import DataError, SpecError

IRIS = {"data": "iris", "model": {"mlp": [8]}, "optimizer": {"AdamW": 1e-2}, "name": "iris"}


def sweep(steps=200, start=1e-7, end=10.0):
    return [start * (end / start) ** (i / (steps - 1)) for i in range(steps)]


def valley(lr, centre=1e-3, low=1e-1):
    """A loss that falls from 2 to about 0, fastest at `centre`, and rises again beyond `low`."""
    x = math.log10(lr)
    return 2 / (1 + math.exp(3 * (x - math.log10(centre)))) + max(0.0, x - math.log10(low)) ** 2


# --- rules


def test_the_running_mean_is_the_weighted_mean_of_what_came_before():
    losses, beta = [3.0, 1.0, 4.0, 1.5], 1 - 20 / 100
    expected = []
    for n in range(1, 5):
        weights = [beta ** (n - 1 - i) for i in range(n)]
        expected.append(numpy.average(losses[:n], weights=weights))
    assert lr_rules.running_mean(losses, 100) == pytest.approx(expected, rel=1e-12)


def test_smoothing_does_not_lag_behind_the_loss():
    straight = [float(i) for i in range(200)]
    assert lr_rules.smoothed(straight, 200)[80:120] == pytest.approx(straight[80:120], abs=0.1)


@pytest.mark.parametrize("steps", [100, 200, 500])
def test_on_a_valley_the_steepest_point_and_a_tenth_of_the_lowest_are_found(steps):
    lrs, draw = sweep(steps), random.Random(0)
    found = lr_rules.read(lrs, [valley(lr) + draw.gauss(0, 0.05) for lr in lrs], steps)
    exact = min(lrs, key=valley)
    assert abs(math.log10(found.candidates[lr_rules.STEEPEST]) - -3) < 0.35
    assert abs(math.log10(found.candidates[lr_rules.TENTH]) - math.log10(exact / 10)) < 0.5
    assert found.suggestion == found.candidates[lr_rules.TENTH] and found.rule == lr_rules.TENTH


@pytest.mark.parametrize("shift", [-1000.0, 0.0, 1000.0])
def test_where_the_loss_only_wanders_there_is_hardly_ever_a_suggestion(shift):
    draw, lrs = random.Random(1), sweep()
    readings = [lr_rules.read(lrs, [shift + draw.gauss(0, 1) for _ in lrs], 200) for _ in range(100)]
    assert sum(reading.suggestion is not None for reading in readings) <= 5
    assert "does not fall by more than its noise" in readings[0].rule


def test_a_loss_that_only_rises_or_stays_gives_no_suggestion():
    for losses in ([1 + i / 100 for i in range(200)], [0.7] * 200, [0.0] * 200):
        found = lr_rules.read(sweep(), losses, 200)
        assert found.suggestion is None and found.candidates == {}


def test_a_sweep_ends_where_the_mean_is_four_times_its_lowest_and_above_where_it_began():
    low = [1.0] * 50 + [0.1] * 100
    assert lr_rules.length([*low, *[0.9] * 50], 200) == (200, "")  # nine times the lowest, and below the beginning
    count, why = lr_rules.length([*low, *[50.0] * 50], 200)
    assert 150 <= count < 155 and why == "the loss diverged"
    assert lr_rules.length([-2.0] * 100, 200) == (100, "")
    assert lr_rules.length([1.0, math.inf], 200) == (1, "the loss is not finite")


def test_a_loss_that_diverges_at_once_says_so():
    assert "lr 1.2e-07 already. Start" in lr_rules.read(sweep(), [1.0, 1.0, math.nan], 200).rule
    assert "not finite at any lr" in lr_rules.read(sweep()[:1], [math.nan], 200).rule


# --- the sweep


def test_the_losses_are_those_of_a_hand_written_loop_with_that_learning_rate():
    x, y, net = numbers(32, 3), numbers(32, 1, seed=1), linear(3, 1)
    declared = spec(batch_size=32, clip_norm=0.5, loss="mse_loss")
    declared["optimizer"] = {"SGD": {"lr": 0.5, "momentum": 0.9}}
    found = fitkit.lr_find(declared, model=net, data={"train": (x, y)}, start=1e-4, end=1e-1, steps=60)
    twin = linear(3, 1)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.5, momentum=0.9)
    expected = []
    for lr in sweep(60, 1e-4, 1e-1):
        optimizer.param_groups[0]["lr"] = lr
        loss = ((twin(x) - y) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        optimizer.step()
        expected.append(loss.item())
    assert found.lr == pytest.approx(sweep(60, 1e-4, 1e-1)) and found.loss == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("rows", "accumulate", "steps"), [(40, 1, 200), (2400, 1, 300), (2400, 2, 200), (9000, 1, 500)]
)
def test_a_sweep_has_the_steps_of_an_epoch_but_200_at_least_and_500_at_most(rows, accumulate, steps):
    data = {"train": (numbers(rows, 2), labels(2, rows))}
    declared = spec(lr=1e-3, batch_size=8, accumulate=accumulate)
    found = fitkit.lr_find(declared, model=linear(2, 2), data=data, end=1e-3)
    assert found.steps == len(found.lr) == steps


class Watched(nn.Module):
    """A module with whatever a sweep could disturb: buffers, a frozen part, modes, hooks, gradients."""

    def __init__(self):
        super().__init__()
        self.body, self.norm, self.frozen = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 6)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(6, 2)
        self.frozen.requires_grad_(False)
        self.norm.eval()

    def forward(self, x):
        return self.head(self.drop(self.frozen(self.norm(self.body(x)))))


def states():
    return random.getstate(), numpy.random.get_state()[1].tobytes(), torch.get_rng_state().tolist()


def test_afterwards_module_loader_and_random_states_are_as_before_to_the_bit():
    net = Watched()
    handle = net.body.register_forward_hook(lambda module, args, output: None)
    net.body.weight.grad = torch.ones_like(net.body.weight)
    drawn = torch.Generator().manual_seed(7)
    rows = TensorDataset(torch.randn(60, 4), torch.randint(2, (60,)))
    loader = DataLoader(rows, batch_size=8, sampler=RandomSampler(rows, replacement=True, generator=drawn))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    modes, at = [module.training for module in net.modules()], drawn.get_state()
    random.random(), numpy.random.rand(), torch.rand(1)
    drawn_before = states()
    found = fitkit.lr_find({"optimizer": "Adam"}, model=net, data={"train": loader})
    assert len(found.loss) > 100 and states() == drawn_before and torch.equal(drawn.get_state(), at)
    assert same_bits(before, net.state_dict()) and modes == [module.training for module in net.modules()]
    assert list(net.body._forward_hooks) == [handle.id] and net.head.weight.grad is None
    assert torch.equal(net.body.weight.grad, torch.ones_like(net.body.weight))
    assert [p.requires_grad for p in net.frozen.parameters()] == [False, False]


def test_a_sampler_of_epochs_and_data_that_are_only_iterated_can_be_swept():
    class Epochs(RandomSampler):
        epoch = 5

        def set_epoch(self, epoch):
            self.epoch = epoch

    class Stream(IterableDataset):
        def __iter__(self):
            yield from zip(numbers(30, 3), labels(2, 30), strict=True)

    rows = TensorDataset(numbers(30, 3), labels(2, 30))
    sampler = Epochs(rows)
    fitkit.lr_find({}, model=linear(3, 2), data={"train": DataLoader(rows, batch_size=5, sampler=sampler)})
    assert sampler.epoch == 5
    before = states()
    assert fitkit.lr_find({}, model=linear(3, 2), data={"train": Stream()}).steps == 200
    assert states() == before


def test_a_fit_after_a_sweep_is_the_fit_without_one():
    x, y = numbers(40, 3), labels(2, 40)
    alone, after = (linear(3, 2, nn.Dropout(0.2)) for _ in range(2))
    declared = spec(epochs=3)
    expected = fitkit.Model(alone).fit(declared, data=(x, y))
    fitkit.lr_find(declared, model=after, data=(x, y))
    found = fitkit.Model(after).fit(declared, data=(x, y))
    assert found["loss"] == expected["loss"] and same_bits(alone.state_dict(), after.state_dict())


def test_a_sweep_of_a_spec_gives_the_same_each_time_and_depends_on_its_seed():
    first, again = (fitkit.lr_find(IRIS) for _ in range(2))
    assert first.loss == again.loss and first.suggestion == again.suggestion
    assert fitkit.lr_find(IRIS, overrides={"seed": 1}).loss != first.loss


def test_all_groups_keep_their_ratio_and_the_patch_sets_them_all():
    own = {"AdamW": {"lr": 1e-2, "lr_patterns": {"0.*": 3e-2}}}
    found = fitkit.lr_find(IRIS | {"model": [{"Linear": 8}, "ReLU", {"Linear": "outputs"}], "optimizer": own})
    assert set(found.patch) == {"optimizer.AdamW.lr", "optimizer.AdamW.lr_patterns"}
    assert found.patch["optimizer.AdamW.lr_patterns"]["0.*"] == pytest.approx(3 * found.suggestion, rel=0.05)
    assert any("all parameter groups" in note for note in found.notes)
    muon = fitkit.lr_find(IRIS | {"optimizer": {"Muon": {"lr": 2e-2, "adamw_lr": 1e-2}}, "model": {"mlp": [8, 8]}})
    assert muon.patch["optimizer.Muon.adamw_lr"] == pytest.approx(muon.suggestion / 2, rel=0.05)


def test_schedule_and_callbacks_are_left_out_and_the_schedule_is_named():
    stops = {"EarlyStopping": {"patience": 1}}
    found = fitkit.lr_find(
        IRIS | {"schedule": {"cosine": {"warmup": 0.5}}, "callbacks": stops, "fit": {"max_steps": 3}}
    )
    assert any("the schedule cosine was left out" in note for note in found.notes)
    assert found.loss == fitkit.lr_find(IRIS).loss and fitkit.lr_find(IRIS).notes == ()


def test_a_sweep_whose_loss_is_lowest_at_its_end_says_so():
    found = fitkit.lr_find(IRIS, end=1e-2)
    assert found.suggestion and any("lowest at the end of the sweep" in note for note in found.notes)
    flat = fitkit.lr_find(IRIS, end=1e-6)
    assert flat.suggestion is None and "End higher" in flat.rule and "no suggestion: the loss" in str(flat)
    assert flat.patch == {} and flat.command == ""


def test_of_a_cross_validation_the_first_fold_is_swept():
    folds = IRIS | {"splits": {"kfold": {"k": 3}}}
    found = fitkit.lr_find(folds)
    assert found.loss == fitkit.lr_find(IRIS | {"splits": {"kfold": {"k": 3, "fold": 1}}}).loss
    assert any("the sweep trained on the first" in note for note in found.notes)


# Mistakes


def test_an_optimizer_without_a_learning_rate_to_find_is_refused():
    with pytest.raises(SpecError, match="Rprop reads its lr at the first step only: it adapts that by itself"):
        fitkit.lr_find(IRIS | {"optimizer": "Rprop"})


def test_a_range_that_is_none_and_too_few_steps_are_refused():
    for wrong in ({"start": 1.0, "end": 0.1}, {"start": 0.0}, {"end": math.inf}, {"start": math.nan}):
        with pytest.raises(SpecError, match="0 < start < end"):
            fitkit.lr_find(IRIS, **wrong)
    with pytest.raises(SpecError, match="at least 50"):
        fitkit.lr_find(IRIS, steps=10)


def test_a_module_that_cannot_be_copied_and_data_with_nan_are_refused():
    class Stubborn(nn.Linear):
        def __deepcopy__(self, memo):
            raise RuntimeError("there is only one of me")

    with pytest.raises(SpecError, match="cannot be copied.*only one of me"):
        fitkit.lr_find({}, model=Stubborn(2, 2), data=(numbers(20, 2).float(), labels(2, 20)))
    with pytest.raises(DataError, match="NaN"):
        fitkit.lr_find({}, model=linear(2, 2), data=(numbers(20, 2).fill_(math.nan), labels(2, 20)))


# What it shows


@pytest.fixture(scope="module")
def found():
    return fitkit.lr_find(IRIS | {"schedule": "cosine"})


def test_it_prints_curve_suggestion_rule_and_patch(found):
    text = str(found)
    assert text.startswith("iris: lr from 1.0e-07 to ") and "▇" in text and "▁" in text and "1e-05" in text
    assert f"suggested lr: {found.suggestion:.1e}, a tenth of the lr" in text and "Smith 2017" in text
    assert f"  fitkit fit SPEC optimizer.AdamW.lr={found.suggestion:.1e}" in text and "note: the schedule" in text
    bars, _, arrow = text.splitlines()[1:4]
    assert arrow.index("^") < bars.index("▁")  # a tenth of the lowest stands left of it


def test_a_notebook_shows_the_curve_and_the_text(found):
    shown = found._repr_html_()
    assert shown.count("<img ") == 1 and 'src="data:image/png;base64,' in shown and "&lt;" not in shown
    assert (
        "suggested lr" in shown and "▇" not in shown and 'alt="training loss over the learning rate of iris"' in shown
    )


def test_without_matplotlib_a_notebook_shows_the_text_alone(found, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    shown = found._repr_html_()
    assert shown.startswith("<pre>iris: lr from") and "▇" in shown
    assert repr(found) == f"LRFind(iris: suggested lr {found.suggestion:.1e}, {len(found.lr)} steps)"


def test_the_plot_holds_the_losses_and_marks_each_rule(found, tmp_path):
    figure = found.plot(tmp_path / "lr.svg")
    [axes] = figure.axes
    raw, smooth, *marks = axes.lines
    assert list(raw.get_xdata()) == found.lr[: len(found.smoothed)] and list(smooth.get_ydata()) == found.smoothed
    assert [mark.get_xdata()[0] for mark in marks] == list(found.candidates.values())
    assert axes.get_xscale() == "log" and (tmp_path / "lr.svg").read_text().startswith("<?xml")
    mine = figures.blank(3, 3).subplots()
    assert found.plot(ax=mine) is mine.figure


# The command


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my spec.yaml").write_text(
        "data: iris\nmodel: {mlp: [8]}\noptimizer: {AdamW: {lr_patterns: {'*.bias': 1}}}\n"
    )
    return "my spec.yaml"


def test_the_command_prints_a_patch_that_a_shell_can_run(file, capsys):
    assert main(["lr-find", file, "fit.batch_size=24", "optimizer.AdamW.lr=3"]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  fitkit fit")]
    words = shlex.split(line)
    assert words[:4] == ["fitkit", "fit", file, "fit.batch_size=24"] and "optimizer.AdamW.lr=3" not in words
    assert main(["check", *words[2:], "--quiet"]) == 0
    assert list(fitkit.load_spec(file, words[3:]).resolved()["optimizer"]["AdamW"]["lr_patterns"]) == ["*.bias"]


def test_json_is_one_strict_object_with_null_where_the_loss_is_not_finite(file, found, capsys):
    assert main(["lr-find", file, "optimizer=SGD", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert len(said["lr"]) == len(said["loss"]) and said["patch"] == {"optimizer.SGD.lr": said["suggestion"]}
    burst = dataclasses.replace(found, loss=[1.0, math.inf, math.nan]).to_json()
    assert json.loads(json.dumps(burst, allow_nan=False))["loss"] == [1.0, None, None]


def test_a_plot_is_written_and_one_that_cannot_be_is_refused_before_the_sweep(file, capsys, tmp_path):
    assert main(["lr-find", file, "--plot", "lr.png"]) == 0
    assert (tmp_path / "lr.png").read_bytes().startswith(b"\x89PNG")
    for path, fault in (
        ("lr.txt", "a plot is one of .png, .svg, .pdf."),
        ("no/lr.png", 'there is no folder "no".'),
        ("lr.png", "is there already; nothing is overwritten."),
    ):
        capsys.readouterr()
        assert main(["lr-find", file, "--plot", path]) == 2
        assert capsys.readouterr().err.startswith(f"--plot {path}: {fault}")


def test_mistakes_end_with_2_and_one_message(file, capsys):
    for words, fault in (
        (["optimizer=Rprop"], "Rprop reads its lr at the first step only"),
        (["--start", "1", "--end", "0.1"], "0 < start < end"),
        (["optimizer.AdamW.learning_rate=1"], 'Did you mean "lr"'),
    ):
        assert main(["lr-find", file, *words]) == 2
        out, err = capsys.readouterr()
        assert out == "" and fault in err and "Traceback" not in err
    assert main(["lr-find", "none.yaml"]) == 2


# What it is for


@pytest.mark.parametrize("name", ["csv_tabular", "breast_cancer"])
def test_the_suggested_lr_trains_about_as_well_as_the_best_of_a_grid(name):
    path = Path(__file__).parent.parent / "specs" / f"{name}.yaml"
    accuracies = {}
    suggestion = fitkit.lr_find(path).suggestion
    for lr in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, suggestion):
        history = fitkit.fit(path, overrides={"optimizer.AdamW.lr": lr})
        accuracies[lr] = history.best("val_loss")["val_accuracy"]
    assert accuracies[suggestion] >= max(accuracies.values()) - 0.02 > accuracies[1e-5]
