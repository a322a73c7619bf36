"""Talking to a running mount: one JSON document to its socket, one back.

A request is ``{"command": NAME, …}`` and a newline; the answer is ``{"ok": VALUE}`` or
``{"error": SENTENCE, "exit": CODE}`` and a newline. The socket lies in a directory that only its owner can enter.
"""

import json
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import structlog

from fs.errors import AbsentError, FsError, UnreachableError
from fs.runtime.exits import Exit

_log = structlog.get_logger()

Handler = Callable[[Mapping[str, Any]], Awaitable[object]]
_REQUEST_LIMIT_BYTES = 65536
_ANSWER_LIMIT_BYTES = 64 << 20
_REQUEST_TIMEOUT_S = 10.0


class ControlFailedError(FsError):
    """The daemon answered with an error."""

    def __init__(self, sentence: str, code: int) -> None:
        super().__init__(sentence)
        self.exit = Exit(code)  # type: ignore[misc]  # the daemon's code instead of the class's


async def serve_control(path: Path, handlers: Mapping[str, Handler]) -> None:
    """Answer requests at socket *path* for ever; the file is removed at the end."""
    path.unlink(missing_ok=True)  # noqa: ASYNC240  # one system call on a local file system
    listener = await anyio.create_unix_listener(path, mode=0o600)
    try:
        await listener.serve(lambda stream: _answer(stream, handlers))
    finally:
        path.unlink(missing_ok=True)  # noqa: ASYNC240  # as above, and it must not be cancelled


async def _answer(stream: anyio.abc.SocketStream, handlers: Mapping[str, Handler]) -> None:
    async with stream:
        try:
            with anyio.fail_after(_REQUEST_TIMEOUT_S):
                request = await _request(stream)
            handler = handlers.get(str(request.get("command")))
            if handler is None:
                answer: dict[str, object] = {"error": "no such command", "exit": int(Exit.USAGE)}
            else:
                answer = {"ok": await handler(request)}
        except FsError as error:
            answer = {"error": str(error), "exit": int(error.exit)}
        except (OSError, ValueError, anyio.BrokenResourceError, anyio.EndOfStream):
            return
        except Exception as error:  # noqa: BLE001  # the edge: one broken request must not end the mount
            _log.exception("control_request_broken")
            answer = {"error": f"internal error: {error}", "exit": int(Exit.FAILED)}
        try:
            await stream.send(json.dumps(answer, default=str).encode() + b"\n")
        except (OSError, anyio.BrokenResourceError):
            _log.debug("control_answer_not_taken")


async def _request(stream: anyio.abc.SocketStream) -> dict[str, Any]:
    received = b""
    while b"\n" not in received:
        received += await stream.receive()
        if len(received) > _REQUEST_LIMIT_BYTES:
            raise ValueError("a request without end")
    document = json.loads(received)
    if not isinstance(document, dict):
        raise TypeError("a request that is no object")
    return document


def ask(path: Path, request: Mapping[str, object], *, timeout_s: float = 90.0) -> Any:  # noqa: ANN401  # JSON
    """Send *request* to the daemon at socket *path* and give the value it answers with.

    Raises:
        AbsentError: nobody listens there.
        UnreachableError: the daemon does not answer in time.
        ControlFailedError: it answers with an error.
    """
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout_s)
            connection.connect(str(path))
            connection.sendall(json.dumps(dict(request)).encode() + b"\n")
            with connection.makefile("rb") as stream:
                line = stream.readline(_ANSWER_LIMIT_BYTES)
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise AbsentError("the daemon of this mount is not there") from error
    except OSError as error:
        raise UnreachableError(f"the daemon of this mount does not answer: {error}") from error
    if not line:
        raise UnreachableError("the daemon of this mount ended before it answered")
    answer = json.loads(line)
    if "error" in answer:
        raise ControlFailedError(answer["error"], answer["exit"])
    return answer["ok"]
