"""What checking the data found, as blocks of a page: the findings with their thumbnails, images of each class, key facts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hpsearch.report.blocks import Cell, Grid, csv_link, pairs
from hpsearch.report.data import LEVELS, class_counts, data_facts, levels, splits
from hpsearch.report.words import percent, shorten
from hpsearch.types import Example, Finding

if TYPE_CHECKING:
    from hpsearch.report.tables import StudyView
    from hpsearch.types import DataReport

THUMBNAIL = re.compile(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/]+={0,2}")
MOST_EXAMPLES = 12  # of one finding
MOST_CLASSES = 30  # in the table; with more, the ends of the list
END = 10  # classes at either end


@dataclass(frozen=True, slots=True)
class Picture:
    """One image of an example."""

    name: str
    thumbnail: str  # a data URI of a PNG or JPEG, or nothing


@dataclass(frozen=True, slots=True)
class Shown:
    """An example: one image, or a pair side by side."""

    pictures: tuple[Picture, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Found:
    """A finding on the page."""

    level: str
    kind: str
    text: str
    count: int
    examples: tuple[Shown, ...]
    left: str  # how many examples are not shown, in words


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything that the check found, errors first."""

    title: str
    subtitle: str
    found: tuple[Found, ...]
    kind: str = "findings"


def data(view: StudyView) -> tuple[Findings | Grid, ...]:
    """The blocks about the data; none for a view without a data report."""
    return () if view.data is None else (findings(view.data), classes(view, view.data), facts(view, view.data))


def findings(report: DataReport) -> Findings:
    """Errors, then warnings, then notes."""
    found = sorted(report.findings, key=lambda f: LEVELS.index(f.level))
    return Findings("What the check found", levels(report) or "no error, no warning, no note", tuple(map(shown, found)))


def shown(finding: Finding) -> Found:
    """A finding with its first examples."""
    examples = tuple(map(example, finding.examples[:MOST_EXAMPLES]))
    most = max(finding.count, len(finding.examples))
    left = f"{len(examples)} of {most:,} {'is' if len(examples) == 1 else 'are'} shown." if 0 < len(examples) < most else ""
    return Found(finding.level, shorten(finding.kind, 60), shorten(finding.text, 600), finding.count, examples, left)


def example(example: Example) -> Shown:
    """An example whose thumbnails are images and nothing else."""
    uris = [uri if THUMBNAIL.fullmatch(uri) else "" for uri in example.thumbnails]
    names = [middle(name) for name in example.names]
    length = max(len(uris), len(names))
    both = zip(names + [""] * (length - len(names)), uris + [""] * (length - len(uris)), strict=True)
    return Shown(tuple(Picture(name, uri) for name, uri in both), shorten(example.text, 240))


def middle(name: str, length: int = 80) -> str:
    """A name on one line, cut in the middle: a path is known by both ends."""
    line = " ".join(name.split())
    return line if len(line) <= length else f"{line[: length // 2 - 1]}…{line[-length // 2 :]}"


def classes(view: StudyView, report: DataReport) -> Grid:
    """Images of each class in each split, largest first."""
    frame = class_counts(report)
    rows = [
        (Cell(shorten(name, 60), name, "wrap class"), *(Cell(f"{n:,}", n, "num") for n in rest))
        for name, *rest in frame.iloc[:, :-1].itertuples(index=False)
    ]
    rows = [(*row, Cell(percent(share), share, "num")) for row, share in zip(rows, frame["share"], strict=True)]
    note = "Largest first."
    if len(rows) > MOST_CLASSES:
        note = (
            f"The {END} largest and the {END} smallest: {len(rows) - 2 * END:,} of {len(rows):,} classes are not shown. The CSV holds all."
        )
        rows = rows[:END] + rows[-END:]
    heads = (("class", "text"), *((shorten(split, 24), "num") for split in splits(report)), ("all", "num"), ("share", "num"))
    return Grid("Classes and splits", heads, tuple(("", row) for row in rows), *csv_link(view, "classes", frame), sortable=True, note=note)


def facts(view: StudyView, report: DataReport) -> Grid:
    """What the check counted and measured."""
    return pairs(view, "Facts about the data", "data-facts", data_facts(report), key="wrap class")
