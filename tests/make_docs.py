"""Writes docs/commands.md from the commands' own help: `python -m tests.make_docs`."""

from pathlib import Path

import click

from hpsearch.cli import main

PAGE = Path(__file__).parent.parent / "docs" / "commands.md"


def page():
    """The page's text."""
    parts = ["# Commands\n\nGenerated from `--help` by `python -m tests.make_docs`.\n"]
    context = click.Context(main, info_name="hpsearch", terminal_width=80, max_content_width=80)
    for name, command in (("hpsearch", main), *((f"hpsearch {n}", main.commands[n]) for n in main.list_commands(context))):
        inner = click.Context(command, info_name=name, terminal_width=80, max_content_width=80, help_option_names=["-h", "--help"])
        parts.append(f"## {name}\n\n```\n{command.get_help(inner)}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
