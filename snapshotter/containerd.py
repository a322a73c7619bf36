"""containerd's API as a client needs it: one connection, one namespace, errors in this package's terms.

Source: containerd, ``api/services/*/v1/*.proto``.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from snapshotter._proto import (
    content_pb2_grpc,
    diff_pb2_grpc,
    images_pb2_grpc,
    introspection_pb2_grpc,
    leases_pb2_grpc,
    snapshots_pb2_grpc,
    version_pb2_grpc,
)
from snapshotter.errors import ContainerdAbsentError, ContainerdError, ContainerdUnreachableError

DEFAULT_ADDRESS = Path("/run/containerd/containerd.sock")
CALL_TIMEOUT_S = 30.0
_MESSAGE_LIMIT_BYTES = 16 * 1024 * 1024
Metadata = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Containerd:
    """Stubs of the services over one channel. They are generated and have no types."""

    address: Path
    channel: grpc.aio.Channel

    @property
    def content(self) -> Any:  # noqa: ANN401
        """The content store."""
        return content_pb2_grpc.ContentStub(self.channel)

    @property
    def images(self) -> Any:  # noqa: ANN401
        """The image store."""
        return images_pb2_grpc.ImagesStub(self.channel)

    @property
    def leases(self) -> Any:  # noqa: ANN401
        """Leases."""
        return leases_pb2_grpc.LeasesStub(self.channel)

    @property
    def snapshots(self) -> Any:  # noqa: ANN401
        """Snapshots of every snapshotter, by its name."""
        return snapshots_pb2_grpc.SnapshotsStub(self.channel)

    @property
    def diff(self) -> Any:  # noqa: ANN401
        """What unpacks layers."""
        return diff_pb2_grpc.DiffStub(self.channel)

    @property
    def version(self) -> Any:  # noqa: ANN401
        """Which containerd it is."""
        return version_pb2_grpc.VersionStub(self.channel)

    @property
    def introspection(self) -> Any:  # noqa: ANN401
        """Which plugins it has."""
        return introspection_pb2_grpc.IntrospectionStub(self.channel)

    @asynccontextmanager
    async def errors(self, doing: str) -> AsyncIterator[None]:
        """Around calls: a gRPC status becomes an error that says what was being done.

        Raises:
            ContainerdUnreachableError: nobody listens, or no answer in time.
            ContainerdAbsentError: NOT_FOUND.
            ContainerdError: any other refusal.
        """
        try:
            yield
        except grpc.aio.AioRpcError as error:
            detail = f"{doing}: {error.details()}"
            match error.code():
                case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise ContainerdUnreachableError(f"containerd at {self.address}: {detail}") from error
                case grpc.StatusCode.NOT_FOUND:
                    raise ContainerdAbsentError(f"containerd: {detail}") from error
                case _:
                    raise ContainerdError(f"containerd: {detail} ({error.code().name})") from error


@asynccontextmanager
async def connected(address: Path) -> AsyncIterator[Containerd]:
    """A client of the containerd that listens at *address*; the connection is made with the first call."""
    options = (
        ("grpc.default_authority", "localhost"),  # what containerd's own clients send
        ("grpc.max_receive_message_length", _MESSAGE_LIMIT_BYTES),
        ("grpc.max_send_message_length", _MESSAGE_LIMIT_BYTES),
    )
    async with grpc.aio.insecure_channel(f"unix:{address}", options=options) as channel:
        yield Containerd(address, channel)
