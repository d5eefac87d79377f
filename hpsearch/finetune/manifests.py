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
from hpsearch.finetune.folders import SPLITS
from hpsearch.finetune.printable import several

TABLES = (".csv", ".tsv", ".parquet", ".pq")
COLUMNS = {  # what is wanted -> the names under which it is found, the first of them that is there
    "path": ("path", "file", "filename", "filepath", "image", "image_path", "img", "images"),
    "label": ("label", "class", "target", "category", "label_name", "class_name", "labels", "species", "breed", "y"),
    "split": ("split", "subset", "set", "partition"),
}
MOST, LONGEST = 10, 80  # names in a message, and characters of each
NO_SPLITS = ("fold",)  # of a cross-validation
URL = re.compile(r"\s*(https?|ftp|s3|gs|hf)://", re.IGNORECASE)


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
    columns: Sequence[str]
    rows: Iterator[tuple[str, Any]]
    columns, rows = read_parquet(table) if parquet else read_csv(table)
    at = {want: find_column(table, want, columns) for want in COLUMNS}
    notes = [f"the column '{name}' was ignored: it names no splits" for name in columns if name.strip().lower() in NO_SPLITS]
    if at["split"] is not None and columns[at["split"]].strip().lower() != "split":
        kept = list(rows)
        rows = iter(kept)
        if not any(cell(row, at["split"]).strip().lower() in SPLITS for _, row in kept):
            notes.append(f"the column '{shown(columns[at['split']])}' was ignored: it has no word for a split, such as train")
            at["split"] = None
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
                    f"{table}: {shown(line.path)} has the {what} '{shown(one)}' in {before.where} and '{shown(other)}' in {line.where}: "
                    "remove one of the lines"
                )
        repeated += 1
    if not lines:
        raise FixInput(f"{table} has columns but no images: write one line an image")
    if repeated:
        notes.append(f"{several(repeated, 'repeated line')} {'was' if repeated == 1 else 'were'} taken once")
    return list(lines.values()), tuple(notes)


def find_column(table: Path, want: str, columns: Sequence[str]) -> int | None:
    """Position of the column that holds `want`; None for a split that is not there. Raises FixInput for the others."""
    found = [column.strip().lower() for column in columns]
    known = COLUMNS[want]
    position = next((found.index(name) for name in known if name in found), None)
    if position is None and want != "split":
        hint = next((f". '{shown(name)}': {near}" for name in columns if (near := nearest(name, known)).startswith("did")), "")
        names = ", ".join(f"'{shown(column)}'" for column in columns[:MOST]) or "none"
        names += f" and {len(columns) - MOST:,} more" if len(columns) > MOST else ""
        head = hint or ". Is there a header line?"
        raise FixInput(f"{table} has no column '{want}': found {names}{head} Call it one of {', '.join(known)}")
    return position


def read_line(table: Path, where: str, cells: dict[str, str]) -> Line:
    """One row, checked."""
    for want in ("path", "label"):
        if not cells[want].strip():
            raise FixInput(f"{table}, {where}: the {want} is empty: fill it in, or remove the line")
    if "\0" in cells["path"]:
        raise FixInput(f"{table}, {where}: the path contains a null byte: is this a text table?")
    if URL.match(cells["path"]):
        raise FixInput(f"{table}, {where}: {shown(cells['path'])} is a URL, and URLs are not read: download the images, give their paths")
    split = cells.get("split")
    if split is not None and split.strip().lower() not in SPLITS:
        raise FixInput(f"{table}, {where}: '{shown(split)}' is no split: write one of {', '.join(SPLITS)}, or leave the whole column out")
    return Line(where, cells["path"], cells["label"].strip(), None if split is None else SPLITS[split.strip().lower()])


def shown(text: str) -> str:
    """A name or cell as it stands in a message."""
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


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
            wanted = [name for name in names if any(name.strip().lower() in known for known in (*COLUMNS.values(), NO_SPLITS))]
            check_types(table, file.schema_arrow)
            columns = file.read(columns=wanted).to_pydict() if wanted else {}
    except (pyarrow.ArrowException, OSError) as error:
        raise FixInput(f"{table} is not a Parquet file that can be read ({' '.join(str(error).split())[:120]})") from None
    cells = zip(*(columns[name] for name in wanted), strict=True)
    return wanted if wanted else names, ((f"row {i}", list(row)) for i, row in enumerate(cells, 1))


def check_types(table: Path, schema: Any) -> None:
    """Refuse a Parquet table whose images are in it rather than in files."""
    for column in schema:
        kind = str(column.type)
        if column.name.strip().lower() in COLUMNS["path"] and kind.startswith(("struct", "binary", "large_binary", "list")):
            raise FixInput(
                f"{table}: the column '{shown(column.name)}' holds images themselves ({shown(kind)}), as Hugging Face's files do, and not "
                "paths: write the images to files, one folder a class, or give data as 'package.module:function' that returns them"
            )


def is_number(label: str) -> bool:
    """Whether a class is named by an integer."""
    return re.fullmatch(r"-?\d+", label, re.ASCII) is not None
