"""A TCP relay that adds time to each way, and may be as slow as a link: the far end seems to be further away.

Each connection has its own queues, so that a reader who waits holds nobody else up; the link is shared by all.
"""

import asyncio
import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

_PIECE_BYTES = 1 << 17
_QUEUE = 64  # pieces of one direction of a connection that are on their way


@dataclass
class Link:
    """A line of limited speed in each direction, which relays may share; counts what it carries."""

    bytes_per_s: float | None = None  # None: no limit
    bytes_to_client: int = 0
    bytes_to_server: int = 0
    _free_at_s: dict[bool, float] = field(default_factory=dict)

    def leave(self, size: int, now_s: float, *, to_client: bool) -> float:
        """When *size* bytes that are sent now have left the line."""
        if to_client:
            self.bytes_to_client += size
        else:
            self.bytes_to_server += size
        if self.bytes_per_s is None:
            return now_s
        free_at_s = max(now_s, self._free_at_s.get(to_client, 0.0)) + size / self.bytes_per_s
        self._free_at_s[to_client] = free_at_s
        return free_at_s


@dataclass
class DelayingRelay:
    """The relay; the delay may be changed while it runs."""

    target: tuple[str, int]
    round_trip_s: float
    link: Link = field(default_factory=Link)
    port: int = 0
    connections: int = 0

    async def serve(self, listener: socket.socket, ending: asyncio.Event) -> None:
        """Relay until *ending* is set."""
        under_way: set[asyncio.Task[None]] = set()

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            if task is not None:
                under_way.add(task)
                task.add_done_callback(under_way.discard)
            with suppress(OSError, asyncio.CancelledError):
                await self._relay(reader, writer)

        server = await asyncio.start_server(relay, sock=listener, limit=2 * _PIECE_BYTES)
        await ending.wait()
        server.close()
        for task in list(under_way):
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)

    async def _relay(self, near_in: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            far_in, far_out = await asyncio.open_connection(*self.target, limit=2 * _PIECE_BYTES)
        except OSError:
            near_out.close()
            return
        for stream in (near_out, far_out):
            stream.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await asyncio.gather(
                self._carry(near_in, far_out, to_client=False), self._carry(far_in, near_out, to_client=True)
            )
        finally:
            near_out.close()
            far_out.close()

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, to_client: bool) -> None:
        """One direction: what was read waits until its time has come."""
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_QUEUE)
        now = asyncio.get_running_loop().time

        async def deliver() -> None:
            while True:
                due_s, piece = await waiting.get()
                if (wait_s := due_s - now()) > 0:
                    await asyncio.sleep(wait_s)
                if not piece:
                    break
                sink.write(piece)
                await sink.drain()
            if sink.can_write_eof():
                sink.write_eof()

        async def take() -> None:
            piece = b"-"
            while piece:
                try:
                    piece = await source.read(_PIECE_BYTES)
                except OSError:
                    piece = b""
                left_s = self.link.leave(len(piece), now(), to_client=to_client)
                await waiting.put((left_s + self.round_trip_s / 2, piece))

        taking = asyncio.ensure_future(take())
        try:
            with suppress(OSError):  # that end is gone
                await deliver()
        finally:
            taking.cancel()


@contextmanager
def delaying_relay(target: tuple[str, int], round_trip_s: float, link: Link | None = None) -> Iterator[DelayingRelay]:
    """Relay a free port of 127.0.0.1 to *target* until the end of the block; *link* is an unlimited one by default."""
    relay = DelayingRelay(target, round_trip_s, link or Link())
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        relay.port = listener.getsockname()[1]
        # select() waits for microseconds, epoll for whole milliseconds; there are few connections
        loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
        ending = asyncio.Event()
        thread = threading.Thread(target=loop.run_until_complete, args=(relay.serve(listener, ending),), daemon=True)
        thread.start()
        try:
            yield relay
        finally:
            loop.call_soon_threadsafe(ending.set)
            thread.join(5)
            loop.close()
