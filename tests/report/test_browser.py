"""The page in a real browser: headless Chromium at desktop and phone width, light and dark. Screenshots stay in tests/screenshots/."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
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

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None)
SHOTS = Path(__file__).parents[1] / "screenshots"

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium: `apt-get install chromium` (or Google Chrome) lets these tests look at the page"
)

# Headless Chromium lays no window out narrower than 500 px, so the page stands in a frame of the width wanted.
PROBE = """<!DOCTYPE html><meta charset="utf-8"><body style="margin:0">
<iframe id="frame" src="{page}" style="border:0;width:{width}px;height:{height}px"></iframe><pre id="seen"></pre>
<script>
const frame = document.getElementById("frame");
frame.addEventListener("load", () => setTimeout(() => {{
  const page = frame.contentDocument, seen = {{plots: {{}}}};
  for (const plot of page.querySelectorAll(".plot")) {{
    seen.plots[plot.id] = {{
      marks: plot.querySelectorAll(".trace path, .points path, .point path, .bars path, path.point, .heatmaplayer image").length,
      notes: plot.querySelectorAll(".annotation").length,
      drawn: plot.querySelector("svg.main-svg")?.getBoundingClientRect().width ?? 0,
      width: plot.clientWidth,
      ticks: [...plot.querySelectorAll(".xtick text")].map((t) => t.textContent),
      paper: plot.querySelector("svg.main-svg")?.style.background ?? "",
      links: plot.querySelectorAll("a[href], img").length,
    }};
  }}
  seen.wide = page.documentElement.scrollWidth;
  const images = [...page.querySelectorAll("main img, header img")];
  seen.images = images.length;
  seen.broken = images.filter((image) => !image.naturalWidth).length;
  seen.labels = [...page.querySelectorAll("#plot-class_counts .ytick text")].map((t) => t.textContent);
  const head = [...page.querySelectorAll("th button")].find((b) => b.textContent.startsWith("val loss"));
  if (head) {{
    const column = head.parentElement.cellIndex, table = head.closest("table"), rows = table.tBodies[0].rows;
    head.click();
    seen.rising = [...rows].map((row) => row.cells[column].dataset.v);
    head.click();
    seen.falling = [...rows].map((row) => row.cells[column].dataset.v);
    table.querySelector("th button").click();
  }}
  document.getElementById("seen").textContent = JSON.stringify(seen);
}}, 1500));
</script>
"""


def chromium(tmp_path: Path, page: Path, size: tuple[int, int], *flags: str, dark: bool = False) -> tuple[str, list[str]]:
    """What the browser prints about `page`, and the lines of its console."""
    command = [
        str(BROWSER),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--disable-web-security",
        "--allow-file-access-from-files",
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--window-size={size[0]},{size[1]}",
        "--virtual-time-budget=5000",
        "--enable-logging=stderr",
        "--v=0",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        *flags,
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def look(tmp_path: Path, page: Path, width: int, height: int, dark: bool = False, shot: str = "") -> dict[str, Any]:
    """Open the page `width` pixels wide; what was seen there. Fails on any console message."""
    probe = tmp_path / "probe.html"
    probe.write_text(PROBE.format(page=page.as_uri(), width=width, height=height), encoding="utf-8")
    SHOTS.mkdir(exist_ok=True)
    target = SHOTS / f"{shot}.png"
    target.unlink(missing_ok=True)
    text, console = chromium(tmp_path, probe, (width, height), "--dump-dom", *([f"--screenshot={target}"] if shot else []), dark=dark)
    assert console == []
    assert not shot or target.stat().st_size > 20_000
    found = re.search(r'<pre id="seen">(.*?)</pre>', text, re.DOTALL)
    assert found is not None
    seen: dict[str, Any] = json.loads(html.unescape(found[1]))
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


def test_console_messages_are_heard(tmp_path: Path) -> None:
    page = tmp_path / "loud.html"
    page.write_text("<script>console.error('a mistake'); nothing.here</script>")
    _, console = chromium(tmp_path, page, (600, 400), "--dump-dom")
    assert any("a mistake" in line for line in console)
    assert any("ReferenceError" in line for line in console)


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 8500), (390, 11800)])
def test_the_page_at_desktop_and_phone_width(width: int, height: int, mode: str, tmp_path: Path) -> None:
    page = write_page(lifelike(50), tmp_path / "report.html")
    seen = look(tmp_path, page, width, height, dark=mode == "dark", shot=f"study-{width}-{mode}")
    check_plots(seen, width)
    check_sorted(seen)
    assert {f"plot-{name}" for name in LANDSCAPE} <= set(seen["plots"])
    assert seen["plots"]["plot-history"]["paper"] == ("rgb(23, 28, 36)" if mode == "dark" else "rgb(255, 255, 255)")


@pytest.mark.parametrize("width", [1280, 390])
def test_a_study_of_choices_and_conditions(width: int, tmp_path: Path) -> None:
    page = write_page(crafted(50), tmp_path / "report.html")
    check_plots(look(tmp_path, page, width, 9800 if width > 1000 else 14400, shot=f"crafted-{width}"), width)


@pytest.mark.parametrize(("width", "mode"), [(1280, "dark"), (390, "light")])
def test_a_study_with_rungs_whose_best_trial_lies_on_edges(width: int, mode: str, tmp_path: Path) -> None:
    best = record(60, losses=(0.9, 0.1), params={"learning_rate": 0.1, "weight_decay": 1e-5})
    trials = [replace(r, status=Status.PAUSED) if r.status is Status.PRUNED and r.number % 5 == 0 else r for r in lifelike(60).records]
    spec = SPEC | {"pruner": {"name": "halving", "warmup": 0.1, "reduction_factor": 2}}
    study = view(*trials, best, spec=spec, importance=(("learning_rate", 0.6), ("weight_decay", 0.4)))
    page = write_page(study, tmp_path / "report.html")
    seen = look(tmp_path, page, width, 8800 if width > 1000 else 12000, dark=mode == "dark", shot=f"study-rungs-{width}-{mode}")
    check_plots(seen, width)
    assert seen["plots"]["plot-rungs"]["notes"] == 5  # the start and four rungs
    assert seen["plots"]["plot-contours"]["notes"] == 1


def test_a_thousand_trials_are_drawn(tmp_path: Path) -> None:
    check_plots(look(tmp_path, write_page(lifelike(1000), tmp_path / "report.html"), 1280, 8500, shot="study-1000-trials"), 1280)


def test_studies_with_nothing_to_draw_say_so_without_errors(tmp_path: Path) -> None:
    for number, study in enumerate((view(importance=()), view(failed(0), failed(1), importance=()))):
        seen = look(tmp_path, write_page(study, tmp_path / f"{number}.html"), 1280, 4000, shot=("", "study-failed-only")[number])
        assert all(plot["marks"] or plot["notes"] for plot in seen["plots"].values())


def test_hostile_names_do_nothing(tmp_path: Path) -> None:
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
    seen = look(tmp_path, write_page(study, tmp_path / "report.html"), 1280, 5200, shot="study-hostile")
    check_plots(seen, 1280)
    assert seen["images"] == 0
    assert seen["plots"]["plot-slices"]["notes"] == 3  # edges


@pytest.mark.parametrize(("width", "height", "mode"), [(1280, 10500, "light"), (390, 15000, "dark")])
def test_a_study_of_another_objective_with_its_data(width: int, height: int, mode: str, tmp_path: Path) -> None:
    page = write_page(FULL, tmp_path / "report.html")
    seen = look(tmp_path, page, width, height, dark=mode == "dark", shot=f"full-{width}-{mode}")
    check_plots(seen, width)
    check_sorted(seen)
    assert "plot-class_counts" in seen["plots"]
    assert (seen["images"], seen["broken"]) == (2 * 12 + 3, 0)


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 11800), (390, 17000)])
def test_a_study_that_proved_something(width: int, height: int, mode: str, tmp_path: Path) -> None:
    page = write_page(shown(opened(stored())), tmp_path / "report.html")
    seen = look(tmp_path, page, width, height, dark=mode == "dark", shot=f"proven-{width}-{mode}")
    check_plots(seen, width)
    assert {f"plot-{name}" for name in PROVEN} <= set(seen["plots"])
    assert (seen["images"], seen["broken"]) == (9, 0)


@pytest.mark.parametrize("width", [1280, 390])
def test_a_proof_on_a_hundred_classes_looked_at_twice(width: int, tmp_path: Path) -> None:
    study = stored(tuple(f"class number {i}" for i in range(100)), objective="accuracy", cv="3x5", confirm=None)
    page = write_page(shown(opened(opened(study, trial=1))), tmp_path / "report.html")
    check_plots(look(tmp_path, page, width, 12400 if width > 1000 else 17000, shot=f"proven-hundred-{width}"), width)


def test_a_hostile_proof_does_nothing(tmp_path: Path) -> None:
    mistakes = (Example((HOSTILE,), HOSTILE, ("javascript:alert(1)",)),)
    page = write_page(shown(opened(stored((HOSTILE, "b", "c" * 300)), mistakes=mistakes)), tmp_path / "report.html")
    seen = look(tmp_path, page, 390, 12000)
    check_plots(seen, 390)
    assert seen["images"] == 0


TRIALS = {
    "pruned": (FULL, next(r.number for r in FULL.records if r.status is Status.PRUNED)),
    "default": (FULL, 0),
    "failed": (view(record(0), record(1), failed(2, f"{HOSTILE}\n" + "a line of the traceback\n" * 20, (0.9, 0.8)), name=HOSTILE), 2),
    "alone": (view(record(0)), 0),
}


@pytest.mark.parametrize("name", TRIALS)
@pytest.mark.parametrize(("width", "height", "mode"), [(1280, 3700, "light"), (390, 5600, "dark")])
def test_the_page_of_one_trial(width: int, height: int, mode: str, name: str, tmp_path: Path) -> None:
    study, number = TRIALS[name]
    page = write_page(replace(study, trial=number), tmp_path / "trial.html", "trial")
    seen = look(tmp_path, page, width, height, dark=mode == "dark", shot=f"trial-{name}-{width}-{mode}")
    assert set(seen["plots"]) == {f"plot-{figure}" for figure in TRIAL_FIGURES}
    for plot in seen["plots"].values():
        assert plot["marks"] > 0
        assert plot["drawn"] == pytest.approx(plot["width"], abs=1)
        assert plot["links"] == 0
        assert all(re.fullmatch(r"\d+", tick) for tick in plot["ticks"])
    assert (seen["wide"], seen["images"]) == (width, 0)


def test_print_draws_figures_anew_for_paper_and_light(tmp_path: Path) -> None:
    page = write_page(lifelike(20), tmp_path / "report.html")
    script = """<script>addEventListener("load", () => setTimeout(() => {
      const look = () => [...document.querySelectorAll(".plot svg.main-svg:first-of-type")].map(
        (svg) => [Math.round(svg.getBoundingClientRect().width), svg.style.background]);
      const seen = {before: look()};
      dispatchEvent(new Event("beforeprint"));
      seen.paper = look();
      dispatchEvent(new Event("afterprint"));
      setTimeout(() => {
        seen.after = look();
        document.body.insertAdjacentHTML("beforeend", "<pre id=seen>" + JSON.stringify(seen) + "</pre>");
      }, 800);
    }, 800))</script>"""
    nonce = re.search(r'script nonce="([^"]+)"', page.read_text())
    assert nonce is not None
    page.write_text(page.read_text().replace("</body>", script.replace("<script>", f'<script nonce="{nonce[1]}">') + "</body>"))
    dom, console = chromium(tmp_path, page, (1280, 3000), "--dump-dom", dark=True)
    found = re.search(r'<pre id="seen">(.*?)</pre>', dom, re.DOTALL)
    assert console == []
    assert found is not None
    seen = json.loads(html.unescape(found[1]))
    assert len(seen["before"]) == len(FIGURES) - 1 + len(LANDSCAPE)  # without the data
    assert all(paper == "rgb(23, 28, 36)" for _, paper in seen["before"])
    assert all((width, paper) == (660, "rgb(255, 255, 255)") for width, paper in seen["paper"])
    assert seen["after"] == seen["before"]


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_of_a_hundred_classes(width: int, tmp_path: Path) -> None:
    report = data_report(tuple(f"class number {i}" for i in range(100)))
    seen = look(tmp_path, write_data_page(report, tmp_path / "check.html"), width, 5300, shot=f"data-{width}")
    assert seen["wide"] <= width
    assert seen["broken"] == 0
    assert len(seen["labels"]) == 100
    assert seen["plots"]["plot-class_counts"]["marks"] > 0


def test_on_a_phone_thumbnails_stand_two_in_a_row_wide_tables_fade_and_a_refusal_is_red(tmp_path: Path) -> None:
    refused, page = data_report(), write_data_page(data_report(), tmp_path / "check.html")
    assert refused.refused
    script = """<script>addEventListener("load", () => setTimeout(() => {
      const tops = [...document.querySelectorAll(".examples")].map((list) => [...list.children].map((item) => item.offsetTop));
      const seen = {tops, pairs: [...document.querySelectorAll(".examples li:has(figure + figure)")].map((item) => item.offsetWidth),
        fades: [...document.querySelectorAll(".wide")].map((wide) => [wide.classList.contains("more-right"),
          wide.firstElementChild.scrollWidth > wide.firstElementChild.clientWidth + 1]),
        bar: getComputedStyle(document.querySelector(".verdict")).borderLeftColor};
      document.body.insertAdjacentHTML("beforeend", "<pre id=seen>" + JSON.stringify(seen) + "</pre>");
    }, 800))</script>"""
    nonce = re.search(r'script nonce="([^"]+)"', page.read_text())
    assert nonce is not None
    page.write_text(page.read_text().replace("</body>", script.replace("<script>", f'<script nonce="{nonce[1]}">') + "</body>"))
    dom, _ = chromium(tmp_path, page, (390, 3000), "--dump-dom")
    found = re.search(r'<pre id="seen">(.*?)</pre>', dom, re.DOTALL)
    assert found is not None
    seen = json.loads(html.unescape(found[1]))
    assert seen["bar"] == "rgb(198, 40, 40)"
    assert all(shows == wide for shows, wide in seen["fades"])
    assert any(tops[0] == tops[1] for tops in seen["tops"] if len(tops) > 1)
    assert all(width > 250 for width in seen["pairs"])


def test_hostile_data_does_nothing(tmp_path: Path) -> None:
    seen = look(tmp_path, write_data_page(hostile_data(), tmp_path / "check.html"), 390, 6000, shot="data-hostile", dark=True)
    assert seen["wide"] <= 390
    assert (seen["images"], seen["broken"]) == (3 * 3 * 2, 0)  # three examples with a real thumbnail, in three findings
    assert "<script>alert…" in seen["labels"]
