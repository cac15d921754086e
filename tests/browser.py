"""A page in headless Chromium: what its console says and which addresses it asks for."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
QUIET = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-extensions", "--no-first-run", "--enable-logging=stderr", "--log-level=0",
    "--host-resolver-rules=MAP * ~NOTFOUND",  # nothing leaves the machine, not even what the browser itself asks for
]  # fmt: skip


class Visit(NamedTuple):
    """What a browser made of a page."""

    dom: str  # after it was loaded
    console: list[str]  # lines that the page made the console say, errors among them
    requests: list[str]  # addresses other than files and data that were asked for


def visit(page: Path, folder: Path) -> Visit:
    """Opens a file; skips the test where there is no browser on the PATH."""
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    if browser is None:
        pytest.skip(f"no browser on the PATH (looked for {', '.join(NAMES)})")
    log = folder / "netlog.json"
    words = [f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}", "--dump-dom", page.as_uri()]
    done = subprocess.run([browser, *QUIET, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    console = re.findall(r"CONSOLE[^\]]*\] (.*)", done.stderr)
    found = json.loads(log.read_text())
    kinds = {number: name for name, number in found["constants"]["logEventTypes"].items()}
    starts = [event.get("params", {}) for event in found["events"] if kinds[event["type"]] == "URL_REQUEST_START_JOB"]
    asked = [
        start for start in starts if start.get("initiator", "not an origin") != "not an origin"
    ]  # not the browser itself
    urls = {start["url"] for start in asked}
    return Visit(done.stdout, console, sorted(url for url in urls if not url.startswith(("file:", "data:"))))
