"""Sockets that servers listen at."""

import socket

_BACKLOG = 512


def listening_socket(host: str, port: int) -> socket.socket:
    """A TCP socket that accepts connections from now on, also before a server takes them up. Port 0 is a free one.

    Connections inherit TCP_NODELAY: servers send head and body of a small answer in two writes, and the second would
    otherwise wait for the client's delayed acknowledgement, 40 ms. asyncio sees to that only for sockets that were made
    with an explicit protocol, which those of ``uvicorn.Config.bind_socket`` are not.

    Raises:
        OSError: the address is in use, or not this machine's.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener
