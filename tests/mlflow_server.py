"""A real `mlflow server` of one worker, which can be killed, stopped and started again on its port; and one that fails on demand."""

import http.server
import os
import signal
import socket
import sys
import threading
import time

import requests

from tests.support.commands import Command


class Server:
    """Keeps artifacts itself, in `folder`."""

    def __init__(self, folder, store):
        self.folder, self.store, self.process = folder, store, None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self):
        """Start it, and wait until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self.store, "--workers", "1", "--port", str(self.port)]
        command += ["--artifacts-destination", str(self.folder / "kept"), "--host", "127.0.0.1"]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "log").open("a") as log:
            self.process = Command(command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True)
        give_up = time.monotonic() + 120
        while True:
            try:
                if requests.get(f"{self.uri}/health", timeout=1).ok:
                    return self
            except requests.RequestException:
                assert time.monotonic() < give_up, (self.folder / "log").read_text()
                time.sleep(0.3)

    def signal(self, number):
        """Send a signal to it and its children."""
        os.killpg(self.process.pid, number)

    def kill(self):
        """kill -9 it and its children."""
        self.signal(signal.SIGKILL)
        self.process.wait()


class Front(http.server.BaseHTTPRequestHandler):
    """Passes everything on to `behind`, a server's URI, or answers `broken`, a status, instead."""

    behind, broken = "", 500

    def answer(self):
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.broken:
            status, content, kind = self.broken, b"", "text/plain"
        else:
            headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "accept-encoding", "content-length")}
            found = requests.request(self.command, self.behind + self.path, data=sent, headers=headers, timeout=60)
            status, content, kind = found.status_code, found.content, found.headers.get("Content-Type", "application/json")
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer  # noqa: N815

    def log_message(self, *_):
        pass


def front(behind="", broken=500, kind=Front):
    """A server in front of another: the server, the class that holds its two settings, its URI."""
    handler = type("Handler", (kind,), {"behind": behind, "broken": broken})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, handler, f"http://127.0.0.1:{server.server_port}"
