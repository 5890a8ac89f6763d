"""The JSON Schema of the spec language says what the checker says."""

import json
import typing
from pathlib import Path

import pytest

import fitkit
from fitkit.after.schema import json_schema
from fitkit.after.words import SECTIONS, WHERE, example
from fitkit.builder.tables import TABLES
from fitkit.errors import SpecError
from fitkit.spec.check import FIT
from fitkit.spec.reader import read_text
from fitkit.spec.table import Table
from fitkit.spec.types import Range

SCHEMA = json_schema()
ENTRIES = [(table, name) for table, entries in TABLES.items() for name in entries]

SPECS = {
    "digits": """
        name: digits
        seed: 0
        data: digits
        splits: {stratified: {val: 0.15, test: 0.15}}
        model:
          - Linear: 128
          - ReLU
          - Dropout: 0.2
          - Linear: outputs
        loss: cross_entropy
        metrics: [accuracy]
        optimizer: {AdamW: {lr: 3e-3, weight_decay: 0.01}}
        schedule: {cosine: {warmup: 0.05}}
        callbacks: {EarlyStopping: {monitor: val_loss, patience: 5}}
        fit: {epochs: 30, batch_size: 64}
    """,
    "shortest": "{data: iris, model: mlp}",
    "a CNN": """
        data: {digits: {layout: image, transform: {scale: {range: [0, 16]}}}}
        model:
          - Conv2d: {out_channels: 32, kernel_size: [3, 3], padding: same}
          - BatchNorm2d
          - {ReLU: }
          - MaxPool2d: 2
          - AdaptiveAvgPool2d: [1, null]
          - Flatten
          - Linear: {out_features: outputs, bias: false}
        optimizer: {SGD: {lr: 0.1, momentum: 0.9, nesterov: true, no_decay: [head.*], lr_patterns: {head.*: 0.01}}}
        schedule: {step: [0.5, 0.75]}
        fit: {precision: bf16, device: "cuda:1", clip_norm: 1, accumulate: 2, compile: true}
    """,
    "a table": """
        data: {csv: {path: data/table.csv, target: [a, b], ignore: [id], task: values, transform: standardize}}
        splits: {time: date}
        model: {mlp: {hidden: [], norm: LayerNorm}}
        loss: {huber_loss: {delta: 2}}
        metrics: {r2: , mean_absolute_error: {}}
        optimizer: {Adafactor: {eps: [null, 1e-3]}}
        schedule: {ReduceLROnPlateau: {factor: 0.5, patience: 3}}
        callbacks: [EarlyStopping, {ModelCheckpoint: {filepath: "best/{epoch:03d}.safetensors"}}, {EMA: 0.99}]
    """,
    "a GPT": """
        extends: base.yaml
        data: {text: {path: book.txt, length: 128}}
        splits: time
        model: {gpt: {width: 64, depth: 2, heads: 4}}
        metrics: [accuracy, {top_k_accuracy: 3}]
        fit: {max_time: 60.5, eval_every: 2}
    """,
    "nothing but null": "{data: null, model: mlp, metrics: null, callbacks: null, splits: null, fit: null}",
    "a name of digits": "{name: 2024, data: iris, model: [Flatten, {Linear: outputs}]}",
    "binary": """
        data: {npz: {path: a.npz, x: images, y: labels}}
        model: resnet20
        loss: {binary_cross_entropy_with_logits: {pos_weight: balanced}}
        metrics: accuracy
        optimizer: {Rprop: 0.01}
    """,
}

TYPOS = [
    "{dta: iris, model: mlp}",
    "{data: iriss, model: mlp}",
    "{data: iris, model: MLP}",
    "{data: iris, model: {mlp: {hiden: [4]}}}",
    "{data: iris, model: {mlp: {hidden: [0]}}}",
    "{data: iris, model: {mlp: {hidden: 64}, cnn: }}",
    "{data: iris, model: {mlp: [64.5]}}",
    "{data: iris, model: []}",
    "{data: iris, model: [linear]}",
    "{data: iris, model: [Linear]}",
    "{data: iris, model: [{Linear: output}]}",
    "{data: iris, model: [{Conv2d: {out_channels: 3, kernel_size: [3, 3, 3]}}]}",
    "{data: csv, model: mlp}",
    "{data: {csv: {}}, model: mlp}",
    "{data: {csv: {path: ''}}, model: mlp}",
    "{data: {csv: 'https://a.b/c.csv'}, model: mlp}",
    "{data: iris, model: mlp, loss: CrossEntropyLoss}",
    "{data: iris, model: mlp, loss: {cross_entropy: {label_smoothing: 1.0}}}",
    "{data: iris, model: mlp, optimizer: {AdamW: {learning_rate: 0.1}}}",
    "{data: iris, model: mlp, optimizer: {AdamW: {lr: 0}}}",
    "{data: iris, model: mlp, optimizer: {AdamW: {lr: '0.1'}}}",
    "{data: iris, model: mlp, optimizer: {AdamW: {betas: [0.9]}}}",
    "{data: iris, model: mlp, optimizer: {name: AdamW, lr: 0.1}}",
    "{data: iris, model: mlp, optimizer: [AdamW]}",
    "{data: iris, model: mlp, schedule: {cosine: {warmup: -1}}}",
    "{data: iris, model: mlp, schedule: {cosine: {warmup: 1.5}}}",
    "{data: iris, model: mlp, callbacks: {EarlyStopping: {mode: lowest}}}",
    "{data: iris, model: mlp, callbacks: [EarlyStoping]}",
    "{data: iris, model: mlp, callbacks: {CSVLogger: {filename: ../log.csv}}}",
    "{data: iris, model: mlp, callbacks: {CSVLogger: {filename: history.csv}}}",
    "{data: iris, model: mlp, metrics: [acc]}",
    "{data: iris, model: mlp, fit: {max_epochs: 3}}",
    "{data: iris, model: mlp, fit: {epochs: 1.5}}",
    "{data: iris, model: mlp, fit: {compile: 'yes'}}",
    "{data: iris, model: mlp, fit: {device: gpu}}",
    "{data: iris, model: mlp, seed: -1}",
    "{data: iris, model: mlp, seed: 010}",
    "{data: iris, model: mlp, name: a/b}",
    "[data, model]",
]

# Values of every kind, for the arguments of every type. 2.0 is not among them: to a schema it is a whole number.
BANK = [None, True, False, 0, 1, -1, 2, 0.5, 1.5, -0.5, 1e-3, 1000, "", "auto", "none", "outputs", "balanced", "a.csv"]
BANK += [
    "bias_and_norm",
    "same",
    "true",
    "/a",
    "a://b",
    [],
    [1],
    [1, 2],
    [0.5, 0.9],
    [1, 2, 3],
    [1, -1],
    ["a"],
    [None, 0.5],
]
BANK += [[True], [[1]], {}, {"a": 1}, {"a": -1}, {"a": "b"}, "standardize", {"standardize": None}, {"scale": [0, 1]}]


@pytest.fixture(scope="module")
def validator():
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    return jsonschema.Draft202012Validator(SCHEMA)


def plain(text):
    return read_text(text).plain()


def loads(spec):
    try:
        fitkit.load_spec(spec)
    except SpecError:
        return False
    return True


def walk(schema, path="$"):
    """Every schema within a schema, with the path to it."""
    if isinstance(schema, dict):
        yield path, schema
        for key, inner in schema.items():
            if key in ("properties", "$defs"):
                for name, item in inner.items():
                    yield from walk(item, f"{path}.{name}")
            elif key not in ("default", "enum", "const"):
                yield from walk(inner, path)
    elif isinstance(schema, list):
        for item in schema:
            yield from walk(item, path)


def test_the_schema_is_plain_json():
    assert json.loads(json.dumps(SCHEMA, allow_nan=False)) == SCHEMA


def test_every_object_is_closed_and_every_argument_is_described():
    for path, schema in walk(SCHEMA):
        if schema.get("type") == "object":
            assert schema["additionalProperties"] is False or "properties" not in schema, path
        if "properties" in schema and schema["properties"].keys() & {"lr", "path", "epochs", "kernel_size"}:
            assert all(argument["description"] for argument in schema["properties"].values()), path


def test_every_reference_within_the_schema_leads_somewhere():
    for path, schema in walk(SCHEMA):
        if "$ref" in schema:
            assert schema["$ref"].removeprefix("#/$defs/") in SCHEMA["$defs"], path


@pytest.mark.parametrize("name", SPECS)
def test_a_valid_spec_is_valid_by_the_schema_too(name, validator, tmp_path):
    (tmp_path / "base.yaml").write_text("seed: 1")
    (tmp_path / "spec.yaml").write_text(SPECS[name])
    fitkit.load_spec(tmp_path / "spec.yaml")
    assert not list(validator.iter_errors(plain(SPECS[name])))


@pytest.mark.parametrize("text", TYPOS)
def test_a_mistake_is_one_by_the_schema_too(text, validator, tmp_path):
    (tmp_path / "spec.yaml").write_text(text)
    assert not loads(tmp_path / "spec.yaml")
    assert list(validator.iter_errors(plain(text)))


@pytest.mark.parametrize(("table", "name"), ENTRIES)
def test_the_example_of_every_entry_is_valid_by_the_schema(table, name, validator):
    assert not list(validator.iter_errors(plain(example(table, TABLES[table][name]))))


@pytest.mark.parametrize("key", SECTIONS)
def test_the_example_of_every_key_is_valid_by_the_schema(key, validator):
    assert not list(validator.iter_errors(plain(SECTIONS[key].example)))


def given_arguments(table, entry):
    """The arguments that the example of an entry gives, so that what is required is there."""

    def find(value):
        if isinstance(value, dict) and entry.name in value:
            return value[entry.name]
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
        return next((found for item in inner if (found := find(item)) is not None), None)

    found = find(plain(example(table, entry)))
    return found if isinstance(found, dict) else {} if found is None else {entry.primary: found}


def in_spec(table, entry, arguments):
    component = {entry.name: arguments}
    if table == "fit":
        return {"fit": arguments}
    if table == "layers":
        return {"model": [component]}
    if table == "transforms":
        return {"data": {"digits": {"transform": component}}}
    if table == "augmentations":
        return {"data": {"digits": {"augment": [component]}}}
    return {WHERE[table].removesuffix(":"): component}


def one_argument_of_each_type():
    known = {}
    for argument in FIT.arguments.values():
        known.setdefault(repr(argument.annotation), ("fit", FIT, argument))
    for table, entries in TABLES.items():
        for entry in entries.values():
            for argument in entry.arguments.values():
                known.setdefault(repr(argument.annotation), (table, entry, argument))
    return [pytest.param(*case, id=f"{case[1].name}.{case[2].name}") for case in known.values()]


@pytest.mark.parametrize(("table", "entry", "argument"), one_argument_of_each_type())
def test_the_schema_takes_the_values_that_the_checker_takes(table, entry, argument, validator):
    rest = {} if table == "fit" else given_arguments(table, entry)
    for value in BANK:
        spec = in_spec(table, entry, {**rest, argument.name: value})
        if "path" in repr(argument.annotation).lower() and value in ("/a", "a://b"):
            continue  # whether a path may be absolute depends on where it is given; the typos have the case
        assert loads(spec) == validator.is_valid(spec), value


@pytest.mark.parametrize(("table", "name"), [(t, n) for t, n in ENTRIES if TABLES[t][n].primary])
def test_the_schema_takes_a_value_alone_where_the_checker_does(table, name, validator):
    entry = TABLES[table][name]
    for value in BANK:
        spec = in_spec(table, entry, value)
        if not isinstance(value, dict) and value not in ("/a", "a://b"):
            assert loads(spec) == validator.is_valid(spec), value


@pytest.mark.parametrize(("table", "name"), ENTRIES)
def test_every_default_is_in_the_schema_and_valid_by_it(table, name):
    jsonschema = pytest.importorskip("jsonschema")
    schema = SCHEMA["$defs"][f"{table}.{name}"]
    properties = (
        next(s for _, s in walk(schema) if "properties" in s)["properties"] if TABLES[table][name].arguments else {}
    )
    for argument in TABLES[table][name].arguments.values():
        said = properties[argument.name]
        if argument.required or argument.default is None:
            assert "default" not in said
            continue
        assert said["default"] == json.loads(json.dumps(argument.default))
        whole = {**said, "$defs": SCHEMA["$defs"]}
        assert jsonschema.Draft202012Validator(whole).is_valid(said["default"]), argument.name


def test_a_registered_part_is_in_the_schema(monkeypatch, validator):
    mine = Table("metric")

    @mine.register(higher_is_better=True, target="values")
    def within(output, target, *, tolerance: typing.Annotated[float, Range(low=0)] = 0.1):
        """Share of outputs within the tolerance."""

    spec = {"metrics": {"within": {"tolerance": 0.5}}}
    assert not validator.is_valid(spec)
    monkeypatch.setitem(TABLES["metrics"], "within", mine["within"])
    schema = type(validator)(json_schema())
    assert schema.is_valid(spec) and not schema.is_valid({"metrics": {"within": {"tolerance": -1}}})


GALLERY = sorted((Path(__file__).parent.parent / "specs").glob("*.yaml"))


@pytest.mark.parametrize("path", GALLERY, ids=lambda path: path.stem)
def test_every_spec_of_the_gallery_is_valid_by_the_schema(path, validator):
    assert not list(validator.iter_errors(plain(path.read_text("utf-8"))))
