"""What the loop tells MLflow: a queue that never blocks, to a process of its own. Optuna's storage is the truth; this is a mirror of it."""

from __future__ import annotations

import multiprocessing
import os
import queue
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hpsearch.dbfile import remove_leftovers
from hpsearch.errors import FixInput
from hpsearch.machine import safe_import_path, shielded
from hpsearch.tracking.channel import Sender, receive
from hpsearch.tracking.process import masked, serve
from hpsearch.tracking.stores import check_store, store_file
from hpsearch.types import EpochDone, Event, TrackingBehind, TrialEnded

if TYPE_CHECKING:
    from hpsearch.protocols import Tracker

EXIT_SECONDS = 10.0  # how long a mirror that has answered may take to end
LATE_SECONDS = 10.0  # how long MLflow may take nothing of what it is told before that is said
STILL_SECONDS = 30.0  # how long the end of a study waits for a mirror that gets nowhere
DRAIN_SECONDS = 120.0  # how long for one that does
SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks")


class NoTracker:
    """Listens to nothing."""

    def record(self, event: Event) -> None:
        """Ignore the event."""

    def close(self) -> None:
        """Nothing to finish."""


def tracking_uri(given: str | None, folder: Path) -> str:
    """Where MLflow's store is: `given`, else MLFLOW_TRACKING_URI, else MLflow's own default, mlflow.db in `folder`.

    FixInput for a kind of store that MLflow cannot write.
    """
    uri = given or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(folder / 'mlflow.db').resolve()}"
    scheme = uri.partition(":")[0].partition("+")[0]
    if "://" not in uri or scheme not in SCHEMES:
        shown = masked(uri, uri) if "://" in uri else uri.rpartition("@")[2]  # what is before it may be a password
        raise FixInput(f"--tracking-uri '{shown}': MLflow no longer writes to plain folders; use sqlite:///mlflow.db or http://host:port")
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        uri = f"sqlite:///{(folder / uri.removeprefix('sqlite:///')).resolve()}"
    return uri


class MlflowTracker:
    """Sends events to the mirror's process; `record` returns at once whatever MLflow does."""

    def __init__(self, uri: str, folder: Path, listeners: Sequence[Tracker] = ()) -> None:
        """Start the mirror's process. `listeners` hear TrackingBehind while MLflow does not take what it is told.

        FixSetup where `check_store` says so.
        """
        check_store(uri)
        quiet_environment()
        self.uri = uri
        context = multiprocessing.get_context("spawn")
        heard, told = context.Pipe(duplex=False)
        self.answers, answers = context.Pipe(duplex=False)
        self.taken, self.beats, self.failures = (context.RawValue("q", 0) for _ in range(3))  # no lock that a killed process would keep
        shared = (heard, answers, self.taken, self.beats, self.failures)
        self.process = context.Process(target=serve, args=(*shared, uri, str(folder)), name="hpsearch-mlflow", daemon=True)
        with shielded(), safe_import_path():
            self.process.start()
        heard.close()
        answers.close()
        self.events = Sender(told)
        self.problem: str | None = None
        self.points = 0  # recorded: epochs, and ends of trials
        self.listeners, self.told = listeners, 0  # how many points they think MLflow is behind
        self.moved, self.seen = time.monotonic(), 0  # when it last took something, and how much it has

    @property
    def behind(self) -> int:
        """How many epochs and ends of trials MLflow does not have."""
        return self.points - int(self.taken.value)

    def record(self, event: Event) -> None:
        """Queue the event."""
        self.watch()
        self.points += isinstance(event, (EpochDone, TrialEnded))
        self.events.put(event)

    def watch(self) -> None:
        """Tell the listeners how far behind MLflow is, once it fails or has taken nothing for LATE_SECONDS, and when it has caught up."""
        behind, taken, now = self.behind, int(self.taken.value), time.monotonic()
        if taken != self.seen or not behind:
            self.seen, self.moved = taken, now
        late = behind > 0 and (self.told or self.failures.value or (self.beats.value and now - self.moved > LATE_SECONDS))
        if (behind if late else 0) != self.told:
            self.told = behind if late else 0
            for listener in self.listeners:
                listener.record(TrackingBehind(self.told))

    def close(self, patience: float | None = DRAIN_SECONDS) -> None:
        """Wait until the mirror is complete; `problem` then says what is missing, if anything.

        It waits at most STILL_SECONDS for a mirror that has begun and gets nowhere, `patience` in all; None: as long as it takes.
        """
        self.events.put(None)
        moved, seen, begun = time.monotonic(), self.beats.value, time.monotonic()
        while self.problem is None:
            try:
                self.problem = receive(self.answers, 0.5)
            except EOFError:
                self.process.join(EXIT_SECONDS)
                self.problem = "its process died"
            except queue.Empty:
                self.watch()
                now = time.monotonic()
                if self.beats.value != seen:
                    moved, seen = now, self.beats.value
                if not self.process.is_alive():
                    self.problem = "its process died"
                elif patience is not None and (now - begun > patience or (seen and now - moved > STILL_SECONDS)):
                    self.problem = f"MLflow did not take everything within {now - begun:.0f} s"
        self.watch()  # the last of it may have arrived with the answer
        self.process.join(EXIT_SECONDS)
        self.abandon()

    def abandon(self) -> None:
        """End the mirror's process at once."""
        self.process.kill()
        self.process.join()
        self.events.put(None)  # its thread ends; nobody is at the other end
        self.answers.close()
        if (file := store_file(self.uri)) is not None:
            remove_leftovers(file)  # of a store that was being made


def quiet_environment() -> None:
    """Telemetry off unless the user turned it on, short patience with a dead server; inherited by MLflow's processes."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
