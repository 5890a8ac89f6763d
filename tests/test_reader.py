"""Reading: YAML 1.2 values, where everything stands, and everything that is not data is refused in bounded time."""

import math
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitkit.errors import Place, SpecError
from fitkit.spec.reader import MOST_BYTES, read_file, read_object, read_text, read_value, scalar
from fitkit.spec.spec import dump


def plain(text):
    return read_text(text).plain()


def refusal(text):
    with pytest.raises(SpecError) as caught:
        read_text(text, "spec.yaml")
    return str(caught.value)


NUMBERS = {"3": 3, "-3": -3, "+3": 3, "0": 0, "-0": 0, "0x1F": 31, "0o17": 15, "1e-3": 1e-3, "3e4": 3e4}
NUMBERS |= {"1E5": 1e5, "-1.5": -1.5, "1.": 1.0, ".5": 0.5, "1.e3": 1e3, "0.0": 0.0, ".inf": math.inf}
WORDS = {"true": True, "True": True, "TRUE": True, "false": False, "null": None, "~": None, "Null": None, "": None}
TEXTS = "yes no on off y n Yes OFF 010 1_000 1,5 2024-01-01 12:30:00 0b11 1e e3 nan inf NaN Infinity .nan3".split()
TEXTS += "1.2.3 0x 0xG tRUE nULL --1 1-2 ٣ = a#b".split() + ["3 4"]


@pytest.mark.parametrize(("text", "value"), [*NUMBERS.items(), *WORDS.items()])
def test_a_plain_scalar_has_its_value_by_yaml_1_2(text, value):
    found = plain(f"key: {text}")["key"]
    assert found == value and type(found) is type(value)


def test_not_a_number_is_one():
    assert math.isnan(plain("key: .nan")["key"])


@pytest.mark.parametrize("text", TEXTS)
def test_anything_else_stays_text(text):
    assert plain(f"key: {text}")["key"] == text


@pytest.mark.parametrize("text", [*NUMBERS, *WORDS])
def test_quotes_make_text(text):
    assert plain(f"key: '{text}'")["key"] == text == plain(f'key: "{text}"')["key"]


def test_a_number_of_many_digits_is_text_and_takes_no_time():
    started = time.perf_counter()
    assert scalar("9" * 41) == "9" * 41 and scalar("9" * 40) == int("9" * 40)
    assert scalar("1" + "0" * 1_000_000) and scalar("." + "1" * 1_000_000) and scalar("1e" + "1" * 1_000_000)
    assert time.perf_counter() - started < 1


def test_lists_mappings_and_long_texts():
    text = (
        "a: [1, [2, x]]\nb: {c: {d: null}}\ne:\n  - f: 1\n    g: 2\n  - h\ni: |\n  two\n  lines\nj: >\n  one\n  line\n"
    )
    assert plain(text) == {
        "a": [1, [2, "x"]],
        "b": {"c": {"d": None}},
        "e": [{"f": 1, "g": 2}, "h"],
        "i": "two\nlines\n",
        "j": "one line\n",
    }


@pytest.mark.parametrize("text", ["", "# nothing\n", "\n\n", "\ufeff", " "])
def test_an_empty_text_is_an_empty_mapping(text):
    assert plain(text) == {}


def test_every_key_and_value_knows_its_line_and_column():
    root = read_text("a: 1\nlonger:\n  b: [x, {c: 2}]\n# note\n  # note\nü😀: 'é'   # note\nd: {e: f}\n", "spec.yaml")
    at = lambda line, column: Place("spec.yaml", line, column)  # noqa: E731
    assert (root.place, root.key_place) == (at(1, 1), None)
    assert (root.value["a"].key_place, root.value["a"].place) == (at(1, 1), at(1, 4))
    inner = root.value["longer"].value["b"]
    assert (inner.key_place, inner.place) == (at(3, 3), at(3, 6))
    assert [item.place for item in inner.value] == [at(3, 7), at(3, 10)]
    assert inner.value[1].value["c"].place == at(3, 14)
    assert root.value["ü😀"].place == at(6, 5)  # columns count characters, as editors do
    assert root.value["d"].value["e"].key_place == at(7, 5)


def test_carriage_returns_end_lines_too():
    root = read_text("a: 1\r\nb:\r\n  c: 2\r\n")
    assert root.plain() == {"a": 1, "b": {"c": 2}}
    assert root.value["b"].value["c"].place == Place("<text>", 3, 6)


def test_only_quoted_text_is_marked_as_quoted():
    root = read_text("a: '1'\nb: \"1\"\nc: 1\nd: x\n")
    assert [node.quoted for node in root.value.values()] == [True, True, False, False]


@pytest.mark.parametrize(
    ("text", "place", "word"),
    [
        ("a: &x 1", "1:4", "anchors (&x)"),
        ("a: 1\nb: [*x]", "2:5", "aliases (*x)"),
        ("a: !!int 3", "1:4", 'tags ("!!int")'),
        ("a: !mine {b: 1}", "1:4", 'tags ("!mine")'),
        ("a: !!python/name:os.system x", "1:4", 'tags ("!!python/name:os.system")'),
        ("!!map {a: 1}", "1:1", "tags"),
        ("a: {<<: {b: 1}}", "1:5", "merge keys"),
        ("a: 1\nb: 2\na: 3", "3:1", '"a" is here twice; it first stands at line 1'),
        ("a: {b: 1, 'b': 2}", "1:11", '"b" is here twice'),
        ("1: a\n1: b", "2:1", '"1" is here twice'),
        ("a: 1\n--- \nb: 2", "2:1", "one document"),
        ("a: 1\n...\nb: 2", "3:1", "one document"),
        ("%TAG ! x\n---\na: 1", "1:1", "directives"),
        ("a:\n\tb: 1", "2:1", "a tab"),
        ("a: 1\t# note", "1:5", "a tab"),
        ("? [a]\n: b", "1:3", "a key must be a word"),
        ("{a: 1}: b", "1:1", "a key must be a word"),
        ('"a\\nb": 1', "1:1", "cannot be printed"),
        ("a: \x07", "1:4", "may not stand in YAML"),
        ("a: 1\nb: \x00", "2:4", "may not stand in YAML"),
        ("a: \ud800", "1:4", "may not stand in YAML"),
    ],
)
def test_what_is_not_data_is_refused_with_its_place(text, place, word):
    message = refusal(text)
    assert message.startswith(f"spec.yaml:{place}: ") and word in message


@pytest.mark.parametrize("text", ['a: "\\U00110000"', 'a: "\\UFFFFFFFF"', f"%YAML 1.{'1' * 5000}\n---\na: 1"])
def test_numbers_that_python_cannot_take_are_refused(text):
    assert refusal(text).startswith("spec.yaml: an escape or a directive")


def test_a_key_may_look_like_a_number_or_like_a_merge_key_in_quotes():
    assert plain("1: a\ntrue: b\n'<<': c\n") == {"1": "a", "true": "b", "<<": "c"}


def test_tabs_inside_of_text_are_text():
    assert plain("a: 'x\ty'") == {"a": "x\ty"}


def test_a_spec_is_at_most_a_mebibyte(tmp_path):
    path = tmp_path / "large.yaml"
    path.write_bytes(b"a: 1\n#" + b"x" * (MOST_BYTES - 6))
    assert read_file(path).plain() == {"a": 1}
    path.write_bytes(b"a: 1\n#" + b"x" * (MOST_BYTES - 5))
    with pytest.raises(SpecError, match=r"large\.yaml: a spec has at most 1 MiB\.$"):
        read_file(path)
    with pytest.raises(SpecError, match="<text>: a spec has at most 1 MiB"):
        read_text("#" * (MOST_BYTES + 1))


def test_a_spec_has_at_most_ten_thousand_values_and_thirty_two_levels():
    assert len(plain(f"a: [{'1,' * 9000}]")["a"]) == 9000
    assert "at most 10,000 values" in refusal(f"a: [{'1,' * 10_000}]")
    assert "32 levels" in refusal("a: " + "[" * 100 + "]" * 100)
    assert "32 levels" in refusal("\n".join("  " * i + "a:" for i in range(100)))
    assert plain("a: " + "[" * 31 + "]" * 31)


@pytest.mark.parametrize(
    "text",
    ["[" * MOST_BYTES, "{" * MOST_BYTES, "- " * (MOST_BYTES // 2), "? " * (MOST_BYTES // 2), "a: " + "x" * MOST_BYTES]
    + ["a:\n" * (MOST_BYTES // 3), "a: '" + "x\n\n" * (MOST_BYTES // 3), "&a " * (MOST_BYTES // 3), "!" * MOST_BYTES],
    ids=lambda text: text[:6],
)
def test_a_hostile_megabyte_is_read_or_refused_in_bounded_time(text):
    started = time.perf_counter()
    try:
        read_text(text[:MOST_BYTES])
    except SpecError as error:
        assert len(str(error)) < 1000
    assert time.perf_counter() - started < 20


def test_a_device_or_a_pipe_is_refused_at_once_as_a_spec(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (Path("/dev/zero"), tmp_path / "pipe"):
        with pytest.raises(SpecError, match="not a plain file"):
            read_file(path)


def test_a_byte_order_mark_is_left_out(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\n")
    root = read_file(path)
    assert root.plain() == {"a": 1} and root.value["a"].key_place == Place(str(path), 1, 1)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"a: 1\nname: caf\xe9\n", ":2:10: this text is not UTF-8. Save the spec as UTF-8."),
        ("a: 1".encode("utf-16"), ":1:1: this text is UTF-16. Save the spec as UTF-8."),
        (b"\xff", ":1:1: this text is not UTF-8. Save the spec as UTF-8."),
        (b"PK\x03\x04\x00", ':1:3: the character "\\x03" may not stand in YAML.'),
    ],
)
def test_a_file_that_is_no_utf_8_text_is_refused_with_its_place(tmp_path, raw, message):
    path = tmp_path / "spec.yaml"
    path.write_bytes(raw)
    with pytest.raises(SpecError) as caught:
        read_file(path)
    assert str(caught.value) == f"{path}{message}"


def test_a_file_that_cannot_be_opened_is_refused(tmp_path):
    (tmp_path / "digits.yml").write_text("a: 1")
    for name, words in [
        ("digts.yaml", f'there is no such file. Did you mean "{tmp_path / "digits.yml"}"?'),
        ("other", "there is no such file."),
        (".", "this is a folder. Name the YAML file in it."),
        ("x" * 300, "cannot be read: File name too long."),
        ("a\0b", "cannot be read: embedded null byte."),
    ]:
        with pytest.raises(SpecError) as caught:
            read_file(tmp_path / name)
        assert caught.value.faults[0].message == words


def test_a_path_in_a_file_starts_at_the_file_and_one_on_the_command_line_anywhere(tmp_path):
    (tmp_path / "spec.yaml").write_text("a: {b: [c]}\n")
    node = read_file(tmp_path / "spec.yaml").value["a"].value["b"].value[0]
    assert node.folder == tmp_path
    place = Place('override "a={b: [c]}"')
    node = read_value("{b: [c]}", place).value["b"]
    assert (node.folder, node.value[0].folder, node.value[0].place, node.key_place) == (None, None, place, place)


@pytest.mark.parametrize("text", ["", "  ", "[1", "&a 1", "a: b: c", "\t1"])
def test_an_override_that_is_no_value_is_refused_at_the_override(text):
    with pytest.raises(SpecError, match='^override "x": '):
        read_value(text, Place('override "x"'))


def test_a_dict_is_read_as_a_text_is():
    given_ = {"a": (1, 2.5), "b": {"c": None, "d": [True, "x"]}, "e": Path("x/y.csv")}
    assert read_object(given_).plain() == {"a": [1, 2.5], "b": {"c": None, "d": [True, "x"]}, "e": "x/y.csv"}


def test_what_a_dict_may_not_hold_is_refused_with_its_path():
    endless = {}
    endless["a"] = [endless]
    for value, path, words in [
        ({"a": {1: 2}}, "a", "a key must be a string, not 1."),
        ({"a": {"b\n": 2}}, "a", "holds characters that cannot be printed."),
        ({"a": [1, {"b": {1, 2}}]}, "a[1].b", "not a set."),
        ({"a": b"x"}, "a", "not a bytes."),
        ({"a": complex(1)}, "a", "not a complex."),
        ({"a": object}, "a", 'not a type. Write its name, "object".'),
        (endless, None, "at most 10,000 values and 32 levels."),
        ({"a": [[1] * 200 for _ in range(200)]}, "a[49]", "at most 10,000 values and 32 levels."),
    ]:
        with pytest.raises(SpecError) as caught:
            read_object(value)
        [fault] = caught.value.faults
        assert fault.message.endswith(words) and path in (fault.path, None)


KEYS = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=8)
SCALARS = st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False) | st.text(max_size=12)
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=4) | st.dictionaries(KEYS, v, max_size=4), max_leaves=12)


@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_what_is_written_is_read_back(value):
    found = read_text(dump(value)).plain()
    assert found == value and repr(found) == repr(value)  # repr tells 1 from 1.0 and from True
