"""ADK's web UI, in a real browser, on a real `threadline serve`."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import shutil
import struct
import threading
import zlib
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from selenium.webdriver.common.keys import Keys

from browser import Browser, Call
from servers_http import command, plain, served, wait_until
from threadline import InMemorySessionService, MissingExtraError
from threadline.server import adk_ui
from threadline.sync import DatabaseSessionService, Event

IDS = {"app_name": "weather", "user_id": "user"}
SESSIONS = "/apps/weather/users/user/sessions"


def image() -> bytes:
    """Return a PNG of 32 by 32 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 32, 32, 8, 2, 0, 0, 0)
    pixels = zlib.compress((b"\0" + b"\x20\xa0\x60" * 32) * 32)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*one) for one in ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    )


EVENTS = [
    {
        "author": "user",
        "content": {
            "role": "user",
            "parts": [
                {"text": "How is the weather?"},
                {"inline_data": {"mime_type": "image/png", "data": image()}},
            ],
        },
    },
    {
        "author": "forecaster",
        "content": {
            "parts": [{"function_call": {"id": "c", "name": "look", "args": {"city": "Oslo"}}}]
        },
    },
    {
        "author": "forecaster",
        "content": {
            "parts": [
                {"function_response": {"id": "c", "name": "look", "response": {"is": "fine"}}}
            ]
        },
        "actions": {"state_delta": {"sky": "clear"}},
    },
    {"author": "forecaster", "content": {"parts": [{"text": "It is **clear** in Oslo."}]}},
]


class Site:
    """A browser, a server with the UI, and the server's database."""

    def __init__(self, browser: Browser, store: DatabaseSessionService, *urls: str) -> None:
        self.browser = browser
        self.store = store
        self.urls = urls

    def open(self, session_id: str = "", *, url: str = "") -> Browser:
        """Show the app, or a session of it."""
        self.browser.open(f"{url or self.urls[0]}?app=weather&userId=user&session={session_id}")
        return self.browser

    def titles(self) -> set[str | None]:
        """Return the titles of the app's sessions that are stored."""
        return {one.display_name for one in self.store.list_sessions(**IDS).sessions}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    running = Browser(tmp_path_factory.mktemp("profile"))
    yield running
    running.end()


@pytest.fixture(scope="module")
def site(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    db = f"sqlite:///{folder}/sessions.db"
    with DatabaseSessionService(db) as store, copied(folder / "ui") as copy:
        store.create_session(app_name="other", user_id="user")
        for id, title in (("oslo", "A trip to Oslo"), ("rome", "Rome"), ("paris", "Paris")):
            session = store.create_session(**IDS, session_id=id, display_name=title)
            store.append_events(session, [Event.from_dict(event) for event in EVENTS])
        with command(db, "--adk-ui", "--cors-origin", copy) as server:
            config = folder / "ui" / "assets" / "config" / "runtime-config.json"
            config.parent.mkdir()
            config.write_text(json.dumps({"backendUrl": server.url}))
            yield Site(browser, store, f"{server.url}/dev-ui/", f"{copy}/")


@contextlib.contextmanager
def copied(folder: Path) -> Iterator[str]:
    """Serve a copy of the UI's files from an origin of its own; yield the origin."""
    shutil.copytree(adk_ui.folder(), folder)
    handler = functools.partial(Files, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Files(SimpleHTTPRequestHandler):
    """A web server's files, without its log."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def test_apps_are_listed_and_their_sessions_with_titles(site: Site) -> None:
    page = site.browser
    page.open(site.urls[0])
    page.click("button", "Select an app")
    page.find(".app-selector-item", "other")
    page.click(".app-selector-item", "weather")
    page.click("button", "NEW SESSION")
    for title in ("A trip to Oslo", "Rome", "Paris"):
        page.find(".session-item", title)
    page.click(".session-id", "A trip to Oslo")
    page.find("p", "How is the weather?")


def test_a_session_is_shown_with_its_texts_calls_images_and_state(site: Site) -> None:
    page = site.open("oslo")
    page.find("p", "How is the weather?")
    page.find("button", 'look("Oslo")')
    page.find("button", "State: sky")
    page.find("strong", "clear")
    assert page.find("app-root img[src^=data]").get_property("naturalWidth") == 32
    page.click("[role=tab]", "State")
    page.find("app-state-tab", "sky")
    page.click("button", "Traces")


def test_a_message_makes_a_session_and_says_that_no_agent_runs(site: Site) -> None:
    page = site.open()
    page.type("textarea", f"A walk in the woods{Keys.ENTER}")
    page.find("simple-snack-bar", "runs no agents")
    page.find(".selector-label", "A walk in the woods")
    assert "A walk in the woods" in site.titles()


@pytest.mark.parametrize(("origin", "id", "title"), [(0, "rome", "Rome"), (1, "paris", "Paris")])
def test_a_session_is_renamed_and_deleted_also_from_another_origin(
    site: Site, origin: int, id: str, title: str
) -> None:
    page = site.open(id, url=site.urls[origin])
    page.click(".selector-label", title)
    page.click("app-inline-edit button")
    page.type("app-inline-edit input:not([readonly])", f"A day in {title}{Keys.ENTER}")
    page.find(".selector-label", f"A day in {title}")
    wait_until(lambda: f"A day in {title}" in site.titles())
    page.click(".session-selector-current-id button", "Delete")
    page.click("mat-dialog-container button", "Delete")
    wait_until(lambda: f"A day in {title}" not in site.titles())


def test_what_fails_is_what_only_an_agent_could_answer(site: Site) -> None:
    calls = {*site.browser.calls()}
    assert Call("PATCH", f"{SESSIONS}/paris", 200) in calls
    failed = {call for call in calls if call.status >= 400 and "prism" not in call.path}
    assert failed == {
        Call("GET", "/dev/apps/weather/build_graph", 404),
        Call("GET", "/dev/apps/weather/build_graph_image", 404),
        Call("POST", "/run_sse", 501),
    }


# -- without a browser ------------------------------------------------------------------


def test_a_mounted_server_tells_the_ui_where_it_is() -> None:
    with served(InMemorySessionService(), with_adk_ui=True) as url:
        config = plain.get(f"{url}/dev-ui/assets/config/runtime-config.json").json()
        assert config == {"backendUrl": urlsplit(url).path, "telemetry": False}
        assert "<app-root>" in plain.get(f"{url}/dev-ui", follow_redirects=True).text


def test_the_files_need_no_key_and_the_sessions_do() -> None:
    refused = lambda _: "Send a key."  # noqa: E731 - the whole of an authentication
    with served(InMemorySessionService(), with_adk_ui=True, keys=refused) as url:
        assert plain.get(f"{url}/dev-ui/").status_code == 200
        for path in ("/list-apps", SESSIONS, "/dev/apps/weather/eval_sets"):
            assert plain.get(url + path).status_code == 401


def test_the_files_are_there_if_they_were_asked_for() -> None:
    with served(InMemorySessionService()) as url:
        assert plain.get(f"{url}/dev-ui/").status_code == 404


@pytest.mark.parametrize("found", [None, ModuleNotFoundError("google")])
def test_without_google_adk_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, found: Exception | None
) -> None:
    def find_spec(_: str) -> None:
        if found is not None:
            raise found

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    with pytest.raises(MissingExtraError, match=r"threadline\[adk\]"):
        adk_ui.folder()
