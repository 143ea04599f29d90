"""A browser by its driver, over the W3C WebDriver protocol: chromium and chromedriver of Debian, nothing else."""

import base64
import json
import socket
import subprocess
import time
import urllib.error
import urllib.request

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(what, met, limit=60.0):
    """Waits for a condition, and gives what it gave."""
    over = time.monotonic() + limit
    while time.monotonic() < over:
        got = met()
        if got:
            return got
        time.sleep(0.1)
    raise SystemExit(f"never: {what}")


class Browser:
    """One window."""

    def __init__(self, width=1280, height=1000, dark=False):
        self.port = free_port()
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.driver = subprocess.Popen(["chromedriver", f"--port={self.port}"], **quiet)
        until("chromedriver answers", self._ready)
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", f"--window-size={width},{height}"]
        if dark:
            flags.append("--force-dark-mode")
        wanted = {"browserName": "chrome", "goog:chromeOptions": {"args": flags}, "goog:loggingPrefs": {"browser": "ALL"}}
        answer = self._send("POST", "/session", {"capabilities": {"alwaysMatch": wanted}}, root=True)
        self.session = answer["sessionId"]
        if dark:
            self.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        self.size(width, height)

    def _ready(self):
        try:
            return self._send("GET", "/status", root=True)["ready"]
        except OSError:
            return False

    def _send(self, method, path, body=None, root=False):
        base = f"http://127.0.0.1:{self.port}" + ("" if root else f"/session/{self.session}")
        data = None if method == "GET" else json.dumps(body or {}).encode()
        request = urllib.request.Request(base + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise SystemExit(f"{path}: {json.load(error)['value']['message'][:400]}") from None

    def devtools(self, command, **parameters):
        return self._send("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def size(self, width, height):
        self.devtools("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)

    def open(self, url):
        self._send("POST", "/url", {"url": url})

    def js(self, script, *arguments):
        return self._send("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def later(self, script):
        return self._send("POST", "/execute/async", {"script": script, "args": []})

    def text(self, name):
        return self.js("return document.getElementById(arguments[0]).textContent", name)

    def keys(self, keys):
        down = [{"type": "keyDown", "value": key} for key in keys]
        up = [{"type": "keyUp", "value": key} for key in keys]
        both = [step for pair in zip(down, up) for step in pair]
        self._send("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": both}]})

    def picture(self, file, whole=False):
        if whole:
            height = self.js("return document.documentElement.scrollHeight")
            width = self.js("return innerWidth")
            self.size(width, height)
            time.sleep(0.3)
        with open(file, "wb") as out:
            out.write(base64.b64decode(self._send("GET", "/screenshot")))

    def errors(self):
        """What the console has that is an error."""
        log = self._send("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in log if entry["level"] == "SEVERE"]

    def close(self):
        try:
            self._send("DELETE", "")
        finally:
            self.driver.terminate()
            self.driver.wait()
