from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pandas as pd
import pytest
from proof_samples import LOOKED, judged, opened, shown, stored
from report_samples import HOSTILE, SPEC, lifelike, record, view
from test_page import Reader, check

from hpsearch.proof import LABELS, Candidate, Proof, proof_of, scores
from hpsearch.report import page as room
from hpsearch.report import words
from hpsearch.report.confusion import MOST_CLASSES, NUMBERED
from hpsearch.report.objective import objective
from hpsearch.report.page import load_page, render
from hpsearch.report.proof import PROOF, Grid, Statements, bought, gain_frame, gain_table, mistakes, proven
from hpsearch.report.proof import tested as on_test
from hpsearch.report.proof_figures import PROVEN
from hpsearch.report.tables import StudyView, best_trial
from hpsearch.statistics import Estimate
from hpsearch.types import OBJECTIVES, Example, Status, StoredStudy

HEADINGS = ("What was proven", "The test images")


@cache
def whole(name: str = "val_loss") -> StoredStudy:
    """A study with everything proven."""
    return opened(stored(objective=name))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A short stand-in for plotly.js: these tests read the page around it."""
    monkeypatch.setattr(room, "get_plotlyjs", lambda: "/** * plotly.js v0 */")
    return


def text_of(study: StudyView) -> str:
    return " ".join(" ".join(check(render(study, load_page("study")), study).words).split())


def said(block: tuple[Statements, ...]) -> dict[str, str]:
    return dict(block[0].items)


def table_of(grid: Grid) -> pd.DataFrame:
    return pd.read_csv(io.BytesIO(base64.b64decode(grid.csv.partition("base64,")[2])))


STUDIES: dict[str, Callable[[], StudyView]] = {
    "everything": lambda: shown(whole()),
    "accuracy": lambda: shown(whole("accuracy")),
    "balanced accuracy": lambda: shown(whole("balanced_accuracy")),
    "folds": lambda: shown(opened(stored(cv="2x3", confirm=None))),
    "references only": lambda: shown(stored(confirm=None)),
    "one configuration": lambda: shown(opened(stored(confirm="1x2"))),
    "confirmation only": lambda: shown(stored(references=False)),
    "nothing run yet": lambda: shown(stored(stop=0)),
    "half a confirmation": lambda: shown(stored(stop=5)),
    "half the references": lambda: shown(stored(stop=20)),
    "all references failed": lambda: shown(stored(fails=("scratch", "probe", "default"))),
    "some runs failed": lambda: shown(stored(fails=("seed-2",))),
    "everything failed": lambda: shown(stored(fails=("-",))),
    "test alone": lambda: shown(opened(stored(references=False, confirm=None))),
    "looked at twice": lambda: shown(opened(opened(stored(), trial=1), at=LOOKED + 1e5)),
    "looked at for another": lambda: shown(opened(stored(), trial=1)),
    "without weights": lambda: shown(stored(weights="none")),
    "two classes": lambda: shown(opened(stored(("cat", "dog")))),
    "a hundred classes": lambda: shown(opened(stored(tuple(f"class {i}" for i in range(100))))),
    "hundred and twenty": lambda: shown(opened(stored(tuple(f"class {i}" for i in range(120))))),
}


@cache
def made(name: str) -> StudyView:
    """A study of that kind; some take seconds to make."""
    return STUDIES[name]()


@pytest.mark.parametrize("name", STUDIES)
def test_the_page_of_any_proof_is_written(name: str, quick: None) -> None:
    text = text_of(made(name))
    assert not [word for word in ("nan", "inf", "None", "Estimate(") if f" {word}" in text.partition("How the search went")[0]]


@pytest.mark.parametrize(
    "study",
    [lifelike(20), view(proof=Proof()), view(record(0), proof=Proof(winner=0)), view(proof=None)],
    ids=("none", "empty", "one", "bare"),
)
def test_a_study_that_proved_nothing_has_no_heading_for_it(study: StudyView, quick: None) -> None:
    assert not any(make(study) for make in (*PROOF.values(), *PROVEN.values()))
    assert not any(heading in text_of(study) for heading in HEADINGS)


def test_what_is_proven_stands_above_how_the_search_went(quick: None) -> None:
    text = text_of(made("everything"))
    places = [text.index(heading) for heading in ("The best configuration", *HEADINGS, "How the search went")]
    assert places == sorted(places)


# ---------------------------------------------------------------- the gain table


@pytest.mark.parametrize("name", ["val_loss", "accuracy", "balanced_accuracy"])
def test_the_numbers_of_the_table_are_those_of_the_proof(name: str) -> None:
    study = shown(whole(name))
    assert study.proof is not None
    rows, (grid,) = study.proof.rows, gain_table(study)
    table = table_of(grid)
    assert table["label"].tolist() == [LABELS[row.name] for row in rows]
    for key in OBJECTIVES:
        for at, row in enumerate(rows):
            for column, found in ((key, row.scores.get(key)), (f"test_{key}", row.test.get(key))):
                if found is not None:
                    ends = [table[f"{column}{end}"][at] for end in ("", "_low", "_high")]
                    assert ends == pytest.approx(
                        [x if x is not None else math.nan for x in (found.mean, found.low, found.high)], nan_ok=True
                    )
    assert grid.columns[1][0] == {"val_loss": "val loss (nats)"}.get(name, name.replace("_", " "))
    best, cells = rows[-1], grid.rows[-1][1]
    assert (best.name, grid.rows[-1][0]) == ("best", "best")
    shown_mean, _, between = cells[1].text.partition("\n")
    e = best.scores[name]
    assert e.low is not None
    assert e.high is not None
    factor, digits = (1, 3) if name == "val_loss" else (100, 1)
    assert shown_mean == f"{factor * e.mean:.{digits}f}{'' if name == 'val_loss' else ' %'}"
    assert between == f"[{factor * e.low:.{digits}f}, {factor * e.high:.{digits}f}]"
    assert f"test {objective({'objective': name}).label}" in [head for head, _ in grid.columns] or name == "val_loss"
    assert "test accuracy" in [head for head, _ in grid.columns]


def test_one_training_each_has_no_interval() -> None:
    study = shown(stored(confirm=None))
    (grid,), (figure, _) = gain_table(study), PROVEN["gain"](study) or (None, None)
    assert not any("\n" in cell.text for _, cells in grid.rows for cell in cells)
    assert "interval" not in grid.note
    assert not any("test" in head for head, _ in grid.columns)
    assert figure is not None
    assert all(trace.error_x.array is None for trace in figure.data)
    assert "one seed" in figure.layout.title.subtitle.text
    assert "[" not in bought(proof_of(stored(confirm=None)).gains[0], "val_loss")[1]
    assert PROVEN["confirmed"](study) is None


def test_an_interval_of_shares_stays_between_nothing_and_all() -> None:
    goal = objective({"objective": "accuracy"})
    assert words.estimated(goal, Estimate(0.98, 2, 0.9, 1.06)) == "98.0 % [90.0, 100.0]"
    assert words.estimated(objective({}), Estimate(0.1, 2, -0.2, 0.4)) == "0.100 nats [0.000, 0.400]"


# ---------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("name", "e", "text"),
    [
        ("val_loss", Estimate(0.2, 3, 0.1, 0.3), "better by 0.200 nats [0.100, 0.300]"),
        ("val_loss", Estimate(-0.2, 3, -0.3, -0.1), "worse by 0.200 nats [0.100, 0.300]"),
        ("accuracy", Estimate(0.02, 3, -0.01, 0.05), "better by 2.0 points [-1.0, 5.0], which may be chance"),
        ("accuracy", Estimate(-0.02, 3, -0.05, 0.01), "worse by 2.0 points [-1.0, 5.0], which may be chance"),
        ("f1", Estimate(0.02, 1), "better by 2.0 points"),
    ],
)
def test_a_difference_says_which_way_and_whether_it_may_be_none(name: str, e: Estimate, text: str) -> None:
    assert words.gained(objective({"objective": name}), e) == text


def test_every_step_is_told_in_points_and_seconds() -> None:
    study = shown(whole())
    assert study.proof is not None
    found = said(proven(study))
    for gain in study.proof.gains:
        text, e = found[f"What {gain.what} bought"], gain.points["accuracy"]
        assert f"accuracy {'better' if e.mean >= 0 else 'worse'} by {100 * abs(e.mean):.1f} points" in text
        assert words.duration(gain.until) in text
        assert gain.reached is None or f"is as good after {words.duration(gain.reached)} of training" in text
    assert "of training went into the search." in found["What the search bought"]
    never = replace(study.proof.gains[0], reached=None)
    assert "did not always become as good as training from scratch" in bought(never, "val_loss")[1]


def test_who_cannot_be_told_apart_is_named() -> None:
    near, far = Estimate(0.01, 3, -0.1, 0.12), Estimate(0.2, 3, 0.1, 0.3)
    e = {"val_loss": Estimate(0.3, 3, 0.2, 0.4)}
    candidates = [Candidate(4, 0.25, e, ("a", "b", "c")), Candidate(5, 0.3, e, ("d", "e", "f"), behind=near)]
    candidates += [Candidate(6, 0.3, e, ("g",), 2, far), Candidate(7, None, e, ("h",), 2)]
    found = said(proven(view(proof=Proof(4, True, "3 fresh seeds", candidates))))
    assert found["Confirmed"].startswith(
        "Trial 4 is the best of 4 configurations that were trained again on 3 fresh seeds: validation loss 0.300"
    )
    assert "The search selected it at 0.250 nats, from one seed." in found["Confirmed"]
    assert found["Alike"] == "3 repetitions cannot tell trials 5 and 7 from it."
    assert found["Told apart"] == "Trial 6 is worse by 0.200 nats [0.100, 0.300] (it failed in 2 of 3)."


def test_half_a_confirmation_is_not_called_one() -> None:
    study = made("half a confirmation")
    found = said(proven(study))
    assert "Confirmed" not in found
    assert "still to come" in found["Not confirmed yet"]
    assert "not yet confirmed on fresh seeds" in words.verdict(study)


def test_runs_that_failed_are_noted_and_counted() -> None:
    study = shown(stored(fails=("seed-2",)))
    assert study.proof is not None
    assert study.proof.candidates[0].failed == 1
    (block,) = proven(study)
    assert "(it failed in 1 of 4)" in block.items[0][1]
    assert "the training loss became NaN in epoch 3" in dict(block.items)["Note"] or "more note" in dict(block.items)["Note"]
    assert len([about for about, _ in block.items if about == "Note"]) <= 7


# ---------------------------------------------------------------- the test images


def test_the_test_is_told_with_its_interval_and_what_was_forgotten() -> None:
    study = shown(whole())
    found = said(on_test(study))
    assert "looked at once (2025-10-09 08:53 UTC)" in found["On the test images"]
    assert "95 % interval" in found["On the test images"]
    assert "On rendered characters, the task of its pretraining, accuracy went from 97.4 % to 52.6 %" in found["Forgetting"]
    assert "from 97.2 % to 95.5 %" in found["Forgetting"]
    assert on_test(study)[0].warnings == ()


def test_a_second_look_is_warned_of(quick: None) -> None:
    study = made("looked at twice")
    assert study.proof is not None
    (warning,) = on_test(study)[0].warnings
    assert "looked at 2 times (trial 1, 2025-10-09 08:53 UTC; trial" in warning
    page = check(render(study, load_page("study")), study)
    assert any(tag == "section" and "is-warning" in (a.get("class") or "") for tag, a in page.elements)
    assert "looked at 2 times" in words.verdict(study)
    many = study
    for _ in range(6):
        many = replace(many, proof=replace(many.proof, openings=(*many.proof.openings, many.proof.openings[0])))  # type: ignore[union-attr, type-var]
    assert on_test(many)[0].warnings[0].count("UTC") == 5


def test_a_look_for_another_trial_is_no_result_of_the_winner() -> None:
    study = made("looked at for another")
    assert study.proof is not None
    assert "looked at for trial 1" in said(on_test(study))["On the test images"]
    assert PROVEN["confusion"](study) is None
    assert (PROOF["test_classes"](study), mistakes(study)) == ((), ())
    assert "test image" not in words.verdict(study)


def test_mistakes_show_their_thumbnails_and_no_other_image(quick: None) -> None:
    study = shown(whole())
    page = check(render(study, load_page("study")), study)
    assert [tag for tag, _ in page.elements].count("img") == 9
    hostile = (Example((HOSTILE,), HOSTILE, ("javascript:alert(1)",)),)
    hostile_study = shown(opened(stored((HOSTILE, "b", "\ud800 x")), mistakes=hostile), name=HOSTILE)
    text = render(hostile_study, load_page("study"))
    page = check(text, hostile_study)
    assert "img" not in [tag for tag, _ in page.elements]
    assert sum("<img src=x onerror=alert(1)>" in word for word in page.words) >= 4
    noted = replace(hostile_study, proof=replace(hostile_study.proof, notes=(HOSTILE,), how=HOSTILE))  # type: ignore[type-var]
    check(render(noted, load_page("study")), noted)


# ---------------------------------------------------------------- figures


def xs(figure: Any, name: str) -> list[float]:
    return [x for trace in figure.data if trace.name == name for x in trace.x]


@pytest.mark.parametrize("name", ["val_loss", "accuracy"])
def test_every_way_has_its_mark_its_interval_and_a_dot_a_training(name: str) -> None:
    study = shown(whole(name))
    drawn = PROVEN["gain"](study)
    assert drawn is not None
    assert study.proof is not None
    figure, table = drawn
    runs, factor = {r.setup.name: r for r in study.runs if r.setup}, 1 if name == "val_loss" else 100
    for row in study.proof.rows[1:]:
        label, e = LABELS[row.name], row.scores[name]
        assert xs(figure, f"{label}, validation") == pytest.approx([factor * e.mean])
        assert xs(figure, f"{label}, one training") == pytest.approx([factor * scores(runs[run])[name] for run in row.runs])
        assert xs(figure, f"{label}, test") == pytest.approx([factor * row.test[name].mean])
        assert len(xs(figure, f"{label}, one training on test")) == 4
    assert "<b>best of the search</b>" in figure.layout.yaxis.ticktext
    assert "n = 4 trainings each on 400 validation images (4 fresh seeds)" in figure.layout.title.subtitle.text
    assert ("less" if name == "val_loss" else "more") + " is better" in figure.layout.xaxis.title.text
    assert len(table[(table["row"] == "best") & (table["split"] == "test")]) == 4


def test_guessing_does_not_squeeze_the_others() -> None:
    figure, _ = PROVEN["gain"](shown(whole())) or (None, None)
    assert figure is not None
    low, high = figure.layout.xaxis.range
    (mark,) = (trace for trace in figure.data if trace.name == "majority class")
    assert (mark.marker.symbol, mark.text) == ("triangle-right", ("2.3 nats",))
    assert low < mark.x[0] <= high < 2.3


def test_confirmation_shows_what_it_was_selected_by() -> None:
    study = shown(whole())
    drawn = PROVEN["confirmed"](study)
    assert drawn is not None
    assert study.proof is not None
    figure, table = drawn
    for c in study.proof.candidates:
        assert xs(figure, f"trial {c.trial}, as selected") == pytest.approx([c.selected])
        assert xs(figure, f"trial {c.trial}, mean") == pytest.approx([c.scores["val_loss"].mean])
        assert len(xs(figure, f"trial {c.trial}, trained again")) == 4
    assert figure.layout.yaxis.ticktext[0] == f"<b>trial {study.proof.winner}</b>"
    assert len(table) == 12


def test_how_soon_is_the_mean_of_the_curves_over_seconds_and_images() -> None:
    study = shown(whole())
    drawn = PROVEN["how_soon"](study)
    assert drawn is not None
    figure, table = drawn
    own = table[table["row"] == "scratch"].groupby("epoch")[["seconds", "images", "val_loss", "accuracy"]].mean()
    lines = [trace for trace in figure.data if trace.name == "from scratch" and "markers" in trace.mode]
    assert len(lines) == 4
    assert list(lines[0].x) == pytest.approx(own["seconds"].tolist())
    assert list(lines[0].y) == pytest.approx(own["val_loss"].tolist())
    assert list(lines[3].x) == pytest.approx(own["images"].tolist())
    assert list(lines[3].y) == pytest.approx((100 * own["accuracy"]).tolist())
    assert table["images"].max() == 50 * table["epoch"].max()
    folds = PROVEN["how_soon"](made("folds"))
    assert folds is not None
    assert folds[1]["images"].max() == pytest.approx(450 * 2 / 3 * folds[1]["epoch"].max())
    assert (
        len([t for t in (PROVEN["how_soon"](shown(whole("accuracy"))) or (None,))[0].data if t.name == "linear probe" and t.showlegend])
        == 1
    )  # type: ignore[union-attr]


def test_the_confusion_holds_counts_and_shares_of_the_row() -> None:
    study = shown(whole())
    drawn = PROVEN["confusion"](study)
    assert drawn is not None
    assert study.proof is not None
    assert study.proof.test is not None
    figure, table = drawn
    matrix = study.proof.test.confusion
    right, wrong = figure.data
    assert [right.z[i][i] for i in range(10)] == pytest.approx([100 * matrix[i][i] / 130 for i in range(10)])
    assert all(wrong.z[i][i] is None for i in range(10))
    assert wrong.z[0][1] == pytest.approx(100 * matrix[0][1] / 130)
    assert right.text[3][3] == f"{matrix[3][3]}<br>{100 * matrix[3][3] / 130:.0f} %"
    assert int(table["images"].sum()) == 1300
    assert table.groupby("class")["share"].sum().tolist() == pytest.approx([1.0] * 10)
    assert "Most often: " in figure.layout.title.subtitle.text


@pytest.mark.parametrize(("name", "classes"), [("a hundred classes", 100), ("hundred and twenty", MOST_CLASSES)])
def test_many_classes_stay_readable(name: str, classes: int) -> None:
    figure, _ = PROVEN["confusion"](made(name)) or (None, None)
    assert figure is not None
    assert classes > NUMBERED
    assert len(figure.data[0].z) == classes
    assert figure.data[0].text is None
    assert len(figure.layout.yaxis.ticktext) <= 25
    assert len(figure.layout.meta["narrow"]["yaxis.ticktext"]) <= 13
    assert figure.layout.height <= 1000
    assert ("of 120 classes with the most mistakes" in figure.layout.title.subtitle.text) == (classes < 120 and name != "a hundred classes")


# ---------------------------------------------------------------- the header


def test_the_header_speaks_of_the_confirmed_winner_and_the_test() -> None:
    study = shown(whole())
    assert study.proof is not None
    first, best = study.proof.candidates[0], best_trial(study)
    assert best is not None
    assert best.number == study.proof.winner == first.trial
    assert words.verdict(study).startswith(
        f"Trial {first.trial} is confirmed on 4 fresh seeds: val loss {first.scores['val_loss'].mean:.3f} nats ["
    )
    assert "Against the default recipe on the same fresh seeds that is better by" in words.verdict(study)
    assert "On 1,300 test images, looked at once: accuracy" in words.verdict(study)
    shown_cards = {card.label: card for card in words.cards(study)}
    assert shown_cards["Confirmed validation loss"].value == f"{first.scores['val_loss'].mean:.3f} nats"
    assert "4 fresh seeds, mean; 95 % interval [" in shown_cards["Confirmed validation loss"].note
    assert "Confirmed accuracy" in shown_cards
    assert "looked at once" in shown_cards["Test accuracy"].note
    assert not any("one seed" in card.note for card in shown_cards.values())


def test_a_winner_that_was_not_the_luckiest_takes_the_place_of_the_best() -> None:
    study = shown(stored())
    assert study.proof is not None
    lucky = study.proof.candidates[-1].trial
    records = tuple(replace(r, val_loss=0.01) if r.number == lucky else r for r in study.records)
    swapped = replace(study, records=records)
    best = best_trial(swapped)
    assert best is not None
    assert best.number == study.proof.winner != lucky
    unconfirmed = best_trial(replace(swapped, proof=replace(study.proof, confirmed=False)))
    assert unconfirmed is not None
    assert unconfirmed.number == lucky


def test_without_confirmation_the_header_says_one_seed() -> None:
    study = made("references only")
    assert "one seed: not yet confirmed on fresh seeds" in words.verdict(study)
    notes = {card.label: card.note for card in words.cards(study)}
    assert notes["Best validation loss"].endswith("; one seed")
    assert "one seed" in words.verdict(view(record(0, Status.COMPLETE), spec=SPEC))
    looked_at = made("test alone")
    assert "On 1,300 test images, looked at once: accuracy" in words.verdict(looked_at)
    assert "Test accuracy" in [card.label for card in words.cards(looked_at)]


def test_a_default_recipe_that_stood_up_best_is_called_so() -> None:
    e = {"val_loss": Estimate(0.3, 3, 0.2, 0.4)}
    study = view(record(0), record(1, losses=(0.3,)), proof=Proof(0, True, "3 fresh seeds", [Candidate(0, 0.5, e, ("a", "b", "c"))]))
    assert words.verdict(study).startswith("The default recipe (trial 0) is confirmed on 3 fresh seeds: val loss 0.300 nats [0.200, 0.400]")


def test_the_samples_are_what_they_say() -> None:
    assert gain_frame(proof_of(whole()))["n"].tolist() == [0, 4, 4, 4, 4, 4]
    assert sum(map(sum, judged("x", 3, 0.5).confusion)) == 390
    assert Reader("<p>x").words == ["x"]
