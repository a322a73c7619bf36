"""Readers and their wrappers, with servers that are functions."""

from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio
import anyio.lowlevel
import httpx
import pytest
from structlog.testing import capture_logs

from fs.errors import AbsentError, CorruptError, FsError, RefusedError, UnreachableError
from fs.store.failover import FailoverReader
from fs.store.http import HttpReader, open_http_client, without_secrets
from fs.store.limits import HttpLimits
from fs.store.reading import BytesReceiver, Part, Receiver, Request
from fs.store.retrying import RetryingReader
from fs.store.single_flight import SingleFlight

Handler = Callable[[httpx.Request], httpx.Response]


def _run(function: Callable[[], Awaitable[None]]) -> None:
    anyio.run(function, backend="trio")


def _get(handler: Handler, request: Request, *, limit_bytes: int = 1000) -> bytes:
    receiver = BytesReceiver("file", limit_bytes)

    async def run() -> None:
        limits = HttpLimits()
        async with open_http_client(limits, transport=httpx.MockTransport(handler)) as client:
            await HttpReader("http://origin/cvmfs/repo/", client, limits).read(request, receiver)

    _run(run)
    return receiver.content


def test_the_whole_file() -> None:
    asked: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, stream=httpx.ByteStream(b"content"))

    assert _get(handler, Request("data/ab/cd")) == b"content"
    assert str(asked[0].url) == "http://origin/cvmfs/repo/data/ab/cd"
    assert asked[0].headers["accept-encoding"] == "identity"
    assert "cache-control" not in asked[0].headers


def test_past_the_caches_on_the_way() -> None:
    asked: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, stream=httpx.ByteStream(b""))

    _get(handler, Request("x", is_fresh=True))
    assert asked[0].headers["cache-control"] == "no-cache"
    assert asked[0].headers["pragma"] == "no-cache"


@pytest.mark.parametrize("status", [200, 206])
def test_a_part_from_servers_that_know_ranges_and_those_that_do_not(status: int) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert request.headers["range"] == "bytes=3-6"
        return httpx.Response(status, stream=httpx.ByteStream(b"0123456789" if status == 200 else b"3456"))

    assert _get(handler, Request("x", Part(3, 4))) == b"3456"


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (404, AbsentError),
        (410, AbsentError),
        (403, RefusedError),
        (304, RefusedError),
        (429, UnreachableError),
        (500, UnreachableError),
        (503, UnreachableError),
    ],
)
def test_each_refusal_has_its_error(status: int, error: type[FsError]) -> None:
    with pytest.raises(error, match=str(status)):
        _get(lambda _: httpx.Response(status), Request("x"))


def test_a_connection_that_fails() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("too late", request=request)

    with pytest.raises(UnreachableError, match="too late"):
        _get(handler, Request("x"))


def test_more_than_the_receiver_takes() -> None:
    with pytest.raises(RefusedError):
        _get(lambda _: httpx.Response(200, stream=httpx.ByteStream(bytes(2000))), Request("x"), limit_bytes=1000)


def test_no_secret_is_shown() -> None:
    assert without_secrets("https://user:word@host:8/path?token=x") == "https://host:8/path"


class _Scripted:
    """A reader that does what its script says: bytes, or an error."""

    def __init__(self, *script: bytes | FsError) -> None:
        self.url = "http://scripted"
        self.script = list(script)
        self.requests: list[Request] = []

    async def read(self, request: Request, receiver: Receiver) -> None:
        self.requests.append(request)
        receiver.begin()
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(step, FsError):
            await receiver.feed(b"part of what was wrong")
            raise step
        await receiver.feed(step)
        await receiver.finish()


def _read(reader: RetryingReader | FailoverReader) -> bytes:
    receiver = BytesReceiver("file", 1000)

    async def run() -> None:
        await reader.read(Request("x"), receiver)

    _run(run)
    return receiver.content


async def _no_wait(_: float) -> None:
    """Time does not pass."""


def test_what_may_pass_is_tried_again() -> None:
    inner = _Scripted(UnreachableError("now"), b"content")

    assert _read(RetryingReader(inner, sleep=_no_wait)) == b"content"


def test_what_stays_is_not_tried_for_ever() -> None:
    inner = _Scripted(UnreachableError("always"))

    with pytest.raises(UnreachableError):
        _read(RetryingReader(inner, retries=2, sleep=_no_wait))
    assert len(inner.requests) == 3


def test_what_is_absent_is_not_tried_again() -> None:
    inner = _Scripted(AbsentError("no"))

    with pytest.raises(AbsentError):
        _read(RetryingReader(inner, sleep=_no_wait))
    assert len(inner.requests) == 1


def test_what_came_corrupt_is_asked_for_once_more_and_fresh() -> None:
    inner = _Scripted(CorruptError("x"))

    with pytest.raises(CorruptError):
        _read(RetryingReader(inner, sleep=_no_wait))
    assert [request.is_fresh for request in inner.requests] == [False, True]


@pytest.mark.parametrize("error", [UnreachableError("u"), AbsentError("a"), CorruptError("c"), RefusedError("r")])
def test_the_next_mirror_helps(error: FsError) -> None:
    assert _read(FailoverReader([_Scripted(error), _Scripted(b"content")])) == b"content"


def test_the_error_that_says_most_is_told() -> None:
    with pytest.raises(CorruptError):
        _read(FailoverReader([_Scripted(AbsentError("a")), _Scripted(CorruptError("c")), _Scripted(AbsentError("a"))]))


def test_a_mirror_that_answers_is_kept_and_the_first_gets_its_turn_again() -> None:
    first, second = _Scripted(UnreachableError("u")), _Scripted(b"content")
    first.url, second.url = "http://first", "http://second"

    async def run() -> None:
        reader = FailoverReader([first, second], reset_after_s=0.01)
        await reader.read(Request("x"), BytesReceiver("x", 100))
        assert reader.urls == ["http://second", "http://first"]
        await reader.read(Request("x"), BytesReceiver("x", 100))
        assert len(first.requests) == 1
        await anyio.sleep(0.02)
        await reader.read(Request("x"), BytesReceiver("x", 100))
        assert len(first.requests) == 2

    _run(run)


def test_one_bad_object_is_no_reason_to_leave_a_mirror() -> None:
    async def run() -> None:
        reader = FailoverReader([_Scripted(CorruptError("c")), _Scripted(b"content")])
        await reader.read(Request("x"), BytesReceiver("x", 100))
        assert reader.urls == ["http://scripted", "http://scripted"]
        assert reader.ordered()[0].url == "http://scripted"

    _run(run)


def test_that_a_server_is_away_is_said_once_until_it_answers() -> None:
    away = UnreachableError("away")
    reader = FailoverReader([_Scripted(away, away, away, b"content", away)])

    with capture_logs() as logs:
        for _ in range(5):
            with suppress(UnreachableError):
                _read(reader)

    said = [(line["event"], line.get("failed")) for line in logs if line["log_level"] != "debug"]
    assert said == [("read_failed", None), ("mirror_answers_again", 3), ("read_failed", None)]


def test_an_error_of_the_receiver_is_not_asked_elsewhere() -> None:
    second = _Scripted(b"content")

    with pytest.raises(FsError, match="own trouble"):
        _read(FailoverReader([_Scripted(FsError("own trouble")), second]))
    assert second.requests == []


def test_many_who_want_the_same_share_one_result() -> None:
    calls: list[int] = []

    async def work() -> int:
        calls.append(1)
        await anyio.sleep(0.01)
        return 42

    async def run() -> None:
        flights = SingleFlight[str, int]()
        results: list[int] = []

        async def ask() -> None:
            results.append(await flights.run("key", work))

        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(ask)
        assert results == [42] * 10

    _run(run)
    assert len(calls) == 1


def test_the_cancellation_of_the_first_is_not_the_failure_of_the_others() -> None:
    calls: list[int] = []

    async def work() -> int:
        calls.append(1)
        await anyio.sleep(0.02)
        return len(calls)

    async def run() -> None:
        flights = SingleFlight[str, int]()
        results: list[int] = []

        async def impatient() -> None:
            with anyio.move_on_after(0.005):
                await flights.run("key", work)

        async def patient() -> None:
            results.append(await flights.run("key", work))

        async with anyio.create_task_group() as group:
            group.start_soon(impatient)
            await anyio.lowlevel.checkpoint()
            group.start_soon(patient)
            group.start_soon(patient)
        assert results == [2, 2]

    _run(run)


def test_an_error_is_shared_too_and_not_remembered() -> None:
    async def run() -> None:
        flights = SingleFlight[str, int]()
        errors: list[Exception] = []

        async def fail() -> int:
            await anyio.sleep(0.005)
            raise AbsentError("no")

        async def succeed() -> int:
            return 1

        async def ask() -> None:
            try:
                await flights.run("key", fail)
            except AbsentError as error:
                errors.append(error)

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            group.start_soon(ask)
        assert len(errors) == 2
        assert await flights.run("key", succeed) == 1

    _run(run)
