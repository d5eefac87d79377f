"""Bad input of every kind, at every door: hpsearch's own exit code, a message that says what to do, and nothing made."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner

from hpsearch.cli import main
from hpsearch.resources import PACKAGE
from tests.bad_input import CASES, fill, png
from tests.support.commands import HPSEARCH, run_command

pytestmark = pytest.mark.process


KEPT = {"lock", "holder", "data-check.json", "split.npz"}  # in the folder of a study whose data was looked at


def tree(folder):
    """Every path below a folder with what it is: content of small files, size of large ones, targets of links."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            what = os.readlink(path)
        elif stat.S_ISREG(status.st_mode):
            what = path.read_bytes() if status.st_size < 2**20 else status.st_size
        else:
            what = stat.S_IFMT(status.st_mode)
        found[path.relative_to(folder).as_posix()] = what
    return found


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder whose `work` is the working folder, beside somebody else's files."""
    (tmp_path / "work").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "mine.png").write_bytes(png(9))
    for page in ("page.html", "page2.html"):
        (tmp_path / "outside" / page).write_text("<html></html>")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "outside"))
    return tmp_path


def test_there_are_more_than_200_cases_and_none_twice():
    names = [(case.door, case.name) for case in CASES]
    assert len(names) > 300
    assert len({*names}) == len(names)


def test_data_that_is_refused_leaves_neither_a_storage_nor_mlflows(place):
    fill(place / "work", {f"photos/{name}/{i}.png": b"<html>" for name in ("cat", "dog") for i in range(5)})
    before = tree(place)
    run = [HPSEARCH, "run", "--data", "photos", "--model", "resnet18", "--weights", "none"]
    done = run_command(run, env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)})
    assert (done.returncode, "cat/0.png: not an image" in done.stderr) == (2, True), done.stderr
    made = sorted({*tree(place)} - {*before})
    assert [path for path in made if not path.startswith("work/hpsearch-runs")] == []


@pytest.mark.parametrize("case", CASES, ids=[f"{case.door}-{case.name}" for case in CASES])
def test_bad_input_ends_with_its_code_and_its_remedy_and_creates_nothing(place, case):
    fill(place / "work", case.files)
    before = tree(place)
    result = CliRunner().invoke(main, list(case.arguments))
    output = " ".join(result.output.split())
    words, code = case.words, case.code  # or else pytest shows what is in the files
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert "Traceback" not in output
    assert words in output
    assert result.exit_code == code
    made = sorted(path for path, what in tree(place).items() if before.get(path) != what)
    if case.kept:
        made = [path for path in made if not (path.startswith("work/hpsearch-runs") and (path.count("/") < 3 or Path(path).name in KEPT))]
    assert made == []
    assert len(result.output) < 20_000
    assert "\x1b" not in result.output
