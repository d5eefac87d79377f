"""What a page shows besides figures: tables with readable cells and their CSV, and texts."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import pandas as pd

from hpsearch.recipes import has_effect
from hpsearch.report import data, objective, tables
from hpsearch.report.words import FATES, NONE, loss, number, percent, seconds, shorten
from hpsearch.types import Status, Value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hpsearch.report.tables import StudyView
    from hpsearch.types import TrialRecord

LABELS = objective.LABELS | {
    "number": "trial",
    "status": "fate",
    "val_loss": "val loss (nats)",
    "best_epoch": "best epoch",
    "epochs_trained": "epochs trained",
    "seconds": "time (s)",
    "images": "validation images",
    "reused": "trained in",
}

RECIPE_KEYS = ("data", "data_root", "bad_files", "split", "model", "weights", "preprocess", "objective", "seed")
YAML_WORDS = ("true", "false", "yes", "no", "on", "off", "y", "n", "null")  # read as something else than text
COUNTS = ("images", "parameters", "classes", "files", "labels checked")  # how facts that count something begin
CLASS_SHARES = ("precision", "recall", "f1")
CLASS_NOTE = "Lowest recall first: the share of a class's {images} that is found. Few images, little certainty."
SHOWN: Mapping[str, Callable[[object], str]] = {
    "val_loss": loss,
    "seconds": seconds,
    **dict.fromkeys((*tables.METRICS, *tables.FURTHER), percent),
}


@dataclass(frozen=True, slots=True)
class Cell:
    """What a cell says, and the value it is sorted by."""

    text: str
    sort: float | str
    css: str = ""


@dataclass(frozen=True, slots=True)
class Grid:
    """A table on the page."""

    title: str
    columns: tuple[tuple[str, str], ...]  # label, CSS class
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]  # CSS class, cells
    csv: str
    file: str
    sortable: bool = False
    copy: str = ""  # text worth copying, shown below
    copy_title: str = ""
    note: str = ""  # below the title
    kind: str = "table"


@dataclass(frozen=True, slots=True)
class Words:
    """Texts on the page: sentences, or commands to copy."""

    title: str
    lines: tuple[str, ...]
    code: bool = False
    kind: str = "words"


def trials(view: StudyView) -> Grid:
    """All trials, sortable."""
    frame = tables.trials(view)
    best, default = tables.best_trial(view), tables.default_trial(view)
    score = objective.objective(view.spec).name
    first = list(dict.fromkeys(("number", "status", score, "val_loss", "accuracy", *tables.FURTHER)))
    last = [name for name in ("precision", "recall", "f1", "origin", "reused", "diagnosis", "error") if name not in first]
    order = [*first, *(name for name in frame.columns if name not in (*first, *last)), *last]
    columns = [name for name in order if name in frame and (name in first[:3] or frame[name].notna().any())]
    marks = {r.number: css for r, css in ((default, "default"), (best, "best")) if r}
    rows = [(marks.get(row["number"], ""), tuple(cell(name, row[name]) for name in columns)) for row in frame.to_dict("records")]
    words = ("status", "origin", "reused", "diagnosis", "error")
    heads = tuple((LABELS.get(name, name), "text" if name in words else "num") for name in columns)
    return Grid("All trials", heads, tuple(rows), *csv_link(view, "trials", frame), sortable=True)


def cell(column: str, value: object) -> Cell:
    """A value of the trial table."""
    if value is None or value is pd.NA or value != value:
        return Cell(NONE, "", "none")
    if column == "status":
        return Cell(FATES[Status(str(value))], str(value), f"fate {value}")
    if column in ("diagnosis", "error"):
        return Cell(shorten(str(value), 240), str(value), column)
    if not isinstance(value, (int, float)):
        return Cell(shorten(str(value), 60), str(value))
    if column == "number":
        return Cell(str(value), float(value), "num")  # a name, not a count
    return Cell(SHOWN.get(column, number)(value), float(value), "num")


def configuration(view: StudyView) -> Grid:
    """The best configuration beside the default recipe, with a study file that runs it again."""
    frame = tables.configuration(view)
    rows = []
    for name, best, used, default, ranged, edge in frame.itertuples(index=False):
        remark = f"on the {edge} edge: widen it" if edge else ""
        if used != best and not near(used, best):
            remark = f"trained with {number(used)}" + (f"; {remark}" if remark else "")
        changed = "changed" if best is not None and best != default else ""
        styled = (
            (shorten(name, 40), "name"),
            (number(best), f"num {changed}"),
            (number(default), "num"),
            (ranged, "name"),
            (remark, "remark"),
        )
        rows.append(tuple(Cell(shorten(str(text), 90), "", css) for text, css in styled))
    heads: tuple[tuple[str, str], ...] = (
        ("hyperparameter", "text"),
        ("best", "num"),
        ("default recipe", "num"),
        ("searched", "text"),
        ("remark", "text"),
    )
    shown = slice(None) if any(cells[-1].text for cells in rows) else slice(-1)
    recipe = recipe_yaml(view)
    return Grid(
        "Best trial beside the default recipe",
        heads[shown],
        tuple(("", cells[shown]) for cells in rows),
        *csv_link(view, "configuration", frame),
        copy=recipe,
        copy_title="A study file that trains this configuration again" if recipe else "",
    )


def near(used: object, best: object) -> bool:
    """Whether two values are one, but for single precision."""
    return isinstance(used, (int, float)) and isinstance(best, (int, float)) and math.isclose(used, best, rel_tol=1e-6)


def recipe_yaml(view: StudyView, record: TrialRecord | None = None, file: str = "best") -> str:
    """A trial's configuration, the best one's by itself, as a study file with its whole recipe fixed; nothing without a best trial."""
    record = record or tables.best_trial(view)
    if record is None:
        return ""
    kept = {key: value for key in RECIPE_KEYS if (value := asked(view.spec.get(key))) not in (None, {})}
    given: dict[str, Value] = {**tables.craft(view), **record.params}
    recipe = {key: value for key, value in given.items() if has_effect(key, given)}
    name = f"best-trial-{record.number}" if file == "best" else file
    body = "".join(f"{line}\n" for line in yaml_lines({"name": name, **kept, "trials": 1, "recipe": recipe}))
    return f"# trial {record.number} of {shorten(view.name, 80)}: save as {file}.yaml, then `hpsearch run {file}.yaml`\n{body}"


def asked(value: object) -> object:
    """A setting without its parts that were left open."""
    return {key: part for key, part in value.items() if part is not None} if isinstance(value, Mapping) else value


def yaml_lines(values: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Nested mappings of plain values as lines of YAML; what is no plain word or number stands as JSON, which is YAML too."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield f"{indent}{yaml_word(key)}:"
            yield from yaml_lines(value, f"{indent}  ")
        else:
            yield f"{indent}{yaml_word(key)}: {yaml_word(value)}"


def yaml_word(value: object) -> str:
    """A plain value as YAML."""
    plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_./-]*", value) and value.lower() not in YAML_WORDS
    return str(value) if plain else json.dumps(value, ensure_ascii=False)


def pairs(view: StudyView, title: str, name: str, frame: pd.DataFrame, key: str = "name") -> Grid:
    """A table of two columns: what, and its value."""
    rows = tuple(
        ("", (Cell(str(what), "", key), Cell(counted(str(what), str(value)), "", "wrap"))) for what, value in frame.itertuples(index=False)
    )
    return Grid(title, tuple((str(column), "text") for column in frame.columns), rows, *csv_link(view, name, frame))


def counted(what: str, value: str) -> str:
    """A value as a person reads it: numbers that count something have a comma at thousands."""
    return f"{int(value):,}" if what.startswith(COUNTS) and re.fullmatch(r"[0-9]{4,15}", value) else value


def per_class(view: StudyView) -> Grid:
    """How well the best trial tells each class, worst first; no rows when it was not recorded."""
    best = tables.best_trial(view)
    title = f"Each class in the best trial ({best.number})" if best else "Each class in the best trial"
    return class_grid(view, title, "per_class", data.per_class(view), LABELS["images"])


def class_grid(view: StudyView, title: str, name: str, frame: pd.DataFrame, images: str) -> Grid:
    """How well each class is told; `images` says which ones were counted."""
    rows = []
    for label, n, *shares in frame.itertuples(index=False):
        counted = Cell(NONE, "", "none") if n != n else Cell(f"{n:,.0f}", n, "num")
        rows.append(
            ("", (Cell(shorten(label, 60), label, "wrap class"), counted, *(cell(k, v) for k, v in zip(CLASS_SHARES, shares, strict=True))))
        )
    heads = (("class", "text"), (images, "num"), *((LABELS.get(column, column), "num") for column in CLASS_SHARES))
    return Grid(title, heads, tuple(rows), *csv_link(view, name, frame), sortable=True, note=CLASS_NOTE.format(images=images))


def study(view: StudyView) -> Grid:
    """The resolved study."""
    return pairs(view, "The study", "study", tables.study(view))


def facts(view: StudyView) -> Grid:
    """What the worker found."""
    return pairs(view, "What the worker found", "facts", tables.facts(view))


def policy(view: StudyView) -> Words:
    """How pruned trials are told to the sampler."""
    return Words("", (f"How the sampler learns from pruned trials: {view.policy}",) if view.policy else ())


def headstart(view: StudyView) -> Words:
    """What the study began with."""
    return Words("", tuple(shorten(line, 600) for line in view.headstart))


def notes(view: StudyView) -> Words:
    """Commands and remarks of the caller."""
    return Words("Commands", view.notes, code=True)


class Named(Protocol):
    """What a page is about."""

    @property
    def name(self) -> str:
        """Of the study or comparison."""
        ...


def csv_link(view: Named, name: str, frame: pd.DataFrame) -> tuple[str, str]:
    """A data URI with the table as CSV, and the file name to save it under."""
    text = frame.to_csv(index=False, lineterminator="\n").encode("utf-8", "replace")
    return f"data:text/csv;charset=utf-8;base64,{base64.b64encode(text).decode()}", f"{slug(view.name)}-{name}.csv"


def slug(name: str) -> str:
    """A study's name as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:48] or "study"


TABLES: Mapping[str, Callable[[StudyView], Grid]] = {
    "configuration": configuration,
    "per_class": per_class,
    "trials": trials,
    "study": study,
    "facts": facts,
}
"""Every table that a page can show."""

WORDS: Mapping[str, Callable[[StudyView], Words]] = {"headstart": headstart, "policy": policy, "notes": notes}
"""Every text that a page can show."""
