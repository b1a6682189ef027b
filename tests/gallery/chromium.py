"""A page in a headless Chromium, driven over the DevTools protocol: evaluate, click, wait, take screenshots."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from websockets.sync.client import ClientConnection, connect

from tests.report.page_reader import FLAGS, find_browser

PATIENCE_S = 120


class Tab:
    """One tab."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._count = socket, 0
        self.said: list[str] = []
        """Errors on the console, and requests that were blocked."""
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    def _call(self, method: str, **parameters: Any) -> Any:
        self._count += 1
        self._socket.send(json.dumps({"id": self._count, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=PATIENCE_S))
            self._note(message)
            if message.get("id") == self._count:
                assert "error" not in message, message
                return message["result"]

    def _note(self, message: dict[str, Any]) -> None:
        if message.get("method") == "Runtime.exceptionThrown":
            self.said.append(json.dumps(message["params"]["exceptionDetails"]))
        entry = message.get("params", {}).get("entry", {}) if message.get("method") == "Log.entryAdded" else {}
        if entry.get("level") == "error":
            self.said.append(entry["text"])

    def open(self, address: str) -> None:
        """Open an address and wait until everything is loaded."""
        self._call("Page.navigate", url=address)
        self.until(f"location.href === {json.dumps(address)} && document.readyState === 'complete'")

    def ask(self, script: str) -> Any:
        """The value of an expression."""
        result = self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, script: str) -> Any:
        """Wait until an expression is true; returns its value."""
        give_up = time.monotonic() + PATIENCE_S
        while not (value := self.ask(script)):
            assert time.monotonic() < give_up, f"never true: {script}"
            time.sleep(0.03)
        return value

    def click(self, selector: str) -> None:
        """Click in the middle of an element, as with a mouse, once the layout is settled."""
        self.until("document.readyState === 'complete'")
        x, y = self.ask(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center', "
            "behavior: 'instant'}); const b = e.getBoundingClientRect(); "
            "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str, code: int) -> None:
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code)

    def write(self, text: str) -> None:
        """Type into the focused element."""
        self._call("Input.insertText", text=text)

    def size(self, width_px: int, height_px: int, *, phone: bool = False) -> None:
        """Set the size of the page, to that of a window or a phone."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width_px, height=height_px, deviceScaleFactor=1, mobile=phone,
        )  # fmt: skip

    def picture(self, *, whole: bool = False) -> Image.Image:
        """A screenshot of the visible part, or of the whole page."""
        png = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        return Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")


@contextmanager
def chromium(folder: Path) -> Iterator[Tab]:
    """A browser with a fresh profile and one tab."""
    program = find_browser(folder)._program
    flags = (*FLAGS, "--remote-debugging-port=0", f"--user-data-dir={folder / 'profile'}", "about:blank")
    process = subprocess.Popen([program, *flags], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        found = None
        while found is None and (line := process.stderr.readline()):
            found = re.search(r"ws://(\S+?)/", line)
        assert found, "Chromium did not start"
        with urllib.request.urlopen(f"http://{found[1]}/json/list", timeout=PATIENCE_S) as answer:
            pages = [each for each in json.load(answer) if each["type"] == "page"]
        with connect(pages[0]["webSocketDebuggerUrl"], max_size=None) as socket:
            yield Tab(socket)
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE_S)
