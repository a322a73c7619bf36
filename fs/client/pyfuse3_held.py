"""A session through libfuse over a connection that outlives this process, because a holder has it too.

libfuse begins every session by answering INIT, which the kernel sends only once. So it never gets the connection first:
it is started on one end of a socket pair (as ``/dev/fd/N``, which libfuse takes for an open session), receives INIT
there, from the kernel in the first life and from a file in every later one, and answers. Then the connection is put in
the place of the socket, and the kernel is told to repeat what no daemon has answered.
"""

import errno
import json
import os
import select
import socket
from functools import partial
from pathlib import Path

import anyio
import pyfuse3
import structlog
import trio

from fs.client.adoption import Invalidations
from fs.client.held import Held
from fs.client.mounting import detach, mount_device, mount_with_helper
from fs.client.mountpoints import MountError, find_mount
from fs.client.pyfuse3_frontend import Pyfuse3Frontend
from fs.client.pyfuse3_session import Pyfuse3Session
from fs.client.wire_messages import resend
from fs.runtime.files import write_atomically

_log = structlog.get_logger()

_REQUEST_BYTES = 16 << 10  # the kernel wants room for more than it sends
_INIT_TIMEOUT_S = 20.0
_ANSWER_HEADER_BYTES = 16


class HeldPyfuse3Session(Pyfuse3Session):
    """See frontend.Session. There can be one in a process.

    Args:
        frontend: the handlers.
        name: of the repository.
        mountpoint: absolute.
        allows_other: users other than the one who mounts.
        held: what comes from the holder.
        record: file for INIT and its answer.
    """

    def __init__(  # noqa: PLR0913  # a session has so many parts
        self,
        frontend: Pyfuse3Frontend,
        name: str,
        mountpoint: Path,
        *,
        allows_other: bool,
        held: Held,
        record: Path,
    ) -> None:
        super().__init__(frontend, name, mountpoint, allows_other=allows_other)
        self._operations = frontend.operations
        self._held = held
        self._record = record
        self._device = held.inherited.device
        self._mounted = ""  # device number of the file system
        self._socket = -1  # libfuse's end; later the connection
        self._partner = socket.socket()
        self._init = b""
        self._is_introduced = trio.Event()

    def mount(self) -> None:
        """See Session."""
        if self._held.inherited.is_resumed:
            self._init = self._recorded("request")
            if not self._init:
                raise MountError(f"{self._record} does not say how the session began")
        else:
            self._device = self._mount_anew()
            self._init = self._first_request()
        self._mounted = self._mounted_device()
        self._partner.close()
        self._partner, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._partner.setblocking(False)  # noqa: FBT003  # its own signature
        self._partner.send(self._init)
        self._socket = ours.detach()
        try:
            self.begin(f"/dev/fd/{self._socket}")
        except MountError:
            detach(self._mountpoint)
            raise

    def _mount_anew(self) -> int:
        device = self._held.inherited.device
        if device >= 0 and mount_device(device, self._name, self._mountpoint, allows_other=self._allows_other):
            return device
        opened = mount_with_helper(self._name, self._mountpoint, allows_other=self._allows_other)
        os.set_blocking(opened, False)
        with socket.socket(fileno=os.dup(self._held.inherited.hand)) as hand:
            socket.send_fds(hand, [b"d"], [opened])
        return opened

    def _first_request(self) -> bytes:
        poll = select.poll()
        poll.register(self._device, select.POLLIN)
        if not poll.poll(_INIT_TIMEOUT_S * 1000):
            detach(self._mountpoint)
            raise MountError(f"the kernel says nothing about the mount at {self._mountpoint}")
        return os.read(self._device, _REQUEST_BYTES)

    def _mounted_device(self) -> str:
        mounted = find_mount(self._mountpoint)
        return mounted.device if mounted is not None else ""

    def _recorded(self, what: str) -> bytes:
        try:
            return bytes.fromhex(json.loads(self._record.read_bytes())[what])
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.error("session_record_not_read", path=str(self._record), reason=str(error))
            return b""

    async def serve(self) -> None:
        """See Session."""
        await self._introduce()
        while True:
            try:
                await super().serve()
            except* OSError as errors:
                if not all(_is_nothing_to_read(error) for error in errors.exceptions):
                    raise
            else:
                return
            os.write(self._device, resend())  # what was under way is begun anew

    async def _introduce(self) -> None:
        """Let libfuse answer INIT, then give it the connection."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(pyfuse3.main, min_tasks=1, max_tasks=1))
            with anyio.fail_after(_INIT_TIMEOUT_S):
                await trio.lowlevel.wait_readable(self._partner)
            answer = self._partner.recv(_REQUEST_BYTES)
            nursery.cancel_scope.cancel()
        os.dup2(self._device, self._socket, inheritable=False)
        self._partner.close()
        if self._held.inherited.is_resumed:
            if self._recorded("answer")[_ANSWER_HEADER_BYTES:] != answer[_ANSWER_HEADER_BYTES:]:
                _log.warning("session_differs", reason="another libfuse wants other features than the kernel was told")
            os.write(self._device, resend())
        else:
            document = {"request": self._init.hex(), "answer": answer.hex()}
            write_atomically(self._record, json.dumps(document).encode(), mode=0o600)
            os.write(self._device, answer)
        self._is_introduced.set()

    async def resume(self) -> None:
        """See Session."""
        await self._is_introduced.wait()
        if self._held.root != self._operations.repository.revision.root.hash:
            await self.revoke(await self._operations.adopt())

    async def revoke(self, forgotten: Invalidations) -> None:
        """See Session."""
        root = self._operations.repository.revision.root.hash
        await super().revoke(forgotten)
        self._held.journal.adopted(root)
        self._held.journal.flush()

    def close(self) -> None:
        """See Session."""
        pyfuse3.close(unmount=False)
        if not self.keeps_mount and self._mounted and self._mounted_device() == self._mounted:  # not one since then
            detach(self._mountpoint)
        os.close(self._device)


def _is_nothing_to_read(error: BaseException) -> bool:
    """True if a request was taken back between its announcement and its reading."""
    if isinstance(error, BaseExceptionGroup):
        return all(_is_nothing_to_read(one) for one in error.exceptions)
    return isinstance(error, OSError) and error.errno == errno.EAGAIN
