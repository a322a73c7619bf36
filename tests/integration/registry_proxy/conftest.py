"""A misbehaving upstream, and the proxy in front of it."""

import asyncio
import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn

from registry_proxy.app import open_proxy
from registry_proxy.config import ProxySettings, UpstreamSettings
from registry_proxy.transfer import Patience
from tests.support.bad_registry import BadRegistry, bad_registry
from tests.support.processes import free_port, listens, wait_until

HURRY = Patience(
    attempts=3,
    first_delay_s=0.01,
    max_delay_s=0.02,
    retry_after_cap_s=1,
    connect_timeout_s=1,
    idle_timeout_s=1,
    answer_deadline_s=3,
    low_speed_bytes_s=2000,
    low_speed_window_s=0.5,
)


@pytest.fixture
def bad() -> Iterator[BadRegistry]:
    """A registry that does what it is told."""
    with bad_registry() as registry:
        yield registry


@dataclass(frozen=True, slots=True)
class Got:
    """An answer; ``is_whole`` is False if the connection ended before the announced length."""

    status: int
    headers: dict[str, str]
    body: bytes
    is_whole: bool = True


@dataclass(slots=True)
class Proxy:
    """A running proxy and a client for it."""

    port: int
    directory: Path
    kill: Callable[[], None] = lambda: None

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def get(self, path: str, method: str = "GET", **headers: str) -> Got:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, headers={name.replace("_", "-"): text for name, text in headers.items()})
            reply = connection.getresponse()
            answered = {name.lower(): text for name, text in reply.getheaders()}
            try:
                return Got(reply.status, answered, reply.read())
            except http.client.IncompleteRead as error:
                return Got(reply.status, answered, error.partial, is_whole=False)
        finally:
            connection.close()

    def metric(self, name: str) -> float:
        """Sum of a metric over its labels."""
        lines = self.get("/metrics").body.decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"unpackd_proxy_{name}"))

    def stored(self) -> list[Path]:
        """The complete contents."""
        return [path for path in (self.directory / "content").glob("*/*/*") if path.is_file()]


StartProxy = Callable[..., AbstractContextManager[Proxy]]


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextmanager
def run_proxy(directory: Path, upstream: str, **settings: object) -> Iterator[Proxy]:
    """The proxy's application on a free port, in a thread with a loop of its own."""
    port = free_port()
    merged = {
        "directory": directory,
        "listen": f"127.0.0.1:{port}",
        "upstreams": (UpstreamSettings(name="up", url=upstream),),
        **settings,
    }
    stopping: list[_Server] = []

    async def serve() -> None:
        async with open_proxy(ProxySettings.model_validate(merged), patience=HURRY) as app:
            config = uvicorn.Config(app, port=port, log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
            stopping.append(_Server(config))
            await stopping[0].serve()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    try:
        wait_until(lambda: listens(port) or not thread.is_alive(), "the start of the proxy")
        yield Proxy(port, directory)
    finally:
        if stopping:
            stopping[0].should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def start_proxy(bad: BadRegistry, tmp_path: Path) -> Iterator[StartProxy]:
    """Start a proxy in front of ``bad``; each call uses the same cache directory."""
    with ExitStack():
        yield lambda **settings: run_proxy(tmp_path / "cache", bad.url, **settings)


@pytest.fixture
def proxy(start_proxy: StartProxy) -> Iterator[Proxy]:
    """A proxy that always asks for tags, and verifies only small blobs before sending."""
    with start_proxy(tag_ttl_s=0, verify_first_bytes=1 << 16) as running:
        yield running
