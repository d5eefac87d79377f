"""The table of bad input: for each case its door, what is put there, and words of the message that says what to do.

`files` fills the working folder before the command: a path with its content, or with a function that makes what lies there.
"""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import sqlite3
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from hpsearch.yamlfile import MAX_BYTES

Content = bytes | str | Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """One bad input."""

    door: str
    name: str
    arguments: tuple[str, ...]
    words: str  # of the message, blanks and line breaks alike
    code: int = 2
    files: Mapping[str, Content] | None = None
    kept: bool = False  # the study's folder is made: its data was looked at


CASES: list[Case] = []


def case(door: str, name: str, arguments: list[str], words: str, code: int = 2, files: Mapping[str, Content] | None = None, kept=False):
    CASES.append(Case(door, name, tuple(arguments), words, code, files, kept))


def fill(folder: Path, files: Mapping[str, Content] | None) -> None:
    """Put the files of a case into the working folder."""
    for name, content in (files or {}).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(path)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)


# ---------------------------------------------------------------- flags

FLAGS = [
    (["--sampler", "tpee"], "did you mean 'tpe'?"),
    (["--sampler", ""], "unknown sampler '': known: grid, random"),
    (["--sampler", "tpe,gp"], "unknown sampler 'tpe,gp'"),
    (["--sampler", "x" * 100_000], "unknown sampler"),
    (["--pruner", "medain"], "did you mean 'median'?"),
    (["--pruner", "\x1b[2J"], r"unknown pruner '\x1b[2J'"),
    (["--objective", "acuracy"], "did you mean 'accuracy'?"),
    (["--objective", "loss"], "unknown objective 'loss': did you mean 'val_loss'?"),
    (["--trials", "0"], "greater than or equal to 1"),
    (["--trials", "-1"], "greater than or equal to 1"),
    (["--trials", "1000001"], "less than or equal to 1000000"),
    (["--trials", "1.5"], "'1.5' is not a valid integer"),
    (["--trials", "1e3"], "'1e3' is not a valid integer"),
    (["--trials", "9" * 5000], "--trials"),
    (["--trials", "1" * 100], "less than or equal to 1000000"),
    (["--trials"], "requires an argument"),
    (["--seed", "-1"], "greater than or equal to 0"),
    (["--seed", "2147483648"], "less than 2147483648"),
    (["--timeout", "0"], "greater than 0"),
    (["--timeout", "-1"], "greater than 0"),
    (["--timeout", "inf"], "timeout: input should be a finite number"),
    (["--timeout", "nan"], "timeout: input should be"),
    (["--timeout", "soon"], "timeout: must be a number of seconds, or a time such as 90s, 30m, 2h or 1h30m, got 'soon'"),
    (["--workers", "0"], "workers must be 'auto' or 1 to 1024"),
    (["--workers", "-3"], "workers must be 'auto' or 1 to 1024"),
    (["--workers", "all"], "workers: input should be 'auto'"),
    (["--workers", "1.5"], "workers: "),
    (["--workers", "1024"], "use --workers"),
    (["--workers", ""], "workers: "),
    (["--confirm", "0x5"], "confirm.top: input should be greater than or equal to 1"),
    (["--confirm", "3x1"], "confirm.times: input should be greater than or equal to 2"),
    (["--confirm", "3x5x7"], "must be written as 3x5"),
    (["--confirm", "3x99999"], "must be written as 3x5"),
    (["--confirm", "three"], "must be written as 3x5"),
    (["--cv", "-1"], "must be written as 3x5"),
    (["--cv", "3x5", "--confirm", "3x5"], "keep one of them"),
    (["--model", "resnet5O"], "did you mean 'resnet50'?"),
    (["--model", ""], "unknown model ''"),
    (["--model", "a b:c"], "written package.module:function"),
    (["--model", ":f"], "written package.module:function"),
    (["--model", "os:"], "written package.module:function"),
    (["--model", "../x:f"], "written package.module:function"),
    (["--model", "x" * 100_000], "unknown model"),
    (["--weights", "IMAGENET"], "has no weights called 'IMAGENET'"),
    (["--weights", "no such.pt"], "there is no weights file"),
    (["--weights", "a\0b.pt"], r"weights: 'a\x00b.pt' holds a control character (\x00)"),
    (["--weights", "x" * 300 + ".pt"], "there is no weights file"),
    (["--weights", ""], "unknown weights ''"),
    (["--weights", "~nobody-of-this-name/w.pt"], "there is no weights file"),
    (["--data", ""], "data: "),
    (["--data", "photos"], "name a model for photos"),
    (["--warm-start", "none"], "there is no storage"),
    (["--warm-start", "../x"], "the study name '../x' cannot be used"),
    (["--warm-start", "digits-tpe"], "cannot begin with its own trials"),
    (["--name", "Flowers"], "cannot be used: take 1 to 64"),
    (["--smapler", "tpe"], "Did you mean '--sampler'?"),
    (["--sampler=tpe", "--sampler"], "requires an argument"),
    (["one.yaml", "two.yaml"], "unexpected extra argument"),
    (["-x"], "No such option"),
]
for arguments, words in FLAGS:
    no_storage = words == "there is no storage"
    case("run", " ".join(arguments)[:40], ["run", *arguments], words, 1 if no_storage else 2)

COMPARE = [
    (["--samplers", "tpe"], "at least two samplers"),
    (["--samplers", ""], "unknown sampler ''"),
    (["--samplers", "tpe,tpe"], "at least two samplers"),
    (["--samplers", "tpe,gp,tpe"], "--samplers names tpe twice"),
    (["--samplers", "tpe,gpp"], "did you mean 'gp'?"),
    (["--samplers", "tpe,,gp"], "unknown sampler ''"),
    (["--repeats", "0"], "--repeats must be 1 or more"),
    (["--repeats", "-2"], "--repeats must be 1 or more"),
    (["--initial", "0"], "--initial must be 1 or more"),
    (["--initial", "31"], "lower --initial"),
    (["--seconds", "0"], "--seconds must be greater than 0"),
    (["--seconds", "nan"], "--seconds must be greater than 0"),
    (["--seconds", "-inf"], "--seconds must be greater than 0"),
    (["--trials", "0"], "greater than or equal to 1"),
    (["--trials", "-4"], "greater than or equal to 1"),
    (["--name", "x" * 60], "cannot be used"),
    (["--name", "../x"], "the comparison name '../x' cannot be used"),
    (["--samplers", "grid,tpe", "--set", "space.dropout={low: 0, high: 0.5}"], "the grid sampler needs points"),
    (["one", "two"], "there is no storage"),
    (["one", "two", "--trials", "3"], "leave it out"),
    (["nothing.yaml"], "no study file 'nothing.yaml'"),
    ([""], "is a folder, not a study file"),
    (["x" * 300], "cannot be read: File name too long"),
]
for arguments, words in COMPARE:
    case("compare", " ".join(arguments)[:40], ["compare", *arguments], words, 1 if words == "there is no storage" else 2)

OTHERS = [
    (["rnu"], "did you mean 'run'?", 2),
    (["--verbose"], "No such option", 2),
    (["list", "extra"], "unexpected extra argument", 2),
    (["list", "--storage", "://"], "is not a storage URL", 2),
    (["list", "--storage", "mysql://u:secret@h:port/d"], "is not a storage URL", 2),
    (["list", "--storage", "oracle+nothing://h/d"], "a study is kept in SQLite", 2),
    (["list", "--storage", ":memory:"], "would be lost at the end", 2),
    (["list", "--storage", "a\0b.db"], "cannot be", 2),
    (["list", "--storage", "x" * 300], "File name too long", 1),
    (["list", "--storage", ""], "there is no storage", 1),
    (["run", "--storage", "x" * 300], "File name too long", 1),
    (["run", "--storage", "/proc/hpsearch/x.db"], "cannot be written", 1),
    (["run", "--tracking-uri", "ftp://host/x"], "use sqlite:///mlflow.db", 2),
    (["run", "--tracking-uri", "mlruns"], "use sqlite:///mlflow.db", 2),
    (["run", "--tracking-uri", "file:///tmp/x"], "use sqlite:///mlflow.db", 2),
    (["run", "--tracking-uri", "sqlite"], "use sqlite:///mlflow.db", 2),
    (["sync", "--tracking-uri", "javascript://x"], "use sqlite:///mlflow.db", 2),
    (["show", "x"], "there is no storage", 1),
    (["best"], "there is no storage", 1),
    (["report", "--format", "pdf"], "'pdf' is not one of", 2),
    (["report", "--format", "json", "--page", "study"], "leave it out", 2),
    (["report", "-o", "."], "is a directory", 2),
    (["report", "--trial", "one"], "'one' is not a valid integer", 2),
    (["report"], "there is no storage", 1),
    (["export"], "Missing option '-o'", 2),
    (["export", "-o", "out"], "there is no storage", 1),
    (["export", "-o", "out", "--register", "a/b"], "the model name 'a/b' cannot be used", 2),
    (["export", "-o", "out", "--register", ""], "the model name '' cannot be used", 2),
    (["test"], "there is no storage", 1),
    (["sync"], "there is no storage", 1),
    (["predict"], "Missing argument 'FOLDER'", 2),
    (["predict", "nowhere", "a.png"], "'nowhere' does not exist", 2),
    (["predict", ".", "a.png"], "holds no exported model", 2),
    (["predict", ".", "a.png", "--top", "0"], "a number of classes from 1", 2),
    (["check"], "Missing argument 'DATA'", 2),
    (["check", ""], "data: ", 2),
    (["check", "nowhere"], "there is no data 'nowhere'", 2),
    (["check", "CIFAR11"], "did you mean 'cifar10'?", 2),
    (["check", "no.module:function"], "importing 'no.module' failed", 2),
    (["check", "os:nothing"], "os has no function 'nothing'", 2),
    (["check", "os:getcwd"], "os:getcwd cannot be read", 2),
    (["check", "x" * 100_000], "cannot be used as data", 2),
    (["check", "a\0b"], r"data: 'a\x00b' holds a control character (\x00)", 2),
    (["check", "~nobody-of-this-name/x"], "cannot be used as data", 2),
    (["check", "https://host/data.zip"], "there is no data", 2),
    (["check", "nothing.yaml"], "no study file", 2),
    (["model", "resnet5O"], "did you mean 'resnet50'?", 2),
    (["model", "resnet18", "--size", "-3"], "preprocess.size is a number of pixels", 2),
    (["model", "vit_b_32", "--size", "33"], "change preprocess.size", 2),
    (["model", "os:getcwd"], "is called with num_classes", 2),
    (["example", "x" * 300], "File name too long", 1),
    (["example", "/proc/x"], "cannot be", 1),
    (["ui"], "there is no MLflow store", 2),
    (["ui", "--port", "many"], "'many' is not a valid integer", 2),
    (["ui", "--tracking-uri", "http://host:1"], "open that address in a browser", 1),
]
for arguments, words, code in OTHERS:
    case("commands", " ".join(arguments)[:40], arguments, words, code)

# ---------------------------------------------------------------- --set

SETTINGS = [
    ("trials", "--set takes KEY=VALUE"),
    ("", "--set takes KEY=VALUE"),
    ("=1", "--set takes KEY=VALUE"),
    (".=1", "--set takes KEY=VALUE"),
    ("a.b.c.d=1", "--set takes KEY=VALUE"),
    ("smapler=tpe", "did you mean 'sampler'?"),
    ("trials=yes", "must be a number, got true"),
    ("trials=", "trials: "),
    ("trials=[1]", "trials: "),
    ("trials=[1", "is not YAML"),
    ("trials=*x", "aliases"),
    ("trials=!!python/name:os.system x", "is not allowed; use plain values"),
    ("trials={a: 1, a: 2}", "stands twice"),
    ("seed=1:30:61:99999999", "seed: "),
    ("space=1", "space: input should be a valid dictionary"),
    ("space=[dropout]", "space: input should be a valid dictionary"),
    ("space.droput=0.1", "did you mean 'dropout'?"),
    ("space.dropout=abc", "space.dropout"),
    ("space.dropout.hgih=1", "did you mean 'high'?"),
    ("space.dropout.low=x", "space.dropout.low"),
    ("recipe=1", "recipe: input should be a valid dictionary"),
    ("recipe.momentun=0.9", "did you mean 'momentum'?"),
    ("split.val=2.5", "split.val: must be a share"),
    ("split=1", "split: "),
    ("pruner.warmup=2", "pruner.warmup: input should be less than or equal to 1"),
    ("pruner=no", "must be the name of a pruner, got False"),
    ("preprocess.size=7", "greater than or equal to 8"),
    ("preprocess.mean=[1, 2]", "mean takes 1 value (gray) or 3"),
    ("preprocess={size: 64, resize: 32}", "resize 32 is smaller than size 64"),
    ("name=../x", "cannot be used"),
    ("name=1", "name: input should be a valid string"),
    ("warm_start=[x]", "must be the name of a study in the same storage"),
    ("warm_start.top=0", "warm_start"),
    ("weights=[a]", "weights: input should be a valid string"),
    ("model=5", "model: input should be a valid string"),
    ("data=5", "data: input should be a valid string"),
    ("portfolio=2", "portfolio: "),
    ("bad_files=-1", "bad_files: "),
    ("precision=fp8", "precision: "),
    ("threads=0", "threads: input should be greater than or equal to 1"),
    ("trials_per_device=65", "trials_per_device must be 'auto' or 1 to 64"),
    ("augment_views=-1", "augment_views: "),
    ("trials=" + "[" * 3000, "nested deeper than 20 levels"),
    ("trials=" + "1" * 5000, "does not fit its tag or is too long"),
    ("trials=\0", "is not YAML"),
    ('data="a\\ud800"', "half a character"),
]
for setting, words in SETTINGS:
    case("--set", setting[:40], ["run", "--set", setting], words)

# ---------------------------------------------------------------- spaces

SPACES = [
    ("dropout: {low: 0.5, high: 0.1}", "low 0.5 is greater than high 0.1; swap them"),
    ("weight_decay: {low: 0, high: 1, log: true}", "a log scale needs low > 0"),
    ("dropout: {low: -0.1, high: 0.1}", "space.dropout.low"),
    ("dropout: {low: 0, high: 1.5}", "space.dropout.high"),
    ("learning_rate: {low: .nan, high: 1}", "space.learning_rate.low"),
    ("learning_rate: {low: 1e-4, high: .inf}", "space.learning_rate.high"),
    ("learning_rate: {low: 1e-4, high: 1e400}", "space.learning_rate.high"),
    ("learning_rate: {low: 1e-4}", "needs both low and high"),
    ("learning_rate: {}", "takes a value, or choices, or low and high; got nothing"),
    ("learning_rate: []", "must be a list of at least one value"),
    ("learning_rate: [1e-3, 1e-3]", "holds a value twice"),
    ("learning_rate: [1e-3, 0.001]", "holds a value twice"),
    ("learning_rate: [a]", "space.learning_rate"),
    ("learning_rate: {choices: 1e-3}", "must be a list"),
    ("learning_rate: {choices: [1e-3], low: 0}", "takes a value, or choices, or low and high"),
    ("learning_rate: {value: 1e-3, log: true}", "space.learning_rate.log cannot go with value"),
    ("learning_rate: {low: 1e-4, high: 1e-1, log: maybe}", "log must be true or false"),
    ("learning_rate: {low: 1e-4, high: 1e-1, default: 1}", "lies outside"),
    ("learning_rate: {choices: [1e-3, 1e-2], default: 1e-1}", "is not among the choices"),
    ("learning_rate: {low: 1e-4, high: 1e-1, grid: [1]}", "space.learning_rate.grid"),
    ("learning_rate: {low: 1e-4, high: 1e-1, grid: [1e-3, 1e-3]}", "space.learning_rate.grid"),
    ("learning_rate: {low: 1e-4, high: 1e-1, grid: -1}", "space.learning_rate.grid"),
    ("learning_rate: {low: 1e-4, high: 1e-1, grid: 1e12}", "space.learning_rate.grid"),
    ("learning_rate: {low: 1e-4, high: 1e-1, grid: 1000000000}", "space.learning_rate.grid"),
    ("learning_rate: {low: 1e-4, high: 1e-1, grid: x}", "space.learning_rate.grid"),
    ("learning_rate: ~", "space.learning_rate"),
    ("learning_rate: yes", "space.learning_rate"),
    ("epochs: 1.5", "space.epochs"),
    ("epochs: 0", "space.epochs"),
    ("epochs: {low: 1, high: 1e30}", "space.epochs.high"),
    ("batch_size: {low: 1.5, high: 4}", "space.batch_size.low"),
    ("frozen_layers: -1", "space.frozen_layers"),
    ("frozen_layers: some", "space.frozen_layers"),
    ("optimizer: [adamm]", "did you mean 'adam"),
    ("optimizer: {low: 1, high: 2}", "give choices instead of low and high"),
    ("learnig_rate: 1e-3", "did you mean 'learning_rate'?"),
    ("? [a]\n: 1", "a key must be a plain word"),
    ("dropout: {low: 0, high: 0.5, when: {optimiser: [sgd], nothing: [1]}}", "dropout.when"),
    ("dropout: {low: 0, high: 0.5, when: {}}", "must name other hyperparameters"),
    ("dropout: {low: 0, high: 0.5, when: {optimizer: []}}", "must list at least one value"),
    ("dropout: {low: 0, high: 0.5, when: {learning_rate: [1e-3]}}", "conditions go by choices"),
    ("dropout: {low: 0, high: 0.5, when: {dropout: [0.1]}}", "circle"),
    ("model: [glyphnet, glyphnet]", "holds a value twice"),
    ("model: [glyphnet, resnet5O]", "did you mean 'resnet50'?"),
    ("model: []", "must be a list of at least one value"),
    ("model: {low: 1, high: 2}", "space.model"),
]
for space, words in SPACES:
    text = "space:\n  " + space.replace("\n", "\n  ") + "\n"
    case("space", space[:50].replace("\n", " "), ["run", "my.yaml"], words, files={"my.yaml": text})
case("space", "a grid of too many points", ["run", "my.yaml"], "more than 1,000,000", files={
    "my.yaml": "sampler: grid\nspace:\n" + "".join(
        f"  {name}: {{low: 0.1, high: 0.5, grid: 200}}\n" for name in ("learning_rate", "weight_decay", "dropout"))
})  # fmt: skip
case("space", "a grid without points", ["run", "my.yaml"], "add `grid: [...]`", files={
    "my.yaml": "sampler: grid\nspace: {dropout: {low: 0, high: 0.5}}"})  # fmt: skip
case("space", "searched and fixed", ["run", "my.yaml"], "is both searched and fixed", files={
    "my.yaml": "space: {dropout: 0.1}\nrecipe: {dropout: 0.1}"})  # fmt: skip

# ---------------------------------------------------------------- study files

LAUGHS = "a: &a [x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
FILES: list[tuple[str, Content, str]] = [
    ("an unknown key", "smapler: tpe", "did you mean 'sampler'?"),
    ("an alias bomb", LAUGHS, "line 2, column 8: YAML aliases"),
    ("one alias", "name: &x a\ndata: *x", "line 2, column 7: YAML aliases"),
    ("a merge key", "pruner: &x {name: none}\nsplit: {<<: *x}", "line 2, column 13: YAML aliases"),
    ("an endless loop", "space: &x [*x]", "line 1, column 12: YAML aliases"),
    ("a nest of 3,000", "space: " + "[" * 3000 + "]" * 3000, "line 1, column 27: nested deeper than 20 levels"),
    ("a nest of 100,000", "[" * 100_000, "nested deeper than 20 levels"),
    ("a nest by indent", "".join(f"{' ' * i}a:\n" for i in range(25)), "line 20, column 20: nested deeper"),
    ("10 MB", b"a: 1\n" + b"# " * (5 * 2**20), "larger than 256 KiB"),
    ("one byte too many", b"a: 1\n" + b"#" * (MAX_BYTES - 4), "larger than 256 KiB"),
    ("a python object", "name: !!python/object/apply:os.system [touch hacked]", "line 1, column 7: the YAML tag"),
    ("a python tuple", "name: !!python/tuple [a]", "line 1, column 7: the YAML tag"),
    ("bytes", "space: {dropout: !!binary gA==}", "line 1, column 18: the YAML tag '!!binary' is not allowed"),
    ("a tag of one's own", "name: !study x", "line 1, column 7: the YAML tag '!study' is not allowed"),
    ("a duplicate key", "trials: 1\nseed: 2\ntrials: 3", "line 3, column 1: the key 'trials' stands twice; keep one"),
    ("a duplicate hyperparameter", "space:\n  dropout: 0\n  dropout: 1", "line 3, column 3: the key 'dropout' stands twice"),
    ("a tab", "space:\n\tdropout: 1", "line 2, column 1"),
    ("an open bracket", "space: [1", "is not YAML: line 1"),
    ("an open quote", "name: 'x", "is not YAML: line 1"),
    ("two colons", "name: a: b", "line 1, column 8"),
    ("two documents", "name: a\n---\nname: b", "line 2, column 1"),
    ("NUL", b"name: \0", "unacceptable character"),
    ("no UTF-8", b"name: \xff", "not a text file in UTF-8"),
    ("UTF-16", "name: a".encode("utf-16"), "not a text file in UTF-8"),
    ("half a character", 'name: "\\ud800"', "line 1, column 7: half a character"),
    ("an escape beyond Unicode", 'name: "\\UFFFFFFFF"', "use plain values"),
    ("an int that is none", "trials: !!int x", "line 1, column 9: 'x' does not fit its tag"),
    ("a date that is none", "name: !!timestamp 99", "line 1, column 7: '99' does not fit its tag"),
    ("a date out of range", "name: 2026-99-99", "line 1, column 7: '2026-99-99' does not fit"),
    ("an image", b"\x89PNG\r\n\x1a\n\0\0", "not a text file in UTF-8"),
    ("a list", "[a, b]", "must hold keys such as `sampler: tpe`, not a list"),
    ("a word", "tpe", "not a str"),
    ("a number", "5", "not a int"),
    ("a web page", "<!DOCTYPE html><html></html>", "not a str"),
    ("JSON that is cut off", '{"name": "a",', "is not YAML: line 1"),
    ("no for a sampler", "sampler: no", "must be the name of a sampler, got False"),
    ("010 trials of text", "trials: '010x'", "trials: "),
    ("a sexagesimal seed", "seed: 99999999:59", "seed: input should be less than 2147483648"),
    ("1e-3 trials", "trials: 1e-3", "trials: "),
    ("trials without end", "trials: .inf", "trials: "),
    ("a number of 5,000 digits", "trials: " + "9" * 5000, "line 1, column 9: '9999"),
    ("a name that climbs", "name: ../../x", "cannot be used"),
    ("a name with NUL", 'name: "a\\0b"', "cannot be used"),
    ("a warm start that climbs", "warm_start: ../x", "warm_start.study: the study name '../x' cannot be used"),
    ("a warm start without a study", "warm_start: {top: 3}", "warm_start.study: field required"),
    ("an unknown key below", "pruner: {nmae: median}", "unknown key 'pruner.nmae': did you mean 'name'?"),
    ("several things at once", "smapler: tpe\ntrials: 0", "trials: input should be greater than or equal to 1"),
    ("a huge key", f"{'k' * 50_000}: 1", "is not YAML: line 1"),
    ("4,000 keys", "".join(f"k{i}: 1\n" for i in range(4000)), "and 3,980 more"),
    ("20,000 keys", "".join(f"k{i}: 1\n" for i in range(20_000)), "more than 10,000 keys and values"),
    ("a key with an escape", '"\\e[2J": 1', r"unknown key '\x1b[2J'"),
]
for name, content, words in FILES:
    case("study file", name, ["run", "my.yaml"], words, files={"my.yaml": content})
case("study file", "a folder", ["run", "my.yaml"], "is a folder, not a study file", files={"my.yaml": Path.mkdir})
case("study file", "a named pipe", ["run", "my.yaml"], "is not a file", files={"my.yaml": os.mkfifo})
case("study file", "a link to nothing", ["run", "my.yaml"], "no study file", files={"my.yaml": lambda path: path.symlink_to("nothing")})
case("study file", "a link to itself", ["run", "my.yaml"], "cannot be read", files={"my.yaml": lambda path: path.symlink_to("my.yaml")})
case("study file", "a name of 300 characters", ["run", "x" * 300], "File name too long")
case("study file", "no name", ["run", ""], "is a folder, not a study file")
case("study file", "a device that never ends", ["run", "/dev/zero"], "is not a file")

# ---------------------------------------------------------------- images


@functools.cache
def png(seed: int = 0, side: int = 24, mode: str = "RGB", kind: str = "PNG") -> bytes:
    """An image of noise."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def declared(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photos(*classes: str, each: int = 4) -> dict[str, Content]:
    """Sound images of some classes."""
    return {f"photos/{name}/{i}.png": png(100 * n + i) for n, name in enumerate(classes) for i in range(each)}


def moved(files: Mapping[str, Content], to: str, at: str = "photos") -> dict[str, Content]:
    """The same files elsewhere."""
    return {name.replace(at, to): content for name, content in files.items()}


DATA = ["run", "--data", "photos", "--model", "glyphnet", "--no-tracking", "--trials", "1"]
JPEG = png(1, 64, kind="JPEG")
IMAGES: list[tuple[str, Content, str]] = [
    ("zero bytes", b"", "bad.png: empty file"),
    ("a web page", b"<!DOCTYPE html><html>404</html>", "bad.png: not an image"),
    ("random bytes", np.random.default_rng(0).bytes(5000), "bad.png: not an image"),
    ("text", b"a cat", "bad.png: not an image"),
    ("a PNG cut in half", png(2, 64)[:4000], "bad.png: truncated"),
    ("a JPEG cut in half", JPEG[: len(JPEG) // 2], "bad.png: truncated"),
    ("a signature alone", b"\x89PNG\r\n\x1a\n", "bad.png: "),
    ("a PNG whose header is damaged", png(2, 64)[:20] + b"\xff" + png(2, 64)[21:], "bad.png: "),
    ("a bomb by its header", declared(30_000, 30_000), "bad.png: 900 megapixels, more than 100"),
    ("the largest header", declared(2**31 - 1, 2**31 - 1), "bad.png: "),
    ("a header without pixels", declared(0, 10), "bad.png: "),
    ("a GIF bomb", b"GIF89a\xff\xff\xff\xff\0\0\0;", "bad.png: "),
    ("a Git LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "bad.png: a Git LFS pointer, run git lfs pull"),
    ("SVG", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "bad.png: SVG cannot be read; convert to PNG"),
    ("HEIC", b"\0\0\0\x18ftypheic\0\0\0\0", "bad.png: HEIC cannot be read; convert to JPEG"),
    ("PSD", b"8BPS\0\1" + b"\0" * 40, "bad.png: PSD cannot be read"),
    ("JPEG XL", b"\xff\x0a\0\0", "bad.png: JPEG XL cannot be read"),
    ("PostScript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "bad.png: EPS cannot be read"),
    ("float pixels", saved(Image.fromarray(np.ones((20, 20), np.float32)), "TIFF"), "bad.png: 32-bit float gray TIFF cannot be read"),
    ("32-bit integers", saved(Image.fromarray(np.full((20, 20), 2**20, np.int32)), "TIFF"), "bad.png: 32-bit integer pixels"),
    ("a named pipe", os.mkfifo, "bad.png: not a file"),
    ("a link to nothing", lambda path: path.symlink_to("nothing.png"), "bad.png: not found"),
    ("a link to itself", lambda path: path.symlink_to("bad.png"), "bad.png: "),
    ("a link to a device", lambda path: path.symlink_to("/dev/zero"), "bad.png: not a file"),
    ("a link to a web page outside", lambda path: path.symlink_to("../../../outside/page.html"), "bad.png: not an image"),
    ("a zip", b"PK\3\4" + b"\0" * 100, "bad.png: not an image"),
    ("300 MB of nothing", lambda path: os.truncate(path, 300 * 2**20) if path.touch() is None else None, "bad.png: larger than 256 MB"),
]
for name, content, words in IMAGES:
    files = {**photos("cat", "dog"), "photos/cat/bad.png": content}
    case("image", name, DATA, words, files=files, kept=True)

# ---------------------------------------------------------------- folders

FOLDERS: list[tuple[str, dict[str, Content], str]] = [
    ("no images", {"photos": Path.mkdir}, "photos has no images"),
    ("no class folders", {f"photos/{i}.png": png(i) for i in range(4)}, "has 4 images and no class folders"),
    ("one class", photos("cat"), "one class with images ('cat')"),
    ("one class, the other empty", {**photos("cat"), "photos/dog": Path.mkdir}, "one class with images ('cat')"),
    ("classes a folder too deep", moved(photos("cat", "dog"), "photos/all"), "Did you mean photos/all?"),
    ("hidden classes", moved(photos("cat", "dog"), "photos/.", "photos/"), "photos has no images"),
    ("only .git", {"photos/.git/a.png": png(1), "photos/.svn/b.png": png(2)}, "photos has no images"),
    ("one image each", photos("cat", "dog", each=1), "too few"),
    ("one image of one", {**photos("cat"), "photos/dog/0.png": png(77)}, "'dog'"),
    ("one picture, many times", {f"photos/{c}/{i}.png": png(5) for c in ("cat", "dog") for i in range(5)}, "cop"),
    ("train without a class of val", {
        **moved(photos("cat", "dog"), "photos/train"),
        **moved(photos("cat", "bird"), "photos/val"),
    }, "has no training images of 'bird'"),
    ("train and val of different case", {
        **moved(photos("cat", "dog"), "photos/train"),
        **moved(photos("cat", "Dog"), "photos/val"),
    }, "Is 'Dog' the same class as 'dog'?"),
    ("an empty train", {
        "photos/train": Path.mkdir,
        **moved(photos("cat", "dog"), "photos/val"),
    }, "has no training images of 'cat', 'dog'"),
    ("loose images in train", {
        **{f"photos/train/{i}.png": png(i) for i in range(4)},
        **moved(photos("cat", "dog"), "photos/val"),
    }, "no class folders"),
    ("splits in one class only", {
        **{f"photos/cat/{s}/{i}.png": png(i + 10 * k) for k, s in enumerate(("train", "val")) for i in range(4)},
        **{f"photos/dog/{i}.png": png(50 + i) for i in range(4)},
    }, "arrange every class alike"),
    ("val is a link to train", {
        **moved(photos("cat", "dog"), "photos/train"),
        "photos/val": lambda path: path.symlink_to("train"),
    }, "learned and measured at once: remove the link"),
    ("a class that is a link to its parent", {**photos("cat"), "photos/dog": lambda path: path.symlink_to("..")}, "one class with images"),
    ("a link in circles", {"photos/cat/0.png": png(1), "photos/dog": lambda path: path.symlink_to("dog")}, "one class with images"),
    ("only raw files", {f"photos/{c}/{i}.cr2": b"II*\0....CR" for c in ("cat", "dog") for i in range(4)}, "can be used"),
    ("only text", {f"photos/{c}/{i}.txt": b"x" for c in ("cat", "dog") for i in range(4)}, "has no images"),
    ("a name with an escape", {"photos/\x1b[2J/0.png": png(1)}, r"one class with images ('\x1b[2J')"),
    ("a name with a line break", {"photos/a\nb/0.png": png(1)}, r"one class with images ('a\nb')"),
    ("half of the files are bad", {
        **photos("cat", "dog"), **{f"photos/cat/bad{i}.jpg": b"<html>" for i in range(8)}
    }, "cannot be used"),
]  # fmt: skip
for name, files, words in FOLDERS:
    case("folder", name, DATA, words, files=files, kept=True)
case("folder", "an archive", ["check", "a.zip"], "is an archive: unpack it", files={"a.zip": b"PK\3\4"})
case("folder", "one image", ["check", "a.png"], "is one image", files={"a.png": png(1)})
case("folder", "a text file", ["check", "a.txt"], "is neither a folder nor a table", files={"a.txt": b"x"})
case("folder", "a named pipe", ["check", "pipe"], "is neither a folder nor a table", files={"pipe": os.mkfifo})
case("folder", "a pipe called a table", ["check", "pipe.csv"], "is neither a folder nor a table", files={"pipe.csv": os.mkfifo})
case("folder", "a device called data", ["check", "/dev/zero"], "is neither a folder nor a table")

# ---------------------------------------------------------------- manifests

ROWS = "path,label\n" + "".join(f"p/{i}.png,{'cat' if i % 2 else 'dog'}\n" for i in range(8))
MANIFESTS: list[tuple[str, str, Content, str]] = [
    ("zero bytes", "t.csv", b"", "has no column 'path': found none"),
    ("a header alone", "t.csv", "path,label\n", "has columns but no images"),
    ("no header", "t.csv", "p/0.png,cat\np/1.png,dog\n", "has no column 'path': found 'p/0.png'"),
    ("no label", "t.csv", "path,lable\np/0.png,cat\n", "did you mean 'label'?"),
    ("no path", "t.csv", "pth,label\np/0.png,cat\n", "has no column 'path'"),
    ("an empty label", "t.csv", "path,label\np/0.png,\n", "line 2: the label is empty"),
    ("an empty path", "t.csv", "path,label\n,cat\n", "line 2: the path is empty"),
    ("a short line", "t.csv", "path,label\np/0.png\n", "line 2: the label is empty"),
    ("files that are not there", "t.csv", "path,label\nq/0.png,cat\nq/1.png,dog\n", "none of the 2 files"),
    ("one class", "t.csv", "path,label\np/0.png,cat\np/1.png,cat\n", "one class with images ('cat')"),
    ("two labels of one file", "t.csv", "path,label\np/0.png,cat\n./p/0.png,dog\n", "remove one of the lines"),
    ("an unknown split", "t.csv", "path,label,split\np/0.png,cat,trian\n", "'trian' is no split"),
    ("no training images", "t.csv", "path,label,split\np/0.png,cat,val\np/1.png,dog,val\n", "has no training images"),
    ("URLs", "t.csv", "path,label\nhttps://host/a.png,cat\n", "is a URL, and URLs are not read"),
    ("a null byte", "t.csv", b"path,label\na\0b.png,cat\n", "null byte"),
    ("no UTF-8", "t.csv", b"path,label\n\xff.png,cat\n", "is not UTF-8 text"),
    ("UTF-16", "t.csv", ROWS.encode("utf-16"), "is not UTF-8 text"),
    ("a web page", "t.csv", "<!DOCTYPE html>\n<html>\n", "has no column 'path'"),
    ("an image", "t.csv", png(1), "is not UTF-8 text"),
    ("an open quote of 200 kB", "t.csv", 'path,label\n"' + "x" * 200_000, "is not a CSV table"),
    ("a path of 100,000 characters", "t.csv", "path,label\n" + "x" * 100_000 + ",cat\n", "none of the 1 files"),
    ("a path out of the folder to a web page", "t.csv", "path,label\n../outside/page.html,cat\n../outside/page2.html,dog\n", "can be used"),
    ("tabs called CSV", "t.tsv", "path label\np/0.png cat\n", "has no column 'path'"),
    ("an empty Parquet", "t.parquet", b"", "is not a Parquet file"),
    ("CSV called Parquet", "t.parquet", ROWS, "is not a Parquet file"),
    ("a damaged Parquet", "t.parquet", b"PAR1" + b"\0" * 100 + b"PAR1", "is not a Parquet file"),
    ("a Parquet of images", "t.parquet", lambda path: parquet(path, {"image": [b"x"], "label": ["cat"]}), "holds images themselves"),
    ("a Parquet of other columns", "t.parquet", lambda path: parquet(path, {"a": [1]}), "has no column 'path'"),
    ("a Parquet of nulls", "t.parquet", lambda path: parquet(path, {"path": [None], "label": ["cat"]}), "the path is empty"),
]


def parquet(path: Path, columns: dict) -> None:
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), path)


for name, file, content, words in MANIFESTS:
    files = {**{f"p/{i}.png": png(i) for i in range(8)}, file: content}
    case("manifest", name, ["run", "--data", file, *DATA[3:]], words, files=files, kept=True)

# ---------------------------------------------------------------- weights


def torch_file(path: Path, content: Callable[[], object], **options) -> None:
    import torch

    torch.save(content(), path, **options)


class Canary:
    """What would leave a file behind if a pickle of it were loaded."""

    def __reduce__(self) -> tuple:
        return (os.system, ("touch hacked",))


def traced(path: Path) -> None:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is on its way out
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))


def tensors(path: Path, nan: bool = False, rename: str = "", shape: bool = False) -> None:
    """The embedded weights, spoiled."""
    import torch
    from safetensors.torch import load_file, save_file

    from hpsearch.finetune.pretrained import GLYPHNET_FILE

    state = {name + rename: tensor for name, tensor in load_file(GLYPHNET_FILE).items()}
    if nan:
        first = next(name for name, tensor in state.items() if tensor.is_floating_point())
        state[first] = torch.full_like(state[first], float("nan"))
    if shape:
        state = {name: torch.zeros(3, *tensor.shape) for name, tensor in state.items()}
    save_file(state, path)


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Canary()))
        file.writestr("archive/version", "3")


HEAD = json.dumps({"a": {"dtype": "F32", "shape": [10], "data_offsets": [0, 10**12]}}).encode()
WEIGHTS: list[tuple[str, str, Content, str]] = [
    ("zero bytes", "w.safetensors", b"", "is empty; fetch it again"),
    ("zero bytes called pt", "w.pt", b"", "is empty; fetch it again"),
    ("a web page", "w.safetensors", b"<!DOCTYPE html><html></html>", "is a web page, not the weights"),
    ("a web page called pth", "w.pth", b"<!DOCTYPE html><html></html>", "is a web page, not the weights"),
    ("a Git LFS pointer", "w.pt", b"version https://git-lfs.github.com/spec/v1\n", "run git lfs pull"),
    ("text", "w.bin", b"hello there", "is a text file that begins 'hello there'"),
    ("random bytes", "w.safetensors", np.random.default_rng(1).bytes(3000), "is damaged or no weights file"),
    ("random bytes called ckpt", "w.ckpt", np.random.default_rng(2).bytes(3000), "is damaged or no weights file"),
    ("a header of 2^63 bytes", "w.safetensors", b"\xff" * 7 + b"\x7f" + b"{}", "is damaged or no weights file"),
    ("tensors beyond the end", "w.safetensors", struct.pack("<Q", len(HEAD)) + HEAD, "is damaged or no weights file"),
    ("no tensors", "w.safetensors", struct.pack("<Q", 2) + b"{}", "holds no state dict"),
    ("a list", "w.pt", lambda path: torch_file(path, lambda: [1, 2]), "holds no state dict"),
    ("an empty dict", "w.pt", lambda path: torch_file(path, dict), "holds no state dict"),
    ("code in a pickle", "w.pkl.pt", lambda path: path.write_bytes(pickle.dumps(Canary())), "needs code to load"),
    ("code in protocol 2", "w.pth", lambda path: path.write_bytes(pickle.dumps(Canary(), 2)), "needs code to load"),
    ("code in protocol 0", "w.ckpt", lambda path: path.write_bytes(pickle.dumps(Canary(), 0)), "w.ckpt"),
    ("code in a torch file", "w.bin", lambda path: torch_file(path, lambda: {"a": Canary()}), "needs code to load"),
    (
        "code in an old torch file",
        "w.pt",
        lambda path: torch_file(path, Canary, _use_new_zipfile_serialization=False),
        "needs code to load",
    ),
    ("code in an archive", "w.pt", archive, "w.pt"),
    ("TorchScript", "w.pt", traced, "needs code to load"),
    ("NaN", "w.safetensors", functools.partial(tensors, nan=True), "has NaN or infinity"),
    ("another model's names", "w.safetensors", functools.partial(tensors, rename="_of_another"), "does not fit this model"),
    ("other shapes", "w.safetensors", functools.partial(tensors, shape=True), "does not fit this model"),
    ("a folder", "w.pt", Path.mkdir, "there is no weights file"),
    ("a named pipe", "w.pt", os.mkfifo, "there is no weights file"),
    ("a link to nothing", "w.pt", lambda path: path.symlink_to("nothing.pt"), "there is no weights file"),
    ("a link to a device", "w.pt", lambda path: path.symlink_to("/dev/zero"), "there is no weights file"),
]
for name, file, content, words in WEIGHTS:
    case("weights", name, ["run", "--weights", file, "--no-tracking", "--trials", "1"], words, files={file: content}, kept=True)

# ---------------------------------------------------------------- storages


def database(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.executescript(";".join(statements))


def torn(path: Path) -> None:
    """A database whose first table page is overwritten."""
    database(path, "CREATE TABLE studies (study_id INTEGER, study_name TEXT)", "CREATE TABLE trials (a)")
    raw = bytearray(path.read_bytes())
    raw[100:300] = b"\xff" * 200
    path.write_bytes(raw)


STORAGES: list[tuple[str, Content, str]] = [
    ("text", b"hello " * 100, "is not a readable SQLite file"),
    ("a PNG", png(1), "is not a readable SQLite file"),
    ("a header alone", b"SQLite format 3\0", "is not a readable SQLite file"),
    ("a torn page", torn, "is not a readable SQLite file"),
    ("MLflow's", lambda path: database(path, "CREATE TABLE experiments (a)", "CREATE TABLE runs (a)"), "is MLflow's file"),
    ("another program's", lambda path: database(path, "CREATE TABLE customers (a)"), "holds other tables (customers"),
    ("another program's studies", lambda path: database(path, "CREATE TABLE studies (name)"), "holds other tables (studies"),
    ("a folder", Path.mkdir, "is not a file: name another with --storage"),
    ("a named pipe", os.mkfifo, "is not a file: name another with --storage"),
    ("a link to itself", lambda path: path.symlink_to(path.name), "s.db"),
]
for name, content, words in STORAGES:
    for command in (["run", "--no-tracking"], ["list"]):
        case("storage", f"{command[0]}: {name}", [*command, "--storage", "s.db"], words, 1, files={"s.db": content})
case("storage", "below a file", ["run", "--storage", "file/s.db"], "cannot be written", 1, files={"file": b""})
case("storage", "a file in the way of runs", ["run", "--no-tracking"], "run hpsearch where you may write", 1, files={"hpsearch-runs": b"x"})
case("storage", "an empty file, listed", ["list", "--storage", "s.db"], "holds no study yet", 1, files={"s.db": b""})

# ---------------------------------------------------------------- pages and exported folders

EXPORTS: list[tuple[str, dict[str, Content], str]] = [
    ("an empty config", {"m/config.json": b""}, "the model in m cannot be used"),
    ("a config of text", {"m/config.json": b"hello"}, "the model in m cannot be used"),
    ("a config that is a list", {"m/config.json": b"[]"}, "the model in m cannot be used"),
    ("a config of another program", {"m/config.json": b'{"model_type": "bert"}'}, "the model in m cannot be used"),
    ("a config that is deep", {"m/config.json": b"[" * 100_000}, "the model in m cannot be used"),
    ("a config that is binary", {"m/config.json": b"\xff\xfe"}, "the model in m cannot be used"),
]
for name, files, words in EXPORTS:
    case("predict", name, ["predict", "m", "a.png"], words, files={**files, "a.png": png(1)})
