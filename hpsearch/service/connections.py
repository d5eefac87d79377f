"""Bounds on connections that uvicorn has no setting for: time-outs for requests that do not come, and how many one client may hold.

Nobody needs a token to open a connection and say nothing. A connection that waits (for its first request, the rest of one, the next one) is
closed once it has waited for too long, and sooner where its client, or all together, hold too many: the one that has waited longest goes,
so that who asks for something is answered. Connections that are being answered, such as those of watchers, are never closed while they take
what they are sent.
"""

from __future__ import annotations

import asyncio
import ipaddress
import resource
import time
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

OTHER_FILES = 256  # that the server has open beside its connections, at most
ADDRESS, TOTAL = 400, 1000  # connections of one address, of all


class Phase(Enum):
    """What a connection is doing."""

    FIRST = "waits for the first request, or is in the middle of its head"
    NEXT = "waits for another request, or is in the middle of its head"
    BODY = "waits for the rest of a request's body"
    BUSY = "is being answered"
    STUCK = "does not take its answer"


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a connection may wait, in seconds, and how many there may be."""

    first: float = 15.0
    following: float = 45.0  # uvicorn closes one that says nothing at all after `timeout_keep_alive`
    body: float = 30.0
    stuck: float = 60.0
    client: int = ADDRESS  # connections of one address
    total: int = TOTAL

    def seconds(self, phase: Phase) -> float:
        """Returns how long a phase may last."""
        allowed = {Phase.FIRST: self.first, Phase.NEXT: self.following, Phase.BODY: self.body, Phase.STUCK: self.stuck}
        return allowed.get(phase, float("inf"))


def usual_limits() -> Limits:
    """Returns the limits of a server on this machine, which may open so many files only."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    total = TOTAL if files == resource.RLIM_INFINITY else max(64, min(TOTAL, files - OTHER_FILES))
    return Limits(total=total, client=min(ADDRESS, total // 2))


class BoundedProtocol(H11Protocol):
    """A connection that knows since when it waits; a new one makes room where there are too many."""

    limits = Limits()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins; closes the connection that has waited longest where there are too many, itself where all are being answered."""
        super().connection_made(transport)
        self.phase, self.request, self.since = Phase.FIRST, self.cycle, time.monotonic()
        everybody = bounded(self.connections)
        mine = [other for other in everybody if other.address() == self.address()]
        for those, most in ((mine, self.limits.client), (everybody, self.limits.total)):
            if len(those) > most:
                now = time.monotonic()
                waiting = [other for other in those if other.seen(now) not in (Phase.BUSY, Phase.STUCK)]
                min(waiting, key=lambda other: other.since).end()  # at worst this one

    def address(self) -> str:
        """Returns whose connection it is: an address, of IPv6 the network, which one machine has as a whole."""
        host = self.client[0] if self.client else ""
        try:
            found = ipaddress.ip_address(host)
        except ValueError:
            return host
        return str(ipaddress.ip_network((found, 64), strict=False)) if found.version == 6 else host

    def seen(self, now: float) -> Phase:
        """Returns what the connection is doing, and remembers since when."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            phase = Phase.FIRST if cycle is None else Phase.NEXT
        elif self.flow.write_paused:
            phase = Phase.STUCK
        else:
            phase = Phase.BODY if cycle.more_body and not cycle.response_started else Phase.BUSY
        if (phase, cycle) != (self.phase, self.request):
            self.phase, self.request, self.since = phase, cycle, now
        return phase

    def end(self) -> None:
        """Closes the connection at once; a request in the middle of its body counts as broken off."""
        self.connections.discard(self)
        self.transport.abort()


def bounded(connections: Iterable[Any]) -> list[BoundedProtocol]:
    """Returns the connections of a server, all of which are of this kind."""
    return [cast(BoundedProtocol, connection) for connection in connections]


def end_silent(connections: Iterable[Any], now: float) -> None:
    """Closes the connections that have waited for too long; to be called every second or so."""
    for connection in bounded(connections):
        allowed = connection.limits.seconds(connection.seen(now))
        if now - connection.since > allowed:
            connection.end()
