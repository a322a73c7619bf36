"""Groups of proxies, as the reference client uses them.

Members of a group share the load: one is picked at random and kept, or, with sharding, each object has its own by
rendezvous hashing. A proxy that failed is burned. When all of a group are burned the next group has its turn,
cyclically; after a while the first group returns with all of its members.
Source: CernVM-FS 2.12, network/download.cc, network/sharding_policy.h; CVMFS_HTTP_PROXY.
"""

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

import anyio
import structlog

from fs.errors import RefusedError
from fs.store.http import ProxyFailedError, without_secrets
from fs.store.reading import Clock, Receiver, Request, StorageReader

_log = structlog.get_logger()

DIRECT = "DIRECT"
_SCHEMES = frozenset({"http", "https"})


@dataclass(frozen=True, slots=True)
class ProxyGroups:
    """Which proxies, and how they are used."""

    groups: tuple[tuple[str, ...], ...] = ((DIRECT,),)  # URLs or DIRECT; no group is empty
    reset_after_s: float = 300.0
    is_sharded: bool = False

    @classmethod
    def parse(cls, text: str, *, fallback: str = "", is_sharded: bool = False, reset_after_s: float = 300.0) -> Self:
        """``http://p1:3128|http://p2:3128;DIRECT``: groups by ``;``, their members by ``|``.

        Args:
            text: the groups.
            fallback: groups that follow them. With them, nothing goes without a proxy: DIRECT is left out everywhere.
            is_sharded: whether each object has its own member.
            reset_after_s: how long a change lasts.

        Raises:
            RefusedError: a member is neither a proxy nor DIRECT.
        """
        groups, others = _groups(text), _groups(fallback)
        if others:
            groups = _without_direct([*groups, *others])
        return cls(tuple(groups) or ((DIRECT,),), reset_after_s, is_sharded)


def _groups(text: str) -> list[tuple[str, ...]]:
    return [
        tuple(_member(member.strip()) for member in group.split("|") if member.strip())
        for group in text.split(";")
        if group.strip(" |")
    ]


def _without_direct(groups: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Source: CernVM-FS 2.12, network/download.cc; CVMFS_FALLBACK_PROXY."""
    left = [tuple(member for member in group if member != DIRECT) for group in groups]
    return [group for group in left if group]


def _member(text: str) -> str:
    if text.upper() == DIRECT:
        return DIRECT
    url = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in _SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good:
        raise RefusedError(f"{text!r} is no proxy: http://HOST:PORT and DIRECT are")
    return url


class ProxyChooser:
    """Which proxy to use now. Belongs to one event loop; shared by the readers of all mirrors.

    Args:
        groups: what there is.
        clock: seconds that only grow.
        choice: the random source.
    """

    def __init__(
        self, groups: ProxyGroups, *, clock: Clock = anyio.current_time, choice: random.Random | None = None
    ) -> None:
        self._groups = groups
        self._clock = clock
        self._random = choice or random.Random()  # noqa: S311  # who shares the load is no secret
        self._number = 0
        self._burned: set[str] = set()
        self._changed_at = 0.0
        self._picked = self._pick()

    @property
    def members(self) -> list[str]:
        """All proxies, each once."""
        return list(dict.fromkeys(member for group in self._groups.groups for member in group))

    @property
    def current(self) -> str:
        """The proxy that is used where nothing is sharded."""
        return self._picked

    def choose(self, path: str) -> str:
        """The proxy for the object at *path*."""
        if (self._burned or self._number) and self._clock() - self._changed_at > self._groups.reset_after_s:
            self.reset()
        if not self._groups.is_sharded:
            return self._picked
        return max(self._alive(), key=lambda proxy: hashlib.blake2b(f"{proxy} {path}".encode(), digest_size=8).digest())

    def burn(self, proxy: str) -> None:
        """*proxy* failed: do not use it for a while."""
        if proxy not in self._alive():
            return  # somebody else found out first
        self._burned.add(proxy)
        self._changed_at = self._clock()
        if not self._alive():
            self._number = (self._number + 1) % len(self._groups.groups)
            self._burned.clear()
        self._picked = self._pick()
        _log.warning("proxy_changed", failed=without_secrets(proxy), url=without_secrets(self._picked))

    def reset(self) -> None:
        """Begin again with the whole first group."""
        self._number = 0
        self._burned.clear()
        self._picked = self._pick()

    def _alive(self) -> list[str]:
        return [member for member in self._groups.groups[self._number] if member not in self._burned]

    def _pick(self) -> str:
        return self._random.choice(self._alive())


class ProxiedReader:
    """A StorageReader that reads one mirror through whichever proxy works.

    Args:
        url: of the mirror.
        ways: a reader for each proxy.
        chooser: knows which to use.
    """

    def __init__(self, url: str, ways: Mapping[str, StorageReader], chooser: ProxyChooser) -> None:
        self._url = without_secrets(url)
        self._ways = ways
        self._chooser = chooser

    @property
    def url(self) -> str:
        """See StorageReader.url."""
        return self._url

    async def read(self, request: Request, receiver: Receiver) -> None:
        """See StorageReader.read. When as many proxies failed as there are, it is the mirror that failed."""
        for left in reversed(range(len(self._ways))):
            proxy = self._chooser.choose(request.path)
            try:
                await self._ways[proxy].read(request, receiver)
            except ProxyFailedError as error:
                _log.warning("proxy_failed", proxy=without_secrets(proxy), object=request.path, reason=str(error))
                self._chooser.burn(proxy)
                if not left:
                    self._chooser.reset()
                    raise
            else:
                return
