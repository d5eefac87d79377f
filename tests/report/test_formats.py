"""The report in other formats, on samples and through the real command: every command line of docs/report.md, in its order."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from proof_samples import opened, shown, stored
from report_samples import FULL, HOSTILE, SPACE, SPEC, data_report, failed, lifelike, record, view

from hpsearch import reporting
from hpsearch.cli import main
from hpsearch.errors import FixInput, FixSetup
from hpsearch.report import formats
from hpsearch.report.figures import FIGURES
from hpsearch.report.landscape import LANDSCAPE
from hpsearch.report.page import DRAWN_WHERE_KNOWN, Plot, load_page, made
from hpsearch.report.tables import StudyView
from hpsearch.types import StoredStudy
from tests.support.commands import HPSEARCH, run_command

ROOT = Path(__file__).parents[2]
BROWSER = next(filter(None, map(shutil.which, formats.BROWSERS)), None)
drawing = pytest.mark.skipif(BROWSER is None, reason="no Chromium: `apt-get install chromium` lets these tests draw images")
STUDIES = {
    "lifelike": lifelike(30),
    "everything": FULL,
    "proven": shown(opened(stored())),
    "failed only": view(failed(0), failed(1, HOSTILE), importance=()),
    "no losses": view(record(0, losses=(float("nan"),)), record(1, losses=(float("inf"), float("nan")))),
    "one trial": replace(FULL, trial=7),
}
HOSTILE_STUDY = view(
    record(0, params={HOSTILE: "b"}),
    failed(1, HOSTILE),
    name=HOSTILE,
    spec=SPEC | {"space": SPACE | {HOSTILE: {"choices": [HOSTILE, "b"], "default": "b"}}},
    importance=((HOSTILE, 1.0),),
    importance_method=HOSTILE + "\ud800",
    notes=(HOSTILE,),
    data=data_report(classes=(HOSTILE, "b")),
)


def size(path: Path) -> tuple[int, int]:
    """Width and height of a PNG."""
    head = path.read_bytes()[:24]
    assert head.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", head[16:24])  # type: ignore[return-value]


def colours(path: Path) -> int:
    """How many colours an image has: an empty one has few."""
    from PIL import Image

    return len(Image.open(path).convert("RGB").resize((550, 300)).getcolors(10**6) or ())


def page_of(study: StudyView) -> str:
    return "study" if study.trial is None else "trial"


# ---------------------------------------------------------------- CSV


@pytest.mark.parametrize("name", STUDIES)
def test_every_figure_and_table_has_its_csv(name: str, tmp_path: Path) -> None:
    study = STUDIES[name]
    written = formats.write_tables(study, tmp_path / "deep" / "tables", page_of(study))
    found = [b for s in made(study, load_page(page_of(study))) for b in s.blocks if getattr(b, "csv", "")]
    assert len(written) == len(found) >= 5
    assert sorted(os.listdir(tmp_path / "deep" / "tables")) == sorted(path.name for path in written)
    for path, block in zip(written, found, strict=True):
        text = path.read_bytes().decode("utf-8")
        assert text == base64.b64decode(block.csv.partition(",")[2]).decode()  # type: ignore[union-attr]
        assert text.splitlines()[0]
        pd.read_csv(path)
    if study.trial is None:
        assert {"history.csv", "trials.csv", "importance.csv"} <= {path.name for path in written}
        assert pd.read_csv(written[0].parent / "trials.csv")["number"].tolist() == [r.number for r in study.records]


def test_hostile_names_are_csv(tmp_path: Path) -> None:
    formats.write_tables(HOSTILE_STUDY, tmp_path, "study")
    assert HOSTILE in pd.read_csv(tmp_path / "trials.csv").columns
    assert HOSTILE in pd.read_csv(tmp_path / "trials.csv")["error"].tolist()
    assert all(re.fullmatch(r"[a-z_-]+\.csv", name) for name in os.listdir(tmp_path))


def test_a_page_without_tables_or_figures_says_so(tmp_path: Path) -> None:
    page = tmp_path / "words.yaml"
    page.write_text("title: Words\nsections: [{show: [policy]}]")
    with pytest.raises(FixInput, match="neither a figure nor a table"):
        formats.write_tables(lifelike(5), tmp_path / "out", page)


# ---------------------------------------------------------------- images


@pytest.mark.process
@drawing
def test_every_figure_is_drawn(tmp_path: Path) -> None:
    study = STUDIES["proven"]
    written = formats.write_images(study, tmp_path / "images", "study")
    names = {name for name in FIGURES if name != "class_counts"} | {name for name, draw in DRAWN_WHERE_KNOWN.items() if draw(study)}
    assert {path.stem for path in written} == names
    assert sorted(os.listdir(tmp_path / "images")) == sorted(path.name for path in written)
    for path in written:
        width, height = size(path)
        assert width == formats.WIDTH * formats.SCALE
        assert height > 500
        assert colours(path) > 40, path.name


@pytest.mark.process
@drawing
def test_hostile_names_are_drawn_as_text(tmp_path: Path) -> None:
    (path,) = [p for p in formats.write_images(HOSTILE_STUDY, tmp_path, "study") if p.stem == "importance"]
    assert colours(path) > 40


@pytest.mark.process
@drawing
def test_a_study_of_failures_alone_is_drawn(tmp_path: Path) -> None:
    assert all(colours(path) > 5 for path in formats.write_images(STUDIES["failed only"], tmp_path, "study"))


def test_without_a_browser_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv(formats.VARIABLE, raising=False)
    with pytest.raises(FixSetup, match=r"none was found: install Chromium .*apt-get install chromium.*HPSEARCH_BROWSER.*--format html"):
        formats.write_images(lifelike(5), tmp_path / "images", "study")
    assert not (tmp_path / "images").exists()
    monkeypatch.setenv(formats.VARIABLE, str(tmp_path / "gone"))
    with pytest.raises(FixSetup, match="HPSEARCH_BROWSER names"):
        formats.write_images(lifelike(5), tmp_path / "images", "study")


@pytest.mark.process
@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo no display >&2; exit 3", "drew nothing (no display)"),
        ("exit 3", "drew nothing (it ended with 3)"),
        ("sleep 60", "drew nothing in 1 s"),
        ("""echo '<pre id="images">{"plot-history": "failed: Error"}</pre>'""", "did not draw 'plot-history' (failed: Error)"),
        ("""echo '<pre id="images">{}</pre>'""", "did not draw 'plot-history' ()"),
    ],
)
def test_a_browser_that_fails_is_an_error_with_its_words(
    script: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser, page = tmp_path / "browser", tmp_path / "one.yaml"
    browser.write_text(f"#!/bin/sh\n{script.replace('sleep', 'exec sleep')}\n")
    browser.chmod(0o755)
    page.write_text("title: One\nsections: [{show: [history]}]")
    monkeypatch.setenv(formats.VARIABLE, str(browser))
    monkeypatch.setattr(formats, "PATIENCE", 1.0 if "sleep" in script else 30.0)
    with pytest.raises(FixSetup, match=re.escape(message)):
        formats.write_images(lifelike(5), tmp_path / "images", page)
    assert os.listdir(tmp_path / "images") == []


def test_what_the_browser_is_given_cannot_leave_its_script() -> None:
    plots = [b for s in made(HOSTILE_STUDY, load_page("study")) for b in s.blocks if isinstance(b, Plot)]
    text = formats.script_json({p.id: formats.picture(p) for p in plots})
    assert "<" not in text
    assert json.loads(text)["plot-importance"]["subtitle"].count(HOSTILE) == 1


# ---------------------------------------------------------------- JSON


@pytest.mark.parametrize("name", STUDIES)
def test_json_holds_everything_and_is_json(name: str) -> None:
    study = STUDIES[name]
    kept = StoredStudy(study.name, study.spec, study.facts, study.records, runs=study.runs)
    values = reporting.report_json(kept, study)
    again = json.loads(json.dumps(values, allow_nan=False))
    assert [t["number"] for t in again["trials"]] == [r.number for r in study.records]
    assert again["summary"]["verdict"]
    assert set(again["importance"]["shares"]) == {name for name, _ in study.importance}
    assert (again["proof"] is None) == (study.proof is None)
    assert (again["data"] is None) == (study.data is None)
    assert len(again["runs"]) == len(study.runs)
    assert set(again["diagnoses"]) == {str(r.number) for r in study.records if r.status.ended}
    assert ("trial" in again) == (study.trial is not None)


def test_what_is_no_number_is_null() -> None:
    assert reporting.finite_json({"a": float("nan"), 1: (float("-inf"), 2.0, True, "x", None)}) == {
        "a": None,
        "1": [None, 2.0, True, "x", None],
    }


def test_the_command_offers_every_format() -> None:
    (option,) = [p for p in main.commands["report"].params if p.name == "fmt"]
    assert tuple(option.type.choices) == reporting.FORMATS  # type: ignore[attr-defined]


# ---------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every command of docs/report.md has run."""
    folder = tmp_path_factory.mktemp("work")
    text = (ROOT / "docs" / "report.md").read_text()
    for block in re.findall(r"```yaml\n(.*?)```", text, re.S):
        name = re.match(r"# (\S+\.yaml)\n", block)
        assert name
        (folder / name[1]).write_text(block)
    lines = [line.split("  #")[0].strip() for block in re.findall(r"```sh\n(.*?)```", text, re.S) for line in block.splitlines()]
    assert len(lines) >= 12
    for line in filter(None, lines):
        if (BROWSER is None and "png" in line) or (line.startswith("chromium") and shutil.which("chromium") is None):
            continue
        line += " --no-sandbox" * line.startswith("chromium")  # which root needs
        done = run(folder, *shlex.split(line))
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return folder


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a person does."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    if command[0] == "hpsearch":
        return run_command([HPSEARCH, *command[1:]], cwd=folder, env=environment)
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.process
def test_the_documented_commands_write_what_is_documented(work: Path) -> None:
    own = work / "hpsearch-runs" / "digits-tpe"
    assert "One trial" in (own / "trial-3.html").read_text()
    assert "For the Monday meeting" in (work / "mine.html").read_text()
    assert "All trials so far, by validation loss." in (work / "mine.html").read_text()
    assert "What the check found" in (work / "data.html").read_text()
    study, trial = json.loads((work / "study.json").read_text()), json.loads((own / "trial-3.json").read_text())
    assert len(study["trials"]) == len(trial["trials"]) == 12
    assert trial["trial"]["number"] == 3
    assert study["data"]["findings"] is not None
    curves = pd.read_csv(work / "tables" / "curves.csv")
    assert len(curves) == sum(len(t["curve"]) for t in study["trials"])
    if BROWSER:
        images = {path.stem for path in (work / "images").iterdir()}
        assert {*FIGURES, "frozen_by_rate", "time_spent"} <= images <= {*FIGURES, *LANDSCAPE}  # others need more trials
        assert {path.name for path in (work / "mine").iterdir()} == {"history.png", "importance.png", "slices.png"}


@pytest.mark.process
def test_json_output_names_the_files(work: Path) -> None:
    done = run(work, "hpsearch", "report", "--format", "csv", "--trial", "0", "--json")
    files = [Path(name) for name in json.loads(done.stdout)["reports"]]
    assert {path.parent.name for path in files} == {"trial-0-csv"}
    assert all(path.exists() for path in files)
    stale = files[0].parent / "stale.csv"
    stale.write_text("old")
    assert run(work, "hpsearch", "report", "--format", "csv", "--trial", "0").returncode == 0
    assert not stale.exists()
    assert json.loads(run(work, "hpsearch", "report", "--json").stdout)["report"].endswith("report.html")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trial", "99"], "'digits-tpe' has no trial 99: its trials are 0 to 11"),
        (["--trial", "-1"], "has no trial -1: its trials are 0 to 11"),
        (["--page", "studdy"], "unknown page 'studdy': did you mean 'study'?"),
        (["--page", "gone.yaml"], "the page spec gone.yaml cannot be read"),
        (["--page", "trial"], "'trial_error' is about one trial: say which with `--trial N`"),
        (["--page", "comparison"], "is about a comparison of samplers"),
        (["--page", "mine.yaml", "--format", "json"], "JSON holds everything"),
        (["--format", "pngs"], "'pngs' is not one of"),
        (["-o", "."], "is a directory: name a file for HTML"),
        (["--format", "csv", "-o", "mine.yaml"], "is a file: CSV has one for each table, so name a folder"),
    ],
)
def test_a_wrong_request_says_what_is_wrong_and_writes_nothing(
    arguments: list[str], message: str, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(work.rglob("*"))
    monkeypatch.chdir(work)
    done = CliRunner().invoke(main, ["report", "digits-tpe", *arguments])
    assert done.exit_code == 2
    assert message in done.stderr
    assert sorted(work.rglob("*")) == before


def test_a_page_is_found_by_name_path_or_bare_file(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)
    (work / "pages").mkdir(exist_ok=True)
    for name in ("pages/own", "plain"):
        shutil.copy(work / "mine.yaml", work / name)
    for page in ("pages/own", "plain", str(work / "mine.yaml"), "./mine.yaml"):
        assert CliRunner().invoke(main, ["report", "--page", page, "-o", "again.html"]).exit_code == 0
        assert "For the Monday meeting" in (work / "again.html").read_text()
    (work / "study").write_text("no page")  # what ships has the name
    assert CliRunner().invoke(main, ["report", "--page", "study", "-o", "again.html"]).exit_code == 0


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium")
def test_the_pdf_has_the_figures(work: Path) -> None:
    pages = re.findall(rb"/Type\s*/Page\b", (work / "study.pdf").read_bytes())
    assert len(pages) > 5
    assert (work / "study.pdf").stat().st_size > 100_000


@pytest.mark.process
def test_the_study_file_of_a_trial_runs(work: Path) -> None:
    text = (work / "hpsearch-runs" / "digits-tpe" / "trial-3.html").read_text()
    found = re.search(r"<pre># trial 3 of.*?</pre>", text, re.S)
    assert found
    (work / "trial-3.yaml").write_text(found[0].removeprefix("<pre>").removesuffix("</pre>").replace("&#34;", '"').replace("&#39;", "'"))
    done = run(work, "hpsearch", "run", "trial-3.yaml", "--no-tracking", "--storage", "again.db")
    assert done.returncode == 0, done.stderr
    own = json.loads((work / "study.json").read_text())["trials"][3]["params"]
    again = json.loads(run(work, "hpsearch", "show", "trial-3", "--storage", "again.db", "--json").stdout)["trials"][0]["params"]
    assert {name: again[name] for name in own if name in again} == own
