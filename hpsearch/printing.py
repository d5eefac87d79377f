"""What commands print that look without running: findings about data, a model's blocks, progress of a long step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from rich.columns import Columns
from rich.console import Console, Group
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from hpsearch.finetune.printable import escaped
from hpsearch.types import DataReport, Example, Finding

LEVELS = {"error": ("refused", "bold red"), "warning": ("warning", "yellow"), "note": ("note", "dim")}
CLASSES = 20  # classes listed one by one
EXAMPLES = 5  # names printed under a finding


class Steps:
    """The progress of long steps on a terminal; nothing where output is piped."""

    def __init__(self, console: Console) -> None:
        text, count = (TextColumn(what, markup=False) for what in ("{task.description}", "{task.fields[count]}"))
        columns = (SpinnerColumn(), text, BarColumn(30), count)
        self.progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.task: TaskID | None = None

    def __enter__(self) -> Steps:
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.stop()

    def say(self, text: str, done: int = 0, total: int = 0) -> None:
        """Show the step that is being done."""
        state: dict[str, Any] = {"total": total or None, "completed": done, "count": f"{done:,}/{total:,}" if total else ""}
        if self.task is None:
            self.task = self.progress.add_task(escaped(text), **state)
        self.progress.update(self.task, description=escaped(text), **state)


def data_report(report: DataReport) -> Group:
    """Classes and splits, then every finding with its first examples."""
    total = sum(map(sum, report.counts.values()))
    splits = ", ".join(f"{sum(n):,} {name}" for name, n in report.counts.items())
    head = Text(f"{escaped(report.data)}: {total:,} images, {len(report.classes):,} classes ({splits})", style="bold")
    parts: list[Any] = [head, class_table(report)]
    if len(report.classes) > CLASSES:
        parts.append(Text(f"... the largest and the smallest of {len(report.classes):,} classes", style="dim"))
    for finding in report.findings:
        parts += finding_lines(finding)
    verdict = "A study on this data is refused." if report.refused else "A study can be run on this data."
    return Group(*parts, Text(verdict, style="bold red" if report.refused else "bold green"))


def class_table(report: DataReport) -> Table:
    """Images of each class in each split; of many classes, the largest and the smallest."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("class", overflow="fold", max_width=36)
    for name in (*report.counts, "all"):
        table.add_column(Text(name), justify="right")
    sums = [sum(n[i] for n in report.counts.values()) for i in range(len(report.classes))]
    order = list(range(len(report.classes)))
    if len(order) > CLASSES:
        order.sort(key=lambda i: (-sums[i], report.classes[i]))
        order = order[: CLASSES // 2] + order[-CLASSES // 2 :]
    for i in order:
        table.add_row(Text(report.classes[i]), *(f"{n[i]:,}" for n in report.counts.values()), f"{sums[i]:,}")
    return table


def finding_lines(finding: Finding) -> list[Text]:
    """A finding and its first examples."""
    word, style = LEVELS[finding.level]
    lines = [Text.assemble((f"{word}: ", style), finding.text)]
    lines += [Text(f"    {example_line(example)}", style="dim") for example in finding.examples[:EXAMPLES]]
    if finding.count > EXAMPLES and len(finding.examples) > EXAMPLES:
        lines.append(Text(f"    ... and {finding.count - EXAMPLES:,} more", style="dim"))
    return lines


def example_line(example: Example) -> str:
    """Names and what is to be said of them."""
    return " = ".join(example.names) + (f"  ({example.text})" if example.text else "")


def model_table(name: str, rows: Sequence[Mapping[str, Any]]) -> Group:
    """The blocks of a model; freezing k layers leaves what stands in row k to train, the new head included."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("frozen", "up to block", "parameters", "output", "left to train"):
        table.add_column(title, justify="left" if title == "up to block" else "right", overflow="fold")
    total = rows[0]["trainable"] + rows[0]["parameters"]
    table.add_row("0", "", "", "", f"{total:,} (100 %)")
    for row in rows:
        shape = "x".join(map(str, row["shape"])) or "?"
        share = f"{row['trainable']:,} ({100 * row['trainable'] / total:.1f} %)"
        table.add_row(str(row["index"]), Text(row["name"]), f"{row['parameters']:,}", shape, share)
    return Group(Text(f"{name}: {len(rows)} blocks and a new head (for 10 classes)", style="bold"), table)


def name_columns(names: Sequence[str]) -> Columns:
    """Many names on few lines."""
    return Columns([Text(name) for name in names], padding=(0, 2), column_first=True)


def day(seconds: float) -> str:
    """A day, from seconds since the epoch."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")


def size(number: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("B", "KB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"
