"""The pages. They are made here and work without scripts; with them, parts are fetched again and drawings grow."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qsl, quote, urlencode

import jinja2
from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response

from hpsearch.core.text import showable
from hpsearch.diagnosis import diagnoses
from hpsearch.errors import FixInput, HpsearchError, NotFound, http_status
from hpsearch.journal import recent
from hpsearch.names import check_name
from hpsearch.proof import winner_of
from hpsearch.resources import folder
from hpsearch.search.queue import COMPARE, Entry
from hpsearch.service.api import SANDBOX, desk_of
from hpsearch.service.desk import Desk
from hpsearch.service.form import filled, preview, preview_of, submission
from hpsearch.service.guard import COOKIE
from hpsearch.service.mlflow_links import page_of
from hpsearch.service.models import Revision
from hpsearch.terminal import brief, shown_value
from hpsearch.types import SIGNS, StoredStudy, TrialRecord, finite_json

router = APIRouter(include_in_schema=False)
LISTED = 200  # studies on the first page
ROWS = 500  # trials in a table
DRAWN = 100  # curves of ended trials in a drawing
STATIC = {"app.js": "text/javascript", "app.css": "text/css"}
Chosen = Annotated[list[str], Query(max_length=20)]


# ---------------------------------------------------------------- how things are written


def score(value: float | None) -> str:
    """A score of any objective."""
    return "–" if value is None else f"{value:.4f}"


def measure(value: float | None, objective: str) -> str:
    """A score of a known one."""
    return "–" if value is None else shown_value(objective, value)


def when(seconds: float | None) -> str:
    """A moment, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%b %d %H:%M UTC") if seconds else "–"


def size(number: float) -> str:
    """Bytes as a person reads them."""
    return f"{number / 1e9:.1f} GB"


def gain(better: float | None, objective: str) -> str:
    """A difference for the better or the worse."""
    if better is None:
        return "–"
    word = "better" if better >= 0 else "worse"
    return f"{abs(better):.4f} nats {word}" if objective == "val_loss" else f"{100 * abs(better):.1f} points {word}"


@cache
def templates() -> jinja2.Environment:
    """The templates, read once."""
    loader = jinja2.FileSystemLoader(folder("dashboards") / "service")
    made = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters |= {"score": score, "measure": measure, "when": when, "size": size, "brief": brief}
    return made


def page(template: str, status: int = 200, /, **values: Any) -> HTMLResponse:
    """A page, or part of one."""
    return HTMLResponse(part(template, **values), status)


def part(template: str, /, **values: Any) -> str:
    """The same as text."""
    return showable(templates().get_template(f"{template}.html.j2").render({"here": "", "plots": False, "ui": "", **values}))


def trouble(error: HpsearchError) -> HTMLResponse:
    """An error as a page."""
    status = http_status(error)
    titles = {404: "Not found", 422: "That cannot be used", 423: "Not now", 409: "Not like this"}
    return page("problem", status, title=titles.get(status, "Something is wrong"), detail=str(error))


async def typed(request: Request) -> dict[str, str]:
    """The fields of a form."""
    body = (await request.body()).decode("utf-8", "replace")
    try:
        return dict(parse_qsl(body, keep_blank_values=True, max_num_fields=100))
    except ValueError:
        raise FixInput("the form has more fields than there are") from None


def study_page(name: str) -> str:
    """The address of a study's page."""
    return f"/studies/{quote(name, safe='')}"


# ---------------------------------------------------------------- files


@router.get("/static/plotly.js")
def plotly() -> FileResponse:
    """Plotly's script, from its package."""
    found = find_spec("plotly")
    assert found is not None
    assert found.origin is not None
    path = Path(found.origin).parent / "package_data" / "plotly.min.js"
    return FileResponse(path, media_type="text/javascript", headers={"cache-control": "max-age=86400"})


@router.get("/static/{name}")
def static(name: str) -> FileResponse:
    """One of our own two files."""
    if name not in STATIC:
        raise NotFound(f"there is no file {name[:80]!r}")
    path = folder("dashboards") / "service" / name
    return FileResponse(path, media_type=STATIC[name], headers={"cache-control": "no-cache"})


# ---------------------------------------------------------------- all studies


@router.get("/")
def studies(request: Request) -> HTMLResponse:
    """All studies."""
    desk = desk_of(request)
    rows = listed(desk)
    return page("studies", here="studies", rows=rows[:LISTED], total=len(rows), devices=desk.devices(), ui=desk.ui)


def listed(desk: Desk) -> list[dict[str, Any]]:
    """All studies but those that a comparison stands for."""
    rows = desk.reader.overview()
    within = {study for row in rows for study in row["studies"]}
    return [row for row in rows if row["study"] not in within or row["submitted"] is not None]


@router.get("/parts/studies")
async def part_studies(request: Request) -> HTMLResponse:
    """The table of the first page."""
    desk = desk_of(request)

    def made() -> str:
        rows = listed(desk)
        return part("rows", rows=rows[:LISTED], total=len(rows))

    return HTMLResponse(await desk.reader.shared("html studies", made))


@router.get("/parts/devices")
async def part_devices(request: Request) -> HTMLResponse:
    """What the machine has to do."""
    desk = desk_of(request)
    return HTMLResponse(await desk.reader.shared("html devices", lambda: part("devices", devices=desk.devices())))


# ---------------------------------------------------------------- a new one


@router.get("/studies/new")
def new() -> HTMLResponse:
    """The form."""
    fields = filled({})
    shown = preview_of({field.name: field.value for field in fields}, lambda _: None)
    return page("new", here="new", fields=fields, key=secrets.token_urlsafe(16), preview=shown, problem="")


@router.post("/parts/preview")
async def part_preview(request: Request) -> HTMLResponse:
    """The study that the form makes."""
    values, desk = await typed(request), desk_of(request)
    return page("preview", preview=await asyncio.to_thread(preview_of, values, desk.understood))


@router.post("/studies")
async def start(request: Request) -> Response:
    """Start the study that the form makes; twice is once."""
    desk, values = desk_of(request), await typed(request)
    try:
        entry, _ = await asyncio.to_thread(desk.submit, submission(values), values.get("key") or None)
    except HpsearchError as error:
        shown = preview_of(values, desk.understood)
        return page(
            "new", http_status(error), here="new", fields=filled(values), key=secrets.token_urlsafe(16), preview=shown, problem=str(error)
        )
    return RedirectResponse(study_page(entry.study), 303)


# ---------------------------------------------------------------- one study


@router.get("/studies/{name}")
def study(name: str, request: Request) -> HTMLResponse:
    """A study, live."""
    desk = desk_of(request)
    try:
        entry = desk.reader.entry(name)
        if entry is not None and entry.compares:
            return page("contest", plots=True, **contest(desk, entry), devices=desk.devices())
        values = summary(desk, name)
    except HpsearchError as error:
        return trouble(error)
    asked = dict(entry.values) if entry else dict(values["row"]["spec"])
    shown = preview(asked | {"name": name, "trials": values["row"]["trials"]})
    more = {"devices": desk.devices(), "yaml": shown.yaml, "command": shown.command, "after": recent(desk.reader.folder(name))}
    return page("study", plots=True, **{**values, **table(desk, name), **more})


@router.get("/parts/contest/{name}")
async def part_contest(name: str, request: Request) -> HTMLResponse:
    """Where a comparison stands."""
    desk = desk_of(request)

    def made() -> str:
        entry = desk.reader.entry(name)
        if entry is None or not entry.compares:
            raise NotFound(f"'{name}' is no comparison")
        return part("standings", **contest(desk, entry))

    return HTMLResponse(await desk.reader.shared(f"html contest {name}", made))


def contest(desk: Desk, entry: Entry) -> dict[str, Any]:
    """What is said of a comparison of samplers."""
    row, asked = desk.reader.study(entry.study), dict(entry.values)
    wanted = asked.pop(COMPARE)
    rows, race = beside([desk.reader.stored(name) for name in row["studies"]])
    shown = preview(asked | {"name": entry.study}, wanted)
    of = wanted["repeats"] * len(wanted["samplers"])
    times = "once" if wanted["repeats"] == 1 else f"{wanted['repeats']} times each"
    text = f"It compares {', '.join(wanted['samplers'])}, {times}, each repeat with the same first {wanted['initial']} trials."
    where = {"queued": "It waits for its turn.", "done": entry.note}.get(entry.state, f"{len(rows)} of {of} studies have begun.")
    return {
        "name": entry.study,
        "row": row,
        "verdict": f"{text} {where}",
        "submitted": True,
        "rows": rows,
        "race": race,
        "mixed": False,
        "yaml": shown.yaml,
        "command": shown.command,
        "ui": desk.ui,
    }


@router.get("/parts/study/{name}")
async def part_study(name: str, request: Request) -> HTMLResponse:
    """What stands above the drawings."""
    desk = desk_of(request)
    return HTMLResponse(await desk.reader.shared(f"html study {name}", lambda: part("summary", **summary(desk, name))))


@router.get("/parts/trials/{name}")
async def part_trials(name: str, request: Request) -> HTMLResponse:
    """The table of trials."""
    desk = desk_of(request)
    return HTMLResponse(await desk.reader.shared(f"html trials {name}", lambda: part("trials", name=name, **table(desk, name))))


@router.get("/parts/data/{name}")
async def part_data(name: str, request: Request) -> Response:
    """What the drawings show."""
    desk = desk_of(request)
    return Response(
        await desk.reader.shared(f"data {name}", lambda: json.dumps(finite_json(drawn(desk, name)))), media_type="application/json"
    )


def summary(desk: Desk, name: str) -> dict[str, Any]:
    """What is said of a study."""
    row = desk.reader.study(name)
    objective = row.get("objective") or str(row["spec"].get("objective", "val_loss"))
    better = gain(row.get("gain"), objective)
    return {
        "name": name,
        "row": row,
        "objective": objective,
        "gain": better,
        "verdict": verdict(row, objective, better),
        "submitted": desk.reader.entry(name) is not None,
        "ui": desk.ui,
    }


def verdict(row: Mapping[str, Any], objective: str, better: str) -> str:
    """Where a study stands, in a sentence or two."""
    begun = {
        "queued": "It waits for its turn.",
        "running": "It runs; no trial has ended yet.",
        "failed": "It failed before a trial was complete.",
    }
    if not row.get("best"):
        return begun.get(row["state"], f"It is {row['state']}, and no trial is complete.")
    best = row["best"]
    text = f"The best of {row['ended']} trials is trial {best['number']}: {objective} {measure(row['best_score'], objective)}"
    if best["chosen_by"].startswith("mean "):
        text += f", chosen by its {best['chosen_by']}"
    if best["number"] == 0:
        return f"{text}, which is the default recipe: nothing has been gained so far."
    text += f", {better} than the default recipe." if row.get("gain") is not None else "."
    return f"{text} {best['diagnosis'][0].upper()}{best['diagnosis'][1:]}." if best.get("diagnosis") else text


def stored_or_empty(desk: Desk, name: str) -> StoredStudy:
    """A study; one without trials where it has not begun."""
    try:
        return desk.reader.stored(name)
    except NotFound:
        if desk.reader.entry(name) is None:
            raise
        return StoredStudy(name, {}, {}, ())


def table(desk: Desk, name: str) -> dict[str, Any]:
    """The trials of a study, newest first, and what of their hyperparameters varies."""
    stored = stored_or_empty(desk, name)
    records = sorted(stored.records, key=lambda r: -r.number)
    best = winner_of(stored)
    space = stored.spec.get("space", {})
    varied = [key for key, entry in space.items() if not (isinstance(entry, Mapping) and "value" in entry)]
    return {
        "objective": str(stored.spec.get("objective", "val_loss")),
        "trials": records[:ROWS],
        "more": len(records) if len(records) > ROWS else 0,
        "best": best.number if best else None,
        "columns": varied,
    }


def drawn(desk: Desk, name: str) -> dict[str, Any]:
    """Trials and curves."""
    stored, objective = stored_or_empty(desk, name), ""
    objective = str(stored.spec.get("objective", "val_loss"))
    best, records = winner_of(stored), stored.records
    chosen = [r for r in records if r.curve and (r.number >= len(records) - DRAWN or r is best or r.number == 0)]
    return {
        "objective": objective,
        "sign": SIGNS.get(objective, 1),
        "best": best.number if best else None,
        "trials": points(records),
        "curves": {r.number: [(row["epoch"], row["val_loss"]) for row in r.curve] for r in chosen if r.status.ended},
    }


def points(records: tuple[TrialRecord, ...]) -> list[dict[str, Any]]:
    """Trials as points."""
    return [{"number": r.number, "status": r.status.value, "score": r.score} for r in records if r.status.ended]


@router.get("/studies/{name}/trials/{number}")
def trial(name: str, number: int, request: Request) -> HTMLResponse:
    """A trial."""
    desk = desk_of(request)
    try:
        stored, record = desk.reader.trial(name, number)
    except HpsearchError as error:
        return trouble(error)
    best, default = winner_of(stored), stored.default
    ranked = sorted((r.cost, r.number) for r in stored.records if r.status.value == "COMPLETE")
    rank = next((place for place, (_, n) in enumerate(ranked, 1) if n == number), None)
    keys = dict.fromkeys([*record.params, *record.effective])
    known = [(key, record.params.get(key, record.effective.get(key)), of(best, key), of(default, key)) for key in keys]
    curve = [{key: row.get(key) for key in ("epoch", "val_loss", "train_loss")} for row in record.curve]
    return page(
        "trial",
        plots=True,
        name=name,
        r=record,
        objective=record.objective,
        diagnosis=diagnoses(stored.records).get(number),
        rank=rank,
        of=len(ranked),
        params=known,
        curve=finite_json(curve),
        ui=desk.ui,
    )


def of(record: TrialRecord | None, key: str) -> Any:
    """A setting of another trial."""
    return "–" if record is None else record.params.get(key, record.effective.get(key, "–"))


@router.get("/studies/{name}/mlflow")
async def in_mlflow(name: str, request: Request, trial: Annotated[int | None, Query(ge=0)] = None) -> Response:
    """To the study's page in MLflow."""
    desk = desk_of(request)
    try:
        found = await asyncio.to_thread(page_of, desk.where.tracking, check_name(name), trial)
    except HpsearchError as error:
        return trouble(error)
    return RedirectResponse(f"{desk.ui.rstrip('/')}/{found}", 303)


# ---------------------------------------------------------------- what is asked of one


@router.post("/studies/{name}/{verb}")
async def ask(name: str, verb: str, request: Request) -> Response:
    """Pause, resume, cancel or extend a study."""
    desk, values = desk_of(request), await typed(request)
    try:
        if verb in ("pause", "cancel"):
            await asyncio.to_thread(desk.want, name, {"pause": "paused", "cancel": "cancelled"}[verb])
        elif verb == "resume":
            await asyncio.to_thread(desk.resume, name)
        elif verb == "extend":
            text = values.get("trials", "")
            if not (text.isascii() and text.isdigit() and 0 < int(text) <= 1_000_000):
                raise FixInput(f"trials must be a whole number up to 1,000,000, got {text[:40]!r}")
            await asyncio.to_thread(desk.revise, name, Revision(trials=int(text), priority=None))
        else:
            raise NotFound(f"nothing of a study is called {verb[:40]!r}")
    except HpsearchError as error:
        return trouble(error)
    return RedirectResponse(study_page(name), 303)


@router.post("/studies/{name}/trials/{number}/stop")
async def stop(name: str, number: int, request: Request) -> Response:
    """Stop a trial."""
    try:
        await asyncio.to_thread(desk_of(request).stop_trial, name, number)
    except HpsearchError as error:
        return trouble(error)
    return RedirectResponse(study_page(name), 303)


# ---------------------------------------------------------------- several


@router.get("/compare")
def compare(request: Request, study: Chosen = []) -> HTMLResponse:  # noqa: B006
    """Studies side by side."""
    desk = desk_of(request)
    everything = desk.reader.overview()
    within = {row["study"]: row["studies"] for row in everything}
    try:
        found = [desk.reader.stored(one) for name in dict.fromkeys(study) for one in within.get(name) or [name]]
    except HpsearchError as error:
        return trouble(error)
    rows, race = beside(found)
    return page(
        "compare",
        here="compare",
        plots=True,
        all=everything[:LISTED],
        chosen=study,
        rows=rows,
        race=race,
        mixed=len({row["objective"] for row in rows}) > 1,
        report=f"/compare/report?{urlencode([('study', name) for name in study])}",
        ui=desk.ui,
    )


def beside(studies: list[StoredStudy]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Studies side by side: the rows of a table, and what is drawn."""
    rows, race = [], []
    for stored in studies:
        objective = str(stored.spec.get("objective", "val_loss"))
        best, default = winner_of(stored), stored.default
        known = best is not None and default is not None and best.score is not None and default.score is not None
        better = (default.score - best.score) * SIGNS.get(objective, 1) if known else None  # type: ignore[union-attr, operator]
        row = {"study": stored.name, "sampler": stored.spec.get("sampler", "–"), "objective": objective, "gain": gain(better, objective)}
        row |= {"best": best.score if best else None, "default": default.score if default else None}
        rows.append(row | {"ended": sum(r.status.ended for r in stored.records), "seconds": sum(r.seconds for r in stored.records)})
        line = {"study": stored.name, "sampler": row["sampler"], "repeat": int(stored.spec.get("repeat", 0))}
        race.append(line | {"sign": SIGNS.get(objective, 1), "trials": points(stored.records)})
    return rows, finite_json(race)


@router.get("/compare/report")
async def compare_report(request: Request, study: Chosen) -> Response:
    """The page of the whole comparison."""
    desk = desk_of(request)
    try:
        found = Path((await desk.compare(study, False))["page"]).resolve()
        if not found.is_relative_to((desk.where.folder / "hpsearch-runs").resolve()):
            raise NotFound("the comparison left no page")
    except HpsearchError as error:
        return trouble(error)
    return FileResponse(found, media_type="text/html", headers={"content-security-policy": SANDBOX})


# ---------------------------------------------------------------- the token


@router.get("/login")
def login() -> HTMLResponse:
    """Ask for the token."""
    return page("login", wrong=False)


@router.post("/login")
async def signed_in(request: Request) -> Response:
    """Take the token; the browser keeps something made of it."""
    guard = desk_of(request).guard
    if guard.token and not guard.right((await typed(request)).get("token", "")):
        return page("login", 401, wrong=True)
    answer = RedirectResponse("/", 303)
    if guard.token:
        answer.set_cookie(
            COOKIE, guard.cookie(), httponly=True, samesite="strict", secure=request.url.scheme == "https", max_age=30 * 86400
        )
    return answer
