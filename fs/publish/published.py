"""What a repository's storage has under fixed names, and what these name: manifest, whitelist, history, reflog."""

import sqlite3
from collections.abc import Sequence
from dataclasses import replace

from fs.errors import AbsentError
from fs.format.compression import deflate, inflate
from fs.format.databases import connect_bytes
from fs.format.hashes import Hash, Suffix
from fs.format.history import MAGIC_TAGS, TRUNK, TRUNK_PREVIOUS, History, Tag, create_history
from fs.format.manifest import MAX_MANIFEST_BYTES, Manifest
from fs.format.reflog import ReferenceType, add_references, create_reflog
from fs.format.signature import SignedText
from fs.format.whitelist import MAX_WHITELIST_BYTES, Whitelist
from fs.publish.signing import WHITELIST
from fs.store.base import ReadStore

MANIFEST = ".cvmfspublished"
REFLOG = ".cvmfsreflog"
MASTER_REPLICA = ".cvmfs_master_replica"

MAX_HISTORY_BYTES = 1 << 28
MAX_REFLOG_BYTES = 1 << 30


def read_manifest(store: ReadStore) -> Manifest:
    """The newest manifest in *store*. Raises AbsentError, MalformedError, NotTrustedError."""
    try:
        envelope = store.read_named(MANIFEST, limit_bytes=MAX_MANIFEST_BYTES)
    except AbsentError as error:
        raise AbsentError(f"there is no repository: {error}") from error
    return Manifest.parse(SignedText.parse(envelope).text)


def read_whitelist(store: ReadStore) -> Whitelist:
    """What the whitelist says; its signature is not looked at. Raises AbsentError, MalformedError, NotTrustedError."""
    envelope = store.read_named(WHITELIST, limit_bytes=MAX_WHITELIST_BYTES)
    return Whitelist.parse(SignedText.parse(envelope).text)


def read_history(store: ReadStore, name: Hash) -> bytes:
    """The database of the history object *name*. Raises AbsentError, CorruptError, RefusedError."""
    stored = store.get(name, Suffix.HISTORY, limit_bytes=MAX_HISTORY_BYTES)
    return inflate(stored, limit_bytes=MAX_HISTORY_BYTES, name=f"{name}H")


def read_tags(store: ReadStore, manifest: Manifest) -> list[Tag]:
    """The named tags that *manifest* knows, newest revision first."""
    if manifest.history is None:
        return []
    connection = connect_bytes(read_history(store, manifest.history))
    try:
        return History(connection).tags()
    finally:
        connection.close()


def next_history(store: ReadStore, manifest: Manifest, tags: Sequence[Tag], removed: str | None) -> bytes:
    """The history object of *manifest* with *tags* put and the tag *removed* removed, as it is stored."""
    if manifest.history is None:
        connection = sqlite3.connect(":memory:", isolation_level=None)
        create_history(connection, manifest.name)
    else:
        connection = connect_bytes(read_history(store, manifest.history))
        connection.execute("PRAGMA query_only=OFF")
    try:
        history = History(connection)
        before = history.tag(TRUNK)
        for tag in tags:
            if tag.name == TRUNK and before is not None:
                history.put(replace(before, name=TRUNK_PREVIOUS, description=MAGIC_TAGS[TRUNK_PREVIOUS]))
            history.put(tag)
        if removed is not None:
            history.remove(removed)
        if manifest.history is not None:
            history.set_previous(manifest.history)
        return deflate(connection.serialize())
    finally:
        connection.close()


def next_reflog(
    store: ReadStore, name: str, published: Sequence[tuple[ReferenceType, Hash]], now_s: int
) -> tuple[bytes | None, bytes]:
    """The reflog of repository *name* as it is, and with what is *published* now."""
    old: bytes | None = None
    try:
        old = store.read_named(REFLOG, limit_bytes=MAX_REFLOG_BYTES)
        connection = connect_bytes(old)
        connection.execute("PRAGMA query_only=OFF")
    except AbsentError:
        connection = sqlite3.connect(":memory:", isolation_level=None)
        create_reflog(connection, name)
    try:
        add_references(connection, published, now_s)
        return old, connection.serialize()
    finally:
        connection.close()
