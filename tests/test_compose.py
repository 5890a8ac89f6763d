"""One spec from several: what `extends` keeps and replaces, and what an override on the command line may reach."""

import pytest

import fitkit
from fitkit.errors import SpecError
from fitkit.spec import compose
from fitkit.spec.compose import PRIMARY, merge, read
from fitkit.spec.reader import read_object, read_text


def over(base, spec):
    return merge(read_object(base), read_object(spec)).plain()


def overridden(spec, *pairs):
    return read(spec, pairs).plain()


@pytest.mark.parametrize(
    ("base", "spec", "merged"),
    [
        ({"a": 1, "b": 2}, {"b": 3, "c": 4}, {"a": 1, "b": 3, "c": 4}),
        ({"fit": {"epochs": 3, "batch_size": 8}}, {"fit": {"epochs": 5}}, {"fit": {"epochs": 5, "batch_size": 8}}),
        # a section that holds one component is replaced as a whole by another component
        ({"optimizer": {"SGD": {"lr": 1}}}, {"optimizer": {"AdamW": {"eps": 2}}}, {"optimizer": {"AdamW": {"eps": 2}}}),
        ({"optimizer": {"SGD": {"lr": 1}}}, {"optimizer": "AdamW"}, {"optimizer": {"AdamW": None}}),
        # the same component keeps what the spec does not say again
        ({"loss": {"l": {"a": 1, "b": 2}}}, {"loss": {"l": {"b": 3}}}, {"loss": {"l": {"a": 1, "b": 3}}}),
        ({"loss": {"l": {"a": 1}}}, {"loss": "l"}, {"loss": {"l": {"a": 1}}}),
        ({"loss": {"l": {"a": 1}}}, {"loss": {"l": None}}, {"loss": {"l": {"a": 1}}}),
        # sections of several add up by name, also where one is a list of names
        ({"callbacks": {"A": {"x": 1}}}, {"callbacks": {"B": None}}, {"callbacks": {"A": {"x": 1}, "B": None}}),
        ({"callbacks": ["A"]}, {"callbacks": {"A": {"x": 1}}}, {"callbacks": {"A": {"x": 1}}}),
        ({"metrics": ["a", "b"]}, {"metrics": ["c"]}, {"metrics": {"a": None, "b": None, "c": None}}),
        ({"callbacks": {"A": {"x": 1}}}, {"callbacks": [{"A": {"y": 2}}]}, {"callbacks": {"A": {"x": 1, "y": 2}}}),
        # a list of layers is replaced as a whole, and so is anything that is no mapping
        ({"model": ["A", "B", "A"]}, {"model": ["C", "C"]}, {"model": ["C", "C"]}),
        (
            {"model": {"mlp": {"hidden": [1, 2]}}},
            {"model": {"mlp": {"hidden": [3]}}},
            {"model": {"mlp": {"hidden": [3]}}},
        ),
        ({"model": ["A"]}, {"model": {"mlp": None}}, {"model": {"mlp": None}}),
        ({"fit": {"epochs": 3}}, {"fit": None}, {"fit": None}),
        ({"seed": 1}, {"seed": None}, {"seed": None}),
        # an argument that is a mapping itself merges too: it is one of the component's
        ({"loss": {"l": {"m": {"a": 1}}}}, {"loss": {"l": {"m": {"b": 2}}}}, {"loss": {"l": {"m": {"a": 1, "b": 2}}}}),
    ],
)
def test_a_spec_is_laid_over_its_base(base, spec, merged):
    assert over(base, spec) == merged


def test_places_are_those_of_the_file_that_said_it(tmp_path):
    (tmp_path / "base.yaml").write_text("data: iris\nfit:\n  epochs: 3\n  batch_size: 8\n")
    (tmp_path / "spec.yaml").write_text("extends: base.yaml\nfit: {epochs: 5}\n")
    root = read(tmp_path / "spec.yaml")
    fit = root.value["fit"].value
    assert (fit["epochs"].place.file, fit["epochs"].place.line) == (str(tmp_path / "spec.yaml"), 2)
    assert (fit["batch_size"].place.file, fit["batch_size"].place.line) == (str(tmp_path / "base.yaml"), 4)
    assert "extends" not in root.value


def test_a_base_is_named_from_the_file_that_names_it_and_so_are_paths_in_it(tmp_path, monkeypatch):
    (tmp_path / "bases").mkdir()
    (tmp_path / "bases" / "one.yaml").write_text("extends: two.yaml\nseed: 1\n")
    (tmp_path / "bases" / "two.yaml").write_text("seed: 2\nname: two\ndata: {csv: {path: d.csv}}\n")
    (tmp_path / "spec.yaml").write_text("extends: bases/one.yaml\nmodel: mlp\n")
    monkeypatch.chdir("/")
    spec = fitkit.load_spec(tmp_path / "spec.yaml")
    assert (spec.seed, spec.name) == (1, "two")
    assert spec.data.args["path"] == str(tmp_path / "bases" / "d.csv")


def test_the_name_of_a_run_is_that_of_the_file_unless_a_spec_says_one(tmp_path):
    (tmp_path / "base.yaml").write_text("data: iris\nmodel: mlp\n")
    (tmp_path / "my run!.yaml").write_text("extends: base.yaml\n")
    assert fitkit.load_spec(tmp_path / "my run!.yaml").name == "my-run-"
    assert fitkit.load_spec("data: iris\nmodel: mlp\n").name == "run"


def test_a_file_on_its_own_keeps_its_text_and_one_that_was_changed_does_not(tmp_path):
    (tmp_path / "base.yaml").write_text("data: iris # flowers\nmodel: mlp\n")
    (tmp_path / "spec.yaml").write_text("extends: base.yaml\n")
    assert fitkit.load_spec(tmp_path / "base.yaml").text == "data: iris # flowers\nmodel: mlp\n"
    assert fitkit.load_spec(tmp_path / "spec.yaml").text is None
    assert fitkit.load_spec(tmp_path / "base.yaml", ["seed=1"]).text is None
    assert fitkit.load_spec(tmp_path / "spec.yaml").given == {"data": "iris", "model": "mlp"}


def test_a_base_given_in_python_starts_at_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "base.yaml").write_text("data: iris\nmodel: mlp\nseed: 3\n")
    monkeypatch.chdir(tmp_path)
    assert fitkit.load_spec({"extends": "base.yaml"}).seed == 3
    assert fitkit.load_spec({"extends": str(tmp_path / "base.yaml"), "seed": 4}).seed == 4
    assert fitkit.load_spec("extends: base.yaml\nname: x\n").name == "x"


def test_a_link_does_not_lead_out_of_the_folder(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.yaml").write_text("seed: 3\n")
    (tmp_path / "in" / "link.yaml").symlink_to(tmp_path / "secret.yaml")
    (tmp_path / "in" / "spec.yaml").write_text("extends: link.yaml\n")
    with pytest.raises(SpecError, match="leaves the spec's folder"):
        read(tmp_path / "in" / "spec.yaml")


@pytest.mark.parametrize("name", ["a\\0b", "x" * 300, "loop.yaml", ".", "", "~/spec.yaml", "../in/base.yaml/..", "/"])
def test_a_base_that_nobody_can_open_is_an_error_and_no_traceback(tmp_path, name):
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    (tmp_path / "spec.yaml").write_text(f'extends: "{name}"\n')
    with pytest.raises(SpecError, match=r"spec\.yaml:1:10: extends: "):
        read(tmp_path / "spec.yaml")


def test_bases_may_stand_on_each_other_but_not_in_a_circle_and_not_without_end(tmp_path):
    for i in range(12):
        (tmp_path / f"{i}.yaml").write_text(f"extends: {i + 1}.yaml\nname: n{i}\n")
    (tmp_path / "12.yaml").write_text("seed: 7\n")
    assert read(tmp_path / "4.yaml").plain() == {"seed": 7, "name": "n4"}
    with pytest.raises(SpecError, match="more than 8 bases"):
        read(tmp_path / "0.yaml")
    (tmp_path / "12.yaml").write_text("extends: 11.yaml\n")
    with pytest.raises(SpecError, match="extends itself"):
        read(tmp_path / "11.yaml")
    (tmp_path / "self.yaml").write_text("extends: ./self.yaml\n")
    with pytest.raises(SpecError, match="extends itself"):
        read(tmp_path / "self.yaml")


SPEC = {
    "data": {"csv": {"path": "d.csv"}},
    "model": [{"Linear": 3}, "ReLU"],
    "loss": "cross_entropy",
    "metrics": ["accuracy"],
    "optimizer": {"AdamW": {"lr": 0.1, "eps": 1e-8}},
    "callbacks": ["EarlyStopping"],
    "fit": {"epochs": 3},
}


@pytest.mark.parametrize(
    ("pair", "section", "value"),
    [
        ("optimizer.AdamW.lr=1e-2", "optimizer", {"AdamW": {"lr": 1e-2, "eps": 1e-8}}),
        ("optimizer.AdamW.weight_decay=0", "optimizer", {"AdamW": {"lr": 0.1, "eps": 1e-8, "weight_decay": 0}}),
        ("optimizer=SGD", "optimizer", "SGD"),
        ("optimizer={SGD: {lr: 1}}", "optimizer", {"SGD": {"lr": 1}}),
        ("loss.cross_entropy.label_smoothing=0.1", "loss", {"cross_entropy": {"label_smoothing": 0.1}}),
        ("callbacks.EarlyStopping.patience=10", "callbacks", {"EarlyStopping": {"patience": 10}}),
        ("callbacks.EMA=0.9", "callbacks", {"EarlyStopping": None, "EMA": 0.9}),
        ("metrics.top_k_accuracy.k=2", "metrics", {"accuracy": None, "top_k_accuracy": {"k": 2}}),
        ("metrics=[]", "metrics", []),
        ("schedule.cosine.warmup=0.1", "schedule", {"cosine": {"warmup": 0.1}}),
        ("data.csv.path=../other.csv", "data", {"csv": {"path": "../other.csv"}}),
        ("model=[{Linear: 4}]", "model", [{"Linear": 4}]),
        ("fit.epochs=null", "fit", {"epochs": None}),
        ("fit.batch_size= 8 ", "fit", {"epochs": 3, "batch_size": 8}),
        ("fit={epochs: 1}", "fit", {"epochs": 1}),
        ("seed=3", "seed", 3),
        ("name=a=b", "name", "a=b"),
    ],
)
def test_an_override_sets_one_key(pair, section, value):
    assert overridden(SPEC, pair) == {**SPEC, section: value}


def test_overrides_are_applied_in_order_and_to_what_was_set_before():
    spec = overridden(SPEC, "optimizer=SGD", "optimizer.SGD.lr=1", "optimizer.SGD.lr=2")
    assert spec["optimizer"] == {"SGD": {"lr": 2}}


def test_a_value_that_stood_alone_keeps_its_place_among_the_arguments():
    spec = overridden({"model": {"mlp": [8]}}, "model.mlp.dropout=0.5")
    assert spec == {"model": {"mlp": {PRIMARY: [8], "dropout": 0.5}}}
    loaded = fitkit.load_spec({"model": {"mlp": [8]}}, ["model.mlp.dropout=0.5"])
    assert loaded.model.args == {"hidden": (8,), "dropout": 0.5}
    loaded = fitkit.load_spec({"model": {"mlp": [8]}}, ["model.mlp.hidden=[4]"])
    assert loaded.model.args == {"hidden": (4,)}


def test_overrides_in_python_are_plain_values_by_dotted_keys():
    spec = fitkit.load_spec(SPEC, {"optimizer.AdamW.lr": 0.5, "fit.epochs": 9, "metrics": ["accuracy"]})
    assert (spec.optimizer.args["lr"], spec.fit.epochs) == (0.5, 9)


def test_a_path_on_the_command_line_starts_at_the_working_directory_and_may_leave_it(tmp_path, monkeypatch):
    (tmp_path / "specs").mkdir()
    path = tmp_path / "specs" / "spec.yaml"
    path.write_text("data: {csv: {path: d.csv}}\nmodel: mlp\n")
    monkeypatch.chdir(tmp_path)
    assert fitkit.load_spec(path).data.args["path"] == str(tmp_path / "specs" / "d.csv")
    assert fitkit.load_spec(path, ["data.csv.path=e.csv"]).data.args["path"] == str(tmp_path / "e.csv")
    assert fitkit.load_spec(path, ["data.csv.path=/other/e.csv"]).data.args["path"] == "/other/e.csv"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fitkit.load_spec(path, ["data.csv.path=~/e.csv"]).data.args["path"] == str(tmp_path / "e.csv")


@pytest.mark.parametrize(
    "pair",
    ["", "=", "fit.epochs", "=3", " =3", "fit.epochs=", "fit.epochs= ", "fit.epochs=[", "fit.epochs=&a 1"]
    + ["model.0=ReLU", "model.Linear=3", "loss.cross_entropy.label_smoothing.x=1", "fit.epochs.x=1", "optimizer.lr=1"]
    + ["optimizer.SGD.lr=1", "extends=a.yaml", "seed.x=1"],
)
def test_an_override_that_reaches_nothing_is_refused_at_itself(pair):
    with pytest.raises(SpecError) as caught:
        overridden({**SPEC, "seed": 1, "loss": {"cross_entropy": {"label_smoothing": 0.1}}}, pair)
    assert str(caught.value).startswith(f'override "{pair}": ')


def test_a_spec_is_not_changed_by_what_is_laid_over_it():
    base, spec = read_text("fit: {epochs: 3}\n"), read_text("fit: {epochs: 4}\n")
    merge(base, spec)
    compose.override(base, "fit.epochs", 9)
    assert base.plain() == {"fit": {"epochs": 3}} and spec.plain() == {"fit": {"epochs": 4}}


@pytest.mark.parametrize("source", [None, 3, ["data"], b"data: iris", object()])
def test_only_paths_texts_and_dicts_are_specs(source):
    with pytest.raises(SpecError, match="a spec is a path, a text or a dict"):
        read(source)


def test_a_spec_goes_in_as_it_came_out(tmp_path):
    (tmp_path / "spec.yaml").write_text("data: iris\nmodel: mlp\n")
    spec = fitkit.load_spec(tmp_path / "spec.yaml")
    assert fitkit.load_spec(spec) is spec
    again = fitkit.load_spec(spec, {"seed": 4})
    assert (again.seed, spec.seed) == (4, 0)
