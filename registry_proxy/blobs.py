"""Blobs: streamed, resumed, verified."""

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from http import HTTPStatus

import httpx

from registry_proxy.errors import (
    DigestMismatchError,
    ProxyError,
    RangeError,
    UnreachableError,
    UnsupportedManifestError,
)
from registry_proxy.oci.digest import Digest
from registry_proxy.sender import Sender, pull_scope
from registry_proxy.transfer import Backoff, Origin, paced, refuse_encoding

_CONTENT_RANGE = re.compile(r"bytes (?:(\d{1,19})-(\d{1,19})|\*)/(\d{1,19})", re.ASCII)
_PROGRESS_BYTES = 1 << 16  # an attempt that gets less has not helped
_MAX_ATTEMPTS = 200
_GATHERED_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class BlobSource:
    """Where a blob is asked for. Its digest is the name; the repository decides who may read."""

    origin: Origin
    repository: str
    digest: Digest

    @property
    def path(self) -> str:
        """Its address below the registry's."""
        return f"/v2/{self.repository}/blobs/{self.digest}"

    @property
    def what(self) -> str:
        """Words for errors."""
        return f"blob {self.digest} of {self.repository}"


class Transfer:
    """The bytes of one blob from *offset* on, over as many connections as it takes. They are not verified.

    ``size_bytes`` is the blob's whole size: what the caller knows from a descriptor, else what the registry says once
    the first part has come; None if it does not say.
    """

    def __init__(self, sender: Sender, source: BlobSource, *, size_bytes: int | None = None, offset: int = 0) -> None:
        self._sender = sender
        self._source = source
        self._registry = source.origin.registry
        self.size_bytes = size_bytes
        self._position = offset
        self._etag: str | None = None

    async def parts(self) -> AsyncGenerator[bytes, None]:
        """The bytes, in order.

        A broken connection is resumed where it broke, as long as attempts get something; the registry's
        credentials and addresses are asked for anew each time, since signed addresses expire.

        Raises:
            DigestMismatchError: there are more bytes than there should be, or the sizes disagree.
            RangeError: the registry cannot begin at the offset.
            ProxyError: see Sender.ask.
        """
        backoff = Backoff(self._sender.patience)
        for _ in range(_MAX_ATTEMPTS):
            began = self._position
            try:
                async with aclosing(self._attempt()) as pieces:
                    async for piece in pieces:
                        yield piece
                if self.size_bytes in (None, self._position):
                    return
                raise UnreachableError(self._broken())
            except ProxyError as error:
                if self._position - began >= _PROGRESS_BYTES:
                    backoff.progressed()
                await backoff.failed(error)
        raise UnreachableError(self._broken())

    def _broken(self) -> str:
        done = f"{self._position} of {self.size_bytes} bytes"
        return f"{self._registry} breaks {self._source.what} off after {done}"

    async def _attempt(self) -> AsyncGenerator[bytes, None]:
        headers = {}
        if self._position:
            headers["Range"] = f"bytes={self._position}-"
            if self._etag is not None:
                headers["If-Range"] = self._etag
        async with self._sender.ask(
            "GET",
            self._source.origin,
            self._source.path,
            scope=pull_scope(self._source.repository),
            what=self._source.what,
            headers=headers,
            accepted=frozenset({HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE}),
        ) as reply:
            refuse_encoding(reply, self._source.what)
            skip_bytes = self._begin(reply)
            if reply.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return
            etag = reply.headers.get("ETag", "")
            self._etag = etag if etag.startswith('"') else None  # weak ones say nothing about bytes
            async with aclosing(paced(reply, self._sender.patience)) as pieces:
                async for piece in pieces:
                    wanted = piece[skip_bytes:]
                    skip_bytes -= len(piece) - len(wanted)
                    if wanted:
                        self._count(len(wanted))
                        yield wanted

    def _begin(self, reply: httpx.Response) -> int:
        """Check where the body begins and how large the blob is; gives how many bytes of it are known already."""
        match reply.status_code:
            case HTTPStatus.OK:
                length = reply.headers.get("Content-Length", "")
                self._agree_on_size(int(length) if length.isdecimal() else None)
                return self._position
            case HTTPStatus.PARTIAL_CONTENT | HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                match = _CONTENT_RANGE.fullmatch(reply.headers.get("Content-Range", "").strip())
                is_complete = reply.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
                begins = match and match[1]
                if match is None or (int(match[3]) if is_complete else int(begins or -1)) != self._position:
                    raise RangeError(
                        f"{self._registry} does not give {self._source.what} from byte {self._position} on"
                    )
                self._agree_on_size(int(match[3]))
            case _:
                raise RangeError(f"{self._registry} answers a range with status {reply.status_code}")
        return 0

    def _agree_on_size(self, said: int | None) -> None:
        if self.size_bytes is None:
            self.size_bytes = said
        if said is not None and said != self.size_bytes:
            raise DigestMismatchError(
                f"{self._registry} gives {said} bytes for {self._source.what}, which has {self.size_bytes}"
            )

    def _count(self, count: int) -> None:
        self._position += count
        if self.size_bytes is not None and self._position > self.size_bytes:
            raise DigestMismatchError(
                f"{self._registry} gives more than {self.size_bytes} bytes for {self._source.what}"
            )


async def verified(sender: Sender, source: BlobSource, size_bytes: int) -> AsyncGenerator[bytes, None]:
    """The bytes of a blob; the last piece is given only when the digest of all is right.

    A blob of which nothing was given yet when it turns out to be wrong is fetched once more.

    Raises:
        DigestMismatchError: the bytes are not those of the digest.
        ProxyError: see Transfer.parts.
    """
    require_verifiable(source.digest)
    for is_last_try in (False, True):
        # hashing goes at gigabytes a second and frees the interpreter, so a thread for each piece would cost more
        hasher = source.digest.hasher()
        held = b""
        is_given = False
        async with aclosing(_gathered(Transfer(sender, source, size_bytes=size_bytes).parts())) as pieces:
            async for piece in pieces:
                hasher.update(piece)
                if held:
                    is_given = True
                    yield held
                held = piece
        if hasher.hexdigest() == source.digest.hex:
            if held:
                yield held
            return
        if is_given or is_last_try:
            raise DigestMismatchError(f"the bytes that {source.origin.registry} gives for {source.what} are others")


async def _gathered(parts: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """*parts* in larger pieces: what is done with each costs as much as hashing many kilobytes."""
    gathered: list[bytes] = []
    size_bytes = 0
    async with aclosing(parts) as pieces:
        async for piece in pieces:
            gathered.append(piece)
            size_bytes += len(piece)
            if size_bytes >= _GATHERED_BYTES:
                yield b"".join(gathered)
                gathered.clear()
                size_bytes = 0
    if gathered:
        yield b"".join(gathered)


def require_verifiable(digest: Digest) -> None:
    """Make sure that bytes can be compared with *digest*.

    Raises:
        UnsupportedManifestError: its algorithm is not known here.
    """
    if not digest.is_verifiable:
        raise UnsupportedManifestError(f"digests of the algorithm {digest.algorithm!r} cannot be verified here")
