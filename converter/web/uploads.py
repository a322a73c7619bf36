"""Blobs that users send: ``/api/v1/uploads/DIGEST``. See ``converter.uploads``."""

from http import HTTPStatus

import anyio
import anyio.to_thread
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from converter.uploads import Incoming, UploadSpool
from converter.web.access import require_writer
from converter.web.services import Services
from registry_proxy.oci.digest import Digest

_IDLE_S = 30.0
_PIECE_BYTES = 1 << 20


class Uploads:
    """The handler of one blob."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def routes(self) -> list[Route]:
        """Where each handler is."""
        return [Route("/api/v1/uploads/{digest}", self.blob, methods=["HEAD", "PUT"])]

    async def blob(self, request: Request) -> Response:
        """HEAD tells if the blob is here, PUT brings it."""
        require_writer(request, self._services.api_token)
        spool = spool_of(self._services)
        digest = Digest.parse(request.path_params["digest"])
        if await anyio.to_thread.run_sync(spool.has, digest):
            return Response(status_code=HTTPStatus.OK)
        if request.method == "HEAD":
            return Response(status_code=HTTPStatus.NOT_FOUND)
        size = request.headers.get("content-length", "")
        if not (size.isascii() and size.isdigit() and len(size) < 16):  # noqa: PLR2004  # no blob has a petabyte
            raise HTTPException(411, "the header Content-Length is needed")
        incoming = await anyio.to_thread.run_sync(spool.begin, digest, int(size))
        with incoming:
            await _receive(request, incoming)
        return Response(status_code=HTTPStatus.CREATED)


def spool_of(services: Services) -> UploadSpool:
    """Where blobs go. Raises HTTPException if this service takes none."""
    if services.uploads is None:
        raise HTTPException(403, "this service takes no images: set UNPACKD_CONVERTER_UPLOAD_DIRECTORY there")
    return services.uploads


async def _receive(request: Request, incoming: Incoming) -> None:
    waiting = bytearray()
    pieces = request.stream()
    try:
        while True:
            with anyio.fail_after(_IDLE_S):
                piece = await anext(pieces, b"")
            waiting += piece
            if len(waiting) >= _PIECE_BYTES or not piece:
                await anyio.to_thread.run_sync(incoming.write, bytes(waiting))
                waiting.clear()
            if not piece:
                break
        await anyio.to_thread.run_sync(incoming.finish)
    except TimeoutError as error:
        raise HTTPException(408, f"nothing arrived for {_IDLE_S:.0f} s") from error
    except ClientDisconnect as error:
        raise HTTPException(400, "the body was cut off") from error
