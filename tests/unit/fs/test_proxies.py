"""Groups of proxies: who is asked, who is left out, and for how long."""

import random
from collections import Counter

import anyio
import pytest

from fs.errors import AbsentError, RefusedError
from fs.store.http import ProxyFailedError
from fs.store.proxies import DIRECT, ProxiedReader, ProxyChooser, ProxyGroups
from fs.store.reading import BytesReceiver, Receiver, Request


class Time:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def chooser(text: str, *, sharded: bool = False) -> tuple[ProxyChooser, Time]:
    time = Time()
    groups = ProxyGroups.parse(text, is_sharded=sharded)
    return ProxyChooser(groups, clock=time, choice=random.Random(1)), time


def test_groups_are_parsed_as_the_reference_client_writes_them() -> None:
    assert ProxyGroups.parse("http://a:1|b:2; http://c ;DIRECT").groups == (
        ("http://a:1", "http://b:2"),
        ("http://c",),
        (DIRECT,),
    )
    assert ProxyGroups.parse("").groups == ((DIRECT,),)


@pytest.mark.parametrize("text", ["ftp://a", "http://", "http://a:b", "http://a:0"])
def test_what_is_no_proxy_is_refused(text: str) -> None:
    with pytest.raises(RefusedError):
        ProxyGroups.parse(text)


def test_one_member_is_kept_until_it_fails() -> None:
    proxies, _ = chooser("http://a|http://b;http://c")
    first = proxies.choose("x")

    assert {proxies.choose(str(number)) for number in range(20)} == {first}
    proxies.burn(first)
    second = proxies.choose("x")
    assert {first, second} == {"http://a", "http://b"}
    proxies.burn(second)
    assert proxies.choose("x") == "http://c"
    proxies.burn("http://c")
    assert proxies.choose("x") in {"http://a", "http://b"}


def test_the_first_group_returns_after_a_while() -> None:
    proxies, time = chooser("http://a;http://b")
    proxies.burn("http://a")
    time.now += 299
    assert proxies.choose("x") == "http://b"
    time.now += 2
    assert proxies.choose("x") == "http://a"


def test_several_who_see_one_failure_burn_one_proxy() -> None:
    proxies, _ = chooser("http://a;http://b;http://c")
    for _ in range(3):
        proxies.burn("http://a")
    assert proxies.choose("x") == "http://b"


def test_mounts_spread_over_a_group() -> None:
    picked = Counter(
        ProxyChooser(ProxyGroups.parse("http://a|http://b"), choice=random.Random(seed)).current for seed in range(200)
    )
    assert min(picked.values()) > 60


def test_sharding_moves_only_the_objects_of_a_failed_proxy() -> None:
    proxies, _ = chooser("http://a|http://b|http://c", sharded=True)
    names = [f"data/{number:02x}" for number in range(300)]
    before = {name: proxies.choose(name) for name in names}
    assert min(Counter(before.values()).values()) > 60
    proxies.burn("http://b")
    for name in names:
        if before[name] != "http://b":
            assert proxies.choose(name) == before[name]


class Way:
    url = "http://mirror"

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.requests = 0

    async def read(self, _request: Request, receiver: Receiver) -> None:
        self.requests += 1
        receiver.begin()
        if self.error is not None:
            raise self.error
        await receiver.feed(b"content")


def read(text: str, **ways: Way) -> bytes:
    proxies, _ = chooser(text)
    named = {f"http://{name}" if name != DIRECT else DIRECT: way for name, way in ways.items()}
    receiver = BytesReceiver("x", 100)
    anyio.run(ProxiedReader("http://mirror", named, proxies).read, Request("x"), receiver, backend="trio")
    return receiver.content


def test_another_proxy_is_asked_when_one_fails() -> None:
    bad, good, direct = Way(ProxyFailedError("no")), Way(), Way()

    assert read("http://a;http://b;DIRECT", a=bad, b=good, DIRECT=direct) == b"content"
    assert (bad.requests, good.requests, direct.requests) == (1, 1, 0)


def test_what_the_server_says_is_not_blamed_on_the_proxy() -> None:
    other = Way()
    with pytest.raises(AbsentError):
        read("http://a;http://b", a=Way(AbsentError("gone")), b=other)
    assert not other.requests


def test_when_all_fail_the_mirror_has_failed() -> None:
    ways = {"a": Way(ProxyFailedError("no")), "b": Way(ProxyFailedError("no"))}
    with pytest.raises(ProxyFailedError):
        read("http://a|http://b", **ways)
    assert [way.requests for way in ways.values()] == [1, 1]


def test_fallback_groups_follow_and_nothing_goes_without_a_proxy_then() -> None:
    groups = ProxyGroups.parse("http://a|DIRECT;DIRECT;http://b", fallback="http://c|http://d;DIRECT").groups

    assert groups == (("http://a",), ("http://b",), ("http://c", "http://d"))
    assert ProxyGroups.parse("DIRECT", fallback="http://c").groups == (("http://c",),)
    assert ProxyGroups.parse("http://a;DIRECT", fallback="DIRECT").groups == (("http://a",),)


def test_after_the_last_group_comes_the_first_and_the_time_of_a_reset_can_be_chosen() -> None:
    time = Time()
    proxies = ProxyChooser(ProxyGroups.parse("http://a", fallback="http://b", reset_after_s=10), clock=time)
    proxies.burn("http://a")
    assert proxies.choose("x") == "http://b"
    proxies.burn("http://b")
    assert proxies.choose("x") == "http://a"
    proxies.burn("http://a")
    time.now += 11
    assert proxies.choose("x") == "http://a"


def test_a_burned_member_of_the_present_group_returns_after_a_while() -> None:
    proxies, time = chooser("http://a|http://b", sharded=True)
    proxies.burn("http://a")
    assert {proxies.choose(str(number)) for number in range(50)} == {"http://b"}
    time.now += 301
    assert {proxies.choose(str(number)) for number in range(50)} == {"http://a", "http://b"}
