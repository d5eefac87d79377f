"""A line to another process that never makes its writer wait, and that leaves nothing behind however either end dies.

`multiprocessing.Queue` does the same with named semaphores, of which Python's resource tracker complains on the terminal once a process
that made some was killed.
"""

from __future__ import annotations

import queue
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any


class Sender:
    """The end that writes: a thread carries what is put to the other process, in order."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self.carry, name="mlflow-events", daemon=True)
        self.thread.start()

    def put(self, item: Any) -> None:
        """Queues an item; None ends the line."""
        self.waiting.put(item)

    def carry(self) -> None:
        """The thread: ends with the line, or when nobody is at its other end any more."""
        with suppress(OSError), self.connection:
            while (item := self.waiting.get()) is not None:
                self.connection.send(item)
            self.connection.send(None)


def receive(connection: Connection, timeout: float) -> Any:
    """Returns the next item; raises `queue.Empty` when none comes in time, EOFError when none will come: the writer is gone."""
    try:
        if not connection.poll(max(0.0, timeout)):
            raise queue.Empty
        return connection.recv()
    except OSError:
        raise EOFError from None
