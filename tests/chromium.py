"""A headless Chromium, driven over WebDriver's HTTP, where there is one."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DRIVER, BROWSER = shutil.which("chromedriver"), shutil.which("chromium")
IS_HERE = bool(DRIVER and BROWSER)
_WAITS_S = 30


class Page:
    """A page in a browser. `ask` posts to WebDriver, `run` runs JavaScript on the page."""

    def __init__(self, address: str) -> None:
        self.address = address
        options = {
            "binary": BROWSER,
            "args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"],
        }
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        asked = {"capabilities": {"alwaysMatch": {"browserName": "chrome", **wanted}}}
        self.session = self.ask("", asked, at="/session")["sessionId"]

    def ask(self, path: str, body: Any = None, at: str | None = None, method: str = "POST") -> Any:
        place = at or f"/session/{self.session}{path}"
        data = None if method == "GET" else json.dumps(body or {}).encode()
        headers = {"Content-Type": "application/json"}
        asked = urllib.request.Request(self.address + place, data, headers, method=method)
        with urllib.request.urlopen(asked, timeout=_WAITS_S) as answer:
            return json.load(answer)["value"]

    def open(self, path: Path, width: int, dark: bool = False) -> None:
        """Opens a file in a window of so many pixels, as a reader who prefers light or dark."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.devtools("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.devtools("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.ask("/url", {"url": path.resolve().as_uri()})

    def devtools(self, command: str, params: Any) -> Any:
        return self.ask("/goog/cdp/execute", {"cmd": command, "params": params})

    def run(self, script: str, *args: Any) -> Any:
        return self.ask("/execute/sync", {"script": script, "args": list(args)})

    def press(self, key: str) -> None:
        """A key, where the focus is."""
        actions = [{"type": kind, "value": key} for kind in ("keyDown", "keyUp")]
        self.ask("/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def complaints(self) -> list[str]:
        """What the browser's console says since it was last asked."""
        return [entry["message"] for entry in self.ask("/se/log", {"type": "browser"})]

    def picture(self, path: Path) -> None:
        """The whole page as a PNG."""
        taken = self.devtools("Page.captureScreenshot", {"captureBeyondViewport": True})
        path.write_bytes(base64.b64decode(taken["data"]))


@contextmanager
def a_page() -> Iterator[Page]:
    """A browser for as long as the block takes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(DRIVER), f"--port={port}", "--log-level=OFF"]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        page = Page(_ready(f"http://127.0.0.1:{port}"))
        try:
            yield page
        finally:
            page.ask("", method="DELETE")
    finally:
        driver.terminate()
        driver.wait(_WAITS_S)


def _ready(address: str) -> str:
    for _ in range(200):
        try:
            with urllib.request.urlopen(f"{address}/status", timeout=_WAITS_S):
                return address
        except OSError:
            time.sleep(0.1)
    raise TimeoutError("chromedriver does not start")
