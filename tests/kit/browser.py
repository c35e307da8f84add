"""A headless Chromium, driven by its debugging protocol over two pipes: no port and no further package."""

import base64
import fcntl
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading

from kit.wait import TIMEOUT, until


def steady(text):
    """A text of the status without what changes from one second to the next."""
    return re.sub(r"\d+(\.\d+)?( (ms|s|m|h))?\b|\d+[smh]+", "0", text)


class Browser:
    """One page in a browser of its own. `problems` has what the page's console and its policy complain of."""

    def __init__(self):
        program = shutil.which("chromium") or shutil.which("chromium-browser")
        assert program, "chromium is needed: tests/setup --long observe installs it"
        self._profile = tempfile.mkdtemp(prefix="chromium-")
        commands, self._commands = os.pipe()
        self._events, events = os.pipe()

        def pipes():  # Chromium reads commands from descriptor 3 and writes to 4.
            high = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (commands, events)]
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        self._process = subprocess.Popen(
            [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-proxy-server",
             "--remote-debugging-pipe", f"--user-data-dir={self._profile}", "about:blank"],
            preexec_fn=pipes, close_fds=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(events)
        self._answers, self._last, self.problems, self.requests = {}, 0, [], []
        self._arrived = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._session = None
        target = until(lambda: [t for t in self.ask("Target.getTargets")["targetInfos"] if t["type"] == "page"], "a page is open")[0]
        self._session = self.ask("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility", "DOM", "Audits"):
            self.ask(f"{domain}.enable")

    def _read(self):
        rest = b""
        while part := os.read(self._events, 1 << 16):
            *whole, rest = (rest + part).split(b"\0")
            for message in map(json.loads, whole):
                with self._arrived:
                    self._note(message)
                    self._arrived.notify_all()
        with self._arrived:
            self._answers = None
            self._arrived.notify_all()

    def _note(self, message):
        if "id" in message:
            self._answers[message["id"]] = message
        found = message.get("params", {})
        method = message.get("method")
        if method == "Runtime.exceptionThrown":
            self.problems.append(found["exceptionDetails"])
        elif method == "Log.entryAdded" and found["entry"]["level"] in ("error", "warning"):
            self.problems.append(found["entry"])
        elif method == "Audits.issueAdded":
            self.problems.append(found["issue"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(found["request"]["url"])

    def ask(self, method, **params):
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        with self._arrived:
            done = self._arrived.wait_for(lambda: self._answers is None or message["id"] in self._answers, TIMEOUT)
            assert done and self._answers is not None, f"{method}: no answer of the browser"
            answer = self._answers.pop(message["id"])
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def open(self, url, width=1000, height=900, dark=False):
        """Opens a page; `width` is in CSS pixels: 390 is a phone."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.ask("Page.navigate", url=url)

    def run(self, script):
        """The value of an expression in the page."""
        result = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def text(self):
        return self.run("document.body?.innerText ?? ''")

    def until_shown(self, word):
        """Waits until the page's text has the word; returns the text."""
        return until(lambda: (text := self.text()) and word in text and text, f"the page shows {word}")

    def press(self, key, code):
        for kind in ("keyDown", "keyUp"):
            more = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more)

    def accessible(self):
        """What a screen reader has: (role, name) in the page's order."""
        nodes = self.ask("Accessibility.getFullAXTree")["nodes"]
        return [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]

    def picture(self, path):
        shot = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def remove(self):
        self._process.kill()
        self._process.wait()
        os.close(self._commands)
        self._reader.join(timeout=10)
        os.close(self._events)
        shutil.rmtree(self._profile, ignore_errors=True)
