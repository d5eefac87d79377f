"""Reading a table of image paths and labels: CSV, TSV or Parquet."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpsearch.errors import FixInput, FixSetup, nearest

TABLES = (".csv", ".tsv", ".parquet", ".pq")
COLUMNS = {  # what is wanted -> the names under which it is found, the first of them that is there
    "path": ("path", "file", "filename", "filepath", "image", "image_path"),
    "label": ("label", "class", "target", "category", "label_name"),
    "split": ("split", "subset", "set", "fold"),
}
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


@dataclass(frozen=True, slots=True)
class Line:
    """One image of a table."""

    where: str  # "line 7"
    path: str  # as written
    label: str
    split: str | None  # "train", "val", "test"


def read_table(table: Path) -> tuple[list[Line], tuple[str, ...]]:
    """The images of a table, in its order, each path once; and notes for a person.

    Raises FixInput when columns or cells are missing, unknown or contradict one another.
    """
    parquet = table.suffix.lower() in (".parquet", ".pq")
    columns, rows = read_parquet(table) if parquet else read_csv(table)
    at = {want: find_column(table, want, columns) for want in COLUMNS}
    lines: dict[str, Line] = {}
    repeated = 0
    for where, row in rows:
        line = read_line(table, where, {want: cell(row, i) for want, i in at.items() if i is not None})
        place = os.path.normpath(table.parent / line.path)
        before = lines.setdefault(place, line)
        if before is line:
            continue
        for what in ("label", "split"):
            one, other = getattr(before, what), getattr(line, what)
            if one != other:
                raise FixInput(
                    f"{table}: {line.path} has the {what} '{one}' in {before.where} and '{other}' in {line.where}: remove one of the lines"
                )
        repeated += 1
    if not lines:
        raise FixInput(f"{table} has columns but no images: write one line an image")
    return list(lines.values()), (f"{repeated} repeated lines were taken once",) if repeated else ()


def find_column(table: Path, want: str, columns: Sequence[str]) -> int | None:
    """Position of the column that holds `want`; None for a split that is not there. Raises FixInput for the others."""
    found = [column.strip().lower() for column in columns]
    known = COLUMNS[want]
    position = next((found.index(name) for name in known if name in found), None)
    if position is None and want != "split":
        hint = next((f" ('{column}': {near})" for column in columns if (near := nearest(column, known)).startswith("did")), "")
        names = ", ".join(f"'{column}'" for column in columns) or "none"
        raise FixInput(f"{table} has no column '{want}': found {names}{hint}; call it one of {', '.join(known)}")
    return position


def read_line(table: Path, where: str, cells: dict[str, str]) -> Line:
    """One row, checked."""
    for want in ("path", "label"):
        if not cells[want].strip():
            raise FixInput(f"{table}, {where}: the {want} is empty: fill it in, or remove the line")
    if "\0" in cells["path"]:
        raise FixInput(f"{table}, {where}: the path contains a null byte: is this a text table?")
    split = cells.get("split")
    if split is not None and split.strip().lower() not in SPLITS:
        raise FixInput(f"{table}, {where}: '{split}' is no split: write one of {', '.join(SPLITS)}, or leave the whole column out")
    return Line(where, cells["path"], cells["label"].strip(), None if split is None else SPLITS[split.strip().lower()])


def cell(row: Sequence[Any], position: int) -> str:
    """A cell as text; empty where the row is too short or the cell null."""
    value = row[position] if position < len(row) else None
    return "" if value is None or value != value else str(value)


def read_csv(table: Path) -> tuple[list[str], Iterator[tuple[str, list[str]]]]:
    """The columns of a text table and its rows, each with where it stands; the header tells the delimiter."""

    def rows() -> Iterator[tuple[str, list[str]]]:
        try:
            with table.open(newline="", encoding="utf-8-sig") as file:
                header = file.readline()
                delimiter = max(",;\t", key=header.count)
                yield "header", next(csv.reader([header], delimiter=delimiter), [])
                reader = csv.reader(file, delimiter=delimiter)
                for row in reader:
                    if any(row):
                        yield f"line {reader.line_num + 1}", row
        except UnicodeDecodeError as error:
            raise FixInput(f"{table} is not UTF-8 text ({error.reason} at byte {error.start}): save it as CSV in UTF-8") from None
        except csv.Error as error:
            raise FixInput(f"{table} is not a CSV table ({error})") from None
        except OSError as error:
            raise FixInput(f"{table} cannot be read ({error.strerror})") from None

    found = rows()
    return next(found)[1], found


def read_parquet(table: Path) -> tuple[list[str], Iterator[tuple[str, list[Any]]]]:
    """The same of a Parquet file."""
    try:
        import pyarrow  # type: ignore[import-untyped]
        from pyarrow import parquet
    except ImportError:
        raise FixSetup(f"{table} is a Parquet file, and reading it needs pyarrow: pip install pyarrow, or save it as CSV") from None
    try:
        with parquet.ParquetFile(table) as file:
            names = [str(name) for name in file.schema_arrow.names]
            wanted = [name for name in names if any(name.strip().lower() in known for known in COLUMNS.values())]
            columns = file.read(columns=wanted).to_pydict() if wanted else {}
    except (pyarrow.ArrowException, OSError) as error:
        raise FixInput(f"{table} is not a Parquet file that can be read ({' '.join(str(error).split())[:120]})") from None
    cells = zip(*(columns[name] for name in wanted), strict=True)
    return wanted if wanted else names, ((f"row {i}", list(row)) for i, row in enumerate(cells, 1))


def is_number(label: str) -> bool:
    """Whether a class is named by an integer."""
    return re.fullmatch(r"-?\d+", label, re.ASCII) is not None
