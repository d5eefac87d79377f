"""The HTTP API. Every function parses, calls one verb of the desk or the reader, and answers."""

from __future__ import annotations

import os
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import FileResponse, PlainTextResponse, StreamingResponse

from hpsearch import __version__
from hpsearch.diagnosis import diagnoses
from hpsearch.service.desk import Desk
from hpsearch.service.errors import RESPONSES
from hpsearch.service.metrics import metrics
from hpsearch.service.models import Accepted, Device, Health, Overview, Revision, Studies, Study, Submission, TrialDetail, Trials
from hpsearch.service.reader import trial_row
from hpsearch.service.runner import LOG, read_tail
from hpsearch.service.stream import events
from hpsearch.types import finite_json

router = APIRouter(prefix="/api", responses=RESPONSES)
Name = Annotated[str, Path(description="the study's name")]
Number = Annotated[int, Path(ge=0, le=1_000_000, description="the trial's number")]
Key = Annotated[str | None, Header(alias="Idempotency-Key", description="submitting twice with one key makes one study")]
Sort = Literal["number", "status", "score", "val_loss", "seconds", "best_epoch", "started", "ended"]
Fate = Literal["WAITING", "RUNNING", "PAUSED", "COMPLETE", "PRUNED", "FAILED"]
SANDBOX = "sandbox allow-scripts allow-downloads allow-popups"  # a report can do nothing in this server's name


def desk_of(request: Request) -> Desk:
    """What the application was made with."""
    desk: Desk = request.app.state.desk
    return desk


@router.post("/studies", status_code=201, responses={200: {"description": "The same key had submitted it before", "model": Study}})
def submit(asked: Submission, request: Request, response: Response, key: Key = None) -> Study:
    """Submit a study, or a comparison of samplers on one."""
    desk = desk_of(request)
    entry, new = desk.submit(asked, key)
    response.status_code = 201 if new else 200
    response.headers["Location"] = f"/api/studies/{entry.study}"
    row = desk.reader.row(entry.study, entry, None)
    return Study(**row, spec=dict(entry.values), facts={}, warnings=[])


@router.get("/studies")
def list_studies(request: Request, offset: Annotated[int, Query(ge=0)] = 0, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> Studies:
    """All studies, newest first."""
    rows = desk_of(request).reader.overview()
    return Studies(total=len(rows), offset=offset, studies=[Overview(**row) for row in rows[offset : offset + limit]])


@router.get("/studies/{name}")
async def show(name: Name, request: Request) -> Study:
    """One study: where it stands, its best trial, the default recipe, what it was asked to do."""
    reader = desk_of(request).reader
    return await reader.shared(f"show {name}", lambda: Study(**reader.study(name)))


@router.patch("/studies/{name}")
def revise(name: Name, asked: Revision, request: Request) -> Study:
    """Raise the number of trials, also while the study runs, or change its priority."""
    desk = desk_of(request)
    desk.revise(name, asked)
    return Study(**desk.reader.study(name))


@router.post("/studies/{name}/cancel", status_code=202)
def cancel(name: Name, request: Request) -> Accepted:
    """End a study for good; its trials stop at the end of their epoch, and what was found stays."""
    desk_of(request).want(name, "cancelled")
    return Accepted(study=name, accepted="cancel")


@router.post("/studies/{name}/pause", status_code=202)
def pause(name: Name, request: Request) -> Accepted:
    """Pause a study; its trials go on from their last epoch when it is resumed."""
    desk_of(request).want(name, "paused")
    return Accepted(study=name, accepted="pause")


@router.post("/studies/{name}/resume", status_code=202)
def resume(name: Name, request: Request) -> Accepted:
    """Queue a study again that is paused, failed, cancelled or done."""
    desk_of(request).resume(name)
    return Accepted(study=name, accepted="resume")


@router.get("/studies/{name}/trials")
def trials(
    name: Name,
    request: Request,
    status: Fate | None = None,
    sort: Sort = "number",
    order: Literal["asc", "desc"] = "asc",
    offset: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Trials:
    """A page of a study's trials; those without a value of what is sorted by come last."""
    return Trials(**desk_of(request).reader.trials(name, status, sort, order == "desc", offset, limit))


@router.get("/studies/{name}/trials/{number}")
def trial(name: Name, number: Number, request: Request) -> TrialDetail:
    """One trial with its curve and what it says."""
    stored, record = desk_of(request).reader.trial(name, number)
    more = {"diagnosis": diagnoses(stored.records).get(number), "effective": dict(record.effective), "curve": list(record.curve)}
    return TrialDetail(**finite_json(trial_row(record) | more))


@router.post("/studies/{name}/trials/{number}/stop", status_code=202)
def stop(name: Name, number: Number, request: Request) -> Accepted:
    """Stop a running trial at the end of its epoch; it counts as pruned."""
    desk_of(request).stop_trial(name, number)
    return Accepted(study=name, accepted=f"stop trial {number}")


@router.get("/studies/{name}/events", response_class=StreamingResponse, responses={200: {"content": {"text/event-stream": {}}}})
async def follow(
    name: Name,
    request: Request,
    after: Annotated[int, Query(ge=0, le=1 << 53, description="the id of the last event that is known")] = 0,
    last: Annotated[str | None, Header(alias="Last-Event-ID")] = None,
) -> StreamingResponse:
    """What happens, as server-sent events, from the beginning or from where a reader left; ends when the study does."""
    desk = desk_of(request)
    await desk.reader.shared(f"known {name}", lambda: desk.reader.study(name))
    start = int(last) if last and last.isascii() and last.isdigit() and len(last) < 17 else after
    return StreamingResponse(
        events(desk.feed, desk.reader, name, start), media_type="text/event-stream", headers={"x-accel-buffering": "no"}
    )


@router.get("/studies/{name}/log", response_class=PlainTextResponse)
def log(name: Name, request: Request, bytes_: Annotated[int, Query(alias="bytes", ge=1, le=1 << 20)] = 20_000) -> str:
    """The end of what the study's process printed."""
    desk = desk_of(request)
    desk.reader.study(name)
    try:
        return read_tail(desk.reader.folder(name) / LOG, bytes_)
    except OSError:
        return ""


@router.get("/studies/{name}/report", response_class=FileResponse, responses={200: {"content": {"text/html": {}}}})
async def report(name: Name, request: Request) -> FileResponse:
    """The study's report, one page that needs no network."""
    path = await desk_of(request).report(name)
    return FileResponse(path, media_type="text/html", headers={"content-security-policy": SANDBOX})


@router.get("/studies/{name}/model", response_class=FileResponse, responses={200: {"content": {"application/octet-stream": {}}}})
def model(name: Name, request: Request) -> FileResponse:
    """The winner's weights (safetensors)."""
    path = desk_of(request).reader.weights(name)
    return FileResponse(path, media_type="application/octet-stream", filename=f"{name}-{path.name}")


@router.get("/studies/{name}/export", response_class=StreamingResponse, responses={200: {"content": {"application/zip": {}}}})
async def export(name: Name, request: Request) -> StreamingResponse:
    """The winner as `hpsearch export` writes it: weights, card, a script without hpsearch; packed as a zip file."""
    file = await desk_of(request).export(name)
    headers = {"content-length": str(os.fstat(file.fileno()).st_size), "content-disposition": f'attachment; filename="{name}.zip"'}
    return StreamingResponse(iter(partial(file.read, 1 << 20), b""), media_type="application/zip", headers=headers)


@router.get("/compare", response_model=None)
async def compare(
    request: Request,
    study: Annotated[list[str], Query(min_length=1, max_length=50, description="two studies or more, or one comparison that was run")],
    anyway: Annotated[bool, Query(description="also where they differ in more than their sampler")] = False,
) -> dict[str, Any]:
    """Studies compared, as `hpsearch compare` does it."""
    found: dict[str, Any] = await desk_of(request).compare(study, anyway)
    return found


@router.get("/devices")
def devices(request: Request) -> list[Device]:
    """What processor and GPUs have to do."""
    return [Device(**device) for device in desk_of(request).devices()]


@router.get("/health")
def health(request: Request) -> Health:
    """Whether the server and its queue get on; needs no token."""
    desk = desk_of(request)
    problem = desk.runner.problem
    counts = desk.reader.once("counts", desk.queue.counts)
    return Health(
        status="degraded" if problem else "ok",
        problem="the queue does not get on: see the log" if problem else "",
        version=__version__,
        queue=counts,
    )


@router.get("/metrics", response_class=PlainTextResponse)
def prometheus(request: Request) -> PlainTextResponse:
    """Everything there is to measure, for Prometheus."""
    desk = desk_of(request)
    return PlainTextResponse(desk.reader.once("metrics", lambda: metrics(desk)), media_type="text/plain; version=0.0.4")
