"""What a page shows in other formats: each table as CSV, each figure as an image, which a browser that is on the machine draws."""

from __future__ import annotations

import base64
import html
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from hpsearch.errors import FixInput, FixSetup
from hpsearch.report.blocks import Grid, slug
from hpsearch.report.page import Plot, load_page, made, script_json, write
from hpsearch.report.style import INKS, TEMPLATES
from hpsearch.report.tables import StudyView

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge", "msedge")
ON_MACS = ("Google Chrome", "Chromium", "Microsoft Edge")
VARIABLE = "HPSEARCH_BROWSER"
WIDTH, SCALE = 1100, 2  # of an image: pixels of the page, and pixels of the image for each of them
PATIENCE = 300.0  # seconds that the browser is given
REMEDY = (
    f"install Chromium (Debian, Ubuntu: `apt-get install chromium`) or Chrome, or name one in {VARIABLE}; `--format html` needs none, "
    "and each of its figures has a button that saves it as an image"
)
# Drawn without its title, which is put above it: Plotly's titles do not wrap. The images leave by the page's own text, in one dump.
DRAWING = """<!DOCTYPE html><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:">
<script>%(plotly)s</script>
<script type="application/json" id="plots">%(plots)s</script>
<pre id="images"></pre>
<script>
const plots = JSON.parse(document.getElementById("plots").textContent);
const width = %(width)d, scale = %(scale)d, edge = 20, inner = width - 2 * edge, images = {};
const family = "system-ui, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif";

function lines(pen, text, font) {
  pen.font = font;
  const found = [""];
  for (const word of text.split(/\\s+/)) {
    const longer = (found.at(-1) + " " + word).trim();
    if (found.at(-1) && pen.measureText(longer).width > inner) found.push(word);
    else found[found.length - 1] = longer;
  }
  return found;
}

async function draw(plot) {
  const layout = {...plot.layout, template: plot.template, width: inner, height: plot.height};
  const picture = new Image();
  picture.src = await Plotly.toImage({data: plot.data, layout}, {format: "png", width: inner, height: plot.height, scale});
  await picture.decode();
  const canvas = document.createElement("canvas"), pen = canvas.getContext("2d");
  const title = lines(pen, plot.title, `600 19px ${family}`), text = lines(pen, plot.subtitle, `14px ${family}`);
  const top = edge + 26 * title.length + 20 * text.length + 10;
  canvas.width = width * scale;
  canvas.height = (top + plot.height + edge / 2) * scale;
  pen.scale(scale, scale);
  pen.fillStyle = plot.paper;
  pen.fillRect(0, 0, width, top + plot.height + edge);
  pen.textBaseline = "top";
  let y = edge;
  for (const [rows, font, colour, step] of [[title, `600 19px ${family}`, plot.text, 26], [text, `14px ${family}`, plot.muted, 20]]) {
    pen.font = font;
    pen.fillStyle = colour;
    for (const row of rows) { pen.fillText(row, edge, y); y += step; }
  }
  pen.drawImage(picture, edge, top, inner, plot.height);
  return canvas.toDataURL("image/png");
}

const beat = setInterval(() => {}, 1);  // an idle page's clock jumps to the end of the browser's patience
(async () => {
  for (const [id, plot] of Object.entries(plots)) {
    try { images[id] = await draw(plot); } catch (error) { images[id] = "failed: " + error; }
  }
  document.querySelectorAll("script").forEach((script) => script.remove());
  document.getElementById("images").textContent = JSON.stringify(images);
  clearInterval(beat);
})();
</script>
"""


# ---------------------------------------------------------------- CSV


def write_tables(view: StudyView, folder: Path, page: str | Path) -> list[Path]:
    """Write the table behind every figure and table of the page as UTF-8 CSV into `folder`; the files, in the page's order.

    Raises FixInput as `write_page` does, FixSetup when the folder cannot be written.
    """
    found = [b for s in made(view, load_page(page)) for b in s.blocks if isinstance(b, (Plot, Grid))]
    if not found:
        raise FixInput("this page has neither a figure nor a table: choose another page, or another format")
    texts = {csv_name(view, block): base64.b64decode(block.csv.partition(",")[2]).decode() for block in found}
    return [write(text, folder / name) for name, text in texts.items()]


def csv_name(view: StudyView, block: Plot | Grid) -> str:
    """What a block's table is called: as on the page, without the study's name, which the folder has."""
    return block.file.removeprefix(f"{slug(view.name)}-")


# ---------------------------------------------------------------- images


def write_images(view: StudyView, folder: Path, page: str | Path) -> list[Path]:
    """Draw every figure of the page as a PNG in `folder`; the files, in the page's order.

    Raises FixInput as `write_page` does, FixSetup when there is no browser to draw with or the folder cannot be written.
    """
    browser = find_browser()
    plots = [b for s in made(view, load_page(page)) for b in s.blocks if isinstance(b, Plot)]
    if not plots:
        raise FixInput("this page has no figure to draw: choose another page, or another format")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="drawing-", dir=folder) as scratch:  # a browser in a box may see no other folder
            images = drawn(browser, plots, Path(scratch))
        return [write_image(images.get(plot.id, ""), plot, folder / f"{csv_name(view, plot).removesuffix('.csv')}.png") for plot in plots]
    except OSError as error:
        raise FixSetup(f"the images cannot be written to {folder}: {error.strerror}; name another place") from error


def find_browser() -> str:
    """A browser that can draw without a window; FixSetup, with what to do, when there is none."""
    if named := os.environ.get(VARIABLE):
        if shutil.which(named) is None:
            raise FixSetup(f"{VARIABLE} names '{named}', which is no program: name a Chromium or Chrome, or {REMEDY}")
        return named
    macs = [f"/Applications/{name}.app/Contents/MacOS/{name}" for name in ON_MACS] if sys.platform == "darwin" else []
    found = next(filter(None, map(shutil.which, (*BROWSERS, *macs))), None)
    if found is None:
        raise FixSetup(f"images are drawn by a browser, and none was found: {REMEDY}")
    return found


def drawn(browser: str, plots: Sequence[Plot], scratch: Path) -> Mapping[str, str]:
    """Each plot as the data URI of a PNG."""
    page = scratch / "page.html"
    parts = {"plotly": get_plotlyjs(), "plots": script_json({p.id: picture(p) for p in plots}), "width": WIDTH, "scale": SCALE}
    page.write_bytes((DRAWING % parts).encode("utf-8", "replace"))
    command = [browser, "--headless", "--disable-gpu", "--no-first-run", f"--user-data-dir={scratch / 'profile'}"]
    command += ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # root has no sandbox to offer
    command += ["--virtual-time-budget=100000000", "--dump-dom", page.resolve().as_uri()]
    try:
        done = subprocess.run(command, capture_output=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise FixSetup(f"{browser} drew nothing in {PATIENCE:.0f} s: {REMEDY}") from None
    found = re.search(rb'<pre id="images">(\{.*?\})</pre>', done.stdout, re.DOTALL)
    if found is None:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        raise FixSetup(f"{browser} drew nothing ({last[:200]}): {REMEDY}")
    images: Mapping[str, str] = json.loads(found[1])
    return images


def picture(plot: Plot) -> dict[str, Any]:
    """What the browser needs to draw a plot, on light paper."""
    ink, template = INKS["light"], TEMPLATES["light"].to_plotly_json()
    words = {"title": html.unescape(plot.title), "subtitle": html.unescape(plot.subtitle)}
    colours = {"paper": ink.paper, "text": ink.text, "muted": ink.muted}
    return {**plot.drawing, "template": template, "height": plot.height, **words, **colours}


def write_image(image: str, plot: Plot, path: Path) -> Path:
    """Write one image; FixSetup when the browser did not draw it."""
    if not image.startswith("data:image/png;base64,"):
        raise FixSetup(f"the browser did not draw '{plot.id}' ({image[:200]}): {REMEDY}")
    path.write_bytes(base64.b64decode(image.partition(",")[2]))
    return path
