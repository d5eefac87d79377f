"""The server put together: `application` for tests and other servers, `serve` for the command."""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

from hpsearch import __version__
from hpsearch.machine import listenable
from hpsearch.places import Place
from hpsearch.search.queue import Queue
from hpsearch.service import errors
from hpsearch.service.api import router
from hpsearch.service.asgi import Gate, silent, to_stderr
from hpsearch.service.connections import BoundedProtocol, end_silent, usual_limits
from hpsearch.service.desk import Desk
from hpsearch.service.guard import Guard, make_guard
from hpsearch.service.models import Problem
from hpsearch.service.pages import router as pages
from hpsearch.service.reader import Reader
from hpsearch.service.runner import Runner


class Server(uvicorn.Server):
    """Remembers which signal ended it, and closes connections that say nothing."""

    seen: int | None = None

    async def on_tick(self, counter: int) -> bool:
        """Looks around, ten times a second, as uvicorn does."""
        if counter % 10 == 0:
            end_silent(self.server_state.connections, time.monotonic())
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End, as uvicorn does."""
        self.seen = self.seen or sig
        super().handle_exit(sig, frame)


def application(where: Place, guard: Guard, slots: int = 0, ui: str = "", log: Callable[[str], None] = silent) -> FastAPI:
    """The application; its queue runs from startup to shutdown."""
    queue = Queue(where.storage, where.folder)
    runner = Runner(queue, where, slots, guard.roots, to_stderr)
    desk = Desk(queue, runner, Reader(queue, where), where, guard, ui=ui)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        runner.start()
        try:
            yield
        finally:
            runner.stop()
            desk.reader.close()
            queue.close()

    app = FastAPI(
        title="hpsearch",
        version=__version__,
        description="A queue of fine-tuning searches.",
        openapi_url="/api/openapi.json",
        docs_url=None,  # these fetch from another host
        redoc_url=None,
        lifespan=lifespan,
        separate_input_output_schemas=False,
    )
    app.state.desk = desk
    errors.install(app)
    app.include_router(router)
    app.include_router(pages)
    app.add_middleware(Gate, guard=guard, log=log)
    described = app.openapi()
    described["components"]["schemas"].setdefault("Problem", Problem.model_json_schema())
    return app


def serve(
    where: Place,
    host: str,
    port: int,
    *,
    token: str = "",
    allowed: Sequence[str] = (),
    roots: Sequence[Path] = (),
    code: bool = False,
    slots: int = 0,
    ui: str = "",
    quiet: bool = False,
    ready: Callable[[str], None] = silent,
) -> int | None:
    """Serve until a signal; its number. FixInput for what is not safe, FixSetup for a port in use."""
    guard = make_guard(host, token, allowed, roots, code, where.folder)
    port = listenable(host, port)
    app = application(where, guard, slots, ui, silent if quiet else to_stderr)
    config = uvicorn.Config(
        app,
        http=type("Connection", (BoundedProtocol,), {"limits": usual_limits()}),
        ws="none",
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=2,
        limit_concurrency=1000,
        timeout_keep_alive=30,
    )
    server = Server(config)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # uvicorn raises it again once it has ended
    shown = f"[{host}]" if ":" in host else host
    ready(f"http://{shown}:{port}")
    server.run()
    return server.seen
