"""Finding revisions other than the newest."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from fs.errors import AbsentError, HashSyntaxError
from fs.format.catalog import Catalog
from fs.format.compression import inflate
from fs.format.databases import connect_bytes
from fs.format.hashes import Hash, Suffix
from fs.format.manifest import MAX_MANIFEST_BYTES, Manifest
from fs.format.signature import SignedText
from fs.format.trust import TrustedWhitelist, named_certificate
from fs.format.whitelist import MAX_WHITELIST_BYTES
from fs.publish.published import MANIFEST, read_tags
from fs.publish.signing import WHITELIST
from fs.publish.view import CatalogCache, View
from fs.store.base import ReadStore

_MAX_CERTIFICATE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Revision:
    """One published state."""

    number: int
    root_catalog: Hash
    size: int  # bytes of the uncompressed root catalog
    published_unix_s: int


def revisions(store: ReadStore, manifest: Manifest) -> Iterator[Revision]:
    """From the newest revision back, as far as root catalogs are still there."""
    cache = CatalogCache(store, limit_bytes=0)
    name: Hash | None = manifest.root_catalog
    while name is not None:
        try:
            database = cache.fetch(name)
        except AbsentError:
            return  # collected as garbage
        with closing(connect_bytes(database)) as connection:
            catalog = Catalog(connection)
            yield Revision(catalog.revision, name, len(database), catalog.last_modified_unix_s)
            name = catalog.previous


def find_revision(store: ReadStore, manifest: Manifest, number: int) -> Revision:
    """Revision *number*. Raises AbsentError if it is not there, or not any more."""
    for revision in revisions(store, manifest):
        if revision.number == number:
            return revision
        if revision.number < number:
            break
    raise AbsentError(f"there is no revision {number} of {manifest.name}")


def view_of(store: ReadStore, manifest: Manifest, tag: str | None = None) -> View:
    """A reader of the newest revision, or of the one called *tag*. Raises AbsentError if there is no such tag."""
    cache = CatalogCache(store)
    if tag is None:
        return View(store, manifest.root_catalog, revision=manifest.revision, cache=cache)
    for known in read_tags(store, manifest):
        if known.name == tag:
            return View(store, known.root_catalog, revision=known.revision, cache=cache)
    raise AbsentError(f"there is no tag {tag} in {manifest.name}")


def verified_manifest(store: ReadStore, keys: Sequence[RSAPublicKey], now: datetime) -> Manifest:
    """The newest manifest, after the whole chain from *keys* on was verified.

    The name of the repository is taken from the manifest: what is trusted is whoever has the keys.

    Raises:
        AbsentError, MalformedError, NotTrustedError: a part of the chain is missing, malformed or does not hold.
    """
    envelope = store.read_named(MANIFEST, limit_bytes=MAX_MANIFEST_BYTES)
    name = Manifest.parse(SignedText.parse(envelope).text).name
    signed = store.read_named(WHITELIST, limit_bytes=MAX_WHITELIST_BYTES)
    whitelist = TrustedWhitelist.verify(signed, name=name, keys=keys, now=now)
    stored = store.get(named_certificate(envelope), Suffix.CERTIFICATE, limit_bytes=_MAX_CERTIFICATE_BYTES)
    pem = inflate(stored, limit_bytes=_MAX_CERTIFICATE_BYTES, name="certificate")
    return whitelist.certificate(pem).manifest(envelope)


def named_revision(store: ReadStore, manifest: Manifest, name: str) -> Revision:
    """The revision that a user calls *name*: a tag, a number, or the hash of a root catalog; in that order.

    Raises:
        AbsentError: there is none, or it was collected.
    """
    for tag in read_tags(store, manifest):
        if tag.name == name:
            return _read_revision(store, tag.root_catalog)
    if name.isascii() and name.isdigit():
        return find_revision(store, manifest, int(name))
    try:
        root = Hash.parse(name)
    except HashSyntaxError as error:
        raise AbsentError(f"there is no tag {name} in {manifest.name}") from error
    return _read_revision(store, root)


def _read_revision(store: ReadStore, root: Hash) -> Revision:
    database = CatalogCache(store, limit_bytes=0).fetch(root)
    with closing(connect_bytes(database)) as connection:
        catalog = Catalog(connection)
        return Revision(catalog.revision, root, len(database), catalog.last_modified_unix_s)
