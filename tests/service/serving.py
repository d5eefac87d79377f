"""The server as installed, in a folder of its own, and HTTP to it without any client of ours."""

import http.client
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

from tests.support.commands import HPSEARCH, Command

SHORT = {"trials": 4, "space": {"epochs": 3, "frozen_layers": {"low": 5, "high": 6}}}
LONG = {"trials": 4, "pruner": "none", "space": {"epochs": 200, "frozen_layers": 0}}


TWINS = 24  # studies whose processes are forked; later ones are started as usual


class Server:
    """`hpsearch serve` on a free port."""

    def __init__(self, folder, *options, port=0, environment=None, twins=TWINS, cold=False):
        command = [HPSEARCH, "serve", "--port", str(port), "--no-tracking", *options]
        self.folder = folder
        self.log = (folder / "serve.log").open("a+")
        begun = self.log.tell()
        environment = os.environ | (environment or {})
        how = {"stdout": subprocess.DEVNULL, "stderr": self.log, "env": environment, "start_new_session": True}
        self.process = subprocess.Popen(command, cwd=folder, **how) if cold else Command(command, cwd=folder, twins=twins, **how)
        give_up = time.monotonic() + 90
        while not (found := re.search(r"hpsearch on (http://(\S+):(\d+))", (folder / "serve.log").read_text()[begun:])):
            assert self.process.poll() is None, (folder / "serve.log").read_text()[begun:]
            assert time.monotonic() < give_up
            time.sleep(0.05)
        self.address, self.port = found[1], int(found[3])
        while True:
            try:
                assert self.ask("GET", "/api/health")[0] == 200
                return
            except ConnectionError:
                assert time.monotonic() < give_up
                time.sleep(0.05)

    def ask(self, method, path, body=None, headers=None):
        """Status and answer: JSON where it is, else text."""
        status, _, text = self.raw(method, path, body, headers)
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text.decode("utf-8", "replace")

    def raw(self, method, path, body=None, headers=None):
        """Status, headers and bytes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        sent = {"content-type": "application/json"} | (headers or {})
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        try:
            connection.request(method, path, data, sent)
            answer = connection.getresponse()
            return answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def submit(self, name, values=SHORT, **more):
        """Queue a study; its row."""
        status, row = self.ask("POST", "/api/studies", {"study": {**values, "name": name}, **more})
        assert status == 201, row
        return row

    def study(self, name):
        """A study."""
        status, row = self.ask("GET", f"/api/studies/{name}")
        assert status == 200, row
        return row

    def until(self, name, *states, seconds=180):
        """The study once it is in one of these states."""
        give_up = time.monotonic() + seconds
        while (row := self.study(name))["state"] not in states:
            assert time.monotonic() < give_up, f"{row}\n{self.ask('GET', f'/api/studies/{name}/log')[1]}"
            time.sleep(0.1)
        return row

    def kill(self):
        """End it as a lost power supply would; what it started lives on."""
        self.process.kill()
        self.process.wait()
        self.log.close()

    def stop(self):
        """End it neatly; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        self.log.close()
        return code

    def children(self):
        """The processes of studies, by number."""
        listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout.splitlines()
        mine = [int(line.split()[0]) for line in listed if "hpsearch.service.child" in line]
        return [pid for pid in mine if Path(f"/proc/{pid}/cwd").resolve() == self.folder.resolve()]

    def end_all(self):
        """Kill the server and every study's process."""
        if self.process.poll() is None:
            self.kill()
        for pid in self.children():
            os.killpg(pid, signal.SIGKILL)
