"""A study's events as a stream that a browser follows (server-sent events), from any place on."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from hpsearch.errors import HpsearchError
from hpsearch.journal import EVENTS, read_events
from hpsearch.service.reader import Reader

LOOK = 0.3  # seconds
KEPT = 64  # pieces of text
OVER = ("done", "failed", "cancelled", "stored")
BEAT = 15.0  # seconds after which a line says that nothing has happened, so that nobody closes the connection


class Feed:
    """The events of studies as text, made once for all who are at the same place."""

    def __init__(self) -> None:
        self.pieces: dict[tuple[Path, int, int], tuple[str, int]] = {}

    def after(self, folder: Path, offset: int) -> tuple[str, int]:
        """What follows a place in a study's file, and the place after it."""
        try:
            size = (folder / EVENTS).stat().st_size
        except OSError:
            return "", offset
        key = (folder, offset, size)
        if size == offset:
            return "", offset
        if key not in self.pieces:
            found, place = read_events(folder, offset)
            self.pieces[key] = ("".join(written(place, row) for place, row in found), place)
            for old in list(self.pieces)[:-KEPT]:
                del self.pieces[old]
        return self.pieces[key]


def written(place: int, row: Mapping[str, Any]) -> str:
    """An event as it is sent."""
    return f"id: {place}\nevent: {row.get('event', 'notice')}\ndata: {json.dumps(row, separators=(',', ':'))}\n\n"


async def events(feed: Feed, reader: Reader, name: str, offset: int) -> AsyncIterator[str]:
    """Lines of the stream. An event's id is its place in the file, which a reader that comes back gives again.

    `state` tells what the queue says, and ends the stream once the study does not run any more.
    """
    folder, said, state = reader.folder(name), time.monotonic(), ""
    yield "retry: 1000\n\n"
    while True:
        text, offset = feed.after(folder, offset)
        if text:
            said = time.monotonic()
            yield text
            continue
        row = await latest(reader, name)
        if row and row["state"] != state:
            state, said = row["state"], time.monotonic()
            yield f"event: state\ndata: {json.dumps(row)}\n\n"
        if state in OVER and feed.after(folder, offset)[0] == "":  # what was written before the end was told
            return
        if time.monotonic() - said > BEAT:
            said = time.monotonic()
            yield ": nothing new\n\n"
        await asyncio.sleep(LOOK)


async def latest(reader: Reader, name: str) -> dict[str, Any]:
    """What the queue says of a study; nothing where it cannot be asked at the moment."""
    try:
        return await reader.shared(f"row {name}", lambda: brief(reader, name))
    except HpsearchError:
        return {}


def brief(reader: Reader, name: str) -> dict[str, Any]:
    """The same, read now."""
    entry = reader.entry(name)
    state = entry.state if entry else reader.state_elsewhere(name)
    reader.notice(name, state)
    return {"state": state, "wanted": entry.wanted if entry else None, "note": entry.note if entry else ""}
