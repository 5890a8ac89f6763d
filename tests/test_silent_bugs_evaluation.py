"""What a review of the evaluation found: numbers that were wrong, and that nobody would have noticed."""

import math

import numpy
import pytest
import torch
from sklearn import metrics as theirs

import fitkit
from fitkit.after.run_outcomes import file_outcomes, looks, read_outcomes
from fitkit.evaluation.evaluation import evaluate
from fitkit.evaluation.outcomes import Outcomes
from fitkit.evaluation.worst import worst
from fitkit.parts.rankings import log_odds
from tests.test_evaluation import made
from tests.test_metrics import value


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("splits", [{"kfold": {"k": 3, "fold": 2}}, {"random": {"val": 0.3}}, None])
def test_rows_are_those_of_the_data_though_the_file_brings_parts(splits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = drawn(0, 90, 3).float().numpy()
    y = (x.sum(1) > 0).astype(numpy.int64)
    numpy.savez("parts.npz", x_train=x[:60], y_train=y[:60], x_val=x[60:], y_val=y[60:])
    spec = {"data": {"npz": {"path": "parts.npz"}}, "model": "mlp", "fit": {"epochs": 1}}
    fitkit.fit({**spec, **({"splits": splits} if splits else {})}, out="run")
    found = read_outcomes(tmp_path / "run", command="a test")
    start = 0 if splits else 60  # rows of x_val count from 0
    assert (torch.tensor(y)[found.rows + start] == found.targets).all()
    assert torch.equal(found.inputs([3])[0], torch.tensor(x)[found.rows[3] + start])


@pytest.mark.parametrize("classes", [1, 2, 4])
def test_large_logits_are_ranked_though_their_probabilities_are_all_1(classes):
    targets = torch.randint(0, max(classes, 2), (400,), generator=torch.Generator().manual_seed(1))
    score = 60 + 8 * drawn(2, 400) + 8 * (targets == 1)
    logits = score if classes == 1 else torch.zeros(400, classes, dtype=torch.float64).index_copy(
        1, torch.tensor([1]), score[:, None]
    )  # fmt: skip
    exact = theirs.roc_auc_score(targets == 1, score)
    assert 0.6 < exact < 0.9
    if classes < 4:
        assert value("auroc", (logits, targets)) == pytest.approx(exact, abs=1e-6)
        low, high = evaluate(
            made(logits.reshape(400, -1), targets) if classes > 1 else one_logit(logits, targets)
        ).interval("auroc")
        assert low < exact < high
    else:
        assert theirs.roc_auc_score(targets == 1, log_odds(logits)[:, 1]) == pytest.approx(exact, abs=1e-9)


def one_logit(logits, targets):
    pair = made(torch.stack((torch.zeros_like(logits), logits), 1), targets)
    return Outcomes(**{**vars(pair), "outputs": logits})


def test_log_odds_are_those_of_the_formula():
    logits = 3 * drawn(3, 50, 5)
    p = logits.softmax(1)
    assert torch.allclose(log_odds(logits), (p / (1 - p)).log(), atol=1e-9)
    assert log_odds(torch.tensor([[0.0, 800.0, 0.0]]))[0, 1].item() == pytest.approx(800 - math.log(2))


def test_class_numbers_keep_their_bits_where_outputs_are_bf16():
    targets = torch.arange(600)
    logits = (drawn(4, 600, 600) + 3 * torch.eye(600)).bfloat16()
    assert value("auroc", (logits, targets)) == pytest.approx(value("auroc", (logits.float(), targets)), abs=1e-9)


def test_a_score_that_is_nan_leaves_no_ranking():
    logits, targets = drawn(5, 40, 2), torch.arange(40) % 2
    logits[7, 0] = math.nan
    assert math.isnan(value("auroc", (logits, targets)))


def test_the_interval_of_a_weighted_average_is_that_of_the_weighted_average():
    targets = torch.cat((torch.zeros(270), torch.ones(21), torch.full((9,), 2))).long()
    logits = drawn(6, 300, 3)
    logits[:, 0] += 1.2 * (targets == 0)
    x, module = logits.float(), torch.nn.Identity()
    model = fitkit.Model(torch.nn.Sequential(module, torch.nn.Linear(3, 3)))
    with torch.no_grad():
        model.module[1].weight.copy_(torch.eye(3))
        model.module[1].bias.zero_()
    spec = {"metrics": {"average_precision": {"average": "weighted"}}, "optimizer": {"SGD": 1e-9}, "fit": {"epochs": 1}}
    model.fit({**spec, "splits": {"random": {"val": 0}}}, data=(x, targets))
    found = model.evaluate((x, targets)).estimates["average_precision"]
    assert found.low < found.value < found.high
    low = theirs.average_precision_score(numpy.eye(3)[targets], x.softmax(1), average="macro")
    assert low < found.low


def test_of_labels_several_a_sample_the_worst_is_that_of_the_highest_loss():
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(7))
    y = (x > 0).float()
    y[7] = 1 - y[7]
    model = fitkit.Model(torch.nn.Linear(3, 3))
    with torch.no_grad():
        model.module.weight.copy_(20 * torch.eye(3))
        model.module.bias.zero_()
    spec = {"loss": "multilabel_soft_margin_loss", "optimizer": {"SGD": 1e-9}, "fit": {"epochs": 1}}
    model.fit({**spec, "splits": {"random": {"val": 0}}}, data=(x, y))
    outcomes = model.outcomes((x, y))
    assert worst(outcomes, 1)[0].row == 7
    assert list(evaluate(outcomes)) == ["loss"]  # logits are no values of 0 and 1


def test_without_a_mistake_a_bootstrap_knows_no_interval():
    found = evaluate(made(10 * torch.eye(2).repeat(20, 1), torch.arange(40) % 2))
    assert found["f1"] == 1 and math.isnan(found.interval("f1")[0])
    assert found.interval("accuracy")[0] < 0.95 and "not known" in str(found)


def test_a_share_that_is_better_low_is_compared_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    @fitkit.register.metric(higher_is_better=False, target="classes")
    def zero_one_loss(output, target):
        """Share of wrong classes."""
        return (output.argmax(-1) != target).float()

    try:
        spec = {"data": "digits", "model": {"mlp": [32]}, "metrics": ["zero_one_loss"]}
        fitkit.fit({**spec, "fit": {"epochs": 1, "max_steps": 2}}, out="bad")
        fitkit.fit({**spec, "fit": {"epochs": 5}}, out="good")
        assert "better than bad in zero_one_loss" in fitkit.compare("bad", "good", metric="zero_one_loss").verdict
    finally:
        from fitkit.builder.tables import metrics

        metrics.pop("zero_one_loss")


@pytest.mark.parametrize("x", [torch.arange(80.0) / 7, torch.arange(80) % 9], ids=["numbers", "token ids"])
def test_samples_that_are_one_number_are_looked_at(x):
    layers = [torch.nn.Unflatten(0, (-1, 1)), torch.nn.Linear(1, 3)] if x.is_floating_point() else []
    model = torch.nn.Sequential(*layers) if layers else torch.nn.Embedding(9, 3)
    assert len(fitkit.Model(model).fit({"fit": {"epochs": 1}}, data=(x, torch.arange(80) % 3))) == 1


def test_a_run_whose_data_changed_is_measured_by_no_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = ["a,b,kind", *(f"{i * 37 % 101},{i * 53 % 97},{'xy'[i % 2]}" for i in range(60))]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    fitkit.fit({"data": {"csv": {"path": "table.csv"}}, "model": "mlp", "fit": {"epochs": 1}}, out="run")
    assert len(read_outcomes(tmp_path / "run", command="a test")) == 12
    (tmp_path / "table.csv").write_text("\n".join(lines[:5] + lines[6:]))
    with pytest.raises(fitkit.DataError, match="is not what it was trained with"):  # rows of train may be in val now
        read_outcomes(tmp_path / "run", command="a test")
    (tmp_path / "table.csv").unlink()
    with pytest.raises(fitkit.DataError, match="table.csv: no such file. .* --root DIR"):
        read_outcomes(tmp_path / "run", command="a test")


def test_the_file_that_was_trained_on_is_said_to_be_that_and_counts_as_a_look_at_its_test_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = ["a,b,kind", *(f"{i * 37 % 101},{i * 53 % 97},{'xy'[i % 2]}" for i in range(60))]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    spec = {"data": {"csv": {"path": "table.csv"}}, "splits": {"random": {"test": 0.2}}, "model": "mlp"}
    fitkit.fit({**spec, "fit": {"epochs": 1}}, out="run")
    with pytest.warns(UserWarning, match="is the file that this run was trained on"):
        assert len(file_outcomes(tmp_path / "run", tmp_path / "table.csv")) == 60
    assert [look["command"] for look in looks(tmp_path / "run")] == ["evaluate DATA"]
