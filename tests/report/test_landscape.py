from __future__ import annotations

import math

import pytest
from report_samples import failed, lifelike, record, scored, view

from hpsearch.report.landscape import LANDSCAPE, frozen_by_rate, time_spent
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
    assert "s of training" in figure.layout.title.subtitle.text


@pytest.mark.parametrize("study", [view(), view(record(0)), view(failed(0), failed(1))])
def test_a_map_of_nothing_is_left_out(study) -> None:  # type: ignore[no-untyped-def]
    assert frozen_by_rate(study) is None


def test_what_was_not_trained_took_no_time() -> None:
    assert time_spent(view()) is None
    assert all(draw(view()) is None for draw in LANDSCAPE.values())
