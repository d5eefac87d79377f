"""The page in a real browser: headless Chromium at desktop and phone width, light and dark. `make screenshots` keeps pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from proof_samples import opened, shown, stored
from report_samples import FULL, HOSTILE, SPACE, SPEC, crafted, data_report, failed, hostile_data, lifelike, record, view

from hpsearch.report.figures import FIGURES
from hpsearch.report.landscape import LANDSCAPE
from hpsearch.report.page import DRAWN_WHERE_KNOWN, write_data_page, write_page
from hpsearch.report.proof_figures import PROVEN
from hpsearch.report.trial import TRIAL_FIGURES
from hpsearch.types import Example, Status
from tests.support.browser import Browser

pytestmark = pytest.mark.browser

PROBE = """(() => {
  const seen = {plots: {}};
  for (const plot of document.querySelectorAll(".plot")) {
    seen.plots[plot.id] = {
      marks: plot.querySelectorAll(".trace path, .points path, .point path, .bars path, path.point, .heatmaplayer image").length,
      notes: plot.querySelectorAll(".annotation").length,
      drawn: plot.querySelector("svg.main-svg")?.getBoundingClientRect().width ?? 0,
      width: plot.clientWidth,
      ticks: [...plot.querySelectorAll(".xtick text")].map((t) => t.textContent),
      paper: plot.querySelector("svg.main-svg")?.style.background ?? "",
      links: plot.querySelectorAll("a[href], img").length,
    };
  }
  seen.wide = document.documentElement.scrollWidth;
  const images = [...document.querySelectorAll("main img, header img")];
  seen.images = images.length;
  seen.broken = images.filter((image) => !image.naturalWidth).length;
  seen.labels = [...document.querySelectorAll("#plot-class_counts .ytick text")].map((t) => t.textContent);
  const head = [...document.querySelectorAll("th button")].find((b) => b.textContent.startsWith("val loss"));
  if (head) {
    const column = head.parentElement.cellIndex, table = head.closest("table"), rows = table.tBodies[0].rows;
    head.click();
    seen.rising = [...rows].map((row) => row.cells[column].dataset.v);
    head.click();
    seen.falling = [...rows].map((row) => row.cells[column].dataset.v);
    table.querySelector("th button").click();
  }
  return seen;
})()"""


View = tuple[int, str]
EVERY_VIEW: tuple[View, ...] = ((1280, "light"), (1280, "dark"), (390, "dark"), (390, "light"))


def looks(browser: Browser, page: Path, *views: View, shot: str = "") -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Opens the page as the first view says and then changes width and colours; what was seen in each. Fails on any console message."""
    opened = None
    for width, mode in views:
        if opened is None:
            opened = browser.file(page, width, mode == "dark")
            opened.await_plots()
        else:
            opened.turn(width, mode == "dark")
        if shot:
            opened.shot(f"{shot}-{width}-{mode}")
        seen: dict[str, Any] = opened.js(PROBE)
        assert opened.console == []
        yield width, mode, seen


def look(browser: Browser, page: Path, width: int, mode: str = "light", shot: str = "") -> dict[str, Any]:
    """Opens the page; what was seen there."""
    ((_, _, seen),) = looks(browser, page, (width, mode), shot=shot)
    return seen


def check_plots(seen: dict[str, Any], width: int) -> None:
    """Each plot holds marks and fits; the page does not scroll sideways; trial numbers and epochs are whole."""
    always = {f"plot-{name}" for name in FIGURES if name != "class_counts"}
    assert set(seen["plots"]) - {"plot-class_counts", *(f"plot-{name}" for name in DRAWN_WHERE_KNOWN)} == always
    for name, plot in seen["plots"].items():
        assert plot["marks"] > 0, name
        assert plot["drawn"] == pytest.approx(plot["width"], abs=1), name
        assert plot["links"] == 0, name
    assert seen["wide"] <= width
    for name in ("plot-history", "plot-curves"):
        assert all(re.fullmatch(r"\d+", tick) for tick in seen["plots"][name]["ticks"])


def check_sorted(seen: dict[str, Any]) -> None:
    """A click on a heading sorts by number, a second click the other way; trials without a value stay last."""
    rising, falling = seen["rising"], seen["falling"]
    missing = rising.count("")
    assert missing > 0
    numbers = [float(value) for value in rising[:-missing]]
    assert numbers == sorted(numbers)
    assert falling[:-missing] == rising[-missing - 1 :: -1]
    assert falling[-missing:] == rising[-missing:] == [""] * missing


def test_console_messages_are_heard(tmp_path: Path, browser: Browser) -> None:
    page = tmp_path / "loud.html"
    page.write_text("<script>console.error('a mistake'); nothing.here</script>")
    opened = browser.file(page, 600)
    assert any("a mistake" in line for line in opened.console)
    assert any("ReferenceError" in line for line in opened.console)


@pytest.mark.parametrize("views", [EVERY_VIEW, EVERY_VIEW[2:]], ids=["opened wide", "opened on a phone in the dark"])
def test_the_page_at_desktop_and_phone_width(views: tuple[View, ...], tmp_path: Path, browser: Browser) -> None:
    page = write_page(lifelike(50), tmp_path / "report.html")
    for width, mode, seen in looks(browser, page, *views, shot="study"):
        check_plots(seen, width)
        check_sorted(seen)
        assert {f"plot-{name}" for name in LANDSCAPE} <= set(seen["plots"])
        assert seen["plots"]["plot-history"]["paper"] == ("rgb(23, 28, 36)" if mode == "dark" else "rgb(255, 255, 255)")


def test_a_study_of_choices_and_conditions(tmp_path: Path, browser: Browser) -> None:
    page = write_page(crafted(50), tmp_path / "report.html")
    for width, _, seen in looks(browser, page, (390, "light"), (1280, "light"), shot="crafted"):
        check_plots(seen, width)


def test_a_study_with_rungs_whose_best_trial_lies_on_edges(tmp_path: Path, browser: Browser) -> None:
    best = record(60, losses=(0.9, 0.1), params={"learning_rate": 0.1, "weight_decay": 1e-5})
    trials = [replace(r, status=Status.PAUSED) if r.status is Status.PRUNED and r.number % 5 == 0 else r for r in lifelike(60).records]
    spec = SPEC | {"pruner": {"name": "halving", "warmup": 0.1, "reduction_factor": 2}}
    study = view(*trials, best, spec=spec, importance=(("learning_rate", 0.6), ("weight_decay", 0.4)))
    page = write_page(study, tmp_path / "report.html")
    for width, _, seen in looks(browser, page, (1280, "dark"), (390, "light"), shot="study-rungs"):
        check_plots(seen, width)
        assert seen["plots"]["plot-rungs"]["notes"] == 5  # the start and four rungs
        assert seen["plots"]["plot-contours"]["notes"] == 1


def test_a_thousand_trials_are_drawn(tmp_path: Path, browser: Browser) -> None:
    check_plots(look(browser, write_page(lifelike(1000), tmp_path / "report.html"), 1280, shot="study-1000-trials"), 1280)


def test_studies_with_nothing_to_draw_say_so_without_errors(tmp_path: Path, browser: Browser) -> None:
    for number, study in enumerate((view(importance=()), view(failed(0), failed(1), importance=()))):
        seen = look(browser, write_page(study, tmp_path / f"{number}.html"), 1280, shot=("", "study-failed-only")[number])
        assert all(plot["marks"] or plot["notes"] for plot in seen["plots"].values())


def test_hostile_names_do_nothing(tmp_path: Path, browser: Browser) -> None:
    space = SPACE | {HOSTILE: {"choices": [HOSTILE, "b"], "default": "b"}}
    edges = {"learning_rate": 0.1, "epochs": 16, "dropout": 0.5, HOSTILE: HOSTILE}
    study = view(
        record(0, params={HOSTILE: "b"}),
        record(1, losses=(0.01,), params=edges),
        failed(2, HOSTILE),
        name=HOSTILE,
        spec=SPEC | {"space": space},
        importance=((HOSTILE, 1.0),),
        importance_method=HOSTILE,
        policy=HOSTILE,
        notes=(HOSTILE,),
    )
    seen = look(browser, write_page(study, tmp_path / "report.html"), 1280, shot="study-hostile")
    check_plots(seen, 1280)
    assert seen["images"] == 0
    assert seen["plots"]["plot-slices"]["notes"] == 3  # edges


def test_a_study_of_another_objective_with_its_data(tmp_path: Path, browser: Browser) -> None:
    page = write_page(FULL, tmp_path / "report.html")
    for width, _, seen in looks(browser, page, (390, "dark"), (1280, "light"), shot="full"):
        check_plots(seen, width)
        check_sorted(seen)
        assert "plot-class_counts" in seen["plots"]
        assert (seen["images"], seen["broken"]) == (2 * 12 + 3, 0)


def test_a_study_that_proved_something(tmp_path: Path, browser: Browser) -> None:
    page = write_page(shown(opened(stored())), tmp_path / "report.html")
    for width, _, seen in looks(browser, page, *EVERY_VIEW, shot="proven"):
        check_plots(seen, width)
        assert {f"plot-{name}" for name in PROVEN} <= set(seen["plots"])
        assert (seen["images"], seen["broken"]) == (9, 0)


def test_a_proof_on_a_hundred_classes_looked_at_twice(tmp_path: Path, browser: Browser) -> None:
    study = stored(tuple(f"class number {i}" for i in range(100)), objective="accuracy", cv="3x5", confirm=None)
    page = write_page(shown(opened(opened(study, trial=1))), tmp_path / "report.html")
    for width, _, seen in looks(browser, page, (1280, "light"), (390, "light"), shot="proven-hundred"):
        check_plots(seen, width)


def test_a_hostile_proof_does_nothing(tmp_path: Path, browser: Browser) -> None:
    mistakes = (Example((HOSTILE,), HOSTILE, ("javascript:alert(1)",)),)
    page = write_page(shown(opened(stored((HOSTILE, "b", "c" * 300)), mistakes=mistakes)), tmp_path / "report.html")
    seen = look(browser, page, 390)
    check_plots(seen, 390)
    assert seen["images"] == 0


TRIALS = {
    "pruned": (FULL, next(r.number for r in FULL.records if r.status is Status.PRUNED)),
    "default": (FULL, 0),
    "failed": (view(record(0), record(1), failed(2, f"{HOSTILE}\n" + "a line of the traceback\n" * 20, (0.9, 0.8)), name=HOSTILE), 2),
    "alone": (view(record(0)), 0),
}


@pytest.mark.parametrize("name", TRIALS)
def test_the_page_of_one_trial(name: str, tmp_path: Path, browser: Browser) -> None:
    study, number = TRIALS[name]
    page = write_page(replace(study, trial=number), tmp_path / "trial.html", "trial")
    for width, _, seen in looks(browser, page, (1280, "light"), (390, "dark"), shot=f"trial-{name}"):
        assert set(seen["plots"]) == {f"plot-{figure}" for figure in TRIAL_FIGURES}
        for plot in seen["plots"].values():
            assert plot["marks"] > 0
            assert plot["drawn"] == pytest.approx(plot["width"], abs=1)
            assert plot["links"] == 0
            assert all(re.fullmatch(r"\d+", tick) for tick in plot["ticks"])
        assert (seen["wide"], seen["images"]) == (width, 0)


def test_print_draws_figures_anew_for_paper_and_light(tmp_path: Path, browser: Browser) -> None:
    page = write_page(lifelike(20), tmp_path / "report.html")
    script = """(async () => {
      const look = () => [...document.querySelectorAll(".plot svg.main-svg:first-of-type")].map(
        (svg) => [Math.round(svg.getBoundingClientRect().width), svg.style.background]);
      const seen = {before: look()};
      dispatchEvent(new Event("beforeprint"));
      seen.paper = look();
      dispatchEvent(new Event("afterprint"));
      for (let i = 0; i < 200 && JSON.stringify(look()) !== JSON.stringify(seen.before); i++) await new Promise((go) => setTimeout(go, 20));
      seen.after = look();
      return seen;
    })()"""
    opened = browser.file(page, 1280, dark=True)
    opened.await_plots()
    seen = opened.js(script)
    assert opened.console == []
    assert len(seen["before"]) == len(FIGURES) - 1 + len(LANDSCAPE)  # without the data
    assert all(paper == "rgb(23, 28, 36)" for _, paper in seen["before"])
    assert all((width, paper) == (660, "rgb(255, 255, 255)") for width, paper in seen["paper"])
    assert seen["after"] == seen["before"]


def test_the_page_of_a_hundred_classes(tmp_path: Path, browser: Browser) -> None:
    report = data_report(tuple(f"class number {i}" for i in range(100)))
    for width, _, seen in looks(browser, write_data_page(report, tmp_path / "check.html"), (1280, "light"), (390, "light"), shot="data"):
        assert seen["wide"] <= width
        assert seen["broken"] == 0
        assert len(seen["labels"]) == 100
        assert seen["plots"]["plot-class_counts"]["marks"] > 0


def test_on_a_phone_thumbnails_stand_two_in_a_row_wide_tables_fade_and_a_refusal_is_red(tmp_path: Path, browser: Browser) -> None:
    refused, page = data_report(), write_data_page(data_report(), tmp_path / "check.html")
    assert refused.refused
    script = """(() => {
      const tops = [...document.querySelectorAll(".examples")].map((list) => [...list.children].map((item) => item.offsetTop));
      return {tops, pairs: [...document.querySelectorAll(".examples li:has(figure + figure)")].map((item) => item.offsetWidth),
        fades: [...document.querySelectorAll(".wide")].map((wide) => [wide.classList.contains("more-right"),
          wide.firstElementChild.scrollWidth > wide.firstElementChild.clientWidth + 1]),
        bar: getComputedStyle(document.querySelector(".verdict")).borderLeftColor};
    })()"""
    opened = browser.file(page, 390)
    opened.await_plots()
    seen = opened.js(script)
    assert seen["bar"] == "rgb(198, 40, 40)"
    assert all(shows == wide for shows, wide in seen["fades"])
    assert any(tops[0] == tops[1] for tops in seen["tops"] if len(tops) > 1)
    assert all(width > 250 for width in seen["pairs"])


def test_hostile_data_does_nothing(tmp_path: Path, browser: Browser) -> None:
    seen = look(browser, write_data_page(hostile_data(), tmp_path / "check.html"), 390, "dark", shot="data-hostile")
    assert seen["wide"] <= 390
    assert (seen["images"], seen["broken"]) == (3 * 3 * 2, 0)  # three examples with a real thumbnail, in three findings
    assert "<script>alert…" in seen["labels"]
