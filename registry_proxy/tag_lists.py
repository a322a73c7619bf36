"""Lists of tags: fetched whole, kept for as long as a tag is believed, given in pages."""

import json
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from registry_proxy.cache import Place
from registry_proxy.manifests import Locks
from registry_proxy.metrics import Metrics
from registry_proxy.upstream import Upstream

_KNOWN_LISTS = 1000


@dataclass(frozen=True, slots=True)
class Page:
    """Some tags in byte order, and whether more follow."""

    tags: tuple[str, ...]
    is_followed: bool

    def body(self, name: str) -> bytes:
        """As the protocol wants it; *name* is the repository as the client called it."""
        return json.dumps({"name": name, "tags": list(self.tags)}).encode()


class TagLists:
    """Gives pages of tags."""

    def __init__(self, metrics: Metrics, *, ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._metrics = metrics
        self._ttl_s = ttl_s
        self._clock = clock
        self._lists: OrderedDict[Place, tuple[float, tuple[str, ...]]] = OrderedDict()
        self._locks = Locks()

    async def page(self, upstream: Upstream, repository: str, *, after: str, limit: int | None) -> Page:
        """At most *limit* tags that come after *after*, which need not exist.

        Raises:
            ProxyError: the upstream does not give the list.
        """
        tags = await self._all(upstream, repository)
        start = bisect_right(tags, after) if after else 0
        stop = len(tags) if limit is None else min(len(tags), start + limit)
        return Page(tags[start:stop], stop < len(tags))

    async def _all(self, upstream: Upstream, repository: str) -> tuple[str, ...]:
        place = Place(upstream.registry, repository)
        ttl_s = self._ttl_s if upstream.settings.tag_ttl_s is None else upstream.settings.tag_ttl_s
        async with self._locks.hold(place):
            known = self._lists.get(place)
            if known is not None and self._clock() - known[0] < ttl_s:
                return known[1]
            self._metrics.count("upstream_requests_total", kind="tags", upstream=upstream.name)
            with upstream.breaker.watch(upstream.registry):
                tags = await upstream.client.tags(upstream.reference(repository))
            self._lists[place] = (self._clock(), tags)
            self._lists.move_to_end(place)
            while len(self._lists) > _KNOWN_LISTS:
                self._lists.popitem(last=False)
            return tags
