"""Connections that say nothing are closed, and hinder nobody meanwhile."""

import asyncio
import resource
import socket
import threading
import time
from contextlib import ExitStack, contextmanager, suppress

import pytest
import uvicorn
from serving import Server as Command

from hpsearch.service.connections import BoundedProtocol, Limits
from hpsearch.service.serve import Server
from tests.waiting import until

HEAD = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n"
POST = b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10\r\n\r\n"
QUICK = Limits(first=0.3, following=0.3, body=0.3, stuck=0.3, client=20, total=30)


async def application(scope, receive, send):
    """Reads the body; answers a GET with a first piece at once and, of /stream, others until the client goes."""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range({"/stream": 400, "/flood": 100}.get(scope["path"], 0)):
        await send({"type": "http.response.body", "body": b"x" * (10 if scope["path"] == "/stream" else 1 << 20), "more_body": True})
        await asyncio.sleep(0.01)
    await send({"type": "http.response.body", "body": b"ok"})


@contextmanager
def serving(limits):
    """The port of a server in this process, with limits of its own."""
    protocol = type("Quick", (BoundedProtocol,), {"limits": limits})
    server = Server(uvicorn.Config(application, port=0, http=protocol, lifespan="off", log_level="critical", timeout_graceful_shutdown=0))
    server.capture_signals = ExitStack  # signals are the main thread's
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def connection(port, said=b""):
    made = socket.create_connection(("127.0.0.1", port), 10)
    made.sendall(said)
    return made


def closed(made):
    """Whether the server has closed a connection, once it has."""
    try:
        while made.recv(1 << 20):
            pass
    except ConnectionResetError:
        pass
    return True


@pytest.mark.parametrize(
    "said", [b"", HEAD, POST + b"abc", HEAD + b"\r\n" + HEAD], ids=["nothing", "half a head", "half a body", "half another"]
)
def test_a_connection_that_waits_for_too_long_is_closed(said):
    with serving(QUICK) as port, connection(port, said) as made:
        assert closed(made)


def test_a_client_that_sends_a_byte_now_and_then_is_closed_too():
    with serving(QUICK) as port, connection(port, HEAD) as made, suppress(ConnectionError):
        for _ in range(200):
            made.sendall(b"x")
            time.sleep(0.05)
        pytest.fail("it stayed")


def test_a_client_that_does_not_take_its_answer_is_closed():
    with serving(QUICK) as port, connection(port, b"GET /flood HTTP/1.1\r\nHost: x\r\n\r\n") as made:
        time.sleep(2.5)
        assert closed(made)


def test_a_watcher_stays_however_long_it_takes():
    with serving(QUICK) as port, connection(port, b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n") as made:
        give_up = time.monotonic() + 2
        while time.monotonic() < give_up:
            assert made.recv(1000)


def test_too_many_of_one_client_cost_it_those_that_wait_longest_and_no_answer():
    patient = Limits(client=20, total=30)
    with serving(patient) as port, ExitStack() as stack:
        watcher = stack.enter_context(connection(port, b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n"))
        assert watcher.recv(1000)
        silent = [stack.enter_context(connection(port)) for _ in range(25)]
        assert all(closed(made) for made in silent[:6])
        with connection(port, HEAD + b"Connection: close\r\n\r\n") as asking:
            assert asking.recv(15) == b"HTTP/1.1 200 OK"
        assert watcher.recv(1000)
        silent[-1].settimeout(0.2)
        with pytest.raises(TimeoutError):
            silent[-1].recv(1)


@pytest.mark.process
def test_a_thousand_silent_connections_leave_the_service_to_others(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    server = Command(tmp_path)
    try:
        silent = []
        for count in range(1010):
            half = (
                b"",
                b"GET /api/health HTTP/1.1\r\nHost: 127",
                b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99\r\n\r\nx",
            )
            silent.append(connection(server.port, half[count % 3]))
        assert server.ask("GET", "/api/health")[0] == 200
        assert server.ask("GET", "/api/studies")[0] == 200
        for made in silent:
            made.close()
        assert server.ask("GET", "/api/health")[0] == 200
        assert "Traceback" not in (tmp_path / "serve.log").read_text()
    finally:
        server.end_all()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
