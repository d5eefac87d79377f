from __future__ import annotations

import base64
import io
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from report_samples import AWKWARD, FULL, HOSTILE, SPACE, SPEC, data_report, failed, hostile_data, lifelike, record, scored, view

from hpsearch.errors import FixInput, FixSetup
from hpsearch.report import page as room
from hpsearch.report.blocks import TABLES, WORDS, recipe_yaml, trials
from hpsearch.report.figures import FIGURES
from hpsearch.report.findings import MOST_EXAMPLES, THUMBNAIL, findings
from hpsearch.report.landscape import LANDSCAPE
from hpsearch.report.page import COMPARED, DRAWN_WHERE_KNOWN, NAMES, load_page, render, write_data_page, write_page
from hpsearch.report.proof import PROOF
from hpsearch.report.tables import StudyView
from hpsearch.report.trial import TRIAL, TRIAL_FIGURES
from hpsearch.spec import parse_spec
from hpsearch.types import OBJECTIVES, DataReport, Example, Finding, Status, TrialRecord
from hpsearch.yamlfile import parse_yaml


class Reader(HTMLParser):
    """Collects elements, their attributes and the text outside scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside not in ("script", "style"):
            self.words.append(data)


def check(text: str, study: StudyView) -> Reader:
    """What holds of every page: nothing is fetched, nothing of the study is markup, every figure has its place."""
    page = Reader(text)
    for tag, attributes in page.elements:
        assert tag not in ("iframe", "link", "object", "embed", "base", "form"), tag
        assert not [name for name in attributes if name.startswith("on")]
        assert ("src" in attributes) == (tag == "img")
        assert re.fullmatch(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+", attributes.get("src") or "data:image/png;base64,AA")
        assert (attributes.get("href") or "data:text/csv").startswith("data:text/csv")
    outside = re.sub(r"<script nonce=.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"""(src|href)\s*=\s*["']?https?:|url\(|@import""", outside)
    assert {a["id"] for _, a in page.elements if (a.get("id") or "").startswith("plot-")} == {f"plot-{name}" for name in drawn(study)}
    assert text.count("* plotly.js v") == 1
    assert [tag for tag, _ in page.elements].count("script") == 6
    assert study.data or study.proof or "img" not in [tag for tag, _ in page.elements]
    return page


def drawn(study: StudyView) -> set[str]:
    """The figures that a page of the study, or of its trial, has."""
    if study.trial is not None:
        return set(TRIAL_FIGURES)
    return {name for name in FIGURES if study.data or name != "class_counts"} | {
        name for name, draw in DRAWN_WHERE_KNOWN.items() if draw(study)
    }


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A short stand-in for plotly.js: these tests read the page around it."""
    monkeypatch.setattr(room, "get_plotlyjs", lambda: "/** * plotly.js v0 */")
    return


STUDIES = {
    "lifelike": lifelike(50),
    "empty": view(importance=()),
    "failed only": view(failed(0), failed(1)),
    "pruned only": view(record(0, Status.PRUNED), record(1, Status.PRUNED, (2.0,))),
    "one trial": view(record(0)),
    "one running trial": view(record(0, Status.RUNNING, (), val_loss=None, best_epoch=None)),
    "no losses": view(record(0, losses=(float("nan"),)), record(1, losses=(float("inf"), float("nan")))),
    "bare": StudyView("bare", {}, {}, (record(0),), (), "", "", (), ""),
    "a thousand": lifelike(1000),
    "everything": FULL,
    "accuracy, nothing scored": scored(view(failed(0), record(1, Status.PRUNED)), "accuracy"),
    "hostile data": replace(FULL, data=hostile_data()),
    "data only": view(importance=(), data=data_report()),
}


@pytest.mark.parametrize("name", STUDIES)
def test_the_page_of_any_study_is_written(name: str, tmp_path: Path) -> None:
    path = write_page(STUDIES[name], tmp_path / "deep" / "report.html")
    check(path.read_text(encoding="utf-8"), STUDIES[name])
    assert os.listdir(path.parent) == ["report.html"]


def test_hostile_text_is_shown_as_text(quick: None) -> None:
    space = SPACE | {HOSTILE: {"choices": [HOSTILE, "b"], "default": "b"}}
    study = view(
        record(0, params={HOSTILE: "b"}),
        record(1, losses=(0.1,), params={HOSTILE: HOSTILE}),
        failed(2, HOSTILE),
        name=HOSTILE,
        spec=SPEC | {"space": space, "model": HOSTILE, "data": HOSTILE},
        facts={HOSTILE: HOSTILE},
        importance=((HOSTILE, 1.0),),
        importance_method=HOSTILE,
        policy=HOSTILE,
        notes=(HOSTILE,),
        generated=HOSTILE,
    )
    page = check(render(study, load_page("study")), study)
    assert sum("<img src=x onerror=alert(1)>" in word for word in page.words) >= 10


def test_scripts_are_allowed_by_nonce_only() -> None:
    text = render(view(record(0)), load_page("study"))
    policy = next(a["content"] for tag, a in Reader(text).elements if tag == "meta" and a.get("http-equiv"))
    assert policy is not None
    nonce = re.search(r"script-src 'nonce-([\w-]+)'", policy)
    assert nonce is not None
    assert "default-src 'none'" in policy
    assert text.count(f'nonce="{nonce[1]}"') == 2
    assert nonce[1] not in render(view(record(0)), load_page("study"))


def test_the_data_behind_each_figure_can_be_saved_as_csv(quick: None) -> None:
    study = scored(lifelike(20), "val_loss", data=data_report())
    links = {a["download"]: a["href"] for tag, a in Reader(render(study, load_page("study"))).elements if tag == "a"}
    assert {f"digits-tpe-{name}.csv" for name in (*FIGURES, *LANDSCAPE, *TABLES, "classes", "data-facts")} == set(links)
    data = base64.b64decode((links["digits-tpe-history.csv"] or "").partition("base64,")[2])
    table = pd.read_csv(io.BytesIO(data))
    pd.testing.assert_frame_equal(table[["trial", "val_loss"]], FIGURES["history"](study)[1][["trial", "val_loss"]])


def test_the_recipe_is_a_study_file_with_every_hyperparameter_fixed() -> None:
    study = view(record(0), record(7, losses=(0.1,), params={"learning_rate": 1e-05}), name="odd\nname: x")
    recipe = parse_yaml(recipe_yaml(study), "the recipe")
    assert recipe["recipe"] == study.records[1].params
    assert (recipe["data"], recipe["split"], recipe["trials"]) == ("digits", SPEC["split"], 1)
    assert recipe_yaml(view(failed(0))) == ""


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_recipe_holds_what_the_study_fixes_and_what_the_best_trial_uses(optimizer: str) -> None:
    spec = SPEC | {"split": {}, "recipe": {"mixup": 0.2, "momentum": 0.5, "crop": 1.0}}
    given = parse_yaml(recipe_yaml(view(record(0, params={"optimizer": optimizer}), spec=spec)), "the recipe")
    assert ("momentum" in given["recipe"]) == (optimizer == "sgd")
    fixed = parse_spec(given).resolved()
    assert not {name for name, entry in fixed["space"].items() if "value" not in entry}
    assert (fixed["recipe"]["mixup"], fixed["recipe"]["optimizer"], fixed["recipe"]["epochs"]) == (0.2, optimizer, 10)


def test_the_recipe_keeps_text_text() -> None:
    spec = SPEC | {"data": "my flowers: 'é' #1", "model": "no", "weights": "a.b/c-d"}
    recipe = parse_yaml(recipe_yaml(view(record(0, params={"x": True, "y": None, "on": "1e-3"}), spec=spec)), "the recipe")
    assert {key: recipe[key] for key in ("data", "model", "weights")} == {key: spec[key] for key in ("data", "model", "weights")}
    assert (recipe["recipe"]["x"], recipe["recipe"]["y"], recipe["recipe"]["on"]) == (True, None, "1e-3")


def test_plotly_offers_no_upload() -> None:
    assert room.CONFIG["showSendToCloud"] is False


def test_the_page_is_replaced_whole_or_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    path = tmp_path / "report.html"
    path.write_text("the old page")
    with monkeypatch.context() as patch:
        patch.setattr(room.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(FixSetup, match="No space left on device"):
            write_page(view(record(0)), path)
    assert path.read_text() == "the old page"
    assert os.listdir(tmp_path) == ["report.html"]
    write_page(view(record(0)), path)
    assert "hpsearch" in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_file_in_place_of_the_folder_is_a_clear_error(tmp_path: Path, quick: None) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FixSetup, match="cannot be written"):
        write_page(view(record(0)), tmp_path / "file" / "report.html")


# ---------------------------------------------------------------- page specs


def test_an_unknown_page_names_the_nearest() -> None:
    with pytest.raises(FixInput, match="did you mean 'study'"):
        load_page("studdy")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: x\nsections: [{show: [histroy]}]", "unknown figure or table 'histroy': did you mean 'history'"),
        ("title: x\nsections: [{shows: [history]}]", "unknown key 'shows': did you mean 'show'"),
        ("title: x\nsection: []", "must hold `title: text`"),
        ("title: x\nsections: []\ntitel: y", "unknown key 'titel'"),
        ("title: x\nsections: [history]", "section 1 must be a mapping"),
        ("title: x\nsections: [{show: history}]", "show must be a list"),
        ("title: x\nsections: [{text: 5}]", "text must be text"),
        ("title: [", "is not YAML"),
        ("!!python/object:os.system {}", "is not allowed"),
        ("[]", "must hold"),
    ],
)
def test_a_page_spec_that_cannot_be_used_says_what_is_wrong(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(FixInput, match=re.escape(message)):
        write_page(view(record(0)), tmp_path / "report.html", path)
    assert not (tmp_path / "report.html").exists()


def test_a_page_of_ones_own_without_code(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("title: Mine\nsections: [{heading: Only <this>, show: [trials, notes]}]")
    text = render(view(record(0)), load_page(path))
    assert "Only &lt;this&gt;" in text
    assert "plotly.js v" not in text  # nothing to draw, nothing to carry


def test_the_pages_that_ship_show_everything_once() -> None:
    def shown(page: str) -> list[str]:
        return [name for section in load_page(page)["sections"] for name in section["show"]]

    assert sorted(shown("study")) == sorted({*FIGURES, *TABLES, *WORDS, *DRAWN_WHERE_KNOWN, *PROOF, "data"})
    assert sorted(shown("trial")) == sorted({*TRIAL_FIGURES, *TRIAL})
    assert sorted(shown("comparison")) == sorted(COMPARED)
    assert {*shown("study"), *shown("trial"), *shown("comparison")} == set(NAMES)


# ---------------------------------------------------------------- another objective


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_page_speaks_of_its_objective(objective: str, quick: None) -> None:
    study = scored(lifelike(20), objective)
    page = check(render(study, load_page("study")), study)
    text = " ".join(" ".join(page.words).split())
    label = {"val_loss": "validation loss", "f1": "F1", "top5": "top-5 accuracy"}.get(objective, objective.replace("_", " "))
    assert f"A trial's score is the {label} of the epoch" in text
    assert f"Best {label}" in text
    assert ("Best validation loss" in text) == (objective == "val_loss")
    assert ("(those with a loss)" in text) == (objective == "val_loss")
    assert "{objective}" not in text


def test_the_score_is_the_first_measurement_of_the_trial_table() -> None:
    def heads(study: StudyView) -> list[str]:
        return [label for label, _ in trials(study).columns]

    assert heads(lifelike(5))[:4] == ["trial", "fate", "val loss (nats)", "accuracy"]
    assert not {"balanced accuracy", "top-5 accuracy"} & set(heads(lifelike(5)))
    rich = heads(scored(lifelike(5), "balanced_accuracy"))
    assert rich[:6] == ["trial", "fate", "balanced accuracy", "val loss (nats)", "accuracy", "top-5 accuracy"]
    assert heads(scored(lifelike(5), "f1"))[2] == "F1"
    assert heads(view(failed(0), spec=SPEC | {"objective": "top5"}))[2] == "top-5 accuracy"


def test_the_recipe_keeps_what_decides_the_result() -> None:
    spec = SPEC | {"objective": "f1", "preprocess": {"size": 96, "mean": None}, "data_root": None}
    recipe = parse_yaml(recipe_yaml(view(record(0), spec=spec)), "the recipe")
    assert (recipe["objective"], recipe["preprocess"]) == ("f1", {"size": 96})
    assert "data_root" not in recipe
    assert "preprocess" not in parse_yaml(recipe_yaml(view(record(0), spec=SPEC | {"preprocess": {"size": None}})), "the recipe")


# ---------------------------------------------------------------- data, classes


def test_without_a_data_report_there_is_no_heading_for_it(quick: None) -> None:
    without, full = lifelike(10), replace(lifelike(10), data=data_report())
    assert ">The data<" not in render(without, load_page("study"))
    assert "Each class in the best trial" not in render(without, load_page("study"))
    assert ">The data<" in render(full, load_page("study"))


def test_a_section_that_shows_nothing_is_left_out_and_one_of_text_stays(quick: None) -> None:
    page = {"title": "x", "sections": [{"heading": "Gone", "show": ["policy", "data"]}, {"heading": "Here", "text": "words"}]}
    text = render(view(policy=""), page)
    assert "Gone" not in text
    assert "Here" in text


def test_findings_stand_in_order_of_their_level_with_twelve_examples_at_most() -> None:
    shown = findings(data_report())
    assert [f.level for f in shown.found] == ["error", "warning", "warning", "note"]
    assert shown.subtitle == "1 error, 2 warnings, 1 note"
    assert len(shown.found[1].examples) == MOST_EXAMPLES
    assert shown.found[1].left == "12 of 23 are shown."
    assert len(shown.found[1].examples[0].pictures) == 2
    assert shown.found[3].left == ""
    assert findings(data_report(findings=())).subtitle == "no error, no warning, no note"


@pytest.mark.parametrize(
    ("uri", "accepted"),
    [
        ("data:image/png;base64,iVBORw0KGgo=", True),
        ("data:image/jpeg;base64,/9j/4AAQ", True),
        ("data:image/svg+xml;base64,AAAA", False),
        ("data:image/png;base64,AAAA\n", False),
        ('data:image/png;base64,AA" onerror="x', False),
        (" data:image/png;base64,AAAA", False),
        ("data:image/png,AAAA", False),
        ("data:image/png;base64,", False),
        ("https://example.org/a.png", False),
    ],
)
def test_thumbnails_are_png_or_jpeg_and_nothing_else(uri: str, accepted: bool, quick: None) -> None:
    assert bool(THUMBNAIL.fullmatch(uri)) == accepted
    report = data_report(findings=(Finding("k", "note", "t", 1, (Example(("a.png",), "", (uri,)),)),))
    study = view(data=report)
    sources = [a["src"] for tag, a in check(render(study, load_page("study")), study).elements if tag == "img"]
    assert sources == ([uri] if accepted else [])


def test_more_than_thirty_classes_show_their_ends(quick: None) -> None:
    names = tuple(f"class {i:03}" for i in range(100))
    report = data_report(names, counts={"train": tuple(range(100)), "val": (0,) * 100})
    text = render(view(data=report), load_page("data"))
    assert "The 10 largest and the 10 smallest: 80 of 100 classes are not shown. The CSV holds all." in text
    shown = [name for name in names if f">{name}</td>" in text]
    assert shown == [*names[:10], *names[90:]]
    assert "classes are not shown" not in render(view(data=data_report(names[:30])), load_page("data"))


DATA = {
    "pets": data_report(),
    "no findings": data_report(findings=()),
    "hostile": hostile_data(),
    "two classes": data_report(("a", "b")),
    "a hundred": data_report(tuple(map(str, range(100)))),
    "five hundred": data_report(tuple(map(str, range(500)))),
    "nothing at all": DataReport("", (), {}, 0, (), {}),
    "empty classes": data_report(counts={"train": (0,) * 8}),
    "splits of other names": data_report(counts={HOSTILE: (1,) * 8, "all": (2,) * 8, "val": (3,) * 7}),
}


@pytest.mark.parametrize("name", DATA)
def test_the_page_of_any_data_is_written(name: str, tmp_path: Path, quick: None) -> None:
    path = write_data_page(DATA[name], tmp_path / "deep" / "check.html", "2026-11-21")
    page = Reader(path.read_text(encoding="utf-8"))
    assert {a["id"] for _, a in page.elements if (a.get("id") or "").startswith("plot-")} == {"plot-class_counts"}
    assert "What the check found" in page.words
    assert os.listdir(path.parent) == ["check.html"]


def test_hostile_data_is_shown_as_text(quick: None) -> None:
    study = replace(FULL, data=hostile_data(), facts={"classes": list(AWKWARD)})
    page = check(render(study, load_page("study")), study)
    assert sum("<img src=x onerror=alert(1)>" in word for word in page.words) >= 20
    assert [tag for tag, _ in page.elements].count("script") == 6


def test_the_data_page_says_whether_a_study_may_run(quick: None) -> None:
    def verdict(report: DataReport) -> str:
        return room.data_verdict(report)

    note, warning, error = (Finding("k", level, "t") for level in ("note", "warning", "error"))
    assert verdict(data_report(findings=())) == "A study can run on this data: the check found nothing wrong."
    assert verdict(data_report(findings=(note, warning))) == "A study can run on this data; the check has 1 warning, 1 note for you."
    assert verdict(data_report(findings=(error, error))) == "A study on this data is refused until 2 errors are mended."
    assert verdict(data_report(findings=(error, note))) == "A study on this data is refused until 1 error is mended; beside that, 1 note."


# ---------------------------------------------------------------- any study at all

NO_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)  # a page takes 0.1 s to make: shrinking would take minutes

numbers = st.none() | st.floats() | st.floats(1e-3, 10)
texts = st.text(max_size=30) | st.just(HOSTILE) | st.sampled_from(["\ud800", "\x00", "</script>", "=1+1", "a,b\r\n"])
values = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats() | texts
rows = st.fixed_dictionaries(
    {"epoch": st.integers(1, 20), "val_loss": st.floats(), "train_loss": st.floats(), "seconds": st.floats(0, 1e6)}
)
records: st.SearchStrategy[TrialRecord] = st.builds(
    TrialRecord,
    number=st.integers(0, 10_000),
    status=st.sampled_from(Status),
    params=st.dictionaries(st.sampled_from([*SPACE, "number", "extra", HOSTILE]), values, max_size=4),
    origin=st.sampled_from(["default", "sampled", "grid"]),
    attempt=st.integers(1, 3),
    val_loss=numbers,
    best_epoch=st.none() | st.integers(1, 20),
    seconds=st.floats(0, 1e9) | st.just(float("nan")),
    started=st.none() | st.floats(0, 2e9),
    ended=st.none() | st.floats(0, 2e9),
    metrics=st.dictionaries(st.sampled_from(["accuracy", "f1", "recall"]), st.floats(), max_size=3),
    effective=st.dictionaries(st.sampled_from([*SPACE]), values, max_size=3),
    curve=st.lists(rows, max_size=4).map(tuple),
    checkpoint=st.none(),
    error=st.none() | texts,
    objective=st.just("val_loss"),
    per_class=st.dictionaries(st.sampled_from(["images", "precision", "recall", "f1"]), st.lists(st.floats(), max_size=3)),
)
reports: st.SearchStrategy[DataReport] = st.builds(
    DataReport,
    data=texts,
    classes=st.lists(texts, max_size=5).map(tuple),
    counts=st.dictionaries(texts | st.sampled_from(["train", "val"]), st.lists(st.integers(0, 10**6), max_size=5).map(tuple), max_size=3),
    left_out=st.integers(0, 9),
    findings=st.lists(
        st.builds(
            Finding,
            kind=texts,
            level=st.sampled_from(["error", "warning", "note"]),
            text=texts,
            count=st.integers(0, 99),
            examples=st.lists(
                st.builds(Example, st.lists(texts, max_size=3).map(tuple), texts, st.lists(texts, max_size=3).map(tuple)), max_size=2
            ).map(tuple),
        ),
        max_size=3,
    ).map(tuple),
    facts=st.dictionaries(texts, values, max_size=2),
)


@settings(
    max_examples=40, deadline=None, phases=NO_SHRINKING, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    trials=st.lists(records, max_size=8, unique_by=lambda r: r.number),
    name=texts,
    importance=st.lists(st.tuples(texts, st.floats()), max_size=3),
    objective=st.sampled_from(list(OBJECTIVES)),
    data=st.none() | reports,
)
def test_any_records_make_a_page(
    quick: None, trials: list[TrialRecord], name: str, importance: list[Any], objective: str, data: DataReport | None
) -> None:
    trials = [replace(r, objective=objective) for r in trials]
    study = view(*trials, name=name, importance=tuple(importance), data=data, spec=SPEC | {"objective": objective})
    text = render(study, load_page("study")).encode("utf-8", "replace").decode()
    check(text, study)
