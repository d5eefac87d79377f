"""The commands of the service: the server, what steers a study while it runs, and commands that a server carries out."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hpsearch.errors import FixInput, FixSetup, NotFound
from hpsearch.options import echo, guarded, located, served, stored

if TYPE_CHECKING:
    from hpsearch.client import Client
    from hpsearch.comparing import Contest
    from hpsearch.spec import StudySpec

SERVED = ("run", "compare", "list", "show", "report", "pause", "resume", "cancel", "stop", "extend")
PORT = 8470


# ---------------------------------------------------------------- the server


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="another than this machine's own wants a token")
@click.option("-p", "--port", default=PORT, show_default=True, help="0 takes a free one")
@click.option(
    "--at-once", type=click.IntRange(1, 256), metavar="N", help="studies at once, each on its part of the machine  [default: 1, or GPUs]"
)
@click.option(
    "--data-root", "roots", multiple=True, type=click.Path(path_type=Path), help="folder that data may lie in  [default: this one]"
)
@click.option("--allow-code", is_flag=True, help="studies may name functions of yours: whoever submits them runs code here")
@click.option("--allow-host", "hosts", multiple=True, metavar="NAME", help="another name that this server goes by, such as a proxy's")
@click.option("--token-file", type=click.Path(path_type=Path), help="file with the token  [default: HPSEARCH_TOKEN]")
@click.option("--mlflow-page", metavar="URL", help="where MLflow's page is, for links (`hpsearch ui`)  [default: the tracking server]")
@click.option("--no-tracking", is_flag=True, help="do without MLflow")
@click.option("--tracking-uri", metavar="URI", help="MLflow store or server  [default: MLflow's own, mlflow.db here]")
@click.option("--storage", metavar="URL", help="Optuna storage: file or URL  [default: hpsearch.db here]")
@click.option("--quiet", is_flag=True, help="no line for each request")
@guarded
def serve(
    host: str,
    port: int,
    at_once: int | None,
    roots: tuple[Path, ...],
    allow_code: bool,
    hosts: tuple[str, ...],
    token_file: Path | None,
    mlflow_page: str | None,
    no_tracking: bool,
    tracking_uri: str | None,
    storage: str | None,
    quiet: bool,
) -> None:
    """Serve a queue of studies, with a page and an HTTP API.

    Studies run one after the other, or --at-once, in this folder. What is queued or runs when the server is killed goes on when it is
    started again. Ctrl-C stops neatly.
    """
    from hpsearch.service.serve import serve as verb

    where = located(storage, tracking_uri, not no_tracking)
    page = mlflow_page or (where.tracking if where.tracking and where.tracking.startswith("http") else "") or ""
    ended = verb(
        where,
        host,
        port,
        token=token_of(token_file),
        allowed=hosts,
        roots=roots,
        code=allow_code,
        slots=at_once or 0,
        ui=page,
        quiet=quiet,
        ready=lambda address: echo(f"hpsearch on {address} (Ctrl-C ends it)", err=True),
    )
    sys.exit(128 + ended if ended else 0)


def token_of(file: Path | None) -> str:
    """The token that requests must bring; "" for none."""
    if file is None:
        return os.environ.get("HPSEARCH_TOKEN", "")
    try:
        token = file.read_text().strip()
    except (OSError, ValueError) as error:
        raise FixSetup(f"the token file {file} cannot be read: {error}") from None
    if not token:
        raise FixSetup(f"the token file {file} is empty: `openssl rand -hex 24 > {file}` makes a token")
    return token


# ---------------------------------------------------------------- steering, here or on a server


@click.command()
@click.argument("study")
@stored
@guarded
def pause(study: str, storage: str | None, as_json: bool) -> None:
    """Pause a study that runs; the command that started it goes on with it.

    Its trials stop at the end of their epoch and go on from there.
    """
    if client := served():
        client.pause(study)
        told(study, "will pause", as_json)
        return
    running(study, storage).pause()
    told(study, "will stop neatly", as_json)


@click.command()
@click.argument("study")
@click.option("--json", "as_json", is_flag=True, help="print JSON on standard output")
@guarded
def resume(study: str, as_json: bool) -> None:
    """Have a server go on with a study that was paused, cancelled or failed.

    Without a server, the command that started it does.
    """
    server("resume", study).resume(study)
    told(study, "is queued", as_json)


@click.command()
@click.argument("study")
@click.option("--json", "as_json", is_flag=True, help="print JSON on standard output")
@guarded
def cancel(study: str, as_json: bool) -> None:
    """Have a server end a study for good; what was found stays."""
    server("cancel", study).cancel(study)
    told(study, "will end", as_json)


@click.command()
@click.argument("study")
@click.argument("trial", type=click.IntRange(0))
@stored
@guarded
def stop(study: str, trial: int, storage: str | None, as_json: bool) -> None:
    """Stop one trial of a study that runs, at the end of its epoch."""
    if client := served():
        client.stop(study, trial)
    else:
        running(study, storage).stop(trial)
    told(study, f"trial {trial} will stop", as_json)


@click.command()
@click.argument("study")
@click.argument("trials", type=click.IntRange(1, 1_000_000))
@stored
@guarded
def extend(study: str, trials: int, storage: str | None, as_json: bool) -> None:
    """Have a study that runs come to TRIALS in all, more than it began with."""
    from hpsearch import compared

    if client := served():
        client.extend(study, trials)
    else:
        control = running(study, storage)
        if compared.members(compared.names_in(located(storage, track=False)), study):
            raise FixInput(f"'{study}' is a comparison, whose studies have as many trials each: run another one with more")
        control.extend(trials)
    told(study, f"will come to {trials:,} trials", as_json)


COMMANDS = (serve, pause, resume, cancel, stop, extend)


def running(study: str, storage: str | None) -> Any:
    """The requests to a study that a command of this machine runs; NotFound where none does."""
    from hpsearch.control import Control
    from hpsearch.leftovers import locked

    where = located(storage, track=False)
    folder = where.runs(study)
    if not locked(folder):
        raise NotFound(
            f"no command runs '{study}' in {where.folder}: `hpsearch run` begins it, or name a server with `hpsearch --server URL`"
        )
    return Control(folder)


def server(verb: str, study: str) -> Client:
    """The server that was named; FixInput without one."""
    from hpsearch.names import check_name

    client = served()
    check_name(study)
    if client is None:
        raise FixInput(f"`hpsearch --server URL {verb} {study}` has a server do it; without one, Ctrl-C and `hpsearch run` do the same")
    return client


def told(study: str, what: str, as_json: bool) -> None:
    """Say what was accepted."""
    echo(json.dumps({"study": study, "accepted": what}) if as_json else f"{study}: {what}")


# ---------------------------------------------------------------- commands that a server carries out


def run(client: Client, spec: StudySpec, detach: bool, as_json: bool) -> None:
    """Submit a study, and follow it to its end; Ctrl-C leaves it alone."""
    values = spec.model_dump(mode="json", exclude_unset=True) | {"name": spec.study_name()}
    row = client.run(values)
    name = row["study"]
    if detach:
        echo(json.dumps(row) if as_json else f"{name} is queued: {client.server}/studies/{name}")
        return
    row = follow(client, row, as_json)
    best = row.get("best")
    if as_json:
        click.echo(json.dumps(row, indent=2))
    elif best:
        echo(f"Best: trial {best['number']}  {row['objective']} {best['score']:.4f}  {best['params']}")
        echo(f"Report: hpsearch --server {client.server} report {name}")
    elif row["note"]:
        echo(row["note"], err=True)
    sys.exit(0 if best and row["state"] in ("done", "paused", "cancelled") else 1)


def compare(client: Client, asked: Contest | Sequence[str], anyway: bool, as_json: bool) -> None:
    """Have a server compare samplers, and follow that to its end; or compare studies that it has."""
    names = asked if isinstance(asked, Sequence) else [submitted(client, asked, as_json)]
    found = client.compare(*names, anyway=anyway)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for sentence in found["verdict"]:
        echo(sentence)
    if len(names) == 1:
        echo(f"Report: hpsearch --server {client.server} report {names[0]}")


def submitted(client: Client, asked: Contest, as_json: bool) -> str:
    """The name of a comparison that a server has carried out."""
    values = asked.specs[0].model_dump(mode="json", exclude_unset=True) | {"name": asked.name}
    wanted: dict[str, Any] = {"samplers": [spec.sampler for spec in asked.specs], "repeats": asked.repeats, "initial": asked.initial}
    wanted |= {"seconds": asked.seconds} if math.isfinite(asked.seconds) else {}
    row = follow(client, client.run(values, compare=wanted), as_json)
    if row["state"] != "done":
        raise FixSetup(f"the comparison '{asked.name}' is {row['state']}: {row['note'] or f'{client.server}/studies/{asked.name}'}")
    return asked.name


def follow(client: Client, row: dict[str, Any], quiet: bool) -> dict[str, Any]:
    """Print what happens until a study has ended; what it came to."""
    name, budget = row["study"], row["trials"]
    echo(f"{name} is on {client.server}/studies/{name} (Ctrl-C leaves it running there)", err=True)
    for event in client.events(name):
        budget = event.get("budget", budget)
        if not quiet and (line := line_of(event, budget)):
            echo(line)
    return client.show(name)


def line_of(event: dict[str, Any], budget: int) -> str:
    """An event as a line; "" for those that are not worth one."""
    match event["event"]:
        case "ended":
            result = event["error"] or f"val_loss {event['val_loss']:.4f}" if event["val_loss"] is not None else event["error"] or ""
            star = "  best" if event["best"] == event["trial"] else ""
            which = f"{event['study']} {event['name']}" if "study" in event else f"{event['name']} of {budget}"
            return f"{which} {event['status'].lower()} {result} {event['seconds']:.1f} s{star}"
        case "state":
            from hpsearch.client import OVER

            return f"{event['state']}{': ' + event['note'] if event['note'] and event['state'] in OVER else ''}"
        case "notice" | "again":
            return str(event["text"])
        case "stage":
            return f"{event['text']}: {event['runs']} runs"
    return ""


def list_studies(client: Client, as_json: bool, of: Sequence[str] = ()) -> None:
    """A server's studies; those of a comparison."""
    rows = [row for row in client.list() if not of or row["study"] in of]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    echo(f"{'study':<28} {'state':<10} {'trials':>9}  {'best':>9}  {'default':>9}")
    for row in rows:
        best, default = (f"{row[key]:.4f}" if row[key] is not None else "-" for key in ("best_score", "default_score"))
        done = f"{row['ended']}/{row['trials']}"
        echo(f"{row['study']:<28} {row['state']:<10} {done:>9}  {best:>9}  {default:>9}")


def show(client: Client, study: str | None, as_json: bool) -> None:
    """A server's study with its trials."""
    name = one(client, study)
    row = client.show(name)
    if "compare" in row["spec"]:
        echo(json.dumps(row, indent=2) if as_json else f"{name}: {row['state']}, {row['ended']}/{row['trials']} trials")
        if not as_json:
            list_studies(client, as_json, row["studies"] or [""])
        return
    trials = client.trials(name, limit=1000)["trials"]
    if as_json:
        click.echo(json.dumps(row | {"trials": trials}, indent=2))
        return
    echo(f"{name}: {row['state']}, {row['ended']}/{row['trials']} trials")
    for r in trials:
        loss = "-" if r["val_loss"] is None else f"{r['val_loss']:.4f}"
        echo(f"{r['number']:>5} {r['status'].lower():<9} {loss:>8}  {r['error'] or r['params']}")


def report(client: Client, study: str | None, output: Path | None, as_json: bool) -> None:
    """Download a study's report."""
    name = one(client, study)
    path = client.report(name, output or Path(f"{name}.html"))
    echo(json.dumps({"report": str(path)}) if as_json else f"Report: {path}")


def one(client: Client, study: str | None) -> str:
    """The study that is meant; the only one where none is named."""
    if study is not None:
        return study
    names = [row["study"] for row in client.list()]
    if len(names) != 1:
        raise NotFound(f"say which study; there {'is' if len(names) < 2 else 'are'}: {', '.join(names) or 'none'}")
    return str(names[0])
