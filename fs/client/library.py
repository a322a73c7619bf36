"""A repository without a mount, for Python programs: verified, cached, read-only.

```python
from fs.client.library import open_repository

with open_repository("http://origin/cvmfs/repo.example.org", "repo.example.org", "repo.example.org.pub") as repository:
    for status in repository.ls("/software"):
        print(status.path, status.size)
    with repository.open("/software/readme.txt") as stream:
        print(stream.read())
```

Everything is as with a mount: the trust chain, the cache, retries, proxies, mirrors. Paths begin at the repository's
root; the leading slash may be left out. They are ``str``, whose bytes that are not UTF-8 are lone surrogates
(``os.fsdecode``), or ``bytes``. What does not exist or is of another kind raises the ``OSError`` that ``os`` would
raise; what cannot be had or believed raises an ``fs.errors.FsError``. All of it may be used from several threads. An
open repository does not survive ``os.fork``.
"""

import errno
import io
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from anyio.from_thread import BlockingPortal, start_blocking_portal

from fs.client.bundles import Bundles
from fs.client.cache import ObjectCache
from fs.client.catalogs import Catalogs, Found
from fs.client.chain import Anchor, read_public_keys
from fs.client.contents import read_content
from fs.client.inodes import directory_key, file_key
from fs.client.objects import Objects
from fs.client.prefetch import Prefetcher, Progress
from fs.client.profile import Read
from fs.client.repository import Placed, Repository, Revision, Selection
from fs.errors import AbsentError
from fs.format.entries import Flag
from fs.format.history import Tag
from fs.format.symlinks import decode_literal, expand_target
from fs.format.trust import load_public_keys
from fs.store.limits import HttpLimits
from fs.store.network import open_network
from fs.store.proxies import ProxyGroups

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

AnyPath = str | bytes | os.PathLike[str]

_LINKS = 40  # symbolic links along a path, as the kernel has it
_BUFFER_BYTES = 1 << 20
_QUOTA_BYTES = 4_000_000_000
_INODE_SHIFT = 12


@dataclass(frozen=True, slots=True)
class Status:
    """What is known about a file, directory or anything else of a repository."""

    path: str
    mode: int  # with the bits of the type
    uid: int
    gid: int
    size: int
    mtime_ns: int
    nlink: int
    rdev: int
    ino: int  # the same for the names of one file
    target: str | None  # of a symbolic link
    xattrs: Mapping[bytes, bytes]

    @property
    def name(self) -> str:
        """The last component of the path."""
        return self.path.rpartition("/")[2]

    @property
    def is_directory(self) -> bool:
        """True for directories."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        """True for regular files."""
        return stat.S_ISREG(self.mode)

    @property
    def is_symlink(self) -> bool:
        """True for symbolic links."""
        return stat.S_ISLNK(self.mode)


class RepositoryFile(io.RawIOBase):
    """A regular file of a repository, unbuffered; its content never changes."""

    def __init__(self, portal: BlockingPortal, repository: Repository, placed: Placed) -> None:
        super().__init__()
        self._portal = portal
        self._repository = repository
        self._placed = placed
        self._position = 0

    @property
    def size(self) -> int:
        """In bytes."""
        return self._placed.content.size

    def readable(self) -> bool:
        """See io.RawIOBase."""
        return True

    def seekable(self) -> bool:
        """See io.RawIOBase."""
        return True

    def tell(self) -> int:
        """See io.RawIOBase."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """See io.RawIOBase."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._position = start + offset
        return self._position

    def pread(self, size: int, offset: int) -> bytes:
        """At most *size* bytes from *offset* on; fewer at the end only. Raises FsError."""
        if self.closed:
            raise ValueError("the file is closed")
        return self._portal.call(read_content, self._repository.objects, self._placed, offset, size)

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """See io.RawIOBase. Raises FsError too."""
        view = memoryview(buffer).cast("B")
        data = self.pread(len(view), self._position)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)


class OpenRepository:
    """One revision of a repository, open for reading; made by ``open_repository``.

    Args:
        portal: to the loop of the repository.
        repository: open.
        variables: what ``$(NAME)`` in symbolic links stands for; None shows them as their publisher meant them.
    """

    def __init__(self, portal: BlockingPortal, repository: Repository, variables: Mapping[bytes, bytes] | None) -> None:
        self._portal = portal
        self._repository = repository
        self._variables = variables

    @property
    def name(self) -> str:
        """The repository's name."""
        return self._repository.name

    @property
    def revision(self) -> Revision:
        """Which revision is read."""
        return self._repository.revision

    def refresh(self) -> bool:
        """Go over to the newest revision; False if it is read already or another one was asked for. Raises FsError."""
        return self._portal.call(self._repository.refresh)

    def stat(self, path: AnyPath = "/", *, follow_symlinks: bool = True) -> Status:
        """What is at *path*. Raises FileNotFoundError, NotADirectoryError, OSError (too many links), FsError."""
        return self._portal.call(self._stat, path, follow_symlinks)

    def exists(self, path: AnyPath) -> bool:
        """True if *path* leads to something. Raises FsError."""
        try:
            self.stat(path)
        except OSError:
            return False
        return True

    def ls(self, path: AnyPath = "/") -> list[Status]:
        """What the directory at *path* holds, by name. Raises as ``stat``."""
        return self._portal.call(self._list, path)

    def walk(self, path: AnyPath = "/") -> Iterator[tuple[str, list[Status], list[Status]]]:
        """Directories from *path* downwards, each with the directories and with everything else in it.

        Links are not followed. Directories may be removed from the list to leave them out. Raises as ``stat``.
        """
        top = self.stat(path).path
        waiting = [top]
        while waiting:
            here = waiting.pop()
            found = self.ls(here)
            folders = [one for one in found if one.is_directory]
            yield here or "/", folders, [one for one in found if not one.is_directory]
            waiting += [one.path for one in reversed(folders)]

    def readlink(self, path: AnyPath) -> str:
        """The target of the symbolic link at *path*. Raises OSError with EINVAL for others, and as ``stat``."""
        target = self.stat(path, follow_symlinks=False).target
        if target is None:
            raise _os_error(errno.EINVAL, path)
        return target

    def open(self, path: AnyPath) -> io.BufferedReader:
        """The regular file at *path*, for reading bytes. Raises IsADirectoryError, and as ``stat``."""
        return io.BufferedReader(self.open_raw(path), _BUFFER_BYTES)

    def open_raw(self, path: AnyPath) -> RepositoryFile:
        """As ``open``, without a buffer."""
        return RepositoryFile(self._portal, self._repository, self._portal.call(self._placed, path))

    def read(self, path: AnyPath, size: int = -1, offset: int = 0) -> bytes:
        """The bytes of a file: all from *offset* on, or at most *size*. Raises as ``open``."""
        with self.open_raw(path) as file:
            return file.pread(file.size if size < 0 else size, offset)

    def tags(self) -> list[Tag]:
        """The named revisions, newest first; none if another revision was asked for by its hash. Raises FsError."""
        return self._portal.call(self._repository.tags)

    def prefetch(self, paths: Sequence[AnyPath | Read]) -> Progress:
        """Fetch files, and directories with everything below, into the cache, many at once. Raises FsError."""
        progress = Progress()
        reads = [one if isinstance(one, Read) else Read(b"".join(b"/" + name for name in _names(one))) for one in paths]
        self._portal.call(Prefetcher(self._repository).fetch, reads, progress)
        return progress

    @contextmanager
    def prefetching(self, paths: Sequence[AnyPath]) -> Iterator[None]:
        """Do what ``prefetch`` does while the block runs; what is not there at its end is given up."""
        reads = [Read(b"".join(b"/" + name for name in _names(path))) for path in paths]
        fetching = self._portal.start_task_soon(Prefetcher(self._repository).fetch, reads, Progress())
        try:
            yield
        finally:
            fetching.cancel()

    # in the repository's loop

    async def _stat(self, path: AnyPath, follow: bool) -> Status:  # noqa: FBT001  # called through the portal
        return await self._status(await self._find(path, follow=follow))

    async def _list(self, path: AnyPath) -> list[Status]:
        found = await self._find(path, follow=True)
        if not found.entry.is_directory:
            raise _os_error(errno.ENOTDIR, path)
        children = await self._repository.catalogs.listing(found.inside, found.path)
        shown = sorted((one for one in children if not one.entry.has(Flag.HIDDEN)), key=lambda one: one.entry.name)
        return [await self._status(one) for one in shown]

    async def _placed(self, path: AnyPath) -> Placed:
        found = await self._find(path, follow=True)
        if not found.entry.is_regular:
            raise _os_error(errno.EISDIR if found.entry.is_directory else errno.EINVAL, path)
        return await self._repository.content(found.home, found.path, found.entry)

    async def _status(self, found: Found) -> Status:
        entry = found.entry
        if entry.is_directory:
            key = directory_key(found.path)
        else:
            key = file_key(await self._repository.catalogs.get(found.home), found.path, entry)
        return Status(
            path=os.fsdecode(found.path),
            mode=entry.mode,
            uid=entry.uid,
            gid=entry.gid,
            size=entry.size,
            mtime_ns=entry.mtime_ns,
            nlink=entry.linkcount,
            rdev=entry.rdev,
            ino=int.from_bytes(key[:8], "little") >> _INODE_SHIFT,
            target=os.fsdecode(self._target(found)) if entry.is_symlink else None,
            xattrs=entry.xattrs,
        )

    def _target(self, found: Found) -> bytes:
        if self._variables is None:
            return decode_literal(found.entry.target)
        return expand_target(found.entry.target, self._variables)

    async def _find(self, path: AnyPath, *, follow: bool) -> Found:
        """Walk as the kernel does; the root of absolute targets is the repository's."""
        root = await self._repository.find(b"")
        if root is None:
            raise AbsentError(f"{self.name} has no root directory")
        waiting = _names(path)[::-1]
        trail = [root]
        links = 0
        while waiting:
            name = waiting.pop()
            here = trail[-1]
            if not here.entry.is_directory:
                raise _os_error(errno.ENOTDIR, path)
            if name == b"..":
                trail = trail[:-1] or [root]
                continue
            found = await self._repository.catalogs.find(here.inside, here.path + b"/" + name)
            if found is None:
                raise _os_error(errno.ENOENT, path)
            if not found.entry.is_symlink or (not waiting and not follow):
                trail.append(found)
                continue
            links += 1
            if links > _LINKS:
                raise _os_error(errno.ELOOP, path)
            target = self._target(found)
            if target.startswith(b"/"):
                trail = [root]
            waiting += _names(target)[::-1]
        return trail[-1]


def _names(path: AnyPath) -> list[bytes]:
    return [name for name in os.fsencode(path).split(b"/") if name not in (b"", b".")]


def _os_error(number: int, path: AnyPath) -> OSError:
    return OSError(number, os.strerror(number), os.fsdecode(path))


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is rarely needed."""

    selection: Selection | None = None  # another revision than the newest
    ca_directories: tuple[Path, ...] = ()  # of authorities, for whitelists that ask for them
    blacklists: tuple[Path, ...] = ()
    quota_bytes: int = _QUOTA_BYTES  # of the cache
    external_urls: tuple[str, ...] = ()
    proxies: ProxyGroups | None = None
    limits: HttpLimits | None = None
    variables: Mapping[bytes, bytes] | None = None


@contextmanager
def open_repository(
    url: str | Sequence[str],
    name: str,
    pubkey: AnyPath | Sequence[AnyPath],
    cache: AnyPath | None = None,
    *,
    options: Options | None = None,
) -> Iterator[OpenRepository]:
    """Open the repository *name* for reading.

    Args:
        url: where it is; several are mirrors of each other, best first. ``http``, ``https`` and ``file``.
        name: as its manifest says it.
        pubkey: the public key of the repository, or several: PEM files, or directories of ``*.pub``.
        cache: directory for its objects, that of mounts or one's own; by default one that is removed at the end.
        options: the rest.

    Raises:
        NotTrustedError, MalformedError: nothing that is offered can be believed.
        AbsentError, UnreachableError: it cannot be had.
        RefusedError: the cache directory cannot be used.
    """
    chosen = options or Options()
    files = [pubkey] if isinstance(pubkey, str | bytes | os.PathLike) else list(pubkey)
    pem = read_public_keys(Path(os.fsdecode(file)) for file in files)
    keys = load_public_keys(pem) if pem else ()
    urls = [url] if isinstance(url, str) else list(url)
    with ExitStack() as stack:
        directory = Path(os.fsdecode(cache or stack.enter_context(tempfile.TemporaryDirectory(prefix="unpackd-"))))
        kept = ObjectCache(directory, chosen.quota_bytes)
        kept.start()
        stack.callback(kept.close)
        portal = stack.enter_context(start_blocking_portal("trio"))
        network = stack.enter_context(
            portal.wrap_async_context_manager(open_network(limits=chosen.limits, proxies=chosen.proxies))
        )
        mirrors = network.mirrors(urls)
        external = network.mirrors(chosen.external_urls) if chosen.external_urls else None
        objects = Objects(kept, mirrors, external, bundles=Bundles(mirrors))
        stack.callback(portal.call, objects.settle)
        catalogs = Catalogs(objects)
        stack.callback(portal.call, catalogs.close)
        anchor = Anchor(name, keys, chosen.ca_directories, chosen.blacklists)
        state = directory / "mounts" / name
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        repository = Repository(anchor, mirrors, catalogs, selection=chosen.selection, state=state)
        portal.call(repository.open)
        yield OpenRepository(portal, repository, chosen.variables)
