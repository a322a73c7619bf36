"""``/.cvmfs_snapshots/<tag>``: all named revisions below one mount point, each in a directory of its tag's name.

The directory is not in the repository and not listed; whoever knows its name finds it, as with the snapshots of some
disk file systems. It is a catalog of ours in memory, made from the tag database when somebody asks for it, in which
every tag is a bind mount point; so what is below is read as any older revision is. A slash in a tag becomes ``%2F``.
"""

import sqlite3
import stat
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence

from fs.format.catalog import Catalog
from fs.format.catalog_rows import INSERT_ENTRY, SCHEMA, SCHEMA_REVISION, SCHEMA_VERSION, entry_row
from fs.format.databases import connect_bytes
from fs.format.entries import DIRECTORY_SIZE, Entry, Flag, is_name
from fs.format.hashes import Hash
from fs.format.history import Tag

FOLDER = b"/.cvmfs_snapshots"
_MODE = stat.S_IFDIR | 0o555
_NS = 1_000_000_000
_KEPT = 4  # the newest, and those that are in use while a revision changes

Tags = Callable[[], Awaitable[Sequence[Tag]]]
Source = Callable[[], Hash | None]


def is_inside(path: bytes) -> bool:
    """True for the directory of snapshots and whatever is below it."""
    return path.startswith(FOLDER) and path[len(FOLDER) : len(FOLDER) + 1] in (b"", b"/")


class Snapshots:
    """Makes the catalog of the directory.

    Args:
        source: the tag database of the revision that is shown, None if there is none.
        tags: what it holds.
    """

    def __init__(self, source: Source, tags: Tags) -> None:
        self._source = source
        self._tags = tags
        self._made: OrderedDict[Hash, bytes] = OrderedDict()

    def name_now(self) -> Hash | None:
        """The name of the catalog, which can be opened if it ``is_made``; None if there are no tags."""
        history = self._source()
        return None if history is None else Hash.of(FOLDER + str(history).encode())

    @property
    def is_made(self) -> bool:
        """True if there is nothing to do before the catalog can be opened."""
        name = self.name_now()
        return name is None or name in self._made

    async def make(self) -> None:
        """Make the catalog of the revision that is shown. Raises FsError."""
        name = self.name_now()
        if name is not None and name not in self._made:
            self._made[name] = _database(await self._tags())
            if len(self._made) > _KEPT:
                self._made.popitem(last=False)

    def open(self, name: Hash) -> Catalog | None:
        """The catalog called *name*, or None if it is not one of ours."""
        database = self._made.get(name)
        return None if database is None else Catalog(connect_bytes(database), FOLDER)


def _database(tags: Sequence[Tag]) -> bytes:
    named = {tag.name.replace("/", "%2F").encode(): tag for tag in tags}
    shown = {name: tag for name, tag in named.items() if is_name(name)}
    newest = max((tag.published_unix_s for tag in shown.values()), default=0)
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        connection.executescript(SCHEMA)
        properties = {"schema": SCHEMA_VERSION, "schema_revision": SCHEMA_REVISION, "root_prefix": FOLDER.decode()}
        connection.executemany("INSERT INTO properties VALUES (?, ?)", list(properties.items()))
        top = _directory(FOLDER[1:], newest, Flag.NESTED_ROOT, links=2 + len(shown))
        connection.execute(INSERT_ENTRY, entry_row(FOLDER, top))
        for name, tag in shown.items():
            path = FOLDER + b"/" + name
            entry = _directory(name, tag.published_unix_s, Flag.BIND_MOUNTPOINT)
            connection.execute(INSERT_ENTRY, entry_row(path, entry))
            bind = (path.decode("utf-8", "surrogateescape"), str(tag.root_catalog), tag.size)
            connection.execute("INSERT INTO bind_mountpoints VALUES (?, ?, ?)", bind)
        return connection.serialize()
    finally:
        connection.close()


def _directory(name: bytes, mtime_s: int, flag: Flag, *, links: int = 2) -> Entry:
    return Entry(
        name=name,
        mode=_MODE,
        uid=0,
        gid=0,
        size=DIRECTORY_SIZE,
        mtime_ns=mtime_s * _NS,
        linkcount=links,
        flags=Flag.DIRECTORY | flag,
    )
