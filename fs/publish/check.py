"""Is a repository what it should be? Every signature, catalog, counter, link, chunk and object.

What is insisted on is what readers and the reference's tools rely on. Source: CernVM-FS 2.12, swissknife_check.cc.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from fs.errors import CorruptError, FsError, NotTrustedError
from fs.format.catalog import Catalog
from fs.format.compression import Compression, Inflater, inflate
from fs.format.databases import connect_bytes
from fs.format.entries import NestedReference
from fs.format.hashes import Hash, Suffix
from fs.format.history import History, Tag
from fs.format.manifest import MAX_MANIFEST_BYTES, Manifest
from fs.format.paths import ROOT
from fs.format.reflog import references
from fs.format.signature import SignedText
from fs.format.trust import TrustedWhitelist, named_certificate
from fs.format.whitelist import MAX_WHITELIST_BYTES, Whitelist
from fs.publish.check_catalog import (
    CatalogReport,
    Finding,
    ObjectUse,
    check_catalog,
    check_counters,
    check_transition,
    shown,
)
from fs.publish.published import MANIFEST, MAX_REFLOG_BYTES, REFLOG, read_history
from fs.publish.signing import WHITELIST, expiry_warnings
from fs.publish.view import MAX_CATALOG_BYTES, MAX_STORED_BYTES
from fs.store.base import ReadStore

T = TypeVar("T")

_PIECE_BYTES = 1 << 20
_MAX_SMALL_BYTES = 1 << 20
_BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckOptions:
    """How thorough and how fast."""

    keys: Sequence[RSAPublicKey] = ()  # master keys; without any the whitelist's signature is not checked
    now: datetime
    sample: float = 1.0  # share of the objects whose bytes are read; all others must at least be there
    threads: int = 2
    report: Callable[[int, int], None] = lambda _done, _total: None  # objects looked at, of how many


@dataclass(slots=True, kw_only=True)
class Verdict:
    """What a check found."""

    name: str = ""
    revision: int = 0
    catalogs: int = 0
    entries: int = 0
    objects: int = 0
    objects_read: int = 0
    bytes_read: int = 0  # as stored
    findings: list[Finding] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """True if nothing is wrong; notes do not count."""
        return all(finding.is_note for finding in self.findings)


def check_repository(store: ReadStore, options: CheckOptions) -> Verdict:
    """Check the newest revision and all tagged ones. Raises AbsentError if there is no repository at all."""
    check = _Check(store, options)
    check.run()
    return check.verdict


def check_tree(store: ReadStore, root: NestedReference, options: CheckOptions) -> Verdict:
    """Check one tree of catalogs and its objects, whether it is published or not."""
    check = _Check(store, options)
    check.run_tree(root)
    return check.verdict


class _Check:
    def __init__(self, store: ReadStore, options: CheckOptions) -> None:
        self._store = store
        self._options = options
        self._uses: dict[tuple[Hash, Suffix], ObjectUse] = {}
        self._seen: dict[tuple[Hash, bytes], CatalogReport | None] = {}
        self.verdict = Verdict()

    def run(self) -> None:
        envelope = self._store.read_named(MANIFEST, limit_bytes=MAX_MANIFEST_BYTES)
        manifest = self._attempt("manifest", MANIFEST, lambda: Manifest.parse(SignedText.parse(envelope).text))
        if manifest is None:
            return
        self.verdict.name, self.verdict.revision = manifest.name, manifest.revision
        self._attempt("signature", MANIFEST, lambda: self._check_trust(envelope, manifest))
        metainfo = manifest.metainfo
        if metainfo is not None:
            self._attempt("object", str(metainfo), lambda: self._small(metainfo, Suffix.METAINFO))
        tags = self._attempt("history", MANIFEST, lambda: self._check_history(manifest)) or []
        head = NestedReference(ROOT, manifest.root_catalog, manifest.catalog_size)
        self._check_tree(head, manifest)
        for tag in tags:
            self._check_tree(NestedReference(ROOT, tag.root_catalog, tag.size))
        self._attempt("reflog", REFLOG, lambda: self._check_reflog(manifest, tags))
        self._finish()

    def run_tree(self, root: NestedReference) -> None:
        self._check_tree(root)
        self._finish()

    def _finish(self) -> None:
        self._check_objects()
        reports = [report for report in self._seen.values() if report is not None]
        self.verdict.catalogs = len(reports)
        self.verdict.entries = sum(report.entries for report in reports)

    def _find(self, kind: str, where: str, message: str, *, is_note: bool = False) -> None:
        self.verdict.findings.append(Finding(kind, where, message, is_note))

    def _attempt(self, kind: str, where: str, step: Callable[[], T]) -> T | None:
        """The result of *step*; an error becomes a finding."""
        try:
            return step()
        except FsError as error:
            self._find(kind, where, str(error))
            return None

    def _small(self, name: Hash, suffix: Suffix) -> bytes:
        stored = self._store.get(name, suffix, limit_bytes=_MAX_SMALL_BYTES)
        return inflate(stored, limit_bytes=_MAX_SMALL_BYTES, name=f"{name}{suffix.value}")

    def _check_trust(self, envelope: bytes, manifest: Manifest) -> None:
        certificate = self._small(named_certificate(envelope), Suffix.CERTIFICATE)
        signed_list = self._store.read_named(WHITELIST, limit_bytes=MAX_WHITELIST_BYTES)
        if self._options.keys:
            whitelist = TrustedWhitelist.verify(
                signed_list, name=manifest.name, keys=self._options.keys, now=self._options.now
            )
        else:
            text = Whitelist.parse(SignedText.parse(signed_list).text)
            self._find("signature", WHITELIST, "no public key was given: its signature was not checked", is_note=True)
            if text.is_expired(self._options.now):
                raise NotTrustedError(f"the whitelist of {manifest.name} expired at {text.expires:%Y-%m-%d %H:00} UTC")
            whitelist = TrustedWhitelist(text)
        whitelist.certificate(certificate).manifest(envelope)
        expires = x509.load_pem_x509_certificate(certificate).not_valid_after_utc
        for warning in expiry_warnings(whitelist.whitelist.expires, expires, self._options.now):
            self._find("signature", WHITELIST, warning, is_note=True)

    def _check_history(self, manifest: Manifest) -> list[Tag]:
        if manifest.history is None:
            return []
        with closing(connect_bytes(read_history(self._store, manifest.history))) as connection:
            history = History(connection)
            tags, branches = history.tags(), history.branches()
        for tag in tags:
            if tag.branch not in branches:
                self._find("history", tag.name, f"the tag is on the branch {tag.branch!r}, which does not exist")
            elif tag.revision < branches[tag.branch]:
                self._find("history", tag.name, "the tag's revision is older than its branch")
            if tag.revision > manifest.revision:
                self._find("history", tag.name, f"revision {tag.revision} is newer than the newest")
        for branch in branches.keys() - {tag.branch for tag in tags} - {""}:
            self._find("history", branch, "no tag is on the branch")
        return tags

    def _check_reflog(self, manifest: Manifest, tags: Sequence[Tag]) -> None:
        if manifest.reflog is None:
            return
        database = self._store.read_named(REFLOG, limit_bytes=MAX_REFLOG_BYTES)
        if Hash.of(database, manifest.reflog.algorithm) != manifest.reflog:
            self._find("reflog", REFLOG, "the manifest was signed with another version of it", is_note=True)
        with closing(connect_bytes(database)) as connection:
            known = references(connection)
        needed = {
            "root catalog": manifest.root_catalog,
            "certificate": manifest.certificate,
            "history": manifest.history,
            "metainfo": manifest.metainfo,
        } | {f"root catalog of tag {tag.name}": tag.root_catalog for tag in tags}
        for what, name in needed.items():
            if name is not None and name not in known:
                self._find("reflog", REFLOG, f"it does not know the {what}, {name}")

    def _check_tree(self, root: NestedReference, manifest: Manifest | None = None) -> None:
        """Check the catalogs from *root* on; counters of a catalog are compared once all below it are counted."""
        # of later trees only the catalogs that differ are looked at, so that names cannot be counted there
        is_first = not self._seen
        links: Counter[tuple[int, int]] = Counter()
        opened: list[tuple[Catalog, CatalogReport]] = []
        pending = [root]
        while pending:
            reference = pending.pop()
            key = (reference.hash, reference.path)
            if key in self._seen:
                continue
            self._seen[key] = None
            found = self._attempt("catalog", shown(reference.path), lambda: self._check_catalog(reference))  # noqa: B023
            if found is None:
                continue
            catalog, report = found
            self._seen[key] = report
            opened.append(found)
            links.update(report.links)
            if manifest is not None and reference is root:
                self._check_head(manifest, catalog)
            pending.extend(nested for nested in report.nested if not nested.is_bind)
        for catalog, report in reversed(opened):
            self._check_children(report, catalog)
            catalog.close()
        if is_first:
            for (group, count), names in links.items():
                if names != count:
                    text = f"hard link group {-group} has {names} names, but says {count}"
                    self._find("link", "unpackd_links", text)

    def _check_catalog(self, reference: NestedReference) -> tuple[Catalog, CatalogReport]:
        stored = self._store.get(reference.hash, Suffix.CATALOG, limit_bytes=MAX_STORED_BYTES)
        database = inflate(stored, limit_bytes=MAX_CATALOG_BYTES, name=f"{reference.hash}C")
        self.verdict.objects += 1
        self.verdict.objects_read += 1
        self.verdict.bytes_read += len(stored)
        if reference.size and reference.size != len(database):
            text = f"it has {len(database)} bytes, but {reference.size} are registered"
            self._find("catalog", shown(reference.path), text)
        catalog, report = check_catalog(connect_bytes(database), reference)
        self.verdict.findings += report.findings
        for use in report.uses:
            known = self._uses.setdefault((use.hash, use.suffix), use)
            if (known.size, known.compression) != (use.size, use.compression):
                self._missing(use, f"{shown(known.path)} says {known.size} bytes, another file {use.size}")
        report.uses.clear()
        return catalog, report

    def _check_children(self, report: CatalogReport, catalog: Catalog) -> None:
        """Add up what lies below one catalog, and compare both sides of each mount point."""
        for nested in report.nested:
            child = None if nested.is_bind else self._seen.get((nested.hash, nested.path))
            if child is None:
                continue
            for name, count in child.total.items():
                report.subtree[name] += count
            above = report.mountpoints.get(nested.path)
            if above is not None and child.root is not None:
                self.verdict.findings += check_transition(above, child.root, nested.path)
            counts = {one.shown_linkcounts.get(nested.path) for one in (report, child)}
            if len(counts) > 1:
                text = "the mount point and the root of its catalog show different link counts"
                self._find("transition", shown(nested.path), text)
        self.verdict.findings += check_counters(report, catalog)

    def _check_head(self, manifest: Manifest, catalog: Catalog) -> None:
        if catalog.revision != manifest.revision:
            text = f"the manifest says revision {manifest.revision}, the root catalog {catalog.revision}"
            self._find("manifest", MANIFEST, text)
        if manifest.published_unix_s < catalog.last_modified_unix_s:
            self._find("manifest", MANIFEST, "its time is before the root catalog's: clients would ignore it")

    def _check_objects(self) -> None:
        """Read the objects of files in parallel; what is not in the sample must at least be there."""
        uses = list(self._uses.values())
        self.verdict.objects += len(uses)
        chosen = random.sample(uses, min(len(uses), round(len(uses) * self._options.sample)))
        names = {(use.hash, use.suffix) for use in chosen}
        for use in uses:
            if (use.hash, use.suffix) not in names and not self._store.has(use.hash, use.suffix):
                self._missing(use, "it is not there")
        batches = _batches(chosen)
        done = 0
        with ThreadPoolExecutor(self._options.threads, thread_name_prefix="check") as pool:
            while group := list(islice(batches, self._options.threads * 2)):
                for batch, results in zip(group, pool.map(self._verify_all, group), strict=True):
                    for use, (stored_bytes, problem) in zip(batch, results, strict=True):
                        self.verdict.objects_read += 1
                        self.verdict.bytes_read += stored_bytes
                        if problem:
                            self._missing(use, problem)
                    done += len(batch)
                    self._options.report(done, len(chosen))

    def _missing(self, use: ObjectUse, problem: str) -> None:
        self._find("object", f"{use.hash}{use.suffix.value}", f"{problem} (needed by {shown(use.path)})")

    def _verify_all(self, uses: Sequence[ObjectUse]) -> list[tuple[int, str]]:
        return [self._verify(use) for use in uses]

    def _verify(self, use: ObjectUse) -> tuple[int, str]:
        """Stored bytes read, and what is wrong with the object."""
        try:
            return verify_object(self._store, use), ""
        except (FsError, OSError) as error:
            return 0, str(error)


def _batches(uses: Sequence[ObjectUse]) -> Iterator[Sequence[ObjectUse]]:
    for start in range(0, len(uses), _BATCH):
        yield uses[start : start + _BATCH]


def verify_object(store: ReadStore, use: ObjectUse) -> int:
    """Read an object piece by piece and compare hash and plain size; gives the number of its stored bytes.

    Raises:
        AbsentError: it is not there.
        CorruptError: it is not what it should be.
    """
    hasher = use.hash.algorithm.hasher()
    shown_name = f"{use.hash}{use.suffix.value}"
    inflater = Inflater(shown_name, piece_bytes=_PIECE_BYTES) if use.compression is Compression.ZLIB else None
    size = stored_bytes = 0
    with store.open(use.hash, use.suffix) as stream:
        while piece := stream.read(_PIECE_BYTES):
            hasher.update(piece)
            stored_bytes += len(piece)
            for part in (piece,) if inflater is None else inflater.feed(piece):
                size += len(part)
                if size > use.size:  # whatever a stream blows itself up to
                    raise CorruptError(shown_name, f"it holds {size} bytes or more instead of {use.size}")
    if Hash.finish(hasher, use.hash.algorithm) != use.hash:
        raise CorruptError(shown_name)
    if inflater is not None:
        inflater.finish()
    if size != use.size:
        raise CorruptError(shown_name, f"it holds {size} bytes instead of {use.size}")
    return stored_bytes
