"""Servers by distance: what is asked, and which answers count."""

import random

import anyio
import httpx
import pytest

from fs.store.geo import ordered_by_distance, parse_order

URLS = ["http://b.example.org/cvmfs/r", "http://a.example.org:8000/cvmfs/r", "http://c.example.org/cvmfs/r"]


@pytest.mark.parametrize(
    ("answer", "order"),
    [
        (b"2,1,3\n", [1, 0, 2]),
        (b"3,2,1", [2, 1, 0]),
        (b"1,2\n", None),
        (b"1,2,2\n", None),
        (b"0,1,2\n", None),
        (b"1,2,3,4", None),
        (b"", None),
        (b"<html>", None),
        (b"\xff", None),
    ],
)
def test_only_a_permutation_is_an_order(answer: bytes, order: list[int] | None) -> None:
    assert parse_order(answer, 3) == order


def ordered(
    answers: dict[str, bytes | int], urls: list[str], who: str = "proxy.example.org"
) -> tuple[list[str], list[str]]:
    asked: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        answer = answers[request.url.host]
        if answer == 0:
            raise httpx.ConnectError("down", request=request)
        return httpx.Response(answer) if isinstance(answer, int) else httpx.Response(200, content=answer)

    async def run() -> list[str]:
        async with httpx.AsyncClient(transport=httpx.MockTransport(handler)) as client:
            return await ordered_by_distance(client, urls, who, choice=random.Random(1))

    return anyio.run(run, backend="trio"), asked


def test_the_nearest_comes_first_by_the_sorted_names() -> None:
    answer = b"3,1,2\n"  # of a, b, c
    found, asked = ordered({f"{name}.example.org": answer for name in "abc"}, [*URLS, "file:///srv/r"])

    assert found == [URLS[2], URLS[1], URLS[0], "file:///srv/r"]
    assert len(asked) == 1
    path = asked[0].partition("/cvmfs/r")[2]
    assert path == "/api/v1.0/geo/proxy.example.org/a.example.org,b.example.org,c.example.org"


def test_the_next_is_asked_if_one_does_not_know() -> None:
    found, asked = ordered({"a.example.org": b"2,1,3", "b.example.org": 0, "c.example.org": 404}, URLS)

    assert found == URLS
    assert "a.example.org" in asked[-1]


def test_nobody_knows() -> None:
    found, asked = ordered({f"{name}.example.org": b"nonsense" for name in "abc"}, URLS)

    assert found == URLS
    assert len(asked) == 3


def test_one_server_is_not_asked() -> None:
    assert ordered({}, URLS[:1]) == (URLS[:1], [])
