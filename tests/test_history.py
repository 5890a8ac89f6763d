import csv
import io
import json
import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitkit.errors import CheckpointError, FitkitError
from fitkit.history import ColumnError, History

COLUMNS = ["loss", "accuracy", "val_loss", "val_accuracy", "lr", "epoch_seconds"]
DIRECTIONS = {"loss": "min", "accuracy": "max", "val_loss": "min", "val_accuracy": "max"}


def history_of(**columns):
    history = History(list(columns), {name: DIRECTIONS[name] for name in columns if name in DIRECTIONS})
    for values in zip(*columns.values(), strict=True):
        history.append(dict(zip(columns, values, strict=True)))
    return history


def full_history(epochs):
    values = [1 / (epoch + 1) for epoch in range(epochs)]
    return history_of(**dict.fromkeys(COLUMNS, values))


def test_a_history_reads_as_keras_users_expect():
    history = history_of(loss=[3, 2], val_loss=[4, 5])
    assert history.history == {"loss": [3.0, 2.0], "val_loss": [4.0, 5.0]}
    assert history.epoch == [1, 2]
    assert len(history) == 2
    assert history["val_loss"] == [4.0, 5.0]
    assert "val_loss" in history and "epoch" not in history
    assert list(history) == [{"epoch": 1, "loss": 3.0, "val_loss": 4.0}, {"epoch": 2, "loss": 2.0, "val_loss": 5.0}]
    assert history.last == {"epoch": 2, "loss": 2.0, "val_loss": 5.0}


def test_the_best_row_of_5_3_4_2_6_is_the_fourth():
    assert history_of(val_loss=[5, 3, 4, 2, 6]).best("val_loss") == {"epoch": 4, "val_loss": 2}
    assert history_of(val_accuracy=[5, 3, 4, 2, 6]).best("val_accuracy")["epoch"] == 5


def test_the_first_of_equal_epochs_is_the_best():
    assert history_of(val_loss=[2, 1, 1]).best("val_loss")["epoch"] == 2
    assert history_of(accuracy=[1, 2, 2]).best("accuracy")["epoch"] == 2


@pytest.mark.parametrize("bad", [math.nan, None, math.inf, -math.inf])
@pytest.mark.parametrize("column", ["val_loss", "val_accuracy"])
def test_a_value_that_is_not_finite_is_never_best(column, bad):
    history = history_of(**{column: [bad, 3, bad, 3, bad]})
    assert history.best(column)["epoch"] == 2


def test_a_column_without_a_finite_value_has_no_best_epoch_and_says_so():
    with pytest.raises(ColumnError, match=r'^"val_loss" has no finite value in 2 epochs'):
        history_of(val_loss=[math.nan, None]).best("val_loss")


def test_an_unknown_column_is_answered_with_the_right_word():
    history = history_of(loss=[1], val_accuracy=[1])
    with pytest.raises(KeyError) as caught:
        history["val_acuracy"]
    assert str(caught.value) == (
        'No column "val_acuracy". Did you mean "val_accuracy"? The columns are loss, val_accuracy.'
    )
    assert isinstance(caught.value, FitkitError)
    with pytest.raises(ColumnError, match="No column"):
        history.best("f1")


def test_a_column_without_a_good_end_has_no_best_epoch():
    with pytest.raises(ColumnError, match=r'"lr" is neither better high nor low. Choose from loss.'):
        history_of(loss=[1], lr=[1]).best("lr")


@pytest.mark.parametrize("row", [{}, {"loss": 1, "acc": 2}, {"loss": 1, "accuracy": 2, "lr": 3}])
def test_a_row_must_hold_exactly_the_columns(row):
    history = History(["loss", "accuracy"], {})
    with pytest.raises(ValueError, match="a row must hold the columns"):
        history.append(row)
    assert len(history) == 0


@pytest.mark.parametrize("columns", [["epoch", "loss"], ["loss", "loss"]])
def test_columns_differ_and_leave_out_the_epoch(columns):
    with pytest.raises(ValueError, match="columns must differ"):
        History(columns, {})


def test_an_empty_history_is_no_special_case():
    history = History(COLUMNS, DIRECTIONS)
    assert (len(history), list(history), history.epoch) == (0, [], [])
    assert repr(history) == "History(0 epochs)"
    assert str(history).splitlines()[-1] == "0 epochs"
    assert history.to_csv() == "epoch,loss,accuracy,val_loss,val_accuracy,lr,epoch_seconds\n"
    with pytest.raises(IndexError):
        history.last  # noqa: B018


floats = st.floats(allow_nan=True, allow_infinity=True)


@given(st.lists(st.tuples(floats, floats), max_size=8))
def test_json_gives_back_every_bit_and_holds_no_word_that_json_lacks(rows):
    history = History(["loss", "val_loss"], {"loss": "min"}, {"fit": {"betas": (0.9, math.inf)}})
    for loss, val_loss in rows:
        history.append({"loss": loss, "val_loss": val_loss})
    history.stopped, history.run, history.seconds, history.skipped_steps = "done", "runs/a", 1.5, 2

    def refuse(token):
        raise AssertionError(token)

    json.loads(history.to_json(), parse_constant=refuse)
    again = History.from_json(history.to_json())
    for column, values in zip(again.columns, zip(*rows, strict=True), strict=False):
        assert [value.hex() for value in again[column]] == [float(value).hex() for value in values]
    assert again.to_json() == history.to_json()
    assert (again.stopped, again.run, again.seconds, again.skipped_steps) == ("done", "runs/a", 1.5, 2)
    assert again.directions == {"loss": "min"}


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:20],
        lambda text: "[]",
        lambda text: "[" * 100_000,
        lambda text: text.replace("null", "NaN"),
        lambda text: text.replace('"format": 1', '"format": 2'),
        lambda text: text.replace("0.5", '"a"'),
        lambda text: text.replace("0.5", "true"),
        lambda text: text.replace("0.5", "1" + "0" * 400),
        lambda text: text.replace("0.5, ", ""),
        lambda text: text.replace('"min"', '"down"'),
        lambda text: text.replace('"columns"', '"rows"'),
        lambda text: text.replace('"best_epoch": 1', '"best_epoch": 7'),
        lambda text: text.replace('"seconds": 0.0', '"seconds": "0"'),
    ],
)
def test_a_damaged_document_is_refused_in_plain_words(damage):
    history = history_of(loss=[0.5, 0.25], val_loss=[None, 1])
    history.best_epoch = 1
    text = history.to_json()
    assert damage(text) != text
    with pytest.raises(CheckpointError, match="This is not the JSON of a History: "):
        History.from_json(damage(text))


def test_csv_holds_exact_floats_and_leaves_out_what_was_not_measured(tmp_path):
    history = history_of(loss=[0.1 + 0.2, 1e-300], val_loss=[None, math.inf])
    text = history.to_csv(tmp_path / "log.csv")
    assert text == "epoch,loss,val_loss\n1,0.30000000000000004,\n2,1e-300,inf\n"
    assert (tmp_path / "log.csv").read_bytes().decode() == text


def test_csv_quotes_odd_names():
    history = History(['a,"b"'], {})
    history.append({'a,"b"': 1})
    assert next(csv.DictReader(io.StringIO(history.to_csv()))) == {"epoch": "1", 'a,"b"': "1.0"}


def test_a_history_prints_as_an_aligned_table_with_the_best_epoch_marked():
    history = history_of(loss=[2.5, 0.75, 12345.678], val_loss=[None, 0.5, 1.2e-7], lr=[3e-3, 1.5e-5, 0])
    history.seconds, history.stopped = 3.21, "epochs"
    history.monitor, history.best_epoch = "val_loss", 2
    assert str(history).splitlines() == [
        "epoch     loss  val_loss       lr",
        "    1   2.5000         -    0.003",
        "   *2   0.7500    0.5000  1.5e-05",
        "    3  12345.7  1.20e-07        0",
        "3 epochs in 3.2 s; * best val_loss 0.5000 at epoch 2; stopped: epochs",
    ]
    assert repr(history) == "History(3 epochs, best val_loss 0.5000 at epoch 2)"


@pytest.mark.parametrize("best", [1, 20, 60, 99])
def test_a_long_history_prints_both_ends_and_the_best_epoch(best):
    values = [1.0] * 99
    values[best - 1] = 0.5
    lines = str(history_of(val_loss=values)).splitlines()
    epochs = [line.split()[0] for line in lines[1:-1]]
    assert len(epochs) <= 30
    assert epochs[-1].endswith("99") and "…" in epochs and f"*{best}" in epochs
    assert len({len(line) for line in lines[1:-1] if "…" not in line}) == 1


def test_a_notebook_shows_a_table_in_which_every_name_is_escaped():
    history = full_history(40)
    history.stopped = "<script>alert(1)</script>"
    page = history._repr_html_()
    assert page.count("<tr>") == 1 + 12 + 1 + 15 and "<script>" not in page and "&lt;script&gt;" in page
    odd = History(["<b>"], {})
    odd.append({"<b>": 1})
    assert "<b>" not in odd._repr_html_()


def test_plot_draws_training_and_validation_and_marks_the_best_epoch(tmp_path):
    history = history_of(
        loss=[3, 2, 1], accuracy=[0.1, 0.2, 0.3], val_loss=[3, None, 4], val_accuracy=[0.1, None, 0.2], lr=[1, 1, 1]
    )
    figure = history.plot(tmp_path / "curves.png")
    loss, accuracy = figure.axes
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [axes.get_title(loc="left") for axes in (loss, accuracy)] == ["loss", "accuracy"]
    lines = {line.get_label(): line.get_xydata().tolist() for line in loss.lines}
    assert lines["training"] == [[1, 3], [2, 2], [3, 1]]
    assert lines["validation"] == [[1, 3], [3, 4]]  # an epoch that was not evaluated is no point
    assert lines["best epoch 1: 3.0000"] == [[1, 3]]
    assert "best epoch 1: 0.1000" in [line.get_label() for line in accuracy.lines]


def test_plot_draws_on_the_axes_it_is_given():
    from matplotlib.figure import Figure

    figure = Figure()
    axes = figure.subplots(1, 2)
    assert full_history(3).plot(ax=axes[0]) is figure
    assert axes[0].lines and not axes[1].lines
    assert full_history(3).plot(ax=axes) is figure
    assert axes[1].lines


@pytest.mark.parametrize("epochs", [0, 1, 200])
def test_plot_takes_any_number_of_epochs_and_leaves_no_figure_open(epochs, tmp_path):
    from matplotlib import pyplot

    full_history(epochs).plot(tmp_path / "curves.svg")
    assert pyplot.get_fignums() == []


def test_a_loss_that_falls_far_is_drawn_on_a_log_scale(tmp_path):
    figure = history_of(loss=[10, 0.01], accuracy=[0.001, 1]).plot(tmp_path / "curves.png")
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "linear"]


def test_plot_without_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(FitkitError, match=r'pip install "fitkit\[plot\]"'):
        full_history(2).plot()
