from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from report_samples import HOSTILE, SPACE, SPEC, crafted, failed, lifelike, record, scored, view

from hpsearch.report.contours import contours, smooth
from hpsearch.report.landscape import LANDSCAPE, frozen_by_rate, time_spent
from hpsearch.report.parallel import parallel, quarters
from hpsearch.report.survival import rungs
from hpsearch.types import Status


@pytest.mark.parametrize("n", [10, 50, 1000])
def test_each_field_holds_the_best_of_its_trials(n: int) -> None:
    study = lifelike(n)
    drawn = frozen_by_rate(study)
    assert drawn is not None
    figure, table = drawn
    known = [r for r in study.records if math.isfinite(r.cost)]
    assert table["trials"].sum() == len(known)
    for row in table.itertuples(index=False):
        inside = [r for r in known if r.params["frozen_layers"] == row.frozen_layers]
        inside = [r for r in inside if row.low * (1 - 1e-9) <= float(str(r.params["learning_rate"])) <= row.high * (1 + 1e-9)]
        assert row.best == min(r.cost for r in inside)
        assert row.trials <= len(inside)
    best = table.loc[table["best"].idxmin()]
    assert best["trial"] == min(known, key=lambda r: (r.cost, r.number)).number
    assert sum(text != "" for line in figure.data[0].text for text in line) == len(table)
    assert f"n = {len(known):,} trial" in figure.layout.title.subtitle.text
    assert len(figure.layout.shapes) == 1


def test_a_score_of_which_more_is_better_frames_the_highest_field() -> None:
    drawn = frozen_by_rate(scored(lifelike(40), "accuracy"))
    assert drawn is not None
    figure, table = drawn
    assert "(%)" in figure.layout.title.subtitle.text
    best = table.loc[table["best"].idxmax()]
    levels, lows = sorted(table["frozen_layers"].unique()), sorted(table["low"].unique())
    frame = figure.layout.shapes[0]
    assert (frame.x0 + 0.5, frame.y0 + 0.5) == (lows.index(best["low"]), levels.index(best["frozen_layers"]))


def test_time_adds_up_by_depth_and_fate() -> None:
    study = lifelike(60)
    drawn = time_spent(study)
    assert drawn is not None
    figure, table = drawn
    trained = [r for r in study.records if r.curve and r.status in (Status.COMPLETE, Status.PRUNED, Status.FAILED)]
    assert table["seconds"].sum() == pytest.approx(sum(r.seconds for r in trained))
    assert table["trials"].sum() == len(trained)
    assert sum(sum(trace.x) for trace in figure.data) == pytest.approx(table["seconds"].sum())
    complete = table[table["status"] == "COMPLETE"]
    assert f"{complete['trials'].sum()} complete ({complete['seconds'].sum():,.3g} s)" in figure.layout.title.subtitle.text


def test_beside_each_bar_stand_seconds_an_epoch_and_images_a_second() -> None:
    trials = record(0, losses=(0.9, 0.8), seconds=4.0), record(1, losses=(0.9,), seconds=2.0, params={"frozen_layers": 6})
    rated = [replace(r, curve=tuple(row | {"images_per_second": 12_345.0} for row in r.curve)) for r in trials]
    counted = replace(view(*rated), facts={"train_images": 12_345})  # each epoch: 1 s of steps, 1 s of the rest
    for study, text, images in ((view(*trials), "2 s", False), (view(*rated), "2 s, 12k/s", True), (counted, "2 s, 50 %, 12k/s", True)):
        drawn = time_spent(study)
        assert drawn is not None
        assert [note.text for note in drawn[0].layout.annotations] == [text, text]
        assert ("training images a second" in drawn[0].layout.title.subtitle.text) == images
        assert drawn[1]["images_per_second"].notna().all() == images
        assert sorted(drawn[1]["steps_seconds"].dropna()) == ([1.0, 2.0] if study is counted else [])


@pytest.mark.parametrize("study", [view(), view(record(0)), view(failed(0), failed(1))])
def test_a_map_of_nothing_is_left_out(study) -> None:  # type: ignore[no-untyped-def]
    assert frozen_by_rate(study) is None


def test_what_was_not_trained_took_no_time() -> None:
    assert time_spent(view()) is None
    assert all(draw(view()) is None for draw in LANDSCAPE.values())


# ---------------------------------------------------------------- contours


@pytest.mark.parametrize("n", [30, 50, 1000])
def test_contours_show_every_trial_by_fate_and_the_best_as_a_star(n: int) -> None:
    study = lifelike(n)
    drawn = contours(study)
    assert drawn is not None
    figure, table = drawn
    known = [r for r in study.records if r.score is not None]
    assert list(table.columns) == ["number", "status", "learning_rate", "frozen_layers", "val_loss"]
    assert table["number"].tolist() == [r.number for r in known]
    for status in (Status.COMPLETE, Status.PRUNED):
        rows = table[table["status"] == str(status)]
        trace = next(t for t in figure.data if (t.name or "").startswith(status.lower()))
        assert list(zip(trace.x, trace.y, strict=True)) == list(zip(rows["learning_rate"], rows["frozen_layers"], strict=True))
    best = min((r for r in known if r.status is Status.COMPLETE), key=lambda r: (r.cost, r.number))
    star = next(t for t in figure.data if (t.name or "").startswith("best: trial"))
    assert (star.x[0], star.y[0]) == (best.params["learning_rate"], best.params["frozen_layers"])
    assert f"n = {len(known):,} trials" in figure.layout.title.subtitle.text
    assert figure.layout.coloraxis.colorbar.title.text == "validation loss (nats)"


def test_the_surface_is_the_mean_of_neighbours_and_ends_where_nothing_was_trained() -> None:
    places = np.array([[0.0, 0.0], [0.0, 0.01], [1.0, 1.0]])
    surface = smooth(places, np.array([1.0, 3.0, 7.0]))
    assert surface[0, 0] == pytest.approx(2.0, abs=0.05)
    assert surface[-1, -1] == pytest.approx(7.0)
    assert np.isnan(surface[0, -1])
    assert np.isnan(surface[len(surface) // 2, len(surface) // 2])
    assert np.nanmax(surface) <= 7.0
    assert np.nanmin(surface) >= 1.0


def test_few_trials_have_no_surface_and_the_shades_of_a_share_are_turned_round() -> None:
    few, many = contours(lifelike(12)), contours(scored(lifelike(40), "accuracy"))
    assert few is not None
    assert many is not None
    assert not any(trace.type in ("heatmap", "contour") for trace in few[0].data)
    assert "too few for a surface" in few[0].layout.title.subtitle.text
    assert many[0].layout.coloraxis.colorbar.title.text == "accuracy (%)"
    assert many[0].layout.coloraxis.colorscale[-1][1].endswith("99")  # the highest is the strongest
    assert 1 < np.nanmax(np.array(many[0].data[0].z, dtype=float)) <= 100


def test_a_best_value_on_the_edge_asks_for_a_wider_range() -> None:
    trials = [record(i, losses=(1.0 + i,), params={"learning_rate": 1e-3 * (1 + i)}) for i in range(8)]
    best = record(8, losses=(0.1,), params={"learning_rate": 0.1, "frozen_layers": 3})
    drawn = contours(view(*trials, best))
    assert drawn is not None
    assert ["learning_rate: high end" in note.text and "widen it" in note.text for note in drawn[0].layout.annotations] == [True]
    inside = contours(view(*trials, replace(best, params=best.params | {"learning_rate": 0.01})))
    assert inside is not None
    assert not inside[0].layout.annotations


def test_contours_leave_out_choices_and_trials_that_do_not_use_a_hyperparameter() -> None:
    study = crafted(60, importance=(("optimizer", 0.5), ("momentum", 0.3), ("crop", 0.2)))
    drawn = contours(study)
    assert drawn is not None
    assert drawn[1]["number"].tolist() == [r.number for r in study.records if "momentum" in r.params and r.score is not None]
    assert list(drawn[1].columns[2:4]) == ["momentum", "crop"]


@pytest.mark.parametrize(
    "study",
    [view(), view(record(0)), view(failed(0), failed(1)), lifelike(50, importance=()), lifelike(50, importance=(("dropout", 1.0),))],
)
def test_contours_of_nothing_are_left_out(study) -> None:  # type: ignore[no-untyped-def]
    assert contours(study) is None


@pytest.mark.parametrize("name", LANDSCAPE)
def test_untrusted_text_is_never_markup(name: str) -> None:
    space = SPACE | {HOSTILE: {"low": 0.0, "high": 1.0, "default": 0.5}, "other" + HOSTILE: {"choices": [HOSTILE, "b"], "default": "b"}}
    records = [replace(r, params=r.params | {HOSTILE: r.number / 60, "other" + HOSTILE: HOSTILE}) for r in lifelike(60).records]
    drawn = LANDSCAPE[name](view(*records, spec=SPEC | {"space": space}, importance=((HOSTILE, 0.7), ("learning_rate", 0.3))))
    if drawn is not None:
        text = drawn[0].to_json()
        assert not any(bad in text for bad in ("<img", "\\u003cimg", "<b>"))


# ---------------------------------------------------------------- survival

HALVING = SPEC | {"pruner": {"name": "halving", "warmup": 0.1, "reduction_factor": 2}}  # rungs at 10, 20, 40 and 80 %


def test_rungs_count_who_reached_them_and_what_became_of_them_there() -> None:
    trials = (
        record(0, losses=(0.5,) * 10),
        record(1, Status.PRUNED, (0.9,)),
        record(2, Status.PRUNED, (0.9, 0.8)),
        record(3, Status.PAUSED, (0.9, 0.8)),
        record(4, Status.PRUNED, (0.9,) * 4),
        failed(5, losses=(0.9,) * 3),
        record(6, losses=(0.5,) * 7),  # stopped early by itself: complete
        record(7, Status.WAITING, ()),
    )
    drawn = rungs(view(*trials, spec=HALVING))
    assert drawn is not None
    figure, table = drawn
    assert table.to_numpy().tolist() == [
        [0, 7, 7, 0, 0, 0],
        [10, 7, 6, 1, 0, 0],
        [20, 6, 3, 1, 1, 1],
        [40, 3, 2, 1, 0, 0],
        [80, 2, 2, 0, 0, 0],
    ]
    assert {t.name: list(t.x) for t in figure.data}["went on"] == [7, 6, 3, 2, 2]
    assert [note.text for note in figure.layout.annotations] == ["7 of 7", "6 of 7", "3 of 6", "2 of 3", "2 of 2"]
    assert "n = 7 trials, 3 trials stopped for good" in figure.layout.title.subtitle.text
    assert list(figure.layout.yaxis.ticktext) == ["start", "10 %", "20 %", "40 %", "80 %"]


@pytest.mark.parametrize("n", [20, 1000])
def test_under_other_pruners_all_trials_add_up_at_every_share_of_their_epochs(n: int) -> None:
    drawn = rungs(lifelike(n))
    assert drawn is not None
    figure, table = drawn
    assert (table[["alive", "pruned", "failed"]].sum(axis=1) == n).all()
    assert table["alive"].is_monotonic_decreasing
    fates = [r.status for r in lifelike(n).records]
    assert table.iloc[-1].tolist() == [100, *(fates.count(f) for f in (Status.COMPLETE, Status.PRUNED, Status.FAILED))]
    assert sum(trace.y[-1] for trace in figure.data) == pytest.approx(100)
    assert f"{fates.count(Status.PRUNED):,} were stopped" in figure.layout.title.subtitle.text


def test_half_of_the_pruned_trials_did_not_get_beyond_their_median() -> None:
    drawn = rungs(view(record(0), *(record(n, Status.PRUNED, (0.9,) * n) for n in (1, 2, 7))))
    assert drawn is not None
    assert "half of these within 20 %" in drawn[0].layout.title.subtitle.text


@pytest.mark.parametrize("study", [view(), view(record(0)), view(failed(0), failed(1)), view(record(0), failed(1, losses=(0.9,)))])
@pytest.mark.parametrize("spec", [SPEC, HALVING, {}])
def test_nothing_is_said_of_survival_where_nothing_was_stopped(study, spec) -> None:  # type: ignore[no-untyped-def]
    assert rungs(replace(study, spec=spec)) is None


# ---------------------------------------------------------------- parallel coordinates


@pytest.mark.parametrize("n", [12, 50, 1000])
def test_every_trial_is_a_line_and_the_best_is_bold(n: int) -> None:
    study = lifelike(n)
    drawn = parallel(study)
    assert drawn is not None
    figure, table = drawn
    known = sorted((r for r in study.records if r.score is not None), key=lambda r: (r.cost, r.number))
    assert table["number"].tolist() == [r.number for r in known]
    assert table["rank"].tolist() == list(range(1, len(known) + 1))
    *groups, bold = figure.data
    axes = len(SPACE) + 1
    assert [sum(x is None for x in trace.x) for trace in groups] == [len(t) for t in reversed(quarters(known))]
    assert all(len(trace.x) == len(trace.y) == len(trace.customdata) for trace in groups)
    assert all(0 <= x <= 1 for trace in figure.data for x in trace.x if x is not None)
    assert list(bold.y) == [-i for i in range(axes)]
    best = min((r for r in known if r.status is Status.COMPLETE), key=lambda r: (r.cost, r.number))
    assert (bold.name, bold.line.width) == (f"best: trial {best.number}", 4)
    assert bold.x[0] == pytest.approx((math.log10(float(str(best.params["learning_rate"]))) + 4) / 3)
    assert f"n = {len(known):,} trials" in figure.layout.title.subtitle.text


def test_axes_follow_importance_choices_have_their_labels_and_what_is_not_used_is_a_gap() -> None:
    study = crafted(50)
    drawn = parallel(study)
    assert drawn is not None
    figure, table = drawn
    titles = [note.text for note in figure.layout.annotations if note.yanchor == "bottom"]
    assert titles[:6] == ["learning_rate (per step, log)", "optimizer", "crop", "momentum", "schedule", "rotate (degrees)"]
    assert titles[-1] == "validation loss (nats): less is better"
    assert "the 3 of least importance are left out" in figure.layout.title.subtitle.text
    assert {"adamw", "sgd"} <= {note.text for note in figure.layout.annotations}
    without = sum("momentum" not in r.params for r in study.records if r.score is not None)
    drawn_there = sum(y == -titles.index("momentum") for trace in figure.data[:-1] for y in trace.y if y is not None)
    assert without > 0
    assert drawn_there == len(table) - without
    assert table["momentum"].isna().sum() == without


def test_models_are_choices_and_a_share_is_better_when_it_is_more() -> None:
    names = ("resnet18", "glyphnet")
    records = [replace(r, params=r.params | {"model": names[r.number % 2]}) for r in lifelike(20).records]
    study = view(*records, spec=SPEC | {"space": SPACE | {"model": {"choices": list(names), "default": "glyphnet"}}})
    drawn = parallel(scored(study, "accuracy"))
    assert drawn is not None
    notes = [note.text for note in drawn[0].layout.annotations]
    assert "accuracy (%): more is better" in notes
    assert set(names) <= set(notes)
    best = next(t for t in drawn[0].data if t.name.startswith("best: trial"))
    assert best.x[-1] == pytest.approx(1.0)


@pytest.mark.parametrize(
    "study",
    [view(), view(record(0)), view(*(failed(n) for n in range(9))), lifelike(20, spec=SPEC | {"space": {"dropout": SPACE["dropout"]}})],
)
def test_lines_through_nothing_are_left_out(study) -> None:  # type: ignore[no-untyped-def]
    assert parallel(study) is None
