"""A mount over our own reading of the kernel's messages: requests become calls of Operations, their results answers.

Files and directories are opened without a message: the kernel keeps pages and listings under the inode, whose content
never changes (a directory's listing is revoked when it does). So nothing here has a handle, and a listing goes on from
an offset alone (see listings).
"""

import errno
from collections.abc import Awaitable, Callable

import structlog

from fs.client.catalogs import NeedsCatalog
from fs.client.errnos import FileError, errno_of
from fs.client.frontend import Kept, count_fault, describe
from fs.client.inodes import directory_key
from fs.client.listings import Listing, Listings
from fs.client.magic import MagicAttributes, MountFacts
from fs.client.operations import Attributes, Operations
from fs.client.wire_journal import Journal
from fs.client.wire_messages import (
    READ_LIMIT_BYTES,
    MessageError,
    Operation,
    Request,
    absent_answer,
    attributes_answer,
    directory_entry,
    entry_answer,
    full_directory_entry,
    init_answer,
    joined_names,
    parse_forget,
    parse_forgets,
    parse_getxattr,
    parse_init,
    parse_listxattr,
    parse_name,
    parse_read,
    statfs_answer,
    xattr_size_answer,
)
from fs.errors import FsError

_log = structlog.get_logger()
_Handler = Callable[[int, bytes], Awaitable[bytes]]
_Quick = Callable[[int, bytes], bytes | None]

_XATTR_LIMIT_BYTES = 65536

_READ_ONLY = frozenset({4, 6, 8, 9, 10, 11, 12, 13, 16, 21, 24, 35, 43, 45, 47, 51})
"""SETATTR, SYMLINK, MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK, WRITE, SETXATTR, REMOVEXATTR, CREATE, FALLOCATE,
RENAME2, COPY_FILE_RANGE, TMPFILE: the kernel refuses them itself, because the mount is read-only."""


class WireFrontend:
    """Answers requests; knows nothing about where they come from."""

    def __init__(self, operations: Operations, facts: MountFacts, kept: Kept, journal: Journal | None = None) -> None:
        self.operations = operations
        self._journal = journal
        self._facts = facts
        self._kept = kept
        self._magic = MagicAttributes(operations, facts)
        self._listings = Listings(operations)
        self._quick: dict[int, _Quick] = {
            Operation.LOOKUP: self._lookup_now,
            Operation.GETATTR: self._getattr_now,
            Operation.READ: self._read_now,
            Operation.READDIR: self._readdir_now,
            Operation.READDIRPLUS: self._readdirplus_now,
        }
        self._handlers: dict[int, _Handler] = {
            Operation.LOOKUP: self._lookup,
            Operation.GETATTR: self._getattr,
            Operation.READLINK: self._readlink,
            Operation.READ: self._read,
            Operation.STATFS: self._statfs,
            Operation.GETXATTR: self._getxattr,
            Operation.LISTXATTR: self._listxattr,
            Operation.INIT: self._init,
            Operation.READDIR: self._readdir,
            Operation.READDIRPLUS: self._readdirplus,
            Operation.RELEASE: _nothing,
            Operation.RELEASEDIR: _nothing,
            Operation.DESTROY: _nothing,
        }

    def forget(self, request: Request) -> bool:
        """True if *request* is one of those without an answer; it is done then. Raises MessageError."""
        match request.operation:
            case Operation.FORGET:
                self.operations.forget(request.inode, parse_forget(request.body))
            case Operation.BATCH_FORGET:
                for inode, lookups in parse_forgets(request.body):
                    self.operations.forget(inode, lookups)
            case _:
                return False
        return True

    def refusal(self, request: Request) -> int:
        """The errno of what is answered without looking; 0 for the others.

        ENOSYS is not asked again by the kernel: opening, closing and flushing need no message from then on, and what
        waits cannot be interrupted (every wait has an end of its own).
        """
        if request.operation in self._handlers:
            return 0
        if request.operation == Operation.IOCTL:
            return errno.ENOTTY
        return errno.EROFS if request.operation in _READ_ONLY else errno.ENOSYS

    def answer_now(self, request: Request) -> bytes | None:
        """Body of the answer if it is a good one that needs no waiting; else None, and ``answer`` has to be called."""
        quick = self._quick.get(request.operation)
        if quick is None or self.operations.inodes.dormant(request.inode) is not None:
            return None
        try:
            body = quick(request.inode, request.body)
        except NeedsCatalog:
            return None
        except Exception:  # noqa: BLE001  # whatever it is happens again in ``answer``, which knows what to do
            return None
        if body is not None:
            self._keep_news()
        return body

    def _keep_news(self) -> None:
        if self._journal is not None and self._journal.has_news:
            self._journal.flush()

    async def answer(self, request: Request) -> tuple[int, bytes]:
        """Errno and body of the answer."""
        try:
            if self.operations.inodes.dormant(request.inode) is not None:
                await self.operations.recall(request.inode)
            body = await self._handlers[request.operation](request.inode, request.body)
            self._keep_news()
            return 0, body  # noqa: TRY300  # the end of the only good way
        except FileError as error:
            return error.code, b""
        except MessageError as error:
            _log.error("request_malformed", operation=request.operation, reason=str(error))
            return errno.EPROTO, b""
        except FsError as error:
            count_fault(self._facts)
            _log.error("request_failed", request=_name(request), of=self._describe(request), reason=str(error))
            return errno_of(error), b""
        except Exception:  # noqa: BLE001  # the edge: one broken request must not end the mount
            count_fault(self._facts)
            _log.exception("request_broken", request=_name(request), of=self._describe(request))
            return errno.EIO, b""

    def _describe(self, request: Request) -> str:
        name = request.body.rstrip(b"\0") if request.operation == Operation.LOOKUP else b""
        return describe(self.operations.inodes, (request.inode, name))

    async def _init(self, _: int, body: bytes) -> bytes:
        return init_answer(parse_init(body))

    async def _lookup(self, parent: int, body: bytes) -> bytes:
        return self._entry(await self.operations.lookup(parent, parse_name(body)))

    def _lookup_now(self, parent: int, body: bytes) -> bytes:
        return self._entry(self.operations.lookup_now(parent, parse_name(body)))

    def _entry(self, attributes: Attributes | None) -> bytes:
        if attributes is None:
            return absent_answer(self._kept.negatives_s)
        return entry_answer(attributes, self._kept.entries_s)

    async def _getattr(self, inode: int, _: bytes) -> bytes:
        return attributes_answer(await self.operations.attributes(inode), self._kept.entries_s)

    def _getattr_now(self, inode: int, _: bytes) -> bytes:
        return attributes_answer(self.operations.attributes_now(inode), self._kept.entries_s)

    async def _readlink(self, inode: int, _: bytes) -> bytes:
        return self.operations.readlink(inode)

    async def _read(self, inode: int, body: bytes) -> bytes:
        offset, size = parse_read(body)
        if not self.operations.found(inode).entry.is_regular:
            raise FileError(errno.EINVAL)
        if not offset:
            self._facts.opened_files += 1  # the nearest to an opening that is seen here
        return await self.operations.read(inode, offset, size)

    def _read_now(self, inode: int, body: bytes) -> bytes | None:
        offset, size = parse_read(body)
        if not self.operations.found(inode).entry.is_regular:
            return None
        data = self.operations.read_now(inode, offset, size)
        if data is not None and not offset:
            self._facts.opened_files += 1
        return data

    async def _statfs(self, _: int, __: bytes) -> bytes:
        return statfs_answer(await self.operations.statistics())

    async def _getxattr(self, inode: int, body: bytes) -> bytes:
        room, name = parse_getxattr(body)
        magic = await self._magic.read(name, inode)
        value = self.operations.stored_attributes(inode).get(name) if magic is None else magic
        if value is None:
            raise FileError(errno.ENODATA)
        return _fitting(value, room)

    async def _listxattr(self, inode: int, body: bytes) -> bytes:
        return _fitting(joined_names(self.operations.stored_attributes(inode)), parse_listxattr(body))

    async def _readdir(self, inode: int, body: bytes) -> bytes:
        return await self._list(inode, body, is_full=False)

    async def _readdirplus(self, inode: int, body: bytes) -> bytes:
        return await self._list(inode, body, is_full=True)

    def _readdir_now(self, inode: int, body: bytes) -> bytes | None:
        kept = self._listings.kept(inode)
        return None if kept is None else self._listed_part(inode, kept, body, is_full=False)

    def _readdirplus_now(self, inode: int, body: bytes) -> bytes | None:
        kept = self._listings.kept(inode)
        return None if kept is None else self._listed_part(inode, kept, body, is_full=True)

    async def _list(self, inode: int, body: bytes, *, is_full: bool) -> bytes:
        return await self._listings.read(
            inode, lambda listing: self._listed_part(inode, listing, body, is_full=is_full)
        )

    def _listed_part(self, inode: int, listing: Listing, body: bytes, *, is_full: bool) -> bytes:
        offset, room = parse_read(body)
        if not offset:
            self._facts.opened_directories += 1
        records: list[bytes] = []
        for listed in listing.since(offset):
            number = self.operations.inodes.number(listed.key or directory_key(listed.found.path))
            record = directory_entry(number, listed.position, listed.found.entry.mode, listed.name)
            if is_full:
                entry = None
                if listed.key:
                    entry = entry_answer(self.operations.describe(number, listed.found), self._kept.entries_s)
                record = full_directory_entry(entry, record)
            room -= len(record)
            if room < 0:
                break
            if is_full and listed.key:
                self.operations.remember(listed.key, listed.found)
            records.append(record)
        if listing.index(offset) == len(listing):
            self._listings.drop(inode)  # the end was told
        return b"".join(records)


async def _nothing(_: int, __: bytes) -> bytes:
    return b""


def _fitting(value: bytes, room: int) -> bytes:
    """*value*, or its length if no room was given. Raises FileError."""
    if not room:
        return xattr_size_answer(len(value))
    if len(value) > min(room, _XATTR_LIMIT_BYTES, READ_LIMIT_BYTES):
        raise FileError(errno.ERANGE)
    return value


def _name(request: Request) -> str:
    return Operation(request.operation).name.lower()
