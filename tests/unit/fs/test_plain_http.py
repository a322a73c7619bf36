"""Plain exchanges over HTTP/1.1, with answers of every kind from a scripted server."""

from collections.abc import Awaitable, Callable, Sequence

import anyio
import anyio.abc
import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fs.errors import AbsentError, FsError, RefusedError, UnreachableError
from fs.store.http import HttpReader, ProxyFailedError
from fs.store.limits import HttpLimits
from fs.store.plain_http import PlainConnections
from fs.store.reading import BytesReceiver, Part, Request

LIMITS = HttpLimits(connect_timeout_s=1, idle_timeout_s=0.3, low_speed_window_s=0.3)


def answer(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Server:
    """Gives one scripted answer a request, in pieces; None closes the connection."""

    def __init__(self, *script: Sequence[bytes] | bytes | None) -> None:
        self.script = list(script)
        self.requests: list[bytes] = []
        self.connections = 0

    async def serve(self, stream: anyio.abc.SocketStream) -> None:
        self.connections += 1
        async with stream:
            while True:
                try:
                    self.requests.append(await stream.receive())
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    return
                step = self.script.pop(0) if self.script else None
                if step is None:
                    return
                for piece in [step] if isinstance(step, bytes) else step:
                    await stream.send(piece)
                    await anyio.sleep(0.001)


def run(server: Server, work: Callable[[HttpReader], Awaitable[None]], *, proxy: bool = False) -> None:
    """Do *work* with a reader of *server*; the general client answers 'by httpx'."""

    async def main() -> None:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with listener, anyio.create_task_group() as group:
            group.start_soon(listener.serve, server.serve)
            plain = PlainConnections("127.0.0.1", port, LIMITS, anyio.Semaphore(4))
            transport = httpx.MockTransport(lambda _: httpx.Response(200, stream=httpx.ByteStream(b"by httpx")))
            async with httpx.AsyncClient(transport=transport) as client:
                via = f"http://127.0.0.1:{port}" if proxy else None
                with anyio.fail_after(20):
                    await work(HttpReader("http://origin:8/cvmfs/repo", client, LIMITS, plain=plain, proxy=via))
            await plain.close()
            group.cancel_scope.cancel()

    anyio.run(main, backend="trio")


def get(server: Server, *requests: Request, proxy: bool = False) -> list[bytes]:
    contents: list[bytes] = []

    async def work(reader: HttpReader) -> None:
        for request in requests:
            receiver = BytesReceiver("file", 1 << 20)
            await reader.read(request, receiver)
            contents.append(receiver.content)

    run(server, work, proxy=proxy)
    return contents


def test_two_objects_over_one_connection() -> None:
    server = Server(answer(b"one"), [b"HTTP/1.1 200 OK\r\nconten", b"t-LENGTH:  3 \r\n\r\nt", b"wo"])

    assert get(server, Request("data/1"), Request("data/2")) == [b"one", b"two"]
    assert server.connections == 1
    assert server.requests[0].startswith(b"GET /cvmfs/repo/data/1 HTTP/1.1\r\nHost: origin:8\r\n")
    assert b"cache-control" not in server.requests[0].lower()


def test_through_a_proxy_the_whole_url_is_asked_for() -> None:
    server = Server(answer(b"x"))

    get(server, Request("data/1", is_fresh=True), proxy=True)
    assert server.requests[0].startswith(b"GET http://origin:8/cvmfs/repo/data/1 HTTP/1.1\r\n")
    assert b"Cache-Control: no-cache" in server.requests[0]


def test_a_kept_connection_that_was_closed_is_no_failure() -> None:
    server = Server(answer(b"one"), None, answer(b"two"))

    assert get(server, Request("1"), Request("2")) == [b"one", b"two"]
    assert server.connections == 2


def test_the_server_says_that_it_closes() -> None:
    server = Server(answer(b"one", "Connection: close"), answer(b"two"))

    assert get(server, Request("1"), Request("2")) == [b"one", b"two"]
    assert server.connections == 2


def test_a_part_from_servers_that_know_ranges_and_those_that_do_not() -> None:
    server = Server(answer(b"3456", status="206 Partial Content"), [answer(b"01234"), b"56789"], answer(b"0123456789"))
    server.script[1] = [b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n01234", b"56789"]

    assert get(server, *[Request("x", Part(3, 4))] * 3) == [b"3456"] * 3
    assert b"Range: bytes=3-6\r\n" in server.requests[0]


@pytest.mark.parametrize(
    "odd",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nwithout length",
        b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx",
        b"HTTP/1.1 301 Moved\r\nLocation: /\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxy",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\nxy",
        b"HTTP/1.1 200 OK\r\nX: y\r\n folded\r\nContent-Length: 1\r\n\r\nx",
        b"SSH-2.0-OpenSSH\r\n\r\n",
    ],
)
def test_what_is_unusual_is_left_to_the_general_client(odd: bytes) -> None:
    assert get(Server(odd), Request("x")) == [b"by httpx"]


@pytest.mark.parametrize(
    ("status", "error"), [("404 No", AbsentError), ("403 No", RefusedError), ("503 No", UnreachableError)]
)
def test_each_refusal_has_its_error(status: str, error: type[FsError]) -> None:
    with pytest.raises(BaseExceptionGroup) as caught:
        get(Server(answer(b"no", status=status)), Request("x"))
    assert caught.group_contains(error, match=status[:3])


@pytest.mark.parametrize(
    "broken",
    [
        None,
        [b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"],  # and then silence
        [b"HTTP/1.1 200"],
    ],
)
def test_an_answer_that_does_not_come_whole(broken: Sequence[bytes] | None) -> None:
    with pytest.raises(BaseExceptionGroup) as caught:
        get(Server(broken), Request("x"))
    assert caught.group_contains(UnreachableError)
    assert not caught.group_contains(ProxyFailedError)


@pytest.mark.parametrize(
    ("script", "is_of_the_proxy"),
    [
        (None, True),
        (answer(b"", status="407 Password"), True),
        (answer(b"", status="403 No"), True),
        (answer(b"", "X-Squid-Error: ERR_DNS_FAIL 0", status="503 No"), True),
        (answer(b"", "Proxy-Status: p; error=dns_timeout", status="502 No"), True),
        (answer(b"", status="503 No"), False),
        (answer(b"", status="404 No"), False),
    ],
)
def test_whose_fault_it_is(script: bytes | None, is_of_the_proxy: bool) -> None:
    with pytest.raises(BaseExceptionGroup) as caught:
        get(Server(script), Request("x"), proxy=True)
    assert caught.group_contains(ProxyFailedError) is is_of_the_proxy


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=200), st.booleans())
def test_no_answer_raises_anything_but_our_errors(noise: bytes, has_head: bool) -> None:
    text = b"HTTP/1.1 200 OK\r\n" + noise + b"\r\n\r\n" if has_head else noise + b"\r\n\r\n"
    unexpected: list[BaseException] = []

    async def work(reader: HttpReader) -> None:
        try:
            await reader.read(Request("x"), BytesReceiver("file", 1000))
        except FsError:
            pass
        except Exception as error:  # noqa: BLE001  # that is the question
            unexpected.append(error)

    run(Server(text), work)
    assert not unexpected
