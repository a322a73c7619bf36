"""The status page in a real browser: it changes while people look at it, without being loaded again."""

import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from converter.farm_config import FarmSettings, sqlite_url
from converter.farm_database import FarmDatabase
from converter.jobs import Outcome
from converter.web.app import web_app
from converter.web.services import Services
from converter.wish import Wish
from tests.support.processes import wait_until

REPOSITORY = "unpacked.test.local"


@contextmanager
def serving(app: ASGIApp) -> Iterator[str]:
    """The application at a free port."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            wait_until(lambda: server.started, "the start of the server")
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)


def test_what_changes_is_shown_without_loading_the_page_again(tmp_path: Path) -> None:
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("chromium is not installed; apt-get install chromium brings it")
    database = FarmDatabase(sqlite_url(tmp_path / "farm.sqlite"))
    services = Services.of(REPOSITORY, database, FarmSettings())
    services.jobs.observe(REPOSITORY, {Wish.parse("r.example/tool:1"): "sha256:" + "a" * 64})
    pages: list[str] = []
    app = web_app(services)

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        """After the page was loaded, the image is converted."""
        await app(scope, receive, send)
        if scope["type"] == "http" and scope["path"] == "/":
            pages.append(dict(scope["headers"]).get(b"sec-fetch-dest", b"").decode())
            if len(pages) == 1:
                claim = services.jobs.claim(1, "me", lambda _: False)
                assert claim is not None
                outcome = Outcome(
                    changed=True, public_path="/r.example/tool:1", flat_path="/.flat", revision=9, details={}
                )
                services.jobs.finish(claim, outcome)

    with serving(watched) as url:
        command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"]
        command += [f"--user-data-dir={tmp_path}/profile", "--virtual-time-budget=8000", f"{url}/?q=tool"]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    assert f"/cvmfs/{REPOSITORY}/r.example/tool:1" in shown
    assert "1 done" in shown
    assert "1 queued" not in shown
    assert pages[0] == "document"
    assert set(pages[1:]) == {"empty"}  # what fetch() asks for
