import socket

import pytest

from fs.runtime.errors import UsageError
from fs.runtime.serving import listening_socket


def test_connections_are_taken_before_a_server_runs_and_the_protocol_is_named() -> None:
    with listening_socket("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname(), timeout=5):
        assert listener.proto == socket.IPPROTO_TCP


def test_an_address_in_use_is_an_error() -> None:
    with listening_socket("127.0.0.1", 0) as listener, pytest.raises(UsageError, match="in use"):
        listening_socket("127.0.0.1", listener.getsockname()[1])
