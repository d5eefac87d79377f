from __future__ import annotations

import datetime
import functools
import json
import math
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpsearch.errors import FixInput
from hpsearch.spec import parse_spec
from hpsearch.yamlfile import MAX_BYTES, MAX_DEPTH, parse_yaml, read_yaml

# ---------------------------------------------------------------- numbers and words


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1e-3", 1e-3),
        ("1E-3", 1e-3),
        ("1e3", 1e3),
        ("1.e-3", 1e-3),
        ("1.5e-3", 1.5e-3),
        ("-2e5", -2e5),
        ("+2e5", 2e5),
        (".5e1", 5.0),
        ("3e+4", 3e4),
        ("1.0e-3", 1e-3),
        ("0.001", 1e-3),
        ("1_000e0", 1e3),
        ("12", 12),
        ("1_000", 1000),
        (".inf", math.inf),
    ],
)
def test_numbers_are_read_as_people_write_them(text, number):
    for value in (parse_yaml(text, "f"), parse_yaml(f"[{text}]", "f")[0], parse_yaml(f"a: {text}", "f")["a"]):
        assert value == number
        assert type(value) is type(number)


@pytest.mark.parametrize("text", ["1e5-study", "1e3abc", "2e2/photos", "e5", "1e", "1e-", "v1e3", "'1e-3'", "1e-3.5"])
def test_a_word_that_begins_like_a_number_stays_a_word(text):
    assert parse_yaml(text, "f") == text.strip("'")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", False),
        ("on", True),
        ("'no'", "no"),
        ("~", None),
        ("", None),
        ("# only a comment", None),
        ("2026-11-21", datetime.date(2026, 11, 21)),
        ("1:30", 90),
        ("\ufeffa: 1", {"a": 1}),
        ("a: 1\r\nb: 2\r\n", {"a": 1, "b": 2}),
    ],
)
def test_other_plain_values_are_those_of_yaml(text, value):
    assert parse_yaml(text, "f") == value


@pytest.mark.parametrize("key", ["on", "no", "1", "1e3", "~", "2026-11-21", "1.0"])
def test_a_key_is_the_word_that_was_written(key):
    assert parse_yaml(f"{key}: 1\nb: {{{key}: 2}}", "f") == {key: 1, "b": {key: 2}}


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_that_python_prints_is_read_back(number):
    assert parse_yaml(repr(number), "f") == number
    assert parse_yaml(f"{number:e}", "f") == float(f"{number:e}")


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cf", "Cn", "Zl", "Zp")), max_size=8)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(PLAIN)
def test_json_is_read_as_json(value):
    assert parse_yaml(json.dumps(value, ensure_ascii=False), "f") == value


# ---------------------------------------------------------------- refusals

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
BAD = {
    "an alias": ("a: &x 1\nb: *x", r"f, line 2, column 4: YAML aliases \(\*name\) are not supported; write the values out"),
    "a billion laughs": (BOMB, "line 2.*aliases"),
    "a merge of an alias": ("a: &x {b: 1}\nc: {<<: *x}", "aliases"),
    "an anchor that holds itself": ("&x [*x]", "aliases"),
    "a duplicate key": ("a: 1\nb: 2\na: 3", "line 3, column 1: the key 'a' stands twice; keep one"),
    "a duplicate key below": ("a: {b: 1, b: 1}", "the key 'b' stands twice"),
    "a duplicate key in quotes": ("a: 1\n'a': 2", "the key 'a' stands twice"),
    "a key that is a list": ("? [a]\n: 1", "a key must be a plain word"),
    "a key that is a mapping": ("{{a: 1}: 2}", "a key must be a plain word"),
    "a tab": ("a:\n\tb: 1", "line 2, column 1: found character '\\\\t'"),
    "an open bracket": ("a: [1", "f is not YAML: line 1"),
    "two colons": ("a: b: c", "line 1, column 5"),
    "two documents": ("a: 1\n---\nb: 2", "line 2, column 1"),
    "a python object": ("a: !!python/object/apply:os.system [ls]", "the YAML tag 'tag:yaml.org,2002:python/object/apply:os.system' is not"),
    "a python name": ("!!python/name:os.system", "python/name:os.system' is not allowed; use plain values"),
    "a python tuple": ("!!python/tuple [1]", "python/tuple' is not allowed"),
    "a python key": ("{!!python/name:os.system a: 1}", "python/name:os.system' is not allowed"),
    "a tag of one's own": ("a: !mine 1", "the YAML tag '!mine' is not allowed"),
    "a tag with a quote": ("a: !it's 1", 'the YAML tag "!it\'s" is not allowed'),
    "an equals sign alone": ("a: =", "is not allowed"),
    "NUL": ("a: \0", "unacceptable character #x0000"),
    "half a character": ('a: "\\ud800"', "line 1, column 4: half a character"),
    "half a character in a key": ('"\\udfff": 1', "half a character"),
    "a character beyond Unicode": ('a: "\\UFFFFFFFF"', "does not fit its escape"),
    "an empty !!int": ("a: !!int ''", "does not fit its tag"),
    "an empty !!float": ("a: !!float ''", "does not fit its tag"),
    "a word as !!bool": ("a: !!bool maybe", "does not fit its tag"),
    "a word as !!timestamp": ("a: !!timestamp soon", "does not fit its tag"),
    "a list as !!map": ("a: !!map [b]", "expected a mapping node"),
    "a word as !!map": ("a: !!map b", "expected a mapping node"),
    "a mapping as !!seq": ("a: !!seq {b: 1}", "expected a sequence node"),
    "bytes that are none": ("a: !!binary é", "'!!binary' is not allowed"),
    "a thirteenth month": ("a: 2026-13-01", "line 1, column 4: '2026-13-01' does not fit"),
    "an integer of 5,000 digits": ("a: " + "9" * 5000, "line 1, column 4: '9+\\.\\.\\.' does not fit its tag or is too long"),
    "a bad merge": ("<<: 5", "line 1, column 5: expected a mapping"),
    "another YAML": ("%YAML 2.0\n---\na: 1", "incompatible YAML document"),
    "too deep a list": ("[" * (MAX_DEPTH + 1), f"nested deeper than {MAX_DEPTH} levels"),
    "100,000 brackets": ("[" * 100_000, "nested deeper"),
    "too deep a mapping": ("{a: " * (MAX_DEPTH + 1) + "1" + "}" * (MAX_DEPTH + 1), "nested deeper"),
    "too deep by indentation": ("\n".join(" " * i + "a:" for i in range(200)), "nested deeper"),
    "too deep dashes": ("- " * 200 + "1", "nested deeper"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_what_is_not_plain_yaml_is_refused_with_its_place(text, message):
    with pytest.raises(FixInput, match=message) as caught:
        parse_yaml(text, "f")
    assert str(caught.value).startswith("f")


def test_nesting_up_to_the_limit_is_read():
    assert parse_yaml("[" * MAX_DEPTH + "]" * MAX_DEPTH, "f") is not None


@settings(deadline=None)
@given(st.text() | st.text("{}[]:,-&*!'\"|>%@`?#~=<\\ \n\tae019.Uux"))
def test_arbitrary_text_is_read_or_refused(text):
    with suppress(FixInput):
        parse_yaml(text, "f")


TAGS = [
    "",
    "!!int",
    "!!float",
    "!!bool",
    "!!null",
    "!!timestamp",
    "!!binary",
    "!!str",
    "!!seq",
    "!!map",
    "!!set",
    "!!omap",
    "!!pairs",
    "!!merge",
]


@settings(deadline=None)
@given(
    st.sampled_from(TAGS),
    st.sampled_from(["''", "x", "-", "+", "1:", "0x", "0b_", ".", "[]", "[a]", "[[a, b]]", "[{a: 1}]", "{}", "{a: 1}", "~"]),
)
def test_any_tag_on_any_value_is_read_or_refused(tag, value):
    with suppress(FixInput):
        parse_yaml(f"a: {tag} {value}", "f")


# ---------------------------------------------------------------- files


def test_a_file_is_its_mapping(tmp_path):
    (tmp_path / "s.yaml").write_text("sampler: tpe\nspace:\n  learning_rate: {low: 1e-4, high: 1e-1}\n")
    assert read_yaml(tmp_path / "s.yaml") == {"sampler": "tpe", "space": {"learning_rate": {"low": 1e-4, "high": 0.1}}}


@pytest.mark.parametrize("content", [b"", b"\n", b"# nothing\n", b"---\n", b"~"])
def test_an_empty_file_changes_nothing(tmp_path, content):
    (tmp_path / "s.yaml").write_bytes(content)
    assert read_yaml(tmp_path / "s.yaml") == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[a, b]", "must hold keys such as `sampler: tpe`, not a list"),
        (b"tpe", "not a str"),
        (b"5", "not a int"),
        (b"no", "not a bool"),
        (b"!!set {a}", "not a set"),
        ("sampler: é".encode("latin-1"), "not a text file in UTF-8"),
        ("sampler: tpe".encode("utf-16"), "not a text file in UTF-8"),
        (b"\x89PNG\r\n", "not a text file in UTF-8"),
        (b"a: \x00", "unacceptable character"),
        (b"a: 1\n" + b"#" * MAX_BYTES, "larger than 256 KiB"),
    ],
)
def test_a_file_that_is_no_study_is_refused_by_name(tmp_path, content, message):
    (tmp_path / "s.yaml").write_bytes(content)
    with pytest.raises(FixInput, match=message) as caught:
        read_yaml(tmp_path / "s.yaml")
    assert "s.yaml" in str(caught.value)


def test_a_file_of_exactly_the_limit_is_read(tmp_path):
    (tmp_path / "s.yaml").write_bytes(b"a: 1\n" + b"#" * (MAX_BYTES - 5))
    assert read_yaml(tmp_path / "s.yaml") == {"a": 1}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.yaml", "no study file.*without a file runs the embedded default"),
        (".", r"is a folder, not a study file. Is it a folder of images\? Use --data /"),
        ("file/x.yaml", "Not a directory"),
        ("x" * 300, "name too long"),
        ("a\0b", "cannot be read"),
    ],
    ids=["missing", "a folder", "below a file", "too long a name", "NUL in the name"],
)  # fmt: skip
def test_a_path_that_cannot_be_read_is_refused(tmp_path, name, message):
    (tmp_path / "file").touch()
    with pytest.raises(FixInput, match=message):
        read_yaml(tmp_path / name)


@pytest.mark.process
def test_bytes_are_refused():
    with pytest.raises(FixInput, match="'!!binary' is not allowed"):
        parse_yaml("space: {batch_size: !!binary gA==}", "here")


COSTLY = {
    "many values": ("a: [" + ",".join("1" for _ in range(90_000)) + "]", "more than 10,000 keys and values"),
    "many keys": ("\n".join(f"k{i}: 1" for i in range(20_000)), "more than 10,000 keys and values"),
    "many empty lists": ("a: [" + "[]," * 80_000 + "]", "more than 10,000 keys and values"),
    "a number in sixties": ("a: 1" + ":1" * 100_000, "does not fit its tag or is too long"),
    "a number of 250,000 hexadecimal digits": ("a: 0x" + "f" * 250_000, "does not fit its tag or is too long"),
    "a number full of underscores": ("a: 1" + "_" * 250_000, "does not fit its tag or is too long"),
}


@pytest.mark.parametrize(("text", "message"), COSTLY.values(), ids=COSTLY)
def test_what_would_cost_seconds_is_refused_before_it_does(text, message):
    with pytest.raises(FixInput, match=message):
        parse_yaml(text, "f")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"space": {"a": [1] * 20_000}}, "more than 10,000 keys and values"),
        ({"space": {str(i): 1 for i in range(20_000)}}, "more than 10,000 keys and values"),
        ({"split": {"seed": 10**30}}, "seed|64 bits"),
        ({"space": {"learning_rate": {"low": 1, "high": 10**300}}}, "64 bits|learning_rate"),
        (functools.reduce(lambda inner, _: {"a": inner}, range(900), 1), "nested deeper than 20 levels"),
        (functools.reduce(lambda inner, _: [inner], range(900), {}), "nested deeper than 20 levels"),
    ],
    ids=range(6),
)
def test_plain_values_have_the_limits_of_a_file(values, message):
    with pytest.raises(FixInput, match=message):
        parse_spec(values if isinstance(values, dict) else {"space": values})
