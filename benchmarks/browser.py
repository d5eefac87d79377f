"""Headless Chromium by its debugging pipe: how long until something is on a page, and what it looks like."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")


def browser() -> str | None:
    """The browser's path, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One page of a browser that ends with it."""

    def __init__(self, width: int = 1600, height: int = 1000) -> None:
        self.profile = tempfile.mkdtemp(prefix="benchmarks-profile-")
        to_browser, self.write = os.pipe()
        self.read, from_browser = os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={self.profile}", f"--window-size={width},{height}"]

        def wire() -> None:
            """The browser reads from 3 and writes to 4."""
            a, b = os.dup(to_browser), os.dup(from_browser)
            os.dup2(a, 3)
            os.dup2(b, 4)

        command = [str(browser()), *flags, "--remote-debugging-pipe", "about:blank"]
        self.process = subprocess.Popen(command, preexec_fn=wire, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(to_browser)
        os.close(from_browser)
        self.id, self.rest, self.session = 0, b"", ""
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command, and its answer."""
        self.id += 1
        message = {"id": self.id, "method": method, "params": params} | ({"sessionId": self.session} if self.session else {})
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.rest:
                self.rest += os.read(self.read, 1 << 20)
            text, self.rest = self.rest.split(b"\0", 1)
            answer = json.loads(text)
            if answer.get("id") == self.id:
                return answer.get("result", answer)

    def value(self, expression: str) -> Any:
        """What a line of JavaScript comes to."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True).get("result", {}).get("value")

    def open(self, url: str, until: str, limit: float = 120.0) -> float:
        """Seconds from opening `url` until the expression `until` is true; infinite when it never is."""
        begun = time.monotonic()
        self.call("Page.navigate", url=url)
        sent = time.monotonic() - begun
        return sent + self.wait(until, limit)

    def wait(self, until: str, limit: float = 120.0) -> float:
        """Seconds until the expression is true."""
        begun = time.monotonic()
        while time.monotonic() - begun < limit:
            if self.value(until):
                return time.monotonic() - begun
            time.sleep(0.05)
        return float("inf")

    def shot(self, path: Path) -> None:
        """A picture of the page."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        """End the browser."""
        self.process.kill()
        self.process.wait()
        os.close(self.write)
        os.close(self.read)
        shutil.rmtree(self.profile, ignore_errors=True)
