"""A session on ``/dev/fuse``: mounting by mount(2), one task that reads requests, a task for each that is answered."""

import ctypes
import errno
import os
import select
from functools import partial
from pathlib import Path

import anyio.to_thread
import structlog
import trio

from fs.client.adoption import Invalidations
from fs.client.held import Held
from fs.client.holder import DEVICE
from fs.client.mountpoints import FILESYSTEM, MountError, find_mount
from fs.client.wire_frontend import WireFrontend
from fs.client.wire_messages import (
    MESSAGE_BYTES,
    READ_LIMIT_BYTES,
    MessageError,
    Request,
    answer_header,
    error_answer,
    invalidate_entry,
    invalidate_pages,
    parse,
    resend,
)

_log = structlog.get_logger()

_READ_ONLY = 1  # MS_RDONLY; devices and set-user-id files count: root file systems of containers are made of this
_DETACH = 2  # MNT_DETACH
_REVOCATIONS_AT_ONCE = 512
_IN_A_ROW = 16  # requests that are answered before anything else gets its turn
_MOMENT_S = 0.001
_AT_ONCE = 1024  # requests that are being answered
_GONE = frozenset({errno.ENOENT, errno.ENODEV, errno.ENOTCONN, errno.ECONNABORTED})


def open_device() -> int:
    """A new connection, not mounted yet. Raises MountError."""
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise MountError(f"{DEVICE} cannot be opened: {error.strerror}") from error


class WireSession:
    """See frontend.Session. Only root can have one.

    Args:
        frontend: answers.
        name: of the repository.
        mountpoint: absolute.
        allows_other: users other than root.
        held: what comes from a holder, if there is one.
    """

    def __init__(
        self,
        frontend: WireFrontend,
        name: str,
        mountpoint: Path,
        *,
        allows_other: bool,
        held: Held | None = None,
    ) -> None:
        self._frontend = frontend
        self._name = name
        self._mountpoint = mountpoint
        self._allows_other = allows_other
        self._held = held
        self.keeps_mount = False
        self._descriptor = -1
        self._reading = trio.CancelScope()
        self._under_way = 0
        self._answered = trio.Event()
        self._device = ""

    def mount(self) -> None:
        """See Session."""
        if self._held is not None and self._held.inherited.is_resumed:
            self._descriptor = self._held.inherited.device
            self._device = self._mounted_device()
            os.write(self._descriptor, resend())
            return
        self._descriptor = self._held.inherited.device if self._held is not None else open_device()
        options = f"fd={self._descriptor},rootmode=40000,user_id=0,group_id=0,default_permissions"
        if self._allows_other:
            options += ",allow_other"
        libc = ctypes.CDLL(None, use_errno=True)
        source, where, kind = f"{FILESYSTEM}:{self._name}", os.fsencode(self._mountpoint), f"fuse.{FILESYSTEM}"
        if libc.mount(source.encode(), where, kind.encode(), _READ_ONLY, options.encode()) != 0:
            reason = os.strerror(ctypes.get_errno())
            os.close(self._descriptor)
            raise MountError(f"{self._mountpoint} could not be mounted: {reason}; only root can use --frontend wire")
        self._device = self._mounted_device()
        self._read_ahead()

    def _mounted_device(self) -> str:
        mounted = find_mount(self._mountpoint)
        return mounted.device if mounted is not None else ""

    def _read_ahead(self) -> None:
        """Let the kernel ask for as much at a time as it may; only a matter of speed."""
        try:
            setting = Path(f"/sys/class/bdi/{self._device}/read_ahead_kb")
            setting.write_text(str(READ_LIMIT_BYTES >> 10), "ascii")
        except OSError as error:
            _log.debug("read_ahead_not_set", reason=error.strerror)

    async def serve(self) -> None:
        """See Session."""
        async with trio.open_nursery() as nursery:
            with self._reading:
                in_a_row = 0
                while True:
                    try:
                        message = self._next_message()
                    except OSError as error:
                        if error.errno in _GONE:
                            break  # unmounted
                        raise
                    if not message:
                        in_a_row = 0
                        await trio.lowlevel.wait_readable(self._descriptor)
                        continue
                    self._take(message, nursery)
                    in_a_row += 1
                    if in_a_row % _IN_A_ROW == 0:
                        await trio.lowlevel.checkpoint()  # transfers and others have their turn
                    while self._under_way >= _AT_ONCE:
                        self._answered = trio.Event()
                        await self._answered.wait()

    def _next_message(self) -> bytes:
        """The next message of the kernel; empty if there is none. Raises OSError.

        Who got an answer mostly asks again at once, so it is worth waiting here for a moment: the way through the event
        loop takes longer. Only while nothing else is under way.
        """
        for is_last in (self._under_way > 0 or self._frontend.operations.repository.objects.is_fetching, True):
            try:
                return os.read(self._descriptor, MESSAGE_BYTES)
            except BlockingIOError:
                if is_last:
                    break
                select.select((self._descriptor,), (), (), _MOMENT_S)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.EINTR):  # the request was taken back
                    raise
        return b""

    def _take(self, message: bytes, nursery: trio.Nursery) -> None:
        try:
            request = parse(message)
            if self._frontend.forget(request):
                return
        except MessageError as error:
            _log.error("message_malformed", reason=str(error))
            return
        code = self._frontend.refusal(request)
        if code:
            self._write(error_answer(request.unique, code))
            return
        body = self._frontend.answer_now(request)
        if body is not None:
            self._write(answer_header(request.unique, len(body)), body)
        else:
            self._under_way += 1
            nursery.start_soon(self._answer, request)

    async def _answer(self, request: Request) -> None:
        try:
            code, body = await self._frontend.answer(request)
        finally:
            self._under_way -= 1
            self._answered.set()
        if code:
            self._write(error_answer(request.unique, code))
        else:
            self._write(answer_header(request.unique, len(body)), body)

    async def resume(self) -> None:
        """See Session."""
        operations = self._frontend.operations
        if self._held is not None and self._held.root != operations.repository.revision.root.hash:
            await self.revoke(await operations.adopt())

    def _write(self, *parts: bytes) -> None:
        try:
            os.writev(self._descriptor, parts)
        except OSError as error:
            if error.errno not in _GONE:  # who asked has gone
                _log.error("answer_not_taken", reason=error.strerror)

    def stop(self) -> None:
        """See Session."""
        self._reading.cancel()

    async def revoke(self, forgotten: Invalidations) -> None:
        """See Session. In threads: the kernel may have to wait for requests that this loop answers."""
        root = self._frontend.operations.repository.revision.root.hash
        notices = [partial(invalidate_entry, parent, name) for parent, name in forgotten.entries]
        notices += [partial(invalidate_pages, inode) for inode in forgotten.directories]
        for start in range(0, len(notices), _REVOCATIONS_AT_ONCE):
            part = [notice() for notice in notices[start : start + _REVOCATIONS_AT_ONCE]]
            await anyio.to_thread.run_sync(self._notify, part)
        if self._held is not None:
            self._held.journal.adopted(root)
            self._held.journal.flush()

    def _notify(self, notices: list[bytes]) -> None:
        for notice in notices:
            try:
                os.write(self._descriptor, notice)
            except OSError as error:  # mostly: the kernel did not know it any more
                _log.debug("not_revoked", reason=error.strerror)

    def close(self) -> None:
        """See Session."""
        if not self.keeps_mount and self._device and self._mounted_device() == self._device:  # not one since then
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.umount2(os.fsencode(self._mountpoint), _DETACH) != 0:
                _log.warning("not_unmounted", reason=os.strerror(ctypes.get_errno()))
        os.close(self._descriptor)
