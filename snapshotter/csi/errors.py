"""Every error of the plugin, with its status on the wire.

Source: Container Storage Interface, "Error Scheme" and the table of each call.
"""

from typing import ClassVar

import grpc

from snapshotter.errors import SnapshotterError


class VolumeError(SnapshotterError):
    """Root of the plugin's errors."""

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL


class VolumeRequestError(VolumeError):
    """A field is missing, or says something that cannot be done."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class VolumeAbsentError(VolumeError):
    """There is no such repository, path or volume here."""

    code = grpc.StatusCode.NOT_FOUND


class VolumeConflictError(VolumeError):
    """Something else is mounted there."""

    code = grpc.StatusCode.ALREADY_EXISTS


class VolumeBusyError(VolumeError):
    """Another call for the same volume is not finished; the caller is to try again."""

    code = grpc.StatusCode.ABORTED
    transient = True


class VolumeUnavailableError(VolumeError):
    """The repository cannot be read now."""

    code = grpc.StatusCode.UNAVAILABLE
    transient = True
