"""One self-contained HTML page, of a study, of data alone or of a comparison: a declarative page spec, a template, one inline plotly.js."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from hpsearch.errors import FixInput, FixSetup, nearest
from hpsearch.report import versus
from hpsearch.report.blocks import TABLES, WORDS, Grid, Words, csv_link
from hpsearch.report.comparison import COMPARISON_FIGURES
from hpsearch.report.data import data_cards, data_verdict
from hpsearch.report.figures import FIGURES
from hpsearch.report.findings import Findings, data
from hpsearch.report.landscape import LANDSCAPE
from hpsearch.report.objective import objective
from hpsearch.report.proof import PROOF, Gallery, Statements
from hpsearch.report.proof_figures import PROVEN
from hpsearch.report.style import IN_THE_DARK, TEMPLATES, Drawn
from hpsearch.report.tables import StudyView
from hpsearch.report.trial import TRIAL, TRIAL_FIGURES, file_name, trial_of
from hpsearch.report.trial_words import trial_cards, trial_chips, trial_verdict
from hpsearch.report.versus import VERSUS, ComparisonView
from hpsearch.report.words import Card, cards, several, shorten, verdict
from hpsearch.resources import folder
from hpsearch.types import DataReport, Status
from hpsearch.yamlfile import parse_yaml

CONFIG = {
    "showSendToCloud": False,  # Plotly's default offers to upload the figure
    "displaylogo": False,
    "responsive": True,
    "modeBarButtonsToRemove": ["select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d"],
}
TEMPLATE = "page.html.j2"
PAGE_KEYS = ("title", "sections")
SECTION_KEYS = ("heading", "text", "show")
COMPARED = (*COMPARISON_FIGURES, *VERSUS)  # what a page about samplers can show
DRAWN_WHERE_KNOWN = {**PROVEN, **LANDSCAPE}  # figures that are left out where they have nothing to say
NAMES = (*FIGURES, *TABLES, *WORDS, *DRAWN_WHERE_KNOWN, *PROOF, "data", *TRIAL_FIGURES, *TRIAL, *COMPARED)  # what a page spec can show


@dataclass(frozen=True, slots=True)
class Plot:
    """A figure on the page: title and subtitle are HTML there, because Plotly's do not wrap on a phone."""

    id: str
    title: str
    subtitle: str
    height: int
    csv: str
    file: str
    drawing: Mapping[str, Any]  # data and layout
    kind: str = "figure"


Block: TypeAlias = Plot | Grid | Words | Findings | Statements | Gallery


@dataclass(frozen=True, slots=True)
class Header:
    """What stands above the sections."""

    name: str
    generated: str
    verdict: str
    chips: Sequence[tuple[str, str]]
    cards: Sequence[Card]
    refused: bool = False  # whether the verdict is bad news


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with what stands under it."""

    heading: str
    text: str
    blocks: tuple[Block, ...] = field(default_factory=tuple)


def write_page(view: StudyView, path: Path, page: str | Path = "study") -> Path:
    """Write the page called `page` (or the page spec in a file, given as a `Path`) about `view` to `path`, whole or not at all.

    Raises FixInput for an unknown page, figure or table, and FixSetup when the file cannot be written.
    """
    return write(render(view, load_page(page)), path)


def write_data_page(report: DataReport, path: Path, generated: str = "") -> Path:
    """Write the page about checked data alone to `path`, whole or not at all; FixSetup when the file cannot be written."""
    view = StudyView(report.data, {}, {}, (), (), "", "", (), generated, report)
    head = Header(shorten(report.data, 160), generated, data_verdict(report), (), data_cards(report), bool(report.refused))
    return write(render(view, load_page("data"), head), path)


def write_comparison_page(view: ComparisonView, path: Path, page: str | Path = "comparison") -> Path:
    """Write the page about samplers compared to `path`, whole or not at all; raises as `write_page` does."""
    head = Header(view.name, view.generated, versus.headline(view.comparison), versus.chips(view), versus.cards(view), bool(view.notes))
    return write(render(view, load_page(page), head), path)


def write(text: str, path: Path) -> Path:
    """Write a page aside, then put it in place."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(text.encode("utf-8", "replace"))
        os.replace(aside, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise FixSetup(f"the report cannot be written to {path}: {error.strerror}; name another place") from error
    return path


def render(view: StudyView | ComparisonView, page: Mapping[str, Any], head: Header | None = None) -> str:
    """The whole page as text, under the header of the study, or of the trial that the view names, unless another is given."""
    if head is None:
        assert isinstance(view, StudyView)
        head = header(view)
    sections = made(view, page)
    plots = [b for s in sections for b in s.blocks if isinstance(b, Plot)]
    loader = jinja2.FileSystemLoader(folder("dashboards"))
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(TEMPLATE).render(
        title=page["title"],
        head=head,
        sections=sections,
        plots=script_json({p.id: p.drawing for p in plots}),
        templates=script_json({mode: template.to_plotly_json() for mode, template in TEMPLATES.items()}),
        shades=script_json(IN_THE_DARK),
        config=script_json(CONFIG),
        plotly=Markup(get_plotlyjs()) if plots else "",
        nonce=secrets.token_urlsafe(16),
    )


def header(view: StudyView) -> Header:
    """The header of a study, or of one trial; NotFound when the study has none of that number."""
    if view.trial is None:
        return Header(view.name, view.generated, verdict(view), chips(view), cards(view))
    number, bad = trial_of(view).number, trial_of(view).status is Status.FAILED
    return Header(f"Trial {number}", view.generated, trial_verdict(view), trial_chips(view), trial_cards(view), bad)


def made(view: StudyView | ComparisonView, page: Mapping[str, Any]) -> list[Section]:
    """The sections of a page with their blocks; those that have nothing to show are left out."""
    sections = [section(view, spec) for spec in page["sections"]]
    return [s for s, spec in zip(sections, page["sections"], strict=True) if s.blocks or not spec.get("show")]


def section(view: StudyView | ComparisonView, spec: Mapping[str, Any]) -> Section:
    """A section of the page spec with its blocks made; `{objective}` in its text is what the study optimises."""
    text = spec.get("text", "").replace("{objective}", objective(view.spec).label)
    return Section(spec.get("heading", ""), text, tuple(b for name in spec.get("show", ()) for b in blocks(view, name)))


def blocks(view: StudyView | ComparisonView, name: str) -> tuple[Block, ...]:
    """The figure, table or texts called `name`; none where the study has nothing of the kind. FixInput where it is about another thing."""
    if isinstance(view, ComparisonView) != (name in COMPARED):
        kind = "a comparison of samplers" if name in COMPARED else "one study"
        raise FixInput(f"'{name}' is about {kind}: this page cannot show it")
    if isinstance(view, ComparisonView):
        return (plot(view, name, COMPARISON_FIGURES[name](view.comparison)),) if name in COMPARISON_FIGURES else (VERSUS[name](view),)
    if name in TRIAL_FIGURES or name in TRIAL:
        return about_trial(view, name)
    if name == "data":
        return data(view)
    if name in PROOF:
        return PROOF[name](view)
    if name in DRAWN_WHERE_KNOWN:
        found = DRAWN_WHERE_KNOWN[name](view)
        return (plot(view, name, found),) if found else ()
    if name in TABLES:
        table = TABLES[name](view)
        return (table,) if table.rows or name != "per_class" else ()
    if name in WORDS:
        words = WORDS[name](view)
        return (words,) if words.lines else ()
    return (plot(view, name, FIGURES[name](view)),) if name != "class_counts" or view.data else ()


def about_trial(view: StudyView, name: str) -> tuple[Block, ...]:
    """The figure, table or text of one trial; none where nothing of the kind was recorded. FixInput for a view that names no trial."""
    if view.trial is None:
        raise FixInput(f"'{name}' is about one trial: say which with `--trial N`")
    trial_of(view)
    if name in TRIAL_FIGURES:
        return (plot(view, name, TRIAL_FIGURES[name](view)),)
    found = TRIAL[name](view)
    there = found.lines if isinstance(found, Words) else found.rows or name != "trial_classes"
    return (found,) if there else ()


def plot(view: StudyView | ComparisonView, name: str, found: Drawn) -> Plot:
    """A figure taken apart for the page."""
    drawn, table = found
    whole = json.loads(drawn.to_json())
    title = whole["layout"].pop("title")
    whole["layout"].pop("template")
    whole["layout"]["margin"]["t"] = 16  # the title stands above the plot
    subtitle = title["subtitle"]["text"]
    shown = file_name(view, name.removeprefix("trial_")) if isinstance(view, StudyView) and name in TRIAL_FIGURES else name
    csv, file = csv_link(view, shown, table)
    drawing = {"data": whole["data"], "layout": whole["layout"]}
    return Plot(f"plot-{name}", Markup(title["text"]), Markup(subtitle), whole["layout"]["height"], csv, file, drawing)


def chips(view: StudyView) -> list[tuple[str, str]]:
    """What was run, in a line: the study's choices that a reader asks for first."""
    shown = []
    for key in ("model", "data", "sampler", "pruner", "seed", "trials"):
        value = view.spec.get(key)
        if isinstance(value, Mapping):
            value = value.get("name")
        if key == "model" and len(listed := (view.spec.get("space", {}).get("model") or {}).get("choices", ())) > 1:
            value = ", ".join(listed)
        if value is not None:
            shown.append(
                (
                    key if key != "trials" else "budget",
                    shorten(several(value, "trial") if key == "trials" and isinstance(value, int) else str(value), 80),
                )
            )
    if not (goal := objective(view.spec)).is_loss:
        shown.insert(2, ("objective", goal.label))
    return shown


def script_json(value: object) -> Markup:
    """JSON that cannot end the script element it stands in: markup characters are written as escapes."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


# ---------------------------------------------------------------- page specs


def load_page(page: str | Path) -> Mapping[str, Any]:
    """The checked page spec of that name, or in that file."""
    known = {file.stem: file for file in folder("dashboards").glob("*.yaml")}
    if isinstance(page, str) and page not in known:
        raise FixInput(f"unknown page '{page}': {nearest(page, known)}")
    path = page if isinstance(page, Path) else known[page]
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise FixInput(f"the page spec {path} cannot be read: {error}") from None
    return check_page(parse_yaml(text, str(path)), str(path))


def check_page(values: object, source: str) -> Mapping[str, Any]:
    """Refuse a page spec with unknown keys or names, naming the nearest valid one."""
    if not isinstance(values, Mapping) or not isinstance(values.get("title"), str) or not isinstance(values.get("sections"), list):
        raise FixInput(f"{source} must hold `title: text` and `sections:`, a list of mappings with {', '.join(SECTION_KEYS)}")
    check_keys(values, PAGE_KEYS, source)
    for number, section in enumerate(values["sections"], start=1):
        where = f"{source}, section {number}"
        if not isinstance(section, Mapping):
            raise FixInput(f"{where} must be a mapping with {', '.join(SECTION_KEYS)}")
        check_keys(section, SECTION_KEYS, where)
        check_section(section, where)
    return values


def check_section(section: Mapping[str, Any], where: str) -> None:
    """Heading and text are text, `show` lists known names."""
    for key in ("heading", "text"):
        if not isinstance(section.get(key, ""), str):
            raise FixInput(f"{where}: {key} must be text; put it in quotes")
    shown = section.get("show", [])
    if not isinstance(shown, Sequence) or isinstance(shown, str):
        raise FixInput(f"{where}: show must be a list of names such as [history, trials]")
    for name in shown:
        if name not in NAMES:
            raise FixInput(f"{where}: unknown figure or table '{name}': {nearest(str(name), NAMES)}")


def check_keys(values: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Refuse keys outside `known`."""
    for key in values:
        if key not in known:
            raise FixInput(f"{where}: unknown key '{key}': {nearest(str(key), known)}")
