"""Reading a table of image paths and labels: CSV, TSV, JSON lines or Parquet."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpsearch.errors import FixInput, FixSetup, nearest
from hpsearch.finetune.folders import SPLITS, is_image, split_named
from hpsearch.finetune.printable import first, several
from hpsearch.finetune.roots import leads_out, open_inside

TABLES = (".csv", ".tsv", ".jsonl", ".parquet", ".pq")
COLUMNS = {  # what is wanted -> the names under which it is found, the first of them that is there
    "path": (
        *("path", "file", "filename", "filepath", "image", "image_path", "img", "images", "file_name", "file_path", "image_name"),
        *("image_file", "img_path", "fname", "image_id", "id"),
    ),
    "label": ("label", "class", "target", "category", "label_name", "class_name", "labels", "species", "breed", "y", "tags"),
    "split": ("split", "subset", "set", "partition"),
}
PLURAL = ("labels", "tags")  # columns that may hold several labels
FLAGS = ("is_", "for_", "in_", "use_", "used_")  # how names of columns begin that are true for the images of a split
TRUE, FALSE = frozenset({"true", "t", "yes", "y", "1", "1.0"}), frozenset({"false", "f", "no", "n", "0", "0.0", ""})
MOST, LONGEST = 10, 80  # names in a message, and characters of each
WORDS = {"train": "training", "val": "validation", "test": "test"}
URL = re.compile(r"\s*(https?|ftp|s3|gs|hf)://", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Line:
    """One image of a table."""

    where: str  # "line 7"
    path: str  # as written, or repaired
    label: str
    split: str | None  # "train", "val", "test"


@dataclass(frozen=True, slots=True)
class Table:
    """What a table says."""

    lines: tuple[Line, ...]  # in its order, each path once
    notes: tuple[str, ...]  # for a person
    plural: bool  # whether its labels are in a column for several


@dataclass(frozen=True, slots=True)
class SplitColumns:
    """Where a table says which split an image is in: a column of words, or columns that are true for the images of a split."""

    words: int | None = None
    flags: tuple[tuple[int, str], ...] = ()  # position and split

    def cell(self, table: Path, where: str, row: Sequence[Any]) -> str | None:
        """The split of a row as it is written; None in a table without. Raises FixInput when it is in two."""
        if self.words is not None:
            return cell(row, self.words)
        if not self.flags:
            return None
        found = [split for position, split in self.flags if cell(row, position).strip().lower() in TRUE]
        if len(found) > 1:
            raise FixInput(f"{table}, {where}: the image is marked for {' and for '.join(found)}: mark it for one of them")
        return found[0] if found else rest_of([split for _, split in self.flags])


def read_table(table: Path) -> Table:
    """The images of a table.

    Raises FixInput when columns or cells are missing, unknown or contradict one another.
    """
    columns, rows = read_rows(table)
    kept = list(rows)
    path = find_column(table, "path", columns)
    notes: list[str] = []
    hot = one_hot(columns, kept, path)
    label = None if hot else find_column(table, "label", columns)
    splits = find_splits(columns, kept, {path, label, *hot}, notes)
    files, repaired = Files(table.parent), []
    lines: dict[str, Line] = {}
    repeated = 0
    for where, row in kept:
        written = cell(row, path)
        cells = {"path": written, "label": hot_label(table, where, columns, row, hot) if label is None else cell(row, label)}
        line = read_line(table, where, cells, splits.cell(table, where, row), files)
        if line.path != written:
            repaired.append((written, line.path))
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
    if repaired:
        was, now = repaired[0]
        head = f"{several(len(repaired), 'path')} {'was' if len(repaired) == 1 else 'were'} repaired, since one file alone can be meant"
        notes.append(f"{head}: '{shown(was)}' is {shown(now)}")
    found = list(lines.values())
    if splits == SplitColumns():
        found = split_by_path(found, notes)
    plural = label is not None and columns[label].strip().lower() in PLURAL
    return Table(tuple(found), tuple(notes), plural)


def labels_beside(table: Path) -> bool:
    """Whether a table labels the images beside it, as Hugging Face has it; one that cannot be read does not."""
    try:
        names = {str(name).strip().lower() for name in read_rows(table)[0]}
    except (FixInput, FixSetup):
        return False
    return "file_name" in names and bool(names & {*COLUMNS["label"]})


# ---------------------------------------------------------------- columns


def find_splits(
    columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Any]]], taken: set[int | None], notes: list[str]
) -> SplitColumns:
    """The columns that tell splits, known by what is in them; `notes` hear what was taken for what, and what was not.

    A column called split is one whatever it holds, so that a slip in it is found.
    """
    named = {i: name.strip() for i, name in enumerate(columns) if i not in taken}
    values = {i: {cell(row, i).strip() for _, row in rows} for i in named}
    meant = {i: {split_named(value) for value in some} if len(some) <= MOST else set() for i, some in values.items()}
    words = [i for i, name in named.items() if name.lower() == COLUMNS["split"][0]]
    for want in COLUMNS["split"][1:]:
        words += [i for i, name in named.items() if name.lower() == want and any(value.lower() in SPLITS for value in values[i])]
    words += [i for i in named if i not in words and meant[i] > {"train"} and None not in meant[i]]
    flags = {i: split for i, name in named.items() if (split := flagged(name)) and {value.lower() for value in values[i]} <= TRUE | FALSE}
    used = {i: split for i, split in flags.items() if not words and any(value.lower() in TRUE for value in values[i])}
    used = used if len({*used.values()}) == len(used) else {}
    for i, name in named.items():
        label = f"the column '{shown(columns[i])}'"
        if words and i == words[0] and name.lower() not in COLUMNS["split"]:
            notes.append(f"{label} was taken for the splits: it holds {', '.join(sorted(values[i]))}")
        elif i in words[1:] or (words and i in flags):
            notes.append(f"{label} was ignored: the column '{shown(columns[words[0]])}' tells the splits")
        elif i in used:
            rest = rest_of([*used.values()])
            notes.append(f"{label} was taken for the splits: {WORDS[used[i]]} where it is true, {WORDS[rest]} where no such column is")
        elif i in flags:
            notes.append(f"{label} was ignored: it is true for no image, or two columns are for one split")
        elif name.lower() in COLUMNS["split"] and i not in words:
            notes.append(f"{label} was ignored: it has no word for a split, such as train")
        elif len(meant[i] - {None}) > 1 and i not in words:
            unknown = first(sorted(value for value in values[i] if split_named(value) is None))
            notes.append(f"{label} was ignored: beside words for splits it holds '{unknown}'; call it 'split' and write train, val or test")
        elif "fold" in re.split(r"[^a-z]+", name.lower().replace("kfold", "fold")):
            notes.append(f"{label} was ignored: it names no splits")
    return SplitColumns(words[0] if words else None, tuple(used.items()))


def flagged(name: str) -> str | None:
    """The split for whose images a column of that name is true, such as "is_valid" or "isTest"; None for other names."""
    words = re.sub(r"[\s_-]+|(?<=[a-z])(?=[A-Z])", "_", name).lower()
    return split_named(words.partition("_")[2]) if words.startswith(FLAGS) else None


def rest_of(flagged: Sequence[str]) -> str:
    """The split of images for which no column is true: training; or, where that is told, what is never chosen by."""
    return "train" if "train" not in flagged else "val" if "test" in flagged else "test"


def split_by_path(lines: Sequence[Line], notes: list[str]) -> list[Line]:
    """The lines with the splits that their paths tell, where every path has one folder such as train or val in it."""
    splits = []
    for line in lines:
        words = [SPLITS[part.lower()] for part in Path(line.path).parts[:-1] if part.lower() in SPLITS]
        splits.append(words[0] if len(words) == 1 else None)
    if None in splits or not {*splits} > {"train"}:
        return list(lines)
    notes.append("the splits were taken from the folders in the paths, such as train: write a column 'split' to have it otherwise")
    return [Line(line.where, line.path, line.label, split) for line, split in zip(lines, splits, strict=True)]


def one_hot(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Any]]], path: int | None) -> list[int]:
    """The columns of a table that has one for each class, 1 where an image is of it, and none for labels; else none."""
    names = [name.strip().lower() for name in columns]
    if any(name in COLUMNS["label"] for name in names) or not rows:
        return []
    others = [i for i, name in enumerate(names) if i != path and name not in COLUMNS["split"] and split_named(name) is None]
    hot = [i for i in others if {cell(row, i).strip() for _, row in rows} <= {"0", "1", "0.0", "1.0"}]
    return hot if len(hot) > 1 else []


def hot_label(table: Path, where: str, columns: Sequence[str], row: Sequence[Any], hot: Sequence[int]) -> str:
    """The class of a row in a table with a column for each. Raises FixInput when it is of none, or of several."""
    found = [columns[i] for i in hot if cell(row, i).strip() in ("1", "1.0")]
    if len(found) != 1:
        told = f"is of several classes ({', '.join(map(shown, found[:3]))})" if found else "is of no class"
        raise FixInput(
            f"{table}, {where}: the image {told}, and hpsearch learns one class an image, not several labels (multi-label): leave out all "
            "columns but those of which one is 1, or write a column 'label'"
        )
    return found[0]


def find_column(table: Path, want: str, columns: Sequence[str]) -> int:
    """Position of the column that holds `want`, a path or label. Raises FixInput when there is none."""
    found = [column.strip().lower() for column in columns]
    known = COLUMNS[want]
    position = next((found.index(name) for name in known if name in found), None)
    if position is None:
        hint = next((f". '{shown(name)}': {near}" for name in columns if (near := nearest(name, known)).startswith("did")), "")
        names = ", ".join(f"'{shown(column)}'" for column in columns[:MOST]) or "none"
        names += f" and {len(columns) - MOST:,} more" if len(columns) > MOST else ""
        head = hint or ". Is there a header line?"
        raise FixInput(f"{table} has no column '{want}': found {names}{head} Call it one of {', '.join(known)}")
    return position


def read_line(table: Path, where: str, cells: dict[str, str], split: str | None, files: Files) -> Line:
    """One row, checked."""
    for want in ("path", "label"):
        if not cells[want].strip():
            raise FixInput(f"{table}, {where}: the {want} is empty: fill it in, or remove the line")
    if "\0" in cells["path"]:
        raise FixInput(f"{table}, {where}: the path contains a null byte: is this a text table?")
    if URL.match(cells["path"]):
        raise FixInput(f"{table}, {where}: {shown(cells['path'])} is a URL, and URLs are not read: download the images, give their paths")
    known = None if split is None else SPLITS.get(split.strip().lower()) or split_named(split)
    if split is not None and known is None:
        raise FixInput(f"{table}, {where}: '{shown(split)}' is no split: write one of {', '.join(SPLITS)}, or leave the whole column out")
    return Line(where, files.meant(cells["path"]), cells["label"].strip(), known)


# ---------------------------------------------------------------- paths


class Files:
    """The files that paths of a table can mean; each folder is listed once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.names: dict[str, dict[str, list[str]]] = {}  # folder -> name or stem, in small letters -> names

    def listing(self, folder: str) -> dict[str, list[str]]:
        """The files in a folder by what they may be called; nothing where there is none, or where data may not lie."""
        if folder not in self.names:
            place = self.root / folder
            found: dict[str, list[str]] = {}
            try:
                names = [] if leads_out(place) else os.listdir(place)
            except (OSError, ValueError):
                names = []
            for name in names:
                for called in {name.lower(), *([Path(name).stem.lower()] if is_image(Path(name)) else [])}:
                    found.setdefault(called, []).append(name)
            self.names[folder] = found
        return self.names[folder]

    def has(self, path: str) -> bool:
        """Whether there is such a file."""
        folder, name = os.path.split(path)
        return name in self.listing(folder).get(name.lower(), ())

    def meant(self, path: str) -> str:
        """The path, or the only one that is there and differs from it in blanks, backslashes, capitals or a missing ending."""
        if self.has(path):
            return path
        found: dict[str, None] = {}
        for tried in (path.strip(), path.strip().replace("\\", "/")):
            folder, name = os.path.split(tried)
            names = [name] if self.has(tried) else self.listing(folder).get(name.lower(), [])
            found |= {os.path.join(folder, one): None for one in names}
        return next(iter(found)) if len(found) == 1 else path


def whereabouts(table: Path, paths: Sequence[str]) -> str:
    """Where the files of a table lie that are not where it says, as a sentence; "" when they are not found nearby."""
    root = table.parent
    below = sorted(path for path in root.iterdir() if path.is_dir() and not path.is_symlink())[:200] if os.access(root, os.R_OK) else []
    for path in paths[:3]:
        parts = Path(path.strip().replace("\\", "/")).parts
        for base in (root, root.absolute().parent, Path.cwd(), *below):
            for skipped in range(len(parts)):
                wanted = base.joinpath(*parts[skipped:])
                if not leads_out(wanted) and Files(base).has(os.path.join(*parts[skipped:])):
                    return f"{shown(path)} seems to be {wanted}: write {os.path.relpath(wanted, root)}"
    return ""


# ---------------------------------------------------------------- kinds of tables


def read_rows(table: Path) -> tuple[Sequence[str], Iterator[tuple[str, Any]]]:
    """The columns of a table and its rows, each with where it stands."""
    suffix = table.suffix.lower()
    if suffix in (".parquet", ".pq"):
        return read_parquet(table)
    return read_json_lines(table) if suffix == ".jsonl" else read_csv(table)


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
            with open_inside(table, "r", newline="", encoding="utf-8-sig") as file:
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


def read_json_lines(table: Path) -> tuple[list[str], Iterator[tuple[str, list[Any]]]]:
    """The same of a file with one JSON object a line."""
    rows: list[tuple[str, dict[str, Any]]] = []
    try:
        with open_inside(table, "r", encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    values = json.loads(line)
                    if not isinstance(values, dict):
                        raise FixInput(f'{table}, line {number}: expected an object such as {{"file_name": "1.jpg", "label": "cat"}}')
                    rows.append((f"line {number}", values))
    except (ValueError, RecursionError) as error:
        raise FixInput(f"{table} is not a text of one JSON object a line ({str(error)[:120]})") from None
    except OSError as error:
        raise FixInput(f"{table} cannot be read ({error.strerror})") from None
    columns = list(dict.fromkeys(key for _, values in rows for key in values))
    return columns, ((where, [values.get(key) for key in columns]) for where, values in rows)


def read_parquet(table: Path) -> tuple[list[str], Iterator[tuple[str, list[Any]]]]:
    """The same of a Parquet file."""
    try:
        import pyarrow  # type: ignore[import-untyped]
        from pyarrow import parquet
    except ImportError:
        raise FixSetup(f"{table} is a Parquet file, and reading it needs pyarrow: pip install pyarrow, or save it as CSV") from None
    try:
        with open_inside(table, "rb") as opened, parquet.ParquetFile(opened) as file:
            names = [str(name) for name in file.schema_arrow.names]
            wanted = [name for name in names if small(file.schema_arrow.field(name).type)]
            check_types(table, file.schema_arrow)
            columns = file.read(columns=wanted).to_pydict() if wanted else {}
    except (pyarrow.ArrowException, OSError) as error:
        raise FixInput(f"{table} is not a Parquet file that can be read ({' '.join(str(error).split())[:120]})") from None
    cells = zip(*(columns[name] for name in wanted), strict=True)
    return wanted if wanted else names, ((f"row {i}", list(row)) for i, row in enumerate(cells, 1))


def small(kind: Any) -> bool:
    """Whether values of a Parquet type are text, numbers or truth values."""
    return re.match(r"(large_)?string|bool|u?int|halffloat|float|double|dictionary|list<.*string|null", str(kind)) is not None


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
