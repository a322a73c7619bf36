"""A mount through pyfuse3: requests of the kernel become calls of Operations, answers become its structures.

``open`` and ``opendir`` return the inode as handle: it means the same in every life of the daemon. The kernel may keep
pages, because content never changes under an inode. Writing is refused by the kernel itself: the mount is read-only.
"""

import errno
import functools
import os
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3
import structlog

from fs.client.errnos import FileError, errno_of
from fs.client.frontend import LONGEST_NAME, Kept, count_fault, describe
from fs.client.inodes import directory_key
from fs.client.listings import Listing, Listings
from fs.client.magic import MagicAttributes, MountFacts
from fs.client.operations import BLOCK_BYTES, Attributes, Operations
from fs.client.wire_journal import Journal
from fs.errors import FsError

_log = structlog.get_logger()
P = ParamSpec("P")
T = TypeVar("T")


def _answering(
    handler: Callable[Concatenate["Pyfuse3Frontend", P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["Pyfuse3Frontend", P], Coroutine[Any, Any, T]]:
    """Turn the errors of a handler into the kernel's, count and log those that are faults."""

    @functools.wraps(handler)
    async def answer(self: "Pyfuse3Frontend", /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            if args and isinstance(args[0], int):
                await self.recall(args[0])
            answered = await handler(self, *args, **kwargs)
            self.keep_news()
            return answered  # noqa: TRY300  # the end of the only good way
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

    def __init__(self, operations: Operations, facts: MountFacts, kept: Kept, journal: Journal | None = None) -> None:
        super().__init__()
        self._operations = operations
        self._journal = journal
        self._facts = facts
        self._kept = kept
        self._magic = MagicAttributes(operations, facts)
        self._listings = Listings(operations)

    @property
    def operations(self) -> Operations:
        """What answers."""
        return self._operations

    async def recall(self, inode: int) -> None:
        """Find out what *inode* is, if the kernel knows it from an earlier daemon. Raises FsError, FileError."""
        if self._operations.inodes.dormant(inode) is not None:
            await self._operations.recall(inode)

    def keep_news(self) -> None:
        """Write down what the kernel is told, before it is."""
        if self._journal is not None and self._journal.has_news:
            self._journal.flush()

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
        """See pyfuse3.Operations; the handle is the inode."""
        await self._operations.directory(inode)
        self._facts.opened_directories += 1
        return inode

    @_answering
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """See pyfuse3.Operations; attributes come with the names."""
        await self._listings.read(fh, lambda listing: self._reply(listing, start_id, token))

    def _reply(self, listing: Listing, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        for listed in listing.since(start_id):
            inode = self._operations.inodes.number(listed.key or directory_key(listed.found.path))
            answer = self._attributes(self._operations.describe(inode, listed.found))
            if not pyfuse3.readdir_reply(token, listed.name, answer, listed.position):
                return
            if listed.key:  # the kernel does not count dots
                self._operations.remember(listed.key, listed.found)

    async def releasedir(self, fh: int) -> None:
        """See pyfuse3.Operations: others may read the same listing; the ones used last are kept."""

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
