"""Whether MLflow answers, and which runs it believes to be running: asked with little patience."""

from __future__ import annotations

import os
import socket
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import TypeVar
from urllib.parse import urlsplit

from hpsearch.dbfile import damage, look
from hpsearch.tracking.process import masked
from hpsearch.tracking.stores import store_file

T = TypeVar("T")
PATIENCE = 5.0  # seconds
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433, "http": 80, "https": 443}


def problem_of(uri: str) -> str:
    """Why MLflow cannot be used at `uri`; "" where it can. A file that is not there yet is no problem: it will be made."""
    try:
        if (path := store_file(uri)) is not None:
            return file_problem(path)
        if uri.startswith("http"):
            return within(lambda: server_problem(uri))
        parts = urlsplit(uri)
        port = parts.port or PORTS.get(parts.scheme.partition("+")[0])
        if parts.hostname and port:
            socket.create_connection((parts.hostname, port), timeout=PATIENCE).close()
    except (OSError, ValueError) as error:
        return masked(str(error), uri) or type(error).__name__
    return ""


def file_problem(path: Path) -> str:
    """What is wrong with an SQLite store."""
    if not path.exists():
        return ""
    try:
        tables = look(path, PATIENCE).tables
    except sqlite3.Error as error:
        return str(error)
    if tables and not {"experiments", "runs"} <= tables:
        return "it is no MLflow store"
    return damage(path, PATIENCE)


def server_problem(uri: str) -> str:
    """What a server answers to the question whether it is well."""
    parts = urlsplit(uri)
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")
    try:
        with urllib.request.urlopen(f"{bare}/health", timeout=PATIENCE) as answer:
            return "" if answer.status == 200 else f"it answers {answer.status}"
    except urllib.error.HTTPError as error:
        return "" if error.code in (401, 403) else f"it answers {error.code} to /health"
    except urllib.error.URLError as error:
        return str(error.reason)


def unfinished(uri: str, studies: dict[str, str]) -> list[str]:
    """Which of the studies, names by uid, have runs that MLflow believes to be running.

    Raises what MLflow raises, and OSError when it takes long.
    """
    path = store_file(uri)
    if not studies or (path is not None and not path.exists()):
        return []
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"], os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "0", str(int(PATIENCE))

    def look() -> list[str]:
        from mlflow import MlflowClient

        client = MlflowClient(uri)
        experiments = [e.experiment_id for e in client.search_experiments(max_results=1000)]
        runs = client.search_runs(experiments, "attributes.status = 'RUNNING'", max_results=1000) if experiments else []
        found = {run.data.tags.get("hpsearch.uid") or run.data.tags.get("hpsearch.study", "") for run in runs}
        return sorted({name for uid, name in studies.items() if uid in found or name in found})

    return within(look, 12 * PATIENCE)


def within(look: Callable[[], T], patience: float = PATIENCE + 1) -> T:
    """What a function gives, unless it takes too long: a name that nobody resolves waits for minutes."""
    found: list[T] = []
    failed: list[Exception] = []

    def call() -> None:
        try:
            found.append(look())
        except Exception as error:  # raised below
            failed.append(error)

    thread = Thread(target=call, daemon=True)
    thread.start()
    thread.join(patience)
    if failed:
        raise failed[0]
    if not found:
        raise TimeoutError(f"no answer within {patience:.0f} s")
    return found[0]
