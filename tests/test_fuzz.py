"""Input that nobody thought of: study files, settings, command lines and folders made by chance; no error but our own, and never a row."""

from __future__ import annotations

import os
import tempfile
from contextlib import chdir, suppress
from pathlib import Path

import click
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpsearch.cli import main
from hpsearch.errors import FixInput
from hpsearch.resources import folder
from hpsearch.spec import StudySpec, load_spec
from tests.bad_input import declared, png

SAME = {"deadline": None, "derandomize": True, "suppress_health_check": [HealthCheck.too_slow]}  # the same input on every machine

# ---------------------------------------------------------------- study files

SHIPPED = [path.read_text() for path in sorted(folder("studies").glob("*.yaml"))]
WHOLE = """name: mine
data: photos
model: [resnet18, glyphnet]
weights: none
trials: 20
timeout: 1e3
workers: 2
confirm: 3x5
warm_start: {study: other, top: 3}
split: {train_per_class: 5, val: 0.2}
preprocess: {size: 64, mean: [0.5], std: [0.2]}
pruner: {name: halving, warmup: 0.1, reduction_factor: 4}
recipe: {momentum: 0.9}
space:
  learning_rate: {low: 1e-4, high: 1e-1, log: true, grid: 5}
  batch_size: [16, 32]
  frozen_layers: {low: 0, high: all}
  optimizer: {choices: [sgd, adamw], default: sgd}
  dropout: {low: 0, high: 0.5, when: {optimizer: [sgd]}}
"""
PIECES = st.sampled_from(
    [
        *(
            "- ",
            ": ",
            "{",
            "}",
            "[",
            "]",
            "\n",
            "  ",
            "\t",
            "&a ",
            "*a",
            "!!int ",
            "!!float ",
            "!!binary ",
            "!!timestamp ",
            "!!set ",
            "!x ",
        ),
        *("'", '"', "|", ">", "#", "---\n", "...\n", "? ", "<<: ", "~", "no", "yes", "1e-3", "010", "0x1f", "0b1", "1:30", ".inf", "-.inf"),
        *(".nan", "=", "%YAML 1.1\n", "\\ud800", '"\\UFFFFFFFF"', "2026-99-99", "1" * 5000, "-1", "0", "1e400", "[" * 50, "é", "\u2028"),
    ]
)


@st.composite
def mutated(draw):
    """A sound study file with pieces put in, cut out and doubled."""
    text = draw(st.sampled_from([*SHIPPED, WHOLE, WHOLE]))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(text)))
        to = min(len(text), at + draw(st.integers(0, 12)))
        text = text[:at] + draw(st.one_of(PIECES, st.just(text[at:to] * 2), st.text(max_size=5))) + text[to:]
    return text.encode("utf-8", "surrogatepass")


def read(content):
    """What hpsearch makes of a study file."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "my.yaml"
        file.write_bytes(content)
        with suppress(FixInput):
            assert isinstance(load_spec(file), StudySpec)


@settings(max_examples=300, **SAME)
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass"))))
def test_any_bytes_are_a_study_or_refused(content):
    read(content)


@settings(max_examples=300, **SAME)
@given(st.lists(PIECES, max_size=20).map(lambda pieces: "".join(pieces).encode("utf-8", "surrogatepass")))
def test_any_pieces_of_yaml_are_a_study_or_refused(content):
    read(content)


@settings(max_examples=500, **SAME)
@given(mutated())
def test_a_spoiled_study_is_a_study_or_refused(content):
    read(content)


KEYS = st.sampled_from(
    [*StudySpec.model_fields, "space.dropout", "space.learning_rate.low", "space.model", "pruner.name", "split.val", "a.b.c.d"]
)
VALUES = st.one_of(PIECES, st.text(max_size=20), st.lists(PIECES, max_size=5).map("".join))


@settings(max_examples=300, **SAME)
@given(st.lists(st.one_of(st.tuples(KEYS, VALUES).map("=".join), st.text(max_size=20)), min_size=1, max_size=3))
def test_any_settings_are_a_study_or_refused(given_settings):
    with suppress(FixInput):
        assert isinstance(load_spec(None, given_settings), StudySpec)


# ---------------------------------------------------------------- command lines

NOT_HERE = {"ui", "serve"}  # these serve until they are ended
TRIALS = ("--trials", "--n-trials")  # 0 of them, so that nothing is ever trained
WORDS = st.text(st.characters(exclude_characters="\0"), max_size=12)


def options(command):
    return [name for p in command.params if isinstance(p, click.Option) for name in (*p.opts, *p.secondary_opts) if name not in TRIALS]


@st.composite
def lines(draw):
    """A command with options of its own and others, and words of any kind."""
    command = main.commands[draw(st.sampled_from(sorted({*main.commands} - NOT_HERE)))]
    known = st.sampled_from(["--help", "-h", "--", *options(command)])
    parts = draw(
        st.lists(st.one_of(known, WORDS, st.tuples(known, WORDS).map("=".join), st.sampled_from(["0", "-1", "x.yaml", "."])), max_size=6)
    )
    none = [f"{TRIALS[0]}=0"] if any(TRIALS[0] in p.opts for p in command.params) else []
    return [command.name, *none, *parts, *none]


@settings(max_examples=250, **SAME)
@given(lines())
def test_any_command_line_is_understood_or_refused(arguments):
    with tempfile.TemporaryDirectory() as place, chdir(place):
        kept = os.environ["HPSEARCH_CACHE"]
        os.environ["HPSEARCH_CACHE"] = str(Path(place) / "cache")
        try:
            result = CliRunner().invoke(main, arguments)
        finally:
            os.environ["HPSEARCH_CACHE"] = kept
        assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
        assert result.exit_code in (0, 1, 2)
        assert "Traceback" not in result.output
        assert not list(Path(place).rglob("*.db"))


# ---------------------------------------------------------------- folders

PARTS = st.sampled_from(
    ["cat", "dog", "train", "val", "test", "Train", "validation", ".git", "__MACOSX", "a b", "é", "cat ", "Cat", "\x1b[2J", "a\nb"]
)
FILES = st.sampled_from(["0.png", "1.png", "2.jpg", "3.PNG", "x.txt", "labels.csv", ".hidden.png", "a.heic", "b.gif", "noname", "\x1b.png"])
CONTENTS = st.sampled_from(
    [
        *(png(i) for i in range(6)),
        png(1)[:900],
        b"",
        b"<html>",
        b"\x89PNG\r\n\x1a\n",
        declared(30_000, 30_000),
        "fifo",
        "link",
        "loop",
        "folder",
    ]
)


@st.composite
def trees(draw):
    """A folder's files: path -> content, or a word for what lies there."""
    paths = st.tuples(st.lists(PARTS, max_size=3), FILES).map(lambda pair: "/".join([*pair[0], pair[1]]))
    return draw(st.dictionaries(paths, CONTENTS, max_size=14))


def plant(place, files):
    """Make the files, where nothing is in their way."""
    for name, content in files.items():
        path = place / name
        with suppress(FileExistsError, NotADirectoryError):
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            elif content == "fifo":
                os.mkfifo(path)
            elif content == "folder":
                path.mkdir()
            else:
                path.symlink_to(".." if content == "loop" else "nothing")


@settings(max_examples=120, **SAME)
@given(trees())
def test_any_folder_is_data_or_refused(files):
    with tempfile.TemporaryDirectory() as place, chdir(place):
        (Path(place) / "photos").mkdir()
        plant(Path(place) / "photos", files)
        before = sorted(Path(place).rglob("*"))
        result = CliRunner().invoke(main, ["check", "photos"])
        assert isinstance(result.exception, SystemExit), repr(result.exception)
        assert result.exit_code in (0, 1, 2)
        assert "\x1b" not in result.output
        assert sorted(Path(place).rglob("*")) == before
