"""Reading a repository over a network: who gives bytes, who takes them, as two Protocols.

A reader is told what to read and pushes the bytes into a receiver, which verifies them. That way one wrapper can try
again, or elsewhere: a receiver begins anew with every attempt, and no byte of a failed attempt is ever used.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from fs.errors import RefusedError

Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Part:
    """A range of bytes of a file."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Request:
    """What to read."""

    path: str  # below the repository's root, percent-encoded where it has to be
    part: Part | None = None  # None is the whole
    is_fresh: bool = False  # caches on the way are asked to fetch it anew


class Receiver(Protocol):
    """Takes the bytes of one file or object and knows if they are the right ones."""

    def begin(self) -> None:
        """A new attempt: everything received so far is void."""

    async def feed(self, piece: bytes) -> None:
        """The next bytes, in order. May raise CorruptError or RefusedError as soon as it is known."""

    async def finish(self) -> None:
        """All bytes were given. Raises CorruptError if they are not what was asked for."""


class StorageReader(Protocol):
    """Gives files and objects of one repository. May be used by many tasks at once."""

    @property
    def url(self) -> str:
        """Where it reads, without secrets; for people."""

    async def read(self, request: Request, receiver: Receiver) -> None:
        """Push what *request* names into *receiver* and finish it.

        Raises:
            AbsentError: it is not there.
            UnreachableError: there is no answer, no whole answer, or none in time.
            RefusedError: the server or the receiver refuses.
            CorruptError: the receiver says that the bytes are wrong.
        """


class BytesReceiver:
    """Keeps a small file in memory; it is verified by others (manifest, whitelist)."""

    def __init__(self, name: str, limit_bytes: int) -> None:
        self._name = name
        self._limit_bytes = limit_bytes
        self._received = bytearray()

    @property
    def content(self) -> bytes:
        """What was received."""
        return bytes(self._received)

    def begin(self) -> None:
        """See Receiver.begin."""
        self._received.clear()

    async def feed(self, piece: bytes) -> None:
        """See Receiver.feed."""
        self._received += piece
        if len(self._received) > self._limit_bytes:
            raise RefusedError(f"{self._name} is larger than {self._limit_bytes} bytes")

    async def finish(self) -> None:
        """See Receiver.finish: any bytes will do."""
