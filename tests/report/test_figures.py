from __future__ import annotations

import itertools
from dataclasses import replace

import plotly.graph_objects as go
import pytest
from report_samples import CRAFT, HOSTILE, SPACE, SPEC, crafted, data_report, failed, hostile_data, lifelike, record, scored, view

from hpsearch.proof import Proof
from hpsearch.report.figures import FIGURES
from hpsearch.report.style import COLOURS, IN_THE_DARK, INKS, whole_step
from hpsearch.types import Status


def marks(figure: go.Figure) -> int:
    """Points and bars that are drawn."""
    return sum(y is not None for trace in figure.data for y in trace.y)


def named(figure: go.Figure, start: str) -> list[go.Scatter]:
    return [trace for trace in figure.data if (trace.name or "").startswith(start)]


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("n", [1, 2, 50, 1000])
def test_every_figure_has_marks_titles_with_n_and_the_table_behind_it(name: str, n: int) -> None:
    figure, table = FIGURES[name](replace(lifelike(n), data=data_report()))
    assert marks(figure) > 0
    assert len(table) > 0
    assert "n = " in figure.layout.title.subtitle.text
    if name not in ("importance", "class_counts"):
        assert "(nats)" in figure.layout.yaxis.title.text
    assert len(figure.data) < 40  # traces, not one a trial


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_without_anything_to_draw_says_so(name: str) -> None:
    figure, _ = FIGURES[name](view(importance=()))
    assert marks(figure) == 0
    assert figure.layout.annotations[0].text


def test_trial_numbers_and_epochs_are_whole() -> None:
    for n in (1, 2, 3, 10, 50, 1000):
        for name in ("history", "curves"):
            axis = FIGURES[name](lifelike(n))[0].layout.xaxis
            assert axis.dtick == int(axis.dtick) >= 1
            assert (axis.tick0, axis.tickformat) == (0, "d")


@pytest.mark.parametrize(("span", "step"), [(0, 1), (8, 1), (9, 2), (40, 5), (49, 10), (999, 200)])
def test_steps_between_ticks(span: int, step: int) -> None:
    assert whole_step(span) == step


def test_the_loss_axis_is_logarithmic_beyond_a_decade() -> None:
    near, far = view(record(0, losses=(0.5,)), record(1, losses=(1.0,))), view(record(0, losses=(0.5,)), record(1, losses=(9.0,)))
    assert FIGURES["history"](near)[0].layout.yaxis.type is None
    assert FIGURES["history"](far)[0].layout.yaxis.type == "log"
    assert FIGURES["history"](view(record(0, losses=(0.0,)), record(1, losses=(9.0,))))[0].layout.yaxis.type is None


def test_history_shows_default_recipe_best_so_far_and_each_fate() -> None:
    study = view(record(0, losses=(0.6,)), record(1, losses=(0.4,)), record(2, Status.PRUNED, (0.9,)), failed(3))
    figure, _ = FIGURES["history"](study)
    assert list(named(figure, "default recipe")[0].y) == [0.6, 0.6]
    assert list(named(figure, "best so far")[0].y) == [0.6, 0.4, 0.4, 0.4]
    assert list(named(figure, "complete (2)")[0].x) == [0, 1]
    assert list(named(figure, "pruned (1)")[0].x) == [2]
    assert list(named(figure, "failed (1")[0].x) == [3]
    assert list(named(figure, "best: trial 1")[0].y) == [0.4]


def test_a_confirmed_trial_that_is_not_the_luckiest_is_called_the_winner_and_stands_at_its_own_score() -> None:
    trials = record(0, losses=(0.6,)), record(1, losses=(0.4,)), record(2, losses=(0.3,))
    for confirmed, label, score in ((1, "winner: trial 1", 0.4), (2, "best: trial 2", 0.3), (None, "best: trial 2", 0.3)):
        proof = None if confirmed is None else Proof(winner=confirmed, confirmed=True)
        for name in ("history", "slices"):
            figure, _ = FIGURES[name](view(*trials, proof=proof))
            stars = [trace for trace in figure.data if trace.marker.symbol == "star"]
            assert {(star.name, star.y[0]) for star in stars} == {(label, score)}
        assert any(trace.name == label for trace in FIGURES["curves"](view(*trials, proof=proof))[0].data)


def test_curves_are_one_trace_a_fate_with_gaps() -> None:
    study = view(record(0), *(record(i, losses=(0.9, 0.7)) for i in (1, 2)), record(3, losses=(0.5, 0.3)), record(4, Status.PRUNED, (1.0,)))
    figure, _ = FIGURES["curves"](study)
    assert list(named(figure, "complete (2)")[0].y) == [0.9, 0.7, None, 0.9, 0.7, None]
    assert list(named(figure, "pruned (1)")[0].y) == [1.0, None]
    assert list(named(figure, "pruned here")[0].x) == [1]
    assert list(named(figure, "default recipe")[0].y) == [0.9, 0.5]
    assert list(named(figure, "best: trial 3")[0].y) == [0.5, 0.3]


def test_an_epoch_without_a_finite_loss_is_a_gap() -> None:
    figure, _ = FIGURES["curves"](view(record(0), record(1, losses=(0.1,)), record(2, losses=(0.9, float("nan"), 0.8))))
    assert list(named(figure, "complete (1)")[0].y) == [0.9, None, 0.8, None]


def test_slices_use_the_scale_of_each_parameter_and_flag_edges() -> None:
    study = view(record(0), record(1, losses=(0.1,), params={"learning_rate": 0.1, "dropout": 0.0}))
    figure, _ = FIGURES["slices"](study)
    assert figure.layout.xaxis.type == "log"
    assert figure.layout.xaxis2.type == "category"
    assert figure.layout.xaxis3.dtick == 2  # epochs, 4 to 16
    notes = [note for note in figure.layout.annotations if "edge" in note.text]
    assert [note.xref for note in notes] == ["x domain"]


def test_slices_draw_choices_in_their_order_and_leave_out_trials_that_do_not_use_a_hyperparameter() -> None:
    study = crafted(50)
    figure, _ = FIGURES["slices"](study)
    panel = {name: f"{7 + i}" for i, name in enumerate(CRAFT)}
    assert list(figure.layout[f"xaxis{panel['schedule']}"].categoryarray) == CRAFT["schedule"]["choices"]
    assert figure.layout[f"xaxis{panel['momentum']}"].title.text == "momentum<br>only with optimizer sgd"
    drawn = [x for trace in figure.data if trace.xaxis == f"x{panel['momentum']}" for x in trace.x if trace.marker.symbol != "star"]
    scored = [r for r in study.records if r.score is not None and r.params["optimizer"] == "sgd"]
    assert sorted(x for x in drawn if x is not None) == sorted(r.params["momentum"] for r in scored)
    assert "None" not in figure.to_json()


def test_slices_stack_on_a_phone() -> None:
    figure, _ = FIGURES["slices"](lifelike(20))
    narrow = figure.layout.meta["narrow"]
    assert all(narrow[f"xaxis{i}.domain"] == [0, 1] for i in ("", 2, 3, 4, 5, 6))
    assert narrow["height"] > figure.layout.height
    bottoms_and_tops = sorted(narrow[f"yaxis{i}.domain"] for i in ("", 2, 3, 4, 5, 6))
    assert all(a[1] < b[0] for a, b in itertools.pairwise(bottoms_and_tops))


def test_importance_is_sorted_in_percent_and_names_its_method() -> None:
    figure, table = FIGURES["importance"](view(record(0), importance=(("a", 0.1), ("b", 0.9), ("c", float("nan")))))
    assert list(figure.data[0].x) == [10, 90]
    assert table["parameter"].tolist() == ["b", "a"]
    assert "fANOVA" in figure.layout.title.subtitle.text


def test_untrusted_text_never_reaches_plotly_as_markup() -> None:
    space = SPACE | {HOSTILE: {"choices": [HOSTILE, "b"], "default": "b"}}
    study = view(record(0), failed(1, HOSTILE), record(2, params={HOSTILE: HOSTILE}), spec=SPEC | {"space": space}, name=HOSTILE)
    study = replace(study, importance=((HOSTILE, 1.0),), importance_method=HOSTILE, data=hostile_data())
    for name, make in FIGURES.items():
        text = make(study)[0].to_json()
        assert "<img" not in text, name
        assert "\\u003cimg" not in text, name
        assert "<b>" not in text, name


def test_history_of_an_accuracy_rises_in_percent() -> None:
    trials = record(0, accuracy=0.6), record(1, accuracy=0.8), record(2, Status.PRUNED, accuracy=0.9), record(3, accuracy=0.7), failed(4)
    figure, table = FIGURES["history"](scored(view(*trials), "accuracy"))
    assert figure.layout.yaxis.title.text == "accuracy (%)"
    assert figure.layout.yaxis.type is None
    assert list(named(figure, "best so far")[0].y) == pytest.approx([60, 80, 80, 80, 80])
    assert list(named(figure, "default recipe")[0].y) == pytest.approx([60, 60])
    assert list(named(figure, "best: trial 1")[0].y) == pytest.approx([80])
    assert "no score" in named(figure, "failed (1, at the top)")[0].hovertemplate
    assert table["accuracy"].tolist()[:4] == [0.6, 0.8, 0.9, 0.7]


@pytest.mark.parametrize("name", ["history", "slices"])
def test_a_trial_without_the_metric_is_drawn_as_one_without_a_loss(name: str) -> None:
    study = scored(view(record(0), record(1, metrics={}), record(2, metrics={"accuracy": float("nan")})), "accuracy")
    figure, _ = FIGURES[name](study)
    assert list(named(figure, "complete (1)")[0].y) == pytest.approx([90])


def test_slices_and_their_phone_layout_follow_the_objective() -> None:
    figure, _ = FIGURES["slices"](scored(lifelike(20), "f1"))
    assert (figure.layout.yaxis.title.text, figure.layout.yaxis2.title.text) == ("F1 (%)", "")
    assert figure.layout.meta["narrow"]["yaxis2.title.text"] == "F1 (%)"
    assert "with a score" in figure.layout.title.subtitle.text
    assert all("nats" not in trace.hovertemplate for trace in figure.data)


@pytest.mark.parametrize(
    ("objective", "lines"),
    [
        ("val_loss", ["accuracy", "F1"]),
        ("accuracy", ["accuracy", "F1"]),
        ("f1", ["F1", "accuracy"]),
        ("top5", ["top-5 accuracy", "accuracy", "F1"]),
    ],
)
def test_the_best_trial_shows_its_objective_first(objective: str, lines: list[str]) -> None:
    figure, _ = FIGURES["best_trial"](scored(lifelike(20), objective))
    shares = [trace for trace in figure.data if trace.xaxis == "x2"]
    assert [trace.name for trace in shares] == lines
    assert [trace.line.dash for trace in shares].count("solid") == 1
    assert shares[0].line.dash == "solid"


def test_learning_curves_stay_on_validation_loss() -> None:
    assert FIGURES["curves"](scored(lifelike(20), "accuracy"))[0].layout.yaxis.title.text == "validation loss (nats)"


@pytest.mark.parametrize("n", [2, 12, 40, 100, 300])
def test_classes_are_bars_with_their_own_labels_largest_at_the_top(n: int) -> None:
    report = data_report(tuple(f"{'very ' * 20}long {i}" for i in range(n)))
    figure, table = FIGURES["class_counts"](view(data=report))
    bars = min(n, 100)
    assert [trace.name for trace in figure.data] == ["train", "val", "test"]
    assert all(len(trace.y) == bars for trace in figure.data)
    assert len(figure.layout.yaxis.ticktext) == len(figure.layout.yaxis.tickvals) == bars
    assert figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1]  # the first row is the upper one
    assert table["all"].is_monotonic_decreasing
    assert len(table) == n
    assert figure.layout.height >= 14 * bars
    assert f"n = {sum(map(sum, report.counts.values())):,} images in {n} classes" in figure.layout.title.subtitle.text


def test_every_mark_has_a_shade_for_dark_paper_and_stands_out_on_its_paper() -> None:
    """WCAG asks 3:1 of graphical objects."""
    assert set(COLOURS.values()) < set(IN_THE_DARK)
    for light, dark in IN_THE_DARK.items():
        assert contrast(light, INKS["light"].paper) >= 3
        assert contrast(dark, INKS["dark"].paper) >= 3


def contrast(a: str, b: str) -> float:
    """Contrast ratio of two colours (WCAG 2.2)."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dim, bright = sorted((luminance(a), luminance(b)))
    return (bright + 0.05) / (dim + 0.05)
