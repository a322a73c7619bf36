"""Manifests through the cache: what a tag names now, and the bytes behind a digest."""

import time
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import anyio
import structlog
from anyio import to_thread

from registry_proxy.cache import Cache, Place, Tag
from registry_proxy.client import RawManifest
from registry_proxy.errors import (
    AbsentError,
    BadAnswerError,
    DeniedError,
    DigestMismatchError,
    ManifestError,
    ProxyError,
    UnreachableError,
)
from registry_proxy.metrics import Metrics
from registry_proxy.oci.digest import Digest
from registry_proxy.oci.manifest import ImageIndex, parse_manifest
from registry_proxy.upstream import Upstream

_OUTAGES = (UnreachableError, BadAnswerError, DigestMismatchError, ManifestError)
"""What an upstream may do without taking away what it gave before: it is down, or something else answers for it."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Served:
    """A manifest to send. ``warning`` says why it may be old, ``age_s`` how old its tag is."""

    manifest: RawManifest
    age_s: int = 0
    warning: str = ""


class Locks:
    """A lock for each key that is in use."""

    def __init__(self) -> None:
        self._locks: dict[Hashable, tuple[anyio.Lock, list[None]]] = {}

    @asynccontextmanager
    async def hold(self, key: Hashable) -> AsyncIterator[None]:
        """Hold the lock of *key* during the block."""
        lock, users = self._locks.setdefault(key, (anyio.Lock(), []))
        users.append(None)
        try:
            async with lock:
                yield
        finally:
            users.pop()
            if not users:
                del self._locks[key]


class Manifests:
    """Gives manifests, from the cache where that is right. One question at a time for each tag and digest."""

    def __init__(
        self,
        cache: Cache,
        metrics: Metrics,
        *,
        tag_ttl_s: float,
        stale_limit_s: float,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._cache = cache
        self._metrics = metrics
        self._tag_ttl_s = tag_ttl_s
        self._stale_limit_s = stale_limit_s
        self._now = now
        self._locks = Locks()

    async def by_digest(self, upstream: Upstream, repository: str, digest: Digest) -> Served:
        """The manifest *digest*; its repository is asked unless it is known to have it.

        Raises:
            ProxyError: it cannot be had.
        """
        place = upstream.place(repository)
        async with self._locks.hold((place, digest)):
            known = await self._cached(place, digest)
            if known is not None:
                self._metrics.count("hits_total", kind="manifest", upstream=upstream.name)
                return Served(known)
            return Served(await self._fetch(upstream, repository, digest=digest))

    async def by_tag(self, upstream: Upstream, repository: str, tag: str) -> Served:
        """The manifest that *tag* names now; or named, if the upstream cannot say and that is not too long ago.

        Raises:
            ProxyError: it cannot be had.
        """
        place = upstream.place(repository)
        async with self._locks.hold((place, tag)):
            mapping = await to_thread.run_sync(self._cache.tag, place, tag)
            known = await self._cached(place, mapping.digest) if mapping is not None else None
            if mapping is None or known is None:
                return Served(await self._ask(upstream, repository, tag, None))
            age_s = self._now() - mapping.checked_unix_s
            ttl_s = upstream.settings.tag_ttl_s
            if 0 <= age_s < (self._tag_ttl_s if ttl_s is None else ttl_s):
                self._metrics.count("hits_total", kind="tag", upstream=upstream.name)
                return Served(known, int(age_s))
            try:
                return Served(await self._ask(upstream, repository, tag, known))
            except (AbsentError, DeniedError):
                raise
            except _OUTAGES as error:
                return self._stale(upstream, known, mapping, error)

    def _stale(self, upstream: Upstream, known: RawManifest, mapping: Tag, error: ProxyError) -> Served:
        limit_s = upstream.settings.stale_limit_s
        age_s = max(0.0, self._now() - mapping.checked_unix_s)
        if age_s > (self._stale_limit_s if limit_s is None else limit_s):
            raise error
        self._metrics.count("stale_total", upstream=upstream.name)
        if upstream.breaker.failing_since_unix_s is None:
            since = datetime.fromtimestamp(self._now(), UTC)
        else:
            since = datetime.fromtimestamp(upstream.breaker.failing_since_unix_s, UTC)
        _log.warning("tag_stale", upstream=upstream.name, digest=str(known.digest), reason=str(error))
        warning = f"stale: upstream {upstream.registry} not reachable since {since:%Y-%m-%dT%H:%M:%SZ}"
        return Served(known, int(age_s), warning)

    async def _ask(self, upstream: Upstream, repository: str, tag: str, known: RawManifest | None) -> RawManifest:
        """Ask what *tag* names; *known* is what it named before, and is not fetched again."""
        reference = upstream.reference(repository, tag=tag)
        place = upstream.place(repository)
        client = upstream.client if known is None else upstream.quick
        self._metrics.count("upstream_requests_total", kind="tag_head", upstream=upstream.name)
        try:
            with upstream.breaker.watch(upstream.registry):
                head = await client.head(reference)
        except AbsentError:
            await to_thread.run_sync(self._cache.drop_tag, place, tag)
            raise
        if head is None:
            manifest = await self._fetch(upstream, repository, tag=tag)
        elif known is not None and known.digest == head.digest:
            manifest = known
        else:
            # by digest, so that what is stored is what HEAD named, even if the tag moves in between
            manifest = await self._cached(place, head.digest) or await self._fetch(
                upstream, repository, digest=head.digest
            )
        await to_thread.run_sync(self._cache.set_tag, place, tag, manifest.digest)
        return manifest

    async def _cached(self, place: Place, digest: Digest) -> RawManifest | None:
        """The manifest *digest* if it is in the cache, and *place* is known to have it."""
        return await to_thread.run_sync(self._load, place, digest)

    def _load(self, place: Place, digest: Digest) -> RawManifest | None:
        content = self._cache.content(digest)
        if content is None or content.media_type is None or not self._cache.is_linked(place, digest):
            return None
        body = self._cache.read(digest)
        return None if body is None else RawManifest(content.media_type, digest, body)

    async def _fetch(
        self, upstream: Upstream, repository: str, *, tag: str | None = None, digest: Digest | None = None
    ) -> RawManifest:
        """Fetch a manifest, keep it, and remember what it gives access to."""
        self._metrics.count("upstream_requests_total", kind="manifest", upstream=upstream.name)
        with upstream.breaker.watch(upstream.registry):
            manifest = await upstream.client.raw_manifest(upstream.reference(repository, tag=tag, digest=digest))
        await to_thread.run_sync(self._keep, upstream.place(repository), manifest)
        return manifest

    def _keep(self, place: Place, manifest: RawManifest) -> None:
        self._cache.link(place, [manifest.digest, *_children(manifest)])
        try:
            self._cache.put(manifest.digest, manifest.body, manifest.media_type)
        except OSError as error:  # a full disk must not stop pulls
            _log.warning("manifest_not_stored", digest=str(manifest.digest), reason=error.strerror)


def _children(manifest: RawManifest) -> list[Digest]:
    """What a manifest names; nothing for those that are not understood."""
    with suppress(ProxyError):
        document = parse_manifest(manifest.body, manifest.media_type)
        if isinstance(document, ImageIndex):
            return [one.digest for one in document.manifests]
        return [document.config.digest, *(layer.digest for layer in document.layers)]
    return []
