"""One call in a process of its own: what it imports, holds in memory or crashes with stays there."""

from __future__ import annotations

import importlib
import os
import signal
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

from hpsearch.errors import FixSetup, HpsearchError, Interrupted
from hpsearch.machine import ignore_signals
from hpsearch.types import Say

PREPARING = "preparing the study"
LOADABLE = "does `import torch` work, and is there enough memory (`ulimit -v`, or the limit of the container)?"


def call(
    context: ForkServerContext,
    target: str,
    config: Mapping[str, Any],
    say: Say,
    stopped_by: Callable[[], int | None] = lambda: None,
    what: str = PREPARING,
    place: Mapping[str, str] | None = None,
) -> Any:
    """The result of `target` ("package.module:function") called with `config` and something to say progress to.

    `place` is the part of its environment that says which device it sees; `what` it does is for messages. Raises what it raises,
    FixSetup when its process dies, and Interrupted after a signal.
    """
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=answer, args=(theirs, target, config, what, place or {}), name=target, daemon=True)
    launch(process)
    theirs.close()
    try:
        while True:
            if (number := stopped_by()) is not None:
                raise Interrupted(f"stopped while {what}; the same command begins with that again", number)
            if ours.poll(0.2):
                kind, value = ours.recv()
                if kind == "done":
                    return value
                if kind == "error":
                    raise value
                say(*value)
    except EOFError:
        process.join()
        code = process.exitcode or 0
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        remedy = "a damaged image may have crashed its decoder, or memory ran out; look at what was said last"
        raise FixSetup(f"{what} ended with {cause}: {remedy}") from None
    finally:
        process.kill()
        process.join()
        ours.close()


def launch(process: ForkServerProcess) -> None:
    """Start a process; FixSetup when the fork server cannot."""
    try:
        process.start()
    except (EOFError, OSError) as error:
        raise FixSetup(f"no process could be started ({error or 'the fork server died'}): {LOADABLE}") from None


def answer(connection: Connection, target: str, config: Mapping[str, Any], what: str, place: Mapping[str, str]) -> None:
    """The other process: call, and send what came out; it ends when nobody listens any more."""
    ignore_signals()
    os.environ.update(place)
    module, _, name = target.partition(":")
    try:
        function = load(module, name, what)
        connection.send(("done", function(config, lambda *said: connection.send(("say", said)))))
    except HpsearchError as error:
        connection.send(("error", error))
    except (BrokenPipeError, ConnectionResetError):
        return
    except MemoryError:
        connection.send(
            ("error", FixSetup(f"{what} failed: there is not enough memory; close other programs, or raise its limit (`ulimit -v`)"))
        )
    except Exception:
        connection.send(("error", FixSetup(f"{what} failed:\n{traceback.format_exc()}")))


def load(module: str, name: str, what: str) -> Any:
    """A function of a module of ours; FixSetup, a sentence, where the libraries that it needs cannot be loaded."""
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # of many kinds, where memory is short
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
        raise FixSetup(f"{what} failed, since its libraries cannot be loaded ({reason}): {LOADABLE}") from None
