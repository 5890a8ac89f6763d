"""Checking: notations of a component, arguments by their annotations, foreign words, many faults at once, and noise."""

import copy
import random

import pytest

import fitkit
from fitkit.builder.tables import TABLES
from fitkit.errors import MOST_FAULTS, Place, SpecError, listing
from fitkit.spec import hints
from fitkit.spec.check import FIT, TABLE_OF
from fitkit.spec.component import Component
from fitkit.spec.spec import KEYS, dump
from fitkit.spec.table import Table

SECTION_OF = {table: section for section, table in TABLE_OF.items()}
ENTRIES = [(table, name) for table, entries in TABLES.items() for name in entries]


def load(**sections):
    return fitkit.load_spec({"data": "iris", "model": "mlp", **sections})


def refusal(text):
    with pytest.raises(SpecError) as caught:
        fitkit.load_spec(text)
    return caught.value


def around(table, component):
    """The sections in which a component of a table stands."""
    if table == "transforms":
        return {"data": {"iris": {"transform": component}}}
    if table == "augmentations":
        return {"data": {"digits": {"augment": [component]}}}
    return {"model": [component]} if table == "layers" else {SECTION_OF[table]: component}


def test_a_component_is_a_name_or_one_name_with_its_arguments():
    for written in ("AdamW", {"AdamW": None}, {"AdamW": {}}):
        assert load(optimizer=written).optimizer.args == {}
    assert load(optimizer={"AdamW": {"lr": 1e-3}}).optimizer.args == {"lr": 1e-3}
    assert load(optimizer={"AdamW": 1e-3}).optimizer.args == {"lr": 1e-3}
    assert load(schedule=None).schedule is None


def test_several_components_are_a_mapping_or_a_list():
    names = lambda components: [component.name for component in components]  # noqa: E731
    assert names(load(metrics=["accuracy", {"top_k_accuracy": 2}]).metrics) == ["accuracy", "top_k_accuracy"]
    assert names(load(metrics={"top_k_accuracy": 2, "accuracy": None}).metrics) == ["top_k_accuracy", "accuracy"]
    assert names(load(callbacks="EarlyStopping").callbacks) == ["EarlyStopping"]
    assert load(callbacks=[]).callbacks == load(callbacks=None).callbacks == ()
    layers = load(model=[{"Linear": 4}, "ReLU", {"Linear": "outputs"}, "ReLU"]).model
    assert names(layers) == ["Linear", "ReLU", "Linear", "ReLU"]


def test_a_value_has_the_type_that_its_annotation_says():
    adam = load(optimizer={"AdamW": {"lr": 1, "betas": [0, 0.5]}}).optimizer.args
    assert repr(adam) == "{'lr': 1.0, 'betas': (0.0, 0.5)}"
    assert repr(load(model={"mlp": [8, 4]}).model.args) == "{'hidden': (8, 4)}"
    conv = {"Conv2d": {"out_channels": 3, "kernel_size": [3, 5], "padding": "same"}}
    assert load(model=[conv]).model[0].args == {"out_channels": 3, "kernel_size": (3, 5), "padding": "same"}
    assert load(loss={"cross_entropy": {"class_weight": [1, 2.5]}}).loss.args == {"class_weight": [1.0, 2.5]}
    assert load(fit={"compile": True, "clip_norm": None, "max_time": 5}).fit.max_time == 5.0


def test_a_component_in_a_component_is_checked_too():
    transform = load(data={"digits": {"transform": {"scale": [0, 16]}}}).data.args["transform"]
    assert isinstance(transform, Component)
    assert (transform.path, transform.args) == ("data.digits.transform.scale", {"range": (0.0, 16.0)})
    assert load(data={"digits": {"transform": "none"}}).data.args["transform"] == "none"
    [fault] = refusal("data: {digits: {transform: {scale: {rnge: 3}}}}\n").faults
    assert (fault.path, fault.place.column) == ("data.digits.transform.scale.rnge", 37)


def test_a_component_knows_where_each_of_its_arguments_stands():
    text = "model: {mlp: [8]}\noptimizer:\n  AdamW:\n    lr: 1e-3\n    eps: 1e-6\nmetrics: [accuracy]\n"
    spec = fitkit.load_spec(text)
    at = lambda line, column: Place("<text>", line, column)  # noqa: E731
    assert spec.optimizer.place == at(3, 3)
    assert spec.optimizer.places == {"lr": at(4, 5), "eps": at(5, 5)}
    assert spec.model.places == {"hidden": at(1, 14)}
    assert spec.metrics[0].place == at(6, 11)
    error = spec.optimizer.error("too large.", "lr")
    assert str(error) == "<text>:4:5: optimizer.AdamW.lr: too large."
    assert str(spec.optimizer.error("no.", "amsgrad")) == "<text>:3:3: optimizer.AdamW.amsgrad: no."


@pytest.mark.parametrize(("table", "name"), ENTRIES, ids=lambda value: value)
def test_an_argument_that_an_entry_does_not_take_is_refused_with_those_that_it_takes(table, name):
    arguments = TABLES[table][name].arguments
    takes = listing(arguments, 20) or "no arguments"
    with pytest.raises(SpecError) as caught:
        load(**around(table, {name: {"nonsense_": 1}}))
    [fault] = [fault for fault in caught.value.faults if fault.path.endswith("nonsense_")]
    assert fault.message.startswith(f"{name} has no such argument.")
    assert fault.message.endswith(f"It takes {takes}.")


@pytest.mark.parametrize(("table", "name"), ENTRIES, ids=lambda value: value)
def test_every_argument_refuses_a_mapping_of_nonsense_and_names_itself(table, name):
    for argument in TABLES[table][name].arguments:
        with pytest.raises(SpecError) as caught:
            load(**around(table, {name: {argument: {"nonsense_": [None]}}}))
        assert any(f"{name}.{argument}" in fault.path for fault in caught.value.faults), argument


@pytest.mark.parametrize(("table", "name"), ENTRIES, ids=lambda value: value)
def test_every_default_is_a_value_that_a_spec_may_say(table, name):
    entry = TABLES[table][name]
    component = Component(entry, path="x").resolved()[name]
    required = {argument.name for argument in entry.arguments.values() if argument.required}
    with_required = {name: {**component, **{argument: "nonsense_" for argument in required}}}
    try:
        load(**around(table, with_required))
    except SpecError as error:
        wrong = {fault.path.rpartition(".")[2].partition("[")[0] for fault in error.faults}
        assert wrong <= required, error


@pytest.mark.parametrize(("table", "name"), ENTRIES, ids=lambda value: value)
def test_a_name_in_another_case_or_misspelt_is_refused_and_meant(table, name):
    for wrong in {name.swapcase(), name + "_", name[:-1] + "q" if len(name) > 5 else name.upper()} - set(TABLES[table]):
        with pytest.raises(SpecError) as caught:
            load(**around(table, wrong))
        assert f'"{wrong}"' in str(caught.value) and "Did you mean" in str(caught.value)


def test_every_foreign_word_leads_to_a_word_of_ours_and_is_none_itself():
    for table, words in hints.NAMES.items():
        for foreign, right in words.items():
            assert right in TABLES[table] and foreign not in TABLES[table], (table, foreign, right)
    assert set(hints.FIT.values()) <= set(FIT.arguments) and not set(hints.FIT) & set(FIT.arguments)
    for foreign, right in hints.KEYS.items():
        section, _, argument = right.partition(".")
        assert section in (*KEYS, "extends") and foreign not in KEYS, foreign
        assert section != "fit" or not argument or argument in FIT.arguments, foreign
    every = {argument for entries in TABLES.values() for entry in entries.values() for argument in entry.arguments}
    assert set(hints.ARGUMENTS.values()) <= every
    for word in hints.SUFFIXES.values():
        [name] = fitkit.load_spec(f"data: {word.format('a.x')}\n".replace("…", "b.x")).data.resolved()
        assert name in TABLES["sources"]


@pytest.mark.parametrize(("foreign", "right"), hints.FIT.items(), ids=lambda value: value)
def test_a_foreign_word_of_fit_is_refused_with_ours_inside_and_outside_of_fit(foreign, right):
    assert f'Did you mean "{right}"?' in str(refusal({"fit": {foreign: 1}}))
    assert f'Did you mean "{hints.KEYS[foreign]}"?' in str(refusal({foreign: 1}))


def test_a_foreign_name_is_refused_with_ours():
    for table, words in hints.NAMES.items():
        for foreign, right in words.items():
            assert f'Did you mean "{right}"?' in str(refusal(around(table, foreign))), foreign


def test_a_foreign_value_is_refused_with_ours():
    for foreign, right in hints.VALUES.items():
        text = str(refusal({"fit": {"precision": foreign, "device": foreign}}))
        assert f'Did you mean "{right}"?' in text, foreign


def test_all_faults_come_at_once_in_file_order():
    text = "seed: x\nfit: {epochs: 0}\nmodel: {mlp: {dropout: 2, hidden: x}}\nlos: x\noptimizer: {SGD: {lr: 0, x: 1}}\n"
    faults = refusal(text).faults
    assert [(fault.place.line, fault.place.column) for fault in faults] == [
        (1, 7), (2, 15), (3, 24), (3, 35), (4, 1), (5, 23), (5, 26)
    ]  # fmt: skip


def test_faults_of_a_base_and_of_overrides_are_told_with_those_of_the_spec(tmp_path, monkeypatch):
    (tmp_path / "base.yaml").write_text("data: iriss\n")
    (tmp_path / "spec.yaml").write_text("extends: base.yaml\nmodel: mlpp\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError) as caught:
        fitkit.load_spec("spec.yaml", ["fit.epochs=0"])
    files = [fault.place.file for fault in caught.value.faults]
    assert files == ["base.yaml", 'override "fit.epochs=0"', "spec.yaml"]


def test_at_most_twenty_faults_are_printed_and_the_rest_is_counted():
    error = refusal({"model": [f"nothing{i}" for i in range(50)]})
    lines = str(error).splitlines()
    assert len(error.faults) == 50 and len(lines) == MOST_FAULTS + 1 == 21
    assert lines[-1] == "… and 30 more mistakes."
    assert len(str(refusal({"model": [f"nothing{i}" for i in range(20)]})).splitlines()) == 20


def test_one_mistake_is_one_fault():
    for text in (
        "model: {mlp: {hiden: [3]}}\n",
        "data: {csv: {pth: d.csv}}\n",  # and not that the path is missing, too
        "optimizer: {type: AdamW, lr: 3}\n",
        "callbacks: {EarlyStoping: {patience: 0}}\n",
        "model: [{Linear: {out_features: x, in_features: 3}}]\n",
    ):
        assert len(refusal(text).faults) == 1, text


def test_a_user_s_own_part_is_checked_like_any_other():
    table = Table("metric")

    @table.register(primary="size")
    def mine(output, target, *, size: int, ratio: float = 0.5):
        """A metric."""

    TABLES["metrics"]["mine"] = table["mine"]
    try:
        assert load(metrics={"mine": 3}).metrics[0].args == {"size": 3}
        assert "mine needs size: write {mine: {size: …}}." in str(refusal({"metrics": ["mine"]}))
        assert "metrics.mine.size: expects a whole number" in str(refusal({"metrics": {"mine": {"size": "x"}}}))
    finally:
        del TABLES["metrics"]["mine"]


SPECS = [
    {
        "name": "digits", "seed": 0, "data": "digits", "splits": {"stratified": {"val": 0.15, "test": 0.15}},
        "model": [{"Linear": 128}, "ReLU", {"Dropout": 0.2}, {"Linear": "outputs"}], "loss": "cross_entropy",
        "metrics": ["accuracy"], "optimizer": {"AdamW": {"lr": 3e-3, "weight_decay": 0.01}},
        "schedule": {"cosine": {"warmup": 0.05}}, "callbacks": {"EarlyStopping": {"patience": 5}},
        "fit": {"epochs": 30, "batch_size": 64},
    },
    {
        "data": {"csv": {"path": "d.csv", "target": ["a", "b"], "transform": {"scale": [0, 1]}}},
        "model": {"mlp": {"hidden": [3, 4], "norm": "LayerNorm"}}, "loss": {"huber_loss": {"delta": 2.0}},
        "metrics": {"r2": None}, "optimizer": {"SGD": {"lr": 0.1, "nesterov": True, "lr_patterns": {"a*": 0.1}}},
        "schedule": {"step": {"at": [0.5, 0.7]}}, "callbacks": {"CSVLogger": None, "EMA": 0.99},
    },
    {
        "data": {"text": {"path": "t.txt", "length": 4}}, "model": {"gpt": {"width": 8}}, "optimizer": "Muon",
        "schedule": "ReduceLROnPlateau", "fit": {"max_steps": 3, "precision": "bf16", "device": "cuda:1"},
    },
]  # fmt: skip
JUNK = [None, True, 0, -1, 2**63, 10**50, 1.5, float("nan"), float("inf"), 1e-320, "", " ", "a\0b", "\ud800", "😀"]
JUNK += "x AdamW outputs auto ../x /etc/passwd ~nobody/x {} 1e-3 yes 010 https://a a.pt cuda:9999 torch.nn.X".split()
JUNK += ["\n", "x" * 300, "{epoch}", [], [[]], {}, [1, [2, [3]]], {"": 1}, {"a": {"b": {}}}, ["x", None], (), b"x"]
JUNK += [{"AdamW": None}, {"lr": 1}, {1: 2}, object, {"type": "AdamW", "x": 1}]
WORDS = [*"type name lr extends a.b x:3 000 é Linear mlp path".split(), "", "\ud800", "\x1b[31m"]
CHARACTERS = [*"\t\n:{}[],-#'\"&*!|>%@`?~01ab.=<\\", "\x00", "\u2028", "\x85", "\ufeff", "\ud800", "- ", "---\n"]


def nodes(tree):
    """Yield every place in a tree, as the mapping or list around it and the key in it."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(items):
        yield tree, key
        yield from nodes(value)


def mutated(tree, rng):
    """Return a copy with a few values, keys or branches changed."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice([1, 1, 2, 4])):
        around, key = rng.choice([*nodes(tree)] or [(tree, "x")])
        junk = copy.deepcopy(rng.choice(JUNK))
        change = rng.randrange(5)
        if change == 0 and isinstance(around, dict):
            around[rng.choice([*WORDS, f"{key}s", str(key).upper()])] = around.pop(key, junk)
        elif change == 1 and isinstance(around, dict):
            around.pop(key, None)
        elif change == 2:
            around[key] = rng.choice([{rng.choice(WORDS): around[key]}, [around[key]]]) if key in around else junk
        else:
            around[key] = junk
    return tree


def scribbled(text, rng):
    """Return a text with some characters put in, taken out or doubled."""
    for _ in range(rng.choice([1, 2, 8])):
        at, length = rng.randrange(len(text) + 1), rng.randrange(6)
        text = text[:at] + rng.choice([*CHARACTERS, text[at : at + length], ""]) + text[at + rng.randrange(3) :]
    return text


@pytest.mark.parametrize("seed", range(4))
def test_noise_gives_a_spec_or_a_spec_error_that_can_be_printed(seed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = random.Random(seed)
    loaded = 0
    for _ in range(500):
        source = mutated(rng.choice(SPECS), rng) if rng.random() < 0.5 else scribbled(dump(rng.choice(SPECS)), rng)
        try:
            spec = fitkit.load_spec(source)
            again = fitkit.load_spec(spec.to_yaml())
        except SpecError as error:
            assert error.faults and str(error).encode() and str(error).replace("\n", "").isprintable()
        else:
            assert again.resolved() == spec.resolved()
            loaded += 1
    assert 0 < loaded < 250  # the noise is neither too weak nor too strong
