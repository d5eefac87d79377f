"""A real browser driven as a person would: headless Chromium through its debugging pipe (no library, no port).

One browser with one page serves a whole test process (fixture `browser` in tests/conftest.py): `with browser.page(390, dark=True)
as page`. Pictures are taken on request only, since they cost more than the page:
`make screenshots` sets HPSEARCH_SCREENSHOTS to the folder that keeps them.
"""

import base64
import json
import math
import os
import select
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None)
MISSING = "no Chromium: `apt-get install chromium` (or Google Chrome) lets these tests look at the page"
SCREENSHOTS = "HPSEARCH_SCREENSHOTS"


class Browser:
    """Headless Chromium without a page."""

    def __init__(self, profile):
        to_browser, self.write = os.pipe()
        self.read, from_browser = os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe", "--no-first-run"]
        flags += ["--disable-background-networking", "--disable-extensions", "--allow-file-access-from-files", f"--user-data-dir={profile}"]

        def pipes():
            for ours, theirs in ((os.dup(to_browser), 3), (os.dup(from_browser), 4)):
                os.dup2(ours, theirs)

        command = [BROWSER, *flags, "about:blank"]
        self.process = subprocess.Popen(command, pass_fds=(3, 4), preexec_fn=pipes, stderr=subprocess.DEVNULL, start_new_session=True)
        os.close(to_browser), os.close(from_browser)
        self.buffer, self.number, self.pages, self.standing = b"", 0, {}, None

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.read), os.close(self.write)

    def message(self, timeout):
        """The next message; None when none comes."""
        give_up = time.monotonic() + timeout
        while b"\0" not in self.buffer:
            if not select.select([self.read], [], [], max(0.0, give_up - time.monotonic()))[0]:
                return None
            piece = os.read(self.read, 1 << 20)
            assert piece, "the browser has ended"
            self.buffer += piece
        text, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(text)

    def call(self, method, session=None, **params):
        """Asks the browser, or one of its pages, and waits for the answer."""
        self.number += 1
        asked = {"id": self.number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self.write, json.dumps(asked).encode() + b"\0")
        while (message := self.message(60)) is not None:
            if message.get("id") == self.number:
                assert "error" not in message, message["error"]
                return message["result"]
            if page := self.pages.get(message.get("sessionId")):
                page.receive(message.get("method"), message.get("params", {}))
        raise AssertionError(f"the browser does not answer {method}")

    @contextmanager
    def page(self, width=1280, dark=False):
        """The page, which all tests share: opened once, it has compiled Plotly, and loads a report in a third of the time."""
        if self.standing is None:
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            self.standing = Page(self, self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
            self.pages[self.standing.session] = self.standing
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.standing.call(f"{domain}.enable")
        self.standing.call("Network.clearBrowserCookies")
        self.standing.lay_out(width, dark)
        self.standing.go("about:blank")  # nothing more is heard of what was open
        self.standing.console.clear()
        self.standing.opened = time.time()
        yield self.standing

    def file(self, path, width=1280, dark=False):
        """The page, with a file in it."""
        with self.page(width, dark) as page:
            page.go(path.as_uri())
            return page


class Page:
    """One page; `console` holds what it wrote to its console, errors included."""

    def __init__(self, browser, session):
        self.browser, self.session = browser, session
        self.events, self.console, self.opened = [], [], 0.0

    def call(self, method, **params):
        """Asks the page, and waits for the answer."""
        return self.browser.call(method, self.session, **params)

    def turn(self, width, dark):
        """Changes the window and the preferred colours while a report is open, and waits until its figures have followed."""
        self.lay_out(width, dark)
        paper = "rgb(23, 28, 36)" if dark else "rgb(255, 255, 255)"
        self.until(
            "[...document.querySelectorAll('.plot')].every((plot) => { const svg = plot.querySelector('svg.main-svg'); return "
            f"Math.abs(svg.getBoundingClientRect().width - plot.clientWidth) <= 1 && svg.style.background === '{paper}'; }})"
        )

    def lay_out(self, width, dark):
        """The width of the window, and the colours that its user prefers."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def receive(self, kind, about):
        """Keeps an event; what was open before may still be heard of, and does not count."""
        late = about.get("entry", about).get("timestamp", math.inf) / 1000 < self.opened
        if kind in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown") and not late:
            self.console.append(json.dumps(about)[:1000])
        if kind == "Log.entryAdded" and about["entry"]["level"] == "error" and not late:
            self.console.append(about["entry"]["text"] + " " + about["entry"].get("url", ""))
        self.events.append((kind, about))

    def js(self, expression):
        """The value of an expression on the page."""
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True, userGesture=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def until(self, expression, seconds=90):
        """Waits until an expression is true on the page."""
        give_up = time.monotonic() + seconds
        while not (value := self.js(f"(() => {{ const it = {expression}; return it instanceof Node ? true : it; }})()")):
            assert time.monotonic() < give_up, f"{expression}\n{self.js('document.body.innerText')[:3000]}"
            time.sleep(0.05)
        return value

    def go(self, address):
        """Opens an address, and waits until it is loaded."""
        self.events.clear()
        loader = self.call("Page.navigate", url=address)["loaderId"]
        give_up = time.monotonic() + 90
        while not self.has_loaded(loader):
            assert time.monotonic() < give_up, f"{address} does not load"
            self.call("Page.getFrameTree")  # events come with answers
            time.sleep(0.02)

    def has_loaded(self, loader):
        """Whether the document of that loader is there, with all that belongs to it."""
        kinds = [kind if about.get("frame", {}).get("loaderId") in (None, loader) else "" for kind, about in self.events]
        return "Page.frameNavigated" in kinds and "Page.loadEventFired" in kinds[kinds.index("Page.frameNavigated") :]

    def await_plots(self):
        """Waits until every figure is drawn."""
        self.until("[...document.querySelectorAll('.plot')].every((plot) => plot.querySelector('svg.main-svg'))")

    def type(self, selector, text):
        """Clicks into a field, empties it and types."""
        self.js(f"(() => {{ const f = document.querySelector({selector!r}); f.focus(); f.select && f.select(); }})()")
        self.call("Input.insertText", text=text)

    def click(self, selector):
        """Clicks with the mouse in the middle of what a selector finds."""
        box = self.js(
            f"(() => {{ const e = document.querySelector({selector!r}); e.scrollIntoView({{block: 'center'}}); "
            "const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def press(self, key):
        """Presses a key such as Tab or Enter."""
        codes = {"Tab": 9, "Enter": 13, " ": 32}
        more = {"text": "\r"} if key == "Enter" else {"text": " "} if key == " " else {}
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=codes[key],
                **(more if kind == "keyDown" else {}),
            )

    def shot(self, name):
        """Keeps a picture of the whole page, if pictures are wanted."""
        if not (folder := os.environ.get(SCREENSHOTS)):
            return
        whole = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": whole["width"], "height": whole["height"], "scale": 1}
        taken = base64.b64decode(self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)["data"])
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / f"{name}.png").write_bytes(taken)
