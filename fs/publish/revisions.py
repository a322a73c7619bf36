"""Finding revisions other than the newest."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

from fs.errors import AbsentError
from fs.format.catalog import Catalog, connect_bytes
from fs.format.hashes import Hash
from fs.format.manifest import Manifest
from fs.publish.repository import read_tags
from fs.publish.view import CatalogCache, View
from fs.store.base import Store


@dataclass(frozen=True, slots=True)
class Revision:
    """One published state."""

    number: int
    root_catalog: Hash
    size: int  # bytes of the uncompressed root catalog
    published_unix_s: int


def revisions(store: Store, manifest: Manifest) -> Iterator[Revision]:
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


def find_revision(store: Store, manifest: Manifest, number: int) -> Revision:
    """Revision *number*. Raises AbsentError if it is not there, or not any more."""
    for revision in revisions(store, manifest):
        if revision.number == number:
            return revision
        if revision.number < number:
            break
    raise AbsentError(f"there is no revision {number} of {manifest.name}")


def view_of(store: Store, manifest: Manifest, tag: str | None = None) -> View:
    """A reader of the newest revision, or of the one called *tag*. Raises AbsentError if there is no such tag."""
    cache = CatalogCache(store)
    if tag is None:
        return View(store, manifest.root_catalog, revision=manifest.revision, cache=cache)
    for known in read_tags(store, manifest):
        if known.name == tag:
            return View(store, known.root_catalog, revision=known.revision, cache=cache)
    raise AbsentError(f"there is no tag {tag} in {manifest.name}")
