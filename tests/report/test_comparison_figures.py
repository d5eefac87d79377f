from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from report_samples import HOSTILE
from test_figures import contrast

from hpsearch.comparison import Comparison, Run, compare
from hpsearch.report.comparison import COMPARISON_FIGURES, steps
from hpsearch.report.page import write_comparison_page
from hpsearch.report.style import IN_THE_DARK, INKS, SERIES, series, translucent
from hpsearch.report.versus import ComparisonView
from hpsearch.verdict import verdict
from tests.support.browser import Browser

NAMES = ("gp", "tpe", "cmaes", "random", "quasi-random", "grid")


def runs(n: int, samplers: int = 4, trials: int = 40, sign: int = 1, names: tuple[str, ...] = NAMES) -> list[Run]:
    """Runs of samplers that differ less from one to the next; a fifth of the trials is pruned."""
    found = []
    for repeat in range(n):
        start = np.random.default_rng(repeat).normal(0.62, 0.02)
        for i, name in enumerate(names[:samplers]):
            rng = np.random.default_rng([repeat, i])
            gain = rng.normal(0.3 - 0.02 * i, 0.03) * (1 - np.exp(-np.arange(1, trials) / (5 + 2 * i)))
            costs = start - gain + np.abs(rng.normal(0, 0.07, trials - 1))
            if sign < 0:
                costs = costs - 1.0
            pruned = (False, *(rng.random(trials - 1) < 0.2).tolist())
            costs = (start - (sign < 0), *costs.tolist())
            found.append(Run(name, repeat, costs, tuple(np.cumsum(rng.uniform(2, 6, trials)).tolist()), pruned))
    return found


def comparison(n: int, samplers: int = 4, objective: str = "val_loss", **changes: Any) -> Comparison:
    return compare(runs(n, samplers, sign=1 if objective == "val_loss" else -1, **changes), objective)


def traces(figure: go.Figure, axis: str = "y") -> list[Any]:
    return [trace for trace in figure.data if (trace.yaxis or "y") == axis]


def drawn(values: Any) -> list[Any]:
    return [None if v != v else v for v in values]


@pytest.mark.parametrize("name", COMPARISON_FIGURES)
@pytest.mark.parametrize(("n", "samplers"), [(1, 2), (2, 3), (5, 6), (10, 4), (20, 6)])
def test_every_figure_has_marks_a_title_with_n_and_the_table_behind_it(name: str, n: int, samplers: int) -> None:
    figure, table = COMPARISON_FIGURES[name](comparison(n, samplers))
    assert sum(y is not None for trace in figure.data for y in trace.y) > 0
    assert len(table) > 0
    assert f"n = {n} repeat{'s' if n > 1 else ''} of each of {samplers} samplers, 40 trials a run" in figure.layout.title.subtitle.text
    assert not re.search(r"\b(NaN|Infinity)\b", figure.to_json())
    if name in ("anytime", "anytime_seconds", "final_values"):
        assert figure.layout.yaxis.title.text == "validation loss (nats)"
    if name in ("anytime_seconds", "reach"):
        assert "training time (s)" in figure.to_json()


@pytest.mark.parametrize("name", COMPARISON_FIGURES)
def test_figures_do_not_depend_on_how_often_they_are_made(name: str) -> None:
    first, second = (COMPARISON_FIGURES[name](comparison(6, 3)) for _ in range(2))
    assert first[0] == second[0]
    assert first[1].equals(second[1])


@pytest.mark.parametrize(("objective", "factor"), [("val_loss", 1.0), ("accuracy", 100.0)])
@pytest.mark.parametrize("name", ["anytime", "anytime_seconds"])
def test_curves_draw_their_table(name: str, objective: str, factor: float) -> None:
    c = comparison(5, 3, objective)
    figure, table = COMPARISON_FIGURES[name](c)
    bands, lines = figure.data[:3], figure.data[3:]
    at = "trial" if name == "anytime" else "seconds"
    for standing, fill, line in zip(c.standings, bands, lines, strict=True):
        own = table[table["sampler"] == standing.sampler]
        assert list(line.x) == own[at].tolist()
        assert list(line.y) == pytest.approx([None if v != v else factor * v for v in own["median"]])
        assert line.name == standing.sampler
        whole = own.dropna()
        assert set(np.round(fill.y, 9)) == set(np.round([*(factor * whole["first_quartile"]), *(factor * whole["third_quartile"])], 9))
        assert (whole["first_quartile"] <= whole["third_quartile"]).all()
        improving = whole["median"].diff().dropna()
        assert (improving <= 1e-12).all() if objective == "val_loss" else (improving >= -1e-12).all()


def test_steps_keep_a_value_up_to_the_next_point() -> None:
    assert steps([1.0, 2.0, 5.0], ["a", "b", "c"]) == ([1.0, 2.0, 2.0, 5.0, 5.0], ["a", "a", "b", "b", "c"])
    assert steps([1.0], ["a"]) == ([1.0], ["a"])


def test_one_repeat_has_no_band_and_no_mean() -> None:
    c = comparison(1, 3)
    assert [trace.fill for trace in COMPARISON_FIGURES["anytime"](c)[0].data] == [None] * 3
    assert len(COMPARISON_FIGURES["final_values"](c)[0].data) == 3
    assert "another may turn the order round" in COMPARISON_FIGURES["anytime"](c)[0].layout.title.subtitle.text


@pytest.mark.parametrize(("objective", "factor"), [("val_loss", 1.0), ("f1", 100.0)])
def test_final_values_draw_their_table(objective: str, factor: float) -> None:
    c = comparison(8, 3, objective)
    figure, table = COMPARISON_FIGURES["final_values"](c)
    for i, standing in enumerate(c.standings):
        own = table[table["sampler"] == standing.sampler]
        points, mean = figure.data[2 * i : 2 * i + 2]
        assert list(points.y) == pytest.approx((factor * own[objective]).tolist())
        assert list(points.customdata) == own["repeat"].tolist()
        assert all(abs(x - i) < 0.4 for x in points.x)
        assert mean.y[0] == pytest.approx(factor * own["mean"].iloc[0])
        assert mean.y[0] + mean.error_y.array[0] == pytest.approx(factor * own["high"].iloc[0])
        assert mean.y[0] - mean.error_y.arrayminus[0] == pytest.approx(factor * own["low"].iloc[0])
        assert mean.error_y.array[0] > 0
        assert mean.error_y.arrayminus[0] > 0


def test_runs_without_a_value_are_counted_not_drawn() -> None:
    lost = [Run("grid", repeat, (math.inf,), (1.0,), (False,)) for repeat in range(2)]
    c = compare([*runs(4, 2), *lost, *(Run("grid", repeat, (0.5,), (1.0,), (False,)) for repeat in (2, 3))])
    figure, table = COMPARISON_FIGURES["final_values"](c)
    assert table["val_loss"].isna().sum() == 2
    assert any("2 without a value" in label for label in figure.layout.xaxis.ticktext)
    for name, make in COMPARISON_FIGURES.items():
        assert "Infinity" not in make(c)[0].to_json(), name


@pytest.mark.parametrize("name", ["anytime", "anytime_seconds", "final_values", "reach"])
def test_a_figure_without_anything_to_draw_says_so(name: str) -> None:
    c = compare([Run(sampler, 0, (math.inf,), (1.0,), (False,)) for sampler in "ab"])
    assert COMPARISON_FIGURES[name](c)[0].layout.annotations[0].text


def test_ranks_draw_their_table() -> None:
    c = comparison(9, 4)
    figure, table = COMPARISON_FIGURES["ranks"](c)
    for i, standing in enumerate(c.standings):
        own = table[table["sampler"] == standing.sampler]
        circles, mean = figure.data[2 * i : 2 * i + 2]
        assert own["rank"].tolist() == list(standing.ranks)
        assert dict(zip(circles.x, map(int, circles.text), strict=True)) == own["rank"].value_counts().to_dict()
        assert mean.x[0] == own["mean_rank"].iloc[0] == pytest.approx(own["rank"].mean())
        assert set(circles.y) == {i}
    assert "Friedman" in figure.layout.title.subtitle.text
    assert "Friedman" not in COMPARISON_FIGURES["ranks"](comparison(1))[0].layout.title.subtitle.text


def test_pairs_draw_their_table_from_both_sides() -> None:
    c = comparison(10, 4)
    figure, table = COMPARISON_FIGURES["pairs"](c)
    names = [s.sampler for s in c.standings]
    cells = {(names[y], names[x]): text for trace in figure.data for x, y, text in zip(trace.x, trace.y, trace.text, strict=True)}
    assert len(cells) == 12 == len(figure.layout.shapes)
    assert len(table) == 6
    for row in table.itertuples():
        text = f"{row.difference:.2g}"
        p = "p &lt; 0.001" if row.holm_p < 0.001 else f"p = {row.holm_p:.2g}"
        assert cells[row.better, row.worse] == f"+{text}<br>{p}"
        assert cells[row.worse, row.better] == f"−{text}<br>{p}"
        assert row.real == (row.holm_p < 0.05)
        assert row.real or row.repeats_needed > 10 or row.repeats_needed != row.repeats_needed
    kinds = {trace.name: len(trace.x) for trace in figure.data}
    assert kinds.get("the row is better", 0) == kinds.get("the row is worse", 0) == table["real"].sum() > 0
    assert not any("p" in text for trace in COMPARISON_FIGURES["pairs"](comparison(10, 5))[0].data for text in trace.text)
    assert "(Holm)" in figure.layout.title.subtitle.text
    assert "(Holm)" not in COMPARISON_FIGURES["pairs"](comparison(6, 2))[0].layout.title.subtitle.text


def test_pairs_of_a_score_are_in_percentage_points() -> None:
    figure, table = COMPARISON_FIGURES["pairs"](comparison(10, 2, "accuracy"))
    assert "percentage points" in figure.layout.title.subtitle.text
    assert f"+{100 * table['difference'].iloc[0]:.2g}<br>" in figure.data[0].text[0]


def test_reaching_draws_its_table_over_trials_and_over_time() -> None:
    c = comparison(6, 3)
    figure, table = COMPARISON_FIGURES["reach"](c)
    for axis, over in (("y", "trials"), ("y2", "seconds")):
        for standing, line in zip(c.standings, traces(figure, axis), strict=True):
            own = table[(table["sampler"] == standing.sampler) & (table["over"] == over)]
            assert list(line.x) == own["at"].tolist()
            assert list(line.y) == pytest.approx((100 * own["reached"]).tolist())
            assert line.y[-1] == pytest.approx(100 * standing.reach.share)
            assert own["reached"].is_monotonic_increasing


def test_untrusted_names_never_reach_plotly_as_markup() -> None:
    c = compare(runs(3, 2, names=(HOSTILE, "b")))
    for name, make in COMPARISON_FIGURES.items():
        text = make(c)[0].to_json()
        assert "<img" not in text, name
        assert "\\u003cimg" not in text, name
        assert "<b>" not in text, name


def test_series_are_told_apart_by_more_than_colour_and_stand_out_on_both_papers() -> None:
    for part in ("colour", "dash", "symbol"):
        assert len({getattr(look, part) for look in SERIES}) == len(SERIES)
    for look in SERIES:
        assert contrast(look.colour, INKS["light"].paper) >= 3
        assert contrast(IN_THE_DARK[look.colour], INKS["dark"].paper) >= 3
        assert re.fullmatch(r"#[0-9a-f]{8}", translucent(look.colour))
    assert series(len(SERIES)) == SERIES[0]


PROBE = """(() => {
  const seen = {wide: document.documentElement.scrollWidth, plots: {}};
  for (const plot of document.querySelectorAll(".plot"))
    seen.plots[plot.id] = {
      marks: plot.querySelectorAll(".trace path, .points path, .textpoint").length,
      cut: [...plot.querySelectorAll(".xtick text, .ytick text, .textpoint text")].filter((text) => {
        const inner = text.getBoundingClientRect(), outer = plot.getBoundingClientRect();
        return inner.left < outer.left - 1 || inner.right > outer.right + 1 || inner.top < outer.top - 1;
      }).map((text) => text.textContent),
    };
  return seen;
})()"""


@pytest.mark.browser
@pytest.mark.parametrize(
    ("n", "samplers", "objective", "width", "dark"),
    [(10, 4, "val_loss", 1280, False), (20, 6, "accuracy", 390, True), (1, 2, "val_loss", 390, False), (20, 6, "val_loss", 1280, True)],
)
def test_the_page_in_a_browser(n: int, samplers: int, objective: str, width: int, dark: bool, tmp_path: Path, browser: Browser) -> None:
    found = comparison(n, samplers, objective)
    names = [standing.sampler for standing in found.standings]
    counts = {"studies": n, "trials": 40 * n, "trained": 30 * n, "reused": 10 * n, "pruned": 8 * n, "failed": 0, "seconds": 160.0 * n}
    shown = ComparisonView(
        name="samplers",
        spec={"objective": objective, "data": "digits", "model": "glyphnet"},
        comparison=found,
        notes=("Not finished, and compared as they are: samplers-tpe-r3 (12 trials).",) if n == 1 else (),
        verdict=verdict(found),
        tallies=[{"sampler": name, **counts, "saved": 40.0 * n} for name in names],
        policy=dict.fromkeys(names, "Pruned trials count with the value that they had come to."),
        studies=tuple(f"samplers-{name}-r{repeat}" for name in names for repeat in range(1, n + 1)),
        generated="2026-11-25 12:00 UTC",
    )
    page = tmp_path / "page.html"
    write_comparison_page(shown, page)
    opened = browser.file(page, width, dark)
    opened.await_plots()
    seen = opened.js(PROBE)
    assert opened.console == []
    opened.shot(f"comparison-{n}-{samplers}-{width}-{'dark' if dark else 'light'}")
    assert set(seen["plots"]) == {f"plot-{name}" for name in COMPARISON_FIGURES}
    assert seen["wide"] <= width
    for name, plot in seen["plots"].items():
        assert plot["marks"] > 0, name
        assert plot["cut"] == [], name
