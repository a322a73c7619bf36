"""Finding the catalog that serves a path, without I/O.

The walk is a generator: it yields the reference of each nested catalog that it needs and is sent the opened Catalog.
So synchronous and asynchronous readers share it; each drives it with its own way of fetching and caching.
"""

from collections.abc import Generator

from fs.format.catalog import Catalog
from fs.format.entries import Entry, NestedReference

Walk = Generator[NestedReference, Catalog, Catalog]


def serving_catalog(root: Catalog, path: bytes, *, entering: bool = True) -> Walk:
    """Walk from *root* to the catalog that serves *path*.

    Args:
        root: the root catalog, or any catalog at or above *path*.
        path: canonical path.
        entering: if *path* is itself a mount point, go into the nested catalog (as listings do) or stay in the
            parent (as ``stat`` does in the reference client).

    Yields:
        References of nested catalogs to be opened at their path; the opened catalog is to be sent back.
    """
    catalog = root
    while True:
        reference = catalog.nested_holding(path)
        if reference is None or (reference.path == path and not entering):
            return catalog
        catalog = yield reference


def entry_at(root: Catalog, path: bytes) -> Generator[NestedReference, Catalog, Entry | None]:
    """The entry of *path*, read from the catalog above a mount point where it is one; None if there is none."""
    catalog = yield from serving_catalog(root, path, entering=False)
    return catalog.lookup(path)
