"""Listening sockets of our HTTP servers."""

import socket

from fs.runtime.errors import UsageError


def listening_socket(host: str, port: int) -> socket.socket:
    """A TCP socket that listens at *host* and *port*; port 0 takes a free one.

    Raises:
        UsageError: the address is not ours or is in use.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio switches Nagle's algorithm off only where the protocol is named; with it on, an answer whose head and
    # body are written apart waits 40 ms for the client's delayed acknowledgement
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise UsageError(f"cannot listen at {host}:{port}: {error.strerror}") from error
    listener.set_inheritable(True)
    return listener
