"""The client of registries that everybody uses: manifests, blobs, tags.

Works under asyncio and trio. One client serves any number of registries and tasks at once.
"""

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from http import HTTPStatus
from pathlib import Path

import httpx

from registry_proxy.blobs import BlobSource, Transfer, require_verifiable, verified
from registry_proxy.credentials import CredentialSource, DockerConfig, default_config_path
from registry_proxy.errors import (
    AbsentError,
    BadAnswerError,
    DigestMismatchError,
    DigestSyntaxError,
    ManifestError,
    RangeError,
    UnsupportedManifestError,
)
from registry_proxy.oci import media_types
from registry_proxy.oci.digest import Digest
from registry_proxy.oci.manifest import (
    MAX_CONFIG_BYTES,
    MAX_MANIFEST_BYTES,
    Descriptor,
    ImageIndex,
    ImageManifest,
    manifest_type,
    parse_manifest,
    require_image,
)
from registry_proxy.oci.reference import Reference, Scheme, is_repository, is_tag
from registry_proxy.sender import CATALOG_SCOPE, RateLimit, Sender, pull_scope
from registry_proxy.tokens import Tokens
from registry_proxy.transfer import Origin, Patience, open_http, paced, read_bounded, refuse_encoding, retrying

_PAGE_ENTRIES = 1000
_MAX_PAGES = 1000
_MAX_PAGE_BYTES = 4 << 20
_MAX_NAMES = 1_000_000
_ACCEPT = {"Accept": ", ".join(media_types.ACCEPTED_MANIFESTS)}
_NO_HEAD = frozenset({HTTPStatus.FORBIDDEN, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED})
_NEXT_LINK = re.compile(r'<([^<>]{1,2000})>\s*(?:;[^,<]*?)?;\s*rel="?next"?', re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class RawManifest:
    """A manifest's exact bytes, verified, with its type; not understood any further."""

    media_type: str
    digest: Digest
    body: bytes


@dataclass(frozen=True, slots=True)
class FetchedManifest:
    """A manifest's exact bytes, verified, and what they say."""

    media_type: str
    digest: Digest
    body: bytes
    document: ImageManifest | ImageIndex


class RegistryClient:
    """Reads from registries; see open_client."""

    def __init__(self, sender: Sender, *, plain_http: bool = False) -> None:
        self._sender = sender
        self._plain_http = plain_http

    def origin(self, reference: Reference) -> Origin:
        """Where the registry of *reference* is asked."""
        return Origin.of(reference.registry, reference.scheme, plain_http=self._plain_http)

    def blob_source(self, reference: Reference, digest: Digest) -> BlobSource:
        """Where a blob of the repository of *reference* is asked for."""
        return BlobSource(self.origin(reference), reference.repository, digest)

    def rate_limit(self, reference: Reference) -> RateLimit | None:
        """What the registry of *reference* said last about its limit."""
        return self._sender.rate_limits.get(self.origin(reference))

    async def resolve(self, reference: Reference) -> Descriptor:
        """What *reference* names now. Asks with HEAD, which registries do not count as a pull; GET if that fails.

        Raises:
            ProxyError: see Sender.ask; what GET gives is checked like in ``manifest``.
        """
        found = await self.head(reference)
        if found is not None:
            return found
        raw = await self.raw_manifest(reference)
        return Descriptor(media_type=raw.media_type, digest=raw.digest, size_bytes=len(raw.body))

    async def head(self, reference: Reference) -> Descriptor | None:
        """Like ``resolve``, but None where the registry does not answer HEAD with all that is needed.

        Raises:
            ProxyError: see Sender.ask.
        """
        return await retrying(self._sender.patience, lambda: self._head(reference))

    async def manifest(self, reference: Reference, *, images_only: bool = True) -> FetchedManifest:
        """The manifest or index that *reference* names; its digest decides if it has one.

        Raises:
            UnsupportedManifestError: schema 1; with *images_only* also artifacts and encrypted layers.
            ManifestError: malformed or ambiguous.
            DigestMismatchError: the bytes are not those of the digest.
            ProxyError: see Sender.ask.
        """
        raw = await self.raw_manifest(reference)
        try:
            document = parse_manifest(raw.body, raw.media_type)
            if images_only and isinstance(document, ImageManifest):
                require_image(document)
        except UnsupportedManifestError as error:
            raise UnsupportedManifestError(f"{reference}: {error}") from error
        return FetchedManifest(raw.media_type, raw.digest, raw.body, document)

    async def raw_manifest(self, reference: Reference) -> RawManifest:
        """Like ``manifest``, without reading more than the type: for those who pass it on.

        Raises:
            ProxyError: see ``manifest``.
        """
        if reference.digest is not None:
            require_verifiable(reference.digest)
        return await retrying(self._sender.patience, lambda: self._get_manifest(reference))

    async def blob_bytes(
        self, reference: Reference, descriptor: Descriptor, *, limit_bytes: int = MAX_CONFIG_BYTES
    ) -> bytes:
        """A small blob as a whole, verified.

        Raises:
            BadAnswerError: it is larger than *limit_bytes*.
            ProxyError: see ``blob``.
        """
        if descriptor.size_bytes > limit_bytes:
            raise BadAnswerError(
                f"blob {descriptor.digest} has {descriptor.size_bytes} bytes, more than the {limit_bytes} allowed here"
            )
        async with self.blob(reference, descriptor) as parts:
            return b"".join([part async for part in parts])

    @asynccontextmanager
    async def blob(self, reference: Reference, descriptor: Descriptor) -> AsyncIterator[AsyncGenerator[bytes, None]]:
        """The bytes of a blob as they arrive, in memory one piece at a time.

        Broken connections are resumed. The last piece is given only after size and digest of all were right, so
        whoever reads to the end without an error has exactly what *descriptor* names. Its ``urls`` are never followed.

        Raises:
            DigestMismatchError: while reading: the bytes are others.
            ProxyError: while reading: see Sender.ask.
        """
        source = self.blob_source(reference, descriptor.digest)
        async with aclosing(
            self._explained(descriptor, verified(self._sender, source, descriptor.size_bytes))
        ) as parts:
            yield parts

    async def referrers(self, reference: Reference) -> tuple[Descriptor, ...]:
        """What refers to the manifest whose digest *reference* has; registries that do not know have a tag for it.

        Source: OCI distribution specification 1.1, "Listing Referrers", "Referrers Tag Schema".

        Raises:
            ProxyError: see Sender.ask.
        """
        path = f"/v2/{reference.repository}/referrers/{reference.digest}"
        what = f"what refers to {reference.digest}"
        scope = pull_scope(reference.repository)
        try:
            async with self._sender.ask("GET", self.origin(reference), path, scope=scope, what=what) as reply:
                document = parse_manifest(await read_bounded(reply, MAX_MANIFEST_BYTES, what), media_types.OCI_INDEX)
        except AbsentError:
            tag = replace(reference, digest=None, tag=str(reference.digest).replace(":", "-"))
            try:
                document = (await self.manifest(tag, images_only=False)).document
            except AbsentError:
                return ()
        return document.manifests if isinstance(document, ImageIndex) else ()

    async def blob_size(self, reference: Reference, digest: Digest) -> int | None:
        """How many bytes a blob has, without fetching it; None if the registry does not say.

        Raises:
            ProxyError: see Sender.ask; AbsentError if the repository does not have the blob.
        """
        source = self.blob_source(reference, digest)

        async def attempt() -> int | None:
            async with self._sender.ask(
                "HEAD", source.origin, source.path, scope=pull_scope(source.repository), what=source.what
            ) as reply:
                length = reply.headers.get("Content-Length", "")
                return int(length) if length.isdecimal() else None

        return await retrying(self._sender.patience, attempt)

    def transfer(
        self, reference: Reference, digest: Digest, *, size_bytes: int | None = None, offset: int = 0
    ) -> Transfer:
        """The bytes of a blob from *offset* on, which the caller verifies."""
        return Transfer(self._sender, self.blob_source(reference, digest), size_bytes=size_bytes, offset=offset)

    @asynccontextmanager
    async def blob_part(
        self, reference: Reference, digest: Digest, part: range
    ) -> AsyncIterator[AsyncGenerator[bytes, None]]:
        """Some bytes of a blob, as they arrive; they cannot be verified, and are not resumed.

        Raises:
            RangeError: the registry gives something else than that part.
            ProxyError: see Sender.ask.
        """
        source = self.blob_source(reference, digest)
        async with self._sender.ask(
            "GET",
            source.origin,
            source.path,
            scope=pull_scope(source.repository),
            what=source.what,
            headers={"Range": f"bytes={part.start}-{part.stop - 1}"},
        ) as reply:
            refuse_encoding(reply, source.what)
            said = reply.headers.get("Content-Range", "")
            is_part = reply.status_code == HTTPStatus.PARTIAL_CONTENT
            if not is_part or not said.startswith(f"bytes {part.start}-{part.stop - 1}/"):
                raise RangeError(f"{source.origin.registry} does not give parts of {source.what}")
            async with aclosing(paced(reply, self._sender.patience)) as pieces:
                yield pieces

    async def tags(self, reference: Reference) -> tuple[str, ...]:
        """All tags of the repository of *reference*, sorted.

        Raises:
            ProxyError: see Sender.ask.
        """
        names = await self._pages(
            self.origin(reference),
            f"/v2/{reference.repository}/tags/list?n={_PAGE_ENTRIES}",
            scope=pull_scope(reference.repository),
            what=f"the tags of {reference.repository}",
            key="tags",
        )
        return tuple(sorted({name for name in names if is_tag(name)}))

    async def catalog(self, registry: str, scheme: Scheme | None = None) -> tuple[str, ...]:
        """All repositories of *registry* (``host[:port]``), sorted. Many registries refuse to tell.

        Raises:
            ProxyError: see Sender.ask.
        """
        names = await self._pages(
            Origin.of(registry, scheme, plain_http=self._plain_http),
            f"/v2/_catalog?n={_PAGE_ENTRIES}",
            scope=CATALOG_SCOPE,
            what="the list of its repositories",
            key="repositories",
        )
        return tuple(sorted({name for name in names if is_repository(name)}))

    async def _head(self, reference: Reference) -> Descriptor | None:
        """A descriptor from the headers of HEAD, or None if they do not make one."""
        async with self._sender.ask(
            "HEAD",
            self.origin(reference),
            _manifest_path(reference),
            scope=pull_scope(reference.repository),
            what=f"{reference.repository}:{reference.target}",
            headers=_ACCEPT,
            accepted=_NO_HEAD,
        ) as reply:
            digest = _announced_digest(reply)
            media_type = reply.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            length = reply.headers.get("Content-Length", "")
        known = media_types.INDEXES | media_types.MANIFESTS
        if reply.status_code in _NO_HEAD or digest is None or media_type not in known or not length.isdecimal():
            return None
        if reference.digest is not None and digest != reference.digest:
            return None  # GET will tell: its bytes can be compared
        return Descriptor(media_type=media_type, digest=digest, size_bytes=int(length))

    async def _get_manifest(self, reference: Reference) -> RawManifest:
        what = f"{reference.repository}:{reference.target}"
        async with self._sender.ask(
            "GET",
            self.origin(reference),
            _manifest_path(reference),
            scope=pull_scope(reference.repository),
            what=what,
            headers=_ACCEPT,
        ) as reply:
            body = await read_bounded(reply, MAX_MANIFEST_BYTES, f"the manifest of {what}")
            digest = reference.digest or _announced_digest(reply) or Digest.of(body)
            content_type = reply.headers.get("Content-Type")
        if not digest.is_verifiable:
            digest = Digest.of(body)
        if not digest.matches(body):
            # the digest of schema 1 leaves the signatures out, so that it never matches: say what it is first
            with suppress(ManifestError):
                manifest_type(body, content_type)
            raise DigestMismatchError(f"the bytes that {reference.registry} gives for {what} are not those of {digest}")
        return RawManifest(manifest_type(body, content_type), digest, body)

    async def _explained(
        self, descriptor: Descriptor, parts: AsyncGenerator[bytes, None]
    ) -> AsyncGenerator[bytes, None]:
        try:
            async with aclosing(parts):
                async for part in parts:
                    yield part
        except AbsentError as error:
            if not media_types.is_foreign(descriptor.media_type):
                raise
            raise AbsentError(
                f"{error}; it is a foreign layer, and addresses outside the registry are not followed"
            ) from error

    async def _pages(self, origin: Origin, path: str, *, scope: str, what: str, key: str) -> list[str]:
        names: list[str] = []
        seen: set[str] = set()
        following: str | None = path
        while following is not None:
            if following in seen or len(seen) >= _MAX_PAGES or len(names) > _MAX_NAMES:
                raise BadAnswerError(f"{origin.registry} never ends {what}")
            seen.add(following)
            page, following = await retrying(
                self._sender.patience, partial(self._page, origin, following, scope=scope, what=what, key=key)
            )
            names += page
        return names

    async def _page(
        self, origin: Origin, path: str, *, scope: str, what: str, key: str
    ) -> tuple[list[str], str | None]:
        """The names of one page, and the path of the next."""
        async with self._sender.ask("GET", origin, path, scope=scope, what=what) as reply:
            body = await read_bounded(reply, _MAX_PAGE_BYTES, what)
            links = reply.headers.get_list("Link")
        try:
            listed = json.loads(body)[key] or []  # null is how Go writes an empty list
            names = [name for name in listed if isinstance(name, str)]
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise BadAnswerError(f"{origin.registry} gives something else than {what}") from error
        return names, _next_page(origin, path, links)


@asynccontextmanager
async def open_client(  # noqa: PLR0913  # all have defaults that fit
    *,
    credentials: CredentialSource | None = None,
    plain_http: bool = False,
    patience: Patience | None = None,
    ca_file: Path | None = None,
    realms: frozenset[str] = frozenset(),
    transport: httpx.AsyncBaseTransport | None = None,
) -> AsyncIterator[RegistryClient]:
    """A client that lives as long as the block.

    Args:
        credentials: where they come from; by default docker's configuration file of this user, if there is one.
        plain_http: no TLS for registries named without a scheme (never needed for loopback, which has none).
        patience: time-outs and retries.
        ca_file: roots to trust instead of the system's.
        realms: hosts that may be given credentials as token servers although they are of another domain.
        transport: what sends requests, in place of the network.
    """
    patience = patience or Patience()
    async with open_http(patience, ca_file=ca_file, transport=transport) as http:
        tokens = Tokens(http, credentials or DockerConfig(default_config_path()), patience, realms=realms)
        yield RegistryClient(Sender(http, tokens, patience), plain_http=plain_http)


def _manifest_path(reference: Reference) -> str:
    return f"/v2/{reference.repository}/manifests/{reference.target}"


def _announced_digest(reply: httpx.Response) -> Digest | None:
    text = reply.headers.get("Docker-Content-Digest")
    if text is None:
        return None
    try:
        return Digest.parse(text.strip())
    except DigestSyntaxError as error:
        raise BadAnswerError(f"{reply.url.host} announces a digest that is none") from error


def _next_page(origin: Origin, path: str, links: Iterable[str]) -> str | None:
    """Path and query of the page that a ``Link`` header names as next. Source: RFC 8288."""
    found = next((match for link in links for match in _NEXT_LINK.finditer(link)), None)
    if found is None:
        return None
    base = httpx.URL(origin.url + path)
    try:
        target = base.join(found[1])
    except httpx.InvalidURL as error:
        raise BadAnswerError(f"{origin.registry} names a next page that is no address") from error
    if (target.scheme, target.host, target.port) != (base.scheme, base.host, base.port):
        raise BadAnswerError(f"{origin.registry} names a next page at another host, {target.host}")
    return target.raw_path.decode()
