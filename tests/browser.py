"""A real browser for tests: Chromium without a window, which reaches this machine only."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from selenium import webdriver
from selenium.common.exceptions import InvalidElementStateException
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from servers import missing

FLAGS = (
    "--headless=new",
    "--no-sandbox",  # root has none
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--window-size=1300,900",
)


class Call(NamedTuple):
    """A request that a page made, and the status of its answer."""

    method: str
    path: str
    status: int


class Browser:
    """A browser with one page, in a fresh profile."""

    def __init__(self, profile: Path) -> None:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        driver = shutil.which("chromedriver")
        if chromium is None or driver is None:
            missing("browser", "there is no chromium with a chromedriver")
        options = webdriver.ChromeOptions()
        options.binary_location = str(chromium)
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(driver))
        self._wait = WebDriverWait(self.driver, 20, 0.05, [InvalidElementStateException])

    def open(self, url: str) -> None:
        """Load a page."""
        self.driver.get(url)

    def find(self, css: str, text: str = "") -> WebElement:
        """Wait for a visible element that contains a text, and return it."""

        def visible(_: object) -> WebElement | bool:
            script = """
                return [...document.querySelectorAll(arguments[0])].find(element =>
                    element.checkVisibility() && element.textContent.includes(arguments[1]))
            """
            return self.driver.execute_script(script, css, text) or False

        found: Any = self._wait.until(visible, f"no {css} with {text!r}")
        return found

    def click(self, css: str, text: str = "") -> None:
        """Click on an element, whatever fades in or out above it."""
        self.driver.execute_script("arguments[0].click()", self.find(css, text))

    def type(self, css: str, text: str) -> None:
        """Put a text into a field, once that has arrived where it can be reached."""

        def typed(_: object) -> bool:
            field = self.find(css)
            field.clear()
            field.send_keys(text)
            return True

        self._wait.until(typed, f"{css} takes no text")

    def calls(self) -> Iterator[Call]:
        """Return the calls that had an answer since this was last asked."""
        methods: dict[str, str] = {}
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                sent = message["params"]
                methods[sent["requestId"]] = sent["request"]["method"]
            elif message["method"] == "Network.responseReceived":
                answer, id = message["params"]["response"], message["params"]["requestId"]
                yield Call(methods.get(id, ""), urlsplit(answer["url"]).path, answer["status"])

    def end(self) -> None:
        """Close it."""
        self.driver.quit()
