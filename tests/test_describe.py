"""`fitkit list` and `fitkit explain` over all tables, the examples they show, and the reference made from them."""

import math
import re
import runpy
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fitkit
from fitkit.after.describe import OUTPUT, TARGET, explain, list_table, list_tables
from fitkit.after.reference import render
from fitkit.after.words import SECTIONS, example, flow, notes, sentence, told_by_torch
from fitkit.builder.tables import TABLES
from fitkit.errors import SpecError
from fitkit.spec.check import FIT
from fitkit.spec.reader import read_text
from fitkit.spec.spec import KEYS
from fitkit.spec.table import Table

README = Path(__file__).parent.parent / "specs" / "README.md"
ENTRIES = [(table, name) for table, entries in TABLES.items() for name in entries]
MARKUP = re.compile(r":\w+:`|``|`_|\\|\b_\{|__init__|\*\*|\bTrue\b|\bFalse\b")
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**18), 10**18)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text().filter(str.isprintable), inner, max_size=3),
    max_leaves=6,
)


@given(VALUES)
def test_a_value_written_on_one_line_reads_back_as_it_was(value):
    line = f"key: {flow(value)}"
    assert "\n" not in line
    assert read_text(line).plain() == {"key": value}


def test_an_infinity_reads_back_too():
    assert read_text(f"a: {flow([math.inf, -math.inf])}").plain() == {"a": [math.inf, -math.inf]}


# ------------------------------------------------------------------------------------------------------------- list


@pytest.mark.parametrize("table", TABLES)
def test_a_table_has_one_line_an_entry_in_120_columns(table):
    lines = list_table(table).splitlines()
    assert max(map(len, lines)) <= 120
    for name in TABLES[table]:
        assert sum(line.split()[:1] == [name] for line in lines) == 1, name


@pytest.mark.parametrize("table", TABLES)
def test_a_table_may_be_called_by_what_is_in_it(table):
    assert list_table(TABLES[table].kind) == list_table(table)


def test_the_arguments_of_a_line_stand_with_their_defaults_required_ones_first():
    line = next(line for line in list_table("layers").splitlines() if line.startswith("ConstantPad1d "))
    assert line.split()[1:3] == ["padding,", "value"]
    assert "lr: 0.001, betas: [0.9, 0.999], …" in list_table("optimizers")
    assert "All but ReduceLROnPlateau also take warmup: 0." in list_table("schedules")


def test_the_list_of_tables_names_every_table_and_key():
    text = list_tables()
    assert max(map(len, text.splitlines())) <= 120
    assert all(re.search(rf"^{table} ", text, re.M) for table in TABLES)
    assert all(key in text for key in KEYS)
    assert "EarlyStopping" in text


def test_an_unknown_table_is_an_error_that_names_the_right_one():
    with pytest.raises(SpecError, match='no table "optimisers".* Did you mean "optimizers"'):
        list_table("optimisers")


# ----------------------------------------------------------------------------------------------------------- explain


@pytest.mark.parametrize(("table", "name"), ENTRIES)
def test_every_entry_is_explained_with_all_its_arguments(table, name):
    text, entry = explain(name), TABLES[table][name]
    assert text.startswith(f"{name}: ")
    assert sentence(entry)[:40] in " ".join(text.split())
    for argument in entry.arguments.values():
        assert re.search(rf"^  {argument.name} ", text, re.M), argument.name
        assert ("required" in text) >= argument.required
    assert all(len(line) <= 100 for line in text.splitlines() if "https://" not in line)


@pytest.mark.parametrize(("table", "name"), ENTRIES)
def test_what_is_said_of_an_entry_is_plain_text(table, name):
    entry = TABLES[table][name]
    assert entry.name[0].isalpha() and sentence(entry).strip() and len(sentence(entry)) < 130
    said = [sentence(entry), *notes(entry).values()] if told_by_torch(entry) else [sentence(entry)]
    assert not any(MARKUP.search(text) for text in said), said


@pytest.mark.parametrize(("table", "name"), ENTRIES)
def test_the_example_of_every_entry_is_a_spec_that_names_it(table, name):
    text = example(table, TABLES[table][name])
    assert name in text and len(text.splitlines()) <= 6
    assert fitkit.load_spec(f"{text}\n") is not None
    assert all(line in explain(name) for line in text.splitlines())


@pytest.mark.parametrize("key", SECTIONS)
def test_every_key_is_explained_with_an_example_that_is_valid(key, tmp_path):
    (tmp_path / "base.yaml").write_text("optimizer: {AdamW: {weight_decay: 0.1}}\n")
    (tmp_path / "spec.yaml").write_text(SECTIONS[key].example)
    assert fitkit.load_spec(tmp_path / "spec.yaml").given
    assert explain(key).startswith(f"{key}: a key of a spec")
    assert SECTIONS[key].words[:30] in explain(key)


def test_the_keys_that_are_described_are_those_of_a_spec():
    assert set(SECTIONS) == {*KEYS, "extends"}
    assert all(re.search(rf"^  {name} ", explain("fit"), re.M) for name in FIT.arguments)


def test_what_is_said_to_hold_without_a_key_is_what_build_does():
    classes = fitkit.build({"data": "iris", "model": "mlp"}).spec
    values = fitkit.build({"data": "diabetes", "model": "mlp"}).spec
    assert SECTIONS["loss"].default == f"{classes.loss.name} for classes, {values.loss.name} for values"
    assert SECTIONS["optimizer"].default == classes.optimizer.name
    assert SECTIONS["schedule"].default == classes.schedule.name
    assert SECTIONS["seed"].default == str(classes.seed)
    assert [metric.name for metric in classes.metrics] == ["accuracy"] and not values.metrics
    assert (classes.splits.name, values.splits.name) == ("stratified", "random")


def test_an_argument_is_explained_by_every_path_that_ends_with_it():
    assert explain("AdamW.lr") == explain("optimizer.AdamW.lr") == explain("optimizers.AdamW.lr")
    assert explain("AdamW.lr").startswith(
        "optimizer.AdamW.lr: an argument of AdamW\n\n  a number, more than 0; default 0.001"
    )
    assert explain("epochs") == explain("fit.epochs")
    assert "optimizer.SGD.lr" in explain("lr") and "callbacks.EarlyStopping.patience" in explain("patience")
    assert explain("SGD.no_decay").startswith("optimizer.<optimizer>.no_decay: an argument of every optimizer")
    assert explain("model.Linear") == explain("Linear")
    assert "standardize, scale" in explain("csv.transform")


@pytest.mark.parametrize(("table", "name"), ENTRIES)
def test_every_argument_of_every_entry_can_be_asked_for(table, name):
    for argument in TABLES[table][name].arguments:
        assert argument in explain(f"{table}.{name}.{argument}")


def test_a_loss_says_what_the_model_must_give_and_what_the_target_is():
    facts = [entry.facts for entry in TABLES["losses"].values()]
    assert {fact["output"] for fact in facts} <= OUTPUT.keys()
    assert {fact["target"] for fact in facts} <= TARGET.keys()
    text = explain("cross_entropy")
    assert (
        "logits: raw scores" in text and "class numbers from 0" in text and "validation loss is the plain one" in text
    )
    assert "each at least 0" in explain("poisson_nll_loss")


def test_a_layer_says_which_shapes_it_takes_and_which_sizes_are_inferred():
    text = explain("Conv2d")
    assert "(B, C, H, W): B samples" in text
    assert "in_channels   a whole number, at least 1; inferred from the data" in text
    assert "https://docs.pytorch.org/docs/stable/generated/torch.nn.Conv2d.html" in text


def test_a_name_in_two_tables_is_explained_for_both(monkeypatch):
    both = explain("ReduceLROnPlateau")
    assert both.startswith("ReduceLROnPlateau: a schedule and a callback\n")
    assert "  schedule:\n" in both and "  callbacks:\n" in both
    mine = Table("metric")

    @mine.register(higher_is_better=True, target="values")
    def step(output, target, *, size: float = 0.5):
        """Share of outputs within a step of the target."""

    monkeypatch.setitem(TABLES["metrics"], "step", mine["step"])
    text = explain("step")
    assert "step: a schedule\n" in text and "step: a metric\n" in text and "higher is better" in text


def test_a_part_of_ones_own_is_explained_from_its_signature_and_docstring(monkeypatch):
    mine = Table("loss")

    @mine.register(output="values", target="values")
    def bare(output, target, *, scale: float):
        """Say something.

        Args:
            scale: the width of
                the bell.
        """

    monkeypatch.setitem(TABLES["losses"], "bare", mine["bare"])
    assert "  scale  a number; required" in explain("bare")
    assert notes(mine["bare"]) == {"scale": "The width of the bell."}
    assert "Args" not in explain("bare")
    assert fitkit.load_spec(example("losses", mine["bare"]) + "\n").loss.args == {"scale": 1.0}


@pytest.mark.parametrize(
    ("asked", "right"),
    [
        ("adamw", "AdamW"),
        ("CrossEntropyLoss", "cross_entropy"),
        ("learning_rate", "optimizer.<name>.lr"),
        ("max_epochs", "fit.epochs"),
        ("EarlyStoping", "EarlyStopping"),
        ("optimzer", "optimizer"),
        ("AdamW.learning_rate", "lr"),
        ("fit.max_epochs", "epochs"),
        ("Linear.units", "out_features"),
    ],
)
def test_an_unknown_name_is_an_error_that_names_the_right_one(asked, right):
    with pytest.raises(SpecError, match=f'Did you mean "{re.escape(right)}"'):
        explain(asked)


def test_a_name_that_is_like_nothing_is_an_error_too():
    with pytest.raises(SpecError, match="nothing called"):
        explain("qqqqqqqqqqqqqq")
    with pytest.raises(SpecError, match="nothing called"):
        explain("")


# --------------------------------------------------------------------------------------------------------- reference


def test_the_reference_is_current():
    text = README.read_text("utf-8")
    assert text == render(text), "run: python -m fitkit.after.reference specs/README.md"
    assert all(f"<!-- generated: {name} -->" in text for name in (*TABLES, "keys", "fit"))


def test_the_reference_refuses_a_marker_that_it_does_not_know_or_that_is_not_closed():
    with pytest.raises(ValueError, match='no generated part "optimisers"'):
        render("<!-- generated: optimisers -->\n<!-- end -->")
    with pytest.raises(ValueError, match="no <!-- end -->"):
        render("<!-- generated: optimizers -->\n")
    with pytest.raises(ValueError, match="no mistake"):
        render("```yaml\nseed: 1\n```\n<!-- generated: error -->\n<!-- end -->")


def test_every_spec_in_the_reference_is_valid_or_stands_above_its_error(tmp_path):
    text = README.read_text("utf-8")
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "my_parts.py").write_text(code)
    (tmp_path / "base.yaml").write_text(re.search(r"```yaml\n(# base.yaml\n.*?)```", text, re.DOTALL)[1])
    try:
        runpy.run_path(str(tmp_path / "my_parts.py"))  # what --code does
        for block, error in re.findall(r"```yaml\n(.*?)```\n(\n<!-- generated: error)?", text, re.DOTALL):
            (tmp_path / "spec.yaml").write_text(block)
            if not error:
                spec = fitkit.load_spec(tmp_path / "spec.yaml")
        history = fitkit.fit(spec, overrides={"fit.epochs": 1})  # the last one uses the parts of the Python block
        assert "val_within" in history.history
    finally:
        TABLES["metrics"].pop("within", None)
        TABLES["models"].pop("bottleneck", None)


def test_the_overrides_in_the_reference_are_valid(tmp_path):
    base = {"data": "digits", "model": "mlp", "optimizer": "AdamW", "callbacks": ["EarlyStopping"]}
    commands = re.findall(r"^fitkit fit spec.yaml (.*)$", README.read_text("utf-8"), re.M)
    assert len(commands) == 3
    for command in commands:
        words = re.findall(r"'([^']*)'|(\S+)", command)
        fitkit.load_spec(base, [quoted or plain for quoted, plain in words])
