"""What all commands share: their options, their errors, and the server that they may be meant for."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hpsearch.core.text import harmless
from hpsearch.errors import HpsearchError, exit_code

if TYPE_CHECKING:
    from hpsearch.client import Client
    from hpsearch.places import Place

F = TypeVar("F", bound=Callable[..., Any])


def guarded(command: F) -> F:
    """Turn an HpsearchError into its message and exit code."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except HpsearchError as error:
            echo(f"hpsearch: {error}", err=True)
            sys.exit(exit_code(error))
        except KeyboardInterrupt:
            click.echo("hpsearch: stopped", err=True)
            sys.exit(130)
        except BrokenPipeError:  # `hpsearch show | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)

    return wrapper  # type: ignore[return-value]


def echo(text: object = "", err: bool = False, bold: bool = False) -> None:
    """Prints text that does nothing to a terminal, whoever chose the names in it; its lines stay lines."""
    shown = harmless(str(text))
    click.echo(click.style(shown, bold=True) if bold else shown, err=err)


def stored(command: F) -> F:
    """Options that say where studies are kept."""
    command = click.option("--storage", metavar="URL", help="Optuna storage: file or URL  [default: hpsearch.db here]")(command)
    return click.option("--json", "as_json", is_flag=True, help="print JSON on standard output")(command)


def located(storage: str | None, tracking_uri: str | None = None, track: bool = True) -> Place:
    """Where things are, from the options and the working folder."""
    from hpsearch import places

    return places.place(Path.cwd(), storage, tracking_uri, track)


def served() -> Client | None:
    """The server that was named before the command, if one was."""
    server = click.get_current_context().find_root().params.get("server")
    if server is None:
        return None
    from hpsearch.client import Client

    return Client(server)
