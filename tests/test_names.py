"""Names that strangers choose, at every door that takes the name of a study, a comparison or a registered model."""

from __future__ import annotations

import os

import click
import optuna
import pytest
from click.testing import CliRunner

from hpsearch.cli import main
from hpsearch.errors import FixInput, NotFound
from hpsearch.names import check_name
from hpsearch.places import Place, read
from hpsearch.search.records import open_study
from hpsearch.search.store import open_storage, storage_url
from hpsearch.spec import parse_spec
from tests.support.commands import HPSEARCH, run_command
from tests.test_bad_input import tree

CLIMBING = [
    *("..", "../x", "../../x", "../../../../tmp/x", "a/../../x", "a/..", "/", "/x", "/etc/passwd", "//host/x", "./x", "x/", "a/b", "a//b"),
    *("..\\x", "..\\..\\x", "C:\\x", "C:x", "\\\\host\\x", "a\\b", "~", "~/x", "~root", "~root/x", "file:///etc/passwd", "http://host/x"),
    *("%2e%2e%2fx", "%2e", "%00", "..%2fx", "..%c0%afx", "....//x", "..;/x", ". .", " ..", ".. ", "...", "a..b", "x..", "..x"),
    *("/dev/null", "/dev/zero", "/proc/self/environ", "/proc/self/fd/1", "/tmp/x", "-/../x", "a/../../../etc/cron.d/x"),
]
SHELL = [
    *("-rf", "--help", "-", "--", "-o", "--storage=x", "$(x)", "`x`", "${HOME}", "$HOME", "a;b", "a&b", "a&&b", "a|b", "a>b", "*"),
    *("?", "[a]", "{a,b}", "!x", "#x", "a#b", "'", '"', "a'b", 'a"b', "a`b", "a=b", "a:b", "a,b", "a@b", "a+b", "a^b", "a(b", "a)b", "@x"),
    *("=1+1", "+x", "{{7*7}}", "{% x %}", "%s", "%n", "%(x)s", "{0}", "{x.__class__}", "'; DROP TABLE studies; --", "' OR 1=1 --", "a\\'b"),
    *("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "&lt;", "javascript:x", "]]>", "<!--", "-->", "__proto__", "__class__"),
]
BLANK = [
    *("", " ", "  ", " a", "a ", "a b", "My Study", "\t", "a\tb", "\n", "a\n", "\na", "a\nb", "\r", "a\rb", "a\r\nb", "\v", "\f"),
    *("\u00a0", "a\u00a0b", "\u2028", "a\u2029b", "\u200b", "a\u200bb", "\ufeff", "\ufeffa", "\u180e", "\u2060"),
]
LOOKALIKE = [
    *("é", "ａ", "ａｂｃ", "а", "аbc", "ο", "ⅰ", "①", "１", "a１", "²", "ß", "ı", "K", "ﬁ", "𝐚", "𝓪", "‐", "a‑b", "a–b"),
    *("․․/x", "‥", "…", "∕", "a⁄b", "a／b", "＼", "．．", "e\u0301", "n\u0303x", "\u202eabc", "a\u202eb", "\u2066x", "\u200f", "😀"),
    *("flоwers-tpe", "digіts-tpe", "digits‐tpe", "digits-tpe\u200b", "Digits-tpe", "DIGITS-TPE", "digits-tpé"),
]
BINARY = [
    *("\x01", "\x07", "\x08", "\x1b", "\x1b[2J", "\x1b[31mred", "\x1b]0;x\x07", "a\x1b[1A", "\x7f", "\x80", "\x9b2J", "\udcff", "a\udc80b"),
    *("\ud800", "\udfff", "\ufffd", "\uffff", "\U0010ffff", "a\udcc3\udca9"),
]
RESERVED = [
    "CON",
    "NUL",
    "PRN",
    "AUX",
    "COM1",
    "LPT1",
    "Con",
    "NUL.txt",
    "Thumbs.db",
    ".git",
    ".",
    ".hidden",
    ".ssh",
    "_x",
    "__x__",
    "A",
    "Zz",
]
LONG = [
    "x" * 65,
    "x" * 255,
    "x" * 256,
    "x" * 4096,
    "x" * 100_000,
    "a/" * 5000,
    "é" * 64,
    "😀" * 5000,
    "." * 100,
    "-" * 100,
    "a" * 64 + "\n",
]
NAMES = [*CLIMBING, *SHELL, *BLANK, *LOOKALIKE, *BINARY, *RESERVED, *LONG]

# Parameters with text that is no name: files, folders, data, addresses, numbers, words of a list. All others are taken for names.
NO_NAMES = {
    *("storage", "tracking_uri", "settings", "data", "model", "weights", "output", "folder", "images", "page", "host", "device"),
    *("sampler", "samplers", "pruner", "objective", "confirm", "cv", "workers", "fmt"),
    *("roots", "hosts", "token_file", "mlflow_page"),
}
FILES_TOO = {("run", "study"), ("model", "name")}  # the path or name of a study file, the name of a network


def doors():
    """Every parameter of every command that takes the name of a study, a comparison or a registered model."""
    for command in main.commands.values():
        for parameter in command.params:
            text = isinstance(parameter.type, (click.types.StringParamType, click.Path))
            if text and parameter.name not in NO_NAMES and (command.name, parameter.name) not in FILES_TOO:
                yield command, parameter


PURE = {("run", "name"), ("compare", "name"), ("export", "register")}  # looked at before anything is opened
DOORS = [(command.name, parameter.name) for command, parameter in doors()]


def arguments(command, parameter, name):
    """A command line that puts the name there, and is complete otherwise."""
    given = [command.name]
    for other in command.params:
        if other.required and other is not parameter:
            number = isinstance(other.type, click.IntRange)  # it stands after the name
            given += [other.opts[0], "out"] if isinstance(other, click.Option) else [] if number else ["out"]
    if isinstance(parameter, click.Option):
        return [*given, f"{parameter.opts[-1]}={name}"]
    after = ["1"] * sum(isinstance(other.type, click.IntRange) and other.required for other in command.params)
    return [*given, "--", *(["mine"] if parameter.nargs == -1 else []), name, *after]


@pytest.fixture
def studies(tmp_path, monkeypatch):
    """A working folder with a study that has no trials; a tree around it."""
    work = tmp_path / "around" / "work"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    monkeypatch.setenv("HOME", str(tmp_path / "around"))
    storage = open_storage(storage_url(None, work), create=True)
    open_study(storage, parse_spec({"name": "mine"}))
    storage.engine.dispose()
    return tmp_path


def test_there_are_200_names_none_twice_and_the_doors_that_are_known():
    assert len({*NAMES}) == len(NAMES) >= 200
    known = {("run", "name"), ("run", "warm_start"), ("compare", "studies"), ("compare", "name"), ("export", "register")}
    assert known | {(command, "study") for command in ("show", "best", "report", "export", "test", "sync")} <= {*DOORS}


@pytest.mark.parametrize("name", NAMES, ids=[ascii(name)[1:40] for name in NAMES])
def test_no_hostile_name_is_a_name(name, tmp_path):
    with pytest.raises(FixInput, match="cannot be used: take 1 to 64 of a-z 0-9") as caught:
        check_name(name)
    assert len(str(caught.value)) < 1000
    assert str(caught.value).isprintable()
    with pytest.raises(FixInput):
        Place(tmp_path, "", None).runs(name)
    for values in ({"name": name}, {"warm_start": name}, {"warm_start": {"study": name}}):
        with pytest.raises(FixInput):
            parse_spec(values)


@pytest.mark.parametrize("name", ["a", "0", "digits-tpe", "flowers102-resnet50-tpe-s3", "a.b_c-d", "x" * 64, "con", "a."])
def test_a_good_name_is_a_name(name, tmp_path):
    assert check_name(name) == name
    assert Place(tmp_path, "", None).runs(name).parent == tmp_path / "hpsearch-runs"


@pytest.mark.parametrize(("command", "parameter"), DOORS)
def test_a_hostile_name_is_refused_at_every_door_and_changes_nothing(studies, command, parameter):
    found, what = next((c, p) for c, p in doors() if (c.name, p.name) == (command, parameter))
    before = tree(studies)
    opens = (command, parameter) not in PURE  # the storage each time, which takes a tenth of a second
    for name in NAMES[DOORS.index((command, parameter)) % 8 :: 8] if opens else NAMES:
        result = CliRunner().invoke(main, arguments(found, what, name))
        assert isinstance(result.exception, SystemExit), (name, repr(result.exception))
        assert result.exit_code == 2, (name, result.output[:300])
        assert len(result.output) < 2000, name[:100]
        assert "\x1b" not in result.output
    assert tree(studies) == before


def test_no_hostile_name_is_found_in_a_storage(studies):
    storage = open_storage(storage_url(None, studies / "around" / "work"))
    for name in NAMES:
        with pytest.raises(NotFound) as caught:
            read(storage, name)
        assert len(str(caught.value)) < 200
    storage.engine.dispose()


@pytest.mark.process
@pytest.mark.parametrize("command", ["show", "best", "report", "test", "sync"])
def test_bytes_that_are_no_text_are_a_name_like_others_in_a_real_process(studies, command):
    done = run_command([HPSEARCH, command, b"\xff\xfe/../x"], text=False)
    assert (done.returncode, b"Traceback" in done.stderr) == (2, False), done.stderr
    assert b"\\udcff" in done.stderr


STRANGERS = ["../../evil", "/tmp/hpsearch-evil", "a/b", "\x1b[2Jx", "My Study"]


@pytest.mark.parametrize("name", STRANGERS, ids=ascii)
def test_a_study_that_a_stranger_put_into_the_storage_leads_nowhere(studies, name):
    optuna.create_study(study_name=name, storage=f"sqlite:///{os.getcwd()}/hpsearch.db")
    before = {path: what for path, what in tree(studies).items() if ".db" not in path}
    for given in (["report"], ["report", "-o", "page.html"], ["export", "-o", "out"], ["test"], ["sync"], ["best"], ["compare", "mine"]):
        result = CliRunner().invoke(main, [*given, "--", name])
        assert isinstance(result.exception, SystemExit), (given, repr(result.exception))
        assert result.exit_code == 2, (given, result.output)
    for given in (["list"], ["show", "--", name]):
        result = CliRunner().invoke(main, given)
        assert (result.exit_code, "\x1b" in result.output) == (0, False), result.output
    assert {path: what for path, what in tree(studies).items() if ".db" not in path} == before
