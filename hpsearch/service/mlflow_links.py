"""Where a study and its trials are on MLflow's page. Reads MLflow's store without MLflow, which takes seconds to load."""

from __future__ import annotations

import json
import sqlite3
import urllib.error
import urllib.request
from contextlib import closing
from typing import Any

from hpsearch.errors import NotFound
from hpsearch.tracking import store_file

PATIENCE = 3.0  # seconds


def page_of(tracking: str | None, study: str, trial: int | None) -> str:
    """The address of an experiment, or of a trial's run in it, below MLflow's own; NotFound when MLflow does not have it."""
    found: tuple[str, str | None] | None = None
    if tracking is not None and tracking.startswith("http"):
        found = from_server(tracking.rstrip("/"), study, trial)
    elif tracking is not None and (file := store_file(tracking)) is not None and file.exists():
        with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True, timeout=PATIENCE)) as db:
            found = from_file(db, study, trial)
    if found is None or (trial is not None and found[1] is None):
        raise NotFound(
            f"MLflow does not have {'this trial of ' if trial is not None else ''}'{study}' yet: `hpsearch sync {study}` brings it there"
        )
    return f"#/experiments/{found[0]}" + (f"/runs/{found[1]}" if trial is not None else "")


def from_file(db: sqlite3.Connection, study: str, trial: int | None) -> tuple[str, str | None] | None:
    """Experiment and run in a store of one file."""
    row = db.execute("SELECT experiment_id FROM experiments WHERE name = ?", (study,)).fetchone()
    if row is None:
        return None
    asked = "SELECT r.run_uuid FROM runs r JOIN tags t ON t.run_uuid = r.run_uuid WHERE r.experiment_id = ? AND t.key = ? AND t.value = ?"
    run = db.execute(asked, (row[0], "hpsearch.trial", str(trial))).fetchone() if trial is not None else None
    return str(row[0]), run[0] if run else None


def from_server(address: str, study: str, trial: int | None) -> tuple[str, str | None] | None:
    """The same from a server."""
    try:
        experiment = asked(f"{address}/api/2.0/mlflow/experiments/get-by-name?experiment_name={study}")["experiment"]["experiment_id"]
        if trial is None:
            return str(experiment), None
        wanted = {"experiment_ids": [experiment], "filter": f"tags.`hpsearch.trial` = '{trial:d}'", "max_results": 1}
        runs = asked(f"{address}/api/2.0/mlflow/runs/search", wanted).get("runs", [])
        return str(experiment), runs[0]["info"]["run_id"] if runs else None
    except (OSError, ValueError, KeyError, urllib.error.URLError):
        return None


def asked(address: str, body: Any = None) -> Any:
    """Ask MLflow's server."""
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(address, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return json.load(answer)
