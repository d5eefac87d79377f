"""A study's events as a stream that a browser follows (server-sent events), from any place on."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from hpsearch.errors import HpsearchError
from hpsearch.journal import read_events
from hpsearch.service.reader import Reader

LOOK = 0.3  # seconds
BEAT = 15.0  # seconds after which a line says that nothing has happened, so that nobody closes the connection


async def events(reader: Reader, name: str, offset: int) -> AsyncIterator[str]:
    """Lines of the stream. An event's id is its place in the file, which a reader that comes back gives again.

    `state` tells what the queue says, and ends the stream once the study does not run any more.
    """
    folder, said, state = reader.folder(name), time.monotonic(), ""
    yield "retry: 1000\n\n"
    while True:
        found, offset = await asyncio.to_thread(read_events, folder, offset)
        for place, row in found:
            yield f"id: {place}\nevent: {row.get('event', 'notice')}\ndata: {json.dumps(row, separators=(',', ':'))}\n\n"
        if found:
            said = time.monotonic()
            continue
        row = await asyncio.to_thread(latest, reader, name)
        if row and row["state"] != state:
            state, said = row["state"], time.monotonic()
            yield f"event: state\ndata: {json.dumps(row)}\n\n"
        if state in ("done", "failed", "cancelled", "stored"):
            return
        if time.monotonic() - said > BEAT:
            said = time.monotonic()
            yield ": nothing new\n\n"
        await asyncio.sleep(LOOK)


def latest(reader: Reader, name: str) -> dict[str, Any]:
    """What the queue says of a study; nothing where it cannot be asked at the moment."""
    try:
        return reader.once(f"row {name}", lambda: brief(reader, name))
    except HpsearchError:
        return {}


def brief(reader: Reader, name: str) -> dict[str, Any]:
    """The same, read now."""
    entry = reader.entry(name)
    state = entry.state if entry else reader.state_elsewhere(name)
    return {"state": state, "wanted": entry.wanted if entry else None, "note": entry.note if entry else ""}
