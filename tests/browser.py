"""Opens pages in headless Chromium, and tells what their consoles, scripts and requests were."""

import json
import os
import shutil
import subprocess
from html.parser import HTMLParser
from typing import Any, NamedTuple

import pytest

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no chromium, chromium-browser or google-chrome is on the PATH"
)


class Scripts(HTMLParser):
    """The elements of a page, and what is in its scripts, as browsers find them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag == "script"
        if self.inside:
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.scripts[-1] += data


class Seen(NamedTuple):
    """The lines of the console, what the script returned, and the addresses asked for."""

    console: list[str]
    told: Any
    requests: list[str]


def opened(folder, scripts, width=1200, dark=False):
    """{page: Seen} of pages in one browser, each with a script that is run once it stands.

    It has no window; each page is a frame of its own, as wide as asked for in CSS pixels.
    """
    frames, copies = [], {}
    for number, (page, script) in enumerate(scripts.items()):
        asked = "performance.getEntriesByType('resource').map((each) => each.name)"
        told = f"parent.postMessage([{number}, [told ?? null, {asked}]], '*')"
        copies[page] = folder / f"frame{number}.html"
        copies[page].write_text(
            f"{page.read_text()}<script>(async () => {{ {script} }})()"
            f".then((told) => {told});</script>"
        )
        frames.append(f"<iframe src='{copies[page].as_uri()}' width={width} height=900></iframe>")
    hear = "onmessage = (event) => { document.body.dataset['told' + event.data[0]] = "
    hear += "JSON.stringify(event.data[1]); };"
    opener = folder / "opener.html"
    opener.write_text(f"<!doctype html><body><script>{hear}</script>{''.join(frames)}")
    command = [
        *(str(BROWSER), "--headless", "--disable-gpu", "--no-first-run", "--disable-extensions"),
        *("--enable-unsafe-swiftshader", "--use-angle=swiftshader"),
        *("--enable-logging=stderr", "--v=0", "--virtual-time-budget=5000", "--dump-dom"),
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        f"--user-data-dir={folder / 'browser'}",
        *(["--no-sandbox"] if os.geteuid() == 0 else []),
        opener.as_uri(),
    ]
    run = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    console = [line for line in run.stderr.splitlines() if ":CONSOLE" in line]
    # How fast the driver of a machine without a GPU is says nothing about the page.
    console = [line for line in console if "GL Driver Message" not in line]
    body = next(attrs for tag, attrs in Scripts(run.stdout).tags if tag == "body")
    found = {}
    for number, (page, copy) in enumerate(copies.items()):
        own = [line for line in console if copy.as_uri() in line]
        console = [line for line in console if line not in own]
        told, requests = json.loads(body.get(f"data-told{number}", "[null, []]"))
        found[page] = Seen(own, told, requests)
    assert console == [], "of no page"
    return found
