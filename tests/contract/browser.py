"""A headless Chromium, driven over the W3C WebDriver protocol: what a reader of a page sees and does."""

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from deploy.local.process import free_ports

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
CHROMEDRIVER = shutil.which("chromedriver")
MISSING = None if CHROMIUM and CHROMEDRIVER else "needs Chromium and chromedriver (apt install chromium-driver)"

START_S_MAX = 30
# Everything is on this machine; the browser's own services would ask others.
ALONE = ["--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's own name


class Browser:
    """One tab at a time. Waits up to five seconds for an element to be there. Raises RuntimeError with what the driver
    says."""

    def __init__(self, session: httpx.Client) -> None:
        self._session = session

    def open(self, url: str) -> None:
        self._command("POST", "url", {"url": url})

    def find(self, css: str) -> str:
        """The element's id, for `click` and `type`."""
        found: dict[str, str] = self._command("POST", "element", {"using": "css selector", "value": css})
        return found[_ELEMENT]

    def click(self, css: str) -> None:
        self._command("POST", f"element/{self.find(css)}/click", {})

    def type(self, css: str, text: str) -> None:
        """In place of what was there."""
        element = self.find(css)
        self._command("POST", f"element/{element}/clear", {})
        self._command("POST", f"element/{element}/value", {"text": text})

    def text(self, css: str) -> str:
        """What can be seen of the element."""
        text: str = self._command("GET", f"element/{self.find(css)}/text")
        return text

    def run(self, script: str) -> Any:
        """What the script returns."""
        return self._command("POST", "execute/sync", {"script": script, "args": []})

    def open_tab(self) -> None:
        """And turn to it."""
        self._command("POST", "window", {"handle": self._command("POST", "window/new", {"type": "tab"})["handle"]})

    def close_tab(self) -> None:
        """As its reader would, and turn to the first that is left."""
        left: list[str] = self._command("DELETE", "window")
        self._command("POST", "window", {"handle": left[0]})

    def emulate(self, *, width: int, dark: bool = False) -> None:
        """A screen of that many CSS pixels, which may be narrower than a window can be."""
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self._devtools("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._devtools("Emulation.setEmulatedMedia", {"features": [scheme]})

    def log(self) -> list[str]:
        """What the page has complained of since last asked: errors of scripts, resources, policies."""
        return [entry["message"] for entry in self._command("POST", "se/log", {"type": "browser"})]

    def _devtools(self, command: str, parameters: dict[str, Any]) -> None:
        self._command("POST", "goog/cdp/execute", {"cmd": command, "params": parameters})

    def _command(self, method: str, path: str, parameters: dict[str, Any] | None = None) -> Any:
        response = self._session.request(method, path, json=parameters)
        value = response.json()["value"]
        if response.is_error:
            raise RuntimeError(f"{path}: {value['message'].splitlines()[0]}")
        return value


@contextmanager
def browser(directory: Path) -> Iterator[Browser]:
    """Its profile is in `directory`, new or of a browser before; both processes have ended afterwards."""
    assert CHROMIUM is not None
    assert CHROMEDRIVER is not None
    [port] = free_ports(1)
    driver = subprocess.Popen([CHROMEDRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        _await_listening(url)
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        arguments += [*ALONE, "--window-size=1280,900", f"--user-data-dir={directory}"]
        capabilities = {
            "goog:chromeOptions": {"binary": CHROMIUM, "args": arguments},
            "goog:loggingPrefs": {"browser": "ALL"},
            "timeouts": {"implicit": 5_000, "pageLoad": 30_000},
        }
        started = httpx.post(f"{url}/session", json={"capabilities": {"alwaysMatch": capabilities}}, timeout=60)
        value = started.json()["value"]
        if started.is_error:
            raise RuntimeError(value["message"])
        with httpx.Client(base_url=f"{url}/session/{value['sessionId']}/", timeout=60) as session:
            try:
                yield Browser(session)
            finally:
                session.delete(f"{url}/session/{value['sessionId']}")  # ends Chromium
    finally:
        driver.terminate()
        driver.wait(10)


def _await_listening(url: str) -> None:
    end = time.monotonic() + START_S_MAX
    while time.monotonic() < end:
        with suppress(httpx.TransportError):
            if httpx.get(f"{url}/status").json()["value"]["ready"]:
                return
        time.sleep(0.05)
    raise RuntimeError("chromedriver does not listen")


@contextmanager
def listening(application: Any) -> Iterator[str]:
    """The application's URL on a port of this machine."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(application, log_level="warning"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        end = time.monotonic() + 10
        while not server.started:
            assert time.monotonic() < end
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
