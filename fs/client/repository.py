"""A repository as a reader sees it: which revision, and what is in it.

A revision is adopted only if the whole trust chain holds and no newer one was ever seen with the same cache. What
proves the newest revision is kept beside the cached objects, so that a mount without network shows what it showed
before.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote_from_bytes

import structlog

from fs.client.catalogs import CatalogRef, Catalogs, Found
from fs.client.chain import Anchor, fetch_chain
from fs.client.kept import KeptRevision
from fs.client.receiving import ObjectRef
from fs.client.snapshots import Snapshots
from fs.errors import (
    AbsentError,
    BlacklistedError,
    CatalogError,
    CorruptError,
    FsError,
    MalformedError,
    NotTrustedError,
    RefusedError,
    UnreachableError,
)
from fs.format.compression import Compression
from fs.format.databases import connect_bytes
from fs.format.entries import Entry, Flag
from fs.format.hashes import Hash, Suffix
from fs.format.history import History, Tag
from fs.format.manifest import Manifest
from fs.format.tree import Content
from fs.store.failover import FailoverReader
from fs.store.reading import Part

_log = structlog.get_logger()

_HISTORY_LIMIT_BYTES = 256 << 20
_METAINFO_LIMIT_BYTES = 1 << 16

_UNUSABLE = (
    AbsentError,
    CatalogError,
    CorruptError,
    MalformedError,
    NotTrustedError,
    RefusedError,
    UnreachableError,
)
"""Errors of one mirror, after which the next may do better."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which revision to show: the newest (nothing set), or a fixed one by one of these."""

    tag: str | None = None
    revision: int | None = None  # that has a tag
    root_hash: Hash | None = None  # believed as it is: nothing is signed for it
    date: datetime | None = None  # the newest with a tag that is not younger

    @property
    def is_fixed(self) -> bool:
        """True if it never changes."""
        return self != Selection()


@dataclass(frozen=True, slots=True)
class Revision:
    """One revision of the repository, proven."""

    number: int
    root: CatalogRef
    ttl_s: int
    manifest: Manifest | None = None  # None if the root's hash was given
    tag: str = ""


@dataclass(frozen=True, slots=True)
class Placed:
    """A file's content and, if its objects are external, the percent-encoded path where they are."""

    content: Content
    external: str | None = None

    def whole(self) -> ObjectRef:
        """The object of a file that is not in chunks."""
        content = self.content
        if content.hash is None:
            raise CatalogError("a file without hash has chunks")
        return ObjectRef(content.hash, compression=content.compression, size=content.size, external=self.external)

    def chunk(self, number: int) -> ObjectRef:
        """The object of chunk *number*. Raises CatalogError."""
        content, chunk = self.content, self.content.chunks[number]
        part = None
        if self.external is not None:
            # Source: CernVM-FS 2.12, fetch.cc: ranges of the plain file
            if content.compression is not Compression.NONE:
                raise CatalogError("an external file in chunks must be uncompressed")
            part = Part(chunk.offset, chunk.size)
        return ObjectRef(chunk.hash, Suffix.CHUNK, content.compression, chunk.size, external=self.external, part=part)


class Repository:
    """Reads one repository. Belongs to one event loop; ``refresh`` must not run twice at once.

    Args:
        anchor: name and keys.
        mirrors: where it is.
        catalogs: over objects of the same mirrors; what is kept between lives lies in their cache's directory.
        selection: which revision.
        state: where the newest revision is kept from one life to the next; by default beside the objects.
        preloaded: directories of the same form, which may know a newer one.
        now: the time, in UTC.
    """

    def __init__(  # noqa: PLR0913  # what may differ from one reader to the next
        self,
        anchor: Anchor,
        mirrors: FailoverReader,
        catalogs: Catalogs,
        *,
        selection: Selection | None = None,
        state: Path | None = None,
        preloaded: Sequence[Path] = (),
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.anchor = anchor
        self.mirrors = mirrors
        self.catalogs = catalogs
        self.objects = catalogs.objects
        self.selection = selection or Selection()
        self._kept = KeptRevision(state or self.objects.cache.directory, anchor, preloaded)
        self._now = now
        self._revision: Revision | None = None
        catalogs.snapshots = Snapshots(self._history, self.tags)
        self.is_offline = False  # True while the newest revision is the one of an earlier life

    @property
    def name(self) -> str:
        """The repository's name."""
        return self.anchor.name

    @property
    def revision(self) -> Revision:
        """The revision that is shown now; ``open`` has to come first."""
        if self._revision is None:
            raise AbsentError(f"{self.name} is not open yet")
        return self._revision

    async def open(self) -> Revision:
        """Find and prove the revision to show.

        Raises:
            NotTrustedError, MalformedError: nothing that is offered can be believed.
            AbsentError: there is no such tag, or no repository at the mirrors.
            UnreachableError: no mirror answers, and nothing was kept.
        """
        if self.selection.root_hash is not None:
            self._revision = await self._prove(self.selection.root_hash, None)
            return self._revision
        manifest = await self._newest_or_kept()
        root, tag = manifest.root_catalog, ""
        if self.selection.is_fixed:
            chosen = await self._tagged(manifest)
            root, tag = chosen.root_catalog, chosen.name
        self._revision = await self._prove(root, manifest, tag)
        return self._revision

    async def refresh(self) -> bool:
        """Look for a newer revision and adopt it; False if there is none or the revision is fixed.

        Raises:
            FsError: no mirror gives anything that can be believed; the present revision stays.
        """
        if self.selection.is_fixed:
            return False
        manifest = await self._newest()
        self.is_offline = False
        if manifest.root_catalog == self.revision.root.hash:
            return False
        self._revision = await self._prove(manifest.root_catalog, manifest)
        return True

    def is_forbidden(self) -> bool:
        """True if a blacklist says that the revision that is shown must not be shown any more."""
        try:
            self.anchor.blacklist().check_revision(self.name, self.revision.number)
        except BlacklistedError:
            return True
        except AbsentError as error:
            _log.error("blacklist_unreadable", repository=self.name, reason=str(error))
        return False

    async def _prove(self, root: Hash, manifest: Manifest | None, tag: str = "") -> Revision:
        """Open the root catalog: what cannot be opened is not adopted."""
        ref = CatalogRef(root)
        catalog = await self.catalogs.get(ref)
        if catalog.lookup(b"") is None:
            raise CatalogError(f"the root catalog {root} has no entry for the root directory")
        is_newest = manifest is not None and manifest.root_catalog == root
        number = manifest.revision if manifest is not None and is_newest else catalog.revision
        self.anchor.blacklist().check_revision(self.name, number)
        return Revision(number, ref, max(1, catalog.ttl_s), manifest, tag)

    async def _newest_or_kept(self) -> Manifest:
        try:
            return await self._newest()
        except _UNUSABLE as error:
            kept = self._kept.manifest(self._now())
            if kept is None:
                raise
            _log.warning("revision_of_earlier_life", repository=self.name, revision=kept.revision, reason=str(error))
            self.is_offline = True
            return kept

    async def _newest(self) -> Manifest:
        """The newest manifest that a mirror gives and that may be adopted; it is kept."""
        errors: list[FsError] = []
        seen, seen_root = self._kept.newest_seen()
        for mirror in self.mirrors.ordered():
            try:
                chain = await fetch_chain(mirror, self.objects)
                manifest = chain.verify(self.anchor, self._now())
                self._kept.refuse_rollback(manifest, seen, seen_root)
            except _UNUSABLE as error:
                errors.append(error)
                _log.warning("manifest_refused", repository=self.name, url=mirror.url, reason=str(error))
                continue
            if manifest.revision > seen or not self._kept.has(chain):
                self._kept.keep(chain, manifest)
            return manifest
        raise _most_telling(errors)

    def _history(self) -> Hash | None:
        """The tag database of the revision that is shown."""
        manifest = self._revision.manifest if self._revision is not None else None
        return None if manifest is None else manifest.history

    async def tags(self) -> list[Tag]:
        """The named tags, newest first."""
        manifest = self.revision.manifest
        return [] if manifest is None else await self._tags(manifest)

    async def _tags(self, manifest: Manifest) -> list[Tag]:
        if manifest.history is None:
            return []
        ref = ObjectRef(manifest.history, Suffix.HISTORY, limit_bytes=_HISTORY_LIMIT_BYTES)
        connection = connect_bytes(await self.objects.whole(ref))
        try:
            return History(connection).tags()
        finally:
            connection.close()

    async def _tagged(self, manifest: Manifest) -> Tag:
        wanted = self.selection
        if wanted.revision == manifest.revision:
            return Tag(
                name="", root_catalog=manifest.root_catalog, revision=manifest.revision, published_unix_s=0, size=0
            )
        tags = await self._tags(manifest)
        if wanted.date is not None:
            return self._tag_of(wanted.date, tags)
        for tag in tags:
            if tag.name == wanted.tag or tag.revision == wanted.revision:
                return tag
        what = f"tag {wanted.tag!r}" if wanted.tag is not None else f"tag for revision {wanted.revision}"
        raise AbsentError(f"{self.name} has no {what}")

    def _tag_of(self, date: datetime, tags: Sequence[Tag]) -> Tag:
        """The newest revision of the main line that was published not later. Source: CernVM-FS 2.12, history_sql.cc."""
        past = [tag for tag in tags if not tag.branch and tag.published_unix_s <= date.timestamp()]
        if not past:
            raise AbsentError(f"{self.name} has no tag that is as old as {date:%Y-%m-%d %H:%M:%S %Z}")
        return max(past, key=lambda tag: tag.revision)

    async def metainfo(self) -> bytes:
        """The JSON text about the repository; empty if it has none."""
        manifest = self.revision.manifest
        if manifest is None or manifest.metainfo is None:
            return b""
        return await self.objects.whole(
            ObjectRef(manifest.metainfo, Suffix.METAINFO, limit_bytes=_METAINFO_LIMIT_BYTES)
        )

    async def find(self, path: bytes) -> Found | None:
        """The entry at canonical *path* in the revision that is shown, or None."""
        return await self.catalogs.find(self.revision.root, path)

    def find_now(self, path: bytes) -> Found | None:
        """As ``find``. Raises NeedsCatalog."""
        return self.catalogs.find_now(self.revision.root, path)

    async def listing(self, path: bytes) -> list[Found]:
        """What is in the directory at *path*, hidden entries included."""
        return await self.catalogs.listing(self.revision.root, path)

    async def content(self, home: CatalogRef, path: bytes, entry: Entry) -> Placed:
        """Where the bytes of a regular file are. Raises CatalogError."""
        return await self.catalogs.answered(lambda: self.content_now(home, path, entry))

    def content_now(self, home: CatalogRef, path: bytes, entry: Entry) -> Placed:
        """As ``content``. Raises NeedsCatalog."""
        catalog = self.catalogs.get_now(home)
        content = catalog.content(path, entry)
        if not entry.has(Flag.EXTERNAL):
            return Placed(content)
        # below a bind mount point the file lies where it lay in its own revision
        return Placed(content, quote_from_bytes(catalog.inner(path)))


def _most_telling(errors: Sequence[FsError]) -> FsError:
    """Not trusted says more than malformed, that more than absent or unreachable."""
    for kind in (NotTrustedError, MalformedError, CorruptError, UnreachableError):
        for error in errors:
            if isinstance(error, kind):
                return error
    return errors[0]
