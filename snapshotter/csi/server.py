"""The plugin as a process: socket, signals."""

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import anyio
import grpc
import structlog

from snapshotter._proto import csi_pb2_grpc as stubs
from snapshotter.csi.service import IdentityService, NodeService
from snapshotter.csi.volumes import Volumes
from snapshotter.errors import ConfigurationError
from snapshotter.server import make_way

_log = structlog.get_logger()
_GRACE_S = 5.0
_SCHEME = "unix:"
DEFAULT_DRIVER = "csi.unpackd.org"


@dataclass(frozen=True, slots=True, kw_only=True)
class CsiSettings:
    """Everything that can be set."""

    address: Path
    node: str
    repositories: Path
    driver: str = DEFAULT_DRIVER


def parse_endpoint(endpoint: str) -> Path:
    """The path of the socket in ``unix:///path``, or a path as it is. Raises ConfigurationError."""
    path = endpoint.removeprefix(_SCHEME)
    if "://" in path or not path.lstrip("/"):
        raise ConfigurationError(f"{endpoint!r} is no socket: give unix:///path or /path")
    return Path("/" + path.lstrip("/")) if endpoint.startswith(_SCHEME) else Path(path).absolute()


async def serve(settings: CsiSettings) -> None:
    """Serve until SIGTERM or SIGINT; what is mounted stays.

    Raises:
        StateLockedError: another plugin uses the socket.
        ConfigurationError: the path cannot be used.
    """
    make_way(settings.address)
    volumes = Volumes(settings.repositories)
    server = grpc.aio.server()
    stubs.add_IdentityServicer_to_server(IdentityService(settings.driver, volumes), server)
    stubs.add_NodeServicer_to_server(NodeService(settings.node, volumes), server)
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        mask = os.umask(0o177)  # the socket must not be open to others for an instant
        try:
            server.add_insecure_port(f"unix:{settings.address}")
        finally:
            os.umask(mask)
        await server.start()
        _log.info("csi_listening", address=str(settings.address), driver=settings.driver, node=settings.node)
        async for received in signals:
            _log.info("csi_stopping", signal=signal.Signals(received).name)
            break
        await server.stop(_GRACE_S)
        with suppress(FileNotFoundError):
            settings.address.unlink()
