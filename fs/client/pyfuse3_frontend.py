"""A mount through pyfuse3: requests of the kernel become calls of Operations, answers become its structures.

``open`` returns the inode as file handle and lets the kernel keep its pages, because content never changes under an
inode. Writing is refused by the kernel itself: the mount is read-only.
"""

import errno
import functools
import itertools
import os
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3
import structlog

from fs.client.catalogs import Found
from fs.client.errnos import FileError, errno_of
from fs.client.frontend import LONGEST_NAME, Kept, count_fault, describe
from fs.client.inodes import Inode, directory_key
from fs.client.magic import MagicAttributes, MountFacts
from fs.client.operations import BLOCK_BYTES, Attributes, Operations
from fs.errors import FsError
from fs.format.paths import parent_path

_log = structlog.get_logger()
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Listing:
    """An open directory."""

    generation: int  # of the view when the listing was begun
    entries: list[tuple[bytes, Found]]


def _answering(
    handler: Callable[Concatenate["Pyfuse3Frontend", P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["Pyfuse3Frontend", P], Coroutine[Any, Any, T]]:
    """Turn the errors of a handler into the kernel's, count and log those that are faults."""

    @functools.wraps(handler)
    async def answer(self: "Pyfuse3Frontend", /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await handler(self, *args, **kwargs)
        except FileError as error:
            raise pyfuse3.FUSEError(error.code) from None
        except FsError as error:
            self.log_fault("request_failed", handler.__name__, args, str(error))
            raise pyfuse3.FUSEError(errno_of(error)) from error
        except Exception as error:
            self.log_fault("request_broken", handler.__name__, args, None)
            raise pyfuse3.FUSEError(errno.EIO) from error

    return answer


class Pyfuse3Frontend(pyfuse3.Operations):  # type: ignore[misc]  # the module is not followed
    """The handlers."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, operations: Operations, facts: MountFacts, kept: Kept) -> None:
        super().__init__()
        self._operations = operations
        self._facts = facts
        self._kept = kept
        self._magic = MagicAttributes(operations, facts)
        self._listings: dict[int, _Listing] = {}
        self._handles = itertools.count(1)

    def log_fault(self, event: str, request: str, arguments: Sequence[object], reason: str | None) -> None:
        """An EIO is about to be returned; without a *reason* the exception is logged that is being handled."""
        count_fault(self._facts)
        of = describe(self._operations.inodes, arguments)
        if reason is None:
            _log.exception(event, request=request, of=of)
        else:
            _log.error(event, request=request, of=of, reason=reason)

    def _attributes(self, attributes: Attributes) -> pyfuse3.EntryAttributes:
        answer = pyfuse3.EntryAttributes()
        answer.st_ino = attributes.inode
        answer.st_mode = attributes.mode
        answer.st_nlink = attributes.nlink
        answer.st_uid = attributes.uid
        answer.st_gid = attributes.gid
        answer.st_rdev = attributes.rdev
        answer.st_size = attributes.size
        answer.st_blksize = BLOCK_BYTES
        answer.st_blocks = attributes.blocks
        answer.st_atime_ns = answer.st_ctime_ns = answer.st_mtime_ns = attributes.mtime_ns
        answer.entry_timeout = answer.attr_timeout = self._kept.entries_s
        return answer

    @_answering
    async def lookup(self, parent_inode: int, name: bytes, _ctx: object) -> pyfuse3.EntryAttributes:
        """See pyfuse3.Operations."""
        attributes = await self._operations.lookup(parent_inode, name)
        if attributes is not None:
            return self._attributes(attributes)
        absent = pyfuse3.EntryAttributes()
        absent.st_ino = 0
        absent.entry_timeout = self._kept.negatives_s
        return absent

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """See pyfuse3.Operations."""
        for inode, lookups in inode_list:
            self._operations.forget(inode, lookups)

    @_answering
    async def getattr(self, inode: int, _ctx: object) -> pyfuse3.EntryAttributes:
        """See pyfuse3.Operations."""
        return self._attributes(await self._operations.attributes(inode))

    @_answering
    async def readlink(self, inode: int, _ctx: object) -> bytes:
        """See pyfuse3.Operations."""
        return self._operations.readlink(inode)

    @_answering
    async def open(self, inode: int, flags: int, _ctx: object) -> pyfuse3.FileInfo:
        """See pyfuse3.Operations."""
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise FileError(errno.EROFS)
        is_direct = await self._operations.open(inode)
        self._facts.opened_files += 1
        return pyfuse3.FileInfo(fh=inode, direct_io=is_direct, keep_cache=not is_direct)

    @_answering
    async def read(self, fh: int, off: int, size: int) -> bytes:
        """See pyfuse3.Operations; the handle is the inode."""
        return await self._operations.read(fh, off, size)

    async def flush(self, _fh: int) -> None:
        """See pyfuse3.Operations: there is nothing to flush, and the kernel does not ask again."""
        raise pyfuse3.FUSEError(errno.ENOSYS)

    async def release(self, fh: int) -> None:
        """See pyfuse3.Operations."""

    @_answering
    async def opendir(self, inode: int, _ctx: object) -> int:
        """See pyfuse3.Operations; the listing is read once, so that it is of one revision."""
        generation = self._operations.generation
        found = await self._operations.listing(inode)
        handle = next(self._handles)
        node = await self._operations.directory(inode)
        parent = Found(parent_path(node.found.path), node.found.entry, node.found.home, node.found.home)
        entries = [(b".", node.found), (b"..", parent), *((one.entry.name, one) for one in found)]
        self._listings[handle] = _Listing(generation, entries)
        self._facts.opened_directories += 1
        return handle

    @_answering
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """See pyfuse3.Operations; attributes come with the names."""
        listing = self._listings[fh]
        for position in range(start_id, len(listing.entries)):
            name, found = listing.entries[position]
            if position < 2:  # noqa: PLR2004  # . and .., which the kernel does not count
                key, inode = b"", self._operations.inodes.number(directory_key(found.path))
            else:
                key, inode = await self._operations.number(found)
            answer = self._attributes(self._operations.describe(Inode(inode), found))
            if listing.generation != self._operations.generation:
                answer.entry_timeout = answer.attr_timeout = 0  # a newer revision was revoked without this answer
            if not pyfuse3.readdir_reply(token, name, answer, position + 1):
                return
            if key:
                self._operations.remember(key, found)

    async def releasedir(self, fh: int) -> None:
        """See pyfuse3.Operations."""
        self._listings.pop(fh, None)

    @_answering
    async def getxattr(self, inode: int, name: bytes, _ctx: object) -> bytes:
        """See pyfuse3.Operations."""
        magic = await self._magic.read(name, inode)
        value = self._operations.stored_attributes(inode).get(name) if magic is None else magic
        if value is None:
            raise FileError(errno.ENODATA)
        return value

    @_answering
    async def listxattr(self, inode: int, _ctx: object) -> list[bytes]:
        """See pyfuse3.Operations."""
        return list(self._operations.stored_attributes(inode))

    @_answering
    async def statfs(self, _ctx: object) -> pyfuse3.StatvfsData:
        """See pyfuse3.Operations."""
        numbers = await self._operations.statistics()
        answer = pyfuse3.StatvfsData()
        answer.f_bsize = answer.f_frsize = BLOCK_BYTES
        answer.f_blocks = numbers.blocks
        answer.f_bfree = answer.f_bavail = numbers.free_blocks
        answer.f_files = numbers.files
        answer.f_ffree = answer.f_favail = numbers.free_files
        answer.f_namemax = LONGEST_NAME
        return answer
