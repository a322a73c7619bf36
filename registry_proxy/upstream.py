"""One configured registry at work: its clients, how many downloads it gets, and whether it answers at the moment."""

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace

import anyio
import httpx

from registry_proxy.cache import Place
from registry_proxy.client import RegistryClient
from registry_proxy.config import UpstreamSettings
from registry_proxy.credentials import CredentialSource, DockerConfig, GivenCredentials
from registry_proxy.errors import ProxyError, RateLimitedError, UnreachableError
from registry_proxy.oci.digest import Digest
from registry_proxy.oci.reference import Reference
from registry_proxy.sender import Sender
from registry_proxy.tokens import Tokens
from registry_proxy.transfer import Patience, open_http

PATIENCE = Patience(attempts=3, connect_timeout_s=5.0, idle_timeout_s=15.0, answer_deadline_s=30.0)
_QUICK_DEADLINE_S = 5.0  # of a question whose answer may also come from the cache
_FAILURES = 3
_PAUSE_S = 5.0


class Breaker:
    """After some failures in a row nobody waits for an upstream for a while."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, now: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._now = now
        self._failures = 0
        self._closed_until_s = 0.0
        self.failing_since_unix_s: float | None = None

    @contextmanager
    def watch(self, registry: str) -> Iterator[None]:
        """Around each question to the upstream.

        Raises:
            UnreachableError: it failed so often lately that it is not asked now.
        """
        if self._clock() < self._closed_until_s:
            raise UnreachableError(f"{registry} failed {self._failures} times in a row and is asked again in a moment")
        try:
            yield
        except RateLimitedError:
            raise
        except UnreachableError:
            self._failures += 1
            self.failing_since_unix_s = self.failing_since_unix_s or self._now()
            if self._failures >= _FAILURES:
                self._closed_until_s = self._clock() + _PAUSE_S
            raise
        except ProxyError:
            self._succeeded()
            raise
        else:
            self._succeeded()

    def _succeeded(self) -> None:
        self._failures, self.failing_since_unix_s = 0, None


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """See the module's text."""

    settings: UpstreamSettings
    client: RegistryClient
    quick: RegistryClient  # the same, for those who have something to fall back on
    slots: anyio.Semaphore
    breaker: Breaker = field(default_factory=Breaker)

    @property
    def name(self) -> str:
        """Its name in paths and metrics."""
        return self.settings.name

    @property
    def registry(self) -> str:
        """Its canonical name in image names."""
        return self.settings.registry

    def place(self, repository: str) -> Place:
        """The key of one of its repositories in the cache."""
        return Place(self.registry, repository)

    def reference(self, repository: str, *, tag: str | None = None, digest: Digest | None = None) -> Reference:
        """How its clients are told what is wanted."""
        return Reference(
            registry=self.settings.host, repository=repository, tag=tag, digest=digest, scheme=self.settings.scheme
        )


@asynccontextmanager
async def open_upstream(
    settings: UpstreamSettings, *, patience: Patience = PATIENCE, transport: httpx.AsyncBaseTransport | None = None
) -> AsyncIterator[Upstream]:
    """An upstream with its own connections, for as long as the block."""
    credentials: CredentialSource = DockerConfig(settings.credentials) if settings.credentials else GivenCredentials()
    quick = replace(
        patience,
        attempts=1,
        connect_timeout_s=min(patience.connect_timeout_s, _QUICK_DEADLINE_S),
        answer_deadline_s=min(patience.answer_deadline_s, _QUICK_DEADLINE_S),
    )
    async with open_http(patience, ca_file=settings.ca_file, transport=transport) as http:
        tokens = Tokens(http, credentials, patience, realms=settings.realms)
        yield Upstream(
            settings=settings,
            client=RegistryClient(Sender(http, tokens, patience)),
            quick=RegistryClient(Sender(http, tokens, quick)),
            slots=anyio.Semaphore(settings.downloads),
        )
