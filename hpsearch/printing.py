"""What commands print besides `run`: findings about data, a model's blocks, an exported model, progress of a long step."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.columns import Columns
from rich.console import Console, Group
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from hpsearch.finetune.printable import escaped
from hpsearch.types import DataReport, Example, Finding

if TYPE_CHECKING:
    from hpsearch.delivery import Opening
    from hpsearch.finetune.export import Exported
    from hpsearch.finetune.predict import Prediction
    from hpsearch.tracking.registry import Registered

LEVELS = {"error": ("refused", "bold red"), "warning": ("warning", "yellow"), "note": ("note", "dim")}
CLASSES = 20  # classes listed one by one
CLASSES_WIDE = 44  # characters of an image's classes on one line
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


def export_lines(done: Exported) -> list[str]:
    """What an exported model is, whether it does what was logged, and how well its probabilities are calibrated."""
    lines = [f"{done.study}, trial {done.trial}: validation loss {done.val_loss:.4f}"]
    if done.recomputed is not None:
        lines[0] += f", {done.recomputed:.4f} with the exported files"
    if found := done.calibration:
        lines.append(f"Calibrated on the same {found.images:,} validation images: temperature {found.temperature:.3f}")
        lines.append(f"  log-likelihood  {-found.nll_before:.4f} -> {-found.nll_after:.4f} nats per image")
        lines.append(f"  calibration error  {100 * found.ece_before:.1f} % -> {100 * found.ece_after:.1f} % (expected, 15 bins)")
        lines += [f"  left at 1: {found.reason}"] if found.reason else []
    return [*lines, "", f"Model:    {done.folder}", f"Try:      hpsearch predict {shlex.quote(done.folder)} IMAGE ..."]


def registered_lines(kept: Registered) -> list[str]:
    """What the registry holds now, and how to load it."""
    return [
        f"Registry: {kept.name}, version {kept.version}, the champion",
        f'Load:     mlflow.pyfunc.load_model("models:/{kept.name}@champion")',
    ]


def prediction_table(told: Sequence[Prediction]) -> Table:
    """One image a line with its most probable classes; or why it could not be read."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", show_header=False)
    table.add_column("image", overflow="fold", ratio=1)
    table.add_column("classes", overflow="fold")
    for prediction in told:
        if prediction.error:
            table.add_row(Text(prediction.image), Text(f"cannot be read: {prediction.error}", style="red"))
            continue
        shares = [f"{100 * share:5.1f} % {escaped(name)}" for name, share in prediction.top]
        between = "  " if len("  ".join(shares)) <= CLASSES_WIDE else "\n"
        table.add_row(Text(prediction.image), Text.assemble((shares[0], "bold"), *(f"{between}{share}" for share in shares[1:])))
    return table


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


def opening_lines(opening: Opening) -> list[str]:
    """What was seen of the test images."""
    judged = opening.judged
    lines = [f"{opening.study}: trial {opening.trial} on {judged.images:,} test images: loss {judged.loss:.4f} nats"]
    lines += [f"  {key:<18}{100 * value:5.1f} %" for key, value in judged.metrics.items()]
    if judged.forgetting is not None:
        lines.append(f"  {judged.forgetting.sentence}")
    if not opening.new:
        lines.append("These are the numbers of the first look; nothing was measured again.")
    elif opening.times > 1:
        lines.append(f"The test images have been looked at {opening.times} times now; the report says so.")
    return lines
