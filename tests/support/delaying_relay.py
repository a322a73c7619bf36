"""A TCP relay that adds time to each way: the far end seems to be further away. Bandwidth is not limited."""

import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

_PIECE_BYTES = 1 << 18


@dataclass(eq=False)
class _Half:
    """One direction of a connection: what was read waits until its time has come."""

    source: socket.socket
    target: socket.socket
    waiting: deque[tuple[float, bytes]] = field(default_factory=deque)


@dataclass
class DelayingRelay:
    """The relay; the delay may be changed while it runs."""

    target: tuple[str, int]
    round_trip_s: float
    port: int = 0
    connections: int = 0
    _sockets: list[socket.socket] = field(default_factory=list)

    def serve(self, listener: socket.socket, ending: threading.Event) -> None:
        """Relay until *ending* is set."""
        selector = selectors.DefaultSelector()
        selector.register(listener, selectors.EVENT_READ)
        halves: list[_Half] = []
        while not ending.is_set():
            due = min((half.waiting[0][0] for half in halves if half.waiting), default=time.monotonic() + 0.05)
            for key, _ in selector.select(max(0.0, due - time.monotonic())):
                if key.data is None:
                    halves += self._accept(listener, selector)
                else:
                    self._take(key.data, selector)
            now = time.monotonic()
            for half in halves:
                while half.waiting and half.waiting[0][0] <= now:
                    _give(half, half.waiting.popleft()[1])
        selector.close()
        for one in self._sockets:
            one.close()

    def _accept(self, listener: socket.socket, selector: selectors.BaseSelector) -> list[_Half]:
        near, _ = listener.accept()
        far = socket.create_connection(self.target, timeout=5)
        self.connections += 1
        for one in (near, far):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets.append(one)
        halves = [_Half(near, far), _Half(far, near)]
        for half in halves:
            selector.register(half.source, selectors.EVENT_READ, half)
        return halves

    def _take(self, half: _Half, selector: selectors.BaseSelector) -> None:
        try:
            piece = half.source.recv(_PIECE_BYTES)
        except OSError:
            piece = b""
        if not piece:
            selector.unregister(half.source)
        half.waiting.append((time.monotonic() + self.round_trip_s / 2, piece))


def _give(half: _Half, piece: bytes) -> None:
    try:
        if piece:
            half.target.sendall(piece)
        else:
            half.target.shutdown(socket.SHUT_WR)
    except OSError:
        return  # that end is gone


@contextmanager
def delaying_relay(target: tuple[str, int], round_trip_s: float) -> Iterator[DelayingRelay]:
    """Relay a free port of 127.0.0.1 to *target* until the end of the block."""
    relay = DelayingRelay(target, round_trip_s)
    ending = threading.Event()
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        relay.port = listener.getsockname()[1]
        thread = threading.Thread(target=relay.serve, args=(listener, ending), daemon=True)
        thread.start()
        try:
            yield relay
        finally:
            ending.set()
            thread.join(5)
