"""A real browser driven as a person would: headless Chromium through its debugging pipe (no library, no port)."""

import base64
import json
import os
import select
import shutil
import subprocess
import time

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None)


class Browser:
    """One page. Fails on messages that the page writes to its console."""

    def __init__(self, profile, width=1280, height=900, dark=False):
        to_browser, self.write = os.pipe()
        self.read, from_browser = os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe", "--no-first-run"]
        flags += ["--disable-background-networking", f"--user-data-dir={profile}"]

        def pipes():
            for ours, theirs in ((os.dup(to_browser), 3), (os.dup(from_browser), 4)):
                os.dup2(ours, theirs)

        command = [BROWSER, *flags, "about:blank"]
        self.process = subprocess.Popen(command, pass_fds=(3, 4), preexec_fn=pipes, stderr=subprocess.DEVNULL, start_new_session=True)
        os.close(to_browser), os.close(from_browser)
        self.buffer, self.number, self.events, self.console, self.session = b"", 0, [], [], None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.size(width, height)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.wait()
        os.close(self.read), os.close(self.write)

    def size(self, width, height):
        """Lay the page out in a window of that size."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)

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

    def hear(self, message):
        """Keep an event."""
        kind, about = message.get("method"), message.get("params", {})
        if kind == "Runtime.consoleAPICalled" or kind == "Runtime.exceptionThrown":
            self.console.append(json.dumps(about)[:1000])
        if kind == "Log.entryAdded" and about["entry"]["level"] == "error":
            self.console.append(about["entry"]["text"] + " " + about["entry"].get("url", ""))
        self.events.append((kind, about))

    def call(self, method, **params):
        """Ask the browser, and wait for what it says."""
        self.number += 1
        asked = {"id": self.number, "method": method, "params": params} | ({"sessionId": self.session} if self.session else {})
        os.write(self.write, json.dumps(asked).encode() + b"\0")
        while (message := self.message(60)) is not None:
            if message.get("id") == self.number:
                assert "error" not in message, message["error"]
                return message["result"]
            self.hear(message)
        raise AssertionError(f"the browser does not answer {method}")

    def js(self, expression):
        """The value of an expression on the page."""
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True, userGesture=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def until(self, expression, seconds=90):
        """Wait until an expression is true on the page."""
        give_up = time.monotonic() + seconds
        while not (value := self.js(f"(() => {{ const it = {expression}; return it instanceof Node ? true : it; }})()")):
            assert time.monotonic() < give_up, f"{expression}\n{self.js('document.body.innerText')[:3000]}"
            time.sleep(0.1)
        return value

    def go(self, address):
        """Open an address."""
        self.call("Page.navigate", url=address)
        time.sleep(0.2)
        self.until("document.readyState === 'complete'")

    def type(self, selector, text):
        """Click into a field, empty it and type."""
        self.js(f"(() => {{ const f = document.querySelector({selector!r}); f.focus(); f.select && f.select(); }})()")
        self.call("Input.insertText", text=text)

    def click(self, selector):
        """Click with the mouse in the middle of what a selector finds."""
        box = self.js(
            f"(() => {{ const e = document.querySelector({selector!r}); e.scrollIntoView({{block: 'center'}}); "
            "const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def press(self, key):
        """Press a key such as Tab or Enter."""
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

    def shot(self, path):
        """Keep a picture of the whole page."""
        whole = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": whole["width"], "height": whole["height"], "scale": 1}
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)["data"]))
