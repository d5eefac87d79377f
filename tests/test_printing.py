"""What commands print that look without running: any name, as it is; progress without a flash of nothing."""

import io

from rich.console import Console

from hpsearch.printing import Steps, class_table, data_report, finding_lines
from hpsearch.types import DataReport, Example, Finding

MARKUP = "mk[/]empty [bold]raw[/bold]"


def printed(thing, width=100):
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=True, color_system=None).print(thing)
    return out.getvalue()


def terminal():
    out = io.StringIO()
    return out, Console(file=out, width=100, force_terminal=True, color_system=None)


def test_the_progress_of_a_folder_called_like_markup_is_shown_and_the_real_error_comes_through():
    out, console = terminal()
    try:
        with Steps(console) as steps:
            steps.say(f"Reading {MARKUP}\x1b[2J")
            raise OSError("the real one")
    except OSError as error:
        assert str(error) == "the real one"
    assert f"Reading {MARKUP}\\x1b[2J" in out.getvalue()


def test_the_first_thing_shown_is_the_first_step():
    out, console = terminal()
    with Steps(console) as steps:
        steps.say("Reading photos")
        steps.say("Decoding images", 1200, 2500)
        steps.progress.refresh()
    shown = out.getvalue()
    assert "Reading photos" in shown
    assert "0/100" not in shown
    assert "0/?" not in shown
    assert "1,200/2,500" in shown


def test_names_are_printed_as_they_are():
    finding = Finding("ignored", "note", f"about {MARKUP}", 1, (Example((MARKUP,), MARKUP),))
    report = DataReport(MARKUP, (MARKUP, "b"), {"train": (1797, 1)}, 0, (finding,), {})
    shown = printed(data_report(report))
    assert f"{MARKUP}: 1,798 images, 2 classes" in shown
    assert f"about {MARKUP}" in shown
    assert f"{MARKUP}  ({MARKUP})" in shown
    assert MARKUP in printed(class_table(report))
    assert all(MARKUP in line.plain for line in finding_lines(finding))
