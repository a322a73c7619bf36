"""The order of servers by their distance, as one of them knows it.

``GET <server>/api/v1.0/geo/<who asks>/<name>,<name>,…`` answers ``2,1,3``: the names by distance, counted from 1. Up to
three servers are asked, one after the other; an answer that is no permutation is none. Fallback proxies stay in the
order in which they were given. Source: CernVM-FS 2.12, network/download.cc; CVMFS_USE_GEOAPI.
"""

import random
from collections.abc import Sequence
from urllib.parse import quote, urlsplit

import anyio
import httpx
import structlog

from fs.store.http import without_secrets

_log = structlog.get_logger()

_MOST_ASKED = 3
_TIMEOUT_S = 3.0
_ANSWER_LIMIT_BYTES = 4096


def parse_order(answer: bytes, count: int) -> list[int] | None:
    """The order that *answer* states, counted from 0; None if it is not one of *count* names."""
    try:
        order = [int(number) - 1 for number in answer.decode("ascii").strip().split(",")]
    except ValueError:
        return None
    return order if sorted(order) == list(range(count)) else None


def host_of(url: str) -> str:
    """The name by which a server or proxy is asked for; empty if there is none."""
    return urlsplit(url).hostname or ""


async def ordered_by_distance(
    client: httpx.AsyncClient, urls: Sequence[str], who: str, *, choice: random.Random | None = None
) -> list[str]:
    """The servers *urls*, nearest first; as they are given if none of them says.

    Args:
        client: on the way that is used for everything else.
        urls: of the repository, at each server; those that are not HTTP come last, in their order.
        who: the proxy that is used, or whatever stands for this machine.
        choice: the random source.
    """
    asked = [url for url in urls if url.startswith(("http://", "https://"))]
    names = sorted({host_of(url) for url in asked} - {""})
    if len(names) < 2:  # noqa: PLR2004  # one is in order
        return list(urls)
    order = await _ask(client, asked, who, names, choice or random.Random())  # noqa: S311  # who is asked is no secret
    if order is None:
        return list(urls)
    rank = {names[number]: place for place, number in enumerate(order)}
    return sorted(urls, key=lambda url: rank.get(host_of(url), len(names)))


async def _ask(
    client: httpx.AsyncClient, urls: Sequence[str], who: str, names: Sequence[str], choice: random.Random
) -> list[int] | None:
    for url in choice.sample(urls, min(_MOST_ASKED, len(urls))):
        place = f"{url.rstrip('/')}/api/v1.0/geo/{quote(who, safe='')}/{','.join(names)}"
        try:
            with anyio.fail_after(_TIMEOUT_S):
                reply = await client.get(place)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            _log.warning("geo_not_answered", url=without_secrets(url), reason=str(error) or type(error).__name__)
            continue
        order = parse_order(reply.content[:_ANSWER_LIMIT_BYTES], len(names)) if reply.is_success else None
        if order is not None:
            _log.info("servers_ordered", by=without_secrets(url), nearest=names[order[0]])
            return order
        _log.warning("geo_not_answered", url=without_secrets(url), reason=f"HTTP {reply.status_code}, no order")
    return None
