"""What a notebook shows: a history with its curves, and the curves of a fit while it runs."""

import base64
import re
import sys
import types
import warnings

import pytest
import torch

import fitkit
from fitkit import live
from fitkit.cli import main
from fitkit.errors import FitkitError
from fitkit.history import History

IRIS = {"data": "iris", "name": "iris", "model": {"mlp": [8]}, "metrics": ["accuracy"], "fit": {"epochs": 4}}
IMAGE = re.compile(r'<img src="data:image/png;base64,([A-Za-z0-9+/=]+)" alt="([^"<>]*)"')


def history(*rows, columns=("loss", "val_loss", "lr")):
    made = History(columns, dict.fromkeys(columns[:2], "min"))
    for row in rows:
        made.append(dict(zip(columns, row, strict=True)))
    return made


class Output:
    """What `display` returns: it keeps what was shown."""

    def __init__(self, shown):
        self.shown = [shown]

    def update(self, page, *, raw):
        assert raw
        self.shown.append(page)


@pytest.fixture
def notebook(monkeypatch):
    """A stand-in for IPython with a kernel behind it; the outputs that were made."""
    outputs = []

    def display(page, *, raw, display_id):
        assert raw and display_id is True
        outputs.append(Output(page))
        return outputs[-1]

    shell, shown = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    shell.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    shell.display, shown.display = shown, display
    monkeypatch.setitem(sys.modules, "IPython", shell)
    monkeypatch.setitem(sys.modules, "IPython.display", shown)
    return outputs


# --- a history


def test_a_history_shows_its_curves_above_its_table():
    shown = history((2, 3, 0.1), (1, 2, 0.1))._repr_html_()
    [(encoded, text)] = IMAGE.findall(shown)
    assert base64.b64decode(encoded).startswith(b"\x89PNG")
    assert text == "Curves of loss by epoch: 2 epochs; * best val_loss 2.0000 at epoch 2"
    assert shown.index("<img") < shown.index("<table") and "http" not in shown


def test_a_history_of_one_epoch_or_of_nothing_that_is_good_shows_its_table_alone():
    for short in (history((2, 3, 0.1)), history(), History(["lr"], {})):
        assert short._repr_html_().startswith("<table")
    learning = History(["lr"], {})
    learning.append({"lr": 1.0})
    learning.append({"lr": 1.0})
    assert learning._repr_html_().startswith("<table")


def test_without_matplotlib_a_history_shows_its_table(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert history((2, 3, 0.1), (1, 2, 0.1))._repr_html_().startswith("<table")


def test_names_of_columns_are_escaped_in_what_a_notebook_shows():
    hostile = '"><script>alert(1)</script>'
    shown = history((2, 3, 0.1), (1, 2, 0.1), columns=(hostile, f"val_{hostile}", "lr"))._repr_html_()
    assert "<script" not in shown and "&quot;&gt;&lt;script&gt;" in shown
    assert len(IMAGE.findall(shown)) == 1


def test_drawing_a_history_opens_no_figure_of_pyplot():
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    history((2, 3, 0.1), (1, 2, 0.1))._repr_html_()
    assert pyplot.get_fignums() == before


# --- a fit while it runs


def test_a_fit_shows_its_curves_in_one_output_that_is_drawn_anew(notebook, monkeypatch):
    monkeypatch.setattr(live, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(live, "MOST_OF_TIME", float("inf"))
    found = fitkit.fit(IRIS, live=True)
    [output] = notebook
    texts = [page["text/plain"] for page in output.shown]
    assert texts[0] == "waiting for the first epoch"
    assert [text.partition(":")[0] for text in texts[1:]] == [f"epoch {n} of 4" for n in (1, 2, 3, 4, 4)]
    assert f"val_loss {found['val_loss'][-1]:.4g}" in texts[-1]
    assert [len(IMAGE.findall(page["text/html"])) for page in output.shown] == [0, 0, 1, 1, 1, 1]


def test_it_is_drawn_no_more_often_than_there_is_time_for_and_at_the_end(notebook, monkeypatch):
    monkeypatch.setattr(live, "LEAST_SECONDS", 1e9)
    fitkit.fit(IRIS, live=True)
    texts = [page["text/plain"].partition(":")[0] for page in notebook[0].shown]
    assert texts == ["waiting for the first epoch", "epoch 1 of 4", "epoch 4 of 4"]


def test_watching_changes_nothing_in_the_result(notebook):
    nets = []
    for watch in (False, True):
        torch.manual_seed(0)
        nets.append(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 3)))
        fitkit.Model(nets[-1]).fit({"data": "iris", "fit": {"epochs": 2}}, live=watch)
    assert len(notebook) == 1
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_outside_of_a_notebook_a_warning_says_once_that_there_is_none(monkeypatch, notebook):
    terminal = types.ModuleType("IPython")
    for shell, value in ((None, None), (terminal, None), (terminal, object())):
        if shell is not None:
            shell.get_ipython = lambda value=value: value
        monkeypatch.setitem(sys.modules, "IPython", shell)
        with pytest.warns(UserWarning, match="live=True draws in a notebook, and this is none") as caught:
            assert len(fitkit.fit(IRIS, live=True)) == 4
        assert len(caught) == 1 and notebook == []
    with pytest.warns(UserWarning, match="this is none") as caught:
        fitkit.fit(IRIS | {"splits": {"kfold": 3}, "fit": {"epochs": 1}}, live=True)
    assert len(caught) == 1


def test_a_live_fit_without_matplotlib_says_how_to_install_it(notebook, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(FitkitError, match=r'pip install "fitkit\[plot\]"'):
        fitkit.fit(IRIS, live=True)


def test_a_run_can_be_resumed_where_it_is_shown_in_another_way(notebook, tmp_path, capsys):
    (tmp_path / "iris.yaml").write_text("data: iris\nmodel: {mlp: [8]}\nfit: {epochs: 2}\n")
    out, change = tmp_path / "run", {"resume": True, "allow_change": ["fit.epochs"]}
    assert main(["fit", str(tmp_path / "iris.yaml"), "--out", str(out)]) == 0
    assert len(fitkit.fit(tmp_path / "iris.yaml", out=out, live=True, overrides={"fit.epochs": 3}, **change)) == 3
    assert len(notebook) == 1
    assert len(fitkit.fit(tmp_path / "iris.yaml", out=out, overrides={"fit.epochs": 4}, **change)) == 4
    words = ["fit.epochs=5", "--out", str(out), "--resume", "--allow-change", "fit.epochs", "--quiet"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["fit", str(tmp_path / "iris.yaml"), *words]) == 0
