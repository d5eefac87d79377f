"""What is known of the data and of each class: tables of a `DataReport` and of the best trial, and the check's verdict in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hpsearch.report import tables
from hpsearch.report.words import Card, number, percent, several
from hpsearch.types import DataReport

if TYPE_CHECKING:
    import pandas as pd

    from hpsearch.report.tables import StudyView
    from hpsearch.types import PerClass

SPLITS = ("train", "val", "test")  # in this order; others after them
LEVELS = ("error", "warning", "note")  # worst first
FACTS = {  # what a check measured, in words; a share
    "majority_share": "always guessing the largest class is right in",
    "smallest_difference": "smallest difference in accuracy that validation can show",
    "neighbour_accuracy": "labels that agree with their neighbours in the frozen features",
}
CLASS_COLUMNS = ("images", "precision", "recall", "f1")


# ---------------------------------------------------------------- tables


def splits(report: DataReport) -> list[str]:
    """The splits that were counted."""
    return sorted(report.counts, key=lambda name: (SPLITS.index(name) if name in SPLITS else len(SPLITS), name))


def class_counts(report: DataReport) -> pd.DataFrame:
    """One row a class, largest first: its images in each split, in all, and its share of all images in [0, 1]."""
    names = splits(report)
    each = [[n[i] if i < len(n := report.counts[split]) else 0 for split in names] for i in range(len(report.classes))]
    total = sum(map(sum, each))
    largest_first = sorted(zip(report.classes, each, strict=True), key=lambda pair: -sum(pair[1]))
    rows = [(name, *n, sum(n), sum(n) / total if total else 0.0) for name, n in largest_first]
    return tables.frame(rows, ["class", *map(split_column, names), "all", "share"], ("share",))


def split_column(split: str) -> str:
    """A split's column in the table of classes."""
    name = split.encode("utf-8", "backslashreplace").decode()  # pandas refuses half of a surrogate pair
    return f"split.{name}" if name in ("class", "all", "share") else name


def data_facts(report: DataReport) -> pd.DataFrame:
    """What the check counted and measured, one fact a row."""
    images = [(f"images: {split}", str(sum(report.counts[split]))) for split in splits(report)]
    shares = [(text, percent(report.facts[key])) for key, text in FACTS.items() if report.facts.get(key) is not None]
    known = [*shares, *((k.replace("_", " "), number(v)) for k, v in report.facts.items() if v is not None and k not in (*FACTS, "images"))]
    counted = [("data", report.data), ("classes", str(len(report.classes))), *images, ("files left out", str(report.left_out))]
    return tables.frame([*counted, *known], ["fact", "value"])


def per_class(view: StudyView) -> pd.DataFrame:
    """One row a class as the best trial sees it, lowest recall first: validation images, precision, recall, F1 (shares in [0, 1])."""
    best = tables.best_trial(view)
    return class_table(best.per_class if best else {}, class_names(view))


def class_names(view: StudyView) -> Sequence[str]:
    """What the worker calls the classes."""
    known = view.facts.get("classes")
    return [str(name) for name in known] if isinstance(known, Sequence) and not isinstance(known, str) else []


def class_name(names: Sequence[str], i: int) -> str:
    """What a class is called."""
    return names[i] if i < len(names) else f"class {i}"


def class_table(values: PerClass, names: Sequence[str]) -> pd.DataFrame:
    """One row a class, lowest recall first."""
    rows: list[tuple[Any, ...]] = []
    for i in range(max(map(len, values.values()), default=0)):
        row = [tables.finite(values[name][i]) if i < len(values.get(name, ())) else None for name in CLASS_COLUMNS]
        rows.append((class_name(names, i), *row))
    rows.sort(key=lambda row: math.inf if row[3] is None else row[3])
    return tables.frame(rows, ["class", *CLASS_COLUMNS], CLASS_COLUMNS)


# ---------------------------------------------------------------- words


def images(report: DataReport) -> int:
    """How many images can be used."""
    return sum(map(sum, report.counts.values()))


def levels(report: DataReport, which: Sequence[str] = LEVELS) -> str:
    """How many findings there are of each level, worst first."""
    numbers = {level: sum(f.level == level for f in report.findings) for level in which}
    return ", ".join(several(n, level) for level, n in numbers.items() if n)


def data_verdict(report: DataReport) -> str:
    """Whether a study may run on this data."""
    refused = report.refused
    if refused:
        rest = levels(report, ("warning", "note"))
        beside = f"; beside that, {rest}" if rest else ""
        return (
            f"A study on this data is refused until {several(len(refused), 'error')} {'is' if len(refused) == 1 else 'are'} mended{beside}."
        )
    if found := levels(report):
        return f"A study can run on this data; the check has {found} for you."
    return "A study can run on this data: the check found nothing wrong."


def data_cards(report: DataReport) -> list[Card]:
    """The key numbers of the check's page."""
    sizes = class_counts(report)["all"].tolist()
    parts = ", ".join(f"{sum(report.counts[split]):,} {split}" for split in splits(report))
    few, many = (min(sizes), max(sizes)) if sizes else (0, 0)
    each = f"{few:,} to {many:,} images in each" if few < many else f"{several(few, 'image')} in each" if sizes else ""
    found = [level for level in LEVELS if any(f.level == level for f in report.findings)]
    return [
        Card("Images", f"{images(report):,}", parts),
        Card("Classes", f"{len(report.classes):,}", each),
        Card("Findings", levels(report, found[:1]) or "none", levels(report, found[1:])),
        Card("Left out", several(report.left_out, "file"), "not usable: see the findings" if report.left_out else "every file can be used"),
    ]
