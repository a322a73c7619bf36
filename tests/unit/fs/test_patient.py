"""Servers that are away for a while: who waits, and for how long."""

import anyio
import pytest
import trio.testing

from fs.errors import AbsentError, FsError, UnreachableError
from fs.store.patient import PatientReader
from fs.store.reading import BytesReceiver, Receiver, Request

PATIENCE_S = 20.0


class _Server:
    """Away until *back_at_s*; 404 for what is not there."""

    url = "test://server"

    def __init__(self, back_at_s: float) -> None:
        self.back_at_s = back_at_s
        self.asked = 0

    async def read(self, request: Request, receiver: Receiver) -> None:
        self.asked += 1
        if request.path == "never" or trio.current_time() < self.back_at_s:
            raise UnreachableError("away")
        if request.path == "absent":
            raise AbsentError("not there")
        receiver.begin()
        await receiver.feed(b"content")
        await receiver.finish()


def _read(server: _Server, *paths: str, pause_s: float = 0.0) -> list[tuple[float, object]]:
    """When each of *paths*, one after the other, was answered, and how."""
    answers: list[tuple[float, object]] = []

    async def run() -> None:
        reader = PatientReader(server, patience_s=PATIENCE_S)
        for path in paths:
            receiver = BytesReceiver(path, 100)
            try:
                await reader.read(Request(path), receiver)
                answers.append((trio.current_time(), receiver.content))
            except FsError as error:
                answers.append((trio.current_time(), type(error)))
            await anyio.sleep(pause_s)

    clock = trio.testing.MockClock(autojump_threshold=0)
    anyio.run(run, backend="trio", backend_options={"clock": clock})
    return answers


@pytest.mark.parametrize("away_s", [0, 0.1, 5, 15])
def test_a_short_outage_is_waited_out(away_s: float) -> None:
    ((at, answer),) = _read(_Server(away_s), "object")

    assert answer == b"content"
    assert away_s <= at <= away_s + 2.0


def test_a_long_outage_is_an_error_in_time_and_the_next_comes_at_once() -> None:
    server = _Server(1000)
    (first, error), (second, other) = _read(server, "object", "object")

    assert (error, other) == (UnreachableError, UnreachableError)
    assert PATIENCE_S / 2 < first <= PATIENCE_S
    assert second - first <= 2.0
    assert server.asked < 40


def test_what_no_server_answers_for_one_object_does_not_wait_for_ever() -> None:
    (at, error), (later, answer) = _read(_Server(0), "never", "object")

    assert error is UnreachableError
    assert at <= PATIENCE_S
    assert (later - at, answer) == (0.0, b"content")


def test_an_answer_ends_the_outage() -> None:
    answers = _read(_Server(0), "never", "absent", "never")

    assert [answer for _, answer in answers] == [UnreachableError, AbsentError, UnreachableError]
    assert answers[2][0] - answers[1][0] > PATIENCE_S / 2
